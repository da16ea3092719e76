"""What calls about templates share: find the template or version, hold it to If-Match, page, tell what was saved."""

from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from mailerd.campaigns.templates.desk import TemplateDesk, TooManyError
from mailerd.campaigns.templates.store import Source, Template, Version
from mailerd.campaigns.templates.values import CompiledTemplate, TemplateError
from mailerd.db import Connection
from mailerd.queue.ids import TEMPLATE, format_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Request
from mailerd.web.idempotency import earlier, key_of
from mailerd.web.operations import Call
from mailerd.web.problems import FieldError, ProblemError
from mailerd.web.template_bodies import TemplateLink, TemplateSaved

PATH = "/api/v1/templates"
ONE = f"{PATH}/{{template_id}}"
T = TypeVar("T")
BODY = (408, 413, 415, 422, 429)


def desk_of(call: Call) -> TemplateDesk:
    return call.services.templates


def id_of(call: Call) -> int:
    try:
        return parse_id(TEMPLATE, call.request.match_info["template_id"])
    except ValueError:
        raise unknown() from None


def number_of(call: Call) -> int:
    text = call.request.match_info["n"]
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise unknown("version")
    return int(text)


async def standing_of(call: Call) -> tuple[Template, Version]:
    """The template and its version in force. Raises `ProblemError` (404)."""
    store, tenant, id_ = desk_of(call).store, call.caller.tenant, id_of(call)
    template = await store.get(tenant, id_)
    version = None if template is None else await store.numbered(tenant, id_, template.version)
    if template is None or version is None:
        raise unknown()
    return template, version


async def numbered(call: Call, number: int) -> Version:
    version = await desk_of(call).store.numbered(call.caller.tenant, id_of(call), number)
    if version is None:
        raise unknown("version")
    return version


def unknown(what: str = "template") -> ProblemError:
    return ProblemError(404, "not_found", f"There is no such {what} of yours.")


class Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    template_id: int


def position_of(call: Call, search: Search, cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


async def repeated(call: Call, body: bytes) -> web.Response | None:
    """The answer if this request came before: what would be found wrong with it now does not matter then."""
    key = key_of(call, body)
    found = None if key is None else await call.services.idempotency.find(key)
    return None if found is None else earlier(call, found)


async def in_turn(work: Awaitable[T]) -> T:
    """Raises `ProblemError` (429) when the tenant has too much of it under way."""
    try:
        return await work
    except TooManyError:
        detail = "You have other templates being compiled, shown or compared; wait for those."
        raise ProblemError(429, "busy", detail, retry_after=1) from None


async def compiled_of(call: Call, source: Source) -> CompiledTemplate:
    """Raises `ProblemError` (422) with all that keeps it from being saved."""
    try:
        return await in_turn(desk_of(call).compiled(call.caller.tenant, source))
    except TemplateError as error:
        faults = [
            FieldError(
                each.code, each.detail if each.line is None else f"Line {each.line}: {each.detail}", each.pointer
            )
            for each in error.problems
            if each.severity == "error"
        ]
        raise problems.invalid(faults) from None


async def unchanged(call: Call, connection: Connection, template: Template) -> None:
    """Lock the template; raises 412 when it is not what If-Match wants, 409 when it changed while it was looked at."""
    locked = await desk_of(call).store.lock(connection, call.caller.tenant, template.id)
    if locked is None:
        raise unknown()
    match(call, locked)
    if locked.revision != template.revision:
        raise ProblemError(409, "changed_meanwhile", "Somebody else has changed it at this moment; send it again.")


def match(call: Call, template: Template) -> None:
    wanted = call.request.headers.get("If-Match", "*")
    if wanted != "*" and etag(template) not in [each.strip() for each in wanted.split(",")]:
        detail = f"The template has changed: it is {etag(template)} now. Read it again."
        raise ProblemError(412, "precondition_failed", detail)


def etag(template: Template) -> str:
    return f'"{template.revision}"'


def etag_header(template: Template) -> tuple[tuple[str, str], ...]:
    return (("ETag", etag(template)),)


def saved(id_: int, version: int, compiled: CompiledTemplate) -> TemplateSaved:
    return TemplateSaved(
        template_id=format_id(TEMPLATE, id_),
        version=version,
        problems=compiled.problems,
        variables_used=compiled.used,
    )


def content(version: Version) -> dict[str, Any]:
    return msgspec.structs.asdict(version.source) | {
        "variables_used": version.compiled.used,
        "links": links_of(version.compiled),
        "problems": version.compiled.problems,
        "size": version.compiled.size,
    }


def links_of(compiled: CompiledTemplate) -> list[TemplateLink]:
    return [TemplateLink(link=each.link, url=each.url) for each in compiled.links]
