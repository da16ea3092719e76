"""What an endpoint is sent: one event as an object, or several as an array of them.

An object is the event as `/api/v1/events` has it (`id`, `type`, `created_at`, `data`) with the `timestamp` of Standard
Webhooks, which is `created_at` again. Its id is also the header field `webhook-id`; of an array that is the request's.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from mailerd.events import Recorded
from mailerd.feedback.names import OutsideEvent, outside
from mailerd.feedback.webhooks.values import BATCH, subject_of


class Item:
    """An event as the outside sees it, and its place. It is rendered once for all endpoints."""

    __slots__ = ("_alone", "_event", "created_at", "id", "position", "stream", "subject", "tenant", "type")

    def __init__(self, recorded: Recorded, event: OutsideEvent) -> None:
        self.position = recorded.position
        self.subject = subject_of(recorded.event)
        self.stream = recorded.event.stream
        self.tenant = recorded.event.tenant
        self.id = event.id
        self.type = event.type
        self.created_at = event.created_at
        self._event: OutsideEvent | None = event
        self._alone = b""

    @property
    def alone(self) -> bytes:
        """As the body of a request, or a part of one."""
        if (event := self._event) is not None:
            at = event.created_at
            body = {"id": event.id, "type": event.type, "timestamp": at, "created_at": at, "data": event.data}
            self._alone = msgspec.json.encode(body)
            self._event = None  # it is several times as large
        return self._alone


def item_of(recorded: Recorded, facts: Mapping[str, Any] | None) -> Item | None:
    """The event as it is told; None for those that the outside does not see. `facts`: see `names.outside`."""
    event = outside(recorded, facts)
    return None if event is None else Item(recorded, event)


def key_of(items: Sequence[Item], *, batched: bool) -> str:
    """The webhook-id of a request: the same for the same events."""
    if not batched:
        return items[0].id
    return BATCH + sha256("\0".join(item.id for item in items).encode()).hexdigest()[:26]


def body_of(items: Sequence[Item], *, batched: bool) -> bytes:
    return b"[" + b",".join(item.alone for item in items) + b"]" if batched else items[0].alone
