"""What the load and the sinks cost by themselves: smtp-source and tls_source straight into our sink, and Postfix's."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from benchmarks.cgroup import accounting
from benchmarks.load import Load
from benchmarks.peers import free_port
from benchmarks.report import Results, Spread, machine_line
from benchmarks.signing import make_certificate
from benchmarks.sink import Sink

MB = 1024 * 1024


def run(work: Path, results: Results, *, rounds: int, count: int) -> None:
    """Both sinks in turn; the highest rate that any system could show with them, and their share of the two cores."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    few = max(100, count // 20)
    loads = [Load(count=count), Load(count=count, kept=False), Load(size=MB, count=few)]
    loads += [replace(load, tls=True) for load in loads]
    for number in range(rounds):
        for load in loads:
            # smtp-sink has no STARTTLS.
            for name, measure in (("our sink", _ours), ("smtp-sink", _theirs))[: 1 if load.tls else 2]:
                figures = measure(work, load)
                seen.setdefault((load.name, name), []).append(figures)
                results.line(
                    round=number, cell=load.name, sink=name, rate=figures[0], source_us=figures[1], sink_us=figures[2]
                )
    rows = []
    for (cell, name), all_figures in seen.items():
        rate, source, sink = (Spread.of(list(column)) for column in zip(*all_figures, strict=True))
        rows.append([f"{cell}: {name}", f"{rate:.0f}", f"{source:.0f}", f"{sink:.0f}"])
    title = "smtp-source, and with STARTTLS tls_source, straight into a sink"
    results.table(title, ["cell, sink", "msg/s", "source µs", "sink µs"], rows)


def _ours(work: Path, load: Load) -> tuple[float, float, float]:
    group = accounting("sink")
    sink = Sink(group.command([]), work, certificate=make_certificate(work))
    try:
        before = group.cpu()
        sink.begin("r0x")
        rate, source = _send(load, sink.tls_port if load.tls else sink.port)
        report = sink.wait(load.count, 10.0)
        assert (report["unique"], report["tls"]) == (load.count, load.count if load.tls else 0)
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
        words = group.command(load.command(port, "r0x"))
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=300)
        ended = time.monotonic()
        return load.count / (ended - float(done.stdout or begun)), group.cpu() / load.count * 1e6
    finally:
        group.close()
