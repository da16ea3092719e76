"""Events as sinks are handed them."""

import itertools
from datetime import UTC, datetime

from mailerd.events import Event, Position, Recorded
from mailerd.feedback.names import OutsideEvent, outside

STEPS = ("message.accepted", "recipient.deferred", "recipient.delivered")
_numbers = itertools.count(1)


def told(message_id: int, n: int = 1, type_: str = "recipient.deferred", *, padding: int = 0) -> OutsideEvent:
    """One event; each has a place behind the one before. `padding` makes it longer."""
    data = {"text": "x" * padding}
    at = datetime(2026, 11, 22, 8, tzinfo=UTC)
    event = Event(at, type_, message_id, n, f"a{message_id}@b.example", "t", data, "transactional")
    made = outside(Recorded(Position(7, next(_numbers)), event), {"sender": "shop@example.com"})
    assert made is not None
    return made


def events_of(messages: int, *, first: int = 1) -> list[OutsideEvent]:
    """All steps of so many messages, mixed, those of each message in their order."""
    return [told(message_id, type_=step) for step in STEPS for message_id in range(first, first + messages)]
