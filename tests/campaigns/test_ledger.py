"""The ledger: who is in it, once each, however it is written; and how it is cleared."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from mailerd.campaigns import ledger
from mailerd.campaigns.audience import Audience
from mailerd.campaigns.ledger import Mark, Status
from mailerd.campaigns.recipients import RecipientStore
from mailerd.campaigns.runner import writing
from mailerd.campaigns.runner.clearing import Clearing
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import Options, Resend
from mailerd.db import connect_pool
from tests.campaigns.sending import Sending, on, sending_on


@pytest.fixture
async def sending(database: str, tmp_path: Path) -> AsyncIterator[Sending]:
    async with sending_on(database, tmp_path) as made:
        yield made


async def written(sending: Sending, campaign_id: int) -> bool:
    return bool(await sending.pool.fetchval("SELECT written FROM campaign_runs WHERE campaign_id = $1", campaign_id))


def test_the_numbers_of_the_ledger_do_not_change() -> None:
    assert [(status.value, status.word) for status in Status] == [
        (0, "pending"),
        (1, "queued"),
        (2, "delivered"),
        (3, "bounced"),
        (4, "failed"),
        (5, "suppressed"),
        (6, "cancelled"),
        (7, "in_doubt"),
    ]
    assert [mark.value for mark in Mark] == [1, 2, 4, 8, 16, 32, 64]


async def test_a_ledger_has_each_contact_of_the_audience_once(sending: Sending) -> None:
    ids = await sending.contacts(30)
    await sending.contacts(5, tenant="other")
    first, second = await sending.list_of(ids[:20]), await sending.list_of(ids[10:25])
    campaign = await sending.begin(
        Audience(list_ids=[first, second], exclude_list_ids=[await sending.list_of(ids[:3])])
    )

    sending.writing = sending.new_writing(first=4, size=7)
    await sending.write()

    assert sorted(await sending.ledger(campaign)) == ids[3:25]
    assert await written(sending, campaign)
    assert await sending.pool.fetchval("SELECT total FROM campaign_runs") == 22


async def test_workers_that_write_at_the_same_time_write_nothing_twice_and_leave_nobody_out(sending: Sending) -> None:
    ids = await sending.contacts(200)
    campaign = await sending.begin()
    workers = [sending.new_writing(first=5, size=11) for _ in range(4)]

    async def work(n: int) -> None:
        while not await written(sending, campaign):
            await workers[n].round()

    await asyncio.gather(*(work(n) for n in range(4)))

    assert sorted(await sending.ledger(campaign)) == ids
    assert await sending.pool.fetchval("SELECT total FROM campaign_runs") == 200


async def test_a_campaign_that_is_ended_while_a_range_is_written_has_no_row_more(sending: Sending) -> None:
    await sending.contacts(10)
    campaign = await sending.begin()
    async with sending.pool.acquire() as holding, holding.transaction():
        await holding.execute("SELECT FROM campaign_runs WHERE campaign_id = $1 FOR UPDATE", campaign)
        writing = asyncio.create_task(sending.writing.step(campaign))
        while not await sending.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        await holding.execute("UPDATE campaign_runs SET state = 'ended'")

    assert not await writing
    assert await sending.ledger(campaign) == {}


async def test_a_list_deleted_while_the_ledger_is_written_fails_the_campaign_and_says_why(sending: Sending) -> None:
    ids = await sending.contacts(10)
    list_id = await sending.list_of(ids)
    campaign = await sending.begin(Audience(list_ids=[list_id]))
    sending.writing = sending.new_writing(first=3, size=3)
    await sending.writing.round()

    await sending.pool.execute("DELETE FROM contact_lists WHERE id = $1", list_id)
    await sending.write()

    failed = await sending.campaign(campaign)
    assert failed.status == "failed"
    assert f"lst_{list_id}" in failed.status_reason
    assert len(await sending.ledger(campaign)) == 3


async def test_one_ledger_that_cannot_be_written_does_not_hold_up_the_others(sending: Sending) -> None:
    ids = await sending.contacts(3)
    bad, good = await sending.begin(), await sending.begin()
    await sending.pool.execute('UPDATE campaigns SET audience = \'{"list_ids": "none"}\' WHERE id = $1', bad)

    await sending.write()

    assert sorted(await sending.ledger(good)) == ids
    assert await sending.ledger(bad) == {}


async def test_a_range_that_takes_too_long_stops_no_other_ledger_and_fails_in_the_end(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "AGAIN", 0.0)
    ids = await sending.contacts(3)
    bad, good = await sending.begin(), await sending.begin()
    await sending.pool.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON campaign_contacts FOR EACH ROW"
        f" WHEN (NEW.campaign_id = {bad}) EXECUTE FUNCTION slow()"
    )

    await sending.writing.round()
    await sending.writing.round()
    assert sorted(await sending.ledger(good)) == ids
    for _ in range(2 * writing.TRIES):
        await sending.writing.round()

    failed = await sending.campaign(bad)
    assert (failed.status, failed.status_reason) == ("failed", writing.TOO_SLOW)


async def test_with_local_time_each_zone_is_due_at_its_own_hour(sending: Sending) -> None:
    sending.clock.now = on(6, 20)
    tokyo, berlin, nowhere = [
        (await sending.contacts(1, zone=zone, prefix=zone[:2] or "x"))[0]
        for zone in ("Asia/Tokyo", "Europe/Berlin", "")
    ]
    timing = Timing(local_time=True, time_zone="Europe/Berlin")
    campaign = await sending.written(timing=timing, schedule_time=on(7, 8))

    due = {contact: row["due_at"] for contact, row in (await sending.ledger(campaign)).items()}
    assert due == {tokyo: on(7, 1), berlin: on(7, 8), nowhere: on(7, 8)}


async def test_a_resend_goes_to_those_whom_the_other_campaign_did_not_reach(sending: Sending) -> None:
    ids = await sending.contacts(6)
    earlier = await sending.written()
    states = [Status.DELIVERED, Status.BOUNCED, Status.BOUNCED, Status.FAILED, Status.IN_DOUBT, Status.SUPPRESSED]
    for contact, status in zip(ids, states, strict=True):
        await sending.pool.execute(
            "UPDATE campaign_contacts SET status = $3, waiting = false WHERE campaign_id = $1 AND contact_id = $2",
            earlier,
            contact,
            status,
        )
    await sending.pool.execute(
        "INSERT INTO suppressions (address, tenant, stream, topic, reason, source, detail, created_at)"
        " VALUES ('reader2@example.org', 'acme', '', '', 'bounce', 'smtp', '', now())"
    )

    again = await sending.begin(
        options=Options(resend=Resend(campaign=earlier, statuses=[Status.BOUNCED, Status.FAILED], soft_only=True))
    )
    sending.writing = sending.new_writing(first=1, size=2)
    await sending.write()

    assert sorted(await sending.ledger(again)) == [ids[2], ids[3]]


async def test_a_resend_goes_to_those_who_wait_of_a_cancelled_campaign_before_they_are_cleared(
    sending: Sending,
) -> None:
    """Of a large one that takes minutes, and a resend may begin at once."""
    ids = await sending.contacts(3)
    earlier = await sending.written()
    again = Resend(campaign=earlier, statuses=[Status.CANCELLED])
    assert not await RecipientStore(sending.pool).any_of(again)
    async with sending.pool.acquire() as connection, connection.transaction():
        await sending.campaigns.set_run(earlier, "ended", connection)

    assert await RecipientStore(sending.pool).any_of(again)
    campaign = await sending.begin(options=Options(resend=again))
    await sending.write()

    assert sorted(await sending.ledger(campaign)) == ids
    other = await sending.begin(options=Options(resend=Resend(campaign=earlier, statuses=[Status.FAILED])))
    await sending.write()
    assert await sending.ledger(other) == {}


async def test_what_waits_of_a_cancelled_campaign_is_cancelled_in_steps_and_counted(sending: Sending) -> None:
    ids = await sending.contacts(25)
    campaign = await sending.written(options=Options(pace=240))
    await sending.handing.step()  # reads what the campaign says
    await sending.handing.step()
    await sending.pool.execute("UPDATE campaign_runs SET state = 'ended'")
    await sending.pool.execute("DELETE FROM contacts WHERE id = $1", ids[-1])

    clearing = Clearing(sending.pool, sending.clock, size=10)
    steps = 0
    while await clearing.step():
        steps += 1

    ledger = (await sending.ledger(campaign)).values()
    assert Counter(row["status"] for row in ledger) == {Status.QUEUED: 2, Status.CANCELLED: 23}
    assert not any(row["waiting"] for row in ledger)
    assert steps == 3
    assert await sending.totals(campaign) == {"queued": 2, "cancelled": 23}
    by_domain = await sending.pool.fetch("SELECT domain, cancelled FROM campaign_domains ORDER BY domain")
    assert [tuple(row) for row in by_domain] == [("", 1), ("example.org", 22)]


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_what_waits_of_a_campaign_that_ends_while_its_ledger_is_written_is_cancelled(
    sending: Sending, end: str
) -> None:
    """Nothing of it is due yet: no turn was to come before more was written."""
    await sending.contacts(9)
    campaign = await sending.begin()
    await sending.new_writing(first=3, size=3).step(campaign)
    await sending.pool.execute("UPDATE campaign_contacts SET due_at = due_at + interval '9 hours'")
    await sending.hand_over()
    assert not await sending.pool.fetchval("SELECT waits OR written FROM campaign_runs")

    async with sending.pool.acquire() as connection, connection.transaction():
        if end == "cancel":
            await sending.campaigns.set_run(campaign, "ended", connection)
        else:
            await sending.campaigns.ended(campaign, "failed", "its template is gone", sending.clock(), connection)
    clearing = Clearing(sending.pool, sending.clock)
    while await clearing.step():
        pass

    assert not any(row["waiting"] for row in (await sending.ledger(campaign)).values())
    assert (await sending.totals(campaign))["cancelled"] == 3


async def test_a_campaign_for_nobody_is_sent_at_once(sending: Sending) -> None:
    campaign = await sending.written(Audience(list_ids=[await sending.list_of([])]))
    sending.clock.advance(seconds=1)

    await sending.hand_over()

    assert (await sending.campaign(campaign)).status == "sent"


async def test_an_hour_that_is_past_where_a_contact_is_may_skip_it(sending: Sending) -> None:
    sending.clock.now = on(7, 12)
    tokyo, losangeles = [
        (await sending.contacts(1, zone=zone, prefix=zone[:2]))[0] for zone in ("Asia/Tokyo", "America/Los_Angeles")
    ]
    timing = Timing(local_time=True, time_zone="UTC", past="skip")
    campaign = await sending.written(timing=timing, schedule_time=on(7, 12))

    await sending.hand_over()
    assert await sending.reasons(campaign) == {tokyo: "skipped_time"}
    assert await sending.totals(campaign) == {"suppressed": 1}
    sending.clock.now += timedelta(hours=7)
    await sending.hand_over()
    assert (await sending.ledger(campaign))[losangeles]["status"] == Status.QUEUED


async def test_ranges_are_smaller_where_they_take_too_long_until_all_is_written(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await sending.contacts(250)
    await sending.pool.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON campaign_contacts FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    monkeypatch.setattr(writing, "PATIENCE", 0.2)
    campaign = await sending.begin()

    assert await sending.writing.round() == 1  # far too large
    assert await sending.ledger(campaign) == {}
    await sending.write()

    assert sorted(await sending.ledger(campaign)) == ids


async def test_tenants_take_turns_and_who_has_nothing_comes_first(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ROUND", -1.0)  # one range, and it is looked again
    monkeypatch.setattr(writing, "TOGETHER", 1)
    await sending.contacts(4)
    await sending.contacts(4, tenant="other")
    first, second, third = [await sending.begin() for _ in range(3)]
    other = await sending.begin()
    for table in ("campaigns SET tenant = 'other' WHERE id", "campaign_runs SET tenant = 'other' WHERE campaign_id"):
        await sending.pool.execute(f"UPDATE {table} = $1", other)
    sending.writing = sending.new_writing(first=2, size=2)

    order = []
    before: dict[int, int] = {}
    while await sending.writing.round():
        rows = await sending.pool.fetch("SELECT campaign_id, written_to FROM campaign_runs")
        now = {row["campaign_id"]: row["written_to"] for row in rows}
        order += [id_ for id_ in now if now[id_] != before.get(id_, 0)]
        before = now

    assert other in order[:2]
    assert set(order[:4]) == {first, other, second, third}
    assert order[4] == other


async def test_campaigns_that_have_nothing_yet_are_written_together_and_to_their_end(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ROUND", -1.0)
    ids = await sending.contacts(4)
    campaigns = [await sending.begin() for _ in range(writing.TOGETHER)]

    assert await sending.writing.round() == writing.TOGETHER

    assert [sorted(await sending.ledger(each)) for each in campaigns] == [ids] * len(campaigns)
    assert await sending.writing.round() == 0


async def test_taking_a_few_of_many_rows_reads_no_more_contacts_than_these(database: str) -> None:
    pool = await connect_pool(database, min=1, max=1)
    async with pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO contacts (tenant, email, address) SELECT 'default', n || '@x.example', n || '@x.example'"
            " FROM generate_series(1, 50000) AS n"
        )
        await connection.execute(
            "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at) SELECT 1, id, now() FROM contacts"
        )
        await connection.execute(
            "ANALYZE contacts; ANALYZE campaign_contacts; SET plan_cache_mode = force_generic_plan"
        )
        types = "bigint[], text[], int[], bool[], text[], bool[], timestamptz"
        await connection.execute(f"PREPARE take ({types}) AS {ledger.TAKE}")
        plan = await connection.fetch(
            "EXPLAIN EXECUTE take ('{1}', '{default}', '{200}', '{f}', '{\"{1}\"}', '{f}', now())"
        )
    await pool.close()

    assert not any("Hash Left Join" in row[0] or "Seq Scan" in row[0] for row in plan)
