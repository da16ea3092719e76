"""The life of a campaign: who may do what where it stands, what follows in the queue, and what its time brings."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.campaigns import scheduler, steering
from mailerd.campaigns.analytics.counts import Delta
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.campaigns.compliance import Finding
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.lifecycle import WrongStatusError
from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.steering import LEASE
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import Campaign
from mailerd.config import Config, Http, Tenant
from mailerd.db import Connection, Pool, connect_pool
from tests.campaigns.making import make_campaign, make_list, make_template

SETTINGS = Config(
    http=Http(public_url="https://mail.example.com"), tenants={"default": Tenant(postal_address="1 Main St")}
)
EVENTS = "SELECT type FROM events WHERE campaign = $1 ORDER BY txid, seq"


class DiedError(Exception):
    """The process, in the middle of it."""


@dataclass
class Lane:
    """The queue: what it was told, and what of it goes wrong."""

    told: list[tuple[str, str]] = field(default_factory=list)
    trouble: Callable[[], Awaitable[None]] | None = None

    async def hold(self, campaign: str, tenant: str, actor: str) -> None:
        await self._note("hold", campaign)

    async def release(self, campaign: str, tenant: str, actor: str) -> None:
        await self._note("release", campaign)

    async def cancel(self, campaign: str, tenant: str, actor: str) -> None:
        await self._note("cancel", campaign)

    async def _note(self, command: str, campaign: str) -> None:
        if self.trouble is not None:
            await self.trouble()
        self.told.append((command, campaign))


@dataclass
class Office:
    """A desk, its database, and what it steers."""

    pool: Pool
    desk: CampaignDesk
    lane: Lane
    now: datetime

    async def do(self, step: str, campaign: Campaign, **more: Any) -> Campaign:
        arguments: dict[str, Any] = {"actor": "api:all", "now": self.now} | more
        lifecycle = self.desk.lifecycle
        async with self.pool.acquire() as connection, connection.transaction():
            if step == "send":
                return await lifecycle.send(campaign, connection=connection, **arguments)
            if step == "delete":
                del arguments["now"]
            method = getattr(lifecycle, step)
            done: Campaign = await method(campaign.id, campaign.tenant, connection=connection, **arguments)
            return done

    async def row(self, campaign: Campaign) -> Campaign:
        found = await self.desk.store.get(campaign.id, None)
        assert found is not None
        return found

    async def events(self, campaign: Campaign) -> list[str]:
        return [row["type"] for row in await self.pool.fetch(EVENTS, campaign.name_outside)]

    async def begun(self, **changes: Any) -> Campaign:
        return await self.do("send", await make_campaign(self.pool, **changes))

    async def scheduled(self, at: datetime, **changes: Any) -> Campaign:
        audience = {"list_ids": [await make_list(self.pool, "ann")]}
        return await make_campaign(
            self.pool, **{"status": "scheduled", "schedule_time": at, "audience": audience} | changes
        )

    async def children(self, parent: Campaign) -> list[tuple[datetime, str]]:
        rows = await self.pool.fetch(
            "SELECT schedule_time, status FROM campaigns WHERE parent_id = $1 ORDER BY schedule_time", parent.id
        )
        return [tuple(row) for row in rows]


@pytest.fixture
async def office(database: str) -> AsyncIterator[Office]:
    pool = await connect_pool(database, min=1, max=6)
    lane = Lane()
    made = Office(pool, None, lane, datetime.now(UTC))  # type: ignore[arg-type]
    made.desk = CampaignDesk(lambda: SETTINGS, pool, queue=lane, clock=lambda: made.now)
    yield made
    await made.desk.steerer.stop()
    await pool.close()


async def test_a_campaign_that_begins_keeps_the_version_its_template_has_then(office: Office) -> None:
    campaign = await make_campaign(office.pool)
    await office.pool.execute("UPDATE template_versions SET version = 3; UPDATE templates SET version = 3")

    begun = await office.do("send", campaign)

    row = await office.pool.fetchrow("SELECT * FROM campaign_runs")
    assert (begun.status, begun.started_at, row["state"]) == ("sending", office.now, "running")
    assert row["version_id"] == await office.pool.fetchval("SELECT id FROM template_versions WHERE version = 3")
    assert await office.events(campaign) == ["campaign.started"]
    assert await office.pool.fetchval("SELECT actor FROM audit WHERE action = 'campaign.send'") == "api:all"


async def test_of_two_who_send_it_at_once_one_begins_it(office: Office) -> None:
    campaign = await make_campaign(office.pool)

    done = await asyncio.gather(*(office.do("send", campaign) for _ in range(4)), return_exceptions=True)

    assert sorted(type(each).__name__ for each in done) == ["Campaign", *["WrongStatusError"] * 3]
    assert await office.events(campaign) == ["campaign.started"]


async def test_pause_resume_and_cancel_change_row_run_and_queue(office: Office) -> None:
    campaign = await office.begun()
    steps = (
        ("pause", {"reason": "typo"}, "paused", "paused", "hold"),
        ("resume", {}, "sending", "running", "release"),
        ("cancel", {"reason": ""}, "cancelled", "ended", "cancel"),
    )
    for step, more, status, state, command in steps:
        assert (await office.do(step, campaign, **more)).status == status
        assert await office.pool.fetchval("SELECT state FROM campaign_runs") == state
        await office.desk.steerer.steer(campaign.id)
        assert office.lane.told[-1] == (command, campaign.name_outside)

    assert await office.pool.fetchval("SELECT steering FROM campaign_runs") == ""
    assert (await office.row(campaign)).finished_at == office.now
    assert await office.events(campaign) == [
        f"campaign.{word}" for word in ("started", "paused", "resumed", "cancelled")
    ]


LEGAL = {
    "pause": {"sending"},
    "resume": {"paused"},
    "cancel": {"scheduled", "sending", "paused"},
    "delete": {"draft", "scheduled", "sent", "cancelled", "failed"},
    "send": {"draft", "scheduled"},
}
MORE: dict[str, dict[str, Any]] = {"pause": {"reason": ""}, "cancel": {"reason": ""}}


async def test_nothing_else_is_done_where_a_campaign_stands(office: Office) -> None:
    template = await make_template(office.pool)
    for step, legal in LEGAL.items():
        for status in ("draft", "scheduled", "sending", "paused", "sent", "cancelled", "failed"):
            campaign = await make_campaign(office.pool, status=status, template_id=template, schedule_time=office.now)
            if status in legal:
                continue
            with pytest.raises(WrongStatusError, match=rf"is {status} and cannot be .*: .+\."):
                await office.do(step, campaign, **MORE.get(step, {}))
            assert (await office.row(campaign)).status == status


async def test_a_pause_waits_for_the_hand_over_and_then_none_begins(office: Office) -> None:
    campaign = await office.begun()
    async with office.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM campaign_runs FOR UPDATE")  # as the hand-over does
        pausing = asyncio.create_task(office.do("pause", campaign, reason=""))
        assert await asyncio.wait({pausing}, timeout=0.2) == (set(), {pausing})

    assert (await pausing).status == "paused"
    assert await office.pool.fetchval("SELECT count(*) FROM campaign_runs WHERE state = 'running'") == 0


async def test_what_was_left_undone_by_whoever_died_is_done_by_the_next_sweep(office: Office) -> None:
    async def die() -> None:
        raise DiedError

    campaign = await office.begun()
    await office.do("pause", campaign, reason="")
    office.lane.trouble = die
    await office.desk.steerer.steer(campaign.id)
    office.lane.trouble = None
    await office.desk.steerer.sweep()
    assert office.lane.told == []  # it is still in the hands of the dead

    office.now += LEASE + timedelta(seconds=1)
    await office.desk.steerer.sweep()
    await office.desk.steerer.sweep()

    assert office.lane.told == [("hold", campaign.name_outside)]


async def test_a_clock_that_was_ahead_keeps_no_wish_from_being_carried_out(office: Office) -> None:
    async def die() -> None:
        raise DiedError

    campaign = await office.begun()
    await office.do("pause", campaign, reason="")
    office.lane.trouble = die
    office.now += timedelta(hours=5)
    await office.desk.steerer.steer(campaign.id)
    office.lane.trouble = None
    office.now -= timedelta(hours=5)

    await office.desk.steerer.sweep()

    assert office.lane.told == [("hold", campaign.name_outside)]


async def test_a_long_wish_that_was_left_undone_does_not_hold_up_whoever_sweeps(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "PATIENCE", 0.1)
    go_on = asyncio.Event()

    async def slowly() -> None:
        await go_on.wait()

    campaigns = [await office.begun(name=name) for name in ("one", "other")]
    for campaign in campaigns:
        await office.do("cancel", campaign, reason="")
    office.lane.trouble = slowly
    async with asyncio.timeout(20):
        await office.desk.steerer.sweep()
        assert office.lane.told == []
        go_on.set()
        while len(office.lane.told) < 2:
            await asyncio.sleep(0.01)

    assert sorted(office.lane.told) == sorted(("cancel", campaign.name_outside) for campaign in campaigns)


async def test_a_resume_while_mail_is_being_held_has_the_last_word(office: Office) -> None:
    campaign = await office.begun()
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        held.set()
        await go_on.wait()

    await office.do("pause", campaign, reason="")
    office.lane.trouble = slowly
    holding = asyncio.create_task(office.desk.steerer.steer(campaign.id))
    await held.wait()
    await office.do("resume", campaign)
    other = CampaignDesk(lambda: SETTINGS, office.pool, queue=office.lane, clock=lambda: office.now)
    await other.steerer.steer(campaign.id)  # another node: somebody is at it
    go_on.set()
    await holding

    assert [command for command, _ in office.lane.told] == ["hold", "release"]
    assert await office.pool.fetchval("SELECT steering FROM campaign_runs") == ""


async def test_who_stood_still_until_another_had_taken_over_leaves_off(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "RENEW", 1.0)
    campaign = await office.begun()
    began = asyncio.Event()

    async def for_ever() -> None:
        began.set()
        await asyncio.Event().wait()

    await office.do("pause", campaign, reason="")
    office.lane.trouble = for_ever
    holding = asyncio.create_task(office.desk.steerer.steer(campaign.id))
    await began.wait()

    office.lane.trouble = None
    office.now += 2 * LEASE
    other = CampaignDesk(lambda: SETTINGS, office.pool, queue=office.lane, clock=lambda: office.now)
    await other.steerer.steer(campaign.id)
    await office.do("resume", campaign)
    await other.steerer.steer(campaign.id)
    async with asyncio.timeout(5):
        await holding
    assert [command for command, _ in office.lane.told] == ["hold", "release"]


async def test_a_pause_and_a_resume_and_a_pause_while_mail_is_being_held_hold_it_again(office: Office) -> None:
    campaign = await office.begun()
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        held.set()
        await go_on.wait()

    await office.do("pause", campaign, reason="")
    office.lane.trouble = slowly
    holding = asyncio.create_task(office.desk.steerer.steer(campaign.id))
    await held.wait()
    await office.do("resume", campaign)
    await office.do("pause", campaign, reason="")  # what was handed over between is not held yet
    go_on.set()

    assert await holding
    assert [command for command, _ in office.lane.told] == ["hold", "hold"]


async def test_who_steers_says_whether_it_is_done(office: Office) -> None:
    campaign = await office.begun()
    go_on = asyncio.Event()

    async def slowly() -> None:
        await go_on.wait()

    office.lane.trouble = slowly
    await office.do("cancel", campaign, reason="")
    assert not await office.desk.steerer.steer(campaign.id, patience=0.01)
    go_on.set()
    assert await office.desk.steerer.steer(campaign.id)


async def test_a_sent_campaign_is_stopped_as_long_as_its_mail_is_in_the_queue(office: Office) -> None:
    campaign = await office.begun()
    await office.pool.execute("INSERT INTO campaign_totals (campaign_id, queued, sent) VALUES ($1, 9, 9)", campaign.id)
    async with office.pool.acquire() as connection, connection.transaction():
        await office.desk.store.ended(campaign.id, "sent", "", office.now, connection)
    for step in ("pause", "cancel"):
        with pytest.raises(WrongStatusError):
            await office.do(step, campaign, reason="")

    await office.pool.execute("UPDATE campaign_totals SET sent = 5, recalled = 1")
    assert await office.desk.pause(campaign.id, campaign.tenant, "too many errors")
    paused = await office.row(campaign)
    assert (paused.status, paused.finished_at) == ("paused", None)
    await office.do("resume", campaign)
    run = await office.pool.fetchrow("SELECT state, waits FROM campaign_runs")
    assert tuple(run) == ("running", True)  # so that it has its end again
    async with office.pool.acquire() as connection, connection.transaction():
        await office.desk.store.ended(campaign.id, "sent", "", office.now, connection)
    assert (await office.do("cancel", campaign, reason="")).status == "cancelled"
    await office.desk.steerer.steer(campaign.id)

    assert office.lane.told[-1] == ("cancel", campaign.name_outside)


async def test_a_deleted_campaign_leaves_nothing_behind(office: Office) -> None:
    campaign = await office.begun()
    await office.pool.execute("UPDATE campaigns SET status = 'sent'; UPDATE campaign_runs SET state = 'ended'")
    await office.pool.execute(
        "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at)"
        " SELECT $1, n, now() FROM generate_series(1, 5000) AS n",
        campaign.id,
    )
    async with office.pool.acquire() as connection, connection.transaction():
        await RollUpStore().add(connection, [Delta(campaign.id, "default", office.now, "d.example", {"queued": 5000})])

    async with office.pool.acquire() as connection, connection.transaction():
        await office.desk.lifecycle.delete(campaign.id, "default", actor="api:all", connection=connection)
    await office.desk.steerer.sweep()

    counts = ("campaign_totals", "campaign_quarter_hours", "campaign_minutes", "campaign_domains")
    for table in ("campaigns", "campaign_runs", "campaign_contacts", *counts):
        assert await office.pool.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert office.lane.told == [("cancel", campaign.name_outside)]


# the scheduler


async def test_a_campaign_begins_at_its_time_and_on_one_node_only(office: Office) -> None:
    campaign = await office.scheduled(office.now + timedelta(minutes=1))
    await office.desk.scheduler.tick()
    assert (await office.row(campaign)).status == "scheduled"

    office.now += timedelta(minutes=1)
    other = CampaignDesk(lambda: SETTINGS, office.pool, queue=office.lane, clock=lambda: office.now)
    await asyncio.gather(*(desk.scheduler.tick() for desk in (office.desk, other) * 2))

    assert (await office.row(campaign)).status == "sending"
    assert await office.events(campaign) == ["campaign.started"]


async def test_two_nodes_share_many_campaigns_that_are_due_and_check_few_of_them_twice(office: Office) -> None:
    campaigns = [await office.scheduled(office.now - timedelta(minutes=1)) for _ in range(40)]
    checked: list[int] = []

    async def check(campaign: Campaign) -> list[Finding]:
        checked.append(campaign.id)
        await asyncio.sleep(0)
        return []

    own = replace(office.desk.scheduler, checks=check)
    await asyncio.gather(own.tick(), own.tick())

    assert [await office.events(each) for each in campaigns] == [["campaign.started"]] * 40
    assert set(checked) == {each.id for each in campaigns}
    assert len(checked) < 75  # all of them twice are 80; what each takes first is by chance


async def test_more_campaigns_than_a_page_that_others_have_in_hand_do_not_keep_a_tick(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 2)
    held = [await office.scheduled(office.now - timedelta(minutes=2)) for _ in range(2)]
    free = await office.scheduled(office.now - timedelta(minutes=1))
    async with office.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM campaigns WHERE id = ANY ($1) FOR UPDATE", [each.id for each in held])
        async with asyncio.timeout(60):
            await office.desk.scheduler.tick()

    assert [(await office.row(each)).status for each in (*held, free)] == ["scheduled", "scheduled", "sending"]


async def test_with_local_time_it_begins_where_the_day_begins(office: Office) -> None:
    noon = (office.now + timedelta(days=3)).replace(hour=12, minute=0, second=0, microsecond=0)
    campaign = await office.scheduled(noon, timing=Timing(local_time=True))
    for before, status in ((timedelta(hours=14, minutes=6), "scheduled"), (timedelta(hours=14, minutes=4), "sending")):
        office.now = noon - before
        await office.desk.scheduler.tick()
        assert (await office.row(campaign)).status == status


async def test_a_campaign_whose_time_was_missed_by_too_much_fails_and_says_so(office: Office) -> None:
    campaign = await office.scheduled(office.now)
    office.now += timedelta(days=1, minutes=1)

    await office.desk.scheduler.tick()

    row = await office.row(campaign)
    assert (row.status, "missed by 24 h 1 min" in row.status_reason) == ("failed", True)
    assert await office.events(campaign) == ["campaign.failed"]


async def test_what_would_not_be_sent_by_hand_is_not_sent_by_its_schedule(office: Office) -> None:
    template = await make_template(office.pool, html="<p>News</p>", text="News")
    campaign = await office.scheduled(office.now, template_id=template)

    await office.desk.scheduler.tick()

    row = await office.row(campaign)
    assert (row.status, "unsubscribe_url" in row.status_reason) == ("failed", True)


async def test_one_whose_template_goes_at_the_last_moment_does_not_keep_the_others(
    office: Office,
) -> None:
    template = await make_template(office.pool)
    lost = await office.scheduled(office.now, template_id=template)
    others = [await office.scheduled(office.now) for _ in range(3)]

    async def check(campaign: Campaign) -> list[Finding]:
        await office.pool.execute("DELETE FROM templates WHERE id = $1", template)
        return []

    await replace(office.desk.scheduler, checks=check).tick()

    assert [(await office.row(each)).status for each in others] == ["sending"] * 3
    row = await office.row(lost)
    assert (row.status, "its template" in row.status_reason) == ("failed", True)


async def test_a_recurring_one_makes_a_campaign_for_each_time(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00", count=3))
    for day in range(5):
        office.now = first + timedelta(days=day)
        await asyncio.gather(office.desk.scheduler.tick(), office.desk.scheduler.tick())

    assert await office.children(parent) == [(first + timedelta(days=day), "sending") for day in range(3)]
    assert (await office.row(parent)).status == "sent"


class Overtaken(CampaignStore):
    """Something else happens as soon as it has been asked what is still due."""

    meanwhile: Callable[[], Awaitable[object]]

    async def still_due(self, campaigns: Sequence[Campaign]) -> list[Campaign]:
        due = await super().still_due(campaigns)
        await self.meanwhile()
        return due


async def test_a_time_that_another_node_has_seen_to_is_not_followed_by_the_next_one_at_once(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00"))
    store = Overtaken(office.pool)
    store.meanwhile = office.desk.scheduler.tick
    office.now = first
    await replace(office.desk.scheduler, store=store).tick()

    assert await office.children(parent) == [(first, "sending")]
    assert (await office.row(parent)).schedule_time == first + timedelta(days=1)


async def test_a_recurring_one_that_is_changed_while_it_is_looked_at_is_left_to_the_next_tick(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00"))

    async def change() -> None:
        async with office.pool.acquire() as connection, connection.transaction():
            await office.desk.store.change(replace(parent, name="Summer"), office.now, connection)

    store = Overtaken(office.pool)
    store.meanwhile = change
    office.now = first
    await replace(office.desk.scheduler, store=store).tick()
    assert await office.children(parent) == []

    await office.desk.scheduler.tick()
    assert await office.children(parent) == [(first, "sending")]


async def test_a_paused_recurring_one_makes_none_and_goes_on_with_its_next_time(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00", time_zone="Asia/Tokyo"))
    office.now = first
    await office.desk.scheduler.tick()

    assert (await office.do("pause", parent, reason="holidays")).status == "paused"
    office.now = first + timedelta(days=3)
    await office.desk.scheduler.tick()
    resumed = await office.do("resume", parent)

    assert (resumed.status, resumed.schedule_time) == ("scheduled", datetime(2027, 3, 5, tzinfo=UTC))
    assert [at for at, _ in await office.children(parent)] == [first]
    assert await office.pool.fetchval("SELECT name FROM campaigns WHERE parent_id = $1", parent.id) == (
        "Spring 2027-03-01"
    )
    assert (await office.events(parent))[-2:] == ["campaign.paused", "campaign.resumed"]


async def test_a_recurring_one_that_is_resumed_after_its_end_is_over(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    rule = Recurrence(every="day", at="09:00", until=first + timedelta(days=1))
    parent = await office.scheduled(first, recurrence=rule)
    await office.do("pause", parent, reason="")
    office.now = first + timedelta(days=3)

    assert (await office.do("resume", parent)).status == "sent"


async def test_a_clock_that_is_put_back_makes_none_twice(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00"))
    for moment in (first, first - timedelta(hours=5), first, first + timedelta(days=1), first):
        office.now = moment
        await office.desk.scheduler.tick()
    await office.pool.execute("UPDATE campaigns SET schedule_time = $2 WHERE id = $1", parent.id, first)
    await office.desk.scheduler.tick()

    assert [at for at, _ in await office.children(parent)] == [first, first + timedelta(days=1)]


@pytest.mark.parametrize(("away", "made"), [(timedelta(days=4, hours=2), 1), (timedelta(days=4), 1)])
async def test_after_a_long_time_away_only_the_last_time_is_made_up_for(
    office: Office, away: timedelta, made: int
) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="day", at="09:00"))

    office.now = first + away
    await office.desk.scheduler.tick()

    assert [at for at, _ in await office.children(parent)] == [first + timedelta(days=4)]
    assert (await office.row(parent)).schedule_time == first + timedelta(days=5)


async def test_a_time_missed_by_too_much_is_left_out(office: Office) -> None:
    first = datetime(2027, 3, 1, 9, tzinfo=UTC)
    parent = await office.scheduled(first, recurrence=Recurrence(every="week", at="09:00", days=["mon"]))

    office.now = first + timedelta(days=9)
    await office.desk.scheduler.tick()

    assert await office.children(parent) == []
    assert (await office.row(parent)).schedule_time == first + timedelta(days=14)


async def test_the_end_of_a_run_is_the_end_of_the_campaign_once(office: Office) -> None:
    campaign = await office.begun()

    async def end(connection: Connection) -> bool:
        return await office.desk.store.ended(campaign.id, "sent", "", office.now, connection)

    async with office.pool.acquire() as connection, connection.transaction():
        assert [await end(connection), await end(connection)] == [True, False]

    assert (await office.row(campaign)).status == "sent"
    assert await office.events(campaign) == ["campaign.started", "campaign.completed"]


async def test_a_paused_campaign_has_no_end_and_its_run_goes_on_with_it(office: Office) -> None:
    campaign = await office.begun()
    await office.do("pause", campaign, reason="")

    async with office.pool.acquire() as connection, connection.transaction():
        assert not await office.desk.store.ended(campaign.id, "failed", "its list is gone", office.now, connection)

    assert await office.pool.fetchval("SELECT state FROM campaign_runs") == "paused"
