"""What reports take, with the roll-ups and the ledger as they are after very many events; how fast these are counted.

One tenant has 2,000 campaigns of two years, one of them with a tenth of all mail, opens in every minute of a year, and
100,000 domains. Events are those that were counted: 2.5 of a mail. All reports are read while the follower counts more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

import uvloop

from benchmarks import machine
from benchmarks.cgroup import TICKS
from benchmarks.filling import Steps, bare
from benchmarks.report import Results, machine_line
from mailerd.campaigns.analytics import contact_engagement, reports
from mailerd.campaigns.analytics.contact_engagement import Place
from mailerd.campaigns.analytics.counts import COUNTS
from mailerd.campaigns.analytics.desk import AnalyticsDesk
from mailerd.campaigns.analytics.follower import NAME, CampaignFollower
from mailerd.campaigns.analytics.periods import Granularity, periods
from mailerd.campaigns.analytics.progress import TYPES
from mailerd.campaigns.analytics.reading import Reading
from mailerd.config import Database
from mailerd.db import Pool, connect_pool, connected
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import migrate
from mailerd.events import START, EventStore, FollowerStore
from mailerd.feedback.following import Following

TENANT = "default"
CAMPAIGNS = 2_000
LARGE = 1  # the campaign with a tenth of all mail
EVENTS_PER_MAIL = 2.5
CHUNK = 1_000_000  # rows of one statement
TIMES = 5
ROUND = 40_000  # mails of one round of counting: two events each, and an open of every fourth
NOW = datetime(2026, 11, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
FIRST = 1 << 44  # message ids of the old mail; those that are counted begin above `NEW`
NEW = 1 << 50
LIMIT = 1.0  # seconds of any report

INSERT_CAMPAIGNS = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by, status, created_at, started_at)
    SELECT $1, 'Campaign ' || n, 1, 'news@example.com', 'bench', 'sent', at, at
      FROM generate_series(1, $2::int) AS n, LATERAL (SELECT $3::timestamptz - n * interval '8 hours' AS at) AS of
"""
# Contacts 1 and up; of the large campaign the first ones, of the others at random.
LEDGER = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, marks, message_id, changed_at)
    SELECT CASE WHEN n <= $3 THEN 1 ELSE 2 + n % ($4 - 1) END, n, $5, false, 2, CASE WHEN n % 3 = 0 THEN 1 ELSE 0 END,
           $6::bigint + n, $5
      FROM generate_series($1::bigint, $2::bigint) AS n
"""
ENGAGEMENTS = """
    INSERT INTO engagements (at, contact_id, campaign_id, message_id, kind, machine, link)
    SELECT $4::timestamptz - n * interval '1 second', 1 + (n * 7919) % $3, 2 + n % 1999, $5::bigint + n,
           CASE WHEN n % 8 = 0 THEN 2 ELSE 1 END, n % 3 = 0, CASE WHEN n % 8 = 0 THEN n % 15 ELSE 0 END
      FROM generate_series($1::bigint, $2::bigint) AS n
"""
USUAL = "queued, sent, delivered, opened, clicked, opens, clicks, machine_opens, machine_opened"
MINUTES_OF_LARGE = f"""
    INSERT INTO campaign_minutes (campaign_id, minute, {USUAL})
    SELECT 1, $1::timestamptz - n * interval '1 minute', 20, 20, 19, 5, 1, 7, 2, 4, 3
      FROM generate_series(0, $2::int) AS n
"""
MINUTES = f"""
    INSERT INTO campaign_minutes (campaign_id, minute, {USUAL})
    SELECT c, $1::timestamptz - c * interval '8 hours' + n * interval '1 minute', 20, 20, 19, 5, 1, 7, 2, 4, 3
      FROM generate_series(2, $2::int) AS c, generate_series(0, $3::int) AS n
"""
DOMAINS = f"""
    INSERT INTO campaign_domains (campaign_id, domain, site, {USUAL})
    SELECT c, 'd' || n || '.example', 'mx' || n % 5000 || '.example', 40, 40, 39, n % 7, 2, 14, 4, 8, 6
      FROM generate_series($1::int, $2::int) AS c, generate_series(1, $3::int) AS n
"""
TOTALS = f"INSERT INTO campaign_totals (campaign_id, {USUAL}) {{sums}}"
SUMS = f"SELECT campaign_id, {', '.join(f'sum({name})' for name in USUAL.split(', '))} FROM campaign_minutes GROUP BY 1"
LINKS = """
    INSERT INTO campaign_links SELECT c, l, 'https://shop.example/' || l, 1000 + l, 900, 30
      FROM generate_series(1, $1::int) AS c, generate_series(1, 30) AS l
"""
# As the follower writes them beside the minutes.
QUARTER_HOURS = f"""
    INSERT INTO campaign_quarter_hours (campaign_id, quarter_hour, {USUAL})
    SELECT campaign_id, date_bin('15 minutes', minute, 'epoch'), {", ".join(f"sum({n})" for n in USUAL.split(", "))}
      FROM campaign_minutes GROUP BY 1, 2 ORDER BY 1, 2
"""
TENANTS = f"""
    INSERT INTO tenant_quarter_hours (tenant, quarter_hour, {USUAL})
    SELECT t, date_bin('15 minutes', $1, 'epoch') - n * interval '15 minutes',
           1250, 1250, 1225, 350, 75, 500, 125, 225, 175
      FROM unnest($3::text[]) AS t, generate_series(0, $2::int) AS n
"""
# One contact got all campaigns, and opened each twice.
CONTACT_ID = 2_000_000_000
CONTACT = """
    INSERT INTO contacts (id, tenant, email, address) OVERRIDING SYSTEM VALUE
    VALUES ($1, $2, 'ann@example.net', 'ann@example.net')
"""
MAIL_OF_CONTACT = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, marks, message_id, changed_at)
    SELECT n, $1, at, false, 2, 1, n, at FROM generate_series(1, $2::int) AS n,
           LATERAL (SELECT $3::timestamptz - n * interval '8 hours' AS at) AS of
"""
HITS_OF_CONTACT = """
    INSERT INTO engagements (at, contact_id, campaign_id, message_id, kind, machine)
    SELECT $3::timestamptz - n * interval '4 hours', $1, (n + 1) / 2, n, 1, false
      FROM generate_series(1, 2 * $2::int) AS n
"""
HANDED_OVER = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, message_id)
    SELECT 2 + n % 20, 1000000000 + n, now(), false, 1, $3::bigint + n FROM generate_series($1::bigint, $2::bigint) AS n
"""
HAPPENED = """
    INSERT INTO events (at, type, message_id, n, address, tenant, data, stream, campaign)
    SELECT now() + n * interval '1 millisecond', {type}, $3::bigint + n, 1,
           'user' || n || '@d' || (power(random(), 4) * 20000)::int || '.example', 'default', {data}, 'marketing',
           'cmp_' || 2 + n % 20
      FROM generate_series($1::bigint, $2::bigint) AS n
"""
SAID = """jsonb_build_object('attempt', 1, 'kind', 'ok', 'code', 250, 'enhanced', '2.0.0', 'text', 'ok queued as 4711',
    'stage', 'data', 'site', 'mx.d1.example', 'host', 'mx1.d1.example', 'ip', '127.0.0.2', 'ms', 123,
    'tls', jsonb_build_object('version', 'TLSv1.3', 'cipher', 'TLS_AES_256_GCM_SHA384'))"""
DONE = """jsonb_build_object('actor', CASE WHEN n % 3 = 0 THEN 'scanner' ELSE 'human' END, 'reasons', '[]'::jsonb,
    'rules', 1, 'url', CASE WHEN n % 8 = 0 THEN 'https://shop.example/' || n % 10 ELSE '' END,
    'link', CASE WHEN n % 8 = 0 THEN n % 10 ELSE 0 END, 'ip', '192.0.2.7', 'user_agent', 'Mozilla/5.0 (X11; Linux)')"""
SIZE = "SELECT pg_database_size(current_database())"

Ask = Callable[[], Awaitable[Any]]


@dataclass
class Asked:
    """Seconds of one report, alone and while events are counted."""

    report: str
    cold_s: float
    median_s: float
    counting_s: float
    rows: int


@dataclass
class Counted:
    """CPU in microseconds of one event that counts."""

    mails: int
    events_s: float
    our_cpu_us: float
    postgres_cpu_us: float


def run(work: Path, results: Results, *, events: int, rounds: int) -> bool:
    """True when every report takes less than a second and 4,000 events are counted in one."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    facts, asked, counted, plans = uvloop.run(_measure(work, events, rounds))
    results.line(**facts)
    for figures in (asdict(each) for each in asked), (asdict(each) for each in counted):
        for line in figures:
            results.line(**line)
    for name, plan in plans.items():
        results.line(plan=name, lines=plan)
    title = f"Reports after {events:,} events (database of {facts['database_gb']:.1f} GB)"
    results.table(
        title,
        ["report", "first ms", "median ms", "while counting ms", "rows"],
        [
            [
                each.report,
                *(f"{1000 * seconds:.0f}" for seconds in (each.cold_s, each.median_s, each.counting_s)),
                f"{each.rows:,}",
            ]
            for each in asked
        ],
    )
    speed = median(each.events_s for each in counted)
    ours, theirs = (median(getattr(each, name) for each in counted) for name in ("our_cpu_us", "postgres_cpu_us"))
    results.table(
        "Counting events",
        ["events/s", "µs of our CPU", "µs of PostgreSQL's"],
        [[f"{speed:,.0f}", f"{ours:.1f}", f"{theirs:.1f}"]],
    )
    whole = all("Seq Scan" not in line for plan in plans.values() for line in plan)
    slowest = max(max(each.cold_s, each.median_s, each.counting_s) for each in asked)
    return whole and slowest < LIMIT and speed >= 4_000


async def _measure(work: Path, events: int, rounds: int) -> tuple[dict[str, Any], list[Asked], list[Counted], Any]:
    server = EmbeddedPostgres(work / "analytics", Database())
    await server.start()
    try:
        begun = time.monotonic()
        mails = await _fill(server.url, events, rounds)
        filled = time.monotonic() - begun
        pool = await connect_pool(server.url, min=1, max=1)
        reading_pool = await connect_pool(server.url, min=1, max=1)
        try:
            facts = {
                "events": events,
                "mails": mails,
                "fill_s": round(filled, 1),
                "database_gb": await pool.fetchval(SIZE) / 1e9,
            }
            asks = _asks(AnalyticsDesk(Reading(reading_pool), lambda domain, hosts: hosts[0][:4]))
            alone = {name: await _timed(ask) for name, ask in asks.items()}
            counted = await _count(pool, rounds)
            counting = asyncio.create_task(_count(pool, rounds))
            beside: dict[str, list[float]] = {name: [] for name in asks}
            while not counting.done():
                for name, ask in asks.items():
                    beside[name].append((await _timed(ask, 1))[0])
            await counting
            plans = await _plans(reading_pool)
        finally:
            await pool.close()
            await reading_pool.close()
    finally:
        await server.stop()
    asked = [
        Asked(name, cold, usual, median(beside[name] or [0.0]), rows) for name, (cold, usual, rows) in alone.items()
    ]
    return facts, asked, counted, plans


async def _fill(url: str, events: int, rounds: int) -> int:
    """The tables as they are after so many events. How many mails that were."""
    mails = int(events / EVENTS_PER_MAIL)
    large, share = mails // 10, mails * 9 // 10 // CAMPAIGNS
    minutes = min(24 * 60 * 365, max(1_440, large))
    async with connected(url) as connection:
        await migrate(connection)
        await connection.execute("SET synchronous_commit = off; SET jit = off")
        steps = Steps()

        async def write(statement: str, *values: Any) -> None:
            await connection.execute(statement, *values, timeout=None)

        await write(INSERT_CAMPAIGNS, TENANT, CAMPAIGNS, NOW)
        async with bare(connection, "campaign_contacts", steps=steps):
            for first in range(1, mails + 1, CHUNK):
                steps.say(f"ledger, {first:,} of {mails:,}")
                last = min(first + CHUNK - 1, mails)
                await write(LEDGER, first, last, large, CAMPAIGNS, NOW - YEAR, FIRST)
        opens = int(mails * (EVENTS_PER_MAIL - 1))
        async with bare(connection, "engagements", steps=steps):
            for first in range(1, opens + 1, CHUNK):
                steps.say(f"engagements, {first:,} of {opens:,}")
                await write(ENGAGEMENTS, first, min(first + CHUNK - 1, opens), mails, NOW, FIRST)
        steps.say("roll-ups")
        await write(MINUTES_OF_LARGE, NOW, minutes)
        for first in range(2, CAMPAIGNS + 1, 500):
            await write(MINUTES.replace("(2,", f"({first},"), NOW, min(first + 499, CAMPAIGNS), min(share // 8, 1_440))
        await write(QUARTER_HOURS)
        await write(DOMAINS, 1, 1, min(100_000, large))
        await write(DOMAINS, 2, CAMPAIGNS, min(1_000, share))
        await write(TOTALS.format(sums=SUMS))
        await write(LINKS, CAMPAIGNS)
        await write(TENANTS, NOW, 2 * 365 * 24 * 4, [TENANT, *(f"t{n}" for n in range(20))])
        await write(CONTACT, CONTACT_ID, TENANT)
        await write(MAIL_OF_CONTACT, CONTACT_ID, CAMPAIGNS, NOW)
        await write(HITS_OF_CONTACT, CONTACT_ID, CAMPAIGNS, NOW)
        steps.say("what is to be counted")
        for number in range(2 * rounds):
            first, last = number * ROUND + 1, (number + 1) * ROUND
            await write(HANDED_OVER, first, last, NEW)
            await write(HAPPENED.format(type="'message.accepted'", data=SAID), first, last, NEW)
            await write(HAPPENED.format(type="'recipient.delivered'", data=SAID), first, last, NEW)
            word = "CASE WHEN n % 8 = 0 THEN 'recipient.clicked' ELSE 'recipient.opened' END"
            await write(HAPPENED.format(type=word, data=DONE), first, first + ROUND // 4, NEW)
        steps.say("VACUUM")
        await write("VACUUM ANALYZE")
        await write("CHECKPOINT")  # what a year has filled is on disk, and is not being written while reports are read
        steps.say(f"filled: {await connection.fetchval(SIZE) / 1e9:.1f} GB")
    return mails


def _asks(desk: AnalyticsDesk) -> dict[str, Ask]:
    """Every kind of report, each over the longest range that it takes."""
    own, zone = desk.reports, ZoneInfo("Asia/Kolkata")

    def series(granularity: Granularity, length: timedelta) -> Ask:
        bounds = periods(NOW - length, NOW, granularity, zone)
        return lambda: own.series(LARGE, bounds, COUNTS)

    def report(granularity: Granularity, length: timedelta) -> Ask:
        bounds = periods(NOW - length, NOW, granularity, zone)
        return lambda: own.tenant_series(TENANT, bounds, COUNTS)

    start = NOW - 2 * YEAR
    return {
        "totals of a campaign": lambda: own.totals([LARGE]),
        "totals of 500 campaigns": lambda: own.totals(range(1, 501)),
        "a day by minutes": series("minute", timedelta(days=1)),
        "10,000 minutes": series("minute", timedelta(minutes=9_999)),
        "a year by hours": series("hour", YEAR),
        "a year by days": series("day", YEAR),
        "links": lambda: own.links(LARGE, 1_000),
        "domains, the first page": lambda: own.domains(LARGE, sort="open_rate", limit=500, offset=0),
        "domains, the last page": lambda: own.domains(LARGE, sort="sent", limit=500, offset=99_500),
        "providers": lambda: desk.providers(LARGE),
        "engagement of a contact": lambda: desk.contacts.of(CONTACT_ID, TENANT),
        "history of a contact": lambda: desk.contacts.history(CONTACT_ID, Place(NOW + YEAR, 0), 500),
        "a tenant, a year by hours": report("hour", YEAR),
        "a tenant, two years by days": report("day", 2 * YEAR),
        "campaigns by open rate": lambda: own.campaigns(TENANT, start, NOW, sort="open_rate", limit=500, offset=0),
    }


async def _timed(ask: Ask, times: int = TIMES) -> tuple[float, float, int]:
    """Seconds of the first time, the median, and how much it was."""
    taken, found = [], None
    for _ in range(times):
        begun = time.perf_counter()
        found = await ask()
        taken.append(time.perf_counter() - begun)
    return taken[0], median(taken), len(found) if isinstance(found, list | dict) else 1


async def _count(pool: Pool, rounds: int) -> list[Counted]:
    """Read and count the events as the follower does, round by round."""
    backend = await pool.fetchval("SELECT pg_backend_pid()")
    events, followers = EventStore(pool), FollowerStore(pool)
    follower, position = CampaignFollower(Following("", pool)), await followers.position(NAME) or START
    await followers.advance(NAME, position)
    counted: list[Counted] = []
    for _ in range(rounds):
        number, begun, ours, theirs = 0, time.perf_counter(), time.process_time(), _cpu(backend)
        while number < ROUND * 5 // 4:
            page = await events.after(position, limit=2_000, types=TYPES, campaigns="cmp_")
            async with pool.acquire() as connection, connection.transaction():
                await followers.move(NAME, position, page.position, connection)
                await follower.read(page.events, connection)
            position = page.position
            number += len(page.events)
            if not page.more:
                break
        each = 1e6 / max(1, number)
        counted.append(
            Counted(
                ROUND,
                number / (time.perf_counter() - begun),
                (time.process_time() - ours) * each,
                (_cpu(backend) - theirs) * each,
            )
        )
    return counted


async def _plans(pool: Pool) -> dict[str, list[str]]:
    """How PostgreSQL reads them: by keys, and no table as a whole."""
    bounds = periods(NOW - YEAR, NOW, "day", UTC)
    series = reports.SERIES.format(table="{table}", key="{key}", moment="{moment}", sums="sum(sent)")
    asked = {
        "a year by days": (
            series.format(table="campaign_quarter_hours", key="campaign_id", moment="quarter_hour"),
            (LARGE, bounds, bounds[0], bounds[-1]),
        ),
        "a tenant": (
            series.format(table="tenant_quarter_hours", key="tenant", moment="quarter_hour"),
            (TENANT, bounds, bounds[0], bounds[-1]),
        ),
        "domains": (reports.DOMAINS.format(sort="sent"), (LARGE, 500, 0)),
        "campaigns": (reports.CAMPAIGNS.format(sort="sent"), (TENANT, NOW - YEAR, NOW, 500, 0)),
        "history": (contact_engagement.HISTORY, (CONTACT_ID, NOW, 500, 0)),
    }
    return {
        name: [row[0] for row in await pool.fetch(f"EXPLAIN (COSTS off) {statement}", *values)]
        for name, (statement, values) in asked.items()
    }


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
