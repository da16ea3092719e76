"""What a system under test uses: CPU time and memory of all its processes, also of those that have ended."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
PREFIX = "mailerd-bench-"  # of our groups; the process id of the benchmark and a name follow
TICKS = os.sysconf("SC_CLK_TCK")


class Accounting(Protocol):
    """Where the processes of one system are counted."""

    how: str

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs `words`, and all its children, counted."""

    def adopt(self, pid: int) -> None:
        """A process started by `command`."""

    def pids(self) -> list[int]: ...

    def cpu(self) -> float:
        """Seconds of CPU so far."""

    def close(self) -> None: ...


def accounting(name: str) -> Accounting:
    """By control group where we may make one, else by walking the tree of processes."""
    for make in (ControlGroup, CpuacctGroup):
        with suppress(OSError, LookupError):
            return make(name)
    return ProcessTree()


class ControlGroup:
    """A control group, version 2: the kernel counts, whatever the processes do."""

    how = "cgroup v2"
    _kind = "cgroup2"

    def __init__(self, name: str) -> None:
        root = self._root()
        remove_stale(root)
        self._path = root / f"{PREFIX}{os.getpid()}-{name}"
        self._path.mkdir()

    def _root(self) -> Path:
        """Our own group, when the top is not ours to write to."""
        top = _mount(self._kind, "")
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        return top if os.access(top, os.W_OK) else top / own.lstrip("/")

    def command(self, words: Sequence[str]) -> list[str]:
        return ["sh", "-c", ENTER, str(self._path), *words]

    def adopt(self, pid: int) -> None:
        """Nothing to do: it is in the group."""

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]

    def cpu(self) -> float:
        fields = dict(line.split() for line in (self._path / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def close(self) -> None:
        """End what is left in the group, and remove it."""
        for _ in range(100):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.05)


class CpuacctGroup(ControlGroup):
    """The same of version 1."""

    how = "cgroup v1 cpuacct"

    def _root(self) -> Path:
        return _mount("cgroup", "cpuacct")

    def cpu(self) -> float:
        return int((self._path / "cpuacct.usage").read_text()) / 1e9


class ProcessTree:
    """Without control groups: the descendants, and the children they waited for. Orphans' time is missed."""

    how = "/proc, orphans missed"

    def __init__(self) -> None:
        self._roots: list[int] = []

    def command(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def adopt(self, pid: int) -> None:
        self._roots.append(pid)

    def pids(self) -> list[int]:
        return [pid for pid, _ in self._walk()]

    def cpu(self) -> float:
        return sum(map(float, (ticks for _, ticks in self._walk()))) / TICKS

    def _walk(self) -> list[tuple[int, int]]:
        """Process ids with their ticks, waited-for children included."""
        stats = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
        found, last = set(self._roots) & set(stats), set[int]()
        while found != last:
            last, found = found, found | {pid for pid, (parent, _) in stats.items() if parent in found}
        return [(pid, stats[pid][1]) for pid in found]

    def close(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def memory(pids: Sequence[int]) -> int:
    """Bytes of the processes, each shared page counted once in all (PSS)."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # ended meanwhile
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def remove_stale(root: Path) -> None:
    """Remove the empty groups of benchmarks that were killed."""
    for group in root.glob(f"{PREFIX}*-*"):
        pid = group.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with suppress(OSError):  # something still runs in it
                group.rmdir()


def _mount(kind: str, option: str) -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, type_, options, *_ = line.split()
        if type_ == kind and (not option or option in options.split(",")):
            return Path(where)
    raise LookupError(f"no {kind} {option}")
