"""End-to-end relay: mailerd beside Postfix, unsigned and signed, sizes, clients, kept and new connections."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks import chart, machine, profile
from benchmarks.cgroup import accounting
from benchmarks.load import Bench, Load, Run
from benchmarks.peers import Peer
from benchmarks.peers.mailerd import Mailerd
from benchmarks.peers.postfix import Postfix, TunedPostfix
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key, verify

KB = 1024
SIZES = {"1KB": KB, "10KB": 10 * KB, "50KB": 50 * KB, "1MB": KB * KB}
COUNTS = {KB: 6_000, 10 * KB: 6_000, 50 * KB: 3_000, KB * KB: 400}
WARM_UP = 500
PEERS: dict[str, type[Peer]] = {"mailerd": Mailerd, "postfix": Postfix, "postfix-tuned": TunedPostfix}
# What README shows: the main cell, its signed twin, and one step away from it in each direction.
USUAL = (
    Load(),
    Load(signed=True),
    Load(size=SIZES["1KB"]),
    Load(size=SIZES["50KB"]),
    Load(size=SIZES["1MB"]),
    Load(clients=100),
    Load(kept=False),
)
QUICK = USUAL[:2]


def every_load() -> list[Load]:
    """The whole table."""
    cells = product(SIZES.values(), (20, 100), (True, False), (False, True))
    return [Load(size=size, clients=clients, kept=kept, signed=signed) for size, clients, kept, signed in cells]


def sized(loads: Sequence[Load], factor: float) -> list[Load]:
    """The same with as many messages as their size allows, times `factor`."""
    return [replace(load, count=max(100, round(COUNTS.get(load.size, 1_000) * factor))) for load in loads]


def run(
    work: Path, results: Results, *, loads: Sequence[Load], peers: Sequence[str], rounds: int, profile_for: float = 0.0
) -> bool:
    """Measure, write, say; whether every message came exactly once. Profiled runs are not figures."""
    described = machine.describe(work)
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        key, public = make_key(work)
        systems = []
        for name in peers:
            peer = PEERS[name](work / name)
            stack.callback(peer.stop)
            peer.start(bench.sink.port, key, SELECTOR)
            systems.append(peer)
        described |= {"cpu_by": systems[0].group.how}
        results.line(machine=described)
        if profile_for:
            mailerd = next(peer for peer in systems if isinstance(peer, Mailerd))
            results.text(
                profile.while_running(mailerd, lambda load: bench.run(mailerd, load), loads, profile_for, work)
            )
            return True
        for system in systems:
            for signed in {load.signed for load in loads}:
                bench.run(system, Load(count=WARM_UP, signed=signed))
        runs, signatures = [], []
        for number, load, peer in _schedule(rounds, loads, systems):
            one = bench.run(peer, load)
            results.line(round=number, **one.as_dict())
            results.console.print(_progress(number, one), highlight=False)
            if load.signed and number == 0:
                signatures.append(verify(bench.sink.sample, public))
                results.line(peer=peer.name, signature_verifies=signatures[-1])
            runs.append(one)
    _conclude(results, runs, described, [load.name for load in loads], list(peers))
    return all(one.complete for one in runs) and all(signatures)


def _schedule(rounds: int, loads: Sequence[Load], systems: Sequence[Peer]) -> Iterator[tuple[int, Load, Peer]]:
    """A B C, then B C A, …: nobody is always the first."""
    for load in loads:
        for number in range(rounds):
            first = number % len(systems)
            for peer in [*systems[first:], *systems[:first]]:
                yield number, load, peer


def _progress(number: int, one: Run) -> str:
    lost = "" if one.complete else f"  MISSING {one.missing} TWICE {one.duplicates} SIGNED {one.signed}"
    return f"{number + 1}  {one.cell:28} {one.peer:14} {one.rate:7.0f} msg/s {one.cpu_us:7.0f} µs{lost}"


def _conclude(
    results: Results, runs: Sequence[Run], described: dict[str, object], cells: Sequence[str], peers: Sequence[str]
) -> None:
    of: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for one in runs:
        of[one.cell, one.peer].append(one)
    busy = f"{Spread.of([one.load for one in runs]):.1f}"
    results.text(f"{machine_line(described)}; load average during the runs: {busy}")
    heads = [
        "cell, peer",
        "msg/s",
        "accepted/s",
        "CPU µs/msg",
        "PSS MB",
        "flushes/msg",
        "sink+load µs",
        "lost",
        "twice",
    ]
    results.table("Each system, median of the rounds (lowest and highest)", heads, [
        [f"{cell}: {peer}", *_figures(of[cell, peer])] for cell in cells for peer in peers
    ])  # fmt: skip
    others = [peer for peer in peers if peer != "mailerd"]
    if "mailerd" in peers and others:
        rows = [_ratios(cell, other, of[cell, "mailerd"], of[cell, other]) for cell in cells for other in others]
        results.table("mailerd to the peer, of the same round", ["cell", "peer", "rate", "CPU"], rows)
    charts = [
        _chart("Messages a second, end to end", of, cells, peers, "rate"),
        _chart("CPU, µs a message, all processes", of, cells, peers, "cpu_us"),
    ]
    results.picture(chart.page(charts))


def _figures(runs: Sequence[Run]) -> list[str]:
    def spread(name: str) -> Spread:
        return Spread.of([getattr(one, name) for one in runs])

    load = Spread.of([one.source_us + one.sink_us for one in runs])
    return [
        f"{spread('rate'):.0f}",
        f"{spread('accept_rate').middle:.0f}",
        f"{spread('cpu_us'):.0f}",
        f"{spread('memory_mb').high:.0f}",
        f"{spread('flushes').middle:.2f}",
        f"{load.middle:.0f}",
        str(sum(one.missing for one in runs)),
        str(sum(one.duplicates for one in runs)),
    ]


def _ratios(cell: str, peer: str, ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    pairs = list(zip(ours, theirs, strict=True))
    rate = Spread.of([our.rate / their.rate for our, their in pairs])
    cpu = Spread.of([our.cpu_us / their.cpu_us for our, their in pairs])
    return [cell, peer, f"{rate:.2f}", f"{cpu:.2f}"]


def _chart(
    title: str, of: dict[tuple[str, str], list[Run]], cells: Sequence[str], peers: Sequence[str], name: str
) -> str:
    groups = [
        (cell, [(peer, Spread.of([getattr(one, name) for one in of[cell, peer]]).middle) for peer in peers])
        for cell in cells
    ]
    return chart.bars(title, groups)
