"""Where upstream services report what became of our mail: `/api/v1/upstreams/{name}/events`.

Nobody needs an API key: each request is signed, or carries the password of its service.
"""

from aiohttp import web

from mailerd.feedback.upstreams.values import Forged, Unreadable
from mailerd.web import problems
from mailerd.web.bodies import Answer
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

TEXT = "text/plain"  # what Amazon SNS calls its JSON
MAX_BODY = 5_000_000  # bytes: before the signature is known to be right


class Reported(Answer, frozen=True, kw_only=True):
    """`events` were understood, and for `followed` of them mail of ours was found."""

    events: int
    followed: int


async def report(call: Call) -> web.Response:
    name = call.request.match_info["name"]
    if not call.services.upstreams.knows(name):
        raise ProblemError(404, "not_found", "There is no upstream of that name in the configuration.")
    async with call.body() as body:
        if len(body) > MAX_BODY:
            raise ProblemError(413, "body_too_large", f"Events may have {MAX_BODY:,} bytes a request.")
        try:
            received = await call.services.upstreams.receive(name, call.request.headers, body)
        except Forged as error:
            raise ProblemError(403, "bad_signature", f"Not believed: {error}.") from None
        except Unreadable as error:
            raise problems.invalid([FieldError("invalid_value", f"{error}.")]) from None
    call.facts["upstream"] = name
    return json_answer(200, Reported(events=received.events, followed=received.followed))


OPERATIONS = (
    Operation(
        id="upstreams.report",
        method="POST",
        path="/api/v1/upstreams/{name}/events",
        scope=None,
        summary="For SES (by SNS), SendGrid, Mailgun, Postmark: what became of mail that they relayed",
        handler=report,
        bodies={JSON: bytes, TEXT: bytes},
        answers={200: (JSON, Reported)},
        problems=(403, 404, 408, 413, 415, 422),
    ),
)
