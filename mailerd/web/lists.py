"""Lists: `/api/v1/lists`. Static ones have contacts that are added and removed; dynamic ones are segments."""

from datetime import datetime
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import Meta, Struct

from mailerd.campaigns.contacts.lists import MAX_ID, ContactList, ListType
from mailerd.campaigns.contacts.members import MAX_ADDED
from mailerd.campaigns.contacts.values import MAX_NAME, ListStatus
from mailerd.campaigns.segments.conditions import ConditionError
from mailerd.campaigns.segments.counting import of_condition
from mailerd.campaigns.segments.store import InUseError
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CONTACT, LIST, SEGMENT, format_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Request
from mailerd.web.contact_bodies import (
    LINE,
    MAX_LISTS,
    ConsentBody,
    ContactView,
    Cursor,
    Id,
    Limit,
    Words,
    consent_facts,
    contact_facts,
    missing,
    path_number,
    problem_of,
)
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

PATH = "/api/v1/lists"
ONE = f"{PATH}/{{list_id}}"
DEEPEST = 10_000  # contacts before the end of a numbered page; a cursor goes as far as the list
SEARCHING = 10.0  # seconds for one page of a dynamic list
WRITING = (404, 408, 409, 413, 415, 422)
ListName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=LINE)]
Conditions = Annotated[dict[str, Any], Meta(description="A tree of conditions: see /segments")]
Ids = Annotated[list[Id], Meta(min_length=1, max_length=MAX_ADDED)]


class NewList(Request, frozen=True, kw_only=True):
    """`segment_conditions` are for the type `dynamic`, which has no contacts of its own: it is a segment."""

    name: ListName
    description: Words = ""
    type: ListType = "static"
    segment_conditions: Conditions | None = None


class ListChange(Request, frozen=True, kw_only=True):
    """What is not given stays. The type does not change."""

    name: ListName | None = None
    description: Words | None = None
    segment_conditions: Conditions | None = None


class ListQuery(Request, frozen=True, kw_only=True):
    type: ListType | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class MemberQuery(Request, frozen=True, kw_only=True):
    """By pages (`page` from 1, of `page_size`), as far as the 10,000th contact; or all of it by `cursor` and `limit`.

    `status` is that of the contact on this list.
    """

    page: Annotated[int, Meta(ge=1, le=DEEPEST)] | None = None
    page_size: Limit | None = None
    status: ListStatus | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class NewMembers(Request, frozen=True, kw_only=True):
    """Who has left the list stays so, unless `resubscribe` and a younger `consent` say otherwise (at most 100)."""

    contact_ids: Ids
    resubscribe: bool = False
    consent: ConsentBody | None = None


class FormerMembers(Request, frozen=True, kw_only=True):
    contact_ids: Ids


class ListMade(Answer, frozen=True, kw_only=True):
    list_id: str


class ListView(Answer, frozen=True, kw_only=True):
    """`contact_count` are the subscribed, exact; of a dynamic list how many fitted at `counted_at`.

    Those to whom no mail goes now (bounced, complained, suppressed) count, too: that is found out as mail is sent.
    """

    list_id: str
    name: str
    description: str
    type: ListType
    segment_conditions: dict[str, Any] | None
    contact_count: int
    counted_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class ListPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[ListView]
    has_more: bool
    next_cursor: str | None


class ListContact(ContactView, frozen=True, kw_only=True):
    """A contact, and what it is on this list since when; both null on dynamic lists."""

    list_status: ListStatus | None
    added_at: datetime | None


class ListContactPage(Answer, frozen=True, kw_only=True):
    """By their ids. `contact_count` is that of the list; of a dynamic list a page may be short and not be the last."""

    data: list[ListContact]
    has_more: bool
    next_cursor: str | None
    page: int | None
    page_size: int
    contact_count: int


class RefusedMember(Answer, frozen=True, kw_only=True):
    """One that was not subscribed again, and why."""

    contact_id: str
    code: str
    detail: str


class MembersAdded(Answer, frozen=True, kw_only=True):
    """What became of the contacts: `unsubscribed` have left the list and stay so, `not_found` are none of yours."""

    list_id: str
    added: int
    already: int
    resubscribed: int
    unsubscribed: list[str]
    refused: list[RefusedMember]
    not_found: list[str]
    contact_count: int


class MembersRemoved(Answer, frozen=True, kw_only=True):
    list_id: str
    removed: int
    contact_count: int


class _Search(Struct, frozen=True):
    """What a cursor is good for."""

    tenant: str
    what: str
    type: str | None


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewList)
    if (asked.type == "dynamic") != (asked.segment_conditions is not None):
        detail = "A dynamic list has segment_conditions, a static one has none."
        raise problems.invalid([FieldError("missing_field", detail, pointer="/segment_conditions")])
    try:
        if asked.segment_conditions is not None:
            await call.services.segments.check(call.caller.tenant, asked.segment_conditions)

        async def work(connection: Connection) -> Done:
            id_ = format_id(LIST, await _make(call, connection, asked))
            return Done(201, problems.encode(ListMade(list_id=id_)), (("Location", f"{PATH}/{id_}"),))

        return await once(call, body, work)
    except Refused as error:
        raise problem_of(error) from None
    except ConditionError as error:
        raise _of_conditions(error) from None


async def _make(call: Call, connection: Connection, asked: NewList) -> int:
    caller = call.caller
    if asked.segment_conditions is None:
        made = await call.services.contacts.lists.create(
            connection,
            caller.tenant,
            asked.name,
            description=asked.description,
            created_by=caller.name,
            now=call.services.now(),
        )
        return made.id
    segment = await call.services.segments.add(
        connection,
        caller.tenant,
        name=asked.name,
        description=asked.description,
        conditions=asked.segment_conditions,
        actor=caller.name,
    )
    if segment is None:
        raise ProblemError(409, "too_many", "There are too many lists and segments; delete some.")
    return segment.id


def _of_conditions(error: ConditionError) -> ProblemError:
    return problems.invalid(
        [
            FieldError(fault.code, fault.detail, pointer=f"/segment_conditions{fault.pointer}")
            for fault in error.problems
        ]
    )


async def list_(call: Call) -> web.Response:
    query = call.query(ListQuery)
    search = _Search(call.caller.tenant, "lists", query.type)
    before = MAX_ID if query.cursor is None else _position(call, search, query.cursor)
    found = await call.services.contacts.lists.list(
        call.caller.tenant, type_=query.type, limit=query.limit + 1, before=before
    )
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].id) if more else None
    return json_answer(200, ListPage(data=[_view(each) for each in shown], has_more=more, next_cursor=cursor))


def _position(call: Call, search: _Search, cursor: str) -> int:
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


async def _own(call: Call) -> ContactList:
    """The list that the path names, by the id of a list or a segment; raises `ProblemError` (404)."""
    number = path_number(call, "list_id", LIST, SEGMENT)
    found = await call.services.contacts.lists.get(call.caller.tenant, number)
    if found is None:
        raise missing("list")
    return found


async def show(call: Call) -> web.Response:
    return json_answer(200, _view(await _own(call)))


async def change(call: Call) -> web.Response:
    own = await _own(call)
    async with call.body() as body:
        asked = problems.decode(body, ListChange)
    book, tenant = call.services.contacts, call.caller.tenant
    if asked.segment_conditions is not None:
        if own.type == "static":
            detail = "A static list has no conditions."
            raise problems.invalid([FieldError("invalid_value", detail, pointer="/segment_conditions")])
        try:
            await call.services.segments.change(tenant, own.id, conditions=asked.segment_conditions)
        except ConditionError as error:
            raise _of_conditions(error) from None
    now = call.services.now()
    changed = await book.lists.change(tenant, own.id, name=asked.name, description=asked.description, now=now)
    if changed is None:
        raise missing("list")
    return json_answer(200, _view(changed))


async def delete(call: Call) -> web.Response:
    own = await _own(call)
    book, tenant = call.services.contacts, call.caller.tenant
    try:
        if own.type == "dynamic":
            gone = await call.services.segments.delete(tenant, own.id)
        elif users := await call.services.segments.references.users(tenant, own.id):
            raise InUseError(users)
        else:
            gone = await book.lists.delete(tenant, own.id)
    except InUseError as error:
        raise ProblemError(409, "in_use", f"It is needed by {', '.join(error.users)}.") from None
    if not gone:
        raise missing("list")
    return web.Response(status=204)


async def contacts(call: Call) -> web.Response:
    own = await _own(call)
    query = call.query(MemberQuery)
    if query.page is not None and query.cursor is not None:
        raise problems.invalid([FieldError("contradiction", "Either a page or a cursor.", parameter="page")])
    size = query.page_size or query.limit
    search = _Search(call.caller.tenant, f"contacts of {own.id}", query.status)
    after = 0 if query.cursor is None else _position(call, search, query.cursor)
    offset = 0 if query.page is None else (query.page - 1) * size
    if offset + size > DEEPEST:
        detail = f"Pages reach as far as the {DEEPEST:,}th contact; go on by next_cursor."
        raise problems.invalid([FieldError("too_deep", detail, parameter="page")])
    read = _fitting if own.type == "dynamic" else _members
    data, position = await read(call, own, query.status, after, offset, size)
    cursor = None if position is None else call.tools.cursors.make(search, position)
    page = ListContactPage(
        data=data,
        has_more=cursor is not None,
        next_cursor=cursor,
        page=query.page,
        page_size=size,
        contact_count=own.contact_count,
    )
    return json_answer(200, page)


async def _members(
    call: Call, own: ContactList, status: str | None, after: int, offset: int, size: int
) -> tuple[list[ListContact], int | None]:
    book = call.services.contacts
    rows = await book.members.page(own.id, status=status, after=after, offset=offset, limit=size + 1)
    shown = {row.contact_id: row for row in rows[:size]}
    data = [
        ListContact(**contact_facts(each), list_status=shown[each.id].status, added_at=shown[each.id].added_at)
        for each in await book.contacts.many(call.caller.tenant, list(shown))
    ]
    return data, rows[size - 1].contact_id if len(rows) > size else None


async def _fitting(
    call: Call, own: ContactList, status: str | None, after: int, offset: int, size: int
) -> tuple[list[ListContact], int | None]:
    """Who fits the conditions of a dynamic list now. Everybody there is subscribed to it, in a way."""
    book, tenant = call.services.contacts, call.caller.tenant
    if status not in (None, "subscribed"):
        return [], None
    segment = await call.services.segments.get(tenant, own.id)
    if segment is None:
        raise missing("list")
    try:
        condition = await call.services.segments.condition(tenant, segment)
    except ConditionError as error:
        raise _of_conditions(error) from None
    wanted = of_condition(tenant, condition, call.services.now())
    page = await call.services.segments.counts.page(wanted, after=after, limit=offset + size, seconds=SEARCHING)
    found = await book.contacts.many(tenant, [person.id for person in page.people[offset:]])
    return [ListContact(**contact_facts(each), list_status=None, added_at=None) for each in found], page.after


async def add_contacts(call: Call) -> web.Response:
    own = await _own(call)
    async with call.body() as body:
        asked = problems.decode(body, NewMembers)
    consent = consent_facts(asked.consent, call.services.now())
    if asked.resubscribe and consent is None:
        detail = "Say how they agreed: nobody is subscribed again without."
        raise problems.invalid([FieldError("missing_field", detail, pointer="/consent")])
    if asked.resubscribe and len(asked.contact_ids) > MAX_LISTS:
        detail = f"At most {MAX_LISTS} contacts are subscribed again in one call."
        raise problems.invalid([FieldError("too_many", detail, pointer="/contact_ids")])
    book, tenant, source = call.services.contacts, call.caller.tenant, f"api:{call.caller.name}"
    numbers = _numbers(asked.contact_ids)
    try:
        done = await book.members.add(tenant, own.id, numbers, source=source, now=call.services.now())
    except Refused as error:
        raise problem_of(error) from None
    left, refused = list(done.left), []
    if asked.resubscribe and consent is not None:
        for number in done.left:
            try:
                await book.subscriptions.subscribe(tenant, number, consent=consent, list_ids=[own.id], source=source)
                left.remove(number)
            except Refused as error:
                name = format_id(CONTACT, number)
                refused.append(RefusedMember(contact_id=name, code=error.name, detail=error.text))
    answer = MembersAdded(
        list_id=format_id(LIST, own.id),
        added=len(done.added),
        already=len(done.already),
        resubscribed=len(done.left) - len(left),
        unsubscribed=[format_id(CONTACT, number) for number in left],
        refused=refused,
        not_found=[format_id(CONTACT, number) for number in done.missing],
        contact_count=await _count(call, own),
    )
    return json_answer(200, answer)


async def remove_contacts(call: Call) -> web.Response:
    own = await _own(call)
    async with call.body() as body:
        asked = problems.decode(body, FormerMembers)
    numbers = _numbers(asked.contact_ids)
    source = f"api:{call.caller.name}"
    try:
        removed = await call.services.contacts.members.remove(
            call.caller.tenant, own.id, numbers, source=source, now=call.services.now()
        )
    except Refused as error:
        raise problem_of(error) from None
    id_, count = format_id(LIST, own.id), await _count(call, own)
    return json_answer(200, MembersRemoved(list_id=id_, removed=len(removed), contact_count=count))


def _numbers(texts: list[str]) -> list[int]:
    found: list[int] = []
    errors: list[FieldError] = []
    for place, text in enumerate(texts):
        try:
            found.append(parse_id(CONTACT, text))
        except ValueError as error:
            errors.append(FieldError("invalid_id", f"{error}.", pointer=f"/contact_ids/{place}"))
    if errors:
        raise problems.invalid(errors[:100])
    return found


async def _count(call: Call, own: ContactList) -> int:
    found = await call.services.contacts.lists.get(call.caller.tenant, own.id)
    return 0 if found is None else found.contact_count


def _view(each: ContactList) -> ListView:
    facts = {name: getattr(each, name) for name in ListView.__struct_fields__ if name != "list_id"}
    return ListView(list_id=format_id(LIST, each.id), **facts)


def _removing(id_: str, method: Literal["POST", "DELETE"], path: str, summary: str) -> Operation:
    return Operation(
        id=id_,
        method=method,
        path=path,
        scope="manage",
        summary=summary,
        handler=remove_contacts,
        bodies={JSON: FormerMembers},
        example={"contact_ids": ["con_1", "con_2"]},
        answers={200: (JSON, MembersRemoved)},
        problems=WRITING,
    )


def _changing(id_: str, method: Literal["PUT", "PATCH"]) -> Operation:
    return Operation(
        id=id_,
        method=method,
        path=ONE,
        scope="manage",
        summary="Change a list: what is not given stays",
        handler=change,
        bodies={JSON: ListChange},
        example={"name": "Weekly news"},
        answers={200: (JSON, ListView)},
        problems=WRITING,
    )


OPERATIONS = (
    Operation(
        id="lists.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="A new list; with segment_conditions a dynamic one",
        handler=create,
        bodies={JSON: NewList},
        example={"name": "Newsletter", "description": "Monthly news"},
        answers={201: (JSON, ListMade)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="lists.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="Lists, static and dynamic, newest first",
        handler=list_,
        query=ListQuery,
        answers={200: (JSON, ListPage)},
        problems=(400, 422),
    ),
    Operation(
        id="lists.get",
        method="GET",
        path=ONE,
        scope="read",
        summary="One list",
        handler=show,
        answers={200: (JSON, ListView)},
        problems=(404,),
    ),
    _changing("lists.put", "PUT"),
    _changing("lists.change", "PATCH"),
    Operation(
        id="lists.delete",
        method="DELETE",
        path=ONE,
        scope="manage",
        summary="Delete a list, not its contacts; 409: a campaign or a segment needs it",
        handler=delete,
        answers={204: (JSON, bytes)},
        problems=(404, 409),
    ),
    Operation(
        id="lists.contacts",
        method="GET",
        path=f"{ONE}/contacts",
        scope="read",
        summary="Who is on a list, or fits a dynamic one now",
        handler=contacts,
        query=MemberQuery,
        answers={200: (JSON, ListContactPage)},
        problems=(400, 404, 422),
    ),
    Operation(
        id="lists.add_contacts",
        method="POST",
        path=f"{ONE}/contacts",
        scope="manage",
        summary="Subscribe up to 10,000 contacts to a list; who has left it stays so",
        handler=add_contacts,
        bodies={JSON: NewMembers},
        example={"contact_ids": ["con_1", "con_2"]},
        answers={200: (JSON, MembersAdded)},
        problems=WRITING,
    ),
    _removing("lists.remove_contacts", "DELETE", f"{ONE}/contacts", "Take up to 10,000 contacts off a list"),
    _removing(
        "lists.remove_contacts_by_post",
        "POST",
        f"{ONE}/contacts/remove",
        "The same for clients and proxies that drop the body of a DELETE",
    ),
)
