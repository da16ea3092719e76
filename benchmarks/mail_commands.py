"""Benchmarks of mail on its way: taken, queued, shaped, delivered, and what comes back."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import (
    api,
    backlog,
    blocked,
    bounces,
    campaign,
    capacity,
    idle,
    inbound,
    latency,
    loads,
    relay,
    scale,
    shaping,
    soak,
    stages,
    throttle,
    webhooks,
)
from benchmarks.options import (
    DEFAULT_WORK,
    RESULTS,
    Out,
    Quick,
    Rounds,
    Work,
    check_known,
    console,
    missed,
    results_of,
    unavailable,
    working,
)
from benchmarks.peers import UnavailableError
from benchmarks.report import MISSED

app = typer.Typer()


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
        check_known(option, given or [], known)
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
    with working(work) as directory:
        complete = relay.run(
            directory,
            results_of(out, quick, "profile" if profile else "relay", resumed=resume),
            loads=relay.sized(chosen, factor * (0.3 if quick else 1.0)),
            peers=peers,
            everywhere=peer or relay.MATRIX_PEERS,
            rounds=1 if quick else rounds,
            profile_for=profile,
        )
    if not complete:
        missed("messages are missing, came twice, or have no good signature")


@app.command(name="idle")
def idle_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    connections: Annotated[int, typer.Option(help="Idle SMTP connections.")] = 10_000,
) -> None:
    """Memory of idle SMTP connections, and how fast a message gets in beside them."""
    with working(work) as directory:
        idle.run(directory, results_of(out, quick, "idle"), connections=1_000 if quick else connections)


@app.command(name="latency")
def latency_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    seconds: Annotated[float | None, typer.Option(help="Of mail at half load, each time.")] = None,
) -> None:
    """How long messages wait to be accepted and to arrive at half load, beside Postfix."""
    with working(work) as directory:
        results = results_of(out, quick, "latency")
        lasting = seconds or (5.0 if quick else 60.0)
        count = 1_000 if quick else 6_000
        kept = latency.run(
            directory, results, rounds=1 if quick else rounds, seconds=lasting, count=count, judged=not quick
        )
        if not kept:
            missed("accepted later than by Postfix, or not judged, or messages are missing or came twice")


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
    with working(work) as directory:
        good = backlog.run(directory, results_of(out, quick, "backlog"), cells, judged=not quick)
    if not good:
        missed("slower or larger with a long queue, or messages are missing or came twice")


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
        unavailable(error)
    with working(work) as directory:
        results = results_of(out, quick, "api")
        lasting = seconds or (3.0 if quick else 15.0)
        if not api.run(directory, results, rounds=1 if quick else rounds, seconds=lasting):
            missed("refused, missing or twice")


@app.command(name="scale")
def scale_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
) -> None:
    """One and two workers, and two nodes over one PostgreSQL; what each part costs."""
    with working(work) as directory:
        results = results_of(out, quick, "scale")
        if not scale.run(directory, results, rounds=1 if quick else rounds, count=1_000 if quick else 6_000):
            missed("messages are missing, came twice, or have no signature")


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
    capacity.run(results_of(out, False, "capacity"), known, assumed)


@app.command(name="soak")
def soak_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    minutes: Annotated[float | None, typer.Option(help="Default: 60.")] = None,
) -> None:
    """An hour at 70 % load with deferrals, bounces and a slow host: what grows, and whether all is accounted for."""
    with working(work) as directory:
        good = soak.run(
            directory,
            results_of(out, quick, "soak"),
            minutes=minutes or (0.5 if quick else 60.0),
            count=1_000 if quick else 6_000,
            retry=5.0 if quick else 60.0,
            judged=not quick,
        )
    if not good:
        missed("lost, twice, left in the queue, or the last third was not like the first")


@app.command(name="stages")
def stages_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="That each kind of mail is watched.")] = None,
) -> None:
    """Where a message's microseconds go, unsigned, signed and in a campaign."""
    with working(work) as directory:
        good = stages.run(
            directory,
            results_of(out, quick, "stages"),
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
    check_known("--brake", brake or [], blocked.BRAKES)
    with working(work) as directory:
        blocked.run(
            directory,
            results_of(out, quick, "blocked"),
            recipients=recipients or (20_000 if quick else 1_000_000),
            rounds=1 if quick else rounds,
            count=2_000 if quick else 10_000,
            rest=5.0 if quick else blocked.REST,
            brakes=brake or list(blocked.BRAKES),
        )


@app.command(name="loads")
def loads_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False, rounds: Rounds = 3) -> None:
    """What the load and the sink cost by themselves."""
    with working(work) as directory:
        results = results_of(out, quick, "loads")
        loads.run(directory, results, rounds=1 if quick else rounds, count=2_000 if quick else 10_000)


@app.command(name="throttle")
def throttle_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """The control loop beside fixed limits, at simulated receivers that throttle."""
    throttle.run(results_of(out, quick, "throttle"), quick=quick)


@app.command(name="shaping")
def shaping_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="That are looked at, each time.")] = None,
) -> None:
    """Limits as a receiver sees them, with 1, 2 and 4 workers and with 2 nodes."""
    with working(work) as directory:
        results = results_of(out, quick, "shaping")
        if not shaping.run(directory, results, seconds=seconds or (8.0 if quick else 30.0)):
            missed("the receiver saw more than a limit allows")


@app.command(name="bounces")
def bounces_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False, rounds: Rounds = 3) -> None:
    """How well and how fast the corpus of bounces and complaints is read."""
    del work  # nothing is written but results
    bounces.run(results_of(out, quick, "bounces"), rounds=1 if quick else rounds, passes=1 if quick else 10)


@app.command(name="inbound")
def inbound_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    bounced: Annotated[int | None, typer.Option(help="Bounces of one round.")] = None,
) -> None:
    """Bounces that come in, alone and beside mail that goes out."""
    with working(work) as directory:
        reports = bounced or (500 if quick else 5_000)
        mails = reports * (2 if quick else 6)
        results = results_of(out, quick, "inbound")
        if not inbound.run(directory, results, reports=reports, mails=mails, rounds=1 if quick else rounds):
            missed("some reports had no effect")


@app.command(name="webhooks")
def webhooks_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    mails: Annotated[int | None, typer.Option(help="Of one round.")] = None,
) -> None:
    """What telling endpoints costs mail."""
    with working(work) as directory:
        results = results_of(out, quick, "webhooks")
        many = mails or (3_000 if quick else 15_000)
        webhooks.run(directory, results, rounds=1 if quick else rounds, count=many)
