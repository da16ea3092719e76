"""The machine, and what its disk was asked for."""

import hashlib
import os
import platform
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

TOP = Path(__file__).parents[1]
CODE = ("mailerd/**/*", "benchmarks/**/*.py", "benchmarks/*.lua", "benchmarks/data/*", "tests/support/*.py")


@cache
def tree() -> str:
    """What names the program that is measured and what measures it, committed or not."""
    files = {file for pattern in CODE for file in TOP.glob(pattern) if file.is_file()}
    digest = hashlib.sha256((TOP / "requirements.lock").read_bytes())
    for file in sorted(files):
        if file.suffix != ".pyc" and "work" not in file.relative_to(TOP).parts:
            digest.update(f"{file.relative_to(TOP)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def describe(work: Path) -> dict[str, object]:
    """What a reader of the figures has to know about where they come from."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "filesystem": _filesystem(work),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "tree": tree(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def busy(seconds: float) -> float:
    """How many cores are at work for this long, on whatever. Of somebody else, when we do nothing."""
    before = _idle()
    time.sleep(seconds)
    return max(0.0, len(os.sched_getaffinity(0)) - (_idle() - before) / seconds)


def _idle() -> float:
    """Seconds of all cores without work."""
    _, _, _, _, idle, waiting, *_ = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def flushes(work: Path) -> int:
    """How often the disk under `work` was told to make its writes durable, by anybody (0: the kernel does not say)."""
    device = os.stat(work).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, *counts = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)) and len(counts) > 15:
            return int(counts[15])
    return 0


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(work: Path) -> str:
    best = ("", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if work.resolve().is_relative_to(where) and len(where) > len(best[0]):
            best = (where, kind)
    return best[1]
