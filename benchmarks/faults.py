"""kill -9 of workers, the daemon and PostgreSQL at random moments under load, and what became of the promises.

    scripts/bench faults --kills 100

Clients submit by SMTP and HTTP all the time and write down who was answered 250 or 202. At the end the queue drains,
and their ledger is compared with that of the mail exchanger: everything promised arrived, nothing arrived twice unless
the events mark it as in doubt. The exit status is 1 when that is not so. Every kill is of a process that we started.
"""

import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.report import Results
from tests.faults.laboratory import Comparison, Laboratory, kill, laboratory
from tests.support.submitters import Submitters

RESULTS = Path(__file__).parent / "results"
FROZEN = 40.0  # seconds; longer than a lease
EARLY = 0.25  # share of the kills that do not wait until mail flows again after the one before
RECOVERED = 90.0  # seconds in which mail has to flow again
SOME = 20  # recipients promised show that it does

console = Console(width=None if sys.stdout.isatty() else 160)
Hurt = Callable[[Laboratory], Awaitable[None]]


async def kill_worker(lab: Laboratory) -> None:
    if workers := lab.daemon.workers():
        kill(random.choice(workers))


async def kill_daemon(lab: Laboratory) -> None:
    await lab.daemon.kill()
    await lab.daemon.start()


async def kill_starting_daemon(lab: Laboratory) -> None:
    """Twice: once as it serves, and once somewhere in the start that follows."""
    await lab.daemon.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(random.uniform(0.05, 2.0)):
            await lab.daemon.start()
    await lab.daemon.kill()
    await lab.daemon.start()


async def kill_postmaster(lab: Laboratory) -> None:
    if (pid := lab.daemon.postmaster()) is not None:
        kill(pid)


async def kill_session(lab: Laboratory) -> None:
    if backends := lab.daemon.backends():
        kill(random.choice(backends))


async def kill_all(lab: Laboratory) -> None:
    """As when the power fails, as far as processes go."""
    for pid in [lab.daemon.postmaster(), *lab.daemon.backends(), *lab.daemon.workers()]:
        if pid is not None:
            kill(pid)
    await lab.daemon.kill()
    await lab.daemon.start()


async def freeze_worker(lab: Laboratory) -> None:
    """A worker stands still; the daemon finds out and kills it."""
    worker = random.choice(lab.daemon.workers())
    kill(worker, signal.SIGSTOP)
    await asyncio.sleep(FROZEN)
    kill(worker, signal.SIGCONT)


async def freeze_worker_and_daemon(lab: Laboratory) -> None:
    """Nobody kills the worker that stands still; another one takes over, and then it goes on."""
    worker = random.choice(lab.daemon.workers())
    kill(lab.daemon.process.pid, signal.SIGSTOP)
    kill(worker, signal.SIGSTOP)
    await asyncio.sleep(FROZEN)
    kill(worker, signal.SIGCONT)
    await asyncio.sleep(2)
    kill(lab.daemon.process.pid, signal.SIGCONT)


KILLS: dict[str, Hurt] = {
    "worker": kill_worker,
    "daemon": kill_daemon,
    "postmaster": kill_postmaster,
    "database session": kill_session,
    "daemon, and as it starts": kill_starting_daemon,
    "all at once": kill_all,
}
FREEZES: dict[str, Hurt] = {
    "worker stopped 40 s": freeze_worker,
    "worker and daemon stopped 40 s": freeze_worker_and_daemon,
}


class Run:
    """One laboratory, hurt again and again."""

    def __init__(self, lab: Laboratory, load: Submitters, results: Results) -> None:
        self._lab = lab
        self._load = load
        self._results = results
        self.outages: dict[str, list[float]] = {}

    async def hurt(self, name: str, how: Hurt, *, early: bool) -> None:
        """Do it, and see for how long nobody was promised anything."""
        if not early:
            await self._load.until_promised(random.randrange(10, 200))
        await asyncio.sleep(random.uniform(0, 0.5))
        self._load.promises.longest_gap = 0.0
        await how(self._lab)
        async with asyncio.timeout(RECOVERED):
            await self._load.until_promised(SOME)
        seconds = self._load.promises.longest_gap
        self.outages.setdefault(name, []).append(seconds)
        self._results.line(hurt=name, early=early, seconds=round(seconds, 3))


async def run(kills: int, freezes: bool, results: Results, directory: Path) -> Comparison:
    begun = time.monotonic()
    async with laboratory(directory) as lab:
        load = lab.load(smtp=30, http=6)
        load.start()
        going = Run(lab, load, results)
        kinds = list(KILLS.items())
        for count in range(kills):
            name, how = kinds[count % len(kinds)]
            await going.hurt(name, how, early=count > 0 and random.random() < EARLY)
            if count % 10 == 9:
                console.print(f"{count + 1} kills, {len(load.promises.promised):,} promised", highlight=False)
        for name, how in FREEZES.items() if freezes else ():
            console.print(name)
            await going.hurt(name, how, early=False)
        await load.stop()
        comparison = await lab.verdict(load)
    _report(results, comparison, going.outages, time.monotonic() - begun)
    return comparison


def _report(results: Results, comparison: Comparison, outages: dict[str, list[float]], seconds: float) -> None:
    rows = [(name, str(len(times)), f"{median(times):.1f} s", f"{max(times):.1f} s") for name, times in outages.items()]
    results.table("Faults under load", ("killed or stopped", "times", "no promise for, median", "longest"), rows)
    counts = [
        ("promised (250, 202)", comparison.promised),
        ("of them lost", len(comparison.lost)),
        ("arrived altered", len(comparison.broken)),
        ("arrived again, marked in doubt", comparison.duplicates - len(comparison.unmarked)),
        ("arrived again, not marked", len(comparison.unmarked)),
        ("marked in doubt in all", comparison.marked),
        ("refused (451, 503, 421)", comparison.refused),
        ("of them arrived all the same", comparison.refused_arrived),
        ("without an answer", comparison.unanswered),
        ("of them arrived", comparison.unanswered_arrived),
    ]
    results.table("Recipients", ("what became of them", "count"), [(name, f"{count:,}") for name, count in counts])
    summary = {"seconds": round(seconds), "kills": {name: len(times) for name, times in outages.items()}}
    results.path(".json").write_text(json.dumps(summary | asdict(comparison), indent=2) + "\n")


def main(
    kills: Annotated[int, typer.Option(min=1)] = 100,
    freezes: Annotated[bool, typer.Option(help="Stop processes for 40 s, too.")] = True,
    seed: Annotated[int | None, typer.Option(help="Of the random moments; they still depend on the machine.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A directory for data and logs, kept afterwards.")] = None,
    out: Annotated[Path, typer.Option(help="Where faults.json and faults.md are written.")] = RESULTS,
) -> None:
    """Kill, count, report."""
    random.seed(seed)
    results = Results(out, "faults", console)
    with tempfile.TemporaryDirectory(prefix="mailerd-faults-") as temporary:
        directory = keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        comparison = asyncio.run(run(kills, freezes, results, directory))
    if not comparison.kept:
        console.print(comparison)
        raise typer.Exit(1)
