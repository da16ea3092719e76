"""What is true of all of a message stands once, in the `message.accepted` of its first recipient: found for its events.

`FactStore.told` makes of events what the outside sees, whatever they are: webhooks, sinks and the API use it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from mailerd.events import Recorded
from mailerd.feedback.names import OutsideEvent, outside
from mailerd.queue.ids import milliseconds_of

KEPT = 5_000  # messages
SLACK = timedelta(minutes=5)  # between the clock that made an id and the one that made its events

FACTS = """
    SELECT message_id, data FROM events
     WHERE message_id = ANY ($1::bigint[]) AND type = 'message.accepted' AND n = 1 AND at >= $2
"""


class FactStore:
    """Reads the facts of messages, one query for all that it does not remember."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", *, kept: int = KEPT) -> None:
        self._pool = pool
        self._kept = kept
        self._known: dict[int, Mapping[str, Any]] = {}  # those used last stand last

    async def told(self, events: Sequence[Recorded]) -> list[OutsideEvent]:
        """The events as the outside sees them, in their order, without those that it does not see."""
        facts = await self.of(events)
        seen = (outside(each, facts.get(each.event.message_id)) for each in events)
        return [event for event in seen if event is not None]

    async def of(self, events: Sequence[Recorded]) -> dict[int, Mapping[str, Any]]:
        """The facts of the messages of these events; none for a message that has been forgotten, or is none."""
        found: dict[int, Mapping[str, Any]] = {
            event.message_id: event.data
            for _, event in events
            if event.type == "message.accepted" and event.n == 1 and event.data is not None
        }
        wanted = {event.message_id for _, event in events if event.message_id} - found.keys()
        found.update({id_: self._known[id_] for id_ in wanted & self._known.keys()})
        if missing := sorted(wanted - found.keys()):
            since = datetime.fromtimestamp(milliseconds_of(missing[0]) / 1000, UTC) - SLACK
            rows = await self._pool.fetch(FACTS, missing, since)
            found.update({row["message_id"]: row["data"] or {} for row in rows})
        self._remember(found.items())
        return found

    def _remember(self, facts: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        for id_, data in facts:
            self._known.pop(id_, None)
            self._known[id_] = data
        while len(self._known) > self._kept:
            del self._known[next(iter(self._known))]
