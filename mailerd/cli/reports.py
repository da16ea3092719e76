"""`mailerd reports`: what others report of our mail, day by day: DMARC and TLS."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.options import ConfigOption, JsonOption, LimitOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.text import Text

    from mailerd.cli.settings import Settings
    from mailerd.feedback.aggregates import DmarcSource, TlsResult

app = typer.Typer(help="What others report of our mail: DMARC and TLS.", no_args_is_help=True)

DomainOption = Annotated[str | None, typer.Option("--domain", "-d", metavar="NAME", help="About this domain.")]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=3650, help="Reports about the last so many days.")]

BAR = 10  # columns


@app.command()
def dmarc(
    domain: DomainOption = None,
    days: DaysOption = 30,
    limit: LimitOption = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who sends as our domains, and how much of it passes DMARC, as receivers report it.

    An address that is not ours and passes little is a forger, or a service that nobody has told to sign.

    \b
    Examples:
      mailerd reports dmarc
      mailerd reports dmarc --domain example.com --days 7
      mailerd reports dmarc --json | jq 'select(.passed < .messages)'
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.cli.settings import load

    rows = asyncio.run(_dmarc(load(config), days, domain, limit))
    if as_json:
        print_json_lines(_plain(row) for row in rows)
    elif rows:
        _draw_dmarc(rows)
    else:
        say(_nothing("DMARC", domain, days))
    if len(rows) == limit:
        say(f"Only the first {limit:,}: --limit shows more.")


@app.command()
def tls(
    domain: DomainOption = None,
    days: DaysOption = 30,
    limit: LimitOption = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how others got on with TLS when they mailed our domains: failures first.

    \b
    Examples:
      mailerd reports tls
      mailerd reports tls --domain example.com --json
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.cli.settings import load

    rows = asyncio.run(_tls(load(config), days, domain, limit))
    if as_json:
        print_json_lines(_plain(row) for row in rows)
    elif rows:
        _draw_tls(rows)
    else:
        say(_nothing("TLS", domain, days))
    if len(rows) == limit:
        say(f"Only the first {limit:,}: --limit shows more.")


async def _dmarc(settings: "Settings", days: int, domain: str | None, limit: int) -> "list[DmarcSource]":
    from mailerd.cli.settings import database
    from mailerd.feedback.aggregates import AggregateStore

    async with database(settings) as pool:
        return await AggregateStore(pool).dmarc_sources(_since(days), _folded(domain), limit)


async def _tls(settings: "Settings", days: int, domain: str | None, limit: int) -> "list[TlsResult]":
    from mailerd.cli.settings import database
    from mailerd.feedback.aggregates import AggregateStore

    async with database(settings) as pool:
        return await AggregateStore(pool).tls_results(_since(days), _folded(domain), limit)


def _since(days: int) -> datetime:
    return utc_now() - timedelta(days=days)


def _folded(domain: str | None) -> str | None:
    return None if domain is None else domain.lower().rstrip(".")


def _nothing(kind: str, domain: str | None, days: int) -> str:
    about = "" if domain is None else f" about {domain}"
    return f"No {kind} report{about} of the last {days} days: see inbound in the configuration for where they go."


def _plain(row: "DmarcSource | TlsResult") -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _draw_dmarc(rows: "Sequence[DmarcSource]") -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, console

    columns = ("sent by", "messages", "passed", "", "domain", "dkim", "spf", "quarantined", "rejected", "reported by")
    drawn = Listing(
        columns,
        below=("reported by", "rejected", "quarantined", "spf", "dkim", "domain"),
        numbers=("messages", "passed", "dkim", "spf", "quarantined", "rejected"),
    )
    for row in rows:
        drawn.add_row(
            clean(row.source_ip),
            f"{row.messages:,}",
            f"{row.passed:,}",
            _bar(row.passed, row.messages),
            clean(row.domain),
            f"{row.dkim:,}",
            f"{row.spf:,}",
            f"{row.quarantined:,}" if row.quarantined else "",
            f"{row.rejected:,}" if row.rejected else "",
            _names(row.reporters),
        )
    console().print(drawn)


def _draw_tls(rows: "Sequence[TlsResult]") -> None:
    from rich.text import Text

    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, console

    columns = ("domain", "policy", "result", "sessions", "host", "reported by", "detail")
    drawn = Listing(columns, below=("detail", "reported by", "host"), numbers=("sessions",))
    for row in rows:
        drawn.add_row(
            clean(row.domain),
            clean(row.policy_type),
            Text(clean(row.result), style="green" if row.result == "success" else "bold red"),
            f"{row.sessions:,}",
            clean(row.mx),
            _names(row.reporters),
            clean(row.detail),
        )
    console().print(drawn)


def _names(reporters: Sequence[str]) -> str:
    from mailerd.cli.output import clean

    more = f" and {len(reporters) - 3} more" if len(reporters) > 3 else ""
    return clean(", ".join(reporters[:3])) + more


def _bar(part: int, whole: int) -> "Text":
    from rich.text import Text

    full = BAR * part // whole if whole else 0
    style = "green" if part == whole else "yellow" if 2 * part > whole else "red"
    return Text("█" * full, style=style).append("░" * (BAR - full), style="dim")
