"""A provider that takes nothing while very much mail waits for it: what does that cost all other mail?

Two systems, alike but for their queues: one holds many marketing recipients in ten thousand domains of one provider,
of two hundred tenants with a campaign each, the other a handful. The provider answers 421 to every connection: with a
rule in the shaping file, which makes a pause of an hour, and without one. They are measured in turns, each alone.
"""

import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import asyncpg
import uvloop
import yaml

from benchmarks import machine
from benchmarks.cgroup import TICKS, memory
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink
from mailerd.db import connect_pool
from mailerd.db.embedded import running_url
from mailerd.queue.ids import COUNTER_BITS, WORKER_BITS
from mailerd.queue.store import QueueStore

PROVIDER = "big.example"
DOMAINS = 10_000
TENANTS = 200
CHUNK = 50_000  # messages of one transaction
PATIENCE = 600.0  # seconds
CLIENTS = 20
PROBES = 200  # transactional messages, one after the other,
GAP = 0.01  # seconds apart
REST = 45.0  # seconds of doing nothing, with three of everything that is done every 15 s
DRAIN = 15.0  # seconds that delivery to the provider is watched for when it takes mail again
RULE = {"id": "overloaded", "match": "overloaded", "effect": "pause", "for": "1h", "samples": ["421 4.7.0 overloaded"]}
BRAKES = {"pause": "paused by a rule", "refusal": "421 to all"}

# Ids as old as the milliseconds given, which no worker makes any more.
MESSAGE_ID = f"($3::bigint << {WORKER_BITS + COUNTER_BITS}) + i"
FILL = f"""
    WITH each AS MATERIALIZED (
        SELECT {MESSAGE_ID} AS id, i, 't' || i % {TENANTS} AS tenant, 'c' || i % {TENANTS} AS campaign,
               'd' || (hashint4(i) & 2147483647) % {DOMAINS} || '.{PROVIDER}' AS domain, now() AS at
          FROM generate_series($1::int, $2::int) AS i
    ), message AS (
        INSERT INTO messages (id, sender, stream, pool, credential, tenant, size, accepted_at, smtputf8, eight_bit, ret,
                              envid, total, pending, content, campaign)
        SELECT id, 'news@plain.example', 'marketing', 'default', 'bench', tenant, length($4::bytea), at, false, false,
               '', '', 1, 1, $4, campaign FROM each
    ), recipient AS (
        INSERT INTO recipients (message_id, n, address, domain, queue, due_at, expires_at)
        SELECT id, 1, i || 'b0x@' || domain, domain, 'marketing/default/' || tenant || ':' || campaign || '/' || domain,
               at, at + interval '5 days' FROM each
    ), event AS (
        INSERT INTO events (at, type, message_id, n, address, tenant)
        SELECT at, 'message.accepted', id, 1, i || 'b0x@' || domain, tenant FROM each
    )
    INSERT INTO queues (name, lane, flow, pool, next_due)
    SELECT DISTINCT 'marketing/default/' || tenant || ':' || campaign || '/' || domain, 4, tenant || ':' || campaign,
           'default', at FROM each
    ON CONFLICT (name) DO NOTHING
"""
READY = "SELECT count(*) FROM queues WHERE ready_at <= now()"
QUEUES = "SELECT count(*) FROM queues"
REASONS = "SELECT DISTINCT reason FROM queues WHERE reason != '' LIMIT 3"
BACKLOG = "SELECT count(*) FROM recipients"
LIFT = "UPDATE effects SET until = now() WHERE until > now()"
TELL = "SELECT pg_notify('mailerd_traffic', 'effects')"
# From acceptance to the end of the first attempt, which is after its beginning.
WAITS = """
    SELECT extract(epoch FROM ended.at - accepted.at)::float8 AS seconds
      FROM events AS accepted JOIN events AS ended USING (message_id, n)
     WHERE accepted.type = 'message.accepted' AND accepted.address LIKE $1 AND ended.type = 'recipient.delivered'
"""
DRAINED = "SELECT count(*) FROM events WHERE type = 'recipient.delivered' AND at > $1 AND tenant LIKE 't%'"

CONTENT = "From: bench@plain.example\r\nSubject: blocked\r\n\r\n" + ("x" * 70 + "\r\n") * 28  # 2 KB


@dataclass(frozen=True)
class Round:
    """What one turn saw: milliseconds of transactional mail while nothing else goes on, and beside the load."""

    rate: float  # marketing mail for another domain, messages a second from the first connection to the last arrival
    alone: list[float]
    beside: list[float]
    accept_rate: float  # marketing mail for the provider that takes nothing


class Refusing:
    """The provider: 421 to every connection, counted, until `close()`."""

    def __init__(self, port: int) -> None:
        self.refused = 0
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1000)
        self._thread = threading.Thread(target=self._serve, name="refusing", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self.refused += 1
                with connection, suppress(OSError):
                    connection.sendall(b"421 4.7.0 overloaded, try again later\r\n")

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class System:
    """One mailerd, its sink, its provider and its database."""

    def __init__(self, work: Path, name: str, *, brake: str) -> None:
        self.name = name
        self._work = work / name
        self._work.mkdir()
        self.sink = Sink([], self._work)
        self.provider_port = free_port()
        self.provider = Refusing(self.provider_port)
        self.rules = self._work / "shaping.yaml"
        rules = {"rules": [RULE]} if brake == "pause" else {}
        block = {"match": {"domain": [PROVIDER]}, "source": "benchmark", "date": "2026-01-01"} | rules
        self.rules.write_text(yaml.safe_dump({"providers": {"big": block}}, sort_keys=False))
        routes = [
            {"match": {"domain": f"*.{PROVIDER}"}, "hosts": [f"127.0.0.1:{self.provider_port}"], "tls": "none"},
            {"match": {"domain": "*"}, "hosts": [f"127.0.0.1:{self.sink.port}"], "tls": "none"},
        ]
        shaping = {"files": ["builtin", str(self.rules)]}
        listener = {"bind": "127.0.0.1:0", "starttls": "off", "auth": "optional", "trusted": ["127.0.0.0/8"]}
        self.peer = Mailerd(self._work / "mailerd", listeners=[listener], routes=routes, shaping=shaping)
        self.runs = 0
        self.peer.start(self.sink.port, make_key(self._work)[0], SELECTOR)
        self._token = self.command("credentials", "create", "news", "--stream", "marketing").strip()

    @property
    def port(self) -> int:
        return self.peer.port(signed=False)

    def ask(self, statement: str, *parameters: object) -> list[Any]:
        """The rows of a statement in the daemon's database, as lists."""

        async def asked() -> list[Any]:
            url = running_url(self.peer.data_dir)
            assert url is not None, "mailerd runs"
            connection = await asyncpg.connect(url, command_timeout=PATIENCE)
            try:
                return [list(row) for row in await connection.fetch(statement, *parameters)]
            finally:
                await connection.close()

        return uvloop.run(asked())

    def unblock(self) -> None:
        """As the daemon does when a brake is lifted; it does not know by itself that a site takes mail again."""

        async def unblocked() -> None:
            url = running_url(self.peer.data_dir)
            assert url is not None, "mailerd runs"
            pool = await connect_pool(url)
            await QueueStore(pool).unblock()
            await pool.close()

        uvloop.run(unblocked())

    def command(self, *words: str) -> str:
        """What a command of mailerd prints, or how it failed."""
        file = str(self.peer.directory / "mailerd.yaml")
        program = [sys.executable, "-m", "mailerd", *words, "--config", file]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr.strip()}"

    def until(self, true: Callable[[], bool], seconds: float = PATIENCE) -> float:
        """Seconds until it is true."""
        begun = time.monotonic()
        while not true():
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"{self.name}: not within {seconds:g} s")
            time.sleep(0.5)
        return time.monotonic() - begun

    def halt(self) -> None:
        self.peer.halt()

    def launch(self) -> None:
        self.peer.launch()
        time.sleep(3.0)

    def close(self) -> None:
        self.peer.stop()
        self.sink.close()
        self.provider.close()

    # what is measured

    def turn(self, count: int) -> Round:
        """The load, and the probes before it and beside it."""
        alone = self._probed(f"a{self._next()}x")
        mark = f"b{self._next()}x"
        prober = threading.Thread(target=self._probe, args=(mark,), name="probes", daemon=True)
        run = f"r{self._next()}x"
        self.sink.begin(run)
        prober.start()
        begun = time.monotonic()
        self.send(count, lambda number: f"{number}{run}@sink.example")
        report = self.sink.wait(count, PATIENCE)
        prober.join()
        if report["unique"] < count or report["duplicates"]:
            raise RuntimeError(f"{self.name}: {report}")
        rate = count / (report["last"] - begun)
        begun = time.monotonic()
        self.send(count // 2, lambda number: f"{number}{run}@d{number % DOMAINS}.{PROVIDER}")
        return Round(rate, alone, self._waits(mark), count // 2 / (time.monotonic() - begun))

    def rest(self, seconds: float) -> dict[str, float]:
        """Percent of a core while nothing is asked of it, by kind of process, and megabytes (PSS)."""
        before, group, begun = self._cpu_by_kind(), self.peer.group.cpu(), time.monotonic()
        time.sleep(seconds)
        after, passed = self._cpu_by_kind(), time.monotonic() - begun
        used = {name: (after[name] - before[name]) / passed * 100 for name in after}
        return {
            "idle_workers_cpu_percent": used["mailerd"],
            "idle_cpu_percent": (self.peer.group.cpu() - group) / passed * 100,
            "workers_mb": memory(self._pids("mailerd")) / 1e6,
            "postgres_mb": memory(self._pids("postgres")) / 1e6,
        }

    def _cpu_by_kind(self) -> dict[str, float]:
        used = {"mailerd": 0.0}
        for pid in self._pids("mailerd"):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used["mailerd"] += (int(fields[11]) + int(fields[12])) / TICKS
        return used

    def _pids(self, kind: str) -> list[int]:
        found = []
        for pid in self.peer.group.pids():
            with suppress(OSError):
                is_postgres = b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
                if is_postgres == (kind == "postgres"):
                    found.append(pid)
        return found

    def _next(self) -> int:
        self.runs += 1
        return self.runs

    def send(self, count: int, recipient: Callable[[int], str]) -> None:
        """So many messages of marketing, over twenty connections."""
        numbers = iter(range(count))

        def client() -> None:
            with smtplib.SMTP("127.0.0.1", self.port, "client.localhost") as smtp:
                smtp.login("news", self._token)
                assert smtp.sock is not None
                assert smtp.file is not None
                for number in numbers:
                    commands = f"MAIL FROM:<news@plain.example>\r\nRCPT TO:<{recipient(number)}>\r\n"
                    smtp.sock.sendall((commands + "DATA\r\n").encode())
                    replies = [smtp.file.readline() for _ in range(3)]
                    smtp.sock.sendall((CONTENT + ".\r\n").encode())
                    if not smtp.file.readline().startswith(b"250"):
                        raise RuntimeError(f"refused: {replies}")

        with ThreadPoolExecutor(CLIENTS) as clients:
            for done in [clients.submit(client) for _ in range(CLIENTS)]:
                done.result()

    def _probed(self, mark: str) -> list[float]:
        self._probe(mark)
        return self._waits(mark)

    def _probe(self, mark: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, "probe.localhost") as client:
            for number in range(PROBES):
                client.sendmail("probe@plain.example", [f"{number}{mark}@sink.example"], CONTENT)
                time.sleep(GAP)

    def _waits(self, mark: str) -> list[float]:
        """Milliseconds of each probe."""
        found: list[float] = []

        def all_there() -> bool:
            found[:] = [row[0] * 1e3 for row in self.ask(WAITS, f"%{mark}@sink.example")]
            return len(found) >= PROBES

        self.until(all_there, 60.0)
        return found


def run(
    work: Path, results: Results, *, recipients: int, rounds: int, count: int, rest: float, brakes: Sequence[str]
) -> None:
    """Both systems in turns, `rounds` times, for each kind of brake."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    for brake in brakes:
        _compare(work, results, brake, recipients=recipients, rounds=rounds, count=count, rest=rest)


def _compare(
    work: Path, results: Results, brake: str, *, recipients: int, rounds: int, count: int, rest: float
) -> None:
    systems: list[System] = []
    try:
        without = System(work, f"without-{brake}", brake=brake)
        systems.append(without)
        _refuse_one(without)
        without.halt()
        full = System(work, f"blocked-{brake}", brake=brake)
        systems.append(full)
        _refuse_one(full)
        facts = _fill(full, recipients)
        results.line(brake=brake, **facts)
        turns: dict[str, list[Round]] = {without.name: [], full.name: []}
        rests: dict[str, dict[str, float]] = {}
        full.halt()
        for n in range(rounds):
            for system in (without, full):
                system.launch()
                turns[system.name].append(system.turn(count))
                if n == rounds - 1:
                    rests[system.name] = system.rest(rest)
                    rests[system.name]["connections_refused"] = system.provider.refused
                if system is without or n < rounds - 1:
                    system.halt()
        for system in (without, full):
            results.line(brake=brake, system=system.name, **rests[system.name])
            for turn in turns[system.name]:
                results.line(brake=brake, system=system.name, **asdict(turn))
        facts |= {"explain": full.command("explain", f"someone@d1.{PROVIDER}")}
        # Without where this run kept its files.
        facts |= {"reasons": [row[0].replace(f"{full.rules.parent}/", "") for row in full.ask(REASONS)]}
        facts |= _release(full, work)
        results.line(brake=brake, **facts)
        _report(results, brake, facts, [(s.name, turns[s.name], rests[s.name]) for s in (without, full)])
    finally:
        for system in systems:
            system.close()


def _refuse_one(system: System) -> None:
    """Let the provider refuse, so that the brake holds before anything else is there."""
    with smtplib.SMTP("127.0.0.1", system.port, "first.localhost") as client:
        client.sendmail("probe@plain.example", [f"first@d0.{PROVIDER}"], CONTENT)
    system.until(lambda: system.provider.refused > 0, 30.0)
    time.sleep(1.0)


def _fill(system: System, recipients: int) -> dict[str, object]:
    """Put the recipients into the queue, as if they had just been accepted, and wait until none is looked at."""
    begun, cpu = time.monotonic(), system.peer.group.cpu()
    now = int(time.time() * 1000) - 3_600_000
    for first in range(1, recipients + 1, CHUNK):
        system.ask(FILL, first, min(first + CHUNK - 1, recipients), now, CONTENT.encode())
    filled = time.monotonic() - begun
    system.until(lambda: not system.ask(READY)[0][0])
    return {
        "recipients": system.ask(BACKLOG)[0][0],
        "queues": system.ask(QUEUES)[0][0],
        "fill_s": round(filled, 1),
        "put_off_s": round(time.monotonic() - begun, 1),
        "put_off_cpu_s": round(system.peer.group.cpu() - cpu, 1),
    }


def _release(system: System, work: Path) -> dict[str, object]:
    """The provider takes mail again and the brake is lifted: how soon and how fast mail flows."""
    system.provider.close()
    sink = Sink([], work, system.provider_port)
    try:
        sink.begin("b0x")
        begun = time.monotonic()
        lifting = threading.Thread(target=_lift, args=(system,), name="lift", daemon=True)
        lifting.start()
        first = sink.wait(1, 120.0)["last"]
        lifting.join()
        start = sink.report()["unique"]
        time.sleep(DRAIN)
        moved = sink.report()
    finally:
        sink.close()
    return {
        "released_first_ms": round((first - begun) * 1e3),
        "released_rate": round((moved["unique"] - start) / DRAIN),
        "released_duplicates": moved["duplicates"],
    }


def _lift(system: System) -> None:
    system.ask(LIFT)
    system.ask(TELL)
    system.command("queue", "retry", "--domain", f"d1.{PROVIDER}")  # also makes workers forget what failed
    system.unblock()


def _report(
    results: Results,
    brake: str,
    facts: dict[str, Any],
    systems: Sequence[tuple[str, list[Round], dict[str, float]]],
) -> None:
    rows = []
    lines: list[tuple[str, Callable[[list[Round], dict[str, float]], str]]] = [
        ("another domain, messages/s end to end", lambda turns, _: f"{Spread.of([t.rate for t in turns]):.0f}"),
        ("accepted for the blocked provider/s", lambda turns, _: f"{Spread.of([t.accept_rate for t in turns]):.0f}"),
        ("transactional, p50 p99 max ms, alone", lambda turns, _: _shown([w for t in turns for w in t.alone])),
        ("transactional, p50 p99 max ms, beside", lambda turns, _: _shown([w for t in turns for w in t.beside])),
        (
            "idle CPU % of a core, all, workers",
            lambda _, r: f"{r['idle_cpu_percent']:.1f}, {r['idle_workers_cpu_percent']:.1f}",
        ),
        ("PSS MB, mailerd, PostgreSQL", lambda _, r: f"{r['workers_mb']:.0f}, {r['postgres_mb']:.0f}"),
        ("connections the provider refused", lambda _, r: f"{r['connections_refused']:.0f}"),
    ]
    for title, shown in lines:
        rows.append([title, *(shown(turns, resting) for _, turns, resting in systems)])
    title = f"{facts['recipients']:,} recipients in {facts['queues']:,} queues wait for one provider: {BRAKES[brake]}"
    results.table(title, ["what", "without them", "with them"], rows)
    results.text(
        f"All put off {facts['put_off_s']} s after the first was there, {facts['put_off_cpu_s']} s of CPU. "
        f"When the provider takes mail again: first after {facts['released_first_ms']} ms, "
        f"then {facts['released_rate']} a second."
    )
    results.text(f"They wait for: {'; '.join(facts['reasons'])}")


def _shown(waits: list[float]) -> str:
    return f"{median(waits):.0f} {quantiles(waits, n=100)[-1]:.0f} {max(waits):.0f}"
