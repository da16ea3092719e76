"""Endpoints, their log and their replays as the API and the command line show them. Pure.

Each has an `id`; that of an endpoint is also its `webhook_id`, by which the others name it.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from mailerd.feedback.names import format_event_id
from mailerd.feedback.webhooks.schedule import most_attempts
from mailerd.feedback.webhooks.values import DELIVERY, REPLAY, WEBHOOK, Attempt, Outcome, Replay, Webhook, format_id


class Batching(Struct, frozen=True, kw_only=True):
    """Up to `events` events go in one request, an array; the first of them waits up to `wait_ms` for others."""

    events: int
    wait_ms: int


class WebhookView(Struct, frozen=True, kw_only=True):
    """An endpoint. `failing_since`: it has taken nothing since then. `secret` is shown only when it is made."""

    id: str
    webhook_id: str
    url: str
    events: list[str]
    streams: list[str]
    description: str
    batch: Batching | None
    status: Literal["enabled", "failing", "disabled"]
    disabled_at: datetime | None
    disabled_reason: str
    failing_since: datetime | None
    created_at: datetime
    old_secret_until: datetime | None


class DeliveryView(Struct, frozen=True, kw_only=True):
    """One attempt. `event_id` is what the request had as webhook-id: the event's id, or `bat_…` of several.

    `events` and `types` are of all that it told. `dead`: no more attempts; nor are there any while the endpoint is
    disabled.
    """

    id: str
    webhook_id: str
    event_id: str
    at: datetime
    events: list[str]
    types: list[str]
    attempt: int
    attempts: int
    outcome: Literal["delivered", "failed", "dead"]
    status: int
    error: str
    answer: str
    milliseconds: int
    next_attempt_at: datetime | None


class TestedView(Struct, frozen=True, kw_only=True):
    """What the endpoint answered to an event `webhook.test`. `status` 0: nothing."""

    delivered: bool
    status: int
    error: str
    answer: str
    milliseconds: int


class ReplayView(Struct, frozen=True, kw_only=True):
    """Events of a range of time that are told once more; `told` of them so far."""

    id: str
    webhook_id: str
    since: datetime
    until: datetime
    types: list[str]
    told: int
    status: Literal["running", "finished"]
    created_at: datetime
    finished_at: datetime | None


def webhook_view(webhook: Webhook, now: datetime) -> WebhookView:
    disabled = webhook.disabled_at is not None
    failing = webhook.failing_since is not None
    batched = webhook.batch_events > 1
    rotating = webhook.old_until is not None and now < webhook.old_until
    return WebhookView(
        id=webhook.outside_id,
        webhook_id=webhook.outside_id,
        url=webhook.url,
        events=list(webhook.events),
        streams=list(webhook.streams),
        description=webhook.description,
        batch=Batching(events=webhook.batch_events, wait_ms=webhook.batch_wait) if batched else None,
        status="disabled" if disabled else "failing" if failing else "enabled",
        disabled_at=webhook.disabled_at,
        disabled_reason=webhook.disabled_why,
        failing_since=webhook.failing_since,
        created_at=webhook.created_at,
        old_secret_until=webhook.old_until if rotating else None,
    )


def delivery_view(attempt: Attempt, webhook: Webhook) -> DeliveryView:
    """`webhook`: the endpoint that it was an attempt at, as it is now."""
    outcome = attempt.outcome
    return DeliveryView(
        id=format_id(DELIVERY, attempt.id),
        webhook_id=webhook.outside_id,
        event_id=attempt.told.key,
        at=attempt.at,
        events=[format_event_id(position) for position in attempt.told.positions],
        types=list(attempt.told.types),
        attempt=attempt.number,
        attempts=most_attempts(outcome),
        outcome=attempt.result.value,
        status=outcome.status,
        error=outcome.error,
        answer=outcome.answer,
        milliseconds=round(outcome.took * 1000),
        next_attempt_at=attempt.next_at if webhook.disabled_at is None else None,
    )


def outcome_view(outcome: Outcome) -> TestedView:
    return TestedView(
        delivered=outcome.good,
        status=outcome.status,
        error=outcome.error,
        answer=outcome.answer,
        milliseconds=round(outcome.took * 1000),
    )


def replay_view(replay: Replay) -> ReplayView:
    return ReplayView(
        id=format_id(REPLAY, replay.id),
        webhook_id=format_id(WEBHOOK, replay.webhook_id),
        since=replay.since,
        until=replay.until,
        types=list(replay.types),
        told=replay.told,
        status="running" if replay.finished_at is None else "finished",
        created_at=replay.created_at,
        finished_at=replay.finished_at,
    )
