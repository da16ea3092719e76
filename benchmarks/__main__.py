"""`scripts/bench NAME`: relay, latency, backlog, soak, and so on; `scripts/bench all`: all of them."""

import logging
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer

from benchmarks import campaign_commands, faults, mail_commands, readme
from benchmarks.everything import PARTS, Outcome, Scale, hours, parts_of, run_parts
from benchmarks.options import DEFAULT_WORK, RESULTS, Out, Quick, Work, check_known, console, out_of, unavailable
from benchmarks.peers import UnavailableError, postfix
from benchmarks.report import MISSED, Results

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True)


@app.callback(help=__doc__)
def main(context: typer.Context) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is stopped first
    own = ("throttle", "shaping", "blocked", "bounces", "suppressions", "imports", "tracking", "contacts", "segments",
           "capacity", "api", "backlog", "readme")  # fmt: skip
    without_peers = (*own, "analytics", "campaign")
    if context.invoked_subcommand not in without_peers and postfix.missing():
        try:
            postfix.Postfix.prepare()
        except UnavailableError as error:
            unavailable(error)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


app.add_typer(mail_commands.app)
app.add_typer(campaign_commands.app)
app.command(name="faults")(faults.main)


@app.command(name="readme")
def readme_command(out: Annotated[Path, typer.Option(help="Where the results are.")] = RESULTS) -> None:
    """The tables of README, out of the results; names the cells in which a peer is ahead and nobody says why."""
    if not any(out.glob("*.jsonl")):
        raise typer.BadParameter(f"there are no results in {out}")
    before = readme.README.read_text()
    after = readme.rendered(before, out)
    readme.README.write_text(after)
    console.print(f"README: {'written anew from' if after != before else 'as it was, by'} the results in {out}")
    if left := readme.unexplained(out):
        console.print("[red]a peer is ahead, and benchmarks/readme.py does not say why:[/red]", *left, sep="\n")
        raise typer.Exit(MISSED)


@app.command(
    name="all",
    help="All of them, into the results that README shows, and the tables of README. Goes on after a failure; what was "
    "missed stands in the overview at the end, and in the exit status.\n\nMinutes that each takes, about: "
    f"{', '.join(f'{part.name} {part.minutes:g}' for part in parts_of(Scale.USUAL))}. In all "
    f"{hours(PARTS, Scale.USUAL)} hours; --thorough {hours(PARTS, Scale.THOROUGH)}, --quick "
    f"{hours(PARTS, Scale.QUICK)}.",
)
def run_all(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Larger and longer, and blocked, analytics, faults.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Without what was measured with this very tree.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Not this one. Several times: none of these.")] = None,
) -> None:
    check_known("--skip", skip or [], [part.name for part in PARTS])
    scale = Scale.QUICK if quick else Scale.THOROUGH if thorough else Scale.USUAL
    out = out_of(out, quick=quick)
    results = Results(out, "all", console, resumed=resume)
    known = [msgspec.convert(line, Outcome) for line in results.lines]
    parts = [part for part in parts_of(scale) if part.name not in (skip or ())]
    outcomes = run_parts(parts, work, out, scale, results, known=known)
    rows = [[one.name, f"{one.minutes:.1f}", f"{one.expected:g}", one.said] for one in outcomes]
    total = sum(one.minutes for one in outcomes)
    rows.append(["all", f"{total:.1f}", f"{sum(one.expected for one in outcomes):g}", ""])
    results.table("What was run", ["name", "minutes", "expected", "result"], rows)
    if out == RESULTS:
        readme_command(out)
    if any(one.status for one in outcomes):
        raise typer.Exit(MISSED)


if __name__ == "__main__":
    app()
