"""One run: a load of smtp-source, or of tls_source, into a system, counted by our sink, with what it cost."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cgroup import Accounting, memory
from benchmarks.machine import flushes
from benchmarks.peers import Peer, Tls
from benchmarks.signing import make_certificate
from benchmarks.sink import Sink

PATIENCE = 120.0  # seconds until the last message; what is not there by then is missing
SETTLE = 1.0  # seconds after the last message whose CPU time still counts
MEMORY_EVERY = 2.0  # seconds; looking costs CPU
PLAIN, SIGNED = "plain.example", "signed.example"  # the sender's domain says whether to sign
CLEAR, ENCRYPTED = "sink.example", "tls.example"  # the recipient's, to which port of the sink it goes


@dataclass(frozen=True)
class Load:
    """What is sent."""

    size: int = 10_240  # bytes of the body
    clients: int = 20  # at the same time
    kept: bool = True  # one connection for many messages, else one each
    signed: bool = False  # by RSA-2048
    count: int = 6_000
    tls: bool = False  # STARTTLS on both sides: into the system, and out of it

    @property
    def name(self) -> str:
        size = f"{self.size // 1024} KB" if self.size < 1024 * 1024 else f"{self.size // 1024 // 1024} MB"
        words = [size, f"{self.clients} {'kept' if self.kept else 'new'}", "RSA-2048" if self.signed else "unsigned"]
        return ", ".join([*words, "STARTTLS"] if self.tls else words)

    def command(self, port: int, run: str) -> list[str]:
        domain = SIGNED if self.signed else PLAIN
        if self.tls:
            words = [sys.executable, "-m", "benchmarks.tls_source", str(port), "--count", str(self.count)]
            words += ["--sessions", str(self.clients), "--size", str(self.size), *([] if self.kept else ["--new"])]
            return [*words, "--sender", f"bench@{domain}", "--recipient", f"{run}@{ENCRYPTED}"]
        words = ["smtp-source", *(["-d"] if self.kept else []), "-N", "-s", str(self.clients), "-l", str(self.size)]
        words += ["-m", str(self.count), "-M", "client.localhost", "-f", f"bench@{domain}", "-t", f"{run}@{CLEAR}"]
        return [*words, f"127.0.0.1:{port}"]


@dataclass(frozen=True)
class Run:
    """What one run saw. `cpu_us` is of every process of the system, for each message."""

    peer: str
    cell: str
    rate: float  # messages a second, from the first connection to the last message at the sink
    accept_rate: float
    cpu_us: float
    memory_mb: float  # highest PSS
    flushes: float  # of the disk for each message, other programs' included
    source_us: float  # CPU of the load for each message
    sink_us: float
    count: int
    missing: int
    duplicates: int
    strays: int
    signed: int
    tls: int  # messages that came to the sink over TLS
    load: float  # average of the machine in the last minute: well above the cores means that others were at work

    @property
    def complete(self) -> bool:
        """Every message came, once, and signed and encrypted if it was to be."""
        wanted = {name: self.count if name in self.cell else 0 for name in ("RSA-2048", "STARTTLS")}
        return not self.missing and not self.duplicates and [self.signed, self.tls] == list(wanted.values())

    def as_dict(self) -> dict[str, object]:
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Bench:
    """The load and the sink, each in a group of its own."""

    def __init__(self, work: Path, source: Accounting, sink_group: Accounting) -> None:
        self._work = work
        self._source = source
        self._sink_group = sink_group
        certificate = make_certificate(work)
        self.sink = Sink(sink_group.command([]), work, certificate=certificate)
        self.tls = Tls(*certificate, self.sink.tls_port)
        self._runs = 0

    def run(self, peer: Peer, load: Load) -> Run:
        """Send the load through the peer and wait for all of it."""
        self._runs += 1
        run = f"r{self._runs}x"
        self.sink.begin(run)
        parts = peer.parts(signed=load.signed)
        cpu, source_cpu, sink_cpu = total_cpu(parts), self._source.cpu(), self._sink_group.cpu()
        flushed = flushes(self._work)
        with watched_memory(*parts) as peak:
            begun = time.monotonic()
            source = subprocess.run(
                self._source.command(load.command(peer.port(signed=load.signed), run)),
                check=True,
                stdout=subprocess.PIPE,
                timeout=PATIENCE * 3,
            )
            accepted = time.monotonic()
            begun = float(source.stdout or begun)
            report = self.sink.wait(load.count, PATIENCE)
        time.sleep(SETTLE)
        report = self.sink.report()
        return Run(
            peer=peer.name,
            cell=load.name,
            rate=report["unique"] / max(0.001, report["last"] - begun),
            accept_rate=load.count / (accepted - begun),
            cpu_us=(total_cpu(parts) - cpu) / load.count * 1e6,
            memory_mb=max(peak) / 1e6,
            flushes=(flushes(self._work) - flushed) / load.count,
            source_us=(self._source.cpu() - source_cpu) / load.count * 1e6,
            sink_us=(self._sink_group.cpu() - sink_cpu) / load.count * 1e6,
            count=load.count,
            missing=load.count - report["unique"],
            duplicates=report["duplicates"],
            strays=report["strays"],
            signed=report["signed"],
            tls=report["tls"],
            load=os.getloadavg()[0],
        )

    def close(self) -> None:
        self.sink.close()


def total_cpu(parts: Sequence[Accounting]) -> float:
    return sum(part.cpu() for part in parts)


@contextmanager
def watched_memory(*parts: Accounting) -> Iterator[list[int]]:
    """A list that gets the memory of these in bytes now and then, and at the end."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        seen.append(memory([pid for part in parts for pid in part.pids()]))

    def watch() -> None:
        while not done.wait(MEMORY_EVERY):
            look()

    watcher = threading.Thread(target=watch, name="memory")
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        look()
