"""All benchmarks in turn: what each of them is run with, and what became of it."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

from benchmarks import machine
from benchmarks.report import MISSED, Results

TOP = Path(__file__).parent.parent
ENDING = 60.0  # seconds for a benchmark to stop what it has started
UNAVAILABLE = 69  # of one that lacks a program


class Scale(Enum):
    """Of `all`."""

    USUAL = "usual"
    THOROUGH = "thorough"
    QUICK = "quick"


@dataclass(frozen=True)
class Part:
    """One benchmark of `all`: about so many minutes on two cores, as `all` runs it, `--thorough`, and `--quick`.

    `shorter` is what `all` says to it: less of the same. Without it (`--thorough`) a benchmark does as by its name.
    """

    name: str
    minutes: float
    thorough: float
    quick: float
    shorter: str = ""
    resumes: bool = False  # it knows --resume

    def expected(self, scale: Scale) -> float:
        return {Scale.USUAL: self.minutes, Scale.THOROUGH: self.thorough, Scale.QUICK: self.quick}[scale]

    def words(self, scale: Scale) -> list[str]:
        """What to call this program with, but for directories."""
        words = self.name.split()
        if self.name == "capacity":  # it calculates
            return words
        if scale is not Scale.QUICK:
            return [*words, *(self.shorter.split() if scale is Scale.USUAL else [])]
        return [*words, "--quick"]


# What the figures rest on first, should there be no time for the rest.
PARTS = (
    Part("loads", 0.7, 2, 0.3, "--rounds 1"),
    Part("relay", 27, 60, 1, "--cells every --factor 0.4", resumes=True),
    Part("latency", 5, 15, 0.7, "--seconds 25"),
    Part("idle", 0.7, 1, 0.3),
    Part("backlog", 8, 8, 1),
    Part("api", 3, 8, 0.8, "--seconds 4"),
    Part("scale", 2.5, 6, 0.7),
    Part("stages", 2.5, 4, 0.7, "--seconds 20"),
    Part("campaign", 2.5, 10, 0.5, "--mails 60000"),
    Part("capacity", 0.1, 0.1, 0.1),
    Part("soak", 63, 64, 1.2),
    Part("shaping", 3, 6, 1.3, "--seconds 15"),
    Part("campaign --crash", 3, 25, 1, "--contacts 15000 --kills 10"),
    Part("campaigns-at-once", 1.5, 10, 0.5, "--campaigns 2000"),
    Part("webhooks", 3, 20, 1, "--mails 4000"),
    Part("inbound", 2, 5, 0.3, "--bounced 2000"),
    Part("tracking", 1.2, 3, 0.5, "--seconds 10"),
    Part("suppressions", 1, 10, 0.3, "--rows 3000000"),
    Part("imports", 1, 2, 0.2),
    Part("contacts", 1.7, 2, 0.2),
    Part("segments", 1.5, 20, 0.5, "--rows 1000000"),
    Part("templates", 0.3, 1, 0.2),
    Part("throttle", 0.7, 1, 0.2),
    Part("bounces", 0.5, 1, 0.2),
    # Not among the usual ones, as they are long; the fault run proves something else than speed.
    Part("blocked", 0, 40, 0.7),
    Part("analytics", 0, 40, 0.3),
    Part("faults", 0, 35, 1, resumes=True),
)


def parts_of(scale: Scale) -> list[Part]:
    return [part for part in PARTS if part.expected(scale)]


def hours(parts: Iterable[Part], scale: Scale) -> str:
    return str(timedelta(minutes=round(sum(part.expected(scale) for part in parts))))[:-3]


SAID = {0: "ok", MISSED: "not all as promised", 1: "failed", UNAVAILABLE: "something is not installed"}


@dataclass(frozen=True)
class Outcome:
    """Of one part: the tree (`machine.tree`) and the words it was run with, minutes, and how it ended."""

    name: str
    words: list[str]
    tree: str
    minutes: float
    expected: float
    status: int

    @property
    def said(self) -> str:
        return SAID.get(self.status, f"ended with status {self.status}")

    @property
    def measured(self) -> bool:
        return self.status in {0, MISSED}


def run_parts(
    parts: Sequence[Part], work: Path, out: Path, scale: Scale, results: Results, *, known: Sequence[Outcome] = ()
) -> list[Outcome]:
    """One after the other, each a process of its own, whatever becomes of those before; `known` not once more."""
    tree = machine.tree()
    before = {(one.name, *one.words): one for one in known if one.measured and one.tree == tree}
    outcomes = []
    for number, part in enumerate(parts):
        words = part.words(scale)
        if one := before.get((part.name, *words)):
            outcomes.append(one)
            continue
        left = hours(parts[number:], scale)
        results.console.rule(f"{part.name}: {number + 1} of {len(parts)}, about {left} hours left")
        begun = time.monotonic()
        status = _run(_command(part, words, work, out, resumed=bool(known)))
        minutes = (time.monotonic() - begun) / 60
        one = Outcome(part.name, words, tree, round(minutes, 2), part.expected(scale), status)
        results.line(**asdict(one))
        outcomes.append(one)
    return outcomes


def _run(command: Sequence[str]) -> int:
    """Its status; when we are ended, it stops what it has started."""
    process = subprocess.Popen(command, cwd=TOP)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(ENDING)
        raise


def _command(part: Part, words: Sequence[str], work: Path, out: Path, *, resumed: bool) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", *words, "--out", str(out)]
    if part.name not in {"faults", "capacity"}:  # they have no directory, or make one of their own
        command += ["--work", str(work)]
    return [*command, "--resume"] if part.resumes and resumed else command
