"""Sending mail and looking after it: `/api/v1/emails`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import ParamSpec, TypeVar

import msgspec
from aiohttp import web

from mailerd.errors import Refused
from mailerd.intake.envelope import Origin, Receipt
from mailerd.intake.idempotency import Conflict, Replayed
from mailerd.queue.ids import format_message_id, parse_message_id
from mailerd.queue.views import MailFilters, MessageSummary, MessageView, Steered
from mailerd.web import idempotency, problems
from mailerd.web.bodies import (
    Accepted,
    AcceptedRecipient,
    AttemptDetail,
    Batch,
    BatchAccepted,
    BatchItem,
    Email,
    EmailDetail,
    EmailLine,
    EmailPage,
    ItemRefused,
    RawBatch,
    RawEmail,
    RawQuery,
    RecipientDetail,
    Reschedule,
    Search,
    SteeredEmail,
    SuppressedRecipient,
)
from mailerd.web.composing import Prepared, prepare_email, prepare_raw
from mailerd.web.operations import JSON, Call, Operation, Scope, json_answer
from mailerd.web.paths import OPERATORS
from mailerd.web.problems import UNAVAILABLE_WAIT, FieldError, ProblemError
from mailerd.web.services import Limits, Result
from mailerd.wire.address import parse_mailbox

MESSAGE = "message/rfc822"
IN_THREAD = 128_000  # bytes of a body from which decoding and composing would hold up other clients
EFFECT = re.compile(r"effect (?P<id>\d+): (?:[^:]*: (?P<rule>[\w.-]+): [45]\d\d)?")  # of a rule: its id and a reply
P = ParamSpec("P")
T = TypeVar("T")


async def send(call: Call) -> web.Response:
    async with call.body() as body:
        prepared = await _work(len(body), _decode_email, body, call.services.limits)
        return await _submit_one(call, prepared, body)


async def send_raw(call: Call) -> web.Response:
    async with call.body() as body:
        if call.request.content_type != MESSAGE:
            prepared = await _work(len(body), _decode_raw, body, call.services.limits)
            return await _submit_one(call, prepared, body)
        try:
            prepared = await _work(len(body), prepare_raw, _with_query(call, body), call.services.limits)
            return await _submit_one(call, prepared, body)
        except ProblemError as problem:
            raise problem.of_query() from None


async def send_batch(call: Call) -> web.Response:
    async with call.body() as body:
        items = await _work(len(body), _decode_batch, body, call.services.limits)
        ready = [item for item in items if isinstance(item, Prepared)]
        if not ready:
            raise _nothing_accepted([item for item in items if isinstance(item, ProblemError)])
        respond = partial(_batch_answer, call, items)
        outcome = await _submit(call, ready, body, respond)
        if isinstance(outcome, web.Response):
            return outcome
        results, response = outcome
        call.facts["messages"] = sum(isinstance(result, Receipt) for result in results)
        if not call.facts["messages"]:
            raise _nothing_accepted([error for error in _merge(items, results) if isinstance(error, ProblemError)])
        return web.Response(status=202, body=response, content_type=JSON)


def _decode_email(body: bytes, limits: Limits) -> Prepared:
    return prepare_email(problems.decode(body, Email), limits)


def _decode_batch(body: bytes, limits: Limits) -> list[Prepared | ProblemError]:
    """Each item of a batch as a message, or what is wrong with it, pointers counted from the whole body."""
    if body.lstrip(b" \t\r\n").startswith(b"["):
        problems.decode(body, list[msgspec.Raw])
        raise problems.invalid([FieldError("invalid_value", 'Send {"emails": [...]}, not a bare array.')])
    raws = problems.decode(body, RawBatch).emails
    if len(raws) > limits.max_batch:
        detail = f"A batch may have {limits.max_batch:,} messages; this one has {len(raws):,}."
        raise problems.invalid([FieldError("too_many_messages", detail, pointer="/emails")])
    items: list[Prepared | ProblemError] = []
    for index, raw in enumerate(raws):
        try:
            items.append(prepare_email(problems.decode(raw, Email), limits))
        except ProblemError as problem:
            items.append(problem.under(f"/emails/{index}"))
    return items


def _decode_raw(body: bytes, limits: Limits) -> Prepared:
    return prepare_raw(problems.decode(body, RawEmail), limits)


def _with_query(call: Call, body: bytes) -> RawEmail:
    query = call.query(RawQuery)
    return RawEmail(
        from_=query.from_,
        to=query.to,
        raw=body,
        tags=query.tag,
        stream=query.stream,
        pool=query.pool,
        scheduled_at=query.scheduled_at,
        expires_at=query.expires_at,
        campaign=query.campaign,
        priority=query.priority,
        require_tls=query.require_tls,
        topic=query.topic,
        unsubscribe=query.unsubscribe,
    )


async def _work(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    if size < IN_THREAD:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def _submit_one(call: Call, prepared: Prepared, body: bytes) -> web.Response:
    outcome = await _submit(call, [prepared], body, partial(_single_answer, call, prepared))
    if isinstance(outcome, web.Response):
        return outcome
    (result,), response = outcome
    if isinstance(result, Refused):
        raise problems.of_refusal(result, prepared.sent)
    call.facts["message"] = format_message_id(result.message_id)
    return web.Response(status=202, body=response, content_type=JSON)


async def _submit(
    call: Call, ready: Sequence[Prepared], body: bytes, respond: Callable[[Sequence[Result]], bytes]
) -> tuple[Sequence[Result], bytes] | web.Response:
    """Hand messages to the relay; a response at once when the request was answered before."""
    outcome = await call.services.submitter.submit_batch(
        [(prepared.envelope, prepared.content) for prepared in ready],
        Origin(protocol="http", peer=call.peer, helo="", tls="", credential=call.caller),
        idempotency.key_of(call, body),
        202,
        respond,
    )
    if isinstance(outcome, Replayed | Conflict):
        return idempotency.earlier(call, outcome)
    return outcome


def _single_answer(call: Call, prepared: Prepared, results: Sequence[Result]) -> bytes:
    (result,) = results
    if isinstance(result, Refused):
        raise TypeError("an answer was asked for when everything was refused")
    return problems.encode(_accepted(call, prepared, result))


def _batch_answer(call: Call, items: Sequence[Prepared | ProblemError], results: Sequence[Result]) -> bytes:
    data = [_batch_item(call, item, outcome) for item, outcome in zip(items, _merge(items, results), strict=True)]
    accepted = sum(item.email is not None for item in data)
    return problems.encode(BatchAccepted(accepted=accepted, refused=len(data) - accepted, data=data))


def _merge(items: Sequence[Prepared | ProblemError], results: Sequence[Result]) -> list[Receipt | ProblemError]:
    """What became of each item: those that never got to the relay, and in their order those that did."""
    left = iter(results)
    merged: list[Receipt | ProblemError] = []
    for index, item in enumerate(items):
        sent = item.sent if isinstance(item, Prepared) else ()
        outcome = item if isinstance(item, ProblemError) else next(left)
        if isinstance(outcome, Refused):
            outcome = problems.of_refusal(outcome, sent).under(f"/emails/{index}")
        merged.append(outcome)
    return merged


def _batch_item(call: Call, item: Prepared | ProblemError, outcome: Receipt | ProblemError) -> BatchItem:
    if isinstance(item, Prepared) and isinstance(outcome, Receipt):
        return BatchItem(status=202, email=_accepted(call, item, outcome))
    if isinstance(outcome, Receipt):
        raise TypeError("a receipt for a message that was never submitted")
    error = ItemRefused(code=outcome.code, detail=outcome.detail, errors=list(outcome.errors))
    return BatchItem(status=outcome.status, error=error)


def _nothing_accepted(errors: Sequence[ProblemError]) -> ProblemError:
    """When all fail for reasons of one status, that is the status of the whole."""
    statuses = {error.status for error in errors}
    status = statuses.pop() if len(statuses) == 1 else 422
    found = [fault for error in errors for fault in error.errors]
    wait = UNAVAILABLE_WAIT if status in (429, 503) else None
    return ProblemError(status, "nothing_accepted", errors[0].detail, errors=found, retry_after=wait)


def _accepted(call: Call, prepared: Prepared, receipt: Receipt) -> Accepted:
    message_id = format_message_id(receipt.message_id)
    start = prepared.envelope.not_before
    return Accepted(
        id=message_id,
        status="scheduled" if start and start > call.services.now() else "queued",
        recipients=[
            AcceptedRecipient(id=_recipient_id(message_id, n), email=address, kind=prepared.kinds.get(address, "to"))
            for n, address in receipt.recipients
        ],
        suppressed=[
            SuppressedRecipient(
                id=_recipient_id(message_id, n),
                email=address,
                kind=prepared.kinds.get(address, "to"),
                suppression=suppression.name,
                reason=suppression.reason,
                since=suppression.created_at,
                detail=suppression.told_to(call.caller.tenant),
            )
            for n, address, suppression in receipt.suppressed
        ],
    )


def _recipient_id(message_id: str, n: int) -> str:
    return f"{message_id}.{n}"


async def show(call: Call) -> web.Response:
    message = await call.services.mail.message(_message_id(call), call.caller.tenant)
    if message is None:
        raise _no_such_email()
    return json_answer(200, _detail(message, operator=call.caller.tenant == OPERATORS))


def _message_id(call: Call) -> int:
    try:
        return parse_message_id(call.request.match_info["id"])
    except ValueError:
        raise _no_such_email() from None


def _no_such_email() -> ProblemError:
    return ProblemError(404, "not_found", "There is no email of that id.")


def _reason_for_tenants(reason: str) -> str:
    """An effect by its number and rule only: the reply or the words behind it may be about mail of another tenant."""
    effect = EFFECT.match(reason)
    if effect is None:
        return reason
    return f"effect {effect['id']} ({effect['rule']})" if effect["rule"] else f"effect {effect['id']}"


def _detail(message: MessageView, *, operator: bool) -> EmailDetail:
    message_id = format_message_id(message.id)
    tags, labels = _split_labels(message.labels)
    return EmailDetail(
        id=message_id,
        sender=message.sender,
        subject=message.subject,
        stream=message.stream,
        pool=message.pool,
        credential=message.credential,
        size=message.size,
        accepted_at=message.accepted_at,
        tags=tags,
        labels=labels,
        recipients=[
            RecipientDetail(
                id=_recipient_id(message_id, view.n),
                **msgspec.structs.asdict(view)
                | {"reason": view.reason if operator else _reason_for_tenants(view.reason)},
            )
            for view in message.recipients
        ],
        attempts=[
            AttemptDetail(recipient_id=_recipient_id(message_id, view.n), **msgspec.structs.asdict(view))
            for view in message.attempts
        ],
    )


def _split_labels(labels: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    tags = [name for name, value in labels.items() if not value]
    return tags, {name: value for name, value in labels.items() if value}


async def search(call: Call) -> web.Response:
    query = call.query(Search)
    filters = MailFilters(
        tenant=call.caller.tenant,
        recipient=_address(query.recipient, "recipient"),
        sender=_address(query.sender, "sender"),
        tag=query.tag,
        state=query.state,
        after=query.after,
        before=query.before,
    )
    before = None
    if query.cursor is not None:
        try:
            before = call.tools.cursors.read(filters, query.cursor)
        except ValueError:
            detail = "Take next_cursor as it was given, with the same filters and API key."
            raise ProblemError(400, "invalid_cursor", detail) from None
    page = await call.services.mail.search(filters, query.limit, before)
    cursor = None if page.before is None else call.tools.cursors.make(filters, page.before)
    lines = [_line(summary) for summary in page.messages]
    return json_answer(200, EmailPage(data=lines, has_more=cursor is not None, next_cursor=cursor))


def _address(text: str | None, parameter: str) -> str | None:
    try:
        return None if text is None else parse_mailbox(text).address
    except ValueError as error:
        raise problems.invalid([FieldError("invalid_address", str(error), parameter=parameter)]) from None


def _line(summary: MessageSummary) -> EmailLine:
    tags, labels = _split_labels(summary.labels)
    return EmailLine(
        id=format_message_id(summary.id),
        sender=summary.sender,
        first_recipient=summary.first_recipient,
        subject=summary.subject,
        stream=summary.stream,
        pool=summary.pool,
        accepted_at=summary.accepted_at,
        total=summary.total,
        states=summary.states,
        tags=tags,
        labels=labels,
    )


GOES_ON = frozenset({"release", "retry"})  # what lets mail go on, which an operator's hold does not allow


@dataclass(frozen=True, slots=True)
class Steering:
    """A handler that has one method of `Control` called for one message."""

    method: str

    async def __call__(self, call: Call) -> web.Response:
        act = getattr(call.services.control, self.method)
        act = partial(act, tenant=call.caller.tenant, actor=call.caller.name)
        return await _steer(call, act, goes_on=self.method in GOES_ON)


async def reschedule(call: Call) -> web.Response:
    async with call.body() as body:
        due_at = _in_utc(problems.decode(body, Reschedule).scheduled_at)
    control = call.services.control
    return await _steer(
        call,
        lambda id_: control.reschedule(id_, due_at, tenant=call.caller.tenant, actor=call.caller.name),
        goes_on=True,
    )


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the year 0 or 10000 there
        fault = FieldError("invalid_value", "No calendar has that time in UTC.", pointer="/scheduled_at")
        raise problems.invalid([fault]) from None


async def _steer(call: Call, act: Callable[[int], Awaitable[Steered | None]], *, goes_on: bool) -> web.Response:
    message_id = _message_id(call)
    steered = await act(message_id)
    if steered is None:
        raise _no_such_email()
    if goes_on and not steered.changed and steered.kept:
        raise ProblemError(409, "held_by_operator", "An operator holds this email: only an operator can release it.")
    if not steered.changed and not steered.waiting:
        raise ProblemError(409, "message_finished", "Every recipient of this email has its final state already.")
    call.facts["message"] = format_message_id(message_id)
    body = SteeredEmail(
        id=format_message_id(message_id), changed=steered.changed, waiting=steered.waiting, kept=steered.kept
    )
    return json_answer(200, body)


EMAIL_EXAMPLE = {
    "from": "Shop <shop@example.com>",
    "to": ["Ann <ann@example.net>"],
    "subject": "Your order 1001",
    "html": "<p>It is on its way.</p>",
    "tags": ["order"],
    "labels": {"order_id": "1001"},
}
RAW_EXAMPLE = {
    "from": "shop@example.com",
    "to": ["ann@example.net"],
    "raw": "RnJvbTogc2hvcEBleGFtcGxlLmNvbQ0KU3ViamVjdDogSGVsbG8NCg0KSGVsbG8uDQo=",
}


def _steering(name: str, summary: str) -> Operation:
    return Operation(
        id=f"emails.{name}",
        method="POST",
        path=f"/api/v1/emails/{{id}}/{name}",
        scope="manage",
        summary=summary,
        handler=Steering(name),
        answers={200: (JSON, SteeredEmail)},
        problems=(404, 409),
    )


SENDING_PROBLEMS = (400, 408, 409, 413, 415, 422)
SEND: Scope = "send"

OPERATIONS = (
    Operation(
        id="emails.send",
        method="POST",
        path="/api/v1/emails",
        scope=SEND,
        summary="Send one message",
        handler=send,
        bodies={JSON: Email},
        example=EMAIL_EXAMPLE,
        answers={202: (JSON, Accepted)},
        problems=SENDING_PROBLEMS,
        idempotent=True,
    ),
    Operation(
        id="emails.send_batch",
        method="POST",
        path="/api/v1/emails/batch",
        scope=SEND,
        summary="Send up to 1,000 messages; each is taken or refused by itself",
        handler=send_batch,
        bodies={JSON: Batch},
        example={"emails": [EMAIL_EXAMPLE]},
        answers={202: (JSON, BatchAccepted)},
        problems=SENDING_PROBLEMS,
        idempotent=True,
    ),
    Operation(
        id="emails.send_raw",
        method="POST",
        path="/api/v1/emails/raw",
        scope=SEND,
        summary="Send a complete message (RFC 5322): in JSON, or as the body with its envelope in the query",
        handler=send_raw,
        bodies={JSON: RawEmail, MESSAGE: bytes},
        example=RAW_EXAMPLE,
        query=RawQuery,
        answers={202: (JSON, Accepted)},
        problems=SENDING_PROBLEMS,
        idempotent=True,
    ),
    Operation(
        id="emails.search",
        method="GET",
        path="/api/v1/emails",
        scope="read",
        summary="Search messages, newest first",
        handler=search,
        query=Search,
        answers={200: (JSON, EmailPage)},
        problems=(400, 422),
    ),
    Operation(
        id="emails.get",
        method="GET",
        path="/api/v1/emails/{id}",
        scope="read",
        summary="Where a message stands: recipients, attempts, and what it waits for",
        handler=show,
        answers={200: (JSON, EmailDetail)},
        problems=(404,),
    ),
    _steering("cancel", "Do not deliver to the recipients that still wait; nobody is told"),
    _steering("hold", "Keep the recipients that still wait until they are released; they still expire"),
    _steering("release", "Let held recipients go on, but for those that an operator holds"),
    _steering("retry", "Try the recipients that wait again now"),
    _steering("bounce", "Give up on the recipients that still wait, and tell the sender"),
    Operation(
        id="emails.reschedule",
        method="POST",
        path="/api/v1/emails/{id}/reschedule",
        scope="manage",
        summary="Let the recipients that still wait leave at another time",
        handler=reschedule,
        bodies={JSON: Reschedule},
        example={"scheduled_at": "2026-11-22T09:30:00Z"},
        answers={200: (JSON, SteeredEmail)},
        problems=(400, 404, 408, 409, 413, 415, 422),
    ),
)
