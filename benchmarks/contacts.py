"""How long a CSV of contacts takes to go in, and to go in once more, as the API takes it: with fields and one list.

Each row has an address, two names, a phone number, two custom fields (one typed) and goes on a list. The file is kept
first (`received`), then imported. Memory is the largest of our process over the whole run.
"""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import machine
from benchmarks.cgroup import TICKS
from benchmarks.report import Results, machine_line
from mailerd.campaigns.contacts.imports.importer import Importer
from mailerd.campaigns.contacts.imports.receiving import Receiver, Request
from mailerd.campaigns.contacts.imports.store import Import, ImportStore
from mailerd.campaigns.contacts.imports.values import Settings
from mailerd.config import Database
from mailerd.db import Pool, connect_pool, connected
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import migrate
from mailerd.queue.suppression import SuppressionStore
from mailerd.worker import tame_collector

DOMAINS = 5_000
SCATTER = 0x9E3779B97F4A7C15  # an odd number: addresses that differ, in no order
LEAST = 30_000  # rows a second
PIECE = 65_536  # bytes that come in at once
HEADER = "email,first_name,last_name,phone,age,plan\r\n"
SETTINGS = Settings(mapping={"age": "custom_fields.age", "plan": "custom_fields.plan"})
TENANT = "default"


class Round(NamedTuple):
    """Seconds; CPU is that of the importing."""

    name: str
    received: float
    seconds: float
    our_cpu: float
    postgres_cpu: float
    made: Import


def run(work: Path, results: Results, *, rows: int) -> bool:
    """True when new contacts go in as fast as `LEAST`, all of them."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    tame_collector()  # as workers do
    measured = uvloop.run(_measure(work, rows))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = []
    for each in measured:
        rate, counts = rows / each.seconds, each.made.counts
        ours, theirs = each.our_cpu / rows * 1e6, each.postgres_cpu / rows * 1e6
        results.line(
            file=each.name,
            rows=rows,
            bytes=each.made.bytes,
            received_s=round(each.received, 1),
            seconds=round(each.seconds, 1),
            rate=round(rate),
            our_cpu_us=round(ours, 1),
            postgres_cpu_us=round(theirs, 1),
            created=counts.created,
            updated=counts.updated,
            memory_mb=round(memory),
        )
        cells = [f"{each.received:.1f}", f"{each.seconds:.1f}", f"{rate:,.0f}", f"{ours:.1f}", f"{theirs:.1f}"]
        table.append([each.name, *cells, f"{counts.created:,}", f"{counts.updated:,}"])
    heads = [
        "",
        "received, s",
        "imported, s",
        "rows a second",
        "µs of our CPU",
        "of PostgreSQL's",
        "created",
        "updated",
    ]
    results.table(f"A CSV of {rows:,} contacts onto a list ({memory:.0f} MB of memory)", heads, table)
    first = measured[0]
    return rows / first.seconds >= LEAST and first.made.counts.created == rows


async def _measure(work: Path, rows: int) -> list[Round]:
    server = EmbeddedPostgres(work / "contacts", Database())
    await server.start()
    try:
        async with connected(server.url) as connection:
            await migrate(connection)
            await connection.execute(
                "INSERT INTO custom_field_definitions (tenant, name, type) VALUES ($1, 'age', 'number')", TENANT
            )
            await connection.execute(
                "INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, 'news', 'benchmark')", TENANT
            )
        async with await connect_pool(server.url, min=1, max=3) as pool:
            importer = Importer(server.url, pool, SuppressionStore(pool), b"secret")
            files = (("new", 0), ("the same again", 0), ("every plan another", 1))
            return [await _import(pool, importer, rows, name, turn) for name, turn in files]
    finally:
        await server.stop()


async def _import(pool: Pool, importer: Importer, rows: int, name: str, turn: int) -> Round:
    store = ImportStore(pool)
    begun = time.monotonic()
    asked = Request(tenant=TENANT, list_id=1, settings=SETTINGS, created_by="benchmark")
    async with await Receiver.begin(store, asked, 1 << 40) as receiver:
        for piece in _pieces(rows, turn):
            await receiver.feed(piece)
        made = await receiver.finish()
    received = time.monotonic() - begun
    postmaster = int(_stat(Path(f"/proc/{await pool.fetchval('SELECT pg_backend_pid()')}/stat"))[1])
    begun, ours, theirs = time.monotonic(), time.process_time(), _cpu(postmaster)
    await importer.advance(made.id)
    seconds, ours, theirs = time.monotonic() - begun, time.process_time() - ours, _cpu(postmaster) - theirs
    done = await store.get(made.id, TENANT)
    assert done is not None
    return Round(name, received, seconds, ours, theirs, done)


def _cpu(postmaster: int) -> float:
    """Seconds of CPU of the server and its children, those that have ended too."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = _stat(path)
        except OSError:
            continue
        if int(path.parent.name) == postmaster:
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == postmaster:
            ticks += sum(map(int, fields[11:13]))
    return ticks / TICKS


def _stat(path: Path) -> list[str]:
    """The fields from the third on: proc(5)."""
    return path.read_text().rpartition(")")[2].split()


def _pieces(rows: int, turn: int) -> Iterator[bytes]:
    piece = HEADER
    for n in range(rows):
        user = f"user{n * SCATTER % 2**40:x}.{n}@example{n % DOMAINS}.com"
        piece += f"{user},Ann{n % 97},Lee{n % 997},+49 30 {n},{18 + n % 80},plan{(n + turn) % 5}\r\n"
        if len(piece) >= PIECE:
            yield piece.encode()
            piece = ""
    yield piece.encode()
