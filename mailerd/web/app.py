"""The application: every operation behind one frame that knows the caller, counts, logs, and answers problems."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

import asyncpg
import structlog
from aiohttp import web

from mailerd import metrics
from mailerd.errors import Refused, Unavailable
from mailerd.intake.allowance import Allowance
from mailerd.queue.commit import LOST
from mailerd.web import (
    analytics,
    campaign_recipients,
    campaign_steering,
    campaigns,
    contact_imports,
    contact_records,
    contacts,
    custom_fields,
    emails,
    events,
    health,
    lists,
    openapi,
    pages,
    paths,
    preferences,
    problems,
    segments,
    suppressions,
    tags,
    template_trials,
    template_versions,
    templates,
    tracking,
    unsubscribe,
    upstreams,
    webhooks,
)
from mailerd.web.callers import authorize
from mailerd.web.cursors import Cursors
from mailerd.web.operations import Call, Operation, Tools
from mailerd.web.problems import UNAVAILABLE_WAIT, ProblemError
from mailerd.web.reading import BodyReader, Disconnected
from mailerd.web.services import Limits, Services

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPERATIONS: tuple[Operation, ...] = (
    *analytics.OPERATIONS,
    *emails.OPERATIONS,
    *campaigns.OPERATIONS,
    *campaign_steering.OPERATIONS,
    *campaign_recipients.OPERATIONS,
    *events.OPERATIONS,
    *suppressions.OPERATIONS,
    *paths.OPERATIONS,
    *contact_imports.OPERATIONS,  # before those of /contacts/{contact_id}
    *contacts.OPERATIONS,
    *contact_records.OPERATIONS,
    *lists.OPERATIONS,
    *tags.OPERATIONS,
    *custom_fields.OPERATIONS,
    *segments.OPERATIONS,
    *template_trials.OPERATIONS,  # before those of /templates/{template_id}
    *templates.OPERATIONS,
    *template_versions.OPERATIONS,
    *tracking.OPERATIONS,
    *unsubscribe.OPERATIONS,
    *preferences.OPERATIONS,
    *upstreams.OPERATIONS,
    *webhooks.OPERATIONS,
    *health.OPERATIONS,
    openapi.OPERATION,
)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SERVER = "mailerd"  # no version: that would tell who looks for old ones
CALL = web.RequestKey("call", Call)
DATABASE_AWAY = (*LOST, asyncpg.InsufficientResourcesError)  # the latter: full disk, too many connections
UNKNOWN = "It is not known whether it was done; send it again, with the same Idempotency-Key if there was one."


def build_app(services: Services) -> web.Application:
    """Return the application; it holds no resources of its own and needs no start or stop."""
    tools = Tools(
        services=services,
        cursors=Cursors(services.cursor_key),
        reader=BodyReader(services.limits),
        document=_document(),
    )
    app = web.Application(middlewares=[_frame])
    expect = _expect_handler(services.limits)
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, _bound(operation, tools), expect_handler=expect)
    return app


@cache
def _document() -> bytes:
    return openapi.document(OPERATIONS)


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def sign(response: web.StreamResponse, request_id: str) -> None:
    """What every answer has in its header."""
    response.headers["Server"] = SERVER
    response.headers["X-Request-Id"] = request_id


@web.middleware
async def _frame(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request goes through here, also those that no route takes; nothing but a response comes out."""
    started = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
    try:
        response = await handler(request)
    except Disconnected:
        log.info("http.disconnected", request_id=request_id, method=request.method, path=request.path[:200])
        raise
    except Exception as error:  # whatever it is, the client gets a problem and not its text
        for_people = isinstance(error, web.HTTPNotFound) and request.path.startswith(("/u/", "/c/"))
        response = pages.lost() if for_people else _problem_of(error, request_id).answer(request_id)
    sign(response, request_id)
    call = request.get(CALL)
    if call and call.credential and call.operation.scope == "send":
        response.headers.update(_rate_headers(call.services.submitter.allowances(call.credential)))
    _account(request, request_id, call, response.status, time.perf_counter() - started)
    return response


def _problem_of(error: Exception, request_id: str) -> ProblemError:
    match error:
        case ProblemError():
            return error
        case Refused():
            return problems.of_refusal(error)
        case Unavailable():
            log.error("http.unavailable", request_id=request_id, error=str(error))
            detail = "Nothing was done; send it again."
            return ProblemError(503, "unavailable", detail, retry_after=UNAVAILABLE_WAIT)
        case TimeoutError():
            log.error("http.timed_out", request_id=request_id)
            return ProblemError(503, "timeout", UNKNOWN, retry_after=UNAVAILABLE_WAIT)
        case _ if isinstance(error, DATABASE_AWAY):
            log.error("http.unavailable", request_id=request_id, error=repr(error))
            return ProblemError(503, "unavailable", UNKNOWN, retry_after=UNAVAILABLE_WAIT)
        case web.HTTPNotFound():
            return ProblemError(404, "not_found", "No such path; /api/v1/openapi.json lists what there is.")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return ProblemError(405, "method_not_allowed", f"This path takes {allowed}.", headers={"Allow": allowed})
        case _:
            log.error("http.crashed", request_id=request_id, exc_info=error)
            detail = "This is our fault; our log has it under the request_id."
            return ProblemError(500, "internal_error", detail)


def _rate_headers(allowances: Sequence[Allowance]) -> dict[str, str]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-11; none when there is no rate."""
    if not allowances:
        return {}
    policies = [f'"{left.what}";q={left.limit};w={max(1, round(left.period))}' for left in allowances]
    limits = [f'"{left.what}";r={left.remaining};t={left.reset}' for left in allowances]
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}


def _account(request: web.Request, request_id: str, call: Call | None, status: int, seconds: float) -> None:
    operation = call.operation.id if call else "none"
    metrics.requested(operation, status, seconds)
    if call and call.operation.quiet and status < 500:
        return
    log.info(
        "http.answered",
        request_id=request_id,
        method=request.method,
        path=request.path[:200],
        status=status,
        milliseconds=round(seconds * 1000, 1),
        peer=request.remote,
        operation=operation,
        credential=call.credential.name if call and call.credential else "",
        **(call.facts if call else {}),
    )


def _bound(operation: Operation, tools: Tools) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(tools.services.limits.handling) as deadline:
            call = request[CALL] = Call(request=request, operation=operation, tools=tools, deadline=deadline)
            if operation.scope is not None:
                call.credential = await authorize(call, operation.scope)
            return await operation.handler(call)

    return handle


def _expect_handler(limits: Limits) -> Callable[[web.Request], Awaitable[None]]:
    async def expect(request: web.Request) -> None:
        """Ask for the body when the client waits for that, unless it will be refused for its size anyway."""
        waits = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1)
        if waits and (request.content_length or 0) <= limits.max_body:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # it is no part of the response

    return expect
