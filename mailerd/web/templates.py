"""Templates of campaigns: `/api/v1/templates`. Each change of the content makes a version; versions never change."""

import msgspec
from aiohttp import web

from mailerd.campaigns.templates.store import Source
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CAMPAIGN, TEMPLATE, format_id
from mailerd.web import problems
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import ProblemError
from mailerd.web.template_bodies import (
    DeleteQuery,
    NewTemplate,
    TemplateChange,
    TemplateLine,
    TemplatePage,
    TemplateQuery,
    TemplateSaved,
    TemplateView,
)
from mailerd.web.template_calls import (
    BODY,
    ONE,
    PATH,
    Search,
    compiled_of,
    content,
    desk_of,
    etag,
    etag_header,
    id_of,
    match,
    position_of,
    repeated,
    saved,
    standing_of,
    unchanged,
    unknown,
)

EXAMPLE = {
    "name": "Welcome",
    "subject": "Welcome, {{ contact.first_name | default('friend') }}",
    "html_content": '<p>Hello {{ contact.first_name }}</p><p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>',
    "variables": ["contact.email"],
}


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewTemplate)
        if (earlier_answer := await repeated(call, body)) is not None:
            return earlier_answer
        source = _source(asked)
        compiled = await compiled_of(call, source)

        async def work(connection: Connection) -> Done:
            id_ = await desk_of(call).store.create(
                connection,
                call.caller.tenant,
                asked.name,
                source,
                compiled,
                by=call.caller.name,
                now=call.services.now(),
            )
            headers = (("Location", f"{PATH}/{format_id(TEMPLATE, id_)}"), ("ETag", '"1"'))
            return Done(201, problems.encode(saved(id_, 1, compiled)), headers)

        return await once(call, body, work)


async def list_(call: Call) -> web.Response:
    query = call.query(TemplateQuery)
    search = Search(call.caller.tenant, 0)
    before = position_of(call, search, query.cursor)
    found = await desk_of(call).store.page(
        call.caller.tenant, limit=query.limit + 1, **({} if before is None else {"before": before})
    )
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].id) if more else None
    lines = [
        TemplateLine(
            template_id=format_id(TEMPLATE, each.id),
            **{name: getattr(each, name) for name in TemplateLine.__struct_fields__ if name != "template_id"},
        )
        for each in shown
    ]
    return json_answer(200, TemplatePage(data=lines, has_more=more, next_cursor=cursor))


async def show(call: Call) -> web.Response:
    template, version = await standing_of(call)
    view = TemplateView(
        **content(version),
        template_id=format_id(TEMPLATE, template.id),
        name=template.name,
        version=version.version,
        created_by=template.created_by,
        created_at=template.created_at,
        updated_at=template.updated_at,
    )
    response = json_answer(200, view)
    response.headers["ETag"] = etag(template)
    return response


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TemplateChange)
        template, version = await standing_of(call)
        fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
        name = fields.pop("name", template.name)
        source = msgspec.structs.replace(version.source, **fields)
        same = source == version.source
        compiled = version.compiled if same else await compiled_of(call, source)

        async def work(connection: Connection) -> Done:
            await unchanged(call, connection, template)
            store, now = desk_of(call).store, call.services.now()
            if same and name == template.name:
                return Done(200, problems.encode(saved(template.id, template.version, compiled)), etag_header(template))
            number = template.version
            if not same:
                number = await store.add_version(connection, template, source, compiled, by=call.caller.name, now=now)
            changed = await store.change(connection, template, name=name, version=number, now=now)
            return Done(200, problems.encode(saved(template.id, number, compiled)), etag_header(changed))

        done = await call.services.idempotency.transact(work)
        return web.Response(status=200, body=done.response, content_type=JSON, headers=dict(done.headers))


async def delete(call: Call) -> web.Response:
    query = call.query(DeleteQuery)
    tenant, template_id = call.caller.tenant, id_of(call)

    async def work(connection: Connection) -> Done:
        store = desk_of(call).store
        template = await store.lock(connection, tenant, template_id)
        if template is None:
            raise unknown()
        match(call, template)
        users = await store.scheduled_in(connection, tenant, template_id)
        if users and not query.force:
            names = ", ".join(f"{name} ({format_id(CAMPAIGN, id_)})" for id_, name in users)
            detail = f"Scheduled campaigns are made from it: {names}. force=true deletes it all the same."
            raise ProblemError(409, "in_use", detail)
        await store.delete(connection, tenant, template_id, call.services.now())
        return Done(204, b"")

    await call.services.idempotency.transact(work)
    return web.Response(status=204)


def _source(asked: NewTemplate) -> Source:
    return Source(**{name: getattr(asked, name) for name in Source.__struct_fields__})


OPERATIONS = (
    Operation(
        id="templates.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="Templates, newest first",
        handler=list_,
        query=TemplateQuery,
        answers={200: (JSON, TemplatePage)},
        problems=(422,),
    ),
    Operation(
        id="templates.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Make a template: checked, compiled, and saved as version 1",
        handler=create,
        bodies={JSON: NewTemplate},
        example=EXAMPLE,
        answers={201: (JSON, TemplateSaved)},
        problems=BODY,
        idempotent=True,
    ),
    Operation(
        id="templates.show",
        method="GET",
        path=ONE,
        scope="read",
        summary="A template with the content in force; the ETag is for If-Match",
        handler=show,
        answers={200: (JSON, TemplateView)},
        problems=(404,),
    ),
    Operation(
        id="templates.update",
        method="PUT",
        path=ONE,
        scope="manage",
        summary="Change what is given; another content makes another version. Campaigns under way keep theirs",
        handler=change,
        bodies={JSON: TemplateChange},
        example={"subject": "Hello again, {{ contact.first_name }}"},
        answers={200: (JSON, TemplateSaved)},
        problems=(404, 409, 412, *BODY),
    ),
    Operation(
        id="templates.patch",
        method="PATCH",
        path=ONE,
        scope="manage",
        summary="Change what is given; another content makes another version. Campaigns under way keep theirs",
        handler=change,
        bodies={JSON: TemplateChange},
        example={"subject": "Hello again, {{ contact.first_name }}"},
        answers={200: (JSON, TemplateSaved)},
        problems=(404, 409, 412, *BODY),
    ),
    Operation(
        id="templates.delete",
        method="DELETE",
        path=ONE,
        scope="manage",
        summary="Delete a template; campaigns under way go on. 409: scheduled campaigns are made from it",
        handler=delete,
        query=DeleteQuery,
        answers={204: (JSON, bytes)},
        problems=(404, 409, 412, 422),
    ),
)
