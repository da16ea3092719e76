"""Bounces that come in: how many a second, what each costs, and whether the mail that goes out meanwhile feels it.

A real daemon has delivered mail with signed return paths. Then bounces of 5 KB about it come through its inbound
listener: as many as can be, and beside mail at 5,000 a minute.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import machine
from benchmarks.cgroup import accounting
from benchmarks.load import Bench, Load
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key
from mailerd.db import connect_pool
from mailerd.db.embedded import running_url
from mailerd.wire.tokens import Tokens

SIZE = 5_000  # bytes of a report
CONNECTIONS = 64
PACE = 5_000 / 60  # reports a second beside mail
DOMAIN = "bounce.plain.example"
PATIENCE = 30.0  # seconds of one conversation
TICKS = os.sysconf("SC_CLK_TCK")
DELIVERED = """
    SELECT message_id, n, address FROM events WHERE type = 'recipient.delivered' ORDER BY at DESC LIMIT $1
"""
BOUNCED = "SELECT count(*) FROM events WHERE type = 'recipient.bounced' AND data ? 'late'"
REPORT = """\
From: MAILER-DAEMON@mx.sink.example (Mail Delivery System)
To: {path}
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=_bench"

--=_bench
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mx.sink.example.

I'm sorry to have to inform you that your message could not be delivered to one or more recipients.

<{address}>: host mx.sink.example said: 550 5.1.1 <{address}>: Recipient address rejected: User unknown

--=_bench
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.sink.example
X-Queue-ID: 4FzQ2m1rzkz1

Final-Recipient: rfc822; {address}
Original-Recipient: rfc822;{address}
Action: failed
Status: 5.1.1
Remote-MTA: dns; inner.sink.example
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: Recipient address rejected: User unknown

--=_bench
Content-Type: message/rfc822

Return-Path: <{path}>
From: bench@plain.example
To: {address}
Subject: hello

{text}
--=_bench--
"""


@dataclass(frozen=True)
class Flood:
    """Reports alone. CPU in microseconds a report, of the daemon with its PostgreSQL and of PostgreSQL alone."""

    reports: int
    rate: float
    cpu_us: float
    postgres_us: float


@dataclass(frozen=True)
class Beside:
    """Mail with and without reports beside it: messages a second, and reports a second that came in meanwhile."""

    alone: float
    beside: float
    reports: float


class System:
    """One mailerd that signs return paths, and its sink."""

    def __init__(self, work: Path) -> None:
        self.directory = work / "inbound"
        self.directory.mkdir(parents=True)
        self.port = free_port()
        listeners = [
            {"bind": "127.0.0.1:0", "starttls": "off", "auth": "trusted", "trusted": ["127.0.0.0/8"]},
            {"bind": f"127.0.0.1:{self.port}", "kind": "inbound", "starttls": "off"},
        ]
        self.peer = Mailerd(
            self.directory / "mailerd",
            listeners=listeners,
            domains={"plain.example": {"return_path": DOMAIN}},
            streams={"transactional": {"forward_bounces": False}, "marketing": {}},
        )
        self._groups = accounting("source"), accounting("sink")
        self.bench = Bench(self.directory, *self._groups)
        self.peer.start(self.bench.sink.port, make_key(self.directory)[0], SELECTOR)

    def close(self) -> None:
        self.peer.stop()
        self.bench.close()
        for group in self._groups:
            group.close()

    async def reports(self, count: int) -> list[tuple[str, bytes]]:
        """Return path and content of a bounce for each of the last `count` deliveries."""
        url = running_url(self.peer.data_dir)
        assert url is not None
        pool = await connect_pool(url, max=1)
        try:
            secret = await pool.fetchval("SELECT secret FROM installation")
            tokens = Tokens(secret, "return-path")
            rows = await pool.fetch(DELIVERED, count)
        finally:
            await pool.close()
        return [_report(f"b-{tokens.make(row['message_id'], row['n'])}@{DOMAIN}", row["address"]) for row in rows]

    async def bounced(self) -> int:
        url = running_url(self.peer.data_dir)
        assert url is not None
        pool = await connect_pool(url, max=1)
        try:
            return int(await pool.fetchval(BOUNCED))
        finally:
            await pool.close()

    def cpu(self) -> tuple[float, float]:
        """Seconds of all processes, and of PostgreSQL's."""
        return self.peer.group.cpu(), sum(_postgres_cpu(self.peer.group.pids()))


def _report(path: str, address: str) -> tuple[str, bytes]:
    text = REPORT.format(path=path, address=address, text="x" * 70)
    filling = "x" * 70 + "\n"
    more = filling * ((SIZE - len(text)) // len(filling))
    whole = text.replace("x" * 70 + "\n--=_bench--", "x" * 70 + "\n" + more + "--=_bench--")
    return path, whole.replace("\n", "\r\n").encode()


def _postgres_cpu(pids: Sequence[int]) -> Iterator[float]:
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        if name.startswith("postgres"):
            yield (int(fields[11]) + int(fields[12])) / TICKS


async def send(port: int, reports: Sequence[tuple[str, bytes]], *, rate: float = 0.0) -> float:
    """Hand all of them in over some connections, at most so many a second; seconds that took. All get 250."""
    waiting = iter(enumerate(reports))
    begun = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await _say(reader, writer, b"", b"220")
        await _say(reader, writer, b"EHLO mx.sink.example\r\n", b"250")
        for number, (path, content) in waiting:
            if rate and (early := begun + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            await _say(reader, writer, b"MAIL FROM:<>\r\n", b"250")
            await _say(reader, writer, f"RCPT TO:<{path}>\r\n".encode(), b"250")
            await _say(reader, writer, b"DATA\r\n", b"354")
            await _say(reader, writer, content + b".\r\n", b"250")
        writer.write(b"QUIT\r\n")
        writer.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(min(CONNECTIONS, len(reports))):
            clients.create_task(client())
    return time.perf_counter() - begun


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes, wanted: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(PATIENCE):
        while (answer := await reader.readline())[3:4] == b"-":
            pass
    if not answer.startswith(wanted):
        raise RuntimeError(f"{answer!r} to {line[:60]!r}")


def run(work: Path, results: Results, *, reports: int, mails: int, rounds: int) -> bool:
    """Measure and write; False when a report had no effect."""
    facts = machine.describe(work)
    results.line(machine=facts)
    results.text(machine_line(facts))
    system = System(work)
    try:
        load = Load(clients=20, count=mails)
        system.bench.run(system.peer, Load(clients=20, count=max(reports, mails)))
        floods = [_flood(system, load, reports, number) for number in range(rounds)]
        for flood in floods:
            results.line(what="reports alone", **asdict(flood))
        both = [_beside(system, load, reports) for _ in range(rounds)]
        for each in both:
            results.line(what="beside mail", **asdict(each))
        complete = asyncio.run(system.bounced()) >= reports
    finally:
        system.close()
    results.table(
        f"Bounces of {SIZE / 1000:g} KB, {CONNECTIONS} connections, {rounds} rounds",
        ("reports alone", "a second", "a minute", "CPU µs each", "of it PostgreSQL"),
        [
            (
                f"{reports:,}",
                f"{Spread.of([flood.rate for flood in floods]):.0f}",
                f"{Spread.of([flood.rate * 60 for flood in floods]):,.0f}",
                f"{Spread.of([flood.cpu_us for flood in floods]):.0f}",
                f"{Spread.of([flood.postgres_us for flood in floods]):.0f}",
            )
        ],
    )
    results.table(
        f"Mail of 10 KB beside {PACE * 60:,.0f} bounces a minute",
        ("", "mails a second"),
        [
            ("without reports", f"{Spread.of([each.alone for each in both]):.0f}"),
            (
                f"with {Spread.of([each.reports for each in both]):.0f} reports a second",
                f"{Spread.of([each.beside for each in both]):.0f}",
            ),
        ],
    )
    return complete


def _flood(system: System, load: Load, count: int, number: int) -> Flood:
    if number:  # something new to bounce
        system.bench.run(system.peer, replace(load, count=count))
    reports = asyncio.run(system.reports(count))
    before = system.cpu()
    seconds = asyncio.run(send(system.port, reports))
    all_, postgres = (after - earlier for after, earlier in zip(system.cpu(), before, strict=True))
    return Flood(len(reports), len(reports) / seconds, all_ / len(reports) * 1e6, postgres / len(reports) * 1e6)


def _beside(system: System, load: Load, count: int) -> Beside:
    alone = system.bench.run(system.peer, replace(load, count=max(count, load.count))).rate
    reports = asyncio.run(system.reports(count))
    seconds: list[float] = []
    flooding = threading.Thread(target=lambda: seconds.append(asyncio.run(send(system.port, reports, rate=PACE))))
    flooding.start()
    beside = system.bench.run(system.peer, load).rate
    flooding.join()
    return Beside(alone, beside, len(reports) / seconds[0])
