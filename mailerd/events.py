"""Events: facts in the past tense, appended in the transaction of the change they report.

`message.accepted` stands once for each recipient; the first of a message also carries what is true of all of it. Then
come `recipient.delivered`, `recipient.deferred`, `recipient.bounced` (each an attempt, with the peer's reply),
`recipient.expired`, `recipient.cancelled`, and `recipient.held` and `recipient.released` for what operators do. After
the end `recipient.bounced` may come once more (`late`: the host had taken it), `recipient.complained`,
`recipient.unsubscribed` and `recipient.answered` (an auto-reply and the like); `recipient.suppressed` is mail to an
address that must not be mailed. `suppression.added` and `suppression.removed` are about an address and no message:
their `message_id` is 0, or that of the mail that led to it.

Events stand in an order that all readers see alike: by transaction, and within one as they were appended. `EventStore`
shows only those before the oldest transaction that is still under way, so nothing appears behind a reader's back. That
may be a transaction of another database of the same cluster: as long as it writes, readers wait.

What happens to one recipient follows one another: a transaction that begins after another's commit has the larger
number. Only where two are at the same row at the same time (an operator cancels what is just being settled) does the
one that began to write first stand first, though it may have waited for the other.

`events_era()` is added to the numbers of transactions. It is 0 until a dump is restored into another cluster, where
they begin anew; then `continue_order` puts it up, and what comes next still stands behind all that was there.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from mailerd.db.arrays import rows, unnested

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
    """Events in the order asked for. `position`: all up to it were looked at; `more`: go on from there at once."""

    events: list[Recorded]
    position: Position
    more: bool


class Lag(NamedTuple):
    """What a follower has not read: so many events, the first of them since then. Above `EXACT` an estimate."""

    events: int
    since: datetime | None


class Follower(NamedTuple):
    name: str
    position: Position
    moved_at: datetime


def rows_sql(first: int) -> str:
    """SQL for the rows of `parameters()`, whose first placeholder is `$first`; see `db.rows`."""
    return f"{rows(COLUMNS, TYPES, first=first)} AS event"


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


APPEND = f"INSERT INTO events ({COLUMNS}) SELECT {unnested(TYPES)}"

OF_MESSAGE = f"""
    SELECT {COLUMNS} FROM events
     WHERE message_id = $1 AND at >= $2 ORDER BY at, txid, seq
"""

HORIZON = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint + events_era()"  # none before it is under way
# Plans are kept, and one made while there are few events would go on to sort them when there are ten million.
BY_INDEX = (
    "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off;"
    " SET LOCAL plan_cache_mode = force_generic_plan"  # with filters it would be planned anew for each page
)
# Up to `$3` events are looked at; those that do not fit are not sent, but for the last, which says how far that was.
# Each partition has an index in this order: the rows of a page are read from these, and no others.
PAGE = f"""
    WITH seen AS MATERIALIZED (
        SELECT {COLUMNS}, txid, seq FROM events
         WHERE (txid, seq) {{beyond}} ($1, $2) AND txid < {HORIZON} ORDER BY {{order}} LIMIT $3
    ), fitting AS (
        SELECT *, ($4::text[] IS NULL OR type = ANY ($4)) AND ($5::text IS NULL OR tenant = $5)
               AND ($6::text[] IS NULL OR stream = ANY ($6))
               AND ($7::text IS NULL OR starts_with(campaign, $7)) AS fits,
               row_number() OVER (ORDER BY {{order}}) AS number, count(*) OVER () AS looked_at
          FROM seen
    )
    SELECT {COLUMNS}, txid, seq, fits, looked_at FROM fitting WHERE fits OR number = looked_at ORDER BY {{order}}
"""
AFTER = PAGE.format(beyond=">", order="txid, seq")
BEFORE = PAGE.format(beyond="<", order="txid DESC, seq DESC")
END = f"SELECT {HORIZON} - 1"
BEHIND = """
    SELECT (SELECT count(*) FROM (
                SELECT FROM events WHERE (txid, seq) > ($1, $2) ORDER BY txid, seq LIMIT $3) AS next) AS counted,
           first.at, (SELECT last_value FROM events_seq) - first.seq + 1 AS estimated
      FROM (SELECT) AS nothing LEFT JOIN LATERAL (
           SELECT at, seq FROM events WHERE (txid, seq) > ($1, $2) ORDER BY txid, seq LIMIT 1) AS first ON true
"""
EXACT = 1_000  # events counted one by one
# The transaction that accepted the last message before an id: whatever was appended later has no smaller number.
ACCEPTED_BEFORE = """
    SELECT txid FROM events WHERE type = 'message.accepted' AND n = 1 AND message_id = (
           SELECT max(message_id) FROM events WHERE message_id > 0 AND message_id < $1)
"""
ACCEPTED_FROM = """
    SELECT txid FROM events WHERE type = 'message.accepted' AND n = 1 AND message_id = (
           SELECT min(message_id) FROM events WHERE message_id >= $1)
"""
SET = """
    INSERT INTO followers (name, txid, seq) VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET txid = EXCLUDED.txid, seq = EXCLUDED.seq, moved_at = now()
"""
MOVE = """
    UPDATE followers SET txid = $4, seq = $5, moved_at = now()
     WHERE name = $1 AND txid = $2 AND seq = $3 RETURNING true
"""
LAST_SEQ = (1 << 63) - 1
LAST = Position((1 << 63) - 1, LAST_SEQ)  # behind all events there will ever be


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
        """All events of a message from `since` (its acceptance, which spares older partitions), oldest first.

        Those of one moment stand as they were appended: what follows from another behind it.
        """
        return [Event(**row) for row in await self._pool.fetch(OF_MESSAGE, message_id, since)]

    async def after(
        self,
        position: Position,
        *,
        limit: int = 1000,
        types: Sequence[str] | None = None,
        tenant: str | None = None,
        streams: Sequence[str] | None = None,
        campaigns: str | None = None,
    ) -> Page:
        """The events behind `position`, in order: of the next `limit` those that fit (None: any).

        `campaigns` is how the names of their campaigns begin.
        """
        return await self._page(AFTER, position, limit, types, tenant, streams, campaigns)

    async def before(
        self,
        position: Position,
        *,
        limit: int = 1000,
        types: Sequence[str] | None = None,
        tenant: str | None = None,
        streams: Sequence[str] | None = None,
    ) -> Page:
        """The events before `position`, the last one first: of these `limit` those that fit."""
        return await self._page(BEFORE, position, limit, types, tenant, streams, None)

    async def _page(self, statement: str, position: Position, limit: int, *filters: object) -> Page:
        async with in_order(self._pool) as connection:
            rows = await connection.fetch(statement, *position, limit, *filters)
        if not rows:
            return Page([], position, more=False)
        last = rows[-1]
        found = [recorded(row) for row in rows if row["fits"]]
        return Page(found, Position(last["txid"], last["seq"]), more=last["looked_at"] == limit)

    async def end(self) -> Position:
        """Behind all events so far; what is being written comes after it."""
        return Position(await self._pool.fetchval(END), LAST_SEQ)

    async def behind(self, position: Position) -> Lag:
        """What stands behind `position`, also what cannot be read yet since an older transaction is under way."""
        async with in_order(self._pool) as connection:
            row = await connection.fetchrow(BEHIND, *position, EXACT)
        assert row is not None
        counted = int(row["counted"])
        return Lag(counted if counted < EXACT else max(counted, int(row["estimated"])), row["at"])

    async def around(self, first_id: int, *, later: bool = False) -> Position:
        """A position before (`later`: behind) all events of the time that a message of this id would be made.

        It is that of a message accepted about then, so hand in an id of some minutes before (after).
        """
        txid = await self._pool.fetchval(ACCEPTED_FROM if later else ACCEPTED_BEFORE, first_id)
        if txid is None:
            return LAST if later else START
        return Position(txid, LAST_SEQ if later else 0)


@asynccontextmanager
async def in_order(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> "AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]":
    """A connection, in a transaction, for statements that read events by the index of their order."""
    async with pool.acquire() as connection, connection.transaction(readonly=True):
        await connection.execute(BY_INDEX)
        yield connection


def recorded(row: asyncpg.Record) -> Recorded:
    """Of a row that begins with `COLUMNS`, txid and seq."""
    *fields, txid, seq = tuple(row.values())[:11]
    return Recorded(Position(txid, seq), Event(*fields))


class FollowerStore:
    """How far the followers of events have come, by their names."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def position(self, name: str) -> Position | None:
        """Behind the last event that this follower is done with; None when it never followed."""
        row = await self._pool.fetchrow("SELECT txid, seq FROM followers WHERE name = $1", name)
        return None if row is None else Position(*row)

    async def all(self) -> list[Follower]:
        """Everybody who follows, or did and was not forgotten."""
        rows = await self._pool.fetch("SELECT name, txid, seq, moved_at FROM followers ORDER BY name")
        return [Follower(row["name"], Position(row["txid"], row["seq"]), row["moved_at"]) for row in rows]

    async def advance(
        self,
        name: str,
        position: Position,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None" = None,
    ) -> None:
        """Go on from here next time; in the caller's transaction, together with what the events led to."""
        await (connection or self._pool).execute(SET, name, *position)

    async def move(
        self,
        name: str,
        old: Position,
        new: Position,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None" = None,
    ) -> bool:
        """`advance`, if it still stands at `old`: False when somebody else has moved it."""
        return bool(await (connection or self._pool).fetchval(MOVE, name, *old, *new))

    async def forget(self, name: str) -> bool:
        """It does not follow any more. Whether it did."""
        return bool(await self._pool.fetchval("DELETE FROM followers WHERE name = $1 RETURNING true", name))
