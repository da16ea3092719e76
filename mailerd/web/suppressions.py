"""The addresses that must not be mailed: `/api/v1/suppressions`.

Each tenant sees, adds and removes its own. What binds all tenants has the scope `global`: whoever asks for an address
or an id sees it, without what was said about it, since that may have been said to another tenant; operators list all
of it. It is made and removed by `mailerd suppressions` only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import asyncpg
from aiohttp import web
from msgspec import Meta

from mailerd.queue.ids import IMPORT, SUPPRESSION, format_id, format_message_id, parse_id
from mailerd.queue.suppression import GRACE, Reason, Suppression
from mailerd.queue.suppression_csv import MAX_WORD, normalised_entry, write_rows
from mailerd.queue.suppression_files import Defaults
from mailerd.web import problems
from mailerd.web.bodies import Answer, Moment, Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.paths import OPERATORS
from mailerd.web.problems import FieldError, ProblemError

CSV = "text/csv"
MAX_BATCH = 1_000
PATH = "/api/v1/suppressions"
ReasonWord = Literal["bounce", "soft_bounce", "complaint", "unsubscribe", "manual"]
Word = Annotated[str, Meta(max_length=MAX_WORD, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Entry = Annotated[str, Meta(max_length=1000, description="ann@example.com, or @example.com for a whole domain")]


class NewSuppression(Request, frozen=True, kw_only=True):
    """Without `stream` no mail at all goes to the address, without `expires_at` never again."""

    address: Entry
    reason: ReasonWord = "manual"
    stream: Word = ""
    topic: Word = ""
    detail: Annotated[str, Meta(max_length=500)] = ""
    expires_at: Moment | None = None


class SuppressionBatch(Request, frozen=True, kw_only=True):
    """Added together or not at all."""

    suppressions: Annotated[list[NewSuppression], Meta(min_length=1, max_length=MAX_BATCH)]


class SuppressionQuery(Request, frozen=True, kw_only=True):
    """What is looked for; `cursor` is the `next_cursor` of the page before.

    `expired`: also those that are over, which are kept for 30 days.
    """

    address: Entry | None = None
    reason: ReasonWord | None = None
    stream: Word | None = None
    topic: Word | None = None
    expired: bool = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class RemoveQuery(Request, frozen=True, kw_only=True):
    """With `address`: those of it that fit; what `force` is for: complaints too, because who complained wants mail."""

    reason: ReasonWord | None = None
    stream: Word | None = None
    topic: Word | None = None
    force: bool = False


class ImportQuery(Request, frozen=True, kw_only=True):
    """What holds for lines that do not say."""

    reason: ReasonWord = "manual"
    stream: Word = ""
    topic: Word = ""


class ExportQuery(Request, frozen=True, kw_only=True):
    """All of them, or those of one reason."""

    reason: ReasonWord | None = None


class SuppressionView(Answer, frozen=True, kw_only=True):
    """One entry. `source` says who found out; `email_id` is the mail that led to it.

    The scope `global` binds all tenants: only operators remove it, and `source`, `detail` and `email_id` are theirs.
    """

    id: str
    scope: Literal["tenant", "global"]
    address: str
    stream: str
    topic: str
    reason: ReasonWord
    source: str
    detail: str
    email_id: str | None
    created_at: datetime
    expires_at: datetime | None


class SuppressionPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[SuppressionView]
    has_more: bool
    next_cursor: str | None


class Added(Answer, frozen=True, kw_only=True):
    """`data` are the entries of what was given, in that order: all hold now; `added` of them were not there before."""

    added: int
    data: list[SuppressionView]


class Entries(Answer, frozen=True, kw_only=True):
    """The one of an id, or those of an address that hold, newest first."""

    data: list[SuppressionView]


class Removed(Answer, frozen=True, kw_only=True):
    """What does not hold any more."""

    data: list[SuppressionView]


class ImportView(Answer, frozen=True, kw_only=True):
    """How far a file has come: of the lines that were read so far `added` made entries, `there` had theirs already.

    `problems` has the first lines that were refused, at most a thousand. An import that is done is one event
    `suppression.imported`: its entries have no `suppression.added`.
    """

    id: str
    state: Literal["running", "done", "failed"]
    bytes: int
    read: int
    added: int
    there: int
    refused: int
    problems: list[dict[str, Any]]
    error: str
    started_at: datetime


class ImportList(Answer, frozen=True, kw_only=True):
    """The last hundred, newest first."""

    data: list[ImportView]


async def add(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewSuppression)
    return await _add(call, [_entry(call, asked, "")])


async def add_batch(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, SuppressionBatch)
    return await _add(call, [_entry(call, each, f"/suppressions/{n}") for n, each in enumerate(asked.suppressions)])


async def _add(call: Call, entries: list[Suppression]) -> web.Response:
    store = call.services.suppressions
    added = await store.add(entries)
    found = await store.entries(entries)
    await asyncio.sleep(GRACE)  # so that it holds when we say so
    call.facts["suppressions"] = len(added)
    return json_answer(201 if added else 200, Added(added=len(added), data=[_view(each) for each in found]))


def _entry(call: Call, new: NewSuppression, pointer: str) -> Suppression:
    if new.topic and not new.stream:
        raise problems.invalid(
            [FieldError("missing_field", "A topic is one of a stream.", pointer=f"{pointer}/stream")]
        )
    _check_stream(call, new.stream, pointer=f"{pointer}/stream")
    now = call.services.now()
    if new.expires_at is not None and new.expires_at <= now:
        raise problems.invalid([FieldError("invalid_value", "That is over already.", pointer=f"{pointer}/expires_at")])
    return Suppression(
        _address(new.address, pointer=f"{pointer}/address"),
        tenant=call.caller.tenant,
        stream=new.stream,
        topic=new.topic,
        reason=Reason(new.reason),
        source=f"api:{call.caller.name}",
        detail=new.detail,
        created_at=now,
        expires_at=new.expires_at,
    )


def _check_stream(call: Call, stream: str, *, pointer: str = "", parameter: str = "") -> None:
    """An entry for a stream that is none would bind no mail."""
    known = call.services.streams()
    if stream and stream not in known:
        detail = f"There is no stream {stream}; known: {', '.join(sorted(known))}."
        fault = FieldError("unknown_stream", detail, pointer=pointer, parameter=parameter)
        raise ProblemError(422, "unknown_stream", detail, errors=[fault])


def _address(text: str, *, pointer: str = "", parameter: str = "") -> str:
    try:
        return normalised_entry(text)
    except ValueError as error:
        fault = FieldError("invalid_address", f"{error}.", pointer=pointer, parameter=parameter)
        raise problems.invalid([fault]) from None


async def list_(call: Call) -> web.Response:
    query = call.query(SuppressionQuery)
    search = _Search(call.caller.tenant, query.address, query.reason, query.stream, query.topic, query.expired)
    before = None
    if query.cursor is not None:
        try:
            before = call.tools.cursors.read(search, query.cursor)
        except ValueError:
            detail = "Take next_cursor as it was given, with the same filters and API key."
            raise ProblemError(400, "invalid_cursor", detail) from None
    found = await _found(
        call,
        limit=query.limit + 1,
        before=before,
        address=None if query.address is None else _address(query.address, parameter="address"),
        reason=query.reason,
        stream=query.stream,
        topic=query.topic,
        holding_at=None if query.expired else call.services.now(),
    )
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].id) if more else None
    return json_answer(200, SuppressionPage(data=[_view(each) for each in shown], has_more=more, next_cursor=cursor))


class _Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    address: str | None
    reason: str | None
    stream: str | None
    topic: str | None
    expired: bool


async def _found(call: Call, *, limit: int, address: str | None, **filters: Any) -> list[Suppression]:
    """Entries of the caller and, of an address or for operators, those that bind all tenants; newest first.

    Nobody else reads all of the latter: they may be the addresses that other tenants mail to.
    """
    store, tenant = call.services.suppressions, call.caller.tenant
    found = await store.list(tenant=tenant, limit=limit, address=address, **filters)
    if address is not None or tenant == OPERATORS:
        found += await store.list(tenant="", limit=limit, address=address, **filters)
    return sorted(found, key=lambda each: -each.id)[:limit]


async def _named(call: Call, **filters: Any) -> list[Suppression]:
    """What the path names: an entry by its id, or those of an address that hold. Raises `ProblemError` (404)."""
    which = call.request.match_info["id"]
    store, found = call.services.suppressions, []
    if (id_ := _number(SUPPRESSION, which)) is not None:
        one = await store.get(id_, None)
        found = [one] if one is not None and one.tenant in (call.caller.tenant, "") else []
    elif "@" in which:
        now = call.services.now()
        found = await _found(call, limit=MAX_BATCH, address=_address(which), holding_at=now, **filters)
    if not found:
        raise _unknown()
    return found


async def show(call: Call) -> web.Response:
    return json_answer(200, Entries(data=[_view(each) for each in await _named(call)]))


async def remove(call: Call) -> web.Response:
    """By id, or all of an address."""
    query = call.query(RemoveQuery)
    store, tenant = call.services.suppressions, call.caller.tenant
    named = await _named(call, reason=query.reason, stream=query.stream, topic=query.topic)
    found = [each for each in named if each.tenant == tenant]
    if not found:
        detail = "It binds all tenants: only operators remove it, by mailerd suppressions remove."
        raise ProblemError(403, "global_suppression", detail)
    if not query.force and any(each.reason is Reason.COMPLAINT for each in found):
        detail = "Whoever complained is not mailed again; force=true if the person has asked for it."
        raise ProblemError(409, "complaint", detail)
    actor = f"api:{call.caller.name}"
    removed = [
        each for each in found if await store.remove(each.id, tenant=tenant, actor=actor, now=call.services.now())
    ]
    call.facts["suppressions"] = len(removed)
    return json_answer(200, Removed(data=[_view(each) for each in removed]))


async def import_file(call: Call) -> web.Response:
    query = call.query(ImportQuery)
    _check_stream(call, query.stream, parameter="stream")
    defaults = Defaults(
        call.caller.tenant,
        call.services.now(),
        frozenset(call.services.streams()),
        reason=query.reason,
        source=f"api:{call.caller.name}",
        stream=query.stream,
        topic=query.topic,
    )
    async with call.body() as body:
        id_ = await call.services.suppression_files.start(body, defaults, call.caller.name)
    if id_ is None:
        raise ProblemError(503, "busy", "Other files are being imported; send it again.", retry_after=10)
    response = await _import_answer(call, 202, id_)
    response.headers["Location"] = f"{PATH}/imports/{format_id(IMPORT, id_)}"
    return response


async def show_import(call: Call) -> web.Response:
    id_ = _number(IMPORT, call.request.match_info["id"])
    if id_ is None:
        raise _unknown("import")
    return await _import_answer(call, 200, id_)


async def list_imports(call: Call) -> web.Response:
    rows = await call.services.suppression_files.latest(call.caller.tenant)
    return json_answer(200, ImportList(data=[_import_view(row) for row in rows]))


async def _import_answer(call: Call, status: int, id_: int) -> web.Response:
    row = await call.services.suppression_files.progress(id_, call.caller.tenant)
    if row is None:
        raise _unknown("import")
    return json_answer(status, _import_view(row))


def _import_view(row: asyncpg.Record) -> ImportView:
    facts = {name: row[name] for name in ImportView.__struct_fields__}
    return ImportView(**facts | {"id": format_id(IMPORT, row["id"])})


async def export(call: Call) -> web.Response:
    query = call.query(ExportQuery)
    rows = call.services.suppression_files.export(call.caller.tenant, reason=query.reason, now=call.services.now())

    async def lines() -> AsyncIterator[bytes]:
        yield write_rows([]).encode()
        async for part in rows:
            yield write_rows(part, header=False).encode()

    headers = {"Content-Disposition": 'attachment; filename="suppressions.csv"'}
    return web.Response(body=lines(), content_type=CSV, charset="utf-8", headers=headers)


def _number(prefix: str, text: str) -> int | None:
    with suppress(ValueError):
        return parse_id(prefix, text)
    return None


def _unknown(what: str = "suppression") -> ProblemError:
    return ProblemError(404, "not_found", f"There is no such {what} of yours.")


def _view(each: Suppression) -> SuppressionView:
    ours = each.tenant != ""
    return SuppressionView(
        id=each.name,
        scope="tenant" if ours else "global",
        address=each.address,
        stream=each.stream,
        topic=each.topic,
        reason=each.reason.value,
        source=each.source if ours else "",
        detail=each.detail if ours else "",
        email_id=None if each.message_id is None or not ours else format_message_id(each.message_id),
        created_at=each.created_at.astimezone(UTC),
        expires_at=each.expires_at,
    )


EXAMPLE = {"address": "ann@example.com", "stream": "marketing", "detail": "asked by phone"}

OPERATIONS = (
    Operation(
        id="suppressions.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="Addresses that are not mailed, newest first; `expired` shows also those that are mailed again",
        handler=list_,
        query=SuppressionQuery,
        answers={200: (JSON, SuppressionPage)},
        problems=(422,),
    ),
    Operation(
        id="suppressions.add",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Suppress an address from now on, also for mail that waits; 200: it was suppressed already",
        handler=add,
        bodies={JSON: NewSuppression},
        example=EXAMPLE,
        answers={200: (JSON, Added), 201: (JSON, Added)},
        problems=(408, 413, 415, 422),
    ),
    Operation(
        id="suppressions.add_batch",
        method="POST",
        path=f"{PATH}/batch",
        scope="manage",
        summary="Suppress up to 1,000 addresses, all or none; 200: all were suppressed already",
        handler=add_batch,
        bodies={JSON: SuppressionBatch},
        example={"suppressions": [EXAMPLE]},
        answers={200: (JSON, Added), 201: (JSON, Added)},
        problems=(408, 413, 415, 422),
    ),
    Operation(
        id="suppressions.export",
        method="GET",
        path=f"{PATH}/export",
        scope="read",
        summary="All that hold, as CSV",
        handler=export,
        query=ExportQuery,
        answers={200: (CSV, str)},
        problems=(422,),
    ),
    Operation(
        id="suppressions.import",
        method="POST",
        path=f"{PATH}/imports",
        scope="manage",
        summary="Add the addresses of a CSV file: one event suppression.imported at its end; Location tells how far",
        handler=import_file,
        query=ImportQuery,
        bodies={CSV: bytes},
        answers={202: (JSON, ImportView)},
        problems=(408, 413, 415, 422),
    ),
    Operation(
        id="suppressions.imports",
        method="GET",
        path=f"{PATH}/imports",
        scope="read",
        summary="The last imports",
        handler=list_imports,
        answers={200: (JSON, ImportList)},
    ),
    Operation(
        id="suppressions.import_progress",
        method="GET",
        path=f"{PATH}/imports/{{id}}",
        scope="read",
        summary="How far an import is, and which lines were refused",
        handler=show_import,
        answers={200: (JSON, ImportView)},
        problems=(404,),
    ),
    Operation(
        id="suppressions.show",
        method="GET",
        path=f"{PATH}/{{id}}",
        scope="read",
        summary="One entry by its id, or those of an address; also those for all tenants (scope `global`)",
        handler=show,
        answers={200: (JSON, Entries)},
        problems=(404, 422),
    ),
    Operation(
        id="suppressions.remove",
        method="DELETE",
        path=f"{PATH}/{{id}}",
        scope="manage",
        summary="Mail an address again: by the id of an entry, or all entries of an address; 403: it binds all tenants",
        handler=remove,
        query=RemoveQuery,
        answers={200: (JSON, Removed)},
        problems=(404, 409, 422),
    ),
)
