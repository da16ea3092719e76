"""Quarter hours of campaigns and tenants: sums of their minutes, and what reports of hours and longer read."""

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd import db
from mailerd.campaigns.analytics.counts import COUNTS, Delta
from mailerd.campaigns.analytics.periods import Granularity, periods
from mailerd.campaigns.analytics.reading import Reading
from mailerd.campaigns.analytics.reports import ReportStore
from mailerd.campaigns.analytics.retention import RetentionStore
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.db import Pool
from mailerd.db.migrate import migrate, shipped
from tests.campaigns.analytics.conftest import NOW, TENANTS, added, assert_in_step, assert_tenants_in_step, begun
from tests.support.postgres import TestPostgres

# Whole, half and three quarters of an hour from UTC, with clocks put by an hour and by half of one, north and south.
ZONES = ("UTC", "Europe/Berlin", "America/Havana", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
         "Pacific/Chatham", "America/St_Johns")  # fmt: skip
AROUND = [datetime.fromisoformat(f"{day}T00:00Z") for day in ("2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25")]
LENGTH = timedelta(days=3)
BEFORE = 12  # the version of databases without quarter hours
VALUES = ", ".join(f"n - 7 * {i}" for i in range(len(COUNTS)))
CAMPAIGNS = """
    INSERT INTO campaigns (id, tenant, name, template_id, sender_email, created_by, status, created_at)
    OVERRIDING SYSTEM VALUE
    SELECT n, 'default', 'News', 1, 'news@example.com', 'test', 'sending', now() FROM generate_series(1, 3) AS n
"""
HOURS = f"""
    INSERT INTO tenant_hours (tenant, hour, {", ".join(COUNTS)})
    SELECT 'default', date_trunc('hour', minute), {", ".join(f"sum({name})" for name in COUNTS)}
      FROM campaign_minutes GROUP BY 2
"""
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def delta(campaign_id: int, at: datetime, **counts: int) -> Delta:
    return Delta(campaign_id, "default", at, "d.example", counts)


async def waiting(pool: Pool, number: int = 1) -> None:
    """Until so many wait for a lock."""
    async with asyncio.timeout(20):
        while await pool.fetchval(WAITS) < number:
            await asyncio.sleep(0.01)


# -- reports


def by_hand(bounds: Sequence[datetime], told: Sequence[Delta]) -> list[dict[str, int]]:
    series = [dict.fromkeys(COUNTS, 0) for _ in bounds[1:]]
    for each in told:
        if bounds[0] <= each.at < bounds[-1]:
            for name, number in each.counts.items():
                series[bisect_right(bounds, each.at) - 1][name] += number
    return series


async def test_periods_of_all_zones_have_the_counts_of_their_minutes(pool: Pool) -> None:
    """A thousand minutes around each day on which clocks are put somewhere; any range, also one within a period."""
    minutes = [start + LENGTH * n / 1_000 for start in AROUND for n in range(1_000)]
    counts = [{"sent": n, "opens": 7, "delivered": n, "bounced": -1} for n in range(len(minutes))]
    told = [Delta(1, "default", at, "d.example", each) for at, each in zip(minutes, counts, strict=True)]
    await added(pool, *told)
    await added(pool, *(delta(2, at, sent=1_000_000) for at in minutes))
    reports, loop = ReportStore(Reading(pool)), asyncio.get_running_loop()
    moments = st.builds(lambda start, share: start + LENGTH * share, st.sampled_from(AROUND), st.floats(0, 1))
    lengths = st.timedeltas(timedelta(0), timedelta(days=4))
    granularities = st.sampled_from(("hour", "day", "week", "month"))

    @given(moments, lengths, granularities, st.sampled_from(ZONES))
    @settings(max_examples=150, deadline=None)
    def check(start: datetime, length: timedelta, granularity: Granularity, zone: str) -> None:
        bounds = periods(start, start + length, granularity, ZoneInfo(zone))
        found = asyncio.run_coroutine_threadsafe(reports.series(1, bounds, COUNTS), loop).result(20)
        assert found == by_hand(bounds, told)

    await asyncio.to_thread(check)


async def test_periods_of_a_tenant_have_the_counts_of_the_minutes_of_its_campaigns(pool: Pool) -> None:
    """At random moments, of two campaigns; and nothing of another tenant."""
    chance = random.Random(7)
    moments = [chance.choice(AROUND) + LENGTH * chance.random() for _ in range(3_000)]
    told = [
        Delta(
            chance.choice((1, 2)),
            "default",
            at,
            "d.example",
            {"sent": n, "opens": 7, "delivered": chance.choice((-1, 1))},
        )
        for n, at in enumerate(moments)
    ]
    await added(pool, *told)
    await added(pool, *(Delta(3, "other", at, "d.example", {"sent": 1_000_000}) for at in moments))
    reports = ReportStore(Reading(pool))

    for zone in ZONES:
        for granularity in ("hour", "day", "week", "month"):
            for day in AROUND:
                bounds = periods(day, day + LENGTH, granularity, ZoneInfo(zone))
                found = await reports.tenant_series("default", bounds, COUNTS)
                own = [await reports.series(campaign_id, bounds, COUNTS) for campaign_id in (1, 2)]
                assert found == by_hand(bounds, told)
                assert found == [{name: a[name] + b[name] for name in COUNTS} for a, b in zip(*own, strict=True)]


@pytest.mark.parametrize("zone", ZONES)
async def test_no_minutes_are_read_for_hours_and_longer(pool: Pool, zone: str) -> None:
    await added(pool, *(delta(1, AROUND[0] + timedelta(hours=n), sent=1) for n in range(48)))
    await pool.execute("DELETE FROM campaign_minutes")

    bounds = periods(AROUND[0], AROUND[0] + timedelta(hours=48), "hour", ZoneInfo(zone))
    series = await ReportStore(Reading(pool)).series(1, bounds, ["sent"])

    assert sum(each["sent"] for each in series) == 48


async def test_bounds_that_are_no_quarter_hours_are_read_by_minutes(pool: Pool) -> None:
    start = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    await added(pool, *(delta(1, start + timedelta(minutes=n), sent=1) for n in range(60)))

    bounds = [start + timedelta(minutes=n) for n in (0, 15, 16, 45)]
    series = await ReportStore(Reading(pool)).series(1, bounds, ["sent"])

    assert series == [{"sent": 15}, {"sent": 1}, {"sent": 29}]


# -- retention


async def test_what_is_old_is_forgotten_in_steps_together_with_its_minutes(pool: Pool) -> None:
    campaign, young = await begun(pool), await begun(pool)
    await pool.execute("UPDATE campaigns SET created_at = $2 WHERE id = $1", campaign.id, NOW - timedelta(days=1))
    await pool.execute("UPDATE campaigns SET created_at = $2 WHERE id = $1", young.id, NOW + timedelta(days=1))
    await added(pool, *(delta(campaign.id, NOW + timedelta(minutes=n), opens=1) for n in range(300)))
    before = NOW + timedelta(minutes=200)  # within a quarter hour: that stays as a whole

    for _ in range(3):
        await RetentionStore(pool).forget(before, step=30)
        await assert_in_step(pool)

    kept = "SELECT min({0}) FROM {1} WHERE campaign_id = $1"
    quarter = datetime(2026, 11, 22, 15, 45, tzinfo=UTC)
    assert await pool.fetchval(kept.format("quarter_hour", "campaign_quarter_hours"), campaign.id) == quarter
    assert await pool.fetchval(kept.format("minute", "campaign_minutes"), campaign.id) == quarter
    assert await pool.fetchval("SELECT count(*) FROM campaign_minutes WHERE campaign_id = $1", young.id) == 1
    assert (await campaign.totals())["opens"] == 300


async def test_a_minute_that_is_being_added_is_not_left_behind_without_its_quarter_hour(pool: Pool) -> None:
    old = NOW - timedelta(days=9)
    campaign = await begun(pool)
    await pool.execute("UPDATE campaigns SET created_at = $1", old)
    await added(pool, delta(campaign.id, old, opens=1))

    async with pool.acquire() as connection, connection.transaction():
        await RollUpStore().add(connection, [delta(campaign.id, old + timedelta(minutes=3), clicks=1)])
        forgetting = asyncio.create_task(RetentionStore(pool).forget(NOW - timedelta(days=1)))
        await waiting(pool)
    await forgetting

    await assert_in_step(pool)
    assert await pool.fetchval("SELECT count(*) FROM campaign_quarter_hours WHERE quarter_hour < $1", NOW) == 1


async def test_retention_and_who_adds_wait_for_one_another_and_not_in_a_circle(pool: Pool) -> None:
    old = NOW - timedelta(days=9)
    first, second, third = [(await begun(pool)).id for _ in range(3)]
    await pool.execute("UPDATE campaigns SET created_at = $1", old)
    await added(pool, *(delta(id_, old, opens=1) for id_ in (first, second, third)))

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM campaign_quarter_hours WHERE campaign_id = $1 FOR UPDATE", second)
        forgetting = asyncio.create_task(RetentionStore(pool).forget(NOW - timedelta(days=1)))
        await waiting(pool)
        adding = asyncio.create_task(added(pool, delta(first, old, opens=1), delta(third, old, opens=1)))
        await waiting(pool, 2)
    await asyncio.gather(forgetting, adding)

    await assert_in_step(pool)


# -- a row that every batch adds to


async def test_the_row_of_this_quarter_hour_stays_in_its_page_however_often_it_is_added_to(pool: Pool) -> None:
    for _ in range(300):
        await added(pool, *(delta(n, NOW, delivered=1, opens=1) for n in range(1, 9)))

    assert await pool.fetchval("SELECT pg_relation_size('campaign_quarter_hours') / 8192") <= 2
    assert await pool.fetchval("SELECT pg_relation_size('campaign_quarter_hours_pkey') / 8192") == 2


# -- a database that has minutes already


@pytest.fixture
async def former(postgres: TestPostgres) -> AsyncIterator[str]:
    """The URL of one of the version before, with minutes of three campaigns, and the hours of their tenant."""
    name = await postgres.fresh(migrated=False)
    url = postgres.url_of(name)
    async with db.connected(url) as connection:
        await migrate(connection, [each for each in shipped() if each.version <= BEFORE])
        await connection.execute(
            f"INSERT INTO campaign_minutes (campaign_id, minute, {', '.join(COUNTS)})"
            f" SELECT 1 + n % 3, $1::timestamptz + n * interval '1 minute', {VALUES}"
            " FROM generate_series(1, 1000) AS n",
            AROUND[3],
        )
        await connection.execute(CAMPAIGNS)
        await connection.execute(HOURS)
    yield url
    await postgres.drop(name)


async def test_an_old_database_gets_the_quarter_hours_of_its_minutes(former: str) -> None:
    async with db.connected(former) as connection:
        await connection.execute("SET timezone = 'Asia/Kathmandu'")  # whatever the server's is
        assert await migrate(connection) == len([each for each in shipped() if each.version > BEFORE])

    async with await db.connect_pool(former, max=1) as pool:
        await assert_in_step(pool)
        assert await pool.fetchval("SELECT count(*) FROM campaign_quarter_hours") == 3 * 67
        await added(pool, delta(1, NOW, sent=1), delta(1, AROUND[3] + timedelta(minutes=3), sent=1))
        await assert_in_step(pool)


async def test_an_old_database_gets_the_quarter_hours_of_its_tenants(former: str) -> None:
    async with db.connected(former) as connection:
        await migrate(connection)

    async with await db.connect_pool(former, max=1) as pool:
        await assert_tenants_in_step(pool)
        assert await pool.fetchval("SELECT count(*) FROM tenant_quarter_hours") == 67
        await added(pool, delta(1, NOW, sent=1), delta(2, AROUND[3] + timedelta(minutes=50), sent=1))
        await assert_tenants_in_step(pool)


async def test_hours_of_tenants_that_their_campaigns_do_not_explain_are_kept_whole(former: str) -> None:
    """Of campaigns that were deleted, of minutes that were forgotten; and of a tenant who has nothing else."""
    first = AROUND[3]
    async with db.connected(former) as connection:
        hour = "UPDATE tenant_hours SET opens = opens + 1 WHERE hour = $1"
        await connection.execute(hour, first)
        await connection.execute(
            "DELETE FROM campaign_minutes WHERE minute = $1", first + timedelta(hours=2, minutes=7)
        )
        await connection.execute("INSERT INTO tenant_hours (tenant, hour, sent) VALUES ('other', $1, 5)", first)
        kept = f"SELECT tenant, hour, {', '.join(COUNTS)} FROM tenant_hours"
        whole = [tuple(row) for row in await connection.fetch(f"{kept} ORDER BY tenant, hour")]
        await migrate(connection)

    async with await db.connect_pool(former, max=1) as pool:
        found = [tuple(row) for row in await pool.fetch(TENANTS)]
    third = first + timedelta(hours=2)
    wanted = [row for row in whole if row[0] == "other" or row[1] in (first, third)]
    within = [row for row in found if row[0] == "other" or row[1].replace(minute=0) in (first, third)]
    assert within == wanted
    assert len(found) == 67 - 6 + 1
    for place in range(2, len(COUNTS) + 2):
        assert sum(row[place] for row in found) == sum(row[place] for row in whole)


async def test_a_minute_that_is_being_written_while_the_database_is_migrated_is_in_its_quarter_hour(
    former: str,
) -> None:
    async with db.connected(former) as connection, await db.connect_pool(former, max=2) as pool:
        async with pool.acquire() as other, other.transaction():
            await other.execute("INSERT INTO campaign_minutes (campaign_id, minute, sent) VALUES (9, now(), 5)")
            migrating = asyncio.create_task(migrate(connection))
            await waiting(pool)
        await migrating

        await assert_in_step(pool)
        assert await pool.fetchval("SELECT sent FROM campaign_quarter_hours WHERE campaign_id = 9") == 5
