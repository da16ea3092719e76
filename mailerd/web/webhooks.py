"""Endpoints of applications: `/api/v1/webhooks`."""

from collections.abc import Awaitable
from typing import Annotated, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from mailerd.errors import Refused
from mailerd.feedback.webhooks.desk import LONGEST_BATCH, MOST_BATCH, MOST_EVENTS, Wanted
from mailerd.feedback.webhooks.signing import format_secret
from mailerd.feedback.webhooks.values import DELIVERY, REPLAY, WEBHOOK, Webhook, parse_id
from mailerd.feedback.webhooks.views import (
    DeliveryView,
    ReplayView,
    TestedView,
    WebhookView,
    delivery_view,
    outcome_view,
    replay_view,
    webhook_view,
)
from mailerd.web import problems
from mailerd.web.bodies import Answer, Moment, Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import ProblemError

LAST = (1 << 63) - 1
T = TypeVar("T")
Events = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=MOST_EVENTS)]
Streams = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=100)]
Url = Annotated[str, Meta(min_length=1, max_length=2000)]
Description = Annotated[str, Meta(max_length=500)]


class WebhookBatch(Request, frozen=True, kw_only=True, tag=False):
    """Up to `events` events in one request, which is then an array; the first waits up to `wait_ms` for others."""

    events: Annotated[int, Meta(ge=1, le=MOST_BATCH)]
    wait_ms: Annotated[int, Meta(ge=0, le=LONGEST_BATCH)] = 1000


class NewWebhook(Request, frozen=True, kw_only=True):
    """`events`: types such as `email.bounced`, `email.*`, or `*`. `streams` empty: of any."""

    url: Url
    events: Events
    streams: Streams = msgspec.field(default_factory=list)
    description: Description = ""
    batch: WebhookBatch | None = None


class WebhookChange(Request, frozen=True, kw_only=True):
    """What is not given stays. `batch` null: one event a request. Enabled again, it goes on where it was."""

    url: Url | None = None
    events: Events | None = None
    streams: Streams | None = None
    description: Description | None = None
    batch: WebhookBatch | msgspec.UnsetType | None = msgspec.UNSET
    enabled: bool | None = None


class NewReplay(Request, frozen=True, kw_only=True):
    """`since` inclusive, `until` exclusive, now if not given; `types` empty: all that the endpoint wants."""

    since: Moment
    until: Moment | None = None
    types: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=MOST_EVENTS)] = msgspec.field(
        default_factory=list
    )


class DeliveryQuery(Request, frozen=True, kw_only=True):
    outcome: Literal["delivered", "failed", "dead"] | None = None
    cursor: Annotated[str, Meta(max_length=200)] | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class WebhookMade(WebhookView, frozen=True, kw_only=True):
    """With its `secret`, which is not shown again."""

    secret: str


class WebhookDetail(WebhookView, frozen=True, kw_only=True):
    """`pending` requests were tried and not taken, or wait behind one of those."""

    pending: int


class WebhookList(Answer, frozen=True, kw_only=True):
    """All of them: there are never more."""

    data: list[WebhookView]
    has_more: bool = False
    next_cursor: str | None = None


class DeliveryPage(Answer, frozen=True, kw_only=True):
    """Attempts, newest first. `next_cursor` with the same filters goes on."""

    data: list[DeliveryView]
    has_more: bool
    next_cursor: str | None


class ReplayList(Answer, frozen=True, kw_only=True):
    """The last 50, newest first."""

    data: list[ReplayView]
    has_more: bool = False
    next_cursor: str | None = None


class _Log(msgspec.Struct, frozen=True):
    """What a cursor is good for."""

    tenant: str
    webhook_id: int
    outcome: str | None


async def add(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewWebhook)
    wanted = Wanted(
        url=asked.url,
        events=asked.events,
        streams=asked.streams,
        description=asked.description,
        batch_events=asked.batch.events if asked.batch else None,
        batch_wait=asked.batch.wait_ms if asked.batch else None,
    )
    made = await _checked(call.services.webhooks.add(wanted, tenant=call.caller.tenant, actor=call.caller.name))
    answer = _made(call, made, 201)
    answer.headers["Location"] = f"/api/v1/webhooks/{made.outside_id}"
    return answer


def _made(call: Call, webhook: Webhook, status: int) -> web.Response:
    call.facts["webhook"] = webhook.outside_id
    view = webhook_view(webhook, call.services.now())
    return json_answer(status, _extended(view, WebhookMade, secret=format_secret(webhook.secret)))


def _extended(view: WebhookView, type_: type[msgspec.Struct], **more: object) -> msgspec.Struct:
    return type_(**{name: getattr(view, name) for name in view.__struct_fields__}, **more)


async def list_all(call: Call) -> web.Response:
    now = call.services.now()
    found = await call.services.webhooks.all(call.caller.tenant)
    return json_answer(200, WebhookList(data=[webhook_view(webhook, now) for webhook in found]))


async def get(call: Call) -> web.Response:
    return await _detail(call, await _own(call))


async def _detail(call: Call, webhook: Webhook) -> web.Response:
    pending = await call.services.webhooks.pending(webhook.id)
    return json_answer(200, _extended(webhook_view(webhook, call.services.now()), WebhookDetail, pending=pending))


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, WebhookChange)
    single = asked.batch is None
    batch = asked.batch if isinstance(asked.batch, WebhookBatch) else None
    wanted = Wanted(
        url=asked.url,
        events=asked.events,
        streams=asked.streams,
        description=asked.description,
        batch_events=1 if single else batch.events if batch else None,
        batch_wait=0 if single else batch.wait_ms if batch else None,
        enabled=asked.enabled,
    )
    id_ = _id(call, WEBHOOK, "id")
    webhook = await _checked(
        call.services.webhooks.change(id_, wanted, tenant=call.caller.tenant, actor=call.caller.name)
    )
    return await _detail(call, _found(call, webhook))


async def delete(call: Call) -> web.Response:
    id_ = _id(call, WEBHOOK, "id")
    webhook = await call.services.webhooks.delete(id_, tenant=call.caller.tenant, actor=call.caller.name)
    return json_answer(200, webhook_view(_found(call, webhook), call.services.now()))


async def rotate(call: Call) -> web.Response:
    id_ = _id(call, WEBHOOK, "id")
    webhook = await call.services.webhooks.rotate(id_, tenant=call.caller.tenant, actor=call.caller.name)
    return _made(call, _found(call, webhook), 200)


async def test(call: Call) -> web.Response:
    outcome = await call.services.webhooks.test(_id(call, WEBHOOK, "id"), call.caller.tenant)
    if outcome is None:
        raise _nothing()
    return json_answer(200, outcome_view(outcome))


async def deliveries(call: Call) -> web.Response:
    query, webhook = call.query(DeliveryQuery), await _own(call)
    filters = _Log(webhook.tenant, webhook.id, query.outcome)
    before = LAST
    if query.cursor is not None:
        try:
            before = call.tools.cursors.read(filters, query.cursor)
        except ValueError:
            detail = "Leave out the cursor, or send it with the filters that it was made for."
            raise ProblemError(400, "invalid_cursor", detail) from None
    found = await call.services.webhooks.log(webhook.id, before=before, outcome=query.outcome, limit=query.limit + 1)
    page, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(filters, page[-1].id) if more else None
    data = [delivery_view(attempt, webhook) for attempt in page]
    return json_answer(200, DeliveryPage(data=data, has_more=more, next_cursor=cursor))


async def retry(call: Call) -> web.Response:
    webhook = await _own(call)
    attempt = await call.services.webhooks.retry(
        webhook.id,
        _id(call, DELIVERY, "delivery_id"),
        tenant=call.caller.tenant,
        actor=call.caller.name,
    )
    if attempt is None:
        raise _nothing()
    return json_answer(202, delivery_view(attempt, webhook))


async def start_replay(call: Call) -> web.Response:
    id_ = _id(call, WEBHOOK, "id")
    async with call.body() as body:
        asked = problems.decode(body, NewReplay)
    replay = await _checked(
        call.services.webhooks.start_replay(
            id_,
            since=asked.since,
            until=asked.until,
            types=asked.types,
            tenant=call.caller.tenant,
            actor=call.caller.name,
        )
    )
    if replay is None:
        raise _nothing()
    return json_answer(202, replay_view(replay))


async def replays(call: Call) -> web.Response:
    webhook = await _own(call)
    found = await call.services.webhooks.replays(webhook.id, 50)
    return json_answer(200, ReplayList(data=[replay_view(replay) for replay in found]))


async def replay(call: Call) -> web.Response:
    webhook = await _own(call)
    found = await call.services.webhooks.replay(webhook.id, _id(call, REPLAY, "replay_id"))
    if found is None:
        raise _nothing()
    return json_answer(200, replay_view(found))


async def _own(call: Call) -> Webhook:
    return _found(call, await call.services.webhooks.get(_id(call, WEBHOOK, "id"), call.caller.tenant))


async def _checked(work: Awaitable[T]) -> T:
    """What is refused is so because of a field of the body."""
    try:
        return await work
    except Refused as refusal:
        raise problems.of_refusal(refusal, sent=FIELDS) from None


def _found(call: Call, webhook: Webhook | None) -> Webhook:
    if webhook is None:
        raise _nothing()
    call.facts["webhook"] = webhook.outside_id
    return webhook


def _id(call: Call, prefix: str, name: str) -> int:
    try:
        return parse_id(prefix, call.request.match_info[name])
    except ValueError:
        raise _nothing() from None


def _nothing() -> ProblemError:
    return ProblemError(404, "not_found", "There is nothing of that id.")


FIELDS = ("url", "events", "types", "since")  # of which a refusal may speak
BODY = (408, 413, 415, 422)
EXAMPLE = {"url": "https://app.example.com/hooks/mail", "events": ["email.bounced", "email.complained"]}
PATH = "/api/v1/webhooks/{id}"

OPERATIONS = (
    Operation(
        id="webhooks.add",
        method="POST",
        path="/api/v1/webhooks",
        scope="manage",
        summary="Be told of events by HTTP (Standard Webhooks 1.0), from now on",
        handler=add,
        bodies={JSON: NewWebhook},
        example=EXAMPLE,
        answers={201: (JSON, WebhookMade)},
        problems=(*BODY, 409),
    ),
    Operation(
        id="webhooks.list",
        method="GET",
        path="/api/v1/webhooks",
        scope="manage",
        summary="Your endpoints",
        handler=list_all,
        answers={200: (JSON, WebhookList)},
    ),
    Operation(
        id="webhooks.get",
        method="GET",
        path=PATH,
        scope="manage",
        summary="One endpoint, and how it does",
        handler=get,
        answers={200: (JSON, WebhookDetail)},
        problems=(404,),
    ),
    Operation(
        id="webhooks.change",
        method="PATCH",
        path=PATH,
        scope="manage",
        summary="Change an endpoint, disable it, or enable it again",
        handler=change,
        bodies={JSON: WebhookChange},
        example={"enabled": True},
        answers={200: (JSON, WebhookDetail)},
        problems=(*BODY, 404),
    ),
    Operation(
        id="webhooks.delete",
        method="DELETE",
        path=PATH,
        scope="manage",
        summary="Tell it nothing more, also not what is pending",
        handler=delete,
        answers={200: (JSON, WebhookView)},
        problems=(404,),
    ),
    Operation(
        id="webhooks.rotate_secret",
        method="POST",
        path=PATH + "/rotate-secret",
        scope="manage",
        summary="A new secret; for 24 hours requests are signed with both",
        handler=rotate,
        answers={200: (JSON, WebhookMade)},
        problems=(404,),
    ),
    Operation(
        id="webhooks.test",
        method="POST",
        path=PATH + "/test",
        scope="manage",
        summary="Send an event `webhook.test` now, and see what the endpoint answers",
        handler=test,
        answers={200: (JSON, TestedView)},
        problems=(404,),
    ),
    Operation(
        id="webhooks.deliveries",
        method="GET",
        path=PATH + "/deliveries",
        scope="manage",
        summary="The log of attempts",
        handler=deliveries,
        query=DeliveryQuery,
        answers={200: (JSON, DeliveryPage)},
        problems=(404, 422),
    ),
    Operation(
        id="webhooks.retry",
        method="POST",
        path=PATH + "/deliveries/{delivery_id}/retry",
        scope="manage",
        summary="Tell it once more what that attempt was about",
        handler=retry,
        answers={202: (JSON, DeliveryView)},
        problems=(404, 409),
    ),
    Operation(
        id="webhooks.replay",
        method="POST",
        path=PATH + "/replay",
        scope="manage",
        summary="Tell it once more of the events of a range of time",
        handler=start_replay,
        bodies={JSON: NewReplay},
        example={"since": "2026-11-22T08:00:00Z", "until": "2026-11-22T09:00:00Z", "types": ["email.bounced"]},
        answers={202: (JSON, ReplayView)},
        problems=(*BODY, 404, 409),
    ),
    Operation(
        id="webhooks.list_replays",
        method="GET",
        path=PATH + "/replays",
        scope="manage",
        summary="Replays, and how far they are",
        handler=replays,
        answers={200: (JSON, ReplayList)},
        problems=(404,),
    ),
    Operation(
        id="webhooks.get_replay",
        method="GET",
        path=PATH + "/replays/{replay_id}",
        scope="manage",
        summary="How far a replay is",
        handler=replay,
        answers={200: (JSON, ReplayView)},
        problems=(404,),
    ),
)
