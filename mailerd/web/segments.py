"""Segments, which are lists made of conditions: `/api/v1/segments`.

Nothing of a segment is kept but its conditions: who fits is found out whenever it is asked. What `contact_count` shows
is what was counted last, at `counted_at`.
"""

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from mailerd.campaigns.segments.conditions import Condition, ConditionError
from mailerd.campaigns.segments.counting import Page, Person, Wanted, of_condition
from mailerd.campaigns.segments.sizing import Estimate
from mailerd.campaigns.segments.store import InUseError, Segment
from mailerd.campaigns.segments.vocabulary import CUSTOM, FIELDS, OPERATORS
from mailerd.db import Connection
from mailerd.intake import idempotency
from mailerd.queue.ids import CONTACT, SEGMENT, format_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Request
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

PATH = "/api/v1/segments"
LAST = (1 << 63) - 1
COUNTING = 8.0  # seconds of one call that counts
PAGING = 3.0  # of one that looks for contacts
SAMPLING = 0.2
SAMPLE = 10  # contacts of a preview
MOST = 50  # warnings
SHIFT = 48  # bits of a count, in the cursor of counting
Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Description = Annotated[str, Meta(max_length=2000, pattern=r"^[^\x00]*$")]
FIELDS_AND_OPERATORS = (
    "Fields with their operators: "
    + "; ".join(
        f"{', '.join(name for name, own in FIELDS.items() if own == kind) or f'{CUSTOM}NAME that is a {kind}'}: "
        f"{' '.join(operators)}"
        for kind, operators in OPERATORS.items()
    )
    + f"; {CUSTOM}NAME that is a text, as email; that is a date or datetime, as created_at"
)
Conditions = Annotated[
    dict[str, Any],
    Meta(
        description=(
            f"{FIELDS_AND_OPERATORS}. "
            'A tree of {"and": [...]}, {"or": [...]}, {"not": {...}}, {"field": ..., "operator": ..., "value": ...} '
            'and {"engagement": "opened|clicked|received|not_opened|not_clicked|not_received", "campaign": "cmp_1", '
            '"at_least": 1, "within_days": 30, "link": 1, "machines": false}; at most 20 deep and 200 conditions. '
            "What is wrong in it is answered with a pointer, and with the words that are taken there"
        )
    ),
]


class NewSegment(Request, frozen=True, kw_only=True):
    """Texts are compared without regard to case. What is negated holds also of contacts without such a value."""

    name: Name
    description: Description = ""
    conditions: Conditions


class SegmentChange(Request, frozen=True, kw_only=True):
    """What is not given stays."""

    name: Name | None = None
    description: Description | None = None
    conditions: Conditions | None = None


class SegmentPreview(Request, frozen=True, kw_only=True):
    conditions: Conditions


class SegmentQuery(Request, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class CountQuery(Request, frozen=True, kw_only=True):
    """`cursor`: the `next_cursor` of the call before, to go on."""

    cursor: Annotated[str, Meta(max_length=200)] | None = None


class ConditionWarning(Answer, frozen=True, kw_only=True):
    """What is likely a slip: a field that no contact has (of the last 2,000), or a tag that there is not."""

    pointer: str
    code: str
    detail: str


class SegmentCreated(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """`warnings` stands there when there are any."""

    segment_id: str
    warnings: list[ConditionWarning] = msgspec.field(default_factory=list)


class SegmentView(Answer, frozen=True, kw_only=True):
    """`contact_count` were in it at `counted_at`; null: not counted since its conditions are these."""

    segment_id: str
    name: str
    description: str
    conditions: dict[str, Any]
    contact_count: int | None
    counted_at: datetime | None
    created_at: datetime
    updated_at: datetime


class SegmentChanged(SegmentView, frozen=True, kw_only=True, omit_defaults=True):
    """`warnings` of its conditions stands there when there are any."""

    warnings: list[ConditionWarning] = msgspec.field(default_factory=list)


class SegmentPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[SegmentView]
    has_more: bool
    next_cursor: str | None


class SegmentContact(Answer, frozen=True, kw_only=True):
    contact_id: str
    email: str
    first_name: str
    last_name: str


class SegmentContactPage(Answer, frozen=True, kw_only=True):
    """Oldest first. Where few of many contacts fit a page may be short, or empty, and not be the last."""

    data: list[SegmentContact]
    has_more: bool
    next_cursor: str | None


class SegmentEstimate(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """With a certainty of 95 % there are from `low` to `high`.

    `exact`: it is the number itself, as few had to be looked at; `sampled`: it was made out of `sampled` contacts.
    `warnings` of the conditions stands there when there are any.
    """

    estimate: int
    low: int
    high: int
    method: Literal["exact", "sampled"]
    sampled: int
    warnings: list[ConditionWarning] = msgspec.field(default_factory=list)


class SegmentPreviewView(SegmentEstimate, frozen=True, kw_only=True, omit_defaults=True):
    """`contacts`: up to ten who fit; none does not mean that there are none."""

    contacts: list[SegmentContact]


class SegmentCount(Answer, frozen=True, kw_only=True):
    """With `done` it is `contact_count` of the segment now. Else `counted` so far: call again with `next_cursor`."""

    segment_id: str
    done: bool
    counted: int
    progress: float
    next_cursor: str | None


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewSegment)
        store, tenant = call.services.segments, call.caller.tenant
        try:
            await store.check(tenant, asked.conditions)
            fault = None
        except ConditionError as error:
            fault = _invalid(error)

        warnings = await _warnings(call, asked.conditions) if fault is None else []

        async def work(connection: Connection) -> idempotency.Answer:
            if fault is not None:
                raise fault
            segment = await store.add(
                connection,
                tenant,
                name=asked.name,
                description=asked.description,
                conditions=asked.conditions,
                actor=call.caller.name,
            )
            if segment is None:
                raise ProblemError(409, "too_many", "There are too many lists and segments; delete some.")
            name = format_id(SEGMENT, segment.id)
            answer = problems.encode(SegmentCreated(segment_id=name, warnings=warnings))
            return idempotency.Answer(201, answer, (("Location", f"{PATH}/{name}"),))

        return await once(call, body, work)


async def list_(call: Call) -> web.Response:
    query = call.query(SegmentQuery)
    search = _Search(call.caller.tenant)
    before = _cursor(call, search, query.cursor, LAST)
    found = await call.services.segments.list(call.caller.tenant, before=before, limit=query.limit + 1)
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].id) if more else None
    return json_answer(200, SegmentPage(data=[_view(each) for each in shown], has_more=more, next_cursor=cursor))


async def show(call: Call) -> web.Response:
    return json_answer(200, _view(await _named(call)))


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, SegmentChange)
    store, id_ = call.services.segments, _id(call)
    try:
        segment = await store.change(
            call.caller.tenant,
            id_,
            name=asked.name,
            description=asked.description,
            conditions=asked.conditions,
        )
    except ConditionError as error:
        raise _invalid(error) from None
    if segment is None:
        raise _unknown()
    warnings = await _warnings(call, segment.conditions)
    return json_answer(200, SegmentChanged(**msgspec.structs.asdict(_view(segment)), warnings=warnings))


async def remove(call: Call) -> web.Response:
    try:
        gone = await call.services.segments.delete(call.caller.tenant, _id(call))
    except InUseError as error:
        detail = f"It is needed by {error}; cancel or change that first."
        raise ProblemError(409, "in_use", detail) from None
    if not gone:
        raise _unknown()
    return web.Response(status=204)


async def contacts(call: Call) -> web.Response:
    query = call.query(SegmentQuery)
    segment = await _named(call)
    wanted = await _wanted(call, segment)
    search = _Search(call.caller.tenant, segment.id)
    after = _cursor(call, search, query.cursor, 0)
    page = await call.services.segments.counts.page(wanted, after=after, limit=query.limit, seconds=PAGING)
    return json_answer(200, contact_page(call, search, page))


def contact_page(call: Call, search: msgspec.Struct, page: Page) -> SegmentContactPage:
    """A page of contacts; `search` is what its cursor is good for."""
    cursor = None if page.after is None else call.tools.cursors.make(search, page.after)
    people = [_contact(person) for person in page.people]
    return SegmentContactPage(data=people, has_more=page.after is not None, next_cursor=cursor)


async def estimate(call: Call) -> web.Response:
    segment = await _named(call)
    wanted = await _wanted(call, segment)
    found = await call.services.segments.counts.estimate(wanted)
    warnings = await _warnings(call, segment.conditions, "")
    return json_answer(200, SegmentEstimate(**_facts(found), warnings=warnings))


async def preview(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, SegmentPreview)
    store, tenant = call.services.segments, call.caller.tenant
    try:
        condition = await store.references.condition(tenant, asked.conditions)
    except ConditionError as error:
        raise _invalid(error) from None
    wanted = of_condition(tenant, condition, call.services.now())
    found = await store.counts.estimate(wanted)
    page = await store.counts.page(wanted, after=0, limit=SAMPLE, seconds=SAMPLING)
    people = [_contact(person) for person in page.people]
    warnings = await _warnings(call, asked.conditions)
    return json_answer(200, SegmentPreviewView(**_facts(found), contacts=people, warnings=warnings))


async def count(call: Call) -> web.Response:
    """Nothing goes on between two calls: where to go on stands in the cursor, so that any worker takes the next."""
    query = call.query(CountQuery)
    segment = await _named(call)
    wanted = await _wanted(call, segment)
    search = _Search(call.caller.tenant, segment.id, msgspec.json.encode(segment.conditions))
    after, counted = divmod(_cursor(call, search, query.cursor, 0), 1 << SHIFT)
    store = call.services.segments
    done = await store.counts.count(wanted, after=after, counted=counted, seconds=COUNTING)
    cursor = None
    if done.after is not None:
        cursor = call.tools.cursors.make(search, done.after << SHIFT | done.counted)
    else:
        await store.counted(call.caller.tenant, segment, done.counted, call.services.now())
    view = SegmentCount(
        segment_id=format_id(SEGMENT, segment.id),
        done=cursor is None,
        counted=done.counted,
        progress=round(done.part, 4),
        next_cursor=cursor,
    )
    return json_answer(200, view)


class _Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    segment: int = 0
    counting: bytes = b""


def _cursor(call: Call, search: _Search, cursor: str | None, start: int) -> int:
    if cursor is None:
        return start
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, for the same segment and API key; begin anew if it has changed."
        raise ProblemError(400, "invalid_cursor", detail) from None


def _id(call: Call) -> int:
    try:
        return parse_id(SEGMENT, call.request.match_info["segment_id"])
    except ValueError:
        raise _unknown() from None


async def _named(call: Call) -> Segment:
    segment = await call.services.segments.get(call.caller.tenant, _id(call))
    if segment is None:
        raise _unknown()
    return segment


async def _wanted(call: Call, segment: Segment) -> Wanted:
    try:
        condition: Condition = await call.services.segments.condition(call.caller.tenant, segment)
    except ConditionError as error:  # a field has another type now, a list is gone
        raise ProblemError(409, "broken_segment", f"Its conditions hold no longer: {error}") from None
    return of_condition(call.caller.tenant, condition, call.services.now())


def _unknown() -> ProblemError:
    return ProblemError(404, "not_found", "There is no such segment of yours.")


def _invalid(error: ConditionError) -> ProblemError:
    return conditions_problem(error, "/conditions")


def conditions_problem(error: ConditionError, under: str) -> ProblemError:
    """422 with all that is wrong in conditions, or in an audience, that stand at `under` in the body."""
    return problems.invalid(
        [FieldError(fault.code, fault.detail, pointer=under + fault.pointer) for fault in error.problems]
    )


def _facts(found: Estimate) -> dict[str, Any]:
    return dataclasses.asdict(found)


async def _warnings(call: Call, conditions: object, under: str = "/conditions") -> list[ConditionWarning]:
    doubts = await call.services.segments.doubts.doubts(call.caller.tenant, conditions)
    return [
        ConditionWarning(pointer=under + each.pointer, code=each.code, detail=each.detail) for each in doubts[:MOST]
    ]


def _contact(person: Person) -> SegmentContact:
    return SegmentContact(
        contact_id=format_id(CONTACT, person.id),
        email=person.email,
        first_name=person.first_name,
        last_name=person.last_name,
    )


def _view(segment: Segment) -> SegmentView:
    return SegmentView(
        segment_id=format_id(SEGMENT, segment.id),
        name=segment.name,
        description=segment.description,
        conditions=segment.conditions,
        contact_count=None if segment.counted_at is None else segment.contact_count,
        counted_at=segment.counted_at,
        created_at=segment.created_at,
        updated_at=segment.updated_at,
    )


METHODS: tuple[tuple[str, Literal["PUT", "PATCH"]], ...] = (("change", "PUT"), ("update", "PATCH"))
EXAMPLE = {
    "name": "Active Users",
    "conditions": {
        "and": [
            {"field": "custom_fields.last_purchase_date", "operator": ">", "value": "2024-01-01"},
            {"field": "tags", "operator": "contains", "value": "active"},
            {"engagement": "opened", "campaign": "any", "at_least": 2, "within_days": 30},
        ]
    },
}

OPERATIONS = (
    Operation(
        id="segments.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Make a segment of conditions",
        handler=create,
        bodies={JSON: NewSegment},
        example=EXAMPLE,
        answers={201: (JSON, SegmentCreated)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="segments.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="Segments, newest first",
        handler=list_,
        query=SegmentQuery,
        answers={200: (JSON, SegmentPage)},
        problems=(422,),
    ),
    Operation(
        id="segments.preview",
        method="POST",
        path=f"{PATH}/preview",
        scope="read",
        summary="About how many contacts fit conditions, in less than a second, and some of them",
        handler=preview,
        bodies={JSON: SegmentPreview},
        example={"conditions": EXAMPLE["conditions"]},
        answers={200: (JSON, SegmentPreviewView)},
        problems=(408, 413, 415, 422),
    ),
    Operation(
        id="segments.show",
        method="GET",
        path=f"{PATH}/{{segment_id}}",
        scope="read",
        summary="One segment",
        handler=show,
        answers={200: (JSON, SegmentView)},
        problems=(404,),
    ),
    *(
        Operation(
            id=f"segments.{id_}",
            method=method,
            path=f"{PATH}/{{segment_id}}",
            scope="manage",
            summary="Change what is given; who fits changes at once",
            handler=change,
            bodies={JSON: SegmentChange},
            example={"name": "Buyers"},
            answers={200: (JSON, SegmentChanged)},
            problems=(404, 408, 413, 415, 422),
        )
        for id_, method in METHODS
    ),
    Operation(
        id="segments.remove",
        method="DELETE",
        path=f"{PATH}/{{segment_id}}",
        scope="manage",
        summary="Delete a segment; 409: a campaign that is still to send, or another segment, needs it",
        handler=remove,
        answers={204: (JSON, bytes)},
        problems=(404, 409),
    ),
    Operation(
        id="segments.contacts",
        method="GET",
        path=f"{PATH}/{{segment_id}}/contacts",
        scope="read",
        summary="Who fits now, oldest contacts first",
        handler=contacts,
        query=SegmentQuery,
        answers={200: (JSON, SegmentContactPage)},
        problems=(404, 409, 422),
    ),
    Operation(
        id="segments.estimate",
        method="GET",
        path=f"{PATH}/{{segment_id}}/estimate",
        scope="read",
        summary="About how many fit, in less than a second",
        handler=estimate,
        answers={200: (JSON, SegmentEstimate)},
        problems=(404, 409),
    ),
    Operation(
        id="segments.count",
        method="POST",
        path=f"{PATH}/{{segment_id}}/count",
        scope="manage",
        summary="Count exactly who fits, some seconds a call; call again with the cursor until it is done",
        handler=count,
        query=CountQuery,
        answers={200: (JSON, SegmentCount)},
        problems=(404, 409, 422),
    ),
)
