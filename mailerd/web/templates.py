"""Templates of campaigns: `/api/v1/templates`.

Each change of the content makes a version; versions never change. `POST …/test` sends the mail that a template makes to
a few addresses, as ordinary mail: it counts in no campaign and is not tracked.
"""

import difflib
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from mailerd.campaigns.templates.desk import TemplateDesk, TooManyError
from mailerd.campaigns.templates.store import Source, Template, Version
from mailerd.campaigns.templates.values import CompiledTemplate, TemplateError, TemplateProblem
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.intake.envelope import Origin, Receipt
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CAMPAIGN, CONTACT, TEMPLATE, format_id, format_message_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Email, NamedAddress, Request
from mailerd.web.composing import TEST_MARK, prepare_email
from mailerd.web.composing import Prepared as Mail
from mailerd.web.idempotency import earlier, key_of, once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError
from mailerd.web.services import Result

PATH = "/api/v1/templates"
ONE = f"{PATH}/{{template_id}}"
T = TypeVar("T")
MAX_TESTS = 10  # addresses
MAX_VARIABLES = 256_000  # bytes of JSON
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Subject = Annotated[str, Meta(max_length=500)]
Content = Annotated[str, Meta(max_length=1_000_000)]
Variables = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=100)]
Format = Literal["html", "mjml"]
Values = Annotated[dict[str, Any], Meta(description='{"contact": {"first_name": "Ann"}, "coupon": "X1"}')]
Given = Annotated[str, Meta(max_length=50)]


class NewTemplate(Request, frozen=True, kw_only=True):
    """Jinja in all three parts. Without `text_content` the text part is made from the HTML.

    `variables` are those that every recipient must have: one who has not gets no mail.
    """

    name: Name
    subject: Subject
    html_content: Content
    text_content: Content = ""
    variables: Variables = []  # noqa: RUF012  msgspec copies it
    format: Format = "html"


class TemplateChange(Request, frozen=True, kw_only=True):
    """What is not given stays. A new version is made when the content changes, not for a new name."""

    name: Name | None = None
    subject: Subject | None = None
    html_content: Content | None = None
    text_content: Content | None = None
    variables: Variables | None = None
    format: Format | None = None


class TemplateCheck(Request, frozen=True, kw_only=True):
    """A template that is not saved."""

    subject: Subject = "Subject"
    html_content: Content
    text_content: Content = ""
    variables: Variables = []  # noqa: RUF012  msgspec copies it
    format: Format = "html"


class TemplatePreviewAsked(Request, frozen=True, kw_only=True):
    """Shown with this contact, or a made-up one, and above it with `variables`; `version`: that in force."""

    variables: Values = {}  # noqa: RUF012
    contact_id: Given | None = None
    version: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class TemplateTest(TemplatePreviewAsked, frozen=True, kw_only=True):
    """To whom the mail goes; `stream`: that of the API key. Showing a contact needs the scope read, too."""

    to: Annotated[list[Annotated[str, Meta(max_length=320)]], Meta(min_length=1, max_length=MAX_TESTS)]
    sender_email: Annotated[str, Meta(max_length=320)]
    sender_name: Annotated[str, Meta(max_length=200)] = ""
    stream: Annotated[str, Meta(max_length=64)] | None = None


class TemplateQuery(Request, frozen=True, kw_only=True):
    """`cursor` is the `next_cursor` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class DeleteQuery(Request, frozen=True, kw_only=True):
    """`force`: also when scheduled campaigns are made from it; those fail then."""

    force: bool = False


class DiffQuery(Request, frozen=True, kw_only=True):
    """`against`: the older one, the version before when it is not given."""

    against: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class TemplateLink(Answer, frozen=True, kw_only=True):
    """A link that is tracked; clicks are counted by its number."""

    link: int
    url: str


class TemplateSaved(Answer, frozen=True, kw_only=True):
    """`problems` are warnings; `variables_used` are those that the content reads."""

    template_id: str
    version: int
    problems: list[TemplateProblem]
    variables_used: list[str]


class TemplateView(Answer, frozen=True, kw_only=True):
    template_id: str
    name: str
    version: int
    format: Format
    subject: str
    html_content: str
    text_content: str
    variables: list[str]
    variables_used: list[str]
    links: list[TemplateLink]
    problems: list[TemplateProblem]
    size: int
    created_by: str
    created_at: datetime
    updated_at: datetime


class TemplateLine(Answer, frozen=True, kw_only=True):
    template_id: str
    name: str
    version: int
    format: Format
    subject: str
    created_by: str
    created_at: datetime
    updated_at: datetime


class TemplatePage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[TemplateLine]
    has_more: bool
    next_cursor: str | None


class TemplateVersionLine(Answer, frozen=True, kw_only=True):
    """`restored`: the version that this one is a copy of."""

    version: int
    format: Format
    subject: str
    restored: int | None
    created_by: str
    created_at: datetime


class TemplateVersionPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[TemplateVersionLine]
    has_more: bool
    next_cursor: str | None


class TemplateVersionView(TemplateVersionLine, frozen=True, kw_only=True):
    template_id: str
    html_content: str
    text_content: str
    variables: list[str]
    variables_used: list[str]
    links: list[TemplateLink]
    problems: list[TemplateProblem]
    size: int


class TemplateDifference(Answer, frozen=True, kw_only=True):
    """Unified diffs from `against` to `version`, "" where nothing differs."""

    version: int
    against: int
    subject: str
    html_content: str
    text_content: str
    variables: str
    format: str


class TemplatePreview(Answer, frozen=True, kw_only=True):
    """The mail as that contact would get it, links as they are written; `size` is bytes of HTML."""

    html: str
    text: str
    subject: str
    problems: list[TemplateProblem]
    size: int


class TemplateChecked(Answer, frozen=True, kw_only=True):
    """`valid`: it can be saved. Without it `variables_used` and `links` are empty."""

    valid: bool
    problems: list[TemplateProblem]
    variables_used: list[str]
    links: list[TemplateLink]
    size: int


class TemplateTestMail(Answer, frozen=True, kw_only=True):
    """One mail: its `email_id`, or why there is none."""

    to: str
    email_id: str | None
    detail: str


class TemplateTestSent(Answer, frozen=True, kw_only=True):
    template_id: str
    version: int
    subject: str
    data: list[TemplateTestMail]


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewTemplate)
        if (before := await _before(call, body)) is not None:
            return before
        source = _source(asked)
        compiled = await _compiled(call, source)

        async def work(connection: Connection) -> Done:
            id_ = await _desk(call).store.create(
                connection,
                call.caller.tenant,
                asked.name,
                source,
                compiled,
                by=call.caller.name,
                now=call.services.now(),
            )
            headers = (("Location", f"{PATH}/{format_id(TEMPLATE, id_)}"), ("ETag", '"1"'))
            return Done(201, problems.encode(_saved(id_, 1, compiled)), headers)

        return await once(call, body, work)


async def list_(call: Call) -> web.Response:
    query = call.query(TemplateQuery)
    search = _Search(call.caller.tenant, 0)
    before = _position(call, search, query.cursor)
    found = await _desk(call).store.page(
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


class _Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    template_id: int


def _position(call: Call, search: _Search, cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


async def show(call: Call) -> web.Response:
    template, version = await _standing(call)
    view = TemplateView(
        **_content(version),
        template_id=format_id(TEMPLATE, template.id),
        name=template.name,
        version=version.version,
        created_by=template.created_by,
        created_at=template.created_at,
        updated_at=template.updated_at,
    )
    response = json_answer(200, view)
    response.headers["ETag"] = _etag(template)
    return response


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TemplateChange)
        template, version = await _standing(call)
        fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
        name = fields.pop("name", template.name)
        source = msgspec.structs.replace(version.source, **fields)
        same = source == version.source
        compiled = version.compiled if same else await _compiled(call, source)

        async def work(connection: Connection) -> Done:
            await _unchanged(call, connection, template)
            store, now = _desk(call).store, call.services.now()
            if same and name == template.name:
                return Done(200, problems.encode(_saved(template.id, template.version, compiled)), _headers(template))
            number = template.version
            if not same:
                number = await store.add_version(connection, template, source, compiled, by=call.caller.name, now=now)
            changed = await store.change(connection, template, name=name, version=number, now=now)
            return Done(200, problems.encode(_saved(template.id, number, compiled)), _headers(changed))

        done = await call.services.idempotency.transact(work)
        return web.Response(status=200, body=done.response, content_type=JSON, headers=dict(done.headers))


async def restore(call: Call) -> web.Response:
    """A new version with the content of an old one; compiled anew, by today's rules."""
    if (before := await _before(call, b"")) is not None:
        return before
    template, _ = await _standing(call)
    old = await _numbered(call, _number(call))
    compiled = await _compiled(call, old.source)

    async def work(connection: Connection) -> Done:
        await _unchanged(call, connection, template)
        store, now = _desk(call).store, call.services.now()
        number = await store.add_version(
            connection, template, old.source, compiled, restored=old.version, by=call.caller.name, now=now
        )
        changed = await store.change(connection, template, name=template.name, version=number, now=now)
        return Done(201, problems.encode(_saved(template.id, number, compiled)), _headers(changed))

    return await once(call, b"", work)


async def delete(call: Call) -> web.Response:
    query = call.query(DeleteQuery)
    tenant, template_id = call.caller.tenant, _id(call)

    async def work(connection: Connection) -> Done:
        store = _desk(call).store
        template = await store.lock(connection, tenant, template_id)
        if template is None:
            raise _unknown()
        _match(call, template)
        users = await store.scheduled_in(connection, tenant, template_id)
        if users and not query.force:
            names = ", ".join(f"{name} ({format_id(CAMPAIGN, id_)})" for id_, name in users)
            detail = f"Scheduled campaigns are made from it: {names}. force=true deletes it all the same."
            raise ProblemError(409, "in_use", detail)
        await store.delete(connection, tenant, template_id, call.services.now())
        return Done(204, b"")

    await call.services.idempotency.transact(work)
    return web.Response(status=204)


async def preview(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body or b"{}", TemplatePreviewAsked)
        version = await _asked_version(call, asked)
        context = await _context(call, asked, body)
        shown = await _in_turn(_desk(call).preview(call.caller.tenant, version, context))
        return json_answer(200, TemplatePreview(**msgspec.structs.asdict(shown)))


async def validate(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TemplateCheck)
        source = Source(**msgspec.structs.asdict(asked))
        try:
            compiled = await _in_turn(_desk(call).compiled(call.caller.tenant, source))
        except TemplateError as error:
            view = TemplateChecked(valid=False, problems=error.problems, variables_used=[], links=[], size=0)
            return json_answer(200, view)
        view = TemplateChecked(
            valid=True,
            problems=compiled.problems,
            variables_used=compiled.used,
            links=_links(compiled),
            size=compiled.size,
        )
        return json_answer(200, view)


async def test(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TemplateTest)
        if asked.contact_id is not None and "read" not in call.caller.scopes:
            raise ProblemError(403, "forbidden", "Showing a contact needs an API key with the scope read, too.")
        version = await _asked_version(call, asked)
        context = await _context(call, asked, body)
        shown = await _in_turn(_desk(call).preview(call.caller.tenant, version, context))
        wrong = [each for each in shown.problems if each.severity == "error" and each.code != "missing_variable"]
        if wrong or not shown.html:
            raise ProblemError(422, "render_failed", "; ".join(each.detail for each in wrong or shown.problems)[:500])
        mails = [_mail(call, asked, to, n, shown.subject, shown.html, shown.text) for n, to in enumerate(asked.to)]

        def respond(results: Sequence[Result]) -> bytes:
            sent = TemplateTestSent(
                template_id=format_id(TEMPLATE, version.template_id),
                version=version.version,
                subject=TEST_MARK + shown.subject,
                data=[_told(to, result) for to, result in zip(asked.to, results, strict=True)],
            )
            return problems.encode(sent)

        outcome = await call.services.submitter.submit_batch(
            [(mail.envelope, mail.content) for mail in mails],
            Origin(protocol="http", peer=call.peer, helo="", tls="", credential=call.caller),
            key_of(call, body),
            202,
            respond,
        )
        if not isinstance(outcome, tuple):
            return earlier(call, outcome)
        results, response = outcome
        refused = [result for result in results if isinstance(result, Refused)]
        if len(refused) == len(results):
            raise problems.of_refusal(refused[0])
        return web.Response(status=202, body=response, content_type=JSON)


def _mail(call: Call, asked: TemplateTest, to: str, n: int, subject: str, html: str, text: str) -> Mail:
    email = Email(
        from_=NamedAddress(email=asked.sender_email, name=asked.sender_name),
        to=[to],
        subject=TEST_MARK + subject,
        html=html,
        text=text,
        stream=asked.stream,
        unsubscribe=False,
    )
    try:
        return prepare_email(email, call.services.limits)
    except ProblemError as problem:
        moved = {"/from": "/sender_email", "/from/email": "/sender_email", "/from/name": "/sender_name"}
        faults = [
            msgspec.structs.replace(
                each,
                pointer=f"/to/{n}" if each.pointer.startswith("/to") else moved.get(each.pointer, each.pointer),
            )
            for each in problem.errors
        ]
        raise problems.invalid(faults) if faults else problem from None


def _told(to: str, result: Result) -> TemplateTestMail:
    if isinstance(result, Receipt):
        if result.recipients:
            return TemplateTestMail(to=to, email_id=format_message_id(result.message_id), detail="")
        return TemplateTestMail(to=to, email_id=None, detail="It is suppressed.")
    return TemplateTestMail(to=to, email_id=None, detail=result.text)


async def versions(call: Call) -> web.Response:
    query = call.query(TemplateQuery)
    template_id, tenant = _id(call), call.caller.tenant
    search = _Search(tenant, template_id)
    before = _position(call, search, query.cursor)
    found = await _desk(call).store.history(
        tenant, template_id, limit=query.limit + 1, **({} if before is None else {"before": before})
    )
    if not found and before is None:
        raise _unknown()
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].version) if more else None
    lines = [TemplateVersionLine(**msgspec.structs.asdict(each)) for each in shown]
    return json_answer(200, TemplateVersionPage(data=lines, has_more=more, next_cursor=cursor))


async def show_version(call: Call) -> web.Response:
    version = await _numbered(call, _number(call))
    view = TemplateVersionView(
        **_content(version),
        template_id=format_id(TEMPLATE, version.template_id),
        version=version.version,
        restored=version.restored,
        created_by=version.created_by,
        created_at=version.created_at,
    )
    return json_answer(200, view)


async def diff(call: Call) -> web.Response:
    query = call.query(DiffQuery)
    number = _number(call)
    against = max(1, number - 1) if query.against is None else query.against
    new, old = await _numbered(call, number), await _numbered(call, against)
    parts = await _in_turn(_desk(call).in_thread(call.caller.tenant, _differences, old, new))
    return json_answer(200, TemplateDifference(version=number, against=against, **parts))


DIFFERING = ("subject", "html_content", "text_content", "format")
MAX_DIFF = 1_500  # lines of one side: comparing takes their product


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


def _desk(call: Call) -> TemplateDesk:
    return call.services.templates


def _source(asked: NewTemplate) -> Source:
    return Source(**{name: getattr(asked, name) for name in Source.__struct_fields__})


async def _in_turn(work: Awaitable[T]) -> T:
    """Raises `ProblemError` (429) when the tenant has too much of it under way."""
    try:
        return await work
    except TooManyError:
        detail = "You have other templates being compiled, shown or compared; wait for those."
        raise ProblemError(429, "busy", detail, retry_after=1) from None


async def _compiled(call: Call, source: Source) -> CompiledTemplate:
    """Raises `ProblemError` (422) with all that keeps it from being saved."""
    try:
        return await _in_turn(_desk(call).compiled(call.caller.tenant, source))
    except TemplateError as error:
        faults = [
            FieldError(
                each.code, each.detail if each.line is None else f"Line {each.line}: {each.detail}", each.pointer
            )
            for each in error.problems
            if each.severity == "error"
        ]
        raise problems.invalid(faults) from None


async def _before(call: Call, body: bytes) -> web.Response | None:
    """The answer if this request came before: what would be found wrong with it now does not matter then."""
    key = key_of(call, body)
    found = None if key is None else await call.services.idempotency.find(key)
    return None if found is None else earlier(call, found)


def _id(call: Call) -> int:
    try:
        return parse_id(TEMPLATE, call.request.match_info["template_id"])
    except ValueError:
        raise _unknown() from None


def _number(call: Call) -> int:
    text = call.request.match_info["n"]
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise _unknown("version")
    return int(text)


async def _standing(call: Call) -> tuple[Template, Version]:
    """The template and its version in force. Raises `ProblemError` (404)."""
    store, tenant, id_ = _desk(call).store, call.caller.tenant, _id(call)
    template = await store.get(tenant, id_)
    version = None if template is None else await store.numbered(tenant, id_, template.version)
    if template is None or version is None:
        raise _unknown()
    return template, version


async def _numbered(call: Call, number: int) -> Version:
    version = await _desk(call).store.numbered(call.caller.tenant, _id(call), number)
    if version is None:
        raise _unknown("version")
    return version


async def _asked_version(call: Call, asked: TemplatePreviewAsked) -> Version:
    if asked.version is not None:
        return await _numbered(call, asked.version)
    return (await _standing(call))[1]


async def _context(call: Call, asked: TemplatePreviewAsked, body: bytes) -> dict[str, Any]:
    """Raises `ProblemError` (422)."""
    if len(body) > MAX_VARIABLES:
        detail = f"More than {MAX_VARIABLES:,} bytes of variables."
        raise problems.invalid([FieldError("too_large", detail, pointer="/variables")])
    contact_id = None
    if asked.contact_id is not None:
        with suppress(ValueError):
            contact_id = parse_id(CONTACT, asked.contact_id)
        if contact_id is None:
            raise _no_contact()
    try:
        context = await _desk(call).context(call.caller.tenant, asked.variables, contact_id)
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_value", f"{error}.", pointer="/variables")]) from None
    if context is None:
        raise _no_contact()
    return context


def _no_contact() -> ProblemError:
    return problems.invalid(
        [FieldError("unknown_contact", "There is no such contact of yours.", pointer="/contact_id")]
    )


async def _unchanged(call: Call, connection: Connection, template: Template) -> None:
    """Lock the template; raises 412 when it is not what If-Match wants, 409 when it changed while it was looked at."""
    locked = await _desk(call).store.lock(connection, call.caller.tenant, template.id)
    if locked is None:
        raise _unknown()
    _match(call, locked)
    if locked.revision != template.revision:
        raise ProblemError(409, "changed_meanwhile", "Somebody else has changed it at this moment; send it again.")


def _match(call: Call, template: Template) -> None:
    wanted = call.request.headers.get("If-Match", "*")
    if wanted != "*" and _etag(template) not in [each.strip() for each in wanted.split(",")]:
        detail = f"The template has changed: it is {_etag(template)} now. Read it again."
        raise ProblemError(412, "precondition_failed", detail)


def _etag(template: Template) -> str:
    return f'"{template.revision}"'


def _headers(template: Template) -> tuple[tuple[str, str], ...]:
    return (("ETag", _etag(template)),)


def _unknown(what: str = "template") -> ProblemError:
    return ProblemError(404, "not_found", f"There is no such {what} of yours.")


def _saved(id_: int, version: int, compiled: CompiledTemplate) -> TemplateSaved:
    return TemplateSaved(
        template_id=format_id(TEMPLATE, id_),
        version=version,
        problems=compiled.problems,
        variables_used=compiled.used,
    )


def _content(version: Version) -> dict[str, Any]:
    return msgspec.structs.asdict(version.source) | {
        "variables_used": version.compiled.used,
        "links": _links(version.compiled),
        "problems": version.compiled.problems,
        "size": version.compiled.size,
    }


def _links(compiled: CompiledTemplate) -> list[TemplateLink]:
    return [TemplateLink(link=each.link, url=each.url) for each in compiled.links]


EXAMPLE = {
    "name": "Welcome",
    "subject": "Welcome, {{ contact.first_name | default('friend') }}",
    "html_content": '<p>Hello {{ contact.first_name }}</p><p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>',
    "variables": ["contact.email"],
}
BODY = (408, 413, 415, 422, 429)

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
        id="templates.validate",
        method="POST",
        path=f"{PATH}/validate",
        scope="read",
        summary="What is wrong with a template, without saving it",
        handler=validate,
        bodies={JSON: TemplateCheck},
        example={"html_content": "<p>{{ contact.first_name }}"},
        answers={200: (JSON, TemplateChecked)},
        problems=BODY,
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
    Operation(
        id="templates.preview",
        method="POST",
        path=f"{ONE}/preview",
        scope="read",
        summary="The mail that it makes for a contact or for sample data, and what is wrong with it",
        handler=preview,
        bodies={JSON: TemplatePreviewAsked},
        example={"variables": {"contact": {"first_name": "Ann"}}},
        answers={200: (JSON, TemplatePreview)},
        problems=(404, *BODY),
    ),
    Operation(
        id="templates.test",
        method="POST",
        path=f"{ONE}/test",
        scope="send",
        summary="Send the mail that it makes to up to 10 addresses; not tracked, counted in no campaign",
        handler=test,
        bodies={JSON: TemplateTest},
        example={"to": ["me@example.com"], "sender_email": "news@example.com"},
        answers={202: (JSON, TemplateTestSent)},
        problems=(404, 409, *BODY),
        idempotent=True,
    ),
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
