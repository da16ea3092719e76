"""`scripts/bench NAME`: relay, latency, backlog, soak, and so on; `scripts/bench all`: all of them."""

import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer
from rich.console import Console

from benchmarks import (
    analytics,
    api,
    backlog,
    blocked,
    bounces,
    campaign,
    campaigns_at_once,
    capacity,
    contacts,
    faults,
    idle,
    imports,
    inbound,
    latency,
    loads,
    machine,
    readme,
    relay,
    scale,
    segments,
    shaping,
    soak,
    stages,
    suppressions,
    templates,
    throttle,
    tracking,
    webhooks,
)
from benchmarks.everything import PARTS, UNAVAILABLE, Outcome, Scale, hours, parts_of, run_parts
from benchmarks.peers import UnavailableError, enterable, postfix
from benchmarks.report import MISSED, Results

HERE = Path(__file__).parent
RESULTS = HERE / "results"
QUICK_RESULTS = HERE / "work" / "quick"  # that nobody takes them for figures
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True)
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
            console.print(f"benchmarks need: {error}")
            raise typer.Exit(UNAVAILABLE) from None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


@app.command(name="relay")
def relay_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    cells: Annotated[str, typer.Option(help="usual, quick, or every: 64, most of them beside Postfix only.")] = "usual",
    size: Annotated[list[str] | None, typer.Option(help=f"{', '.join(relay.SIZES)}: only cells of this size.")] = None,
    signed: Annotated[bool | None, typer.Option("--signed/--unsigned", help="Only such cells.")] = None,
    tls: Annotated[bool | None, typer.Option("--starttls/--clear", help="Only such cells.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help=", ".join(relay.PEERS))] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    factor: Annotated[float, typer.Option(help="Times as many messages.")] = 1.0,
    profile: Annotated[float, typer.Option(help="Watch a mailerd worker by py-spy for so many seconds instead.")] = 0.0,
) -> None:
    """End-to-end relay beside other mail servers: unsigned and with DKIM, in clear and with STARTTLS."""
    kinds = {"usual": relay.USUAL, "quick": relay.QUICK, "every": tuple(relay.every_load())}
    for option, given, known in (
        ("--cells", [cells], kinds),
        ("--size", size, relay.SIZES),
        ("--peer", peer, relay.PEERS),
    ):
        _check_known(option, given or [], known)
    chosen = kinds["quick" if (quick or profile) and cells == "usual" else cells]
    sizes = {relay.SIZES[name] for name in size} if size else None
    chosen = tuple(
        load
        for load in chosen
        if (sizes is None or load.size in sizes)
        and (signed is None or load.signed == signed)
        and (tls is None or load.tls == tls)
    )
    if not chosen:
        raise typer.BadParameter(f"no cell of --cells {cells}{' --quick' if quick else ''} is like that")
    peers = ["mailerd"] if profile else peer or list(relay.PEERS)
    with _work(work) as directory:
        complete = relay.run(
            directory,
            _results(out, quick, "profile" if profile else "relay", resumed=resume),
            loads=relay.sized(chosen, factor * (0.3 if quick else 1.0)),
            peers=peers,
            everywhere=peer or relay.MATRIX_PEERS,
            rounds=1 if quick else rounds,
            profile_for=profile,
        )
    if not complete:
        console.print("[red]messages are missing, came twice, or have no good signature[/red]")
        raise typer.Exit(MISSED)


@app.command(name="idle")
def idle_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    connections: Annotated[int, typer.Option(help="Idle SMTP connections.")] = 10_000,
) -> None:
    """Memory of idle SMTP connections, and how fast a message gets in beside them."""
    with _work(work) as directory:
        idle.run(directory, _results(out, quick, "idle"), connections=1_000 if quick else connections)


@app.command(name="latency")
def latency_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    seconds: Annotated[float | None, typer.Option(help="Of mail at half load, each time.")] = None,
) -> None:
    """How long messages wait to be accepted and to arrive at half load, beside Postfix."""
    with _work(work) as directory:
        results = _results(out, quick, "latency")
        lasting = seconds or (5.0 if quick else 60.0)
        count = 1_000 if quick else 6_000
        kept = latency.run(
            directory, results, rounds=1 if quick else rounds, seconds=lasting, count=count, judged=not quick
        )
        if not kept:
            console.print(
                "[red]accepted later than by Postfix, or not judged, or messages are missing or came twice[/red]"
            )
            raise typer.Exit(MISSED)


@app.command(name="backlog")
def backlog_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    full: Annotated[bool, typer.Option("--full", help="Up to 1,000,000 recipients and 100,000 sites.")] = False,
    queued: Annotated[list[int] | None, typer.Option(help="Recipients in the queue.")] = None,
    domains: Annotated[list[int] | None, typer.Option(help="That they are in.")] = None,
    sites: Annotated[bool, typer.Option("--sites", help="Each domain has a mail exchanger of its own.")] = False,
) -> None:
    """Delivery out of a queue of 1,000 and 100,000 recipients over 1 and 1,000 domains, and over 10,000 sites."""
    cells = backlog.FULL if full else backlog.QUICK if quick else backlog.USUAL
    if queued or domains:
        cells = backlog.cells(queued or [10_000], domains or [1], sites=sites)
    with _work(work) as directory:
        good = backlog.run(directory, _results(out, quick, "backlog"), cells, judged=not quick)
    if not good:
        console.print("[red]slower or larger with a long queue, or messages are missing or came twice[/red]")
        raise typer.Exit(MISSED)


@app.command(name="api")
def api_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    seconds: Annotated[float | None, typer.Option(help="Of calls, each time.")] = None,
) -> None:
    """/emails and /emails/batch by wrk, with 1 to 1,000 messages a call."""
    try:
        api.prepare()
    except UnavailableError as error:
        console.print(f"benchmarks need: {error}")
        raise typer.Exit(UNAVAILABLE) from None
    with _work(work) as directory:
        results = _results(out, quick, "api")
        lasting = seconds or (3.0 if quick else 15.0)
        if not api.run(directory, results, rounds=1 if quick else rounds, seconds=lasting):
            console.print("[red]refused, missing or twice[/red]")
            raise typer.Exit(MISSED)


@app.command(name="scale")
def scale_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
) -> None:
    """One and two workers, and two nodes over one PostgreSQL; what each part costs."""
    with _work(work) as directory:
        results = _results(out, quick, "scale")
        if not scale.run(directory, results, rounds=1 if quick else rounds, count=1_000 if quick else 6_000):
            console.print("[red]messages are missing, came twice, or have no signature[/red]")
            raise typer.Exit(MISSED)


@app.command(name="capacity")
def capacity_command(
    out: Annotated[Path, typer.Option(help="Where the results are, and where these go.")] = RESULTS,
    peak: Annotated[float, typer.Option(help="Times the average of the day.")] = capacity.Assumptions.peak,
    remote_seconds: Annotated[
        float, typer.Option(help="That a host takes for a message.")
    ] = capacity.Assumptions.remote_seconds,
    utilisation: Annotated[
        float, typer.Option(help="Of a core that may be used at the peak.")
    ] = capacity.Assumptions.utilisation,
) -> None:
    """What 10 and 100 million a day need, on paper: from the results of scale, campaign and idle in --out."""
    assumed = capacity.Assumptions(peak=peak, remote_seconds=remote_seconds, utilisation=utilisation)
    try:
        known = capacity.read_costs(out, campaign.NEWSLETTER.stat().st_size)
    except ValueError as error:
        console.print(str(error))
        raise typer.Exit(MISSED) from None
    capacity.run(_results(out, False, "capacity"), known, assumed)


@app.command(name="soak")
def soak_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    minutes: Annotated[float | None, typer.Option(help="Default: 60.")] = None,
) -> None:
    """An hour at 70 % load with deferrals, bounces and a slow host: what grows, and whether all is accounted for."""
    with _work(work) as directory:
        good = soak.run(
            directory,
            _results(out, quick, "soak"),
            minutes=minutes or (0.5 if quick else 60.0),
            count=1_000 if quick else 6_000,
            retry=5.0 if quick else 60.0,
            judged=not quick,
        )
    if not good:
        console.print("[red]lost, twice, left in the queue, or the last third was not like the first[/red]")
        raise typer.Exit(MISSED)


@app.command(name="stages")
def stages_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="That each kind of mail is watched.")] = None,
) -> None:
    """Where a message's microseconds go, unsigned, signed and in a campaign."""
    with _work(work) as directory:
        good = stages.run(
            directory,
            _results(out, quick, "stages"),
            seconds=seconds or (5.0 if quick else 30.0),
            contacts=10_000 if quick else 300_000,
            count=1_000 if quick else 6_000,
        )
    if not good:
        raise typer.Exit(MISSED)


@app.command(name="blocked")
def blocked_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    recipients: Annotated[int | None, typer.Option(help="That wait for the provider.")] = None,
    brake: Annotated[list[str] | None, typer.Option(help=", ".join(blocked.BRAKES))] = None,
) -> None:
    """What a million recipients that wait for one provider cost all other mail."""
    _check_known("--brake", brake or [], blocked.BRAKES)
    with _work(work) as directory:
        blocked.run(
            directory,
            _results(out, quick, "blocked"),
            recipients=recipients or (20_000 if quick else 1_000_000),
            rounds=1 if quick else rounds,
            count=2_000 if quick else 10_000,
            rest=5.0 if quick else blocked.REST,
            brakes=brake or list(blocked.BRAKES),
        )


@app.command(name="loads")
def loads_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False, rounds: Rounds = 3) -> None:
    """What the load and the sink cost by themselves."""
    with _work(work) as directory:
        results = _results(out, quick, "loads")
        loads.run(directory, results, rounds=1 if quick else rounds, count=2_000 if quick else 10_000)


@app.command(name="throttle")
def throttle_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """The control loop beside fixed limits, at simulated receivers that throttle."""
    throttle.run(_results(out, quick, "throttle"), quick=quick)


@app.command(name="shaping")
def shaping_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="That are looked at, each time.")] = None,
) -> None:
    """Limits as a receiver sees them, with 1, 2 and 4 workers and with 2 nodes."""
    with _work(work) as directory:
        results = _results(out, quick, "shaping")
        if not shaping.run(directory, results, seconds=seconds or (8.0 if quick else 30.0)):
            console.print("[red]the receiver saw more than a limit allows[/red]")
            raise typer.Exit(MISSED)


@app.command(name="bounces")
def bounces_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False, rounds: Rounds = 3) -> None:
    """How well and how fast the corpus of bounces and complaints is read."""
    del work  # nothing is written but results
    bounces.run(_results(out, quick, "bounces"), rounds=1 if quick else rounds, passes=1 if quick else 10)


@app.command(name="inbound")
def inbound_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    bounced: Annotated[int | None, typer.Option(help="Bounces of one round.")] = None,
) -> None:
    """Bounces that come in, alone and beside mail that goes out."""
    with _work(work) as directory:
        reports = bounced or (500 if quick else 5_000)
        mails = reports * (2 if quick else 6)
        results = _results(out, quick, "inbound")
        if not inbound.run(directory, results, reports=reports, mails=mails, rounds=1 if quick else rounds):
            console.print("[red]some reports had no effect[/red]")
            raise typer.Exit(MISSED)


@app.command(name="analytics")
def analytics_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    events: Annotated[int | None, typer.Option(help="That were counted.")] = None,
) -> None:
    """Reports after a hundred million events, also while more are counted, and how fast these are."""
    with _work(work) as directory:
        good = analytics.run(
            directory,
            _results(out, quick, "analytics"),
            events=events or (500_000 if quick else 100_000_000),
            rounds=1 if quick else rounds,
        )
    if not good:
        console.print("[red]a report took more than a second, or read a whole table, or counting was too slow[/red]")
        raise typer.Exit(MISSED)


@app.command(name="campaign")
def campaign_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    contacts: Annotated[int | None, typer.Option(help="In the audience.")] = None,
    mails: Annotated[int | None, typer.Option(help="That are waited for.")] = None,
    crash: Annotated[bool, typer.Option("--crash", help="Kill it again and again instead.")] = False,
    kills: Annotated[int | None, typer.Option(help="How often.")] = None,
) -> None:
    """A campaign to a million contacts; or one that is hurt all the time, and reaches each contact once."""
    with _work(work) as directory:
        if crash:
            results = _results(out, quick, "campaign-crash")
            many = contacts or (3_000 if quick else 100_000)
            good = campaign.crash(directory, results, contacts=many, kills=kills or (5 if quick else 50))
        else:
            many = contacts or (20_000 if quick else 1_000_000)
            most = min(many, mails or (10_000 if quick else 200_000))
            good = campaign.run(directory, _results(out, quick, "campaign"), contacts=many, mails=most)
    if not good:
        console.print("[red]slower than promised, or not everybody has it once[/red]")
        raise typer.Exit(MISSED)


@app.command(name="campaigns-at-once")
def campaigns_at_once_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    campaigns: Annotated[int | None, typer.Option(help="That begin at once.")] = None,
    templates: Annotated[int, typer.Option(help="That they share.", min=1)] = 100,
) -> None:
    """Ten thousand small campaigns that begin in the same second: their shares, and how long one more waits."""
    with _work(work) as directory:
        many = campaigns or (200 if quick else 10_000)
        results = _results(out, quick, "campaigns-at-once")
        if not campaigns_at_once.run(directory, results, campaigns=many, templates=min(templates, many)):
            console.print("[red]not everybody had it once, or one more waited too long[/red]")
            raise typer.Exit(MISSED)


@app.command(name="suppressions")
def suppressions_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    rows: Annotated[int | None, typer.Option(help="Addresses that must not be mailed.")] = None,
) -> None:
    """What it costs to ask whether an address may be mailed."""
    with _work(work) as directory:
        most = rows or (100_000 if quick else 10_000_000)
        if not suppressions.run(directory, _results(out, quick, "suppressions"), rows=most, rounds=rounds):
            console.print("[red]it costs 50 µs and more[/red]")
            raise typer.Exit(MISSED)


@app.command(name="imports")
def imports_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """How long a file of a million suppressions takes to go in."""
    with _work(work) as directory:
        if not imports.run(directory, _results(out, quick, "imports"), rows=20_000 if quick else 1_000_000):
            console.print("[red]a minute and more[/red]")
            raise typer.Exit(MISSED)


@app.command(name="contacts")
def contacts_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rows: Annotated[int | None, typer.Option(help="Contacts in the file.")] = None,
) -> None:
    """How long a CSV of a million contacts takes to go in."""
    with _work(work) as directory:
        most = rows or (50_000 if quick else 1_000_000)
        if not contacts.run(directory, _results(out, quick, "contacts"), rows=most):
            console.print(f"[red]slower than {contacts.LEAST:,} rows a second, or not all of them[/red]")
            raise typer.Exit(MISSED)


@app.command(name="tracking")
def tracking_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="Of readers, each time.")] = None,
) -> None:
    """Opens and clicks a second, with the database quiet, busy and stopped."""
    with _work(work) as directory:
        results = _results(out, quick, "tracking")
        if not tracking.run(directory, results, seconds=seconds or (3.0 if quick else 20.0)):
            console.print(f"[red]fewer than {tracking.RATE:,}/s, slower than {tracking.P99} ms, or some lost[/red]")
            raise typer.Exit(MISSED)


@app.command(name="templates")
def templates_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """What rendering the mail of a campaign costs."""
    with _work(work) as directory:
        if not templates.run(directory, _results(out, quick, "templates"), count=2_000 if quick else 20_000):
            console.print("[red]a millisecond and more, or a p99 of 100[/red]")
            raise typer.Exit(MISSED)


@app.command(name="webhooks")
def webhooks_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    mails: Annotated[int | None, typer.Option(help="Of one round.")] = None,
) -> None:
    """What telling endpoints costs mail."""
    with _work(work) as directory:
        results = _results(out, quick, "webhooks")
        many = mails or (3_000 if quick else 15_000)
        webhooks.run(directory, results, rounds=1 if quick else rounds, count=many)


@app.command(name="segments")
def segments_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    rows: Annotated[int | None, typer.Option(help="Contacts.")] = None,
) -> None:
    """How fast and how well the size of a segment is told, and how fast audiences are read."""
    with _work(work) as directory:
        most = rows or (200_000 if quick else 10_000_000)
        if not segments.run(directory, _results(out, quick, "segments"), rows=most, rounds=1 if quick else rounds):
            console.print("[red]an estimate took a second and more, or a ledger is written too slowly[/red]")
            raise typer.Exit(MISSED)


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
    _check_known("--skip", skip or [], [part.name for part in PARTS])
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


def _check_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        text = f"there is no {', '.join(unknown)}, only {', '.join(known)}"
        raise typer.BadParameter(text, param_hint=option)


def out_of(out: Path | None, *, quick: bool) -> Path:
    """Where results go: never over those that README shows when they are of a small version."""
    return out or (QUICK_RESULTS if quick else RESULTS)


def _results(out: Path | None, quick: bool, name: str, *, resumed: bool = False) -> Results:
    results = Results(out_of(out, quick=quick), name, console, resumed=resumed, tree=machine.tree())
    console.print(f"results: {results.path('.md')}", highlight=False)
    return results


@contextmanager
def _work(work: Path) -> Iterator[Path]:
    """A fresh directory below `work`; kept, for its logs, when something fails."""
    directory = (work / f"run-{os.getpid()}").resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    app()
