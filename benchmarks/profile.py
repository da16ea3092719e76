"""Where a worker's time goes while mail runs through it: py-spy, folded into a table of functions."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.cgroup import TICKS
from benchmarks.load import Load, Run
from benchmarks.peers.mailerd import Mailerd

RATE = 250  # samples a second
ROWS = 30


def while_running(peer: Mailerd, once: Callable[[Load], Run], loads: Sequence[Load], seconds: float, work: Path) -> str:
    """Run the loads again and again while a worker is watched; the table, for people."""
    tables = []
    for load in loads:
        once(load)  # warm
        before = peer_times(peer)
        one = once(load)
        after = peer_times(peer)
        tables.append(f"{load.name}: {one.rate:.0f} msg/s, {one.cpu_us:.0f} µs\n{shares(before, after, load.count)}")
        file = work / "profile.folded"
        watcher = threading.Thread(target=folded, args=(peer.workers()[0], seconds, file))
        watcher.start()
        while watcher.is_alive():
            once(load)
        watcher.join()
        tables.append(table(file.read_text()))
    return "\n\n".join(tables)


def peer_times(peer: Mailerd) -> dict[str, tuple[float, float]]:
    """Seconds in user and in system mode of each process, by what it calls itself."""
    times = {}
    for pid in peer.group.pids():
        with suppress(OSError):  # ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
            # Ours say it last, PostgreSQL's at once: "postgres: checkpointer".
            name = " ".join(words[:3]) if words[0] == "postgres:" else words[-1].rpartition("/")[2]
            times[f"{pid} {name}"] = (int(fields[11]) / TICKS, int(fields[12]) / TICKS)
    return times


def shares(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], count: int) -> str:
    """µs a message of each process that used any."""
    lines = ["user + system µs of each process, for each message"]
    for name, (user, system) in after.items():
        was_user, was_system = before.get(name, (0.0, 0.0))
        user, system = (user - was_user) / count * 1e6, (system - was_system) / count * 1e6
        if user + system >= 1.0:
            lines.append(f"{user:6.0f} +{system:5.0f}  {name}")
    return "\n".join(lines)


def table(folded: str) -> str:
    """Functions by their own time, then by time with what they call, of the samples of one thread set."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("process ")]
        own[frames[-1]] += int(count)
        whole.update(dict.fromkeys(set(frames), int(count)))
    total = sum(own.values()) or 1
    parts = []
    for title, counter in (("own time", own), ("with callees", whole)):
        parts.append(f"{title} ({total} samples)")
        parts += [f"{count / total:7.1%}  {name}" for name, count in counter.most_common(ROWS)]
    return "\n".join(parts)


def folded(pid: int, seconds: float, file: Path) -> str:
    """Samples of a process: a line for each stack, its frames by `;`, outermost first, and how often it was seen."""
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    words = [py_spy, "record", "--nonblocking", "-d", str(round(seconds)), "-r", str(RATE), "-F", "-f", "raw"]
    subprocess.run(
        [*words, "-o", str(file), "-p", str(pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return file.read_text()
