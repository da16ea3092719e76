"""Definitions of custom fields: `/api/v1/custom-fields`. A field without a definition holds anything."""

from datetime import datetime
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta

from mailerd.campaigns.contacts.definitions import Definition
from mailerd.campaigns.contacts.fields import FieldType, is_field_name
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.intake.idempotency import Answer as Done
from mailerd.web import problems
from mailerd.web.bodies import Answer, Request
from mailerd.web.contact_bodies import LINE, missing, problem_of
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer

PATH = "/api/v1/custom-fields"
ONE = f"{PATH}/{{name}}"
FieldName = Annotated[
    str,
    Meta(max_length=63, pattern=r"^[a-z][a-z0-9_]*(?!\n)$", description="Lower-case letters, digits, underscores"),
]
Label = Annotated[str, Meta(max_length=255, pattern=LINE)]


class NewField(Request, frozen=True, kw_only=True):
    """date is 2026-11-22, datetime 2026-11-22T09:30:00Z, list a list of texts."""

    name: FieldName
    type: FieldType
    label: Label = ""


class FieldChange(Request, frozen=True, kw_only=True):
    """What is not given stays."""

    type: FieldType | None = None
    label: Label | None = None


class FieldView(Answer, frozen=True, kw_only=True):
    """What is written into the field of this name is of this type."""

    name: str
    type: FieldType
    label: str
    created_at: datetime


class FieldList(Answer, frozen=True, kw_only=True):
    """All of them, by name: there are never more than 500."""

    data: list[FieldView]
    has_more: Literal[False] = False
    next_cursor: None = None


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewField)
    tenant, store = call.caller.tenant, call.services.contacts.definitions

    async def work(connection: Connection) -> Done:
        now = call.services.now()
        made = await store.create(connection, tenant, asked.name, asked.type, asked.label, now=now)
        return Done(201, problems.encode(_view(made)), (("Location", f"{PATH}/{made.name}"),))

    try:
        return await once(call, body, work)
    except Refused as error:
        raise problem_of(error) from None


async def list_(call: Call) -> web.Response:
    found = await call.services.contacts.definitions.list(call.caller.tenant)
    return json_answer(200, FieldList(data=[_view(each) for each in found]))


async def show(call: Call) -> web.Response:
    found = await call.services.contacts.definitions.get(call.caller.tenant, _named(call))
    if found is None:
        raise missing("field")
    return json_answer(200, _view(found))


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, FieldChange)
    store, name = call.services.contacts.definitions, _named(call)
    try:
        found = await store.change(call.caller.tenant, name, type_=asked.type, label=asked.label)
    except Refused as error:
        raise problem_of(error) from None
    if found is None:
        raise missing("field")
    return json_answer(200, _view(found))


async def delete(call: Call) -> web.Response:
    if not await call.services.contacts.definitions.delete(call.caller.tenant, _named(call)):
        raise missing("field")
    return web.Response(status=204)


def _named(call: Call) -> str:
    """The name in the path; raises `ProblemError` (404) for what can be none."""
    name = call.request.match_info["name"]
    if not is_field_name(name):
        raise missing("field")
    return name


def _view(each: Definition) -> FieldView:
    return FieldView(name=each.name, type=each.type, label=each.label, created_at=each.created_at)


def _changing(id_: str, method: Literal["PUT", "PATCH"]) -> Operation:
    return Operation(
        id=id_,
        method=method,
        path=ONE,
        scope="manage",
        summary="Change a type or label; 409: contacts have values that do not fit the type",
        handler=change,
        bodies={JSON: FieldChange},
        example={"label": "Number of seats"},
        answers={200: (JSON, FieldView)},
        problems=(404, 408, 409, 413, 415, 422),
    )


OPERATIONS = (
    Operation(
        id="fields.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Give custom fields of a name a type; 409: there is one, or contacts have values that do not fit",
        handler=create,
        bodies={JSON: NewField},
        example={"name": "seats", "type": "number", "label": "Seats"},
        answers={201: (JSON, FieldView)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="fields.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="The definitions of custom fields",
        handler=list_,
        answers={200: (JSON, FieldList)},
    ),
    Operation(
        id="fields.get",
        method="GET",
        path=ONE,
        scope="read",
        summary="One definition",
        handler=show,
        answers={200: (JSON, FieldView)},
        problems=(404,),
    ),
    _changing("fields.put", "PUT"),
    _changing("fields.change", "PATCH"),
    Operation(
        id="fields.delete",
        method="DELETE",
        path=ONE,
        scope="manage",
        summary="Delete a definition; the values stay",
        handler=delete,
        answers={204: (JSON, bytes)},
        problems=(404,),
    ),
)
