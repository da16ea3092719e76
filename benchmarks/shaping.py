"""Limits as the receiver sees them: real daemons with a backlog, and a sink that counts.

Every case is a provider of its own with one limit (`Case`), at hosts of its own; all cases run at the same time. What
the sink saw is held against the limit, at its worst moment (`most`: never above the limit, in any window of its
period), and over the time in which there was a backlog (`use`: of what the limit allows).
"""

import asyncio
import base64
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from benchmarks import machine
from benchmarks.counting_sink import TOP, Connection, CountingSink, Seen, most_within
from benchmarks.report import Results, machine_line
from mailerd.db.embedded import running_url

READY = 60.0  # seconds until a daemon serves
STOP = 40.0
SOURCES = 2  # of each node
ENOUGH = 1.4  # times as much mail as can leave
LEAST_ENOUGH = 1.05
MOST_FILLS = 8
CLIENTS = 8  # of each node
JOINED = 30.0  # seconds until a node that came to others has its part of what they share
TENANT = "acme"
PASSWORD = "a password of the bench"

Count = Literal["connections", "openings", "messages", "bytes", "messages/connection", "recipients/transaction"]
Group = Literal["path", "source", "site", "all"]


@dataclass(frozen=True)
class Limit:
    """So many of `what` in `period` seconds (0: at any time), for each `group`. `of`: only for such recipients."""

    what: Count
    most: int
    period: float = 0.0
    group: Group = "path"
    of: str = ""

    def __str__(self) -> str:
        span = f" in {self.period:g} s" if self.period else ""
        each = {"path": "a path", "source": "a source", "site": "a site", "all": "in all"}[self.group]
        return f"{self.most} {self.what}{span} {each}"


@dataclass(frozen=True)
class Case:
    """`shaping` is its provider block, or what else stands at the top of a shaping file; `seconds` of a transaction."""

    name: str
    limits: tuple[Limit, ...]
    shaping: Mapping[str, Any]
    sites: int = 1
    seconds: float = 0.0
    rate: float = 10.0  # messages a second that may leave by one source, or in all where the limit is for all
    size: int = 400
    recipients: int = 1
    campaign: str = ""
    user: str = ""

    def domain(self, site: int) -> str:
        return f"site{site}.{self.name}.test"

    def shared(self) -> bool:
        """Whether more sources bring no more mail."""
        return self.limits[0].group in ("site", "all")


def _scope(scope: str, **limits: object) -> dict[str, Any]:
    return {"providers": {"{name}": {"match": {"domain": ["{name}.test"]}, scope: limits}}}


SLOW = 0.5  # seconds of a transaction where connections are what is scarce
FIVE = 5.0
CASES = (
    Case("connections", (Limit("connections", 4),), _scope("per_path", connections=4), seconds=SLOW, rate=4 / SLOW),
    Case(
        "openings",
        (Limit("openings", 20, FIVE), Limit("messages/connection", 2)),
        _scope("per_path", connection_rate="20/5s", messages_per_connection=2),
        rate=8,
    ),
    Case("messages", (Limit("messages", 50, FIVE),), _scope("per_path", message_rate="50/5s")),
    Case("bytes", (Limit("bytes", 50_000, FIVE),), _scope("per_path", byte_rate="50KB/5s"), size=2_000, rate=5),
    Case(
        "recipients",
        (Limit("recipients/transaction", 7), Limit("messages/connection", 5), Limit("messages", 50, FIVE)),
        _scope("per_path", recipients_per_transaction=7, messages_per_connection=5, message_rate="50/5s"),
        recipients=28,
        rate=10 / 4,
    ),
    Case(
        "source-connections",
        (Limit("connections", 4, group="source"),),
        _scope("per_source", connections=4),
        sites=2,
        seconds=SLOW,
        rate=4 / SLOW,
    ),
    Case(
        "source-messages",
        (Limit("messages", 50, FIVE, "source"),),
        _scope("per_source", message_rate="50/5s"),
        sites=2,
    ),
    Case(
        "site-connections",
        (Limit("connections", 6, group="site"),),
        _scope("per_site", connections=6),
        seconds=SLOW,
        rate=6 / SLOW,
    ),
    Case("site-messages", (Limit("messages", 50, FIVE, "site"),), _scope("per_site", message_rate="50/5s")),
    Case(
        "total-connections",
        (Limit("connections", 6, group="all"),),
        _scope("total", connections=6),
        sites=2,
        seconds=SLOW,
        rate=6 / SLOW,
    ),
    Case("total-messages", (Limit("messages", 50, FIVE, "all"),), _scope("total", message_rate="50/5s"), sites=2),
    Case(
        "domain",
        (Limit("messages", 50, FIVE, "all", of="site1.domain.test"),),
        {"domains": {"site1.domain.test": {"message_rate": "50/5s"}}},
        rate=10,
    ),
    Case(
        "campaign",
        (Limit("messages", 50, FIVE, "all"),),
        {"campaigns": {"launch": {"message_rate": "50/5s"}}},
        campaign="launch",
        rate=10,
    ),
    Case(
        "tenant",
        (Limit("messages", 50, FIVE, "all"),),
        {"tenants": {TENANT: {"message_rate": "50/5s"}}},
        user=TENANT,
        rate=10,
    ),
)


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to submit. `user`: by AUTH as such."""

    recipients: tuple[str, ...]
    size: int
    campaign: str = ""
    user: str = ""

    def wire(self) -> bytes:
        head = "From: <app@sender.example>\r\nSubject: hello\r\n"
        head += f"X-Mailerd-Campaign: {self.campaign}\r\n" if self.campaign else ""
        lines = "x" * 78 + "\r\n"
        body = (lines * (self.size // len(lines) + 1))[: max(0, self.size - len(head) - 4)]
        return f"{head}\r\n{body}\r\n.\r\n".encode()


class Node:
    """A daemon on a data directory of its own; without `database` it brings its own PostgreSQL."""

    def __init__(
        self,
        directory: Path,
        number: int,
        cases: Sequence[Case],
        hosts: Mapping[tuple[str, int], str],
        sink_port: int,
        *,
        workers: int,
        database: str | None = None,
        control: bool = True,
    ) -> None:
        self.directory = directory / f"node{number}"
        self.directory.mkdir(parents=True)
        self.data_dir = self.directory / "data"
        self.log = self.directory / "log"
        self.sources = [f"127.0.2.{SOURCES * number + index + 1}" for index in range(SOURCES)]
        self.port = 0
        self.process: subprocess.Popen[str]
        names = {f"node{number}-{index}": {"address": address} for index, address in enumerate(self.sources)}
        (self.directory / "limits.yaml").write_text(yaml.safe_dump(_limits(cases)))
        config = {
            "hostname": f"node{number}.localhost",
            "data_dir": str(self.data_dir),
            "workers": workers,
            "database": {"url": database} if database else {"shared_buffers": "32MiB", "max_wal_size": "256MiB"},
            "listeners": [{"bind": "127.0.0.1:0", "starttls": "off", "auth": "optional", "trusted": ["127.0.0.0/8"]}],
            "http": None,
            "sources": names,
            "pools": {"default": {"sources": [{"name": name} for name in names]}},
            "routes": [
                {"match": {"domain": f"site{site}.{name}.test"}, "hosts": [f"{host}:{sink_port}"], "tls": "none"}
                for (name, site), host in hosts.items()
            ],
            "shaping": {"files": ["limits.yaml"]},
            "delivery": {"control": control},
            "log": {"format": "json"},
        }
        self.file = self.directory / "mailerd.yaml"
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def start(self) -> None:
        """Launch it and wait until it serves."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailerd", "run", "--config", str(self.file)],
                cwd=TOP,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if ready := re.match(r"mailerd ready .*smtp=127\.0\.0\.1:(\d+)", line):
                self.port = int(ready[1])
                return
        raise RuntimeError(f"{self.file} did not start, see {self.log}")

    def database(self) -> str:
        """The URL of its own PostgreSQL."""
        url = running_url(self.data_dir)
        assert url is not None
        return url

    def add_tenant(self) -> None:
        command = ["credentials", "create", TENANT, "--password", "--tenant", TENANT, "--config", str(self.file)]
        subprocess.run(
            [sys.executable, "-m", "mailerd", *command],
            cwd=TOP,
            input=PASSWORD + "\n",
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"mailerd\0worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self) -> None:
        """In order, if it runs."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=STOP)

    def kill(self) -> None:
        """The main process dies at once; its workers notice, and die too."""
        self.process.kill()
        self.process.communicate()


def _limits(cases: Sequence[Case]) -> dict[str, Any]:
    """One shaping file of all cases."""
    made: dict[str, Any] = {}
    for case in cases:
        for key, value in case.shaping.items():
            text = yaml.safe_dump({name.format(name=case.name): block for name, block in value.items()})
            made.setdefault(key, {}).update(yaml.safe_load(text.replace("{name}", case.name)))
    return made


class Laboratory:
    """Nodes, the sink that all their mail goes to, and the mail of the cases."""

    def __init__(self, directory: Path, cases: Sequence[Case], *, nodes: int = 1, workers: int = 2, **how: Any) -> None:
        self.cases = cases
        self._directory = directory
        self._stack = ExitStack()
        places = [(case, site) for case in cases for site in range(1, case.sites + 1)]
        self.hosts = {(case.name, site): f"127.0.1.{n}" for n, (case, site) in enumerate(places, 1)}
        self._seconds = {self.hosts[case.name, site]: case.seconds for case, site in places}
        self._numbers = count(1)
        self._nodes = nodes
        self._workers = workers
        self._how = how
        self.nodes: list[Node] = []
        self.sink: CountingSink
        self.submitted: list[str] = []

    def __enter__(self) -> Self:
        self.sink = self._stack.enter_context(CountingSink(self._directory, self._seconds))
        database = self._how.pop("database", None)
        try:
            for number in range(self._nodes):
                node = Node(
                    self._directory,
                    number,
                    self.cases,
                    self.hosts,
                    self.sink.port,
                    workers=self._workers,
                    database=database,
                    **self._how,
                )
                self._stack.callback(node.stop)
                node.start()
                database = database or node.database()
                self.nodes.append(node)
            if any(case.user for case in self.cases):
                self.nodes[0].add_tenant()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def fill(self, seconds: float, nodes: Sequence[Node] | None = None) -> None:
        """Submit until there waits, of every case, more than can leave in so many seconds."""
        for _ in range(MOST_FILLS):
            waiting = self.waiting()
            letters = list(self._mail(waiting, seconds))
            if not letters:
                return
            await self.submit([letter for _, letter in sorted(letters, key=lambda each: each[0])], nodes)
        raise RuntimeError("mail leaves faster than it can be submitted")

    def waiting(self) -> dict[str, int]:
        """Recipients of each case that the sink has not seen."""
        came = self.sink.arrived()
        waiting = dict.fromkeys((case.name for case in self.cases), 0)
        for address in self.submitted:
            waiting[address.partition(".")[0]] += address not in came
        return waiting

    def _mail(self, waiting: Mapping[str, int], seconds: float) -> Iterator[tuple[float, Letter]]:
        """What is missing, each with its place: none is to wait for another case's."""
        for case in self.cases:
            rate = case.rate * (1 if case.shared() else SOURCES * self._nodes)
            missing = int(rate * seconds * ENOUGH) - waiting[case.name] // case.recipients
            if missing < rate * seconds * (ENOUGH - LEAST_ENOUGH):
                continue
            for number in range(missing):
                domain = case.domain(1 + number % case.sites)
                names = tuple(f"{case.name}.{next(self._numbers)}@{domain}" for _ in range(case.recipients))
                self.submitted += names
                yield number / missing, Letter(names, case.size, case.campaign, case.user)

    async def submit(self, letters: Sequence[Letter], nodes: Sequence[Node] | None = None) -> None:
        """By several clients to each node; returns when all is accepted."""
        ports = [node.port for node in nodes or self.nodes for _ in range(CLIENTS)]
        by_user: dict[str, list[Letter]] = {}
        for letter in letters:
            by_user.setdefault(letter.user, []).append(letter)
        await asyncio.gather(
            *(
                _submit(port, user, part[index :: len(ports)])
                for user, part in by_user.items()
                for index, port in enumerate(ports)
            )
        )

    def stop(self) -> None:
        """The node with the database last."""
        for node in reversed(self.nodes):
            node.stop()


async def _submit(port: int, user: str, letters: Sequence[Letter]) -> None:
    if not letters:
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def replies(number: int) -> None:
        for _ in range(number):
            while (line := await reader.readline())[3:4] == b"-":
                pass
            if line[:1] not in (b"2", b"3"):
                raise RuntimeError(f"not accepted: {line!r}")

    await replies(1)
    hello = b"EHLO client.example\r\n"
    if user:
        hello += b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{PASSWORD}".encode()) + b"\r\n"
    for command in hello.splitlines(keepends=True):
        writer.write(command)
        await replies(1)
    for letter in letters:
        envelope = ["MAIL FROM:<app@sender.example>", *(f"RCPT TO:<{to}>" for to in letter.recipients), "DATA"]
        writer.write("".join(f"{command}\r\n" for command in envelope).encode())
        await replies(len(envelope))
        writer.write(letter.wire())
        await replies(1)
    writer.close()


# what was seen


@dataclass(frozen=True)
class Finding:
    """What the sink saw of one limit at worst, and how much of what is allowed was used; `left`: mail of the case."""

    case: str
    limit: Limit
    most: float
    use: float | None  # None: not a limit that could be used up
    left: int

    @property
    def held(self) -> bool:
        return self.most <= self.limit.most

    def as_dict(self) -> dict[str, object]:
        return {
            "case": self.case,
            "limit": str(self.limit),
            "allowed": self.limit.most,
            "most": self.most,
            "held": self.held,
            "use": self.use,
            "left": self.left,
        }


def judge(laboratory: Laboratory, start: float, end: float) -> list[Finding]:
    """Every limit against all that the sink saw; `use` from `start` to `end`, monotonic seconds."""
    seen = laboratory.sink.seen()
    names = {host: name for (name, _), host in laboratory.hosts.items()}
    by_case = seen.by(lambda connection: names[connection.host])
    left = laboratory.waiting()
    findings = []
    for case in laboratory.cases:
        for limit in case.limits:
            part = by_case.get(case.name, Seen(()))
            groups = part.by(_key(limit.group))
            most = max((_most(limit, group) for group in groups.values()), default=0.0)
            expected = _groups(limit.group, case.sites, SOURCES * len(laboratory.nodes))
            used = sum(_used(limit, group, start, end, case.seconds) for group in groups.values())
            allowed = limit.most * expected * ((end - start) / limit.period if limit.period else 1)
            use = None if "/" in limit.what else used / allowed
            findings.append(Finding(case.name, limit, most, use, left[case.name]))
    return findings


def _key(group: Group) -> Callable[[Connection], str]:
    keys: dict[Group, Callable[[Connection], str]] = {
        "path": lambda each: f"{each.source}>{each.host}",
        "source": lambda each: each.source,
        "site": lambda each: each.host,
        "all": lambda _: "",
    }
    return keys[group]


def _groups(group: Group, sites: int, sources: int) -> int:
    return {"path": sites * sources, "source": sources, "site": sites, "all": 1}[group]


def _most(limit: Limit, seen: Seen) -> float:
    messages = seen.messages()
    match limit.what:
        case "connections":
            return seen.most_open()
        case "openings":
            return most_within([each.opened for each in seen.connections], limit.period)
        case "messages":
            return most_within([each.at for each in messages], limit.period)
        case "bytes":  # a message goes as a whole: what it is over, the next one waits for
            over = max((each.size for each in messages), default=0)
            most = most_within([each.at for each in messages], limit.period, [each.size for each in messages])
            return max(0.0, most - over)
        case "messages/connection":
            return max((len(each.messages) for each in seen.connections), default=0)
        case "recipients/transaction":
            return max((len(each.recipients) for each in messages), default=0)


def _used(limit: Limit, seen: Seen, start: float, end: float, seconds: float) -> float:
    """Connections: those that carry a message, in the mean; else how many in all."""
    messages = [each for each in seen.messages() if start <= each.at < end]
    match limit.what:
        case "connections":
            return len(messages) * seconds / (end - start)
        case "openings":
            return sum(start <= each.opened < end for each in seen.connections)
        case "bytes":
            return sum(each.size for each in messages)
    return len(messages)


# the benchmark


@dataclass(frozen=True)
class Setting:
    nodes: int
    workers: int

    def __str__(self) -> str:
        return f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'}, {self.workers} workers" + (
            " each" if self.nodes > 1 else ""
        )


SETTINGS = (Setting(1, 1), Setting(1, 2), Setting(1, 4), Setting(2, 2))
GROW = 5.0  # seconds before anything is counted as used: new paths begin with two connections


def measure(laboratory: Laboratory, seconds: float, *, grow: float = GROW) -> list[Finding]:
    """Submit a backlog, let it run, stop, judge."""
    asyncio.run(laboratory.fill(grow + seconds))
    begun = time.monotonic()
    time.sleep(grow + seconds)
    laboratory.stop()
    return judge(laboratory, begun + grow, begun + grow + seconds)


def run(work: Path, results: Results, *, settings: Sequence[Setting] = SETTINGS, seconds: float = 30.0) -> bool:
    """Measure, write, say; whether all limits held."""
    described = machine.describe(work)
    results.line(machine=described)
    found: dict[str, list[Finding]] = {}
    for setting in settings:
        directory = work / f"{setting.nodes}-{setting.workers}"
        directory.mkdir()
        with Laboratory(directory, CASES, nodes=setting.nodes, workers=setting.workers) as laboratory:
            if setting.nodes > 1:
                time.sleep(JOINED)
            found[str(setting)] = measure(laboratory, seconds)
        for finding in found[str(setting)]:
            results.line(setting=str(setting), **finding.as_dict())
    results.text(f"{machine_line(described)}; {seconds:g} s each, {SOURCES} sources a node")
    heads = ["limit", *(f"{name}: most, use" for name in found)]
    rows = [[f"{row[0].case}: {row[0].limit}", *map(_cell, row)] for row in zip(*found.values(), strict=True)]
    results.table("What the receiver saw at worst, and how much of what is allowed was used", heads, rows)
    return all(finding.held for findings in found.values() for finding in findings)


def _cell(finding: Finding) -> str:
    use = "" if finding.use is None else f", {finding.use:.0%}"
    return f"{finding.most:.0f}{'' if finding.held else ' ABOVE'}{use}"
