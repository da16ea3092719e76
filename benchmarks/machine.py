"""The machine, and what its disk was asked for."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


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
        "load": [round(load, 2) for load in os.getloadavg()],
    }


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
