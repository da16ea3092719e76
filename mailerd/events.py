"""Events: facts in the past tense, appended in the transaction of the change they report.

`message.accepted` stands once for each recipient; the first of a message also carries what is true of all of it. Then
come `recipient.delivered`, `recipient.deferred`, `recipient.bounced` (each an attempt, with the peer's reply),
`recipient.expired`, `recipient.cancelled`, and `recipient.held` and `recipient.released` for what operators do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

COLUMNS = "at, type, message_id, n, address, tenant, data"
TYPES = ("timestamptz", "text", "bigint", "int", "text", "text", "jsonb")


@dataclass(slots=True)
class Event:
    """One fact about one recipient. `data` is what the type of event says, JSON."""

    at: datetime
    type: str
    message_id: int
    n: int
    address: str
    tenant: str
    data: dict[str, Any] | None = None


def rows_sql(first: int) -> str:
    """SQL for the rows of `parameters()`, whose first placeholder is `$first`."""
    arrays = ", ".join(f"${first + offset}::{type_}[]" for offset, type_ in enumerate(TYPES))
    return f"unnest({arrays}) AS event ({COLUMNS})"


def parameters(events: Sequence[Event]) -> tuple[list[Any], ...]:
    """The events as columns, for `rows_sql()`."""
    return (
        [event.at for event in events],
        [event.type for event in events],
        [event.message_id for event in events],
        [event.n for event in events],
        [event.address for event in events],
        [event.tenant for event in events],
        [event.data for event in events],
    )


APPEND = f"INSERT INTO events ({COLUMNS}) SELECT * FROM {rows_sql(1)}"

OF_MESSAGE = """
    SELECT at, type, message_id, n, address, tenant, data FROM events
     WHERE message_id = $1 AND at >= $2 ORDER BY at, n
"""


class EventStore:
    """Appends and reads events."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def append(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", events: Sequence[Event]
    ) -> None:
        """Append in the caller's transaction."""
        if events:
            await connection.execute(APPEND, *parameters(events))

    async def of_message(self, message_id: int, *, since: datetime) -> list[Event]:
        """All events of a message from `since` (its acceptance, which spares older partitions), oldest first."""
        return [Event(**row) for row in await self._pool.fetch(OF_MESSAGE, message_id, since)]
