"""How many contacts fit a segment, among very many: how fast that is told and how near, counted, and read in ranges.

All contacts are of one tenant. What they have is drawn by hash, so that neighbours differ, except `block`, which is one
import of alike contacts. The truth is counted by PostgreSQL alone, but for the segment of 200 conditions: that would
take half an hour.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import uvloop

from benchmarks import machine
from benchmarks.filling import Steps, bare
from benchmarks.report import Results, machine_line
from mailerd.campaigns.audience import Audience
from mailerd.campaigns.audience_store import MANY_ROWS, AudienceStore, select
from mailerd.campaigns.segments.compiling import compile_condition
from mailerd.campaigns.segments.counting import CountStore, of_condition
from mailerd.campaigns.segments.references import ReferenceStore
from mailerd.config import Database
from mailerd.db import Connection, Pool, connect_pool, connected
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import migrate

TENANT = "shop"
CHUNK = 1_000_000
RANGE = 50_000  # candidates, as the ledger is written
TRUTH = 120  # seconds
TOLD = 1.0  # seconds an estimate may take
WRITTEN = 50_000  # rows of a ledger a second, at least
FILL = f"""
    INSERT INTO contacts (tenant, email, address, first_name, custom_fields, created_at)
    SELECT '{TENANT}', 'user' || n || '@d' || n % 1000 || '.example', 'user' || n || '@d' || n % 1000 || '.example',
           'Ann', jsonb_build_object('half', abs(hashint8(n)) % 2 = 0, 'score', abs(hashint8(n + 1)) % 100,
                                     'rare', abs(hashint8(n + 2)) % 10000, 'block', n / 100000,
                                     'city', 'City ' || abs(hashint8(n + 3)) % 500),
           now() - make_interval(mins => (abs(hashint8(n + 4)) % 1000000)::int)
      FROM generate_series($1::bigint, $2::bigint) AS n
"""
TAGS = "INSERT INTO tags (tenant, name) VALUES ('shop', 'half'), ('shop', 'one'), ('shop', 'rare')"
TAGGED = """
    INSERT INTO contact_tags (contact_id, tag_id) SELECT id, $1 FROM contacts WHERE abs(hashint8(id + $1)) % 10000 < $2
"""
LISTS = "INSERT INTO contact_lists (tenant, name, created_by) VALUES ('shop', $1, 'bench') RETURNING id"
LISTED = """
    INSERT INTO list_contacts (list_id, contact_id, source)
    SELECT $1, id, 'bench' FROM contacts WHERE abs(hashint8(id + $1 + 100)) % 10000 < $2
"""
OPENED = """
    INSERT INTO engagements (at, contact_id, campaign_id, message_id, kind, machine)
    SELECT now() - make_interval(hours => (abs(hashint8(id + 7)) % 2000)::int), id, 1, id, 1,
           abs(hashint8(id + 8)) % 3 = 0
      FROM contacts WHERE abs(hashint8(id + 9)) % 10 < 2
"""
SUPPRESSED = """
    INSERT INTO suppressions (address, tenant, reason, source, created_at)
    SELECT address, tenant, 'bounce', 'bench', now() FROM contacts WHERE abs(hashint8(id + 10)) % 100 = 0
"""
WRITE = (
    "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at) SELECT $1, a.contact_id, now() FROM ({sql}) AS a"
)
HALF = {"field": "custom_fields.half", "operator": "=", "value": True}
ONE = {"field": "custom_fields.score", "operator": "=", "value": 7}
RARE = {"field": "custom_fields.rare", "operator": "=", "value": 7}


def tagged(name: str) -> dict[str, Any]:
    return {"field": "tags", "operator": "contains", "value": name}


TREES: dict[str, dict[str, Any]] = {
    "field, 50 %": HALF,
    "field, 1 %": ONE,
    "field, 0.01 %": RARE,
    "field, 1 %, one block": {"field": "custom_fields.block", "operator": "=", "value": 17},
    "tag, 50 %": tagged("half"),
    "tag, 1 %": tagged("one"),
    "tag, 0.01 %": tagged("rare"),
    "tag 1 % and field 1 %": {"and": [tagged("one"), ONE]},
    "opened in 30 days": {"engagement": "opened", "within_days": 30},
    "never opened, active": {
        "and": [{"engagement": "not_opened"}, {"field": "status", "operator": "=", "value": "active"}]
    },
    "city contains 7, or tag": {
        "or": [{"field": "custom_fields.city", "operator": "contains", "value": "7"}, tagged("one")]
    },
    "200 conditions": {
        "or": [
            {"and": [{"field": "custom_fields.score", "operator": "=", "value": n}, tagged("half")]} for n in range(50)
        ]
        + [{"and": [{"engagement": "opened", "at_least": n + 1}, {"not": tagged("rare")}]} for n in range(50)]
    },
}


@dataclass
class Told:
    """Seconds; `off` is of the truth; `good` of the runs had it between their limits."""

    name: str
    truth: int | None  # it took too long to be counted
    estimate: int
    low: int
    high: int
    method: str
    sampled: int
    first_s: float
    median_s: float
    worst_s: float
    off: float | None
    good: float | None


def run(work: Path, results: Results, *, rows: int, rounds: int) -> bool:
    """True when all was told in time, and the ledger is written fast enough."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    told, counted, written, facts = uvloop.run(_measure(work, rows, rounds))
    results.line(**facts)
    for each in told:
        results.line(**asdict(each))
    results.line(counted=counted, written=written)
    table = [
        [
            each.name,
            "" if each.truth is None else f"{each.truth:,}",
            f"{each.estimate:,}",
            f"{each.low:,} to {each.high:,}",
            each.method,
            f"{each.sampled:,}",
            f"{each.first_s:.2f}",
            f"{each.median_s:.2f}",
            f"{each.worst_s:.2f}",
            "" if each.good is None else f"{100 * each.good:.0f} %",
        ]
        for each in told
    ]
    heads = ["segment", "truth", "estimate", "95 %", "how", "looked at", "first s", "median s", "worst s", "within"]
    results.table(f"Estimates among {rows:,} contacts", heads, table)
    heads = ["segment", "contacts", "s", "looked at a second"]
    lines = [[name, f"{count:,}", f"{seconds:.1f}", f"{rows / seconds:,.0f}"] for name, count, seconds in counted]
    results.table("Exact counts", heads, lines)
    heads = ["audience", "rows", "s", "rows/s"]
    lines = [[name, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}"] for name, count, seconds in written]
    results.table(f"Audiences written into the ledger, {RANGE:,} candidates a range", heads, lines)
    return max(each.worst_s for each in told) < TOLD and all(
        count / seconds >= WRITTEN for _, count, seconds in written
    )


async def _measure(work: Path, rows: int, rounds: int) -> tuple[list[Told], list[Any], list[Any], dict[str, Any]]:
    server = EmbeddedPostgres(work / "segments", Database())
    await server.start()
    try:
        begun = time.monotonic()
        async with connected(server.url) as connection:
            await migrate(connection)
            lists = await _fill(connection, rows)
            size = await connection.fetchval("SELECT pg_total_relation_size('contacts')")
        facts = {"rows": rows, "fill_s": round(time.monotonic() - begun, 1), "contacts_mb": size / 1e6}
        pool = await connect_pool(server.url, min=1, max=2)
        try:
            steps, told = Steps(), []
            for name, tree in TREES.items():
                steps.say(f"estimate: {name}")
                told.append(await _told(pool, server.url, name, tree, rounds))
            steps.say("exact counts, then ledgers")
            counted = [await _counted(pool, name) for name in ("field, 1 %", "tag, 1 %", "never opened, active")]
            written = await _written(pool, lists)
        finally:
            await pool.close()
    finally:
        await server.stop()
    return told, counted, written, facts


async def _fill(connection: Connection, rows: int) -> list[int]:
    steps = Steps()
    lists = []
    await connection.execute("SET jit = off")
    tables = ("contacts", "contact_tags", "list_contacts", "engagements", "suppressions")
    async with bare(connection, *tables, steps=steps):
        for first in range(1, rows + 1, CHUNK):
            steps.say(f"contacts, {first:,} and up")
            await connection.execute(FILL, first, min(first + CHUNK - 1, rows), timeout=None)
        await connection.execute(TAGS)
        for tag, share in ((1, 5000), (2, 100), (3, 1)):
            steps.say(f"tag {tag}")
            await connection.execute(TAGGED, tag, share, timeout=None)
        for name, share in (("half", 5000), ("tenth", 1000)):
            steps.say(f"list {name}")
            list_id = await connection.fetchval(LISTS, name)
            await connection.execute(LISTED, list_id, share, timeout=None)
            lists.append(list_id)
        steps.say("opens and suppressions")
        await connection.execute(OPENED, timeout=None)
        await connection.execute(SUPPRESSED, timeout=None)
    steps.say("VACUUM")
    await connection.execute("VACUUM (ANALYZE)", timeout=None)
    steps.say("filled")
    return lists


async def _told(pool: Pool, url: str, name: str, tree: dict[str, Any], rounds: int) -> Told:
    now = datetime.now(UTC)
    condition = await ReferenceStore(pool).condition(TENANT, tree)
    store, wanted = CountStore(pool), of_condition(TENANT, condition, now)
    found, seconds = [], []
    for _ in range(max(5, 5 * rounds)):
        begun = time.monotonic()
        found.append(await store.estimate(wanted))
        seconds.append(time.monotonic() - begun)
    compiled = compile_condition(condition, tenant=TENANT, now=now, first=2)
    async with connected(url) as connection:
        await connection.execute(f"SET statement_timeout = '{TRUTH}s'")
        sql = f"SELECT count(*) FROM contacts AS c WHERE tenant = $1 AND ({compiled.sql})"
        truth = None
        with suppress(asyncpg.QueryCanceledError):
            truth = await connection.fetchval(sql, TENANT, *compiled.parameters, timeout=None)
    middle = sorted(found, key=lambda each: each.estimate)[len(found) // 2]
    good = off = None
    if truth is not None:
        good = sum(each.low <= truth <= each.high for each in found) / len(found)
        off = median(abs(each.estimate - truth) / max(1, truth) for each in found)
    return Told(
        name,
        truth,
        **asdict(middle),
        first_s=seconds[0],
        median_s=median(seconds),
        worst_s=max(seconds),
        off=off,
        good=good,
    )


async def _counted(pool: Pool, name: str) -> tuple[str, int, float]:
    condition = await ReferenceStore(pool).condition(TENANT, TREES[name])
    store, wanted = CountStore(pool), of_condition(TENANT, condition, datetime.now(UTC))
    begun, after, counted = time.monotonic(), 0, 0
    while True:
        progress = await store.count(wanted, after=after, counted=counted, seconds=8.0)
        if progress.after is None:
            return name, progress.counted, time.monotonic() - begun
        after, counted = progress.after, progress.counted


async def _written(pool: Pool, lists: list[int]) -> list[tuple[str, int, float]]:
    segment = {"and": [tagged("half"), {"engagement": "not_opened", "within_days": 30}]}
    audiences = {
        "one list of a tenth": Audience(list_ids=lists[1:]),
        "two lists": Audience(list_ids=lists),
        "conditions, less a list": Audience(conditions=segment, exclude_list_ids=lists[1:]),
    }
    return [
        await _write(pool, number, name, audience) for number, (name, audience) in enumerate(audiences.items(), start=1)
    ]


async def _write(pool: Pool, number: int, name: str, audience: Audience) -> tuple[str, int, float]:
    store, now = AudienceStore(pool), datetime.now(UTC)
    begun, after, rows = time.monotonic(), 0, 0
    resolved = await store.resolve(TENANT, audience)
    while (end := await store.next_end(resolved, after, RANGE)) is not None:
        compiled = select(resolved, after, end, now=now, first=2)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(MANY_ROWS)
            done = await connection.execute(WRITE.format(sql=compiled.sql), number, *compiled.parameters)
        rows += int(done.rpartition(" ")[2])
        after = end
        if rows >= 1_000_000:
            break
    return name, rows, time.monotonic() - begun
