"""What happened, to all mail: `/api/v1/events`."""

from datetime import datetime
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta, field

from mailerd.events import LAST_SEQ, Position
from mailerd.feedback.event_search import EventFilters
from mailerd.feedback.names import FAMILIES, NAMES, OutsideEvent, is_pattern
from mailerd.queue.ids import parse_message_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Moment, Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError
from mailerd.wire.address import parse_mailbox

SEQ_BITS = LAST_SEQ.bit_length()
YEARS = range(2, 9_999)  # that survive a few minutes of slack


class EventQuery(Request, frozen=True, kw_only=True):
    """`type` may be repeated, and may be a family, `email.*`. `since` is inclusive, `until` exclusive."""

    type: Annotated[list[str], Meta(max_length=50)] = field(default_factory=list)
    email_id: str | None = None
    recipient: str | None = None
    stream: Annotated[str, Meta(max_length=64)] | None = None
    campaign: Annotated[str, Meta(max_length=256)] | None = None
    since: Moment | None = None
    until: Moment | None = None
    order: Literal["newest", "oldest"] = "newest"
    cursor: Annotated[str, Meta(max_length=200)] | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class EventPage(Answer, frozen=True, kw_only=True):
    """Go on with `next_cursor` and the same filters while `has_more`; with rare filters a page may be short, or empty.

    Oldest first there always is a `next_cursor`: ask again later, and nothing is missed and nothing comes twice.
    """

    data: list[OutsideEvent]
    has_more: bool
    next_cursor: str | None


async def list_events(call: Call) -> web.Response:
    query = call.query(EventQuery)
    filters = EventFilters(
        tenant=call.caller.tenant,
        types=_types(query.type),
        message_id=_message_id(query.email_id),
        address=_address(query.recipient),
        stream=query.stream,
        campaign=query.campaign,
        since=_moment(query.since, "since"),
        until=_moment(query.until, "until"),
        newest_first=query.order == "newest",
    )
    found = await call.services.events.search(filters, query.limit, _position(call, filters, query.cursor))
    going_on = found.more or not filters.newest_first
    cursor = call.tools.cursors.make(filters, _number(found.position)) if going_on else None
    return json_answer(200, EventPage(data=found.events, has_more=found.more, next_cursor=cursor))


def _position(call: Call, filters: EventFilters, cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        return Position(*divmod(call.tools.cursors.read(filters, cursor), 1 << SEQ_BITS))
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


def _number(position: Position) -> int:
    return position.txid << SEQ_BITS | position.seq


def _types(given: list[str]) -> tuple[str, ...]:
    for type_ in given:
        if not is_pattern(type_):
            known = ", ".join((*NAMES, *FAMILIES))
            raise _invalid("type", f"There is no type {type_[:60]!r}; the types are {known}.")
    return tuple(given)


def _message_id(text: str | None) -> int | None:
    try:
        return None if text is None else parse_message_id(text)
    except ValueError as error:
        raise _invalid("email_id", f"{error}.") from None


def _address(text: str | None) -> str | None:
    try:
        return None if text is None else parse_mailbox(text).address
    except ValueError as error:
        raise _invalid("recipient", str(error), code="invalid_address") from None


def _moment(at: datetime | None, parameter: str) -> datetime | None:
    if at is not None and at.year not in YEARS:
        raise _invalid(parameter, "No mail has that time.")
    return at


def _invalid(parameter: str, detail: str, *, code: str = "invalid_value") -> ProblemError:
    return problems.invalid([FieldError(code, detail, parameter=parameter)])


OPERATIONS = (
    Operation(
        id="events.list",
        method="GET",
        path="/api/v1/events",
        scope="read",
        summary="What happened to mail, newest first; or oldest first, to follow it",
        handler=list_events,
        query=EventQuery,
        answers={200: (JSON, EventPage)},
        problems=(400, 422),
    ),
)
