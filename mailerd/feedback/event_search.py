"""Looking for events that are over: those of one tenant, as the outside sees them, in their order or backwards."""

from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from mailerd.events import COLUMNS, HORIZON, LAST, START, EventStore, Position, Recorded, in_order, recorded
from mailerd.feedback.facts import FactStore
from mailerd.feedback.names import OutsideEvent, fits, inside
from mailerd.queue.ids import first_id_at

LOOK_AT = 10_000  # events in one call,
STEP = 1_000  # of them in one statement
MESSAGES = 1_000  # of one address: the last ones
SLACK = timedelta(minutes=5)  # between clocks, and between a decision and its commit
MAX_ID = (1 << 63) - 1

# Where events are looked for. The first way reads the index of their order; the others are few, and are sorted.
ALL = """
    SELECT {columns}, txid, seq FROM events
     WHERE (txid, seq) {beyond} ($1, $2) AND txid < {horizon} ORDER BY {order} LIMIT $3
"""
OF_MESSAGE = """
    SELECT * FROM (SELECT {columns}, txid, seq FROM events WHERE message_id = $10 OFFSET 0) AS own
     WHERE (txid, seq) {beyond} ($1, $2) AND txid < {horizon} ORDER BY {order} LIMIT $3
"""
OF_ADDRESS = """
    SELECT * FROM (
        SELECT {columns}, txid, seq FROM events
         WHERE address = $10 AND message_id = ANY (ARRAY(
               SELECT message_id FROM events WHERE type = 'message.accepted' AND address = $10
                ORDER BY message_id DESC LIMIT {messages}))
        UNION ALL
        SELECT {columns}, txid, seq FROM events WHERE address = $10 AND message_id = 0
        OFFSET 0) AS own
     WHERE (txid, seq) {beyond} ($1, $2) AND txid < {horizon} ORDER BY {order} LIMIT $3
"""
PAGE = """
    WITH seen AS MATERIALIZED ({source}), fitting AS (
        SELECT *, ($4::text IS NULL OR tenant = $4) AND type = ANY ($5::text[]) AND ($6::text IS NULL OR stream = $6)
               AND ($7::text IS NULL OR campaign = $7) AND ($8::timestamptz IS NULL OR at >= $8)
               AND ($9::timestamptz IS NULL OR at < $9) AND {own} AS fits,
               row_number() OVER (ORDER BY {order}) AS number, count(*) OVER () AS looked_at
          FROM seen
    )
    SELECT {columns}, txid, seq, fits, looked_at FROM fitting WHERE fits OR number = looked_at ORDER BY {order}
"""


class EventFilters(Struct, frozen=True, kw_only=True):
    """`types` are outside names and patterns of them, none: all. `since` is inclusive, `until` exclusive."""

    tenant: str | None  # None: all of them, which is for operators
    types: tuple[str, ...] = ()
    message_id: int | None = None
    address: str | None = None
    stream: str | None = None
    campaign: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = True


class Found(NamedTuple):
    """`position` is where to go on; `more`: at once, since not all was looked at."""

    events: list[OutsideEvent]
    position: Position
    more: bool


class EventSearchStore:
    """Searches events. One call looks at a bounded number of them, so a page may be short, or empty, and not the last.

    Only transactions that are over are seen, and everybody sees them in the same order: who goes on from `position`,
    oldest first, misses nothing that was or will be appended.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._events = EventStore(pool)
        self._facts = FactStore(pool)

    async def search(self, filters: EventFilters, limit: int, position: Position | None = None) -> Found:
        """Up to `limit` events that fit, from `position` (None: the first, or with `newest_first` the last)."""
        begin, end = await self._bounds(filters)
        position = begin if position is None else _further(position, begin, filters)
        found: list[OutsideEvent] = []
        for _ in range(LOOK_AT // STEP):
            rows = await self._rows(filters, position)
            for each, told in await self._told([recorded(row) for row in rows if row["fits"]], filters):
                if len(found) == limit:
                    return Found(found, position, more=True)
                position = each.position
                found.append(told)
            if rows:
                position = recorded(rows[-1]).position
            if not rows or rows[-1]["looked_at"] < STEP or position == _further(position, end, filters):
                return Found(found, position, more=False)
        return Found(found, position, more=True)

    async def _rows(self, filters: EventFilters, position: Position) -> list[asyncpg.Record]:
        own = filters.address if filters.address is not None and filters.message_id is None else filters.message_id
        parameters = [
            *position,
            STEP,
            filters.tenant,
            inside(filters.types),
            filters.stream,
            filters.campaign,
            filters.since,
            filters.until,
            *(() if own is None else (own,)),
            *((filters.address,) if filters.address is not None and filters.message_id is not None else ()),
        ]
        async with in_order(self._pool) as connection:
            return await connection.fetch(_statement(filters), *parameters)

    async def _told(self, events: list[Recorded], filters: EventFilters) -> list[tuple[Recorded, OutsideEvent]]:
        told = await self._facts.told(events)
        # All that are found have names outside, so both lists have the same length.
        return [pair for pair in zip(events, told, strict=True) if fits(pair[1].type, filters.types)]

    async def _bounds(self, filters: EventFilters) -> tuple[Position, Position]:
        """Where to begin, and where nothing more can fit."""
        first, last = START, LAST
        if filters.since is not None:
            first = await self._events.around(_id_at(filters.since - SLACK))
        if filters.until is not None:
            last = await self._events.around(_id_at(filters.until + SLACK), later=True)
        return (last, first) if filters.newest_first else (first, last)


def _statement(filters: EventFilters) -> str:
    order = "txid DESC, seq DESC" if filters.newest_first else "txid, seq"
    source, own = ALL, "true"
    if filters.message_id is not None:
        source, own = OF_MESSAGE, "true" if filters.address is None else "address = $11"
    elif filters.address is not None:
        source = OF_ADDRESS
    filled = source.format(
        columns=COLUMNS,
        beyond="<" if filters.newest_first else ">",
        horizon=HORIZON,
        order=order,
        messages=MESSAGES,
    )
    return PAGE.format(source=filled, own=own, order=order, columns=COLUMNS)


def _further(position: Position, other: Position, filters: EventFilters) -> Position:
    """Of two the one that is reached later."""
    return min(position, other) if filters.newest_first else max(position, other)


def _id_at(at: datetime) -> int:
    return max(0, min(first_id_at(int(at.timestamp() * 1000)), MAX_ID))
