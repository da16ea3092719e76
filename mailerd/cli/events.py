"""`mailerd events`: what happens, how much room it takes, and who follows it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mailerd.cli.options import ConfigOption, JsonOption, YesOption, message_id, moment
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.db import Pool
    from mailerd.db.event_sizes import Growth, PartitionSize
    from mailerd.events import Position
    from mailerd.feedback.event_search import EventFilters
    from mailerd.feedback.names import OutsideEvent

app = typer.Typer(no_args_is_help=True, help="See what happens, how much room it takes, and who follows it.")

LOOK_EVERY = 0.3  # seconds, while following
NOT_CONFIGURED = "not configured"
BAR = 30  # columns
LATE = timedelta(minutes=1)  # a follower that has not read what is older


@app.command("tail")
def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", "-t", metavar="TYPE", help="email.bounced, email.*; may be repeated.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="MESSAGE_ID", help="Of one message.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of one tenant.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="From this time on.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The last so many, when no time is given.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last events, of all tenants, in their order and under the names that webhooks use.

    \b
    Examples:
      mailerd events tail --follow
      mailerd events tail --type email.bounced --type email.complained --since 2026-11-22
      mailerd events tail -m msg_38g13rwt40000 --json | jq .type
    """
    from mailerd.cli.settings import load
    from mailerd.feedback.event_search import EventFilters
    from mailerd.feedback.names import FAMILIES, NAMES, is_pattern

    if unknown := [type_ for type_ in types or () if not is_pattern(type_)]:
        raise typer.BadParameter(f"there is no type {unknown[0]!r}; there are {', '.join((*NAMES, *FAMILIES))}")
    filters = EventFilters(
        tenant=tenant,
        types=tuple(types or ()),
        message_id=None if message is None else message_id(message),
        since=moment(since),
    )
    asyncio.run(_tail(load(config), filters, limit, follow=follow, as_json=as_json))


async def _tail(settings: "Settings", filters: "EventFilters", limit: int, *, follow: bool, as_json: bool) -> None:
    from mailerd.cli.output import console, print_json_lines
    from mailerd.cli.settings import database

    out = console()
    async with database(settings) as pool:
        async for some in _events(pool, filters, limit, follow=follow):
            if as_json:
                print_json_lines(some)
            else:
                for event in some:
                    out.print(_line(event))


async def _events(
    pool: "Pool", filters: "EventFilters", limit: int, *, follow: bool
) -> "AsyncIterator[list[OutsideEvent]]":
    """The last ones, or those since a time; then, as long as somebody looks, what comes."""
    import msgspec

    from mailerd.events import EventStore
    from mailerd.feedback.event_search import EventSearchStore

    search = EventSearchStore(pool)
    onwards = msgspec.structs.replace(filters, newest_first=False)
    position = None
    if filters.since is None and filters.message_id is None:
        position = await EventStore(pool).end()
        yield await _last(search, filters, limit, position)
    while True:
        found = await search.search(onwards, 500, position)
        position = found.position
        if found.events:
            yield found.events
        if not found.more and not follow:
            return
        if not found.more:
            await asyncio.sleep(LOOK_EVERY)


async def _last(search: Any, filters: "EventFilters", limit: int, position: Any) -> "list[OutsideEvent]":
    """The last so many that fit, the oldest of them first."""
    events: list[OutsideEvent] = []
    while len(events) < limit:
        found = await search.search(filters, limit - len(events), position)
        events += found.events
        position = found.position
        if not found.more:
            break
    return events[::-1]


def _line(event: "OutsideEvent") -> Any:
    from rich.text import Text

    from mailerd.cli.output import STYLES, clean

    data = event.data
    word = {"delivery_delayed": "deferred", "failed": "expired"}.get(
        event.type.rpartition(".")[2], event.type.rpartition(".")[2]
    )
    return Text.assemble(
        (f"{event.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:23], "dim"),
        " ",
        (f"{event.type:<22}", STYLES.get(word, "cyan" if word in ("queued", "scheduled") else "")),
        " ",
        (f"{data.email_id or '-':<17} ", "dim"),
        clean(data.to),
        (f"  {clean(_said(event))}", "dim"),
    )


def _said(event: "OutsideEvent") -> str:
    data = event.data
    if data.outcome is not None:
        outcome = data.outcome
        parts = (outcome.reason, outcome.class_, outcome.code or "", outcome.enhanced, outcome.text)
        return " ".join(str(part) for part in parts if part)
    said = data.complaint or data.unsubscribe or data.suppression or data.webhook
    if said is not None:
        keys = ("id", "url", "reason", "feedback_type", "source", "" if said.get("feedback_type") else "text")
        return " ".join(str(said[key]) for key in keys if said.get(key))
    return data.subject


# size


@app.command("size")
def size(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how large the events of each month are, how they grow, and how large they will be at the retention in force.

    \b
    Examples:
      mailerd events size
      mailerd events size --json
    """
    from mailerd.cli.settings import load

    asyncio.run(_size(load(config), as_json=as_json))


async def _size(settings: "Settings", *, as_json: bool) -> None:
    from mailerd.cli.output import console, print_json
    from mailerd.cli.settings import database
    from mailerd.db.event_sizes import event_sizes, growth

    retention = float(settings.config.retention.events)
    async with database(settings) as pool, pool.acquire() as connection:
        sizes = await event_sizes(connection)
    grown = growth(sizes, retention, utc_now())
    if as_json:
        print_json(
            {
                "partitions": [each._asdict() | {"bytes": each.bytes} for each in sizes],
                **grown._asdict(),
                "bytes": sum(each.bytes for each in sizes),
                "retention_days": retention / 86_400,
            }
        )
    else:
        for part in _drawn(sizes, grown, retention):
            console().print(part)


def _drawn(sizes: "Sequence[PartitionSize]", grown: "Growth", retention: float) -> "list[Any]":
    from mailerd.cli.output import facts, span, table

    drawn = table(("month", "events", "data", "indexes", "bytes each", ""), numbers=("events", "data", "indexes"))
    largest = max((each.bytes for each in sizes), default=0) or 1
    for each in sizes:
        drawn.add_row(
            each.name.removeprefix("events_").replace("_", "-").replace("rest", "(others)"),
            f"{each.rows:,}",
            _bytes(each.data),
            _bytes(each.indexes),
            f"{each.bytes / each.rows:,.0f}" if each.rows else "",
            "█" * round(BAR * each.bytes / largest if each.rows else 0),
        )
    summary = facts(
        [
            ("now", _bytes(sum(each.bytes for each in sizes))),
            ("a day", f"{grown.rows_per_day:,.0f} events, {_bytes(grown.bytes_per_day)}"),
            ("kept", f"{span(retention, 1)} (retention.events), by whole months"),
            ("forecast", f"{_bytes(grown.forecast)} at the same rate"),
        ]
    )
    return [drawn, "", summary]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


# followers


@app.command("followers")
def followers(
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="NAME", help="It does not follow any more, such as sink:old.")
    ] = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who follows the events, how far behind each is, and when it last moved on.

    A month of events that a follower is still reading is kept beyond the retention, for a week after its last step.
    One that is no longer configured reads nothing any more: --forget it. Endpoints of webhooks are shown one by one;
    `webhooks` is how far all of them are.

    \b
    Examples:
      mailerd events followers
      mailerd events followers --forget sink:old
    """
    from mailerd.cli.settings import load

    settings = load(config)
    if forget is not None:
        asyncio.run(_forget(settings, forget, sure=yes))
    else:
        _show_followers(asyncio.run(_followers(settings)), as_json=as_json)


class FollowerRow(NamedTuple):
    """Who follows, how far it is, and its `state`: reading, disabled (an endpoint), not configured (a sink)."""

    name: str
    state: str
    position: str
    events_behind: int
    behind_since: datetime | None
    moved_at: datetime | None


async def _followers(settings: "Settings") -> list[FollowerRow]:
    from mailerd.cli.settings import database
    from mailerd.events import EventStore, FollowerStore
    from mailerd.feedback.names import format_event_id
    from mailerd.feedback.sinks.base import PREFIX as SINK
    from mailerd.feedback.webhooks.store import WebhookStore

    sinks = {f"{SINK}{name}" for name in settings.config.sinks}
    async with database(settings) as pool:
        events = EventStore(pool)
        places: list[tuple[str, str, Position, datetime | None]] = []
        for each in await FollowerStore(pool).all():
            gone = each.name.startswith(SINK) and each.name not in sinks
            places.append((each.name, NOT_CONFIGURED if gone else "reading", each.position, each.moved_at))
        for webhook in await WebhookStore(pool).all(None):
            state = "reading" if webhook.disabled_at is None else "disabled"
            places.append((webhook.outside_id, state, webhook.position, None))
        rows = []
        for name, state, position, moved_at in places:
            lag = await events.behind(position)
            rows.append(FollowerRow(name, state, format_event_id(position), lag.events, lag.since, moved_at))
    return rows


def _show_followers(rows: "Sequence[FollowerRow]", *, as_json: bool) -> None:
    from mailerd.cli.output import console, print_json_lines, say

    if as_json:
        print_json_lines(row._asdict() for row in rows)
        return
    if not rows:
        say("Nobody follows the events: no sinks, no webhooks.")
        return
    console().print(_table(rows, utc_now()))
    for row in rows:
        if row.state == NOT_CONFIGURED:
            say(f"{row.name} is not configured: `mailerd events followers --forget {row.name}`")


def _table(rows: "Sequence[FollowerRow]", now: datetime) -> Any:
    from rich.text import Text

    from mailerd.cli.listing import Listing
    from mailerd.cli.output import STYLES, clean, from_now

    drawn = Listing(("follower", "state", "behind", "oldest unread", "moved on"), numbers=("behind",))
    for row in rows:
        late = row.behind_since is not None and now - row.behind_since > LATE
        drawn.add_row(
            clean(row.name),
            Text(row.state, style=STYLES.get(row.state, "")),
            Text(f"{row.events_behind:,}", style="bold red" if late and row.state == "reading" else ""),
            from_now(row.behind_since, now),
            from_now(row.moved_at, now),
        )
    return drawn


async def _forget(settings: "Settings", name: str, *, sure: bool) -> None:
    import os

    from mailerd.cli.asking import confirm
    from mailerd.cli.failure import CommandError
    from mailerd.cli.output import say
    from mailerd.cli.settings import database
    from mailerd.events import FollowerStore

    if not sure:
        confirm(f"Forget how far {name} has read? If it still runs it begins anew.")
    async with database(settings) as pool:
        if not await FollowerStore(pool).forget(name):
            raise CommandError(f"nobody follows as {name}: `mailerd events followers` lists who does", os.EX_NOINPUT)
    say(f"{name} is forgotten.")
