"""An hour of mixed mail at 70 % of what the system carries, and what grows meanwhile.

Of a hundred messages 90 are taken, 6 deferred and taken when they are tried again, 3 refused (the sender gets a notice)
and 1 taken slowly (`benchmarks.mix`); all are signed, and come by the clock whatever happens (`benchmarks.open_loop`).
Every ten seconds memory, database, queue and latency are written down. At the end each message is accounted for.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks import chart, machine
from benchmarks.cgroup import accounting
from benchmarks.kinds import MAIN, POSTGRES, WORKERS, memory_by_kind
from benchmarks.load import Bench, Load
from benchmarks.mixed_sink import Ledger, MixedSink, compare
from benchmarks.open_loop import RECORD, OpenLoop, Order, read
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line, percentile
from benchmarks.signing import SELECTOR, make_key
from mailerd import db
from mailerd.db.embedded import running_url

SHARE = 0.7  # of the full rate
EVERY = 10.0  # seconds between samples
STEADY = 1.2  # times the first third: memory and latency of the last one
HOSTS = ("127.0.0.2", "127.0.0.3")  # the second one is slow
DRAINED = 300.0  # seconds after the last message, beside the longest wait for another try
STATE = """
    SELECT (SELECT count(*) FROM recipients) AS depth,
           pg_database_size(current_database()) AS bytes,
           (SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables) AS dead
"""


@dataclass(frozen=True)
class Sample:
    """One look. Latencies are of what was answered since the one before: ms from when a message was due to its 250."""

    seconds: float  # since the first message was due
    accepted_rate: float
    taken_rate: float
    accept_p50_ms: float
    accept_p99_ms: float
    depth: int  # recipients in the queue
    main_mb: float
    workers_mb: float
    postgres_mb: float
    database_mb: float
    dead_rows: int
    cpu: float  # cores of the system under test
    load: float  # average of the machine

    @property
    def memory_mb(self) -> float:
        return self.main_mb + self.workers_mb + self.postgres_mb


def run(work: Path, results: Results, *, minutes: float, count: int, retry: float, judged: bool) -> bool:
    """Whether all is accounted for and, if it is `judged`, the last third was like the first."""
    described = machine.describe(work)
    results.line(machine=described)
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        sink = stack.enter_context(MixedSink(work, HOSTS, sink_group.command([])))
        peer = _peer(work, bench.sink.port, sink.port, retry)
        stack.callback(peer.stop)
        key, _ = make_key(work)
        peer.start(bench.sink.port, key, SELECTOR)
        full = median(bench.run(peer, Load(signed=True, count=count)).rate for _ in range(3))
        rate = full * SHARE
        file = work / "sent"
        total = max(100, int(rate * minutes * 60))
        results.line(full_rate=full, rate=rate, messages=total)
        results.text(f"{machine_line(described)}; {rate:.0f} messages a second of {full:.0f}, {minutes:g} minutes")
        watcher = _Watcher(peer, sink, file)
        order = Order(peer.port(signed=True), rate, total, str(file))
        samples: list[Sample] = []
        with OpenLoop(order, source.command) as load:
            while load.running:
                time.sleep(EVERY)
                if load.running or not samples:  # else part of the time had no load
                    samples.append(watcher.look())
                    results.line(**asdict(samples[-1]))
            said = load.wait()
        left = watcher.until_empty(DRAINED + retry)
        ledger = _ledger(file, total, sink)
        report = sink.report()
    results.line(ledger=asdict(ledger), sink=report, source=said, left=left, unanswered=total - _answered(file))
    return _conclude(results, samples, ledger, report, said, left, judged=judged)


def _peer(work: Path, plain_port: int, mixed_port: int, retry: float) -> Mailerd:
    normal, slow = (f"{host}:{mixed_port}" for host in HOSTS)
    routes = [
        {"match": {"domain": "sink.example"}, "hosts": [f"127.0.0.1:{plain_port}"], "tls": "none"},
        {"match": {"domain": "slow.example"}, "hosts": [slow], "tls": "none"},
        {"match": {"domain": "*"}, "hosts": [normal], "tls": "none"},
    ]
    return Mailerd(work / "mailerd", routes=routes, delivery={"retry": [f"{retry:g}s"]})


class _Watcher:
    """Looks at everything now and then."""

    def __init__(self, peer: Mailerd, sink: MixedSink, file: Path) -> None:
        self._peer = peer
        self._sink = sink
        self._file = file
        self._begun = self._last = time.monotonic()
        self._offset = 0
        self._taken = 0
        self._cpu = peer.group.cpu()

    def look(self) -> Sample:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        sent = list(read(self._file, self._offset)) if self._file.exists() else []
        self._offset += len(sent) * RECORD.size
        waits = sorted((each.replied - each.due) * 1e3 for each in sent if each.accepted)
        taken, cpu = self._sink.report()["taken"], self._peer.group.cpu()
        depth, size, dead = asyncio.run(self._state())
        memory = memory_by_kind(self._peer.group.pids())
        sample = Sample(
            seconds=now - self._begun,
            accepted_rate=len(waits) / passed,
            taken_rate=(taken - self._taken) / passed,
            accept_p50_ms=percentile(waits, 0.5) if waits else 0.0,
            accept_p99_ms=percentile(waits, 0.99) if waits else 0.0,
            depth=depth,
            main_mb=memory.get(MAIN, 0.0) / 1e6,
            workers_mb=memory.get(WORKERS, 0.0) / 1e6,
            postgres_mb=memory.get(POSTGRES, 0.0) / 1e6,
            database_mb=size / 1e6,
            dead_rows=dead,
            cpu=(cpu - self._cpu) / passed,
            load=os.getloadavg()[0],
        )
        self._taken, self._cpu = taken, cpu
        return sample

    def until_empty(self, patience: float) -> int:
        """Wait for the queue; how many recipients are left."""
        deadline = time.monotonic() + patience
        while (depth := asyncio.run(self._state())[0]) and time.monotonic() < deadline:
            time.sleep(1.0)
        time.sleep(2.0)  # what was settled last is on its way to the sink's count
        return depth

    async def _state(self) -> tuple[int, int, int]:
        url = running_url(self._peer.data_dir)
        assert url is not None, "mailerd runs"
        async with db.connected(url) as connection:
            (row,) = await connection.fetch(STATE)
        return row["depth"], row["bytes"], row["dead"]


def _ledger(file: Path, total: int, sink: MixedSink) -> Ledger:
    accepted = bytearray(total)
    for each in read(file):
        accepted[each.number] = each.accepted
    return compare(bytes(accepted), *sink.counts())


def _answered(file: Path) -> int:
    return file.stat().st_size // RECORD.size


def thirds(samples: Sequence[Sample], value: Callable[[Sample], float]) -> tuple[float, float]:
    """The mean of the first and of the last third."""
    length = max(1, len(samples) // 3)
    return mean(map(value, samples[:length])), mean(map(value, samples[-length:]))


COLUMNS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("accepted a second", lambda sample: sample.accepted_rate),
    ("taken by the sink a second", lambda sample: sample.taken_rate),
    ("accept p50, ms", lambda sample: sample.accept_p50_ms),
    ("accept p99, ms", lambda sample: sample.accept_p99_ms),
    ("recipients in the queue", lambda sample: sample.depth),
    ("memory, MB (PSS)", lambda sample: sample.memory_mb),
    ("of it workers", lambda sample: sample.workers_mb),
    ("of it PostgreSQL", lambda sample: sample.postgres_mb),
    ("database, MB", lambda sample: sample.database_mb),
    ("dead rows", lambda sample: sample.dead_rows),
    ("cores used", lambda sample: sample.cpu),
)
STEADY_ONES = ("accept p99, ms", "memory, MB (PSS)")


def judge(samples: Sequence[Sample]) -> list[str]:
    """What grew by more than it may, in words."""
    problems = []
    for name, value in COLUMNS:
        first, last = thirds(samples, value)
        if name in STEADY_ONES and last > first * STEADY:
            problems.append(f"{name}: {first:.1f} in the first third, {last:.1f} in the last")
    return problems


def _conclude(
    results: Results,
    samples: Sequence[Sample],
    ledger: Ledger,
    report: dict[str, int],
    said: dict[str, int],
    left: int,
    *,
    judged: bool,
) -> bool:
    rows = []
    for name, value in COLUMNS:
        first, last = thirds(samples, value)
        most = max(map(value, samples))
        rows.append([name, *(f"{figure:,.1f}" for figure in (first, last, most))])
    results.table("Over the time: means of the first and the last third", ["what", "first", "last", "most"], rows)
    counts = [*asdict(ledger).items(), ("left in the queue", left), ("refused by mailerd", said["refused"])]
    counts += [(f"at the sink: {name}", value) for name, value in report.items()]
    results.table("Every message", ["what", "count"], [[name, f"{value:,}"] for name, value in counts])
    problems = judge(samples)
    results.line(problems=problems, exact=ledger.exact)
    if problems:
        results.text("\n".join(problems))
    results.picture(chart.page(_charts(samples)))
    return ledger.exact and not left and not said["refused"] and not (judged and problems)


def _charts(samples: Sequence[Sample]) -> list[str]:
    end = max(samples[-1].seconds / 60, 0.1)
    ticks = [(end * share, f"{end * share:.3g} min") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]

    def plot(title: str, *curves: tuple[str, Callable[[Sample], float]]) -> str:
        points = [(name, [(sample.seconds / 60, value(sample)) for sample in samples]) for name, value in curves]
        return chart.plot(title, points, ticks=ticks)

    return [
        plot("Messages a second", ("accepted", lambda s: s.accepted_rate), ("taken", lambda s: s.taken_rate)),
        plot("Acceptance, ms", ("p99", lambda s: s.accept_p99_ms), ("p50", lambda s: s.accept_p50_ms)),
        plot(
            "Memory, MB (PSS)",
            ("workers", lambda s: s.workers_mb),
            ("PostgreSQL", lambda s: s.postgres_mb),
            ("main", lambda s: s.main_mb),
        ),
        plot("Recipients in the queue", ("queue", lambda s: s.depth)),
        plot("Database, MB", ("database", lambda s: s.database_mb)),
        plot("Dead rows", ("dead rows", lambda s: s.dead_rows)),
    ]
