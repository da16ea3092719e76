"""Contacts: `/api/v1/contacts`. What they say of the mail they get, and what is known of them, is `contact_records`."""

from typing import Literal

from aiohttp import web
from msgspec import Struct

from mailerd.campaigns.contacts.store import MAX_ID, ContactFilters
from mailerd.campaigns.contacts.values import parse_email, tag_name
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CONTACT, format_id
from mailerd.web import problems
from mailerd.web.contact_bodies import (
    CONTACTS,
    ContactChange,
    ContactMade,
    ContactPage,
    ContactQuery,
    ContactView,
    NewContact,
    consent_facts,
    contact_values,
    contact_view,
    list_number,
    list_numbers,
    missing,
    path_number,
    problem_of,
)
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

PATH = f"{CONTACTS}/{{contact_id}}"


class _Search(Struct, frozen=True):
    """What a cursor is good for."""

    tenant: str
    email: str | None
    status: str | None
    tag: str | None
    list_id: str | None


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewContact)
    values, lists = contact_values(asked), list_numbers(asked.list_ids)
    consent = consent_facts(asked.consent, call.services.now())
    tenant, store = call.caller.tenant, call.services.contacts.contacts

    async def work(connection: Connection) -> Done:
        source = f"api:{call.caller.name}"
        number = await store.create(connection, tenant, values, list_ids=lists, consent=consent, source=source)
        id_ = format_id(CONTACT, number)
        return Done(201, problems.encode(ContactMade(contact_id=id_)), (("Location", f"{CONTACTS}/{id_}"),))

    try:
        return await once(call, body, work)
    except Refused as error:
        raise problem_of(error) from None


async def list_(call: Call) -> web.Response:
    query = call.query(ContactQuery)
    tenant, book = call.caller.tenant, call.services.contacts
    search = _Search(tenant, query.email, query.status, query.tag, query.list_id)
    before = MAX_ID if query.cursor is None else _position(call, search, query.cursor)
    tag_id = None if query.tag is None else await book.tags.find(tenant, _tag(query.tag))
    if query.tag is not None and tag_id is None:
        return json_answer(200, ContactPage(data=[], has_more=False, next_cursor=None))
    filters = ContactFilters(
        address=None if query.email is None else _address(query.email),
        status=query.status,
        tag_id=tag_id,
        list_id=None if query.list_id is None else await _list(call, query.list_id),
    )
    page = await book.contacts.list(tenant, filters, limit=query.limit, before=before)
    cursor = None if page.position is None else call.tools.cursors.make(search, page.position)
    data = [contact_view(each) for each in page.contacts]
    return json_answer(200, ContactPage(data=data, has_more=cursor is not None, next_cursor=cursor))


def _position(call: Call, search: _Search, cursor: str) -> int:
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


def _address(text: str) -> str:
    try:
        return parse_email(text)[1]
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_address", f"{error}.", parameter="email")]) from None


def _tag(text: str) -> str:
    try:
        return tag_name(text)
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_tag", f"{error}.", parameter="tag")]) from None


async def _list(call: Call, text: str) -> int:
    number = list_number(text, parameter="list_id")
    found = await call.services.contacts.lists.get(call.caller.tenant, number)
    if found is None or found.type != "static":
        detail = "There is no such static list; of a dynamic one see /lists/{list_id}/contacts."
        raise problems.invalid([FieldError("unknown_list", detail, parameter="list_id")])
    return number


async def show(call: Call) -> web.Response:
    return await contact_answer(call, path_number(call, "contact_id", CONTACT))


async def contact_answer(call: Call, number: int) -> web.Response:
    """The contact as it is now; raises `ProblemError` (404)."""
    contact = await call.services.contacts.contacts.get(call.caller.tenant, number)
    if contact is None:
        raise missing("contact")
    return json_answer(200, contact_view(contact))


async def change(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    async with call.body() as body:
        asked = problems.decode(body, ContactChange)
    values, consent = contact_values(asked), consent_facts(asked.consent, call.services.now())
    try:
        found = await call.services.contacts.contacts.change(call.caller.tenant, number, values, consent=consent)
    except Refused as error:
        raise problem_of(error) from None
    if not found:
        raise missing("contact")
    return await contact_answer(call, number)


async def delete(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    if not await call.services.contacts.contacts.delete(call.caller.tenant, number):
        raise missing("contact")
    return web.Response(status=204)


EXAMPLE = {
    "email": "ann@example.com",
    "first_name": "Ann",
    "last_name": "Lee",
    "tags": ["vip"],
    "custom_fields": {"plan": "pro", "seats": 5},
}


def _changing(id_: str, method: Literal["PUT", "PATCH"]) -> Operation:
    return Operation(
        id=id_,
        method=method,
        path=PATH,
        scope="manage",
        summary="Change a contact: what is not given stays",
        handler=change,
        bodies={JSON: ContactChange},
        example={"first_name": "Anne", "custom_fields": {"plan": "basic", "seats": None}},
        answers={200: (JSON, ContactView)},
        problems=(404, 408, 409, 413, 415, 422),
    )


OPERATIONS = (
    Operation(
        id="contacts.create",
        method="POST",
        path=CONTACTS,
        scope="manage",
        summary="A new contact; 409: its address is another's (Location says whose), or was erased",
        handler=create,
        bodies={JSON: NewContact},
        example=EXAMPLE,
        answers={201: (JSON, ContactMade)},
        problems=(404, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="contacts.list",
        method="GET",
        path=CONTACTS,
        scope="read",
        summary="Contacts, newest first",
        handler=list_,
        query=ContactQuery,
        answers={200: (JSON, ContactPage)},
        problems=(400, 422),
    ),
    Operation(
        id="contacts.get",
        method="GET",
        path=PATH,
        scope="read",
        summary="One contact, with its status, tags and custom fields",
        handler=show,
        answers={200: (JSON, ContactView)},
        problems=(404,),
    ),
    _changing("contacts.put", "PUT"),
    _changing("contacts.change", "PATCH"),
    Operation(
        id="contacts.delete",
        method="DELETE",
        path=PATH,
        scope="manage",
        summary="Delete a contact; its address stays suppressed if it was, and may come again: else see erase",
        handler=delete,
        answers={204: (JSON, bytes)},
        problems=(404,),
    ),
)
