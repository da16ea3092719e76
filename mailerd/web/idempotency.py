"""The Idempotency-Key of requests (IETF draft-ietf-httpapi-idempotency-key-header): sent twice, they are done once."""

import hashlib
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from mailerd.db import Connection
from mailerd.intake.idempotency import Answer, Conflict, Idempotency, Replayed
from mailerd.web.operations import JSON, Call
from mailerd.web.problems import ProblemError

KEY = re.compile(r"[\x20-\x7e]{1,255}")


def key_of(call: Call, body: bytes) -> Idempotency | None:
    """What names this request; None when it has no key. Raises `ProblemError` (400) for a key that is none."""
    key = call.request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not KEY.fullmatch(key):
        detail = "An Idempotency-Key has 1 to 255 printable ASCII characters."
        raise ProblemError(400, "invalid_idempotency_key", detail)
    said = f"{call.request.content_type}\n{call.request.rel_url.raw_query_string}\n".encode() + body
    path = f"{call.operation.method} {call.request.rel_url.raw_path}"
    owner = f"{call.caller.tenant}/{call.caller.name}"  # a name may be given again, to another tenant
    return Idempotency(owner, path, key, hashlib.sha256(said).digest())


def earlier(call: Call, outcome: Replayed | Conflict) -> web.Response:
    """The answer when the request came before. Raises `ProblemError` when the key cannot be used."""
    match outcome:
        case Replayed(status, response):
            call.facts["replayed"] = True
            headers = {"Idempotency-Replayed": "true"}
            return web.Response(status=status, body=response, content_type=JSON, headers=headers)
        case Conflict.OTHER_REQUEST:
            detail = "This Idempotency-Key was used for another request; use a new one."
            raise ProblemError(422, "idempotency_key_reused", detail)
        case Conflict.IN_PROGRESS:
            detail = "The request with this Idempotency-Key is not done yet; ask again."
            raise ProblemError(409, "idempotency_in_progress", detail, retry_after=1)


async def once(call: Call, body: bytes, work: Callable[[Connection], Awaitable[Answer]]) -> web.Response:
    """Do `work` in a transaction and answer what it says; if the key was used before, the answer of then.

    What `work` raises undoes what it did.
    """
    store = call.services.idempotency
    request = key_of(call, body)
    if request is None:
        outcome: Answer | Replayed | Conflict = await store.transact(work)
    else:
        outcome = await store.answer(request, work)
    if isinstance(outcome, Answer):
        return web.Response(
            status=outcome.status, body=outcome.response, content_type=JSON, headers=dict(outcome.headers)
        )
    return earlier(call, outcome)
