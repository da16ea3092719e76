"""Benchmarks of the campaign platform: from contacts to reports."""

from typing import Annotated

import typer

from benchmarks import (
    analytics,
    campaign,
    campaigns_at_once,
    contacts,
    imports,
    segments,
    suppressions,
    templates,
    tracking,
)
from benchmarks.options import DEFAULT_WORK, Out, Quick, Rounds, Work, missed, results_of, working

app = typer.Typer()


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
    with working(work) as directory:
        if crash:
            results = results_of(out, quick, "campaign-crash")
            many = contacts or (3_000 if quick else 100_000)
            good = campaign.crash(directory, results, contacts=many, kills=kills or (5 if quick else 50))
        else:
            many = contacts or (20_000 if quick else 1_000_000)
            most = min(many, mails or (10_000 if quick else 200_000))
            good = campaign.run(directory, results_of(out, quick, "campaign"), contacts=many, mails=most)
    if not good:
        missed("slower than promised, or not everybody has it once")


@app.command(name="campaigns-at-once")
def campaigns_at_once_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    campaigns: Annotated[int | None, typer.Option(help="That begin at once.")] = None,
    templates: Annotated[int, typer.Option(help="That they share.", min=1)] = 100,
) -> None:
    """Ten thousand small campaigns that begin in the same second: their shares, and how long one more waits."""
    with working(work) as directory:
        many = campaigns or (200 if quick else 10_000)
        results = results_of(out, quick, "campaigns-at-once")
        if not campaigns_at_once.run(directory, results, campaigns=many, templates=min(templates, many)):
            missed("not everybody had it once, or one more waited too long")


@app.command(name="contacts")
def contacts_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rows: Annotated[int | None, typer.Option(help="Contacts in the file.")] = None,
) -> None:
    """How long a CSV of a million contacts takes to go in."""
    with working(work) as directory:
        most = rows or (50_000 if quick else 1_000_000)
        if not contacts.run(directory, results_of(out, quick, "contacts"), rows=most):
            missed(f"slower than {contacts.LEAST:,} rows a second, or not all of them")


@app.command(name="segments")
def segments_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    rows: Annotated[int | None, typer.Option(help="Contacts.")] = None,
) -> None:
    """How fast and how well the size of a segment is told, and how fast audiences are read."""
    with working(work) as directory:
        most = rows or (200_000 if quick else 10_000_000)
        if not segments.run(directory, results_of(out, quick, "segments"), rows=most, rounds=1 if quick else rounds):
            missed("an estimate took a second and more, or a ledger is written too slowly")


@app.command(name="suppressions")
def suppressions_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    rows: Annotated[int | None, typer.Option(help="Addresses that must not be mailed.")] = None,
) -> None:
    """What it costs to ask whether an address may be mailed."""
    with working(work) as directory:
        most = rows or (100_000 if quick else 10_000_000)
        if not suppressions.run(directory, results_of(out, quick, "suppressions"), rows=most, rounds=rounds):
            missed("it costs 50 µs and more")


@app.command(name="imports")
def imports_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """How long a file of a million suppressions takes to go in."""
    with working(work) as directory:
        if not imports.run(directory, results_of(out, quick, "imports"), rows=20_000 if quick else 1_000_000):
            missed("a minute and more")


@app.command(name="templates")
def templates_command(work: Work = DEFAULT_WORK, out: Out = None, quick: Quick = False) -> None:
    """What rendering the mail of a campaign costs."""
    with working(work) as directory:
        if not templates.run(directory, results_of(out, quick, "templates"), count=2_000 if quick else 20_000):
            missed("a millisecond and more, or a p99 of 100")


@app.command(name="tracking")
def tracking_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    seconds: Annotated[float | None, typer.Option(help="Of readers, each time.")] = None,
) -> None:
    """Opens and clicks a second, with the database quiet, busy and stopped."""
    with working(work) as directory:
        results = results_of(out, quick, "tracking")
        if not tracking.run(directory, results, seconds=seconds or (3.0 if quick else 20.0)):
            missed(f"fewer than {tracking.RATE:,}/s, slower than {tracking.P99} ms, or some lost")


@app.command(name="analytics")
def analytics_command(
    work: Work = DEFAULT_WORK,
    out: Out = None,
    quick: Quick = False,
    rounds: Rounds = 3,
    events: Annotated[int | None, typer.Option(help="That were counted.")] = None,
) -> None:
    """Reports after a hundred million events, also while more are counted, and how fast these are."""
    with working(work) as directory:
        good = analytics.run(
            directory,
            results_of(out, quick, "analytics"),
            events=events or (500_000 if quick else 100_000_000),
            rounds=1 if quick else rounds,
        )
    if not good:
        missed("a report took more than a second, or read a whole table, or counting was too slow")
