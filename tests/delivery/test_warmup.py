"""Warm-up: plans and judgements as pure functions, and a month of them with budgets from a real database."""

import asyncio
import math
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest

from mailerd.config import Config, Date, Duration, Percent, Source, WarmUp, WarmUpOf, WarmUpPlan
from mailerd.db import Pool, connect_pool
from mailerd.delivery import warmup, warmup_budgets
from mailerd.delivery.warmup import PLANS, DayFacts, Outcome, State, Wait
from mailerd.delivery.warmup_budgets import WarmUps, WarmUpStore

START = datetime(2026, 11, 1, 9, tzinfo=UTC)
TODAY = START.date()
YESTERDAY = TODAY - timedelta(days=1)
OURS = WarmUpPlan(per="day", stages=(100, 200, 400, 800))
HOURLY = WarmUpPlan(per="hour", stages=(50, 100, 200))
SETTINGS = WarmUp(plans={"ours": OURS, "hourly": HOURLY})


def state(stage: int, *, plan: WarmUpPlan = OURS, name: str = "ours", since: date = YESTERDAY) -> State:
    begun = warmup.begin(name, plan, since)
    label = f"{name} {plan.stages[stage]}/{plan.per}" if stage < len(plan.stages) else f"{name} warm"
    return State(label, stage, begun.stage_since)


def judged(stage: int, facts: DayFacts | None, *, plan: WarmUpPlan = OURS) -> State:
    name = "ours" if plan is OURS else "hourly"
    return warmup.judge(state(stage, plan=plan, name=name), plan, facts, SETTINGS, TODAY)


def day(delivered: int, deferred: int = 0, bounced: int = 0, complained: int = 0) -> DayFacts:
    return DayFacts(YESTERDAY, delivered, deferred, bounced, complained)


@pytest.mark.parametrize("name", PLANS)
def test_built_in_plans_grow_from_stage_to_stage_and_never_more_than_two_and_a_half_times(name: str) -> None:
    assert all(1 < following / stage <= 2.5 for stage, following in pairwise(PLANS[name].stages))


def test_the_documents_plan_begins_with_a_thousand_an_hour_and_takes_four_weeks() -> None:
    assert PLANS["documents"].per == "hour"
    assert PLANS["documents"].stages[:3] == (1_000, 1_200, 1_400)
    assert len(PLANS["documents"].stages) == 28


@pytest.mark.parametrize(
    ("stage", "facts", "then", "verdict"),
    [
        (0, day(90), 1, "advance: 90 of 100 delivered"),
        (0, day(89), 0, "hold: 89 of 100 delivered, 90 % are asked for"),
        (0, day(1), 0, "hold: 1 of 100 delivered, 90 % are asked for"),
        (3, day(800), 4, "done: 800 of 800 delivered"),
        # above a bound: held; above twice the bound: one back
        (1, day(190, deferred=22), 1, "hold: deferred 10.4 % (bound 10 %), above the bound"),
        (1, day(190, deferred=21), 2, "advance: 190 of 200 delivered"),
        (1, day(150, deferred=40), 0, "back: deferred 21.1 % (bound 10 %), above twice the bound"),
        (1, day(188, bounced=12), 1, "hold: bounced 6 % (bound 5 %), above the bound"),
        (1, day(170, bounced=30), 0, "back: bounced 15 % (bound 5 %), above twice the bound"),
        (3, day(790, complained=3), 3, "hold: complained 0.38 % (bound 0.3 %), above the bound"),
        (3, day(790, complained=5), 2, "back: complained 0.633 % (bound 0.3 %), above twice the bound"),
        (1, day(0, deferred=100), 0, "back: deferred 100 % (bound 10 %), above twice the bound"),
        # at the first stage there is no way back
        (0, day(50, deferred=50), 0, "hold: deferred 50 % (bound 10 %), above the bound"),
        # one recipient alone is no share, and a handful takes no stage back
        (0, day(99, complained=1), 1, "advance: 99 of 100 delivered"),
        (3, day(5, bounced=4), 3, "hold: bounced 44.4 % (bound 5 %), above the bound"),
    ],
)
def test_a_day_is_judged_by_what_became_of_its_mail(stage: int, facts: DayFacts, then: int, verdict: str) -> None:
    after = judged(stage, facts)

    assert (after.stage, after.verdict) == (then, verdict)
    assert after.last_day == YESTERDAY
    assert after.stage_since == (YESTERDAY if then == stage else TODAY)


def test_of_an_hourly_plan_five_full_hours_make_a_day() -> None:
    assert judged(0, day(225), plan=HOURLY).stage == 1
    assert judged(0, day(224), plan=HOURLY).stage == 0


def test_a_day_without_mail_changes_nothing() -> None:
    assert judged(2, None) == state(2)
    assert warmup.last_sending_day(state(2), [day(0, complained=3)]) is None


def test_complaints_of_quiet_days_count_with_the_next_day_that_sends() -> None:
    quiet = [DayFacts(YESTERDAY + timedelta(days=n), complained=2) for n in range(2)]
    sending = DayFacts(YESTERDAY + timedelta(days=2), delivered=700, complained=1)

    assert warmup.last_sending_day(state(3), [*quiet, sending]) == DayFacts(sending.day, delivered=700, complained=5)


def test_a_day_is_judged_once_and_days_of_an_earlier_stage_not_at_all() -> None:
    once = judged(0, day(100))

    assert warmup.last_sending_day(once, [day(100)]) is None
    assert warmup.last_sending_day(state(1, since=TODAY), [day(100)]) is None


@pytest.mark.parametrize("stage", [1, 3, 4])
def test_after_thirty_days_without_mail_it_starts_again(stage: int) -> None:
    before = warmup.judge(state(stage), OURS, None, SETTINGS, YESTERDAY + timedelta(days=30))
    after = warmup.judge(state(stage), OURS, None, SETTINGS, YESTERDAY + timedelta(days=31))

    assert before.stage == stage
    assert (after.stage, after.verdict) == (0, "rewarm: no mail for 30 days")
    next_day = after.stage_since + timedelta(days=1)
    assert warmup.judge(after, OURS, DayFacts(after.stage_since, 95), SETTINGS, next_day).stage == 1


def test_a_warm_source_stays_warm_whatever_a_day_brings() -> None:
    assert judged(4, day(5, deferred=500)).stage == 4


@pytest.mark.parametrize(
    ("before", "plan", "stage"),
    [
        (state(2), WarmUpPlan(stages=(10, 100, 380, 1_000)), 2),
        (state(2), WarmUpPlan(stages=(1_000, 2_000)), 0),
        (state(3), WarmUpPlan(stages=(5, 10)), 1),
        (state(2), WarmUpPlan(per="hour", stages=(10, 20, 80, 160)), 2),  # 400 a day, 5 times 80
        (state(4), WarmUpPlan(stages=(5, 10)), 2),  # warm stays warm
        (State("of a later release", 9, YESTERDAY), OURS, 3),
    ],
)
def test_a_changed_plan_goes_on_at_the_nearest_stage(before: State, plan: WarmUpPlan, stage: int) -> None:
    after = warmup.adopt(before, "new", plan, None, TODAY)

    assert after.stage == stage
    assert warmup.adopt(after, "new", plan, None, TODAY) == after


def test_a_start_after_the_present_stage_began_begins_again_and_an_earlier_one_does_not() -> None:
    tomorrow = TODAY + timedelta(days=1)
    assert warmup.adopt(state(3), "ours", OURS, TODAY, TODAY) == warmup.begin("ours", OURS, TODAY)
    assert warmup.adopt(state(3), "ours", OURS, YESTERDAY, TODAY) == state(3)
    assert warmup.adopt(state(3), "ours", OURS, tomorrow, TODAY) == state(3)


def test_a_clock_that_was_ahead_does_not_stop_a_warm_up() -> None:
    ahead = State("ours 200/day", 1, TODAY + timedelta(days=400), TODAY + timedelta(days=400))
    after = warmup.adopt(ahead, "ours", OURS, None, TODAY)

    assert (after.stage, after.stage_since, after.last_day) == (1, TODAY, YESTERDAY)


def test_nodes_need_not_agree_on_the_day() -> None:
    after = judged(0, day(100))  # by a node whose day has begun

    assert warmup.adopt(after, "ours", OURS, None, YESTERDAY) == after, "seen by one whose day has not"


def test_windows_are_hours_and_days_of_utc() -> None:
    now = datetime(2026, 11, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    hour, midnight = datetime(2026, 11, 1, 23, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    assert warmup.window(HOURLY, now) == (hour, midnight)
    assert warmup.window(OURS, now) == (datetime(2026, 11, 1, tzinfo=UTC), midnight)


# With a database


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=8)
    yield pool
    await pool.close()


def config(plan: str = "ours", *, started: str | None = None, settings: WarmUp = SETTINGS) -> Config:
    day = None if started is None else Date(started)
    return Config(
        sources={
            "cold": Source(warmup=WarmUpOf(plan=plan, started=day)),
            "waits": Source(warmup=WarmUpOf(plan=plan, overflow="wait")),
            "warm": Source(),
        },
        warmup=settings,
    )


async def worker(pool: Pool, clock: Clock, settings: Config | None = None) -> WarmUps:
    """A worker that has just started."""
    warmups = WarmUps(settings or config(), WarmUpStore(pool), clock)
    await warmups.judge(clock.now.date())
    return warmups


async def send(
    warmups: WarmUps,
    clock: Clock,
    n: int,
    *,
    source: str = "cold",
    provider: str = "google",
    outcome: Outcome = "delivered",
    at_once: int = 10,
) -> int:
    """Mail up to `n` recipients, so many at once, as far as the budget goes; how many went."""
    sent = 0
    while sent < n:
        size = min(at_once, n - sent)
        wait = warmups.take(source, provider, size)
        if wait is None:
            warmups.note(source, provider, outcome, size)
            sent += size
        elif wait.until - clock.now <= timedelta(seconds=0.2):
            await warmups.draw()
        elif size > (left := int(warmups.left(source, provider))) > 0:
            at_once = left
        else:
            break
    return sent


async def next_day(warmups: WarmUps, clock: Clock) -> None:
    await warmups.flush()
    clock.now += timedelta(days=1)
    await warmups.judge(clock.now.date())


async def stage_of(pool: Pool, source: str = "cold", provider: str = "google") -> tuple[int, str]:
    row = await pool.fetchrow(
        "SELECT stage, verdict FROM warmups WHERE (source, provider) = ($1, $2)", source, provider
    )
    assert row is not None
    return row["stage"], row["verdict"].partition(":")[0]


async def test_a_source_without_warm_up_may_send_anything(pool: Pool, clock: Clock) -> None:
    warmups = WarmUps(config(), WarmUpStore(pool), clock)

    assert warmups.take("warm", "google", 10**9) is None
    assert warmups.take("", "google", 10**9) is None
    assert warmups.left("warm", "google") == math.inf


async def test_a_budget_holds_for_its_window_and_the_wait_names_the_next_one(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)

    assert await send(warmups, clock, 1_000) == 100
    wait = warmups.take("cold", "google", 1)
    assert wait == Wait(
        datetime(2026, 11, 2, tzinfo=UTC),
        "warm-up of cold at google: 100 recipients a day are used up (stage 1 of 4)",
    )
    assert warmups.left("cold", "google") == 0
    assert await send(warmups, clock, 30, provider="yahoo") == 30, "each provider has a budget of its own"

    clock.now = wait.until
    assert await send(warmups, clock, 1_000) == 100


async def test_a_budget_by_the_hour_comes_back_each_hour(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock, config("hourly"))

    sent = []
    for _ in range(3):
        sent.append(await send(warmups, clock, 1_000))
        clock.now += timedelta(hours=1)
    assert sent == [50, 50, 50]


async def test_nothing_leaves_before_the_day_of_the_start(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock, config(started="2026-11-03"))

    assert warmups.take("cold", "google", 1) == Wait(
        datetime(2026, 11, 3, tzinfo=UTC), "warm-up of cold begins on 2026-11-03"
    )
    assert warmups.left("cold", "google") == 0
    clock.now += timedelta(days=2)
    assert await send(warmups, clock, 1_000) == 100


async def test_workers_together_never_spend_more_than_the_budget(pool: Pool, clock: Clock) -> None:
    workers = [await worker(pool, clock, config("standard")) for _ in range(8)]

    sent = await asyncio.gather(*[send(each, clock, 100, at_once=3) for each in workers])
    assert sum(sent) == 200
    assert await pool.fetchval("SELECT drawn FROM warmup_windows") == 200


async def test_draws_of_many_workers_at_the_same_moment_are_granted_once(pool: Pool, clock: Clock) -> None:
    stores = [WarmUpStore(pool) for _ in range(16)]
    providers = [f"site-{n}" for n in range(20)]

    async def draw_all(number: int) -> int:
        warmups = WarmUps(config(), stores[number], clock)
        await warmups.judge(TODAY)
        order = providers if number % 2 else providers[::-1]
        for _ in range(10):
            for provider in order:
                warmups.take("cold", provider, 7)
            await warmups.draw()
        return sum(purse.have for purse in warmups._sources["cold"].purses.values()) + taken(warmups)

    def taken(warmups: WarmUps) -> int:
        return sum(purse.out for purse in warmups._sources["cold"].purses.values())

    drawn = sum(await asyncio.gather(*[draw_all(number) for number in range(16)]))
    assert drawn == await pool.fetchval("SELECT sum(drawn) FROM warmup_windows")
    assert await pool.fetchval("SELECT max(drawn) FROM warmup_windows") <= 100


async def test_a_dead_worker_loses_only_what_it_had_drawn_and_an_orderly_stop_nothing(pool: Pool, clock: Clock) -> None:
    stopped = await worker(pool, clock)
    assert await send(stopped, clock, 5, at_once=5) == 5
    await stopped.draw()
    await stopped.stop()
    assert await pool.fetchval("SELECT drawn FROM warmup_windows") == 5

    killed = await worker(pool, clock)
    assert await send(killed, clock, 5, at_once=1) == 5
    await killed.draw()
    drawn = await pool.fetchval("SELECT drawn FROM warmup_windows")
    assert 10 <= drawn <= 12

    assert await send(await worker(pool, clock), clock, 1_000) == 100 - drawn


async def test_what_was_not_mailed_after_all_may_be_mailed_in_the_same_window_only(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock, config("hourly"))
    assert await send(warmups, clock, 40) == 40
    while warmups.take("cold", "google", 10) is not None:
        await warmups.draw()
    warmups.give_back("cold", "google", 10)
    assert warmups.left("cold", "google") == 10
    while warmups.take("cold", "google", 10) is not None:
        await warmups.draw()

    clock.now += timedelta(hours=1)
    warmups.give_back("cold", "google", 10)
    assert await send(warmups, clock, 1_000) == 50


async def test_a_transaction_larger_than_what_is_left_waits_and_a_smaller_one_goes(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    assert await send(warmups, clock, 95, at_once=5) == 95

    wait = warmups.take("cold", "google", 6)
    assert wait is not None
    assert wait.until == datetime(2026, 11, 2, tzinfo=UTC)
    assert "of 100 recipients a day only 5 are left" in wait.text
    assert await send(warmups, clock, 5, at_once=5) == 5


async def test_mail_goes_by_warm_sources_when_a_budget_is_used_up_or_waits_where_that_is_asked_for(
    pool: Pool, clock: Clock
) -> None:
    warmups = await worker(pool, clock)
    by: dict[str, int] = {}
    for cold in ("cold", "waits"):
        for _ in range(50):
            for source in (cold, "warm"):
                if await send(warmups, clock, 10, source=source):
                    by[f"{cold} by {source}"] = by.get(f"{cold} by {source}", 0) + 10
                    break
                if not warmups.overflows(source):
                    break
    assert by == {"cold by cold": 100, "cold by warm": 400, "waits by waits": 100}


async def test_a_month_of_warm_up_with_holds_steps_back_restarts_and_idle_days(pool: Pool, clock: Clock) -> None:
    """Each day the mail there is, what becomes of it, and the stage the next day."""
    days: list[tuple[int, int, Outcome, int, int, str]] = [
        # mail, of it failing, how, sent, stage after, verdict
        (1_000, 0, "deferred", 100, 1, "advance"),
        (1_000, 0, "deferred", 200, 2, "advance"),
        (0, 0, "deferred", 0, 2, "advance"),  # a Sunday
        (100, 0, "deferred", 100, 2, "hold"),  # too little mail
        (1_000, 45, "deferred", 400, 2, "hold"),
        (1_000, 90, "deferred", 400, 1, "back"),
        (1_000, 0, "deferred", 200, 2, "advance"),
        (1_000, 3, "complained", 400, 1, "back"),
        (1_000, 25, "bounced", 200, 0, "back"),
        (1_000, 0, "deferred", 100, 1, "advance"),
        (1_000, 12, "bounced", 200, 1, "hold"),
        (1_000, 0, "deferred", 200, 2, "advance"),
        (1_000, 0, "deferred", 400, 3, "advance"),
        (1_000, 0, "deferred", 800, 4, "done"),
        (5_000, 4_000, "deferred", 5_000, 4, "done"),  # warm: without a budget
        *[(0, 0, "deferred", 0, 4, "done")] * 29,  # judged on the morning after: 29 of them are over
        (0, 0, "deferred", 0, 0, "rewarm"),
        (1_000, 0, "deferred", 100, 1, "advance"),
    ]
    seen = []
    warmups = await worker(pool, clock)
    for number, (mail, failing, how, *_) in enumerate(days):
        failed = min(failing, mail)
        if how == "complained":
            sent = await send(warmups, clock, mail)
            warmups.note("cold", "google", "complained", failed)
        else:
            sent = await send(warmups, clock, failed, outcome=how)
            sent += await send(warmups, clock, mail - failed)
        await warmups.flush()
        if number % 3 == 0:  # a restart within the day: states and what was used of the window survive
            await warmups.stop()
            warmups = await worker(pool, clock)
            assert sent == mail or await send(warmups, clock, 1_000) == 0
        await next_day(warmups, clock)
        seen.append((mail, failing, how, sent, *await stage_of(pool)))
    assert seen == days


async def test_every_worker_follows_what_one_of_them_has_judged(pool: Pool, clock: Clock) -> None:
    one, other = await worker(pool, clock), await worker(pool, clock)
    assert await send(one, clock, 60) + await send(other, clock, 60) == 100
    await one.flush()
    await other.flush()
    clock.now += timedelta(days=1)
    await asyncio.gather(one.judge(clock.now.date()), other.judge(clock.now.date()))

    assert await stage_of(pool) == (1, "advance")
    assert await send(one, clock, 150) + await send(other, clock, 150) == 200


async def test_a_stage_that_grows_within_the_window_leaves_what_was_used(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    assert await send(warmups, clock, 1_000) == 100
    await warmups.flush()
    clock.now = datetime(2026, 11, 2, tzinfo=UTC)
    assert await send(warmups, clock, 1_000) == 100, "before the day is judged"
    await warmups.judge(clock.now.date())
    assert await send(warmups, clock, 1_000) == 100, "200 less 100"


async def test_a_new_configuration_keeps_the_place(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    for _ in range(2):
        await send(warmups, clock, 1_000)
        await next_day(warmups, clock)
    assert await send(warmups, clock, 1_000) == 400

    steeper = WarmUp(plans={"ours": WarmUpPlan(stages=(50, 100, 500, 1_000))})
    warmups.reconfigure(config(settings=steeper))
    assert await send(warmups, clock, 1_000) == 100, "500 less 400"
    await next_day(warmups, clock)
    assert await stage_of(pool) == (3, "advance")

    warmups.reconfigure(Config(sources={"cold": Source()}))
    assert warmups.left("cold", "google") == math.inf


async def test_states_of_sites_that_get_no_mail_are_forgotten(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    for provider in ("google", "small.example"):
        await send(warmups, clock, 95 if provider == "google" else 3, provider=provider)
    await next_day(warmups, clock)
    assert await pool.fetchval("SELECT count(*) FROM warmups") == 2

    clock.now += timedelta(days=62)
    await warmups.judge(clock.now.date())
    assert await pool.fetch("SELECT provider, stage FROM warmups") == [("google", 0)]
    assert await pool.fetchval("SELECT count(*) FROM warmup_windows") == 0
    assert await pool.fetchval("SELECT count(*) FROM traffic_days") == 0
    assert warmups._sources["cold"].purses == {}


async def test_the_books_say_what_became_of_each_day_of_all_sources(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    clock.now = datetime(2026, 11, 1, 23, 59, 59, tzinfo=UTC)
    for outcome, n in (("delivered", 7), ("deferred", 5), ("bounced", 3), ("complained", 1)):
        warmups.note("warm", "google", outcome, n)  # type: ignore[arg-type]
    clock.now += timedelta(seconds=2)
    warmups.note("warm", "google", "delivered", 2)
    await warmups.flush()
    warmups.note("warm", "google", "delivered", 2)
    await warmups.flush()

    assert [tuple(row) for row in await pool.fetch("SELECT * FROM traffic_days ORDER BY day")] == [
        (date(2026, 11, 1), "warm", "google", 7, 5, 3, 1),
        (date(2026, 11, 2), "warm", "google", 4, 0, 0, 0),
    ]


async def test_what_could_not_be_written_is_written_later(pool: Pool, clock: Clock) -> None:
    warmups = await worker(pool, clock)
    warmups.note("cold", "google", "delivered", 7)
    await pool.execute("ALTER TABLE traffic_days RENAME TO elsewhere")
    with pytest.raises(Exception, match="traffic_days"):
        await warmups.flush()
    warmups.note("cold", "google", "delivered", 1)
    await pool.execute("ALTER TABLE elsewhere RENAME TO traffic_days")
    await warmups.flush()
    assert await pool.fetchval("SELECT delivered FROM traffic_days") == 8


async def test_left_to_itself_it_reads_draws_and_writes(pool: Pool, clock: Clock) -> None:
    warmups = WarmUps(config(), WarmUpStore(pool), clock)
    wait = warmups.take("cold", "google", 1)
    assert wait is not None
    assert "is being read" in wait.text
    warmups.note("cold", "google", "delivered", 7)

    running = asyncio.create_task(warmups.run())
    async with asyncio.timeout(60):
        while warmups.take("cold", "google", 1) is not None:
            await asyncio.sleep(0)
        while await pool.fetchval("SELECT count(*) FROM traffic_days") == 0:
            pass
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await warmups.stop()
    assert await pool.fetchval("SELECT drawn FROM warmup_windows") == 1


async def test_a_day_is_judged_a_minute_after_its_end(
    pool: Pool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup_budgets, "FLUSH_EVERY", 0.01)
    await send(await worker(pool, clock), clock, 1)
    warmups = await worker(pool, clock)
    warmups.note("cold", "google", "delivered", 100)
    running = asyncio.create_task(warmups.run())

    async def written(delivered: int) -> None:
        while await pool.fetchval("SELECT sum(delivered) FROM traffic_days WHERE source = 'cold'") != delivered:
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await written(100)
        clock.now = datetime(2026, 11, 2, 0, 0, 59, tzinfo=UTC)
        for more in range(1, 4):  # rounds of its work, in which nothing is judged
            warmups.note("cold", "google", "delivered", 1)
            await written(100 + more)
        assert await stage_of(pool) == (0, "")
        clock.now += timedelta(seconds=1)
        while await stage_of(pool) != (1, "advance"):
            await asyncio.sleep(0)
    running.cancel()


PROCESS = """
import asyncio, sys
from datetime import UTC, datetime
from mailerd.config import parse
from mailerd.db import connect_pool
from mailerd.delivery.warmup_budgets import WarmUps, WarmUpStore

async def main():
    config = parse("sources: {cold: {warmup: {plan: ours}}}\\nwarmup: {plans: {ours: {stages: [400]}}}")
    pool = await connect_pool(sys.argv[1], min=1, max=1)
    now = datetime.fromisoformat(sys.argv[2])
    warmups = WarmUps(config, WarmUpStore(pool), lambda: now)
    await warmups.judge(now.date())
    print("ready", flush=True)
    while (wait := warmups.take("cold", "google", 1)) is None or (wait.until - now).total_seconds() < 1:
        if wait is None:
            print("taken", flush=True)
            sys.stdin.readline()
        else:
            await warmups.draw()

asyncio.run(main())
"""


async def test_processes_keep_the_budget_and_a_killed_one_loses_only_its_block(
    database: str, pool: Pool, clock: Clock
) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROCESS, database, clock.now.isoformat()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    outputs = [process.stdout for process in processes if process.stdout]
    assert [await output.readline() for output in outputs] == [b"ready\n"] * 3
    inputs = [process.stdin for process in processes if process.stdin]
    inputs[0].write(b"go\n" * 20)
    for _ in range(21):  # then it waits for one more line
        await outputs[0].readline()
    for given in inputs[1:]:
        given.close()
    processes[0].kill()
    rest = await asyncio.gather(*[output.read() for output in outputs])

    taken = 21 + sum(text.count(b"taken") for text in rest)
    assert await pool.fetchval("SELECT drawn FROM warmup_windows") == 400
    assert 400 - 13 <= taken <= 400  # a block of 8, what is drawn before it is at its end, and one not yet printed
    assert [await process.wait() for process in processes] == [-signal.SIGKILL, 0, 0]


def test_settings_are_what_the_configuration_says() -> None:
    strict = WarmUp(advance=100, deferred=1, bounced=1, complained=Percent(0.1), idle=Duration(2 * 86_400))

    assert warmup.judge(state(0), OURS, day(99), strict, TODAY).stage == 0
    assert warmup.judge(state(1), OURS, day(200, deferred=6), strict, TODAY).stage == 0
    assert warmup.judge(state(1), OURS, None, strict, YESTERDAY + timedelta(days=3)).stage == 0
