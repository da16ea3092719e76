"""Versions of templates: `/api/v1/templates/{template_id}/versions`."""

import difflib

import msgspec
from aiohttp import web

from mailerd.campaigns.templates.store import Version
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import TEMPLATE, format_id
from mailerd.web import problems
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import ProblemError
from mailerd.web.template_bodies import (
    DiffQuery,
    TemplateDifference,
    TemplateQuery,
    TemplateSaved,
    TemplateVersionLine,
    TemplateVersionPage,
    TemplateVersionView,
)
from mailerd.web.template_calls import (
    ONE,
    Search,
    compiled_of,
    content,
    desk_of,
    etag_header,
    id_of,
    in_turn,
    number_of,
    numbered,
    position_of,
    repeated,
    saved,
    standing_of,
    unchanged,
    unknown,
)

DIFFERING = ("subject", "html_content", "text_content", "format")
MAX_DIFF = 1_500  # lines of one side: comparing takes their product


async def versions(call: Call) -> web.Response:
    query = call.query(TemplateQuery)
    template_id, tenant = id_of(call), call.caller.tenant
    search = Search(tenant, template_id)
    before = position_of(call, search, query.cursor)
    found = await desk_of(call).store.history(
        tenant, template_id, limit=query.limit + 1, **({} if before is None else {"before": before})
    )
    if not found and before is None:
        raise unknown()
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].version) if more else None
    lines = [TemplateVersionLine(**msgspec.structs.asdict(each)) for each in shown]
    return json_answer(200, TemplateVersionPage(data=lines, has_more=more, next_cursor=cursor))


async def show_version(call: Call) -> web.Response:
    version = await numbered(call, number_of(call))
    view = TemplateVersionView(
        **content(version),
        template_id=format_id(TEMPLATE, version.template_id),
        version=version.version,
        restored=version.restored,
        created_by=version.created_by,
        created_at=version.created_at,
    )
    return json_answer(200, view)


async def diff(call: Call) -> web.Response:
    query = call.query(DiffQuery)
    number = number_of(call)
    against = max(1, number - 1) if query.against is None else query.against
    new, old = await numbered(call, number), await numbered(call, against)
    parts = await in_turn(desk_of(call).in_thread(call.caller.tenant, _differences, old, new))
    return json_answer(200, TemplateDifference(version=number, against=against, **parts))


def _differences(old: Version, new: Version) -> dict[str, str]:
    """Raises `ProblemError` (422)."""
    numbers = old.version, new.version
    parts = {name: _unified(str(getattr(old, name)), str(getattr(new, name)), *numbers) for name in DIFFERING}
    return parts | {"variables": _unified("\n".join(old.variables), "\n".join(new.variables), *numbers)}


def _unified(old: str, new: str, against: int, number: int) -> str:
    if old == new:
        return ""
    before, after = old.splitlines(), new.splitlines()
    if max(len(before), len(after)) > MAX_DIFF:
        detail = f"A version has more than {MAX_DIFF:,} lines: that is too large to compare."
        raise ProblemError(422, "too_large", detail)
    lines = difflib.unified_diff(before, after, f"version {against}", f"version {number}", lineterm="")
    return "\n".join(lines) + "\n"


async def restore(call: Call) -> web.Response:
    """A new version with the content of an old one; compiled anew, by today's rules."""
    if (earlier_answer := await repeated(call, b"")) is not None:
        return earlier_answer
    template, _ = await standing_of(call)
    old = await numbered(call, number_of(call))
    compiled = await compiled_of(call, old.source)

    async def work(connection: Connection) -> Done:
        await unchanged(call, connection, template)
        store, now = desk_of(call).store, call.services.now()
        number = await store.add_version(
            connection, template, old.source, compiled, restored=old.version, by=call.caller.name, now=now
        )
        changed = await store.change(connection, template, name=template.name, version=number, now=now)
        return Done(201, problems.encode(saved(template.id, number, compiled)), etag_header(changed))

    return await once(call, b"", work)


OPERATIONS = (
    Operation(
        id="templates.versions",
        method="GET",
        path=f"{ONE}/versions",
        scope="read",
        summary="Its versions, newest first",
        handler=versions,
        query=TemplateQuery,
        answers={200: (JSON, TemplateVersionPage)},
        problems=(404, 422),
    ),
    Operation(
        id="templates.version",
        method="GET",
        path=f"{ONE}/versions/{{n}}",
        scope="read",
        summary="One version with its content",
        handler=show_version,
        answers={200: (JSON, TemplateVersionView)},
        problems=(404,),
    ),
    Operation(
        id="templates.diff",
        method="GET",
        path=f"{ONE}/versions/{{n}}/diff",
        scope="read",
        summary="What a version changed, as unified diffs",
        handler=diff,
        query=DiffQuery,
        answers={200: (JSON, TemplateDifference)},
        problems=(404, 422, 429),
    ),
    Operation(
        id="templates.restore",
        method="POST",
        path=f"{ONE}/versions/{{n}}/restore",
        scope="manage",
        summary="Put the content of an old version in force again, as a new version",
        handler=restore,
        answers={201: (JSON, TemplateSaved)},
        problems=(404, 409, 412, 422, 429),
        idempotent=True,
    ),
)
