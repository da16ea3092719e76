"""How often a system tells the kernel to make something durable, for each message, counted at its system calls.

Apart from the runs that are timed: a traced process is many times slower. Unlike the flushes of the disk, which are
everybody's, these are of the system alone, also where one flush serves many.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cgroup import Accounting
from benchmarks.load import Bench, Load
from benchmarks.peers import Peer
from benchmarks.peers.installed import apt_install

CALLS = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "msync")
ATTACH = 30.0  # seconds
ONE = Load(clients=1, count=100)  # the next message waits for the 250 of the last one: nothing is shared
MANY = Load(clients=20, count=400)


def prepare() -> None:
    """Have strace, or raise UnavailableError."""
    if shutil.which("strace") is None:
        apt_install("strace")


def count(bench: Bench, peer: Peer, work: Path) -> dict[str, dict[str, float]]:
    """Calls for each message by name, with one client and with many."""
    found = {}
    for name, load in (("one", ONE), ("many", MANY)):
        file = work / f"{peer.name}.strace"
        with _traced(peer.parts(signed=False), file):
            bench.run(peer, load)
        found[name] = {call: calls / load.count for call, calls in parse(file.read_text()).items()}
    return found


def parse(summary: str) -> dict[str, int]:
    """The calls of a table of `strace -c`; none of them: an empty one."""
    rows = (line.split() for line in summary.splitlines())
    return {row[-1]: int(row[3]) for row in rows if len(row) > 4 and row[-1] in CALLS}


@contextmanager
def _traced(parts: Sequence[Accounting], file: Path) -> Iterator[None]:
    """Trace all processes of these, and those they start, while the body runs; the summary is in `file` then."""
    pids = [str(pid) for part in parts for pid in part.pids()]
    words = ["strace", "-f", "-c", "-o", str(file), "-e", f"trace={','.join(CALLS)}"]
    tracer = subprocess.Popen([*words, *(f"-p{pid}" for pid in pids)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + ATTACH
        while not all(map(_is_traced, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of them, and writes
        tracer.wait(ATTACH)


def _is_traced(pid: str) -> bool:
    try:
        return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # ended
        return True
