"""What each kind of process of one mailerd uses: the main process, the workers, PostgreSQL."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.cgroup import TICKS, Accounting, memory

MAIN, WORKERS, POSTGRES = "main", "workers", "PostgreSQL"


def kind_of(command: bytes) -> str:
    """Of a process by its command line, as /proc has it. With one worker the main process is the worker."""
    if b"postgres" in command[:200]:
        return POSTGRES
    return WORKERS if command.endswith(b"worker\0") else MAIN


def cpu_by_kind(pids: Iterable[int]) -> dict[str, float]:
    """Seconds of CPU of the processes there are; those that have ended are forgotten."""
    return _by_kind(pids, _seconds)


def memory_by_kind(pids: Iterable[int]) -> dict[str, float]:
    """Bytes, each shared page counted once in all (PSS)."""
    return _by_kind(pids, lambda pid: memory([pid]))


def each(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """µs of CPU of each kind for one of `count` messages."""
    return {kind: (used - before.get(kind, 0.0)) / count * 1e6 for kind, used in after.items()}


@contextmanager
def watched_kinds(*groups: Accounting, every: float = 2.0) -> Iterator[dict[str, float]]:
    """The most memory of each kind, in bytes, as far as it was seen every so many seconds and at the end."""
    most: dict[str, float] = {}
    done = threading.Event()

    def look() -> None:
        for kind, amount in memory_by_kind([pid for group in groups for pid in group.pids()]).items():
            most[kind] = max(amount, most.get(kind, 0.0))

    def watch() -> None:
        while not done.wait(every):
            look()

    watcher = threading.Thread(target=watch, name="memory by kind")
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
        look()


def _by_kind(pids: Iterable[int], amount: Callable[[int], float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pid in pids:
        with suppress(OSError):  # ended meanwhile
            kind = kind_of(Path(f"/proc/{pid}/cmdline").read_bytes())
            found[kind] = found.get(kind, 0.0) + amount(pid)
    return found


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
