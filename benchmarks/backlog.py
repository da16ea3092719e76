"""Delivery out of the database: does a long queue make each message dearer?

The queue is filled by SMTP while nothing listens where the mail should go. Then mailerd stops, a sink starts there,
mailerd starts again, and everything is made due at once, as after an outage of the destination.
"""

import subprocess
import time
from pathlib import Path

import asyncpg
import uvloop

from benchmarks import chart, machine
from benchmarks.load import Load, watched_memory
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink
from mailerd.db.embedded import running_url

PATIENCE = 900.0  # seconds
SIZE = 2_048  # bytes of each body
# Due but blocked, and without the garbage that making them due leaves: then the start is one small statement.
BLOCK = "UPDATE queues SET blocked_until = now() + interval '1 hour'"
ALL_DUE = "UPDATE recipients SET due_at = now() WHERE owner IS NULL"
GO = "UPDATE queues SET next_due = now(), blocked_until = NULL, reason = ''"
DISK = "SELECT pg_database_size(current_database())"


def run(work: Path, results: Results, *, sizes: list[int]) -> None:
    """Each length of the queue on a database of its own."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    heads = [
        "queued",
        "filled/s",
        "delivered/s",
        "CPU µs/msg",
        "first after ms",
        "PSS MB",
        "disk MB full, drained",
        "lost",
        "twice",
    ]
    rows, rates = [], []
    for queued in sizes:
        figures = _drain(work, queued)
        results.line(**figures)
        names = ("queued", "fill_rate", "rate", "cpu_us", "first_ms", "memory_mb", "disk_mb", "missing", "duplicates")
        rows.append([str(figures[name]) for name in names])
        rates.append((f"{queued:,} queued", [("mailerd", float(str(figures["rate"])))]))
    results.table("Delivery out of a full queue, one domain", heads, rows)
    results.picture(chart.page([chart.bars("Delivered a second", rates)]))


def _drain(work: Path, queued: int) -> dict[str, object]:
    port = free_port()
    peer = Mailerd(work / f"mailerd-{queued}")
    sink = None
    try:
        peer.start(port, make_key(work)[0], SELECTOR)
        fill_rate = _fill(peer, Load(size=SIZE, count=queued))
        peer.halt()
        sink = Sink([], work, port)
        sink.begin("r0x")
        peer.launch()
        full = _make_due(peer)
        with watched_memory(peer.group) as peak:
            cpu, begun = peer.group.cpu(), time.monotonic()
            _execute(peer, GO)
            first = sink.wait(1, PATIENCE)["last"]
            report = sink.wait(queued, PATIENCE)
        used = peer.group.cpu() - cpu
        time.sleep(2.0)
        report, drained = sink.report(), _execute(peer, DISK)
    finally:
        if sink is not None:
            sink.close()
        peer.stop()
    return {
        "queued": queued,
        "fill_rate": round(fill_rate),
        "rate": round(queued / (report["last"] - first)),
        "cpu_us": round(used / queued * 1e6),
        "first_ms": round((first - begun) * 1e3),
        "memory_mb": round(max(peak) / 1e6),
        "disk_mb": f"{full / 1e6:.0f}, {drained / 1e6:.0f}",
        "missing": queued - report["unique"],
        "duplicates": report["duplicates"],
    }


def _fill(peer: Mailerd, load: Load) -> float:
    """Messages accepted a second; nothing can be delivered meanwhile."""
    begun = time.monotonic()
    words = load.command(peer.port(signed=False), "r0x")
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)
    return load.count / (time.monotonic() - begun)


def _make_due(peer: Mailerd) -> int:
    """Everything is due, nothing may go yet; bytes of the database."""
    _execute(peer, BLOCK)
    _execute(peer, ALL_DUE)
    _execute(peer, "VACUUM ANALYZE recipients")
    return _execute(peer, DISK)


def _execute(peer: Mailerd, statement: str) -> int:
    """The first value, if any, of a statement in the daemon's database."""

    async def ask() -> int:
        url = running_url(peer.data_dir)
        assert url is not None, "mailerd runs"
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement) or 0
        finally:
            await connection.close()

    return uvloop.run(ask())
