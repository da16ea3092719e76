"""What was told and what is still to be told, in the database."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg

from mailerd.db import Connection, Pool
from mailerd.events import COLUMNS as EVENT
from mailerd.events import HORIZON, Event, EventStore, Page, Position, Recorded, recorded
from mailerd.feedback.webhooks.store import REPLAY_COLUMNS, replay_of
from mailerd.feedback.webhooks.values import (
    DISABLED_TYPE,
    WEBHOOK,
    Attempt,
    Outcome,
    Pending,
    Replay,
    Result,
    Told,
    format_id,
)
from mailerd.feedback.webhooks.window import Changes

LOCK = 0x776C6F67  # of making and dropping partitions
# Who records and who reads the log waits behind somebody who waits for it: not for long, and rather more often.
LOCK_TIMEOUT = "200ms"
TRIES = 20
TRY_AGAIN = 1.0  # seconds
DAYS = 2  # of partitions kept ready: today and tomorrow

LOG_COLUMNS = (
    "at", "webhook_id", "key", "txids", "seqs", "types", "subjects", "attempt", "outcome", "status", "error", "answer",
    "took", "next_at",
)  # fmt: skip
PENDING_COLUMNS = "webhook_id, id, key, txids, seqs, types, subjects, attempts, due_at, created_at"
KEEP = f"""
    INSERT INTO webhook_pending ({PENDING_COLUMNS})
    SELECT $1::bigint, $2::bigint, $3::text, $4::bigint[], $5::bigint[], $6::text[], $7::bigint[], $8::int,
           $9::timestamptz, $10::timestamptz
     WHERE EXISTS (SELECT FROM webhooks WHERE id = $1)
    ON CONFLICT (webhook_id, id) DO UPDATE SET attempts = EXCLUDED.attempts, due_at = EXCLUDED.due_at
"""
DONE = """
    DELETE FROM webhook_pending
     WHERE (webhook_id, id) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[]))
"""
# Never backwards: what two tellers tell for a moment, they tell twice.
MOVE = """
    UPDATE webhooks AS w
       SET txid = CASE WHEN ahead THEN moved.txid ELSE w.txid END, seq = CASE WHEN ahead THEN moved.seq ELSE w.seq END,
           failing_since = moved.failing_since
      FROM (SELECT m.*, (m.txid, m.seq) > (old.txid, old.seq) AS ahead
              FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::timestamptz[])
                   AS m (id, txid, seq, failing_since)
              JOIN webhooks AS old USING (id)) AS moved
     WHERE w.id = moved.id
"""
MOVE_REPLAY = "UPDATE webhook_replays SET txid = $2, seq = $3, told = $4, finished_at = $5 WHERE id = $1"
DISABLE = """
    UPDATE webhooks SET disabled_at = $2, disabled_why = $3, version = version + 1
     WHERE id = $1 AND disabled_at IS NULL
    RETURNING tenant, url, failing_since
"""
PENDING = f"SELECT {PENDING_COLUMNS} FROM webhook_pending WHERE webhook_id = ANY ($1) ORDER BY id"
ORPHANS = "DELETE FROM webhook_pending AS p WHERE NOT EXISTS (SELECT FROM webhooks AS w WHERE w.id = p.webhook_id)"
REPLAYS = f"""
    SELECT DISTINCT ON (webhook_id) {REPLAY_COLUMNS} FROM webhook_replays
     WHERE finished_at IS NULL AND webhook_id = ANY ($1) ORDER BY webhook_id, id
"""
LOG = f"""
    SELECT id, {", ".join(LOG_COLUMNS)} FROM webhook_log
     WHERE webhook_id = $1 AND id < $2 AND ($3::text IS NULL OR outcome = $3) ORDER BY id DESC LIMIT $4
"""
LOGGED = f"SELECT id, {', '.join(LOG_COLUMNS)} FROM webhook_log WHERE webhook_id = $1 AND id = $2"
EVENTS = f"""
    SELECT {EVENT}, txid, seq FROM events JOIN unnest($1::bigint[], $2::bigint[]) AS wanted (txid, seq)
     USING (txid, seq) ORDER BY txid, seq
"""
# Up to `$5` events are looked at; those of other tenants and times are not sent, but for the last.
RANGE = f"""
    WITH seen AS MATERIALIZED (
        SELECT {EVENT}, txid, seq FROM events
         WHERE (txid, seq) > ($1, $2) AND txid < {HORIZON} ORDER BY txid, seq LIMIT $5
    ), fitting AS (
        SELECT *, tenant = $3 AND at >= $4 AND at < $6 AS fits, at > $6 + interval '10 minutes' AS past,
               row_number() OVER (ORDER BY txid, seq) AS number, count(*) OVER () AS looked_at
          FROM seen
    )
    SELECT {EVENT}, txid, seq, fits, past, looked_at FROM fitting WHERE fits OR number = looked_at ORDER BY txid, seq
"""
PARTITIONS = "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'webhook_log'::regclass"


class RecordStore:
    """The record of telling: what is recorded together holds together."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._events = EventStore(pool)

    async def record(self, all_changes: Sequence[Changes], now: datetime) -> None:
        """In one transaction: attempts, what is pending, and how far each endpoint has come."""
        kept = [
            _pending_row(changes.webhook_id, pending)
            for changes in all_changes
            for pending in changes.pending.values()
            if pending is not None
        ]
        done = [
            (changes.webhook_id, id_)
            for changes in all_changes
            for id_, pending in changes.pending.items()
            if pending is None
        ]
        attempts = [_log_row(changes.webhook_id, attempt) for changes in all_changes for attempt in changes.attempts]
        async with self._pool.acquire() as connection, connection.transaction():
            if attempts:
                await connection.copy_records_to_table("webhook_log", records=attempts, columns=LOG_COLUMNS)
            if kept:
                await connection.executemany(KEEP, kept)
            if done:
                await connection.execute(DONE, *map(list, zip(*done, strict=True)))
            await connection.execute(
                MOVE,
                [changes.webhook_id for changes in all_changes],
                [changes.position.txid for changes in all_changes],
                [changes.position.seq for changes in all_changes],
                [changes.failing_since for changes in all_changes],
            )
            for changes in all_changes:
                if (replay := changes.replay) is not None:
                    await connection.execute(MOVE_REPLAY, replay.id, *replay.position, replay.told, replay.finished_at)
                if changes.disable:
                    await self._disable(connection, changes, now)

    async def _disable(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", changes: Changes, now: datetime
    ) -> None:
        row = await connection.fetchrow(DISABLE, changes.webhook_id, now, changes.disable)
        if row is None:
            return
        data = {
            "id": format_id(WEBHOOK, changes.webhook_id),
            "url": row["url"],
            "why": changes.disable,
            "failing_since": row["failing_since"].isoformat() if row["failing_since"] else None,
        }
        await self._events.append(connection, [Event(now, DISABLED_TYPE, 0, 0, "", row["tenant"], data)])

    async def pending(self, webhook_ids: Sequence[int]) -> dict[int, list[Pending]]:
        """By endpoint, in the order of telling."""
        found: dict[int, list[Pending]] = {}
        for row in await self._pool.fetch(PENDING, list(webhook_ids)):
            found.setdefault(row["webhook_id"], []).append(_pending_of(row))
        return found

    async def replays(self, webhook_ids: Sequence[int]) -> dict[int, Replay]:
        """By endpoint, the oldest that is not finished."""
        rows = await self._pool.fetch(REPLAYS, list(webhook_ids))
        return {row["webhook_id"]: replay_of(row) for row in rows}

    async def log(self, webhook_id: int, *, before: int, outcome: str | None, limit: int) -> list[Attempt]:
        """Attempts with ids below `before`, the newest first."""
        return [_attempt_of(row) for row in await self._pool.fetch(LOG, webhook_id, before, outcome, limit)]

    async def logged(self, webhook_id: int, id_: int) -> Attempt | None:
        row = await self._pool.fetchrow(LOGGED, webhook_id, id_)
        return None if row is None else _attempt_of(row)

    # events

    async def events(self, positions: Sequence[Position]) -> list[Recorded]:
        """Those of them that are still kept, in order."""
        rows = await self._pool.fetch(
            EVENTS, [position.txid for position in positions], [position.seq for position in positions]
        )
        return [recorded(row) for row in rows]

    async def between(self, position: Position, *, tenant: str, since: datetime, until: datetime, limit: int) -> Page:
        """Events of a tenant and a range of time behind `position`; of the next `limit` those that fit."""
        rows = await self._pool.fetch(RANGE, *position, tenant, since, limit, until)
        if not rows:
            return Page([], position, more=False)
        last = rows[-1]
        more = last["looked_at"] == limit and not last["past"]
        return Page([recorded(row) for row in rows if row["fits"]], Position(last["txid"], last["seq"]), more)

    # upkeep

    async def tidy(self, now: datetime, keep: timedelta, *, tries: int = TRIES) -> None:
        """Have a partition of the log for today and tomorrow, drop those that are over, forget what nobody owns.

        Nobody who records waits for this for longer than `LOCK_TIMEOUT`; raises `LockNotAvailableError` when somebody
        who reads does not end. What is recorded of a day that has no partition yet moves into it later.
        """
        today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        async with self._pool.acquire() as connection:
            there = {row["relname"] for row in await connection.fetch(PARTITIONS)}
            for first in (today + timedelta(days=number) for number in range(DAYS)):
                if (name := _partition(first)) not in there:
                    await _soon(connection, partial(_make_partition, connection, name, first), tries)
            oldest = _partition(now - keep)
            for name in sorted(there - {"webhook_log_rest"}):
                if name < oldest:
                    await _soon(connection, partial(_drop, connection, name), tries)
            await _soon(connection, partial(_forget, connection, now - keep), tries)


def _partition(day: datetime) -> str:
    return f"webhook_log_{day.astimezone(UTC):%Y_%m_%d}"


async def _soon(connection: Connection, change: Callable[[], Awaitable[None]], tries: int) -> None:
    """Make a change of the log in a transaction that does not wait long for its locks, but is tried again."""
    for left in reversed(range(tries)):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
                return await change()
        except asyncpg.LockNotAvailableError:
            if not left:
                raise
        await asyncio.sleep(TRY_AGAIN)
    return None


async def _make_partition(connection: Connection, name: str, first: datetime) -> None:
    if await connection.fetchval("SELECT to_regclass($1)", name) is not None:  # another node was faster
        return
    end = first + timedelta(days=1)
    await connection.execute("LOCK TABLE webhook_log_rest IN ACCESS EXCLUSIVE MODE")  # nothing falls in while we move
    await connection.execute(f"CREATE TABLE {name} (LIKE webhook_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    await connection.execute(
        f"WITH moved AS (DELETE FROM webhook_log_rest WHERE at >= $1 AND at < $2 RETURNING *) "
        f"INSERT INTO {name} SELECT * FROM moved",
        first,
        end,
    )
    await connection.execute(
        f"ALTER TABLE webhook_log ATTACH PARTITION {name} "
        f"FOR VALUES FROM ('{first.isoformat()}') TO ('{end.isoformat()}')"
    )


async def _drop(connection: Connection, name: str) -> None:
    await connection.execute(f"DROP TABLE IF EXISTS {name}")


async def _forget(connection: Connection, before: datetime) -> None:
    await connection.execute("DELETE FROM webhook_log_rest WHERE at < $1", before)
    await connection.execute(ORPHANS)


def _pending_row(webhook_id: int, pending: Pending) -> tuple[object, ...]:
    return (webhook_id, pending.id, *_told_row(pending.told), pending.attempts, pending.due_at, pending.created_at)


def _told_row(told: Told) -> tuple[object, ...]:
    return (
        told.key,
        [position.txid for position in told.positions],
        [position.seq for position in told.positions],
        list(told.types),
        list(told.subjects),
    )


def _told_of(row: asyncpg.Record) -> Told:
    return Told(
        key=row["key"],
        positions=tuple(map(Position, row["txids"], row["seqs"])),
        types=tuple(row["types"]),
        subjects=tuple(row["subjects"]),
    )


def _pending_of(row: asyncpg.Record) -> Pending:
    return Pending(
        id=row["id"],
        told=_told_of(row),
        attempts=row["attempts"],
        due_at=row["due_at"],
        created_at=row["created_at"],
    )


def _log_row(webhook_id: int, attempt: Attempt) -> tuple[object, ...]:
    outcome = attempt.outcome
    return (
        attempt.at,
        webhook_id,
        *_told_row(attempt.told),
        attempt.number,
        attempt.result.value,
        outcome.status,
        outcome.error,
        outcome.answer,
        round(outcome.took * 1000),
        attempt.next_at,
    )


def _attempt_of(row: asyncpg.Record) -> Attempt:
    return Attempt(
        id=row["id"],
        at=row["at"],
        told=_told_of(row),
        number=row["attempt"],
        result=Result(row["outcome"]),
        outcome=Outcome(row["status"], row["error"], row["answer"], row["took"] / 1000),
        next_at=row["next_at"],
    )
