"""How long a file of suppressions takes to go in, and to go in once more; as `mailerd suppressions import` reads it."""

import io
import time
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from benchmarks import machine
from benchmarks.report import Results, machine_line
from mailerd.config import Database
from mailerd.db import connect_pool, connected
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import migrate
from mailerd.queue.suppression_csv import read_rows
from mailerd.queue.suppression_files import Defaults, SuppressionFileStore

DOMAINS = 5_000
SCATTER = 0x9E3779B97F4A7C15  # an odd number: addresses that differ, in no order
MOST = 60.0  # seconds


def run(work: Path, results: Results, *, rows: int) -> bool:
    """True when either takes less than `MOST` seconds."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    measured = uvloop.run(_measure(work, rows))
    for name, seconds, added in measured:
        results.line(file=name, rows=rows, seconds=round(seconds, 1), added=added)
    table = [[name, f"{seconds:.1f}", f"{rows / seconds:,.0f}", f"{added:,}"] for name, seconds, added in measured]
    results.table(f"A file of {rows:,} suppressions", ["", "seconds", "lines a second", "added"], table)
    return all(seconds < MOST for _, seconds, _ in measured)


async def _measure(work: Path, rows: int) -> list[tuple[str, float, int]]:
    server = EmbeddedPostgres(work / "imports", Database())
    await server.start()
    try:
        async with connected(server.url) as connection:
            await migrate(connection)
        async with await connect_pool(server.url, min=1, max=2) as pool:
            store, text = SuppressionFileStore(pool), _text(rows)
            return [(name, *await _import(store, text)) for name in ("new", "the same again")]
    finally:
        await server.stop()


def _text(rows: int) -> str:
    lines = (
        f"user{n * SCATTER % 2**40:x}.{n}@example{n % DOMAINS}.com,bounce,2026-01-01T00:00:00Z" for n in range(rows)
    )
    return "email,reason,created_at\r\n" + "\r\n".join(lines)


async def _import(store: SuppressionFileStore, text: str) -> tuple[float, int]:
    begun, added = time.monotonic(), 0
    rows = read_rows(io.StringIO(text, newline=""))
    async with aclosing(store.import_rows(rows, Defaults("default", datetime.now(UTC), streams=()))) as parts:
        async for progress in parts:
            added = progress.added
    return time.monotonic() - begun, added
