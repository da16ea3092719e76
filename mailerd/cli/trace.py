"""`mailerd trace`: everything that happened to one message, and what it waits for."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, MessageArgument, message_id
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from mailerd.cli.settings import Settings
    from mailerd.db import Pool
    from mailerd.events import Event
    from mailerd.queue.views import MessageView, RecipientView

LOOK_EVERY = 0.2  # seconds, while following
INDENT = 17  # columns: below the word that says what happened
WIDTH = 13  # columns of that word and the space after it: the longest is "unsubscribed"


def trace(
    message: MessageArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until no recipient waits any more.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most so many recipients.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened to a message: its acceptance, every attempt with host, reply and verdict, and each
    recipient's state, with why it waits and until when.

    \b
    Examples:
      mailerd trace msg_38g13rwt40000
      mailerd trace msg_38g13rwt40000 --follow
      mailerd trace msg_38g13rwt40000 --json | jq '.recipients[] | .state'
    """
    from mailerd.cli.settings import load

    asyncio.run(_trace(load(config), message_id(message), follow, limit, as_json=as_json))


async def _trace(settings: "Settings", id_: int, follow: bool, limit: int, *, as_json: bool) -> None:
    from mailerd.cli.output import console, print_json
    from mailerd.cli.settings import database
    from mailerd.queue.ids import format_message_id
    from mailerd.queue.trace import TraceStore

    async with database(settings) as pool:
        view = await TraceStore(pool).message(id_, None)
        if view is None:
            text = f"no message {format_message_id(id_)} is known here: `mailerd search` finds those that are"
            raise CommandError(text, os.EX_NOINPUT)
        out = console()
        if not as_json:
            out.print(_facts(view), "")
        shown: list[Event] = []
        async for view, steps in watch(pool, id_, once=not follow):
            if not as_json:
                for step in draw_steps(steps, view.accepted_at):
                    out.print(step)
            shown += steps
        if as_json:
            print_json(plain(view, shown))
        else:
            out.print("", draw_recipients(view.recipients, utc_now(), limit))


async def watch(pool: "Pool", id_: int, *, once: bool = False) -> "AsyncIterator[tuple[MessageView, list[Event]]]":
    """The message and its new steps, again whenever there are some, until nothing of it waits; `once`: one look."""
    from mailerd.events import EventStore
    from mailerd.queue.trace import SLACK, TraceStore
    from mailerd.queue.views import FINAL_STATES

    views, events = TraceStore(pool), EventStore(pool)
    seen: set[tuple[datetime, str, int]] = set()
    while True:
        view = await views.message(id_, None)
        if view is None:  # its events have been forgotten meanwhile
            return
        steps = await events.of_message(id_, since=view.accepted_at - SLACK)
        fresh = [step for step in steps if (step.at, step.type, step.n) not in seen]
        seen.update((step.at, step.type, step.n) for step in fresh)
        if fresh or once:
            yield view, fresh
        if once or all(recipient.state in FINAL_STATES for recipient in view.recipients):
            return
        await asyncio.sleep(LOOK_EVERY)


def plain(view: "MessageView", steps: "Iterable[Event]") -> dict[str, Any]:
    """The message as JSON: the fields of the HTTP API's answer, and `steps`, all events in their order."""
    import msgspec

    from mailerd.queue.ids import format_message_id

    id_ = format_message_id(view.id)
    return msgspec.structs.asdict(view) | {
        "id": id_,
        "recipients": [{"id": f"{id_}.{each.n}"} | msgspec.structs.asdict(each) for each in view.recipients],
        "attempts": [{"recipient_id": f"{id_}.{each.n}"} | msgspec.structs.asdict(each) for each in view.attempts],
        "steps": [
            {"at": step.at, "type": step.type, "n": step.n, "address": step.address, "data": step.data or {}}
            for step in steps
        ],
    }


def _facts(view: "MessageView") -> "RenderableType":
    from mailerd.cli.output import count_of, facts, time_of
    from mailerd.queue.ids import format_message_id

    return facts(
        [
            ("message", format_message_id(view.id)),
            ("from", view.sender or "<> (a report)"),
            ("accepted", time_of(view.accepted_at)),
            ("size", count_of(view.size, "byte")),
            ("stream", f"{view.stream}, pool {view.pool}" if view.stream else ""),
            ("credential", view.credential),
            ("labels", ", ".join(f"{name}={value}" if value else name for name, value in view.labels.items())),
        ]
    )


# the steps


def draw_steps(steps: "Sequence[Event]", accepted_at: datetime) -> "Iterable[RenderableType]":
    """A line for what happened to some recipients at once, and lines below it for what was said."""
    from rich.padding import Padding

    for _, group in groupby(steps, key=_alike):
        same = list(group)
        yield _head(same, accepted_at)
        for line in _details(same[0]):
            yield Padding(line, (0, 0, 0, INDENT), expand=False)


def _alike(event: "Event") -> tuple[object, ...]:
    """Equal for recipients that one reply of one host was for."""
    if event.type == "message.accepted":
        return (event.at, event.type)
    data = event.data or {}
    return (
        event.at,
        event.type,
        *(data.get(key) for key in ("ip", "stage", "code", "text", "due_at", "actor", "link", "url")),
    )


WORDS = {"suppression.added": "suppressed", "suppression.removed": "lifted", "recipient.suppressed": "refused"}


def _head(same: "list[Event]", accepted_at: datetime) -> "Text":
    from rich.text import Text

    from mailerd.cli.output import STYLES, clean

    event = same[0]
    word = WORDS.get(event.type) or event.type.rpartition(".")[2]
    whom = clean(event.address) + (f" and {len(same) - 1:,} more" if len(same) > 1 else "")
    return Text.assemble(
        (f"{event.at.astimezone(UTC):%H:%M:%S.%f}"[:12], "dim"),
        f" {_since(event.at, accepted_at):>8} ",
        (f"{word:<{WIDTH}}", STYLES.get(word, "")),
        whom,
    )


def _since(at: datetime, accepted_at: datetime) -> str:
    from mailerd.cli.output import span

    seconds = (at - accepted_at).total_seconds()
    return f"+{seconds:.3f}s" if seconds < 100 else f"+{span(seconds)}"


def _details(event: "Event") -> "Iterable[Text]":
    from rich.text import Text

    from mailerd.cli.output import clean
    from mailerd.wire.words import decode_words

    data = event.data or {}
    match event.type:
        case "message.accepted":
            lines = [_words("by", data.get("protocol"), "from", data.get("peer"), "tls", data.get("tls"))]
            lines.append(_words("subject", decode_words(data.get("subject", ""))))
        case "recipient.held" | "recipient.released" | "recipient.cancelled":
            lines = [_words("by", data.get("by"))]
        case "suppression.added" | "suppression.removed" | "recipient.suppressed":
            scope = data.get("scope", {})
            lines = [_words("reason", data.get("reason"), "by", data.get("source"))]
            lines.append(_words("stream", scope.get("stream"), "topic", scope.get("topic")))
        case "recipient.unsubscribed":
            lines = [_words("by", data.get("source"), "topic", data.get("topic"))]
        case "recipient.answered":
            lines = [_words("by", data.get("kind", "").replace("_", " "), "of", data.get("reporter"))]
        case "recipient.opened" | "recipient.clicked":
            times = data.get("times", 1)
            often = f"{times:,} times" if times > 1 else ""
            lines = [
                ", ".join(filter(None, (_reader(data), often))),
                data.get("url") or _words("link", data.get("link")),
            ]
            lines.append(_words("from", data.get("ip"), "with", data.get("user_agent")))
        case _:
            lines = [_where(data), _what(data), _words("reported by", data.get("reporter"))]
            lines.append(_words("next attempt", _time(data.get("due_at"))))
    for line in lines:
        if line:
            yield Text(clean(line))


READERS = {"human": "by a person", "unknown": "by a person or a machine"}


def _reader(data: dict[str, Any]) -> str:
    """Who opened or clicked, as far as it shows, and the rules that say so."""
    actor, reasons = data.get("actor", ""), ", ".join(data.get("reasons", ()))
    who = READERS.get(actor) or f"by a machine: {actor.replace('_', ' ')}"
    return f"{who} ({reasons})" if reasons else who


def _words(*pairs: Any) -> str:
    """`name value, name value`, without those that have no value."""
    named = zip(pairs[::2], pairs[1::2], strict=True)
    return ", ".join(f"{name} {value}" for name, value in named if value)


def _where(data: dict[str, Any]) -> str:
    """The host of an attempt, from where and how we spoke to it, and how long it took."""
    if not data.get("ip"):
        return ""
    host = data["ip"] if data.get("host") in (None, "", data["ip"]) else f"{data['host']} [{data['ip']}]"
    source = f"from {data['source']}, " if data.get("source") else ""
    return f"at {host}, {source}{data.get('tls') or 'in clear'}, {data.get('ms', 0):,} ms"


def _what(data: dict[str, Any]) -> str:
    """The reply, where in the conversation it came, and what we take it for."""
    reply = " ".join(str(data[key]) for key in ("code", "enhanced", "text") if data.get(key))
    about = _words("at", data.get("stage"), "class", data.get("kind"), "attempt", data.get("attempt"))
    doubt = "; it may have been sent already" if data.get("in_doubt") else ""
    return f"{reply} ({about}{doubt})" if about else reply


def _time(text: str | None) -> str:
    from mailerd.cli.output import time_of

    return time_of(datetime.fromisoformat(text)) if text else ""


# the recipients


def draw_recipients(recipients: "Sequence[RecipientView]", now: datetime, limit: int) -> "RenderableType":
    """Where each stands; those that wait first, since they are what one looks for."""
    from rich.console import Group

    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured
    from mailerd.queue.views import FINAL_STATES

    columns = ("#", "recipient", "state", "tries", "waits for, or last reply")
    drawn = Listing(columns, below=columns[-1:], numbers=("#", "tries"))
    for each in sorted(recipients, key=lambda each: (each.state in FINAL_STATES, each.n))[:limit]:
        drawn.add_row(
            str(each.n), clean(each.address), coloured(each.state), str(each.attempts), clean(_waits_for(each, now))
        )
    if len(recipients) > limit:
        return Group(drawn, f"… and {len(recipients) - limit:,} more: --limit shows them")
    return drawn


def _waits_for(recipient: "RecipientView", now: datetime) -> str:
    from mailerd.cli.output import from_now, time_of
    from mailerd.queue.views import FINAL_STATES

    doubt = "; may have been sent already" if recipient.in_doubt else ""
    if recipient.state in FINAL_STATES:
        return recipient.last_reply + doubt
    expiry = f"given up {from_now(recipient.expires_at, now, units=2)}" if recipient.expires_at else ""
    if recipient.state == "held":
        when = "`mailerd queue release`"
    elif recipient.due_at is not None and recipient.due_at > now:
        when = f"next attempt {from_now(recipient.due_at, now, units=2)}, {time_of(recipient.due_at)}"
    else:
        when = "due now"
    return "; ".join(filter(None, (recipient.reason + doubt, when, expiry)))
