"""What the commands of `scripts/bench` have in common: their options, where results go, and how they end."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from benchmarks import machine
from benchmarks.everything import UNAVAILABLE
from benchmarks.peers import UnavailableError, enterable
from benchmarks.report import MISSED, Results

HERE = Path(__file__).parent
RESULTS = HERE / "results"
QUICK_RESULTS = HERE / "work" / "quick"  # that nobody takes them for figures
console = Console(width=None if sys.stdout.isatty() else 160)

Work = Annotated[Path, typer.Option(help="Where spools and databases are made, and removed at the end.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Where NAME.jsonl, NAME.md and NAME.svg are written: benchmarks/results if not given, with --quick "
        "benchmarks/work/quick.",
        show_default=False,
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="A small version: to see that it works, not for figures, and not among the results."),
]
Rounds = Annotated[int, typer.Option(min=1, help="Of which medians are taken.")]


def _usual_work() -> Path:
    """Below here; elsewhere where the peers' own users cannot get there, as in a clone that is its owner's alone."""
    if named := os.environ.get("MAILERD_BENCH_WORK"):
        return Path(named)
    return HERE / "work" if enterable(HERE) else Path("/var/tmp/mailerd-bench")


DEFAULT_WORK = _usual_work()


def check_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        text = f"there is no {', '.join(unknown)}, only {', '.join(known)}"
        raise typer.BadParameter(text, param_hint=option)


def out_of(out: Path | None, *, quick: bool) -> Path:
    """Where results go: never over those that README shows when they are of a small version."""
    return out or (QUICK_RESULTS if quick else RESULTS)


def results_of(out: Path | None, quick: bool, name: str, *, resumed: bool = False) -> Results:
    results = Results(out_of(out, quick=quick), name, console, resumed=resumed, tree=machine.tree())
    console.print(f"results: {results.path('.md')}", highlight=False)
    return results


@contextmanager
def working(work: Path) -> Iterator[Path]:
    """A fresh directory below `work`; kept, for its logs, when something fails."""
    directory = (work / f"run-{os.getpid()}").resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def missed(what: str) -> NoReturn:
    console.print(f"[red]{what}[/red]")
    raise typer.Exit(MISSED)


def unavailable(error: UnavailableError) -> NoReturn:
    """It cannot be run here: said once, without a traceback."""
    console.print(f"benchmarks need: {error}")
    raise typer.Exit(UNAVAILABLE)
