"""Templates tried out: checked before they are saved, shown with a contact or sample data, sent to a few addresses.

Test mail is ordinary mail: it counts in no campaign and is not tracked.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web

from mailerd.campaigns.templates.store import Source, Version
from mailerd.campaigns.templates.values import TemplateError
from mailerd.errors import Refused
from mailerd.intake.envelope import Origin, Receipt
from mailerd.queue.ids import CONTACT, TEMPLATE, format_id, format_message_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Email, NamedAddress
from mailerd.web.composing import TEST_MARK, prepare_email
from mailerd.web.composing import Prepared as Mail
from mailerd.web.idempotency import earlier, key_of
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError
from mailerd.web.services import Result
from mailerd.web.template_bodies import (
    TemplateCheck,
    TemplateChecked,
    TemplatePreview,
    TemplatePreviewAsked,
    TemplateTest,
    TemplateTestMail,
    TemplateTestSent,
)
from mailerd.web.template_calls import BODY, ONE, PATH, desk_of, in_turn, links_of, numbered, standing_of

MAX_VARIABLES = 256_000  # bytes of JSON


async def preview(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body or b"{}", TemplatePreviewAsked)
        version = await _asked_version(call, asked)
        context = await _context(call, asked, body)
        shown = await in_turn(desk_of(call).preview(call.caller.tenant, version, context))
        return json_answer(200, TemplatePreview(**msgspec.structs.asdict(shown)))


async def validate(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TemplateCheck)
        source = Source(**msgspec.structs.asdict(asked))
        try:
            compiled = await in_turn(desk_of(call).compiled(call.caller.tenant, source))
        except TemplateError as error:
            view = TemplateChecked(valid=False, problems=error.problems, variables_used=[], links=[], size=0)
            return json_answer(200, view)
        view = TemplateChecked(
            valid=True,
            problems=compiled.problems,
            variables_used=compiled.used,
            links=links_of(compiled),
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
        shown = await in_turn(desk_of(call).preview(call.caller.tenant, version, context))
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


async def _asked_version(call: Call, asked: TemplatePreviewAsked) -> Version:
    if asked.version is not None:
        return await numbered(call, asked.version)
    return (await standing_of(call))[1]


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
        context = await desk_of(call).context(call.caller.tenant, asked.variables, contact_id)
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_value", f"{error}.", pointer="/variables")]) from None
    if context is None:
        raise _no_contact()
    return context


def _no_contact() -> ProblemError:
    return problems.invalid(
        [FieldError("unknown_contact", "There is no such contact of yours.", pointer="/contact_id")]
    )


OPERATIONS = (
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
)
