"""How long a message waits to be accepted, and to arrive, while the system is half busy.

The full rate of each system is measured first; then mail comes at half of it, by the clock (`benchmarks.open_loop`), so
that a slow moment delays the messages after it as it would in life. mailerd is measured at half of Postfix's rate, too.

The last percent are those who met a moment without a free core: where others are at work on the machine, they say how
these two share what is left, and nothing of half load. So that is looked at before each round, and then nothing is
judged.
"""

import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import median

from benchmarks import chart, machine
from benchmarks.counting_sink import CountingSink
from benchmarks.load import Load, total_cpu
from benchmarks.open_loop import OpenLoop, Order, Sent, read
from benchmarks.peers import Peer
from benchmarks.peers.mailerd import Mailerd
from benchmarks.peers.postfix import TunedPostfix
from benchmarks.report import Results, Spread, machine_line, percentile
from benchmarks.signing import SELECTOR, make_key

SHARES = (0.5, 0.99, 0.999)
CURVE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
TICKS = [(-log10(1 - share), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99, 0.999, 0.9999)]
PATIENCE = 120.0  # seconds
HALF = 0.5
WARM_UP = 500
OTHERS = 0.2  # cores that other programs may use, for the figures to be of half load
LOOKED = 2.0  # seconds
QUIET = 1.5  # seconds without an arrival


@dataclass(frozen=True)
class Waits:
    """Milliseconds, in order. `accept`: due → 250; `dot`: final dot → 250; `first`: final dot → at the sink."""

    accept: list[float]
    dot: list[float]
    first: list[float]
    refused: int
    missing: int
    duplicates: int

    @property
    def complete(self) -> bool:
        return not (self.refused or self.missing or self.duplicates)


def waits(sent: Sequence[Sent], arrivals: Mapping[int, Sequence[float]], count: int) -> Waits:
    """What was sent held against when each number arrived (seconds of the monotonic clock)."""
    good = [each for each in sent if each.accepted]
    return Waits(
        accept=sorted((each.replied - each.due) * 1e3 for each in good),
        dot=sorted((each.replied - each.dot) * 1e3 for each in good),
        first=sorted((arrivals[each.number][0] - each.dot) * 1e3 for each in good if each.number in arrivals),
        refused=count - len(good),
        missing=sum(each.number not in arrivals for each in good),
        duplicates=sum(len(times) > 1 for times in arrivals.values()),
    )


def run(work: Path, results: Results, *, rounds: int, seconds: float, count: int, judged: bool) -> bool:
    """Whether all arrived once and, if it is `judged`, mailerd's accept p99 is no worse than Postfix's.

    False as well where the machine was too busy with other things to be judged.
    """
    described = machine.describe(work)
    results.line(machine=described)
    results.text(f"{machine_line(described)}; {seconds:g} s each")
    with ExitStack() as stack:
        sink = stack.enter_context(CountingSink(work, {"127.0.0.1": 0.0}))
        key, _ = make_key(work)
        peers: list[Peer] = [Mailerd(work / "mailerd"), TunedPostfix(work / "postfix-tuned")]
        for peer in peers:
            stack.callback(peer.stop)
            peer.start(sink.port, key, SELECTOR)
        bench = _Bench(work, sink)
        full: dict[str, list[float]] = defaultdict(list)
        for peer in peers:
            bench.full_rate(peer, WARM_UP)
        for _ in range(rounds):
            for peer in peers:
                full[peer.name].append(bench.full_rate(peer, count))
        rates = {name: median(found) for name, found in full.items()}
        results.line(full_rates=rates)
        ours, theirs = peers
        cells = [
            ("mailerd", ours, rates["mailerd"] * HALF),
            ("postfix-tuned", theirs, rates["postfix-tuned"] * HALF),
            ("mailerd at Postfix's rate", ours, rates["postfix-tuned"] * HALF),
        ]
        found: dict[str, list[Waits]] = defaultdict(list)
        others = []
        for number in range(rounds):
            others.append(machine.busy(LOOKED))
            for name, peer, rate in cells:
                one, cpu = bench.half(peer, rate, seconds)
                found[name].append(one)
                results.line(round=number, cell=name, peer=peer.name, rate=rate, cpu_us=cpu, **_line(one))
    rows = [
        [f"{name} ({rate:.0f} of {rates[peer.name]:.0f}/s): {what}", *_cells(found[name], field)]
        for what, field in QUANTITIES
        for name, peer, rate in cells
    ]
    heads = ["system (mail at this rate, of its full rate)", *(f"p{share * 100:g}" for share in SHARES)]
    results.table("Milliseconds at half load, median of the rounds (lowest and highest)", heads, rows)
    results.picture(chart.page([_chart(title, found, field) for title, field in CHARTS]))
    p99 = {name: median(percentile(one.accept, 0.99) for one in found[name]) for name, *_ in cells}
    complete = all(one.complete for many in found.values() for one in many)
    results.line(accept_p99_ms=p99, complete=complete, others_cores=others)
    if not complete:
        results.text("Some were refused, are missing or came twice.")
    if judged and max(others) > OTHERS:
        results.text(f"Not judged: other programs used up to {max(others):.1f} cores while nothing was sent.")
        return False
    return complete and not (judged and p99["mailerd"] > p99["postfix-tuned"])


QUANTITIES = (("due to 250", "accept"), ("dot to 250", "dot"), ("dot to the sink", "first"))
CHARTS = (("Acceptance: from due to the 250, ms", "accept"), ("First attempt: from the dot to the sink, ms", "first"))


class _Bench:
    """Numbered runs against one sink."""

    def __init__(self, work: Path, sink: CountingSink) -> None:
        self._work = work
        self._sink = sink
        self._runs = 0

    def full_rate(self, peer: Peer, count: int) -> float:
        """Messages a second of a closed loop of 20 clients, from the first connection to the last arrival."""
        run = self._next()
        begun = time.monotonic()
        load = Load(count=count)
        subprocess.run(
            load.command(peer.port(signed=False), run), check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE * 3
        )
        arrivals = self._until(run, count)
        return count / (max(times[0] for times in arrivals.values()) - begun)

    def half(self, peer: Peer, rate: float, seconds: float) -> tuple[Waits, float]:
        """What mail at this rate waited, and µs of CPU of a message."""
        run, count = self._next(), max(100, int(rate * seconds))
        file = self._work / f"{run}.sent"
        before = total_cpu(peer.parts(signed=False))
        with OpenLoop(Order(peer.port(signed=False), rate, count, str(file), run)) as source:
            source.wait()
        arrivals = self._until(run, count)
        used = total_cpu(peer.parts(signed=False)) - before
        found = waits(list(read(file)), arrivals, count)
        file.unlink()
        return found, used / count * 1e6

    def _next(self) -> str:
        self._runs += 1
        return f"r{self._runs}x"

    def _until(self, run: str, count: int) -> dict[int, list[float]]:
        """When each number arrived, once so many have, or after a while."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._sink.until_quiet(QUIET, deadline - time.monotonic())  # reading all of it is work
            if len(arrivals := self._arrivals(run)) >= count or time.monotonic() >= deadline:
                return arrivals

    def _arrivals(self, run: str) -> dict[int, list[float]]:
        arrivals: dict[int, list[float]] = defaultdict(list)
        for arrival in self._sink.seen().messages():
            for recipient in arrival.recipients:
                number, found, _ = recipient.partition(run)
                if found:
                    arrivals[int(number)].append(arrival.at)
        return arrivals


def _line(one: Waits) -> dict[str, object]:
    """What stands in the results of one round: percentiles, and the points of the curve."""
    fields: dict[str, object] = {"count": len(one.accept), "refused": one.refused, "missing": one.missing}
    for field in ("accept", "dot", "first"):
        ordered = getattr(one, field)
        fields |= {f"{field}_ms": {f"p{share * 100:g}": round(percentile(ordered, share), 3) for share in CURVE}}
    return fields | {"duplicates": one.duplicates}


def _cells(rounds: Sequence[Waits], field: str) -> list[str]:
    return [f"{Spread.of([percentile(getattr(one, field), share) for one in rounds]):.1f}" for share in SHARES]


def _chart(title: str, found: Mapping[str, Sequence[Waits]], field: str) -> str:
    curves = [
        (name, [(-log10(1 - share), median(percentile(getattr(one, field), share) for one in many)) for share in CURVE])
        for name, many in found.items()
    ]
    return chart.plot(title, curves, ticks=TICKS, logarithmic=True)
