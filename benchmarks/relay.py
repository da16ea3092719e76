"""End-to-end relay: mailerd beside other mail servers; sizes, clients, kept and new connections, signed, STARTTLS."""

import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import chart, machine, profile, syncs
from benchmarks.cgroup import accounting
from benchmarks.load import Bench, Load, Run
from benchmarks.peers import Peer, UnavailableError
from benchmarks.peers.exim import Exim
from benchmarks.peers.haraka import Haraka
from benchmarks.peers.mailerd import Mailerd
from benchmarks.peers.opensmtpd import OpenSmtpd
from benchmarks.peers.postfix import Postfix, TunedPostfix
from benchmarks.peers.slimta import Slimta
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import SELECTOR, make_key, verify

KB = 1024
SIZES = {"1KB": KB, "10KB": 10 * KB, "50KB": 50 * KB, "1MB": KB * KB}
COUNTS = {KB: 6_000, 10 * KB: 6_000, 50 * KB: 3_000, KB * KB: 400}
# Of these counts, so that no run takes much longer than another: source and sink need milliseconds for a TLS handshake,
# and most peers carry a third of what mailerd does.
OF_TLS = {True: 0.7, False: 0.25}  # over kept connections, and over new ones
OF_PEER = 0.4
OF_UNUSUAL = 0.6  # of cells that are only in the whole table
WARM_UP = 500
PEERS: dict[str, type[Peer]] = {
    kind.name: kind for kind in (Mailerd, Postfix, TunedPostfix, Exim, OpenSmtpd, Haraka, Slimta)
}
MATRIX_PEERS = ("mailerd", "postfix-tuned")  # in all cells of the whole table; the others in the usual ones
# What README shows: the main cell, its signed and its encrypted twin, and one step away from it in each direction.
USUAL = (
    Load(),
    Load(signed=True),
    Load(tls=True),
    Load(size=SIZES["1KB"]),
    Load(size=SIZES["50KB"]),
    Load(size=SIZES["1MB"]),
    Load(clients=100),
    Load(kept=False),
)
QUICK = USUAL[:3]
Failure = (OSError, RuntimeError, subprocess.SubprocessError, UnavailableError)


def every_load() -> list[Load]:
    """The whole table."""
    cells = product(SIZES.values(), (20, 100), (True, False), (False, True), (False, True))
    return [
        Load(size=size, clients=clients, kept=kept, signed=signed, tls=tls)
        for size, clients, kept, signed, tls in cells
    ]


def sized(loads: Sequence[Load], factor: float) -> list[Load]:
    """The same with as many messages as their kind allows, times `factor`."""

    def count(load: Load) -> int:
        share = (OF_TLS[load.kept] if load.tls else 1.0) * (1.0 if is_usual(load) else OF_UNUSUAL)
        return max(100, round(COUNTS.get(load.size, 1_000) * factor * share))

    return [replace(load, count=count(load)) for load in loads]


def for_peer(load: Load, name: str) -> Load:
    """With fewer messages for others than mailerd: rates and costs are of each message."""
    return load if name == "mailerd" else replace(load, count=max(100, round(load.count * OF_PEER)))


def is_usual(load: Load) -> bool:
    return load.name in {usual.name for usual in USUAL}


@dataclass
class Table:
    """What was measured: by cell and peer, then by round."""

    cells: Sequence[str]
    peers: list[str]
    runs: dict[tuple[str, str], dict[int, Run]] = field(default_factory=lambda: defaultdict(dict))
    why_not: dict[tuple[str, str], str] = field(default_factory=dict)  # of cells without figures

    def add(self, number: int, one: Run) -> None:
        self.runs[one.cell, one.peer][number] = one

    def of(self, cell: str, peer: str) -> list[Run]:
        return list(self.runs[cell, peer].values())

    def pairs(self, cell: str, peer: str) -> list[tuple[Run, Run]]:
        """mailerd's run and the peer's, of the same rounds."""
        ours, theirs = self.runs[cell, "mailerd"], self.runs[cell, peer]
        return [(ours[number], theirs[number]) for number in ours if number in theirs]


def run(
    work: Path,
    results: Results,
    *,
    loads: Sequence[Load],
    peers: Sequence[str],
    everywhere: Collection[str],
    rounds: int,
    profile_for: float = 0.0,
) -> bool:
    """Measure, write, say; whether every message came exactly once. Profiled runs are not figures.

    Peers that are not `everywhere` are measured in the usual cells only.

    A peer that cannot be had or does not start is left out, and a run that breaks is left out: the results name both.
    What `results` has of an earlier run (`resumed`) is not measured again.
    """
    described = machine.describe(work)
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        key, public = make_key(work)
        systems, absent = _started(stack, bench, work, key, peers, results)
        described |= {"cpu_by": systems[0].group.how}
        results.line(machine=described)
        if profile_for:
            mailerd = next(peer for peer in systems if isinstance(peer, Mailerd))
            results.text(
                profile.while_running(mailerd, lambda load: bench.run(mailerd, load), loads, profile_for, work)
            )
            return True
        table = Table([load.name for load in loads], [peer.name for peer in systems])
        left = _left(rounds, loads, systems, results, table, everywhere)
        warm = min(WARM_UP, max((load.count for load in loads), default=0))
        for system in systems:
            for signed, tls in sorted({(load.signed, load.tls) for _, load, peer in left if peer is system}):
                bench.run(system, Load(count=warm, signed=signed, tls=tls))
        good = _measure(bench, left, results, table, public)
        synced = _count_syncs(bench, systems, work, results)
        versions = {peer.name: peer.version() for peer in systems}
    results.text(f"{machine_line(described)}; load average during the runs: {_busy(table)}")
    if absent:
        results.text("\n".join(f"Left out: {name}: {why}" for name, why in absent.items()))
    _conclude(results, table)
    _say_on_disk(results, table, versions, synced)
    return good and all(one.complete for runs in table.runs.values() for one in runs.values())


def why_not(peer: Peer, load: Load) -> str:
    """What a peer lacks for a load, in words; empty: nothing."""
    return (peer.no_signature if load.signed else "") or (peer.no_tls if load.tls else "")


def _started(
    stack: ExitStack, bench: Bench, work: Path, key: Path, names: Sequence[str], results: Results
) -> tuple[list[Peer], dict[str, str]]:
    """The peers that run, and of the others why not."""
    systems, absent = [], {}
    for name in names:
        try:
            PEERS[name].prepare()
            peer = PEERS[name](work / name)
            try:
                peer.start(bench.sink.port, key, SELECTOR, bench.tls)
            except BaseException:
                with suppress(Exception):
                    peer.stop()
                raise
        except Failure as error:
            if name == "mailerd":
                raise
            absent[name] = str(error)
            results.line(peer=name, left_out=str(error))
            results.console.print(f"{name} is left out: {error}", highlight=False)
            continue
        stack.callback(peer.stop)
        systems.append(peer)
    return systems, absent


def _left(
    rounds: int,
    loads: Sequence[Load],
    systems: Sequence[Peer],
    results: Results,
    table: Table,
    everywhere: Collection[str],
) -> list[tuple[int, Load, Peer]]:
    """What is to be measured: all but the rounds of cells that an earlier run has whole, which go into the table."""
    earlier: dict[tuple[int, str], dict[str, Run]] = defaultdict(dict)
    for number, one in runs_in(results.lines):
        earlier[number, one.cell][one.peer] = one
    left = []
    for load in loads:
        asked = [peer for peer in systems if is_usual(load) or peer.name in everywhere]
        able = [peer for peer in asked if not why_not(peer, load)]
        table.why_not |= {(load.name, peer.name): why for peer in asked if (why := why_not(peer, load))}
        for number in range(rounds):
            known = earlier[number, load.name]
            loads_of = {peer.name: for_peer(load, peer.name) for peer in able}
            if all(name in known and known[name].count == one.count for name, one in loads_of.items()):
                for name in loads_of:
                    table.add(number, known[name])
            else:
                left += [(number, loads_of[peer.name], peer) for peer in _turned(able, number)]
    return left


def runs_in(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Run]]:
    """The runs among lines of results, with the number of their round."""
    names = {one.name for one in fields(Run)}
    for line in lines:
        if "round" in line and "rate" in line:
            yield line["round"], Run(**{name: value for name, value in line.items() if name in names})


def _turned(systems: Sequence[Peer], number: int) -> Iterator[Peer]:
    """A B C, then B C A, …: nobody is always the first."""
    first = number % max(1, len(systems))
    yield from [*systems[first:], *systems[:first]]


def _measure(bench: Bench, left: Sequence[tuple[int, Load, Peer]], results: Results, table: Table, public: str) -> bool:
    """Whether nothing broke and every signature that was looked at is good."""
    good = True
    looked_at: set[tuple[str, str]] = set()
    begun = time.monotonic()
    for done, (number, load, peer) in enumerate(left):
        try:
            one = bench.run(peer, load)
        except Failure as error:
            good = False
            table.why_not[load.name, peer.name] = "broke"
            results.line(round=number, cell=load.name, peer=peer.name, broke=str(error))
            results.console.print(f"{number + 1}  {load.name:38} {peer.name:14} BROKE {error}", highlight=False)
            continue
        results.line(round=number, **one.as_dict())
        table.add(number, one)
        rest = (time.monotonic() - begun) / (done + 1) * (len(left) - done - 1)
        results.console.print(_progress(number, one, rest), highlight=False)
        if load.signed and (load.name, peer.name) not in looked_at:
            looked_at.add((load.name, peer.name))
            verifies = verify(bench.sink.sample, public)
            good = good and verifies
            results.line(cell=load.name, peer=peer.name, signature_verifies=verifies)
    return good


def _progress(number: int, one: Run, rest: float) -> str:
    lost = f"MISSING {one.missing} TWICE {one.duplicates} SIGNED {one.signed} TLS {one.tls}"
    left = f"  {timedelta(seconds=round(rest))} left"
    figures = f"{one.rate:7.0f} msg/s {one.cpu_us:7.0f} µs"
    return f"{number + 1}  {one.cell:38} {one.peer:14} {figures}{left}{'' if one.complete else '  ' + lost}"


def _count_syncs(
    bench: Bench, systems: Sequence[Peer], work: Path, results: Results
) -> dict[str, dict[str, dict[str, float]]]:
    """Of each peer: calls for each message; of those where it cannot be counted, nothing."""
    found = {}
    try:
        syncs.prepare()
        for peer in systems:
            found[peer.name] = syncs.count(bench, peer, work)
            results.line(peer=peer.name, syncs=found[peer.name])
    except Failure as error:
        results.console.print(f"calls of fsync are not counted: {error}", highlight=False)
    return found


def _busy(table: Table) -> str:
    loads = [one.load for runs in table.runs.values() for one in runs.values()]
    return f"{Spread.of(loads):.1f}" if loads else "-"


def _conclude(results: Results, table: Table) -> None:
    heads = [
        "cell, peer",
        "msg/s",
        "accepted/s",
        "CPU µs/msg",
        "PSS MB",
        "flushes/msg",
        "source µs",
        "sink µs",
        "lost",
        "twice",
    ]
    results.table("Each system, median of the rounds (lowest and highest)", heads, [
        [f"{cell}: {peer}", *_figures(table.of(cell, peer), table.why_not.get((cell, peer), ""))]
        for cell in table.cells for peer in table.peers
        if table.of(cell, peer) or (cell, peer) in table.why_not
    ])  # fmt: skip
    others = [peer for peer in table.peers if peer != "mailerd"]
    if "mailerd" in table.peers and others:
        ratios = ratios_of(table)
        rows = [[cell, other, f"{rate:.2f}", f"{cpu:.2f}"] for (cell, other), (rate, cpu) in ratios.items()]
        results.table("mailerd to the peer, of the same round", ["cell", "peer", "rate", "CPU"], rows)
        results.table("Cells in which a peer is ahead", ["cell", "peer", "ahead in", "rate", "CPU"], _ahead(ratios))
    charts = [
        _chart("Messages a second, end to end", table, "rate"),
        _chart("CPU, µs a message, all processes", table, "cpu_us"),
    ]
    results.picture(chart.page(charts))


def _figures(runs: Sequence[Run], why_not: str) -> list[str]:
    if not runs:
        return [why_not or "-", *[""] * 8]

    def spread(name: str) -> Spread:
        return Spread.of([getattr(one, name) for one in runs])

    return [
        f"{spread('rate'):.0f}",
        f"{spread('accept_rate').middle:.0f}",
        f"{spread('cpu_us'):.0f}",
        f"{spread('memory_mb').high:.0f}",
        f"{spread('flushes').middle:.2f}",
        f"{spread('source_us').middle:.0f}",
        f"{spread('sink_us').middle:.0f}",
        str(sum(one.missing for one in runs)),
        str(sum(one.duplicates for one in runs)),
    ]


def ratios_of(table: Table) -> dict[tuple[str, str], tuple[Spread, Spread]]:
    """mailerd's rate and CPU to those of each peer, by cell and peer."""
    return {
        (cell, other): _ratios(table.pairs(cell, other))
        for cell in table.cells
        for other in table.peers
        if other != "mailerd" and table.pairs(cell, other)
    }


def _ratios(pairs: Sequence[tuple[Run, Run]]) -> tuple[Spread, Spread]:
    rate = Spread.of([our.rate / max(0.001, their.rate) for our, their in pairs])
    cpu = Spread.of([our.cpu_us / max(0.001, their.cpu_us) for our, their in pairs])
    return rate, cpu


def _ahead(ratios: Mapping[tuple[str, str], tuple[Spread, Spread]]) -> list[list[str]]:
    rows = [
        [cell, peer, ", ".join(what), f"{rate:.2f}", f"{cpu:.2f}"]
        for (cell, peer), (rate, cpu) in ratios.items()
        if (what := ahead_in(rate, cpu))
    ]
    return rows or [["none", "", "", "", ""]]


def ahead_in(rate: Spread, cpu: Spread) -> list[str]:
    """In what a peer is ahead, as the median of the ratios says."""
    return [name for name, worse in (("rate", rate.middle < 1), ("CPU", cpu.middle > 1)) if worse]


def _say_on_disk(
    results: Results, table: Table, versions: Mapping[str, str], synced: Mapping[str, dict[str, dict[str, float]]]
) -> None:
    """What a message has when it is accepted: in words, and what was counted."""

    def calls(peer: str, name: str) -> str:
        if peer not in synced:
            return "not counted"
        found = [f"{count:.2f} {call}" for call, count in synced[peer][name].items() if count >= 0.005]
        return " + ".join(found) or "0"

    rows = []
    for peer in table.peers:
        flushed = [one.flushes for one in table.of(table.cells[0], peer)]
        flushes = f"{Spread.of(flushed).middle:.2f}" if flushed else "-"
        rows.append([peer, versions[peer], calls(peer, "one"), calls(peer, "many"), flushes, PEERS[peer].at_250])
    heads = ["peer", "version", "calls/msg, 1 client", "calls/msg, 20 clients", "disk flushes/msg", "on disk at 250"]
    results.table("What is on disk at 250", heads, rows)


def _chart(title: str, table: Table, name: str) -> str:
    groups = []
    usual = {load.name for load in USUAL}
    for cell in [cell for cell in table.cells if cell in usual] or table.cells:
        figures = {peer: [getattr(one, name) for one in table.of(cell, peer)] for peer in table.peers}
        groups.append((cell, [(peer, Spread.of(values).middle) for peer, values in figures.items() if values]))
    return chart.bars(title, [group for group in groups if group[1]])
