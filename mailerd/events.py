"""Events: facts in the past tense, appended in the transaction of the change they report.

`message.accepted` stands once for each recipient; the first of a message also carries what is true of all of it. Then
come `recipient.delivered`, `recipient.deferred`, `recipient.bounced` (each an attempt, with the peer's reply),
`recipient.expired`, `recipient.cancelled`, and `recipient.held` and `recipient.released` for what operators do. After
the end `recipient.bounced` may come once more (`late`: the host had taken it), `recipient.complained` and
`recipient.unsubscribed`; `recipient.suppressed` is mail to an address that must not be mailed. `suppression.added` and
`suppression.removed` are about an address and no message: their `message_id` is 0, or that of the mail that led to it.

Events stand in an order that all readers see alike: by transaction, and within one as they were appended. `EventStore`
shows only those before the oldest transaction that is still under way, so nothing appears behind a reader's back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

COLUMNS = "at, type, message_id, n, address, tenant, data, stream, campaign"
TYPES = ("timestamptz", "text", "bigint", "int", "text", "text", "jsonb", "text", "text")


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
    stream: str = ""
    campaign: str = ""


class Position(NamedTuple):
    """A place in the order of events: behind this one. `START` is before all of them."""

    txid: int
    seq: int


START = Position(0, 0)


class Recorded(NamedTuple):
    """An event and its place."""

    position: Position
    event: Event


class Page(NamedTuple):
    """Events in order. `position`: all before and at it were looked at; `more`: go on from there at once."""

    events: list[Recorded]
    position: Position
    more: bool


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
        [event.stream for event in events],
        [event.campaign for event in events],
    )


APPEND = f"INSERT INTO events ({COLUMNS}) SELECT * FROM {rows_sql(1)}"

OF_MESSAGE = f"""
    SELECT {COLUMNS} FROM events
     WHERE message_id = $1 AND at >= $2 ORDER BY at, n
"""

HORIZON = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"  # no transaction before it is under way
# Up to `$3` events are looked at; those that do not fit are not sent, but for the last, which says how far that was.
AFTER = f"""
    WITH seen AS MATERIALIZED (
        SELECT {COLUMNS}, txid, seq FROM events
         WHERE (txid, seq) > ($1, $2) AND txid < {HORIZON} ORDER BY txid, seq LIMIT $3
    ), fitting AS (
        SELECT *, ($4::text[] IS NULL OR type = ANY ($4)) AND ($5::text IS NULL OR tenant = $5)
               AND ($6::text[] IS NULL OR stream = ANY ($6)) AS fits,
               row_number() OVER (ORDER BY txid, seq) AS number, count(*) OVER () AS looked_at
          FROM seen
    )
    SELECT {COLUMNS}, txid, seq, fits, looked_at FROM fitting WHERE fits OR number = looked_at ORDER BY txid, seq
"""
END = f"SELECT {HORIZON} - 1"
ADVANCE = """
    INSERT INTO followers (name, txid, seq) VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET txid = EXCLUDED.txid, seq = EXCLUDED.seq, moved_at = now()
"""
LAST_SEQ = (1 << 63) - 1


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

    async def after(
        self,
        position: Position,
        *,
        limit: int = 1000,
        types: Sequence[str] | None = None,
        tenant: str | None = None,
        streams: Sequence[str] | None = None,
    ) -> Page:
        """The events behind `position`, in order: of the next `limit` those that fit (None: any)."""
        rows = await self._pool.fetch(AFTER, *position, limit, types, tenant, streams)
        found = [_recorded(row) for row in rows if row["fits"]]
        if not rows:
            return Page([], position, more=False)
        last = rows[-1]
        return Page(found, Position(last["txid"], last["seq"]), more=last["looked_at"] == limit)

    async def end(self) -> Position:
        """Behind all events so far; what is being written comes after it."""
        return Position(await self._pool.fetchval(END), LAST_SEQ)


def _recorded(row: asyncpg.Record) -> Recorded:
    *fields, txid, seq, _, _ = row.values()
    return Recorded(Position(txid, seq), Event(*fields))


class FollowerStore:
    """How far the followers of events have come, by their names."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def position(self, name: str) -> Position | None:
        """Behind the last event that this follower is done with; None when it never followed."""
        row = await self._pool.fetchrow("SELECT txid, seq FROM followers WHERE name = $1", name)
        return None if row is None else Position(*row)

    async def advance(
        self,
        name: str,
        position: Position,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None" = None,
    ) -> None:
        """Go on from here next time; in the caller's transaction, together with what the events led to."""
        await (connection or self._pool).execute(ADVANCE, name, *position)

    async def forget(self, name: str) -> None:
        """It does not follow any more."""
        await self._pool.execute("DELETE FROM followers WHERE name = $1", name)
