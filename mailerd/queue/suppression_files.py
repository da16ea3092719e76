"""Suppressions by the million: in from a file and out to one, a part at a time, so that nobody waits for the whole.

What is exported is imported into the same scopes: what binds all tenants has `*` for a tenant.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import asyncpg
import structlog

from mailerd import events
from mailerd.queue.commit import LOST
from mailerd.queue.ids import IMPORT, format_id
from mailerd.queue.suppression import GRACE, normalised_topic
from mailerd.queue.suppression_csv import EVERYBODY, BadRow, NotCsvError, Row, read_rows

log = structlog.get_logger()

PART = 20_000  # lines of one transaction: a long one would keep followers of events waiting
AT_ONCE = 2  # imports of one process: each has its file in memory
MOST_PROBLEMS = 1_000  # refused lines that are kept
FRESH = 60  # seconds without a sign of life, and an import was cut off
AHEAD = timedelta(days=1)  # a time without a zone may be a local one
MOST_SHOWN = 100  # imports that are listed

MAKE_INCOMING = """
    CREATE TEMP TABLE incoming (
        address text, tenant text, stream text, topic text, reason text, source text, detail text,
        created_at timestamptz, expires_at timestamptz
    ) ON COMMIT DROP
"""
INCOMING = ("address", "tenant", "stream", "topic", "reason", "source", "detail", "created_at", "expires_at")
# One that is over is none: it makes room for a new one.
FORGET_OVER = """
    DELETE FROM suppressions AS old USING incoming AS new
     WHERE old.address = new.address AND old.tenant = new.tenant AND old.stream = new.stream
       AND old.topic = new.topic AND old.reason = new.reason AND old.expires_at <= $1
"""
# In the order in which all lock; of several ends the latest counts, none at all before any.
MERGE = """
    WITH merged AS (
        INSERT INTO suppressions (address, tenant, stream, topic, reason, source, detail, created_at, expires_at)
        SELECT DISTINCT ON (address, tenant, stream, topic, reason) * FROM incoming
         ORDER BY address, tenant, stream, topic, reason, expires_at DESC NULLS FIRST
        ON CONFLICT (address, tenant, stream, topic, reason) DO UPDATE SET expires_at = EXCLUDED.expires_at
         WHERE suppressions.expires_at < EXCLUDED.expires_at
            OR (EXCLUDED.expires_at IS NULL AND suppressions.expires_at IS NOT NULL)
     RETURNING xmax = 0 AS added
    )
    SELECT count(*) FILTER (WHERE added) FROM merged
"""
EXPORT = f"""
    SELECT 0 AS line, address, CASE tenant WHEN '' THEN '{EVERYBODY}' ELSE tenant END AS tenant,
           stream, topic, reason, source, detail, created_at, expires_at, id
      FROM suppressions
     WHERE id > $1 AND ($2::text IS NULL OR suppressions.tenant = $2) AND ($3::text IS NULL OR reason = $3)
       AND (expires_at IS NULL OR expires_at > $4)
     ORDER BY id LIMIT $5
"""
START = "INSERT INTO suppression_imports (tenant, actor, bytes) VALUES ($1, $2, $3) RETURNING id"
MOVE = """
    UPDATE suppression_imports
       SET state = $2, read = $3, added = $4, refused = $5, problems = $6, error = $7, moved_at = now()
     WHERE id = $1
"""
IMPORTS = f"""
    SELECT id, read, added, read - added - refused AS there, refused, problems, error, bytes, started_at, moved_at,
           CASE WHEN state = 'running' AND moved_at < now() - interval '{FRESH} seconds' THEN 'failed' ELSE state END
           AS state
      FROM suppression_imports WHERE tenant = $1
"""
SHOW = f"{IMPORTS} AND id = $2"
LATEST = f"{IMPORTS} ORDER BY id DESC LIMIT {MOST_SHOWN}"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for lines that do not say. `tenant` "" is all tenants; `bound`: no line may name another one.

    `streams` are those that there are: a line that names another one would bind no mail.
    """

    tenant: str
    now: datetime
    streams: Collection[str]
    reason: str = "manual"
    source: str = "import"
    stream: str = ""
    topic: str = ""
    bound: bool = True


@dataclass(slots=True)
class Progress:
    """How far an import has come."""

    read: int = 0
    added: int = 0
    refused: int = 0
    problems: list[BadRow] = field(default_factory=list)

    @property
    def there(self) -> int:
        """Lines whose entries were there before, or stand in the file twice."""
        return self.read - self.added - self.refused


class SuppressionFileStore:
    """Imports and exports."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._running: set[asyncio.Task[None]] = set()
        self._starting = 0

    async def import_rows(self, rows: Iterator[Row | BadRow], defaults: Defaults) -> AsyncGenerator[Progress, None]:
        """Add what is in the file; the same file again adds nothing. Yields after every part, which is durable then.

        What was there stays: no line lifts a suppression, or makes one end sooner. Raises what reading raises.
        """
        progress = Progress()
        while part := await asyncio.to_thread(_part, rows, defaults):
            records, bad = part
            if records:
                progress.added += await self._add(records, defaults.now)
            progress.read += len(records) + len(bad)
            progress.refused += len(bad)
            progress.problems += bad[: MOST_PROBLEMS - len(progress.problems)]
            yield progress

    async def _add(self, records: list[tuple[Any, ...]], now: datetime) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(MAKE_INCOMING)
            await connection.copy_records_to_table("incoming", records=records, columns=list(INCOMING))
            await connection.execute(FORGET_OVER, now, timeout=None)
            return int(await connection.fetchval(MERGE, timeout=None))

    async def export(self, tenant: str | None, *, reason: str | None, now: datetime) -> AsyncIterator[list[Row]]:
        """All that hold, of one tenant (None: everybody's), in parts, oldest first."""
        last = 0
        while rows := await self._pool.fetch(EXPORT, last, tenant, reason, now, PART):
            last = rows[-1]["id"]
            yield [Row(*tuple(row.values())[:-1]) for row in rows]

    # what the API was sent

    async def start(self, text: bytes, defaults: Defaults, actor: str) -> int | None:
        """Begin to import a file, and go on beside everything else; the number of the import.

        None when as many as can be are under way. At its end stands one event suppression.imported, with the counts;
        the entries have none of their own.
        """
        if len(self._running) + self._starting >= AT_ONCE:
            return None
        self._starting += 1
        try:
            id_ = int(await self._pool.fetchval(START, defaults.tenant, actor, len(text)))
        finally:
            self._starting -= 1
        rows = read_rows(io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", newline=""))
        task = asyncio.create_task(self._guarded(id_, rows, defaults), name=f"import {id_}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return id_

    async def stop(self) -> None:
        """What is under way ends where it is, and is noted as cut off."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _guarded(self, id_: int, rows: Iterator[Row | BadRow], defaults: Defaults) -> None:
        try:
            progress = await self._carry_out(id_, rows, defaults)
        except NotCsvError as error:
            log.info("import.refused", number=id_, reason=str(error))
        except LOST as error:
            log.warning("import.interrupted", number=id_, error=str(error))
        except Exception:
            log.exception("import.failed", number=id_)
        else:
            log.info("import.done", number=id_, read=progress.read, added=progress.added, refused=progress.refused)

    async def _carry_out(self, id_: int, rows: Iterator[Row | BadRow], defaults: Defaults) -> Progress:
        progress = Progress()
        try:
            async with aclosing(self.import_rows(rows, defaults)) as parts:
                async for progress in parts:
                    await self._note(id_, "running", progress)
        except BaseException as error:
            text = str(error) if isinstance(error, NotCsvError) else "cut off: send it again, nothing is added twice"
            await self._note(id_, "failed", progress, text[:500])
            raise
        await asyncio.sleep(GRACE)  # so that all of it holds when we say so
        fact = {
            "import": format_id(IMPORT, id_),
            "read": progress.read,
            "added": progress.added,
            "there": progress.there,
            "refused": progress.refused,
        }
        event = events.Event(defaults.now, "suppression.imported", 0, 0, "", defaults.tenant, fact)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(events.APPEND, *events.parameters([event]))
            await self._note(id_, "done", progress, connection=connection)
        return progress

    async def _note(
        self,
        id_: int,
        state: str,
        progress: Progress,
        error: str = "",
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None" = None,
    ) -> None:
        problems = [{"line": bad.line, "text": bad.text, "problem": bad.problem} for bad in progress.problems]
        await (connection or self._pool).execute(
            MOVE, id_, state, progress.read, progress.added, progress.refused, problems, error
        )

    async def progress(self, id_: int, tenant: str) -> asyncpg.Record | None:
        """The import of that number, if it is this tenant's. One that does not move any more has failed."""
        return await self._pool.fetchrow(SHOW, tenant, id_)

    async def latest(self, tenant: str) -> list[asyncpg.Record]:
        """The last hundred imports of a tenant, newest first."""
        return await self._pool.fetch(LATEST, tenant)


def _part(rows: Iterator[Row | BadRow], defaults: Defaults) -> tuple[list[tuple[Any, ...]], list[BadRow]] | None:
    records: list[tuple[Any, ...]] = []
    bad: list[BadRow] = []
    for row in islice(rows, PART):
        if isinstance(row, BadRow):
            bad.append(row)
        elif problem := _problem(row, defaults):
            bad.append(BadRow(row.line, row.address, problem))
        else:
            records.append(_record(row, defaults))
    return (records, bad) if records or bad else None


def _problem(row: Row, defaults: Defaults) -> str:
    """Why a line that can be read is not taken, "" when it is."""
    if defaults.bound and row.tenant == EVERYBODY:
        return f"tenant {EVERYBODY} binds all tenants, which only operators may: mailerd suppressions import"
    if defaults.bound and row.tenant not in ("", defaults.tenant):
        return f"tenant {row.tenant!r} is not yours"
    if row.stream and row.stream not in defaults.streams:
        return f"there is no stream {row.stream}; known: {', '.join(sorted(defaults.streams))}"
    if row.created_at is not None and row.created_at > defaults.now + AHEAD:
        return f"created_at {row.created_at:%Y-%m-%d} is in the future"
    if row.expires_at is not None and row.expires_at <= defaults.now:
        return f"expires_at {row.expires_at:%Y-%m-%d} is over: it would hold for nothing"
    return ""


def _record(row: Row, defaults: Defaults) -> tuple[Any, ...]:
    return (
        row.address,
        "" if row.tenant == EVERYBODY else row.tenant or defaults.tenant,
        row.stream or defaults.stream,
        normalised_topic(row.topic or defaults.topic),
        row.reason or defaults.reason,
        row.source or defaults.source,
        row.detail,
        min(row.created_at or defaults.now, defaults.now),
        row.expires_at,
    )
