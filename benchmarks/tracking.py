"""Opens and clicks: how many a second, how long an answer takes, and what the database has to do with it.

One mailerd with two workers; readers on 64 kept connections, in this process, so that they and PostgreSQL share the two
cores with it. First as many hits as it takes; then 3,000 a second (each reader due by the clock, so that a slow answer
delays no other), with the database quiet, busy (another client writes and deletes all the time), and stopped (SIGSTOP).
Every hit is of another mail, four opens to one click. At the end the events are counted: each answer is one.

What readers wait for is more than what mailerd takes: they, PostgreSQL and the workers wait for the same two cores. So
beside the readers' times stand mailerd's own, from a parsed request to its answer (its histogram of HTTP requests,
whose bounds are coarse: "no more than"), and how long the workers were ready to run and had no core
(`/proc/PID/schedstat`).
"""

import asyncio
import os
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import cast

import uvloop

from benchmarks import machine
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from mailerd.db import Pool, connect_pool
from mailerd.db.embedded import running_url
from mailerd.intake.credentials import CredentialStore
from mailerd.wire.tracking import Tracking

CONNECTIONS = 64
RATE = 3_000  # hits a second
P99 = 5.0  # milliseconds
CONTACTS = 100_000
STOPPED = 8.0  # seconds; a worker without database for longer sends no mail, but still answers
TOLD = 120.0  # seconds until all are events
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
URL = "https://shop.example.com/products/shoes?utm_source=newsletter&utm_medium=email&utm_campaign=november&item="
CAMPAIGN = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by)
    VALUES ('default', 'bench', 1, 'a@b.example', 'bench') RETURNING id
"""
PEOPLE = f"""
    INSERT INTO contacts (tenant, email, address)
    SELECT 'default', 'c' || n || '@d.example', 'c' || n || '@d.example' FROM generate_series(1, {CONTACTS}) AS n
"""
FIRST = "SELECT min(id) FROM contacts"
EVENTS = """
    SELECT coalesce(sum(coalesce((data->>'times')::int, 1)), 0) FROM events
     WHERE type IN ('recipient.opened', 'recipient.clicked')
"""
OWN = re.compile(r'^mailerd_http_request_seconds_bucket\{[^}]*le="([^"]+)"[^}]*operation="tracking[^}]*\} (\S+)$', re.M)
BUSY = "CREATE TABLE IF NOT EXISTS busy (n bigint, t text)"
WRITE = "INSERT INTO busy SELECT n, repeat('x', 200) FROM generate_series(1, 2000) AS n"
DELETE = "DELETE FROM busy"


@dataclass
class Phase:
    """Milliseconds of one answer; CPU of mailerd and PostgreSQL, microseconds a hit.

    `own_p99` and `own_within`: of mailerd's own time, at most, and the share within `P99`; `coreless`: microseconds a
    hit in which a worker was ready and had no core.
    """

    name: str
    hits: int
    per_second: float
    cpu: float
    p50: float
    p99: float
    p999: float
    most: float
    own_p99: float
    own_within: float
    coreless: float


class Readers:
    """Asks for pixels and links of ever new mails, and holds every answer to what it should be."""

    def __init__(self, tokens: Tracking, campaign: int, first_contact: int) -> None:
        self._tokens = tokens
        self._campaign = campaign
        self._first = first_contact
        self._numbers = count(1)
        self._base = time.time_ns() // 1_000_000 << 21
        self.answered = 0

    def request(self) -> tuple[bytes, bytes]:
        """And how its answer begins."""
        n = next(self._numbers)
        ids = (self._base + n, self._campaign, self._first + n % CONTACTS)
        if n % 5:
            path, begins = f"/o/{self._tokens.open_token(*ids)}", b"HTTP/1.1 200"
        else:
            path, begins = f"/c/{self._tokens.click_token(*ids, n % 15, URL + str(n))}", b"HTTP/1.1 302"
        return f"GET {path} HTTP/1.1\r\nHost: click.example\r\nUser-Agent: {FIREFOX}\r\n\r\n".encode(), begins

    async def as_many_as_it_takes(self, port: int, seconds: float) -> list[float]:
        """Seconds of each answer."""
        end = time.monotonic() + seconds
        taken: list[float] = []

        async def one() -> None:
            connection = await _connect(port)
            while (begun := time.monotonic()) < end:
                await self._ask(connection)
                taken.append(time.monotonic() - begun)
            connection.close()

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        return taken

    async def at_a_rate(self, port: int, rate: float, seconds: float) -> list[float]:
        """Seconds from when each was due to its answer."""
        begin = time.monotonic() + 0.1
        taken: list[float] = []

        async def one(n: int) -> None:
            connection = await _connect(port)
            for turn in range(int(seconds * rate / CONNECTIONS)):
                due = begin + (turn * CONNECTIONS + n + random.random()) / rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                await self._ask(connection)
                taken.append(time.monotonic() - due)
            connection.close()

        await asyncio.gather(*(one(n) for n in range(CONNECTIONS)))
        return taken

    async def _ask(self, connection: "_Connection") -> None:
        request, begins = self.request()
        answer = await connection.ask(request)
        if not answer.startswith(begins):
            raise RuntimeError(f"answered {answer[:200]!r}")
        self.answered += 1


class _Connection(asyncio.Protocol):
    """One request at a time; an answer ends with its body, whose length we know."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        if len(body) >= length:
            answer, self._answer, self._data = self._answer, None, b""
            answer.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(exc or ConnectionError("closed without an answer"))

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _connect(port: int) -> _Connection:
    _, protocol = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    return protocol


def run(work: Path, results: Results, *, seconds: float) -> bool:
    """True when `RATE`, and `P99` of our own time, hold with the database busy, and each answer became one event."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    port = free_port()
    peer = Mailerd(work / "mailerd", http={"bind": f"127.0.0.1:{port}"}, log={"format": "json", "level": "warning"})
    try:
        peer.start(1, make_key(work)[0], SELECTOR)
        phases, answered, told = uvloop.run(_measure(peer, port, seconds))
    finally:
        peer.stop()
    for phase in phases:
        results.line(**asdict(phase))
    results.line(answered=answered, told=told)
    heads = ["database", "hits", "hits/s", "CPU µs", "p50 ms", "p99 ms", "p99.9 ms", "longest"]
    heads += ["own p99 ≤ ms", f"own within {P99:.0f} ms", "no core, µs"]
    rows = [
        [
            each.name,
            f"{each.hits:,}",
            f"{each.per_second:,.0f}",
            *(f"{ms:.2f}" for ms in (each.cpu, each.p50, each.p99, each.p999, each.most, each.own_p99)),
            f"{100 * each.own_within:.3f} %",
            f"{each.coreless:.0f}",
        ]
        for each in phases
    ]
    results.table("Opens and clicks, two workers, readers on the same two cores", heads, rows)
    results.text(f"{answered:,} answers, {told:,} of them told as events.")
    busy = next(each for each in phases if each.name == "busy")
    return busy.per_second > 0.98 * RATE and busy.own_p99 <= P99 and told == answered


async def _measure(peer: Mailerd, port: int, seconds: float) -> tuple[list[Phase], int, int]:
    url = running_url(peer.data_dir)
    assert url is not None
    pool = await connect_pool(url, max=3)
    try:
        campaign = await pool.fetchval(CAMPAIGN)
        await pool.execute(PEOPLE, timeout=None)
        await pool.execute(BUSY)
        readers = Readers(Tracking(await CredentialStore(pool).secret()), campaign, await pool.fetchval(FIRST))
        await readers.at_a_rate(port, RATE / 3, 2.0)  # to warm up
        phases = [
            await _phase(peer, port, "quiet, as many as it takes", readers.as_many_as_it_takes(port, seconds)),
            await _phase(peer, port, "quiet", readers.at_a_rate(port, RATE, seconds)),
        ]
        async with _busy(pool):
            phases.append(await _phase(peer, port, "busy", readers.at_a_rate(port, RATE, seconds)))
        with _stopped(peer):
            phases.append(await _phase(peer, port, "stopped", readers.at_a_rate(port, RATE, STOPPED)))
        return phases, readers.answered, await _told(pool, readers.answered)
    finally:
        pool.terminate()


async def _phase(peer: Mailerd, port: int, name: str, work: Awaitable[list[float]]) -> Phase:
    own, coreless = await asyncio.to_thread(_own_times, port), _coreless(peer)
    cpu, begun = peer.group.cpu(), time.monotonic()
    taken = await work
    elapsed, cpu = time.monotonic() - begun, peer.group.cpu() - cpu
    coreless = _coreless(peer) - coreless
    own = await asyncio.to_thread(_own_times, port) - own
    answered = own[float("inf")]
    ordered = sorted(1_000 * each for each in taken)
    p50, p99, p999 = (ordered[int(share * len(ordered))] for share in (0.5, 0.99, 0.999))
    return Phase(
        name,
        len(taken),
        len(taken) / elapsed,
        1e6 * cpu / len(taken),
        p50,
        p99,
        p999,
        ordered[-1],
        own_p99=1_000 * min(bound for bound, count in own.items() if count >= 0.99 * answered),
        own_within=own[P99 / 1_000] / max(1, answered),
        coreless=1e6 * coreless / len(taken),
    )


def _own_times(port: int) -> Counter[float]:
    """How many pixels and links were answered within so many seconds, by all workers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    found: Counter[float] = Counter()
    for bound, answers in OWN.findall(text):
        found[float(bound)] += int(float(answers))
    return found


def _coreless(peer: Mailerd) -> float:
    """Seconds that the workers were ready to run and had no core."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in peer.workers()) / 1e9


@asynccontextmanager
async def _busy(pool: Pool) -> AsyncIterator[None]:
    """Somebody writes all the time, about half of what one backend can."""

    async def write() -> None:
        while True:
            begun = time.monotonic()
            await pool.execute(WRITE)
            await pool.execute(DELETE)
            await asyncio.sleep(time.monotonic() - begun)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _stopped:  # noqa: N801 - a context manager
    """Every process of PostgreSQL stands still."""

    def __init__(self, peer: Mailerd) -> None:
        self._pids = [pid for pid in peer.group.pids() if b"postgres" in _command(pid)]
        if not self._pids:
            raise RuntimeError("no PostgreSQL found")

    def __enter__(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    except OSError:
        return b""


async def _told(pool: Pool, wanted: int) -> int:
    """How many hits have become events, when no more come."""
    deadline = time.monotonic() + TOLD
    told = 0
    while told < wanted and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL enable_seqscan = on")
            told = await connection.fetchval(EVENTS)
    return told
