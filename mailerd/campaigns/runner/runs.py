"""Whose turn it is: the campaigns that have begun, as all workers of all nodes share them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from mailerd.db import Connection, Pool

# One look, mostly at nothing, says what there is to do.
WORK = """
    SELECT (SELECT min(next_at) FROM campaign_runs WHERE state = 'running' AND waits) AS turn_at,
           EXISTS (SELECT FROM campaign_runs WHERE NOT written AND state <> 'ended') AS unwritten,
           EXISTS (SELECT FROM campaign_runs WHERE state = 'ended' AND waits) AS left_over
"""
TURNS = """
    SELECT r.campaign_id, r.tenant, r.version_id, r.written, r.next_at, r.started_at, c.revision
      FROM campaign_runs AS r JOIN campaigns AS c ON c.id = r.campaign_id
     WHERE r.state = 'running' AND r.waits AND r.next_at <= $1 AND ($3::bigint IS NULL OR r.campaign_id = $3)
       AND r.campaign_id <> ALL ($4::bigint[])
     ORDER BY r.next_at LIMIT $2 FOR UPDATE OF r SKIP LOCKED
"""
MOVE = """
    UPDATE campaign_runs AS r SET next_at = moved.next_at, waits = moved.waits, moved_at = $4
      FROM unnest((SELECT $1::bigint[]), (SELECT $2::timestamptz[]), (SELECT $3::bool[]))
        AS moved (campaign_id, next_at, waits)
     WHERE r.campaign_id = moved.campaign_id
"""
PUT_OFF = "UPDATE campaign_runs SET next_at = GREATEST(next_at, $2), moved_at = $3 WHERE campaign_id = $1"
# What was put off by a clock that was ahead: else that campaign would wait until the clock is there again.
NEARER = """
    UPDATE campaign_runs SET next_at = $1, moved_at = $1
     WHERE campaign_id IN (SELECT campaign_id FROM campaign_runs
                            WHERE state = 'running' AND waits AND next_at > $1 AND moved_at > $2
                              FOR UPDATE SKIP LOCKED)
"""
AHEAD = timedelta(minutes=1)  # that clocks of nodes may be apart
# What has nothing yet comes first, so that its first mail leaves soon; of each tenant the first, then the second.
UNWRITTEN = """
    SELECT campaign_id, tenant, written_to > 0 AS begun FROM campaign_runs WHERE NOT written AND state <> 'ended'
     ORDER BY begun, row_number() OVER (PARTITION BY tenant, written_to > 0 ORDER BY campaign_id), campaign_id LIMIT $1
"""
# The lock of a transaction, and not that of the row: rows are handed over while others are written.
WRITER = "SELECT pg_try_advisory_xact_lock($1, hashint8($2::bigint))"
LOCKS = 0x6D6C6467  # "mldg": the first number of our advisory locks
TO_WRITE = """
    SELECT campaign_id, tenant, version_id, written_to, started_at FROM campaign_runs
     WHERE campaign_id = $1 AND NOT written AND state <> 'ended'
"""
WROTE = """
    UPDATE campaign_runs SET written_to = $3, written = $4, total = total + $5, waits = true
     WHERE campaign_id = $1 AND written_to = $2 AND NOT written AND state <> 'ended' RETURNING true
"""
LEFT = """
    SELECT campaign_id, tenant FROM campaign_runs WHERE state = 'ended' AND waits
     ORDER BY campaign_id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
CLEARED = "UPDATE campaign_runs SET waits = false WHERE campaign_id = $1"


class Work(NamedTuple):
    """What there is to do: the next turn is then (None: there is none), audiences to write, rows to cancel."""

    turn_at: datetime | None
    unwritten: bool
    left_over: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """A campaign whose turn it is, locked; `revision` is that of the campaign, which changes with what it says."""

    campaign_id: int
    tenant: str
    version_id: int
    written: bool
    next_at: datetime
    started_at: datetime
    revision: int


class Lacking(NamedTuple):
    """A campaign whose ledger is not written to the end; `begun`: some of it is."""

    campaign_id: int
    tenant: str
    begun: bool


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A campaign whose ledger is written up to that contact."""

    campaign_id: int
    tenant: str
    version_id: int
    written_to: int
    started_at: datetime


class Moved(NamedTuple):
    """When a campaign has its next turn; `waits` False: not before something is written, or never."""

    campaign_id: int
    next_at: datetime
    waits: bool = True


class RunStore:
    """The table `campaign_runs`, for those who let campaigns go on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def work(self) -> Work:
        """What there is to do for anybody."""
        row = await self._pool.fetchrow(WORK)
        assert row is not None
        return Work(*row)

    async def turns(
        self, connection: Connection, now: datetime, *, most: int, only: int | None = None, but: Sequence[int] = ()
    ) -> list[Turn]:
        """Up to so many campaigns whose turn it is, those first that have waited longest; nobody else has them.

        `only`: that one or none. `but`: not these.
        """
        return [Turn(*row) for row in await connection.fetch(TURNS, now, most, only, but)]

    async def move(self, connection: Connection, moved: Sequence[Moved], now: datetime) -> None:
        """These have had their turn."""
        await connection.execute(MOVE, *zip(*moved, strict=True), now)

    async def put_off(self, campaign_id: int, now: datetime, time: timedelta) -> None:
        """No turn for that time."""
        await self._pool.execute(PUT_OFF, campaign_id, now + time, now)

    async def set_right(self, now: datetime) -> None:
        """Those have their turn whose last one was, as their time says, later than it is: clocks may be put back."""
        await self._pool.execute(NEARER, now, now + AHEAD)

    async def unwritten(self, most: int) -> list[Lacking]:
        """Campaigns whose ledger is not written to the end, those first that have no row yet, tenants in turn."""
        return [Lacking(*row) for row in await self._pool.fetch(UNWRITTEN, most)]

    async def to_write(self, connection: Connection, campaign_id: int) -> Unwritten | None:
        """Where to go on; None: somebody else writes it at this moment, or it is written, or over."""
        if not await connection.fetchval(WRITER, LOCKS, campaign_id):
            return None
        row = await connection.fetchrow(TO_WRITE, campaign_id)
        return None if row is None else Unwritten(*row)

    async def wrote(self, connection: Connection, run: Unwritten, written_to: int, rows: int, *, all_: bool) -> bool:
        """So many rows more, up to that contact. False: it was ended meanwhile, and nothing must be committed."""
        return bool(await connection.fetchval(WROTE, run.campaign_id, run.written_to, written_to, all_, rows))

    async def left_over(self, connection: Connection) -> tuple[int, str] | None:
        """A campaign that is over and may have rows that wait, and its tenant; nobody else has it."""
        row = await connection.fetchrow(LEFT)
        return None if row is None else (row["campaign_id"], row["tenant"])

    async def cleared(self, connection: Connection, campaign_id: int) -> None:
        """It has none."""
        await connection.execute(CLEARED, campaign_id)
