"""The hand-over: each row once, with its reason where it is not sent, at the pace asked for, and everybody in turn."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from mailerd.campaigns.audience import Audience
from mailerd.campaigns.ledger import Status
from mailerd.campaigns.runner.handing import SPILL
from mailerd.campaigns.runner.loop import Runner
from mailerd.campaigns.runner.runs import RunStore
from mailerd.campaigns.runner.turns import next_turn, share
from mailerd.campaigns.timing import Timing, Window
from mailerd.campaigns.values import Options, Resend
from mailerd.config import Stream, Tenant
from mailerd.queue.store import LeaseLostError
from mailerd.queue.suppression import Reason, Suppression
from tests.campaigns.sending import TENANT, Sending, on, sending_on

FAST = Options(pace=10_000_000)


@pytest.fixture
async def sending(database: str, tmp_path: Path) -> AsyncIterator[Sending]:
    async with sending_on(database, tmp_path) as made:
        yield made


async def test_a_row_and_its_mail_change_together_and_the_counts_with_them(sending: Sending) -> None:
    ids = await sending.contacts(7)
    campaign = await sending.written()

    await sending.hand_over()

    ledger = await sending.ledger(campaign)
    assert {row["status"] for row in ledger.values()} == {Status.QUEUED}
    queued = await sending.pool.fetch(
        "SELECT m.id, m.render, m.campaign, m.tenant, m.stream, m.unsubscribe, r.address"
        " FROM messages AS m JOIN recipients AS r ON r.message_id = m.id ORDER BY r.address"
    )
    version = await sending.pool.fetchval("SELECT version_id FROM campaign_runs")
    assert [tuple(row) for row in queued] == [
        (
            ledger[contact]["message_id"],
            f"{campaign}:{version}:{contact}",
            f"cmp_{campaign}",
            TENANT,
            "marketing",
            True,
            f"reader{n}@example.org",
        )
        for n, contact in enumerate(ids, 1)
    ]
    assert await sending.totals(campaign) == {"queued": 7}


async def test_a_campaign_of_which_nothing_waits_is_sent(sending: Sending) -> None:
    await sending.contacts(2)
    campaign = await sending.written(options=FAST)

    await sending.hand_over()
    sending.clock.advance(seconds=1)
    await sending.hand_over()

    assert (await sending.campaign(campaign)).status == "sent"
    types = await sending.pool.fetch("SELECT type FROM events WHERE type LIKE 'campaign.%' ORDER BY txid")
    assert [row["type"] for row in types] == ["campaign.started", "campaign.completed"]


async def test_who_must_not_be_mailed_is_not_and_the_ledger_says_why(sending: Sending) -> None:
    names = ["fine", "left", "bounced", "soft", "complained", "byhand", "topic", "gone", "nolist", "wrong", "erased"]
    contacts = {name: (await sending.contacts(1, prefix=name))[0] for name in names}
    list_id = await sending.list_of(list(contacts.values()))
    reasons = {
        "left": Reason.UNSUBSCRIBE,
        "bounced": Reason.BOUNCE,
        "soft": Reason.SOFT_BOUNCE,
        "complained": Reason.COMPLAINT,
        "byhand": Reason.MANUAL,
        "topic": Reason.UNSUBSCRIBE,
    }
    await sending.suppressions.add(
        Suppression(
            f"{name}1@example.org",
            tenant=TENANT,
            stream="marketing" if name == "topic" else "",
            topic="weekly" if name == "topic" else "",
            reason=reason,
            source="test",
            created_at=sending.clock.now,
        )
        for name, reason in reasons.items()
    )
    campaign = await sending.written(Audience(list_ids=[list_id]), options=Options(topic="weekly"))
    await sending.pool.execute(
        "UPDATE list_contacts SET status = 'unsubscribed' WHERE contact_id = $1", contacts["gone"]
    )
    await sending.pool.execute("DELETE FROM list_contacts WHERE contact_id = $1", contacts["nolist"])
    await sending.pool.execute("UPDATE contacts SET email = 'wrong@@example' WHERE id = $1", contacts["wrong"])
    await sending.pool.execute("DELETE FROM contacts WHERE id = $1", contacts["erased"])

    await sending.hand_over()

    assert await sending.reasons(campaign) == {
        contacts["left"]: "unsubscribed",
        contacts["bounced"]: "bounced",
        contacts["soft"]: "bounced",
        contacts["complained"]: "complained",
        contacts["byhand"]: "suppressed",
        contacts["topic"]: "unsubscribed",
        contacts["gone"]: "left_list",
        contacts["nolist"]: "left_list",
        contacts["wrong"]: "invalid_address",
        contacts["erased"]: "erased",
    }
    assert await sending.handed(campaign) == 1
    assert await sending.totals(campaign) == {"queued": 1, "suppressed": 10}


async def test_who_has_left_a_list_is_still_reached_by_conditions_and_by_a_list_that_is_gone(sending: Sending) -> None:
    [contact] = await sending.contacts(1)
    list_id = await sending.list_of([contact])
    tree = {"field": "email", "operator": "contains", "value": "@"}
    both = await sending.written(Audience(list_ids=[list_id], conditions=tree))
    alone = await sending.written(Audience(list_ids=[list_id]))
    await sending.pool.execute("DELETE FROM list_contacts")
    await sending.pool.execute("DELETE FROM contact_lists WHERE id = $1", list_id)

    await sending.hand_over()

    assert [await sending.handed(campaign) for campaign in (both, alone)] == [1, 1]


async def test_who_has_left_the_list_of_a_campaign_does_not_get_it_again(sending: Sending) -> None:
    ids = await sending.contacts(2)
    list_id = await sending.list_of(ids)
    earlier = await sending.written(Audience(list_ids=[list_id]))
    await sending.pool.execute("UPDATE campaign_contacts SET status = 2, waiting = false")
    await sending.pool.execute("UPDATE list_contacts SET status = 'unsubscribed' WHERE contact_id = $1", ids[0])

    again = await sending.begin(options=Options(resend=Resend(campaign=earlier, statuses=[], unmarked=5)))
    await sending.write()
    await sending.hand_over()

    assert await sending.handed(again) == 1
    assert (await sending.ledger(again))[ids[0]]["reason"] == "left_list"


async def test_where_consent_is_required_the_last_word_of_the_contact_counts(sending: Sending) -> None:
    config = msgspec.structs.replace(sending.config, tenants={TENANT: Tenant(consent="required")})
    sending.handing = sending.new_handing(config)
    contacts = {name: (await sending.contacts(1, prefix=name))[0] for name in ("never", "yes", "no", "other", "list")}
    list_id = await sending.list_of(list(contacts.values()))
    said = [("yes", None, "granted", 1), ("no", None, "granted", 1), ("no", None, "withdrawn", 2)]
    for name, of_list, action, day in [*said, ("other", list_id + 1, "granted", 1), ("list", list_id, "granted", 1)]:
        await sending.pool.execute(
            "INSERT INTO consents (tenant, address, list_id, action, method, actor, at)"
            " VALUES ($1, $2, $3, $4, 'form', 'test', $5)",
            TENANT,
            f"{name}1@example.org",
            of_list,
            action,
            on(day, 12),
        )
    campaign = await sending.written(Audience(list_ids=[list_id]))

    await sending.hand_over()

    assert await sending.reasons(campaign) == dict.fromkeys(
        (contacts["never"], contacts["no"], contacts["other"]), "no_consent"
    )


async def test_workers_that_hand_over_at_the_same_time_hand_each_row_over_once(sending: Sending) -> None:
    await sending.contacts(300)
    campaigns = [await sending.written(options=FAST) for _ in range(2)]
    workers = [sending.new_handing() for _ in range(4)]

    async def work(n: int) -> None:
        while sum([await sending.handed(campaign) for campaign in campaigns]) < 600:
            sending.clock.advance(seconds=0.01)
            await workers[n].step()

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(n) for n in range(4)))

    rendered = await sending.pool.fetch("SELECT render FROM messages")
    assert len(rendered) == len({row["render"] for row in rendered}) == 600
    assert [await sending.totals(campaign) for campaign in campaigns] == [{"queued": 300}] * 2


async def test_a_hand_over_that_fails_changes_nothing_and_gives_the_memory_back(sending: Sending) -> None:
    await sending.contacts(5)
    campaign = await sending.written()
    await sending.handing.step()  # reads what the campaign says
    room = sending.shelf.room()
    await sending.pool.execute("DELETE FROM workers")

    with pytest.raises(LeaseLostError):
        await sending.handing.step()

    assert {row["waiting"] for row in (await sending.ledger(campaign)).values()} == {True}
    assert await sending.pool.fetchval("SELECT count(*) FROM messages") == 0
    assert await sending.totals(campaign) == {}
    assert sending.shelf.room() == room


async def test_who_has_plenty_in_memory_takes_no_turn_for_a_few_rows(sending: Sending) -> None:
    await sending.contacts(300)
    campaign = await sending.written(options=FAST)
    await sending.hand_over()
    sending.shelf.kept.clear()
    sending.shelf.capacity = 220
    await sending.pool.execute("UPDATE campaign_contacts SET waiting = true, status = 0, message_id = NULL")
    await sending.pool.execute("UPDATE campaign_runs SET next_at = $1, waits = true", sending.clock())

    await sending.handing.step()
    assert len(sending.shelf.kept) == 200
    sending.clock.advance(seconds=1)
    await sending.handing.step()
    assert len(sending.shelf.kept) == 200  # there is room for 20

    del sending.shelf.kept[:90]
    async with asyncio.timeout(60):
        while await sending.handed(campaign) < 300:  # it is looked at again in a moment
            sending.clock.advance(seconds=1)
            await sending.handing.step()
            await asyncio.sleep(0.01)
    assert len(sending.shelf.kept) == 210


async def test_a_campaign_whose_mail_does_not_leave_stops_no_other_and_gets_on_slowly(sending: Sending) -> None:
    ids = await sending.contacts(300)
    stuck, other = await sending.written(options=FAST), await sending.written(options=FAST)
    sending.shelf.full = {f"cmp_{stuck}"}

    await sending.hand_over()  # what campaigns say is read first
    while await sending.handed(other) < len(ids):
        sending.clock.advance(seconds=1)
        await sending.hand_over()
    assert await sending.handed(stuck) <= SPILL

    before = await sending.handed(stuck)
    async with asyncio.timeout(60):
        while await sending.handed(stuck) < before + SPILL:
            sending.clock.advance(seconds=1)
            await sending.hand_over()
            await asyncio.sleep(0.01)
    in_queue = "SELECT count(*) FROM recipients AS r JOIN messages AS m ON m.id = r.message_id WHERE m.campaign = $1"
    assert await sending.pool.fetchval(f"{in_queue} AND owner IS NULL", f"cmp_{stuck}") == before + SPILL


async def test_the_runner_goes_on_with_others_when_a_turn_takes_too_long(sending: Sending) -> None:
    ids = await sending.contacts(3)
    bad, good = await sending.written(options=FAST), await sending.written(options=FAST)
    await sending.pool.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$;"
        "CREATE TRIGGER slow BEFORE UPDATE ON campaign_contacts FOR EACH ROW"
        f" WHEN (OLD.campaign_id = {bad}) EXECUTE FUNCTION slow()"
    )
    runner = Runner(sending.pool, sending.handing, clock=sending.clock)
    runner.start()
    try:
        async with asyncio.timeout(60):
            while await sending.handed(good) < len(ids):
                await asyncio.sleep(0.02)
    finally:
        await runner.stop()

    assert await sending.handed(bad) == 0


async def test_a_clock_that_was_ahead_for_a_moment_stops_no_campaign(sending: Sending) -> None:
    ids = await sending.contacts(3)
    campaign = await sending.written(options=Options(pace=60))
    runs = RunStore(sending.pool)
    sending.clock.advance(hours=1)
    await sending.handing.step()
    await sending.handing.step()
    sending.clock.advance(hours=-1)
    next_at = await sending.pool.fetchval("SELECT next_at FROM campaign_runs")
    assert next_at > sending.clock.now + timedelta(minutes=50)

    await runs.set_right(sending.clock.now)
    for _ in ids:
        await sending.hand_over()
        sending.clock.advance(seconds=1)

    assert await sending.handed(campaign) == 3
    next_at = await sending.pool.fetchval("SELECT next_at FROM campaign_runs")
    sending.clock.advance(seconds=-30)  # as far as the clocks of nodes may be apart
    await runs.set_right(sending.clock.now)
    assert await sending.pool.fetchval("SELECT next_at FROM campaign_runs") == next_at


async def test_a_campaign_whose_turn_fails_does_not_stop_the_others(sending: Sending) -> None:
    await sending.contacts(3)
    bad, good = await sending.written(), await sending.written()
    await sending.handing.step()
    await sending.pool.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON campaign_contacts FOR EACH ROW"
        f" WHEN (OLD.campaign_id = {bad}) EXECUTE FUNCTION no()"
    )

    with pytest.raises(Exception, match="no"):
        await sending.handing.step()
    await sending.handing.alone()

    assert [await sending.handed(campaign) for campaign in (bad, good)] == [0, 3]
    next_at = await sending.pool.fetchval("SELECT next_at FROM campaign_runs WHERE campaign_id = $1", bad)
    assert next_at > sending.clock.now + timedelta(seconds=20)


async def test_a_paused_campaign_hands_nothing_over_until_it_goes_on(sending: Sending) -> None:
    await sending.contacts(3)
    campaign = await sending.written()
    await sending.pool.execute("UPDATE campaign_runs SET state = 'paused'")

    await sending.hand_over()
    assert await sending.handed(campaign) == 0

    await sending.pool.execute("UPDATE campaign_runs SET state = 'running'")
    await sending.hand_over()
    assert await sending.handed(campaign) == 3


async def test_a_stream_that_is_not_there_any_more_fails_the_campaign(sending: Sending) -> None:
    await sending.contacts(3)
    campaign = await sending.written(options=Options(stream="gone"))

    await sending.hand_over()

    failed = await sending.campaign(campaign)
    assert (failed.status, failed.status_reason) == ("failed", "there is no stream gone")


async def test_a_template_that_is_not_there_any_more_fails_the_campaign(sending: Sending) -> None:
    await sending.contacts(3)
    campaign = await sending.written()
    await sending.pool.execute("DELETE FROM template_versions")

    await sending.hand_over()

    failed = await sending.campaign(campaign)
    assert (failed.status, failed.status_reason) == ("failed", "its version of the template is not there any more")


async def test_outside_its_hours_a_campaign_waits_for_them(sending: Sending) -> None:
    sending.clock.now = on(7, 20)
    await sending.contacts(3)
    timing = Timing(window=Window(from_="09:00", until="17:00", time_zone="UTC"))
    campaign = await sending.written(timing=timing)
    await sending.pool.execute("UPDATE campaign_contacts SET due_at = $1", on(7, 12))

    await sending.hand_over()
    assert await sending.handed(campaign) == 0
    assert await sending.pool.fetchval("SELECT next_at FROM campaign_runs") == on(8, 9)

    sending.clock.now = on(8, 9)
    await sending.hand_over()
    assert await sending.handed(campaign) == 3


async def test_hours_of_the_recipients_hold_back_only_those_where_it_is_night(sending: Sending) -> None:
    sending.clock.now = on(7, 8)
    [tokyo] = await sending.contacts(1, zone="Asia/Tokyo", prefix="t")
    [berlin] = await sending.contacts(1, zone="Europe/Berlin", prefix="b")
    campaign = await sending.written(timing=Timing(window=Window(from_="09:00", until="17:00")))
    await sending.pool.execute("UPDATE campaign_contacts SET due_at = $1", on(7, 7))

    await sending.hand_over()

    ledger = await sending.ledger(campaign)
    assert ledger[berlin]["status"] == Status.QUEUED
    assert (ledger[tokyo]["waiting"], ledger[tokyo]["due_at"]) == (True, on(8, 0))


# pace and turns


async def simulate(sending: Sending, seconds: float, step: float = 0.05) -> None:
    """Let the runner's time pass."""
    for _ in range(round(seconds / step)):
        await sending.hand_over()
        sending.clock.advance(seconds=step)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1_000, 100_000])
@pytest.mark.parametrize("lag", [0.0, 0.02, 0.3])
def test_the_pace_is_kept_over_time_whoever_looks_how_late(per_minute: int, lag: float) -> None:
    pace, begun = per_minute / 60, on(7, 12)
    now, next_at, handed = begun, begun, 0
    while now < begun + timedelta(minutes=10):
        taken = share(pace, batch=200, room=2_000, campaigns=1)
        handed += taken
        next_at = next_turn(next_at, now, taken, pace)
        now = max(now, next_at) + timedelta(seconds=lag)

    allowed = pace * (now - begun).total_seconds()
    assert handed <= allowed + max(1, pace)
    busy = lag > 0 and 200 / pace < lag  # more than one turn at a time would be needed
    assert busy or handed >= allowed - max(1, pace)


@pytest.mark.parametrize("per_minute", [6, 600, 60_000])
def test_after_a_pause_nobody_sends_more_than_a_second_of_pace_at_once(per_minute: int) -> None:
    pace, now = per_minute / 60, on(7, 12)
    next_at, handed = now - timedelta(days=1), 0
    while next_at <= now:
        taken = share(pace, batch=1_000, room=2_000, campaigns=1)
        handed += taken
        next_at = next_turn(next_at, now, taken, pace)

    assert handed <= max(2, pace + 1)


async def test_a_campaign_is_handed_over_at_its_pace(sending: Sending) -> None:
    await sending.contacts(200)
    campaign = await sending.written(options=Options(pace=600))

    await simulate(sending, 5.0)

    assert 40 <= await sending.handed(campaign) <= 60


async def test_of_two_hundred_campaigns_each_has_its_turn_and_a_large_one_does_not_stop_the_small(
    sending: Sending,
) -> None:
    ids = await sending.contacts(1_000)
    template = await sending.template()
    few = await sending.list_of(ids[:30])
    large = await sending.begin(template=template, options=FAST)
    small = [await sending.begin(Audience(list_ids=[few]), template=template, options=FAST) for _ in range(199)]
    await sending.write()

    for _ in range(16):
        await sending.handing.step()
        sending.clock.advance(seconds=0.001)
        rows = await sending.pool.fetch("SELECT campaign_id, queued FROM campaign_totals")
        handed = {row["campaign_id"]: row["queued"] for row in rows}
        turns = [handed.get(campaign, 0) // 10 for campaign in (large, *small)]
        assert max(turns) - min(turns) <= 2

    assert min(turns) >= 2


async def test_the_runner_writes_hands_over_and_ends_by_itself(sending: Sending) -> None:
    ids = await sending.contacts(50)
    runner = Runner(sending.pool, sending.handing, clock=sending.clock)
    runner.start()
    campaign = await sending.begin(options=FAST)
    runner.wake()
    try:
        async with asyncio.timeout(60):
            while (await sending.campaign(campaign)).status != "sent":
                sending.clock.advance(seconds=0.05)
                await asyncio.sleep(0.01)
    finally:
        await runner.stop()

    assert await sending.totals(campaign) == {"queued": len(ids)}


async def test_who_left_campaigns_gets_none_on_another_stream_either(sending: Sending) -> None:
    names = ["fine", "all", "promo", "topic", "other", "elsewhere"]
    contacts = {name: (await sending.contacts(1, prefix=name))[0] for name in names}
    scopes = {"all": ("marketing", ""), "promo": ("promo", ""), "topic": ("marketing", "sale"),
              "other": ("marketing", "news"), "elsewhere": ("transactional", "")}  # fmt: skip
    await sending.suppressions.add(
        Suppression(
            f"{name}1@example.org",
            tenant=TENANT,
            stream=stream,
            topic=topic,
            reason=Reason.UNSUBSCRIBE,
            source="page",
            created_at=sending.clock.now,
        )
        for name, (stream, topic) in scopes.items()
    )
    sending.handing = sending.new_handing(
        msgspec.structs.replace(sending.config, streams=sending.config.streams | {"promo": Stream()})
    )
    campaign = await sending.written(options=Options(stream="promo", topic="sale"))

    await sending.hand_over()

    assert (await sending.reasons(campaign)).keys() == {contacts[name] for name in ("all", "promo", "topic")}
