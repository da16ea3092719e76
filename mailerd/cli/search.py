"""`mailerd search`: which messages were accepted, and what became of them."""

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.options import ConfigOption, JsonOption, LimitOption, moment
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.queue.views import MailFilters, MessageSummary


class State(StrEnum):
    QUEUED = "queued"
    HELD = "held"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"


def search(
    recipient: Annotated[str | None, typer.Option("--recipient", "-r", metavar="ADDRESS", help="To it.")] = None,
    sender: Annotated[str | None, typer.Option("--sender", "-s", metavar="ADDRESS", help="From it.")] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="NAME", help="With this tag or label.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Where any of its recipients stands.")] = None,
    after: Annotated[str | None, typer.Option("--after", metavar="TIME", help="Accepted then or later (UTC).")] = None,
    before: Annotated[str | None, typer.Option("--before", metavar="TIME", help="Accepted before then (UTC).")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Of this tenant.")] = None,
    limit: LimitOption = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search messages, finished ones too; newest first.

    \b
    Examples:
      mailerd search --recipient ann@example.com
      mailerd search --state bounced --after 2026-11-01 --json
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.settings import load
    from mailerd.queue.views import MailFilters

    settings = load(config)
    filters = MailFilters(
        tenant=tenant,
        recipient=recipient,
        sender=sender,
        tag=label,
        state=None if state is None else state.value,
        after=moment(after),
        before=moment(before),
    )
    found = asyncio.run(_search(settings, filters, limit))
    if as_json:
        print_json_lines(map(_plain, found))
    else:
        _draw(found, utc_now(), limit)


async def _search(settings: "Settings", filters: "MailFilters", limit: int) -> "list[MessageSummary]":
    from mailerd.cli.settings import database
    from mailerd.queue.trace import TraceStore

    found: list[MessageSummary] = []
    before = None
    async with database(settings) as pool:
        while len(found) < limit:
            page = await TraceStore(pool).search(filters, limit - len(found), before)
            found += page.messages
            before = page.before
            if before is None:
                break
    return found


def _plain(summary: "MessageSummary") -> dict[str, Any]:
    import msgspec

    from mailerd.queue.ids import format_message_id

    return msgspec.structs.asdict(summary) | {"id": format_message_id(summary.id)}


def _draw(found: "list[MessageSummary]", now: datetime, limit: int) -> None:
    from rich.text import Text

    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, console, from_now, say
    from mailerd.queue.ids import format_message_id

    if not found:
        say("No message fits.")
        return
    columns = ("message", "accepted", "stream", "recipients", "from", "to", "subject")
    drawn = Listing(columns, below=("subject", "to", "from", "recipients"))
    for summary in found:
        states = [Text.assemble(f"{count:,} ", coloured(state)) for state, count in summary.states.items()]
        drawn.add_row(
            format_message_id(summary.id),
            from_now(summary.accepted_at, now),
            clean(summary.stream),
            Text(", ").join(states),
            clean(summary.sender or "<>"),
            clean(summary.first_recipient) + (f" +{summary.total - 1:,} more" if summary.total > 1 else ""),
            clean(summary.subject),
        )
    console().print(drawn)
    if len(found) == limit:
        say(f"Only the newest {limit:,}: --limit shows more.")
