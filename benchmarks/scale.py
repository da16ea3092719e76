"""One worker, two workers, and two nodes of one worker each over one PostgreSQL: how the rate grows, who uses the CPU.

PostgreSQL is a server of its own beside the daemons in every case, so that its share is known. All of it runs on one
machine: with two cores, nodes and PostgreSQL take them from one another, and what is worth reading is what a message
costs each of them, in CPU, write-ahead log and rows that stay; `capacity` calculates with that.
"""

import asyncio
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import chart, machine
from benchmarks.database import KEPT, WAL, SharedPostgres
from benchmarks.kinds import watched_kinds
from benchmarks.load import PATIENCE, SETTLE, Load, total_cpu
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink
from mailerd import db

JOIN = 3.0  # seconds until nodes have shared what they share
WARM_UP = 1_000
LOADS = (Load(), Load(signed=True))


@dataclass(frozen=True)
class Setting:
    nodes: int
    workers: int

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{nodes}, {self.workers} {'worker' if self.workers == 1 else 'workers'} each"


SETTINGS = (Setting(1, 1), Setting(1, 2), Setting(2, 1))


@dataclass(frozen=True)
class Run:
    """Costs are for each message."""

    setting: str
    cell: str
    signed: bool
    size: int
    rate: float  # from the first connection to the last message at the sink
    daemon_us: float  # CPU of main processes and workers
    postgres_us: float
    wal_bytes: float
    kept_bytes: float  # of events, which stay
    daemon_mb: float  # most PSS of all nodes
    postgres_mb: float
    count: int
    missing: int
    duplicates: int
    unsigned: int  # that should have been signed, or the other way round

    @property
    def complete(self) -> bool:
        return not (self.missing or self.duplicates or self.unsigned)


class Node(Mailerd):
    """One of several over one database, with a source address of its own, so that paths are shared out."""

    def __init__(self, directory: Path, number: int, name: str, **settings: object) -> None:
        self.name = name
        source = f"node{number}"
        super().__init__(
            directory,
            sources={source: {"address": f"127.0.2.{number + 1}"}},
            pools={"default": {"sources": [{"name": source}]}},
            **settings,
        )


class System:
    """The nodes of a setting, and their PostgreSQL."""

    def __init__(self, work: Path, setting: Setting, number: int) -> None:
        self.setting = setting
        directory = work / f"scale{number}"
        self.database = SharedPostgres(directory / "postgres", f"postgres{number}")
        self.nodes = [
            Node(
                directory / f"node{index}",
                index,
                f"s{number}n{index}",
                workers=setting.workers,
                database={"url": self.database.url},
            )
            for index in range(setting.nodes)
        ]

    def start(self, sink_port: int, key: Path) -> None:
        for node in self.nodes:
            node.start(sink_port, key, SELECTOR)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()
        self.database.stop()

    def ask(self, statement: str) -> int:
        async def asked() -> int:
            async with db.connected(self.database.url) as connection:
                value: int = await connection.fetchval(statement)
                return value

        return asyncio.run(asked())

    def send(self, load: Load, run: str) -> int:
        """Submit an equal part to each node, at the same time; how many in all."""
        part = replace(load, count=load.count // len(self.nodes), clients=max(1, load.clients // len(self.nodes)))
        sources = [
            subprocess.Popen(part.command(node.port(signed=load.signed), f"{run}{index}"), stdout=subprocess.DEVNULL)
            for index, node in enumerate(self.nodes)
        ]
        if any(source.wait(PATIENCE * 3) for source in sources):
            raise RuntimeError("smtp-source failed")
        return part.count * len(self.nodes)


def run(work: Path, results: Results, *, rounds: int, count: int) -> bool:
    """Measure, write, say; whether every message came exactly once."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(f"{machine_line(described)}; PostgreSQL apart from the daemons in every case")
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    with ExitStack() as stack:
        sink = Sink([], work)
        stack.callback(sink.close)
        key, _ = make_key(work)
        systems = []
        for number, setting in enumerate(SETTINGS):
            system = System(work, setting, number)
            stack.callback(system.stop)
            system.start(sink.port, key)
            systems.append(system)
        time.sleep(JOIN)
        runs = 0
        for system in systems:
            for load in LOADS:
                runs += 1
                _run(system, replace(load, count=WARM_UP), sink, f"w{runs}x")
        for load in LOADS:
            for number in range(rounds):
                for system in systems:
                    runs += 1
                    one = _run(system, replace(load, count=count), sink, f"r{runs}x")
                    results.line(round=number, **asdict(one))
                    found[one.setting, one.cell].append(one)
    heads = ["setting", "msg/s", "daemons µs/msg", "PostgreSQL µs/msg", "WAL bytes/msg", "kept bytes/msg", "PSS MB"]
    rows = [
        [f"{cell}: {setting}", *_figures(many)]
        for (setting, cell), many in sorted(found.items(), key=lambda each: each[0][1], reverse=True)
    ]
    results.table("Workers and nodes, median of the rounds (lowest and highest)", [*heads, "lost", "twice"], rows)
    results.picture(chart.page([_chart(found)]))
    return all(one.complete for many in found.values() for one in many)


def _run(system: System, load: Load, sink: Sink, run: str) -> Run:
    groups = [node.group for node in system.nodes]
    sink.begin(run)
    wal, kept = system.ask(WAL), system.ask(KEPT)
    cpu, postgres = total_cpu(groups), system.database.group.cpu()
    with watched_kinds(*groups) as daemon_memory, watched_kinds(system.database.group) as postgres_memory:
        begun = time.monotonic()
        count = system.send(load, run)
        report = sink.wait(count, PATIENCE)
    time.sleep(SETTLE)
    report = sink.report()
    return Run(
        setting=str(system.setting),
        cell=load.name,
        signed=load.signed,
        size=load.size,
        rate=count / (report["last"] - begun),
        daemon_us=(total_cpu(groups) - cpu) / count * 1e6,
        postgres_us=(system.database.group.cpu() - postgres) / count * 1e6,
        wal_bytes=(system.ask(WAL) - wal) / count,
        kept_bytes=(system.ask(KEPT) - kept) / count,
        daemon_mb=sum(daemon_memory.values()) / 1e6,
        postgres_mb=sum(postgres_memory.values()) / 1e6,
        count=count,
        missing=count - report["unique"],
        duplicates=report["duplicates"],
        unsigned=abs(report["signed"] - (count if load.signed else 0)),
    )


def _figures(runs: Sequence[Run]) -> list[str]:
    def spread(name: str) -> Spread:
        return Spread.of([getattr(one, name) for one in runs])

    figures = [f"{spread(name):,.0f}" for name in ("rate", "daemon_us", "postgres_us", "wal_bytes", "kept_bytes")]
    figures.append(f"{spread('daemon_mb').high:.0f} + {spread('postgres_mb').high:.0f}")
    return [*figures, str(sum(one.missing for one in runs)), str(sum(one.duplicates for one in runs))]


def _chart(found: dict[tuple[str, str], list[Run]]) -> str:
    groups: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (setting, cell), runs in found.items():
        groups[cell].append((setting, Spread.of([one.rate for one in runs]).middle))
    return chart.bars("Messages a second", list(groups.items()))
