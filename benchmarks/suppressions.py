"""What it costs to ask whether an address may be mailed, with very many that may not.

The table holds the rows given, of a thousand domains and ten tenants; addresses are asked for as submissions do, in
batches as they gather, nearly all of them in vain. CPU is that of our process and of PostgreSQL's backend.
"""

import random
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import machine
from benchmarks.cgroup import TICKS
from benchmarks.report import Results, machine_line
from mailerd.config import Database
from mailerd.db import Pool, connect_pool, connected
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import migrate
from mailerd.queue.suppression import SuppressionStore, Wanted

DOMAINS = 1_000
CHUNK = 500_000  # rows of one transaction
BATCHES = (1, 10, 100, 500)
ASKED = 20_000  # addresses of one round
SUPPRESSED = 0.02  # of those asked for
FILL = f"""
    INSERT INTO suppressions (address, tenant, reason, source, created_at)
    SELECT 'user' || md5(n::text) || '@d' || n % {DOMAINS} || '.example', 't' || n % 10, 'bounce', 'import', now()
      FROM generate_series($1::bigint, $2::bigint) AS n
"""
SOME = """
    SELECT address, tenant FROM suppressions
     WHERE id IN (SELECT (random() * $1)::bigint + 1 FROM generate_series(1, $2::int))
"""
INDEX = "SELECT pg_relation_size('suppressions_of')"


@dataclass
class Round:
    """Microseconds of one address."""

    batch: int
    wall_us: float
    our_cpu_us: float
    postgres_cpu_us: float


def run(work: Path, results: Results, *, rows: int, rounds: int) -> bool:
    """True when one address costs less than 50 µs in batches of ten and more."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    measured, facts = uvloop.run(_measure(work, rows, rounds))
    results.line(**facts)
    table = []
    good = True
    for batch in BATCHES:
        mine = [each for each in measured if each.batch == batch]
        for each in mine:
            results.line(**asdict(each))
        wall, ours, theirs = (median(getattr(each, name) for each in mine) for name in list(asdict(mine[0]))[1:])
        good &= batch < 10 or ours + theirs < 50
        table.append([f"{batch}", f"{wall:.0f}", f"{ours:.1f}", f"{theirs:.1f}"])
    title = f"Asking for an address among {rows:,} suppressions (index of {facts['index_mb']:.0f} MB)"
    heads = ["addresses of one query", "µs an address", "of our CPU", "of PostgreSQL's"]
    results.table(title, heads, table)
    return good


async def _measure(work: Path, rows: int, rounds: int) -> tuple[list[Round], dict[str, float]]:
    server = EmbeddedPostgres(work / "suppressions", Database())
    await server.start()
    try:
        begun = time.monotonic()
        async with connected(server.url) as connection:
            await migrate(connection)
            for first in range(1, rows + 1, CHUNK):
                await connection.execute(FILL, first, min(first + CHUNK - 1, rows), timeout=None)
            await connection.execute("VACUUM ANALYZE suppressions", timeout=None)
        filled = time.monotonic() - begun
        pool = await connect_pool(server.url, min=1, max=1)
        try:
            facts = {"rows": rows, "fill_s": round(filled, 1), "index_mb": await pool.fetchval(INDEX) / 1e6}
            known = [tuple(row) for row in await pool.fetch(SOME, rows - 1, ASKED)]
            measured = [await _round(pool, batch, known) for _ in range(rounds) for batch in BATCHES]
        finally:
            await pool.close()
    finally:
        await server.stop()
    return measured, facts


async def _round(pool: Pool, batch: int, known: list[tuple[str, ...]]) -> Round:
    store = SuppressionStore(pool)
    backend = await pool.fetchval("SELECT pg_backend_pid()")
    calls = max(40, (ASKED if batch > 1 else ASKED // 5) // batch)
    questions = [[_wanted(known) for _ in range(batch)] for _ in range(calls)]
    now = datetime.now(UTC)
    for question in questions[:10]:
        await store.check(question, now)
    theirs, ours, begun = _cpu(backend), time.process_time(), time.perf_counter()
    for question in questions:
        await store.check(question, now)
    each = 1e6 / calls / batch
    wall, ours = (time.perf_counter() - begun) * each, (time.process_time() - ours) * each
    return Round(batch, wall, ours, (_cpu(backend) - theirs) * each)


def _wanted(known: list[tuple[str, ...]]) -> Wanted:
    if random.random() < SUPPRESSED:
        address, tenant = random.choice(known)
        return Wanted(address, tenant, "marketing")
    number = random.randrange(10**12)
    return Wanted(f"user{number:032x}@d{number % (2 * DOMAINS)}.example", f"t{number % 10}", "marketing")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
