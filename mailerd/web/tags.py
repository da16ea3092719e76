"""Tags: `/api/v1/tags`. They also come into being with the first contact that is given one."""

from datetime import datetime
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta, Struct

from mailerd.campaigns.contacts.tags import Tag
from mailerd.campaigns.contacts.values import DEFAULT_COLOR, tag_name
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import TAG, format_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Request
from mailerd.web.contact_bodies import Cursor, Limit, missing, path_number, problem_of
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

PATH = "/api/v1/tags"
ONE = f"{PATH}/{{tag_id}}"
MAX_ID = (1 << 63) - 1
Color = Annotated[str, Meta(max_length=7, pattern=r"^#[0-9A-Fa-f]{6}(?!\n)$", description="#rrggbb")]
TagName = Annotated[str, Meta(min_length=1, max_length=200)]


class NewTag(Request, frozen=True, kw_only=True):
    name: TagName
    color: Color = DEFAULT_COLOR


class TagChange(Request, frozen=True, kw_only=True):
    """What is not given stays."""

    name: TagName | None = None
    color: Color | None = None


class TagQuery(Request, frozen=True, kw_only=True):
    limit: Limit = 50
    cursor: Cursor | None = None


class TagMade(Answer, frozen=True, kw_only=True):
    tag_id: str


class TagView(Answer, frozen=True, kw_only=True):
    tag_id: str
    name: str
    color: str
    created_at: datetime


class TagPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[TagView]
    has_more: bool
    next_cursor: str | None


class _Search(Struct, frozen=True):
    """What a cursor is good for."""

    tenant: str
    what: str = "tags"


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewTag)
    name, tenant, store = _name(asked.name), call.caller.tenant, call.services.contacts.tags

    async def work(connection: Connection) -> Done:
        tag = await store.create(connection, tenant, name, asked.color.lower(), now=call.services.now())
        id_ = format_id(TAG, tag.id)
        return Done(201, problems.encode(TagMade(tag_id=id_)), (("Location", f"{PATH}/{id_}"),))

    try:
        return await once(call, body, work)
    except Refused as error:
        raise problem_of(error) from None


def _name(text: str) -> str:
    try:
        return tag_name(text)
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_tag", f"{error}.", pointer="/name")]) from None


async def list_(call: Call) -> web.Response:
    query, search, before = call.query(TagQuery), _Search(call.caller.tenant), MAX_ID
    if query.cursor is not None:
        try:
            before = call.tools.cursors.read(search, query.cursor)
        except ValueError:
            detail = "Take next_cursor as it was given, with the same API key."
            raise ProblemError(400, "invalid_cursor", detail) from None
    found = await call.services.contacts.tags.list(call.caller.tenant, limit=query.limit + 1, before=before)
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].id) if more else None
    return json_answer(200, TagPage(data=[_view(each) for each in shown], has_more=more, next_cursor=cursor))


async def show(call: Call) -> web.Response:
    tag = await call.services.contacts.tags.get(call.caller.tenant, path_number(call, "tag_id", TAG))
    if tag is None:
        raise missing("tag")
    return json_answer(200, _view(tag))


async def change(call: Call) -> web.Response:
    number = path_number(call, "tag_id", TAG)
    async with call.body() as body:
        asked = problems.decode(body, TagChange)
    name = None if asked.name is None else _name(asked.name)
    color = None if asked.color is None else asked.color.lower()
    try:
        tag = await call.services.contacts.tags.change(call.caller.tenant, number, name=name, color=color)
    except Refused as error:
        raise problem_of(error) from None
    if tag is None:
        raise missing("tag")
    return json_answer(200, _view(tag))


async def delete(call: Call) -> web.Response:
    if not await call.services.contacts.tags.delete(call.caller.tenant, path_number(call, "tag_id", TAG)):
        raise missing("tag")
    return web.Response(status=204)


def _view(tag: Tag) -> TagView:
    return TagView(tag_id=format_id(TAG, tag.id), name=tag.name, color=tag.color, created_at=tag.created_at)


WRITING = (404, 408, 409, 413, 415, 422)


def _changing(id_: str, method: Literal["PUT", "PATCH"]) -> Operation:
    return Operation(
        id=id_,
        method=method,
        path=ONE,
        scope="manage",
        summary="Change a tag's name or colour",
        handler=change,
        bodies={JSON: TagChange},
        example={"color": "#00aaff"},
        answers={200: (JSON, TagView)},
        problems=WRITING,
    )


OPERATIONS = (
    Operation(
        id="tags.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="A new tag; 409: there is one of this name",
        handler=create,
        bodies={JSON: NewTag},
        example={"name": "vip", "color": "#ffaa00"},
        answers={201: (JSON, TagMade)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="tags.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="Tags, newest first",
        handler=list_,
        query=TagQuery,
        answers={200: (JSON, TagPage)},
        problems=(400, 422),
    ),
    Operation(
        id="tags.get",
        method="GET",
        path=ONE,
        scope="read",
        summary="One tag",
        handler=show,
        answers={200: (JSON, TagView)},
        problems=(404,),
    ),
    _changing("tags.put", "PUT"),
    _changing("tags.change", "PATCH"),
    Operation(
        id="tags.delete",
        method="DELETE",
        path=ONE,
        scope="manage",
        summary="Delete a tag, and take it from all contacts",
        handler=delete,
        answers={204: (JSON, bytes)},
        problems=(404,),
    ),
)
