"""What the load and the sinks cost by themselves: smtp-source straight into our sink, and into Postfix's."""

import subprocess
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.cgroup import accounting
from benchmarks.load import Load
from benchmarks.peers import free_port
from benchmarks.report import Results, Spread, machine_line
from benchmarks.sink import Sink


def run(work: Path, results: Results, *, rounds: int, count: int) -> None:
    """Both sinks in turn; the highest rate that any system could show with them, and their share of the two cores."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number in range(rounds):
        for load in (Load(count=count), Load(size=1024 * 1024, count=max(100, count // 20))):
            for name, measure in (("our sink", _ours), ("smtp-sink", _theirs)):
                figures = measure(work, load)
                seen.setdefault((load.name, name), []).append(figures)
                results.line(
                    round=number, cell=load.name, sink=name, rate=figures[0], source_us=figures[1], sink_us=figures[2]
                )
    rows = []
    for (cell, name), all_figures in seen.items():
        rate, source, sink = (Spread.of(list(column)) for column in zip(*all_figures, strict=True))
        rows.append([f"{cell}: {name}", f"{rate:.0f}", f"{source:.0f}", f"{sink:.0f}"])
    results.table("smtp-source straight into a sink", ["cell, sink", "msg/s", "smtp-source µs", "sink µs"], rows)


def _ours(work: Path, load: Load) -> tuple[float, float, float]:
    group = accounting("sink")
    sink = Sink(group.command([]), work)
    try:
        before = group.cpu()
        sink.begin("r0x")
        rate, source = _send(load, sink.port)
        assert sink.wait(load.count, 10.0)["unique"] == load.count
        return rate, source, (group.cpu() - before) / load.count * 1e6
    finally:
        sink.close()
        group.close()


def _theirs(_: Path, load: Load) -> tuple[float, float, float]:
    group, port = accounting("sink"), free_port()
    words = ["smtp-sink", "-u", "nobody", f"127.0.0.1:{port}", "1000"]
    process = subprocess.Popen(group.command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    group.adopt(process.pid)
    time.sleep(0.5)  # to listen
    try:
        before = group.cpu()
        rate, source = _send(load, port)
        return rate, source, (group.cpu() - before) / load.count * 1e6
    finally:
        process.terminate()
        process.wait(10)
        group.close()


def _send(load: Load, port: int) -> tuple[float, float]:
    """Messages a second, and CPU of the load in µs for each message."""
    group = accounting("source")
    try:
        begun = time.monotonic()
        subprocess.run(group.command(load.command(port, "r0x")), check=True, stdout=subprocess.DEVNULL, timeout=300)
        return load.count / (time.monotonic() - begun), group.cpu() / load.count * 1e6
    finally:
        group.close()
