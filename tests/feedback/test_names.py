"""What the outside sees of events."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mailerd.events import LAST, START, Event, Position, Recorded
from mailerd.feedback.facts import FactStore
from mailerd.feedback.names import (
    NAMES,
    OUTSIDE,
    Outcome,
    OutsideEvent,
    fits,
    format_event_id,
    inside,
    outside,
    parse_event_id,
)
from mailerd.queue.ids import format_message_id

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)
FACTS = {
    "sender": "shop@example.com",
    "subject": "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    "message_id": "<1@example.com>",
    "topic": "news",
    "labels": {"order": "", "order_id": "1001"},
    "credential": "secret-name",
    "peer": "10.0.0.1",
}


def told(type_: str, data: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> OutsideEvent:
    event = Event(AT, type_, 77, 2, "ann@example.net", "acme", data, "marketing", "spring")
    seen = outside(Recorded(Position(5, 9), event), facts)
    assert seen is not None
    return seen


def test_an_event_tells_which_mail_to_whom_and_nothing_of_the_tenant_or_the_submitter():
    seen = told("recipient.delivered", {"code": 250, "text": "ok", "host": "mx.example.net", "attempt": 1}, FACTS)

    assert (seen.type, seen.created_at, seen.data.email_id) == ("email.delivered", AT, format_message_id(77))
    assert (seen.data.recipient, seen.data.to, seen.data.from_) == (2, "ann@example.net", "shop@example.com")
    assert (seen.data.subject, seen.data.topic, seen.data.stream) == ("Grüße", "news", "marketing")
    assert (seen.data.tags, seen.data.labels) == (["order"], {"order_id": "1001"})
    assert seen.data.outcome == Outcome(code=250, text="ok", remote="mx.example.net", attempt=1)
    assert not {"acme", "secret-name", "10.0.0.1"} & set(str(seen).replace("'", " ").split())


@pytest.mark.parametrize(
    ("type_", "data", "name"),
    [
        ("message.accepted", {}, "email.queued"),
        ("message.accepted", {"due_at": "2026-11-23T08:00:00+00:00"}, "email.scheduled"),
        ("recipient.deferred", {"due_at": "2026-11-23T08:00:00+00:00"}, "email.delivery_delayed"),
        ("recipient.bounced", {}, "email.bounced"),
        ("recipient.expired", {}, "email.failed"),
        ("recipient.cancelled", None, "email.failed"),
        ("recipient.complained", {"feedback_type": "abuse"}, "email.complained"),
        ("recipient.unsubscribed", {"source": "one-click"}, "email.unsubscribed"),
        ("recipient.suppressed", {"reason": "bounce"}, "email.suppressed"),
        ("suppression.added", {"reason": "manual"}, "suppression.added"),
        ("suppression.removed", {"reason": "manual"}, "suppression.removed"),
    ],
)
def test_each_event_has_its_name_outside(type_, data, name):
    assert told(type_, data).type == name


@pytest.mark.parametrize("type_", ["recipient.held", "recipient.released", "recipient.invented"])
def test_what_operators_do_with_a_queue_is_not_told(type_):
    assert outside(Recorded(START, Event(AT, type_, 1, 1, "a@b", "t"))) is None


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        ({"kind": "invalid_recipient"}, "Permanent"),
        ({"kind": "other", "action": "suppress"}, "Permanent"),
        ({"kind": "mailbox_full"}, "Transient"),
        ({"kind": "content"}, "Transient"),
        ({"kind": "other"}, "Undetermined"),
        ({}, "Undetermined"),
    ],
)
def test_a_bounce_says_whether_the_address_may_be_mailed_again(data, type_):
    outcome = told("recipient.bounced", data | {"late": True}).data.outcome
    assert outcome is not None
    assert (outcome.type, outcome.late) == (type_, True)


def test_a_failure_says_why():
    reasons = [told(f"recipient.{word}").data.outcome for word in ("expired", "cancelled")]
    assert [outcome and outcome.reason for outcome in reasons] == ["expired", "cancelled"]


def test_of_a_suppression_the_outside_does_not_learn_whose_it_is():
    data = {"reason": "bounce", "scope": {"tenant": "acme", "stream": "marketing", "topic": ""}, "kind": "suppressed"}
    assert told("recipient.suppressed", data).data.suppression == {
        "reason": "bounce",
        "class": "suppressed",
        "stream": "marketing",
    }


def test_all_times_end_in_z():
    since = {"since": "2026-11-22T08:00:00+00:00", "expires_at": "2026-11-22T10:00:00+02:00"}
    assert told("suppression.added", since).data.suppression == {
        "since": "2026-11-22T08:00:00Z",
        "expires_at": "2026-11-22T08:00:00Z",
    }
    due = {"due_at": "2026-11-23T08:00:00.125+00:00"}
    deferred = told("recipient.deferred", due).data.outcome
    assert deferred is not None
    assert deferred.next_attempt_at == "2026-11-23T08:00:00.125Z"
    assert told("message.accepted", due).data.scheduled_at == "2026-11-23T08:00:00.125Z"
    assert told("webhook.disabled", {"id": "whk_1", "why": "gone", "failing_since": due["due_at"]}).data.webhook == {
        "id": "whk_1",
        "reason": "gone",
        "failing_since": "2026-11-23T08:00:00.125Z",
    }


def test_of_refused_mail_it_is_told_whose_it_was():
    seen = told("recipient.suppressed", {"reason": "bounce", "sender": "me@here", "subject": "hi"})
    assert (seen.data.from_, seen.data.subject) == ("me@here", "hi")


@pytest.mark.parametrize("position", [START, Position(1, 2), Position(1 << 40, 3), LAST])
def test_an_id_of_an_event_is_its_position(position):
    assert parse_event_id(format_event_id(position)) == position


def test_ids_sort_as_positions_do():
    positions = [Position(1, 9), Position(1, 31), Position(1, 32), Position(2, 1), Position(1 << 41, 0), LAST]
    assert sorted(map(format_event_id, positions)) == list(map(format_event_id, positions))


@pytest.mark.parametrize("text", ["", "evt_", "msg_" + "0" * 26, "evt_" + "0" * 25 + "u", "evt_" + "z" * 26])
def test_what_is_no_id_is_refused(text):
    with pytest.raises(ValueError, match="is not an event id"):
        parse_event_id(text)


def test_patterns_fit_names_and_find_the_types_inside():
    assert fits("email.bounced", ["email.*"])
    assert fits("email.bounced", [])
    assert not fits("email.bounced", ["suppression.*", "email.bounce"])
    assert inside(["email.failed"]) == ["recipient.expired", "recipient.cancelled", "recipient.in_doubt"]
    assert inside([]) == list(OUTSIDE)
    assert all(inside([name]) for name in NAMES)


async def test_the_facts_of_a_message_are_found_for_its_later_events_with_one_query(database):
    from mailerd import db
    from mailerd.events import EventStore
    from mailerd.queue.ids import first_id_at

    now = datetime.now(UTC)
    ids = [first_id_at(int(now.timestamp() * 1000)) + number for number in range(3)]
    async with await db.connect_pool(database, max=1) as pool:
        events = EventStore(pool)
        async with pool.acquire() as connection:
            for id_ in ids:
                first = Event(now, "message.accepted", id_, 1, "a@b", "t", {"sender": f"{id_}@here"})
                rest = [Event(now, type_, id_, 2, "c@d", "t") for type_ in ("message.accepted", "recipient.delivered")]
                await events.append(connection, [first, *rest])
        page = (await events.after(START)).events
        for facts in (FactStore(pool), FactStore(pool, kept=1)):
            for some in (page, page[2::3], page):
                seen = await facts.told(some)
                assert [each.data.from_ for each in seen] == [f"{each.event.message_id}@here" for each in some]
