"""Mail by HTTP: calls and messages a second, what a call takes, what a message costs, by how many stand in a call.

The load is wrk with kept connections, in a closed loop: it shows what the API carries, and its percentiles are those of
a full system. Every answer is looked at (202, no message of it refused), and what was promised is counted at the sink;
calls under way when wrk stops are accepted without anybody hearing of it, so more may come than was promised.
"""

import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.cgroup import Accounting, accounting
from benchmarks.load import PATIENCE, SETTLE, total_cpu
from benchmarks.peers import free_port
from benchmarks.peers.installed import apt_install
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink

SCRIPT = Path(__file__).parent / "api.lua"
SIZE = 10_240  # bytes of the text, as in the relay's main cell
SETTLED = 3.0  # seconds without a new message: the calls that wrk gave up have been taken, too


@dataclass(frozen=True)
class Cell:
    """`per_call` 0: /emails, one message; else /emails/batch. Large calls take seconds: they need `times` as long."""

    per_call: int
    connections: int
    times: int = 1

    @property
    def name(self) -> str:
        return f"/emails/batch, {self.per_call:,} a call" if self.per_call else "/emails"

    @property
    def messages(self) -> int:
        return self.per_call or 1


CELLS = (Cell(0, 32), Cell(1, 32), Cell(10, 32), Cell(100, 8), Cell(1_000, 2, times=3))


@dataclass(frozen=True)
class Run:
    """One run of wrk. `rate` counts what was answered with 202."""

    cell: str
    calls: float  # a second
    rate: float  # messages a second, accepted
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of all processes of mailerd, delivery included, for each message at the sink
    wrk_us: float
    bad: int  # other answers, or with messages refused
    missing: int
    duplicates: int

    @property
    def complete(self) -> bool:
        return not (self.bad or self.missing or self.duplicates)


def prepare() -> None:
    """Have wrk, or raise UnavailableError."""
    if shutil.which("wrk") is None:
        apt_install("wrk")


def run(work: Path, results: Results, *, rounds: int, seconds: float) -> bool:
    """Every cell in turn, so many rounds; whether all that was promised came, once."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(f"{machine_line(described)}; {seconds:g} s each, text of {SIZE:,} bytes, unsigned")
    found: dict[Cell, list[Run]] = defaultdict(list)
    with ExitStack() as stack:
        source = accounting("wrk")
        stack.callback(source.close)
        sink = Sink([], work)
        stack.callback(sink.close)
        port = free_port()
        peer = Mailerd(work / "mailerd", http={"bind": f"127.0.0.1:{port}"}, first_key=True)
        stack.callback(peer.stop)
        peer.start(sink.port, make_key(work)[0], SELECTOR)
        key = (peer.data_dir / "api-key").read_text().strip()

        def once(cell: Cell, run: str, lasting: float) -> Run:
            return _run(cell, run, lasting, url=f"http://127.0.0.1:{port}", key=key, peer=peer, sink=sink, wrk=source)

        once(CELLS[0], "w0x", 1.0)  # warm
        for number in range(rounds):
            for index, cell in enumerate(CELLS):
                one = once(cell, f"r{number}n{index}x", seconds)
                results.line(round=number, **asdict(one))
                found[cell].append(one)
    heads = ["call", "calls/s", "messages/s", "p50 ms", "p99 ms", "CPU µs/msg", "wrk µs/msg", "bad", "lost", "twice"]
    results.table("Mail by HTTP, median of the rounds (lowest and highest)", heads, [
        [cell.name, *_figures(many)] for cell, many in found.items()
    ])  # fmt: skip
    return all(one.complete for many in found.values() for one in many)


def _run(
    cell: Cell, run: str, seconds: float, *, url: str, key: str, peer: Mailerd, sink: Sink, wrk: Accounting
) -> Run:
    sink.begin(run)
    seconds *= cell.times
    words = ["wrk", "-t2", f"-c{cell.connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(SCRIPT), url]
    words += ["--", str(cell.per_call), run, key, str(SIZE)]
    cpu, wrk_cpu = total_cpu([peer.group]), wrk.cpu()
    done = subprocess.run(wrk.command(words), check=True, stdout=subprocess.PIPE, text=True, timeout=seconds + PATIENCE)
    said = json.loads(done.stdout.splitlines()[-1])
    promised = said["good"] * cell.messages
    report = sink.wait(promised, PATIENCE)
    while time.monotonic() < report["last"] + SETTLED:
        time.sleep(SETTLE)
        report = sink.report()
    came = max(1, report["unique"])
    return Run(
        cell=cell.name,
        calls=said["good"] / said["seconds"],
        rate=promised / said["seconds"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        cpu_us=(total_cpu([peer.group]) - cpu) / came * 1e6,
        wrk_us=(wrk.cpu() - wrk_cpu) / came * 1e6,
        bad=said["bad"] + said["broken"],
        missing=max(0, promised - report["unique"]),
        duplicates=report["duplicates"],
    )


def _figures(runs: Sequence[Run]) -> list[str]:
    def spread(name: str) -> Spread:
        return Spread.of([getattr(one, name) for one in runs])

    figures = [f"{spread(name):,.0f}" for name in ("calls", "rate")]
    figures += [f"{spread(name):.1f}" for name in ("p50_ms", "p99_ms")]
    figures += [f"{spread(name):.0f}" for name in ("cpu_us", "wrk_us")]
    return figures + [str(sum(getattr(one, name) for one in runs)) for name in ("bad", "missing", "duplicates")]
