"""Imports as they are kept: the file in parts, what was asked, how far it is, and the rows that were refused."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from mailerd.campaigns.contacts.imports.values import Counts, Mode, Position, RefusedRow, Settings, State
from mailerd.db import Connection, Pool
from mailerd.queue.ids import CONTACT_IMPORT, format_id

PART = 512 * 1024  # bytes of all parts of a file but the last: what one transaction imports
FORSAKEN = timedelta(days=1)  # a file that is being received for so long is not any more
PAGE = 5_000  # refused rows read at a time
KEPT = timedelta(days=30)  # after its end, refused rows of an import: there are addresses in them
SWEPT = 200  # parts, or refused rows, deleted at a time

COLUMNS = """
    id, tenant, state, mode, dry_run, list_id, settings, bytes, bytes_done, position, rows, created, updated, unchanged,
    skipped, refused, error, created_by, created_at, finished_at
"""
BEGIN = f"""
    INSERT INTO contact_imports (tenant, mode, dry_run, list_id, settings, created_by)
    VALUES ($1, $2, $3, $4, $5, $6) RETURNING {COLUMNS}
"""
ADD_PART = """
    WITH open AS (SELECT id FROM contact_imports WHERE id = $1 AND state = 'receiving' FOR UPDATE)
    INSERT INTO contact_import_parts (import_id, n, bytes) SELECT id, $2, $3 FROM open RETURNING true
"""
RECEIVED = f"""
    UPDATE contact_imports SET state = 'processing', bytes = $2, settings = $3, position = $4
     WHERE id = $1 AND state = 'receiving' RETURNING {COLUMNS}
"""
FORGET = "DELETE FROM contact_imports WHERE id = $1 AND state = 'receiving'"
SHOW = f"SELECT {COLUMNS} FROM contact_imports WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)"
PAGE_OF = f"""
    SELECT {COLUMNS} FROM contact_imports
     WHERE ($1::text IS NULL OR tenant = $1) AND id < $2 AND state <> 'receiving' ORDER BY id DESC LIMIT $3
"""
CANCEL = f"""
    UPDATE contact_imports SET state = 'cancelled', finished_at = now()
     WHERE id = $1 AND ($2::text IS NULL OR tenant = $2) AND state IN ('receiving', 'processing') RETURNING {COLUMNS}
"""
PART_OF = "SELECT bytes FROM contact_import_parts WHERE import_id = $1 AND n = $2"
DROP_ERRORS = """
    DELETE FROM contact_import_errors WHERE (import_id, line) IN (
           SELECT refused.import_id, refused.line FROM contact_imports AS old
             JOIN contact_import_errors AS refused ON refused.import_id = old.id WHERE old.finished_at < $1 LIMIT $2)
"""
DROP_PARTS = """
    DELETE FROM contact_import_parts WHERE (import_id, n) IN (
        SELECT import_id, n FROM contact_import_parts WHERE import_id = $1 ORDER BY n LIMIT $2)
"""
# Those whose turn it is first: who has had least work.
OPEN = """
    SELECT id FROM contact_imports WHERE state = 'processing'
     ORDER BY (position ->> 'seconds')::double precision, id LIMIT 100
"""
END = """
    UPDATE contact_imports SET state = $2, error = $3, finished_at = now() WHERE id = $1 AND state = 'processing'
"""
# Cancelled, failed, or received by a process that died.
LEFT_OVER = """
    SELECT DISTINCT import_id FROM contact_import_parts AS part
     WHERE NOT EXISTS (SELECT FROM contact_imports AS open WHERE open.id = part.import_id
                          AND (open.state = 'processing' OR (open.state = 'receiving' AND open.created_at > $1)))
     LIMIT 100
"""
FORSAKE = "DELETE FROM contact_imports WHERE state = 'receiving' AND created_at <= $1"
ERRORS = """
    SELECT line, code, detail, content FROM contact_import_errors
     WHERE import_id = $1 AND line > $2 ORDER BY line LIMIT $3
"""
OWN_LIST = "SELECT type FROM contact_lists WHERE tenant = $1 AND id = $2"


class Import(Struct, frozen=True, kw_only=True):
    """One import. `counts` are of the rows up to `bytes_done`; `created_at` marks what it has written."""

    id: int
    tenant: str
    state: State
    mode: Mode
    dry_run: bool
    list_id: int | None
    settings: Settings
    bytes: int
    bytes_done: int
    position: Position
    counts: Counts
    error: str
    created_by: str
    created_at: datetime
    finished_at: datetime | None

    @property
    def name(self) -> str:
        """Its id as everybody writes it: `cim_17`."""
        return format_id(CONTACT_IMPORT, self.id)

    @property
    def rate(self) -> float | None:
        """Rows a second, while it was worked on."""
        return self.counts.rows / self.position.seconds if self.position.seconds > 0 else None

    @property
    def percent(self) -> float:
        """How much of the file is done; 100 only when all is."""
        if self.state == "completed":
            return 100.0
        return min(99.9, round(100 * self.bytes_done / self.bytes, 1)) if self.bytes else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds of work that are left; None when that is not known, or it has ended."""
        if self.state != "processing" or not self.bytes_done:
            return None
        return self.position.seconds * (self.bytes - self.bytes_done) / self.bytes_done


class ImportStore:
    """The tables of imports, or in the transaction of a caller. `tenant` None is anybody's: for operators."""

    def __init__(self, pool: Pool | Connection) -> None:
        self._pool = pool

    # what comes in

    async def begin(
        self, tenant: str, *, mode: Mode, dry_run: bool, list_id: int | None, settings: Settings, created_by: str
    ) -> Import:
        """A new import that takes parts."""
        plain = msgspec.to_builtins(settings)
        return _import(await self._pool.fetchrow(BEGIN, tenant, mode, dry_run, list_id, plain, created_by))

    async def add_part(self, id_: int, n: int, data: bytes) -> bool:
        """Keep the next `PART` bytes (or fewer, at the end); False when it was cancelled meanwhile."""
        return bool(await self._pool.fetchval(ADD_PART, id_, n, data))

    async def received(self, id_: int, size: int, settings: Settings, position: Position) -> Import | None:
        """All parts are there: from now on it is worked on. None when it was cancelled meanwhile."""
        plain = msgspec.to_builtins(settings), msgspec.to_builtins(position)
        row = await self._pool.fetchrow(RECEIVED, id_, size, *plain)
        return None if row is None else _import(row)

    async def forget(self, id_: int) -> None:
        """It was not received; if it was after all, it stays."""
        if await self._pool.execute(FORGET, id_) == "DELETE 1":
            await self.drop_parts(id_)

    async def list_type(self, tenant: str, list_id: int) -> str | None:
        """static or dynamic; None: this tenant has no such list."""
        kind: str | None = await self._pool.fetchval(OWN_LIST, tenant, list_id)
        return kind

    # what people see

    async def get(self, id_: int, tenant: str | None) -> Import | None:
        row = await self._pool.fetchrow(SHOW, id_, tenant)
        return None if row is None else _import(row)

    async def page(self, tenant: str | None, *, limit: int, before: int) -> list[Import]:
        """Newest first, ids below `before`; not those being received."""
        return [_import(row) for row in await self._pool.fetch(PAGE_OF, tenant, before, limit)]

    async def cancel(self, id_: int, tenant: str | None) -> Import | None:
        """End it where it is; what it has written stays. None: there is none, or it has ended."""
        row = await self._pool.fetchrow(CANCEL, id_, tenant)
        return None if row is None else _import(row)

    async def errors(self, id_: int) -> AsyncIterator[list[RefusedRow]]:
        """The refused rows that are kept, in the order of the file, by pages."""
        line = -1
        while rows := await self._pool.fetch(ERRORS, id_, line, PAGE):
            line = rows[-1]["line"]
            yield [RefusedRow(*row) for row in rows]

    # what importers need

    async def open(self) -> list[int]:
        """Those to be worked on, first who had least work."""
        return [row["id"] for row in await self._pool.fetch(OPEN)]

    async def part(self, id_: int, n: int) -> bytes:
        """The bytes of a part; b"" when it is gone."""
        return bytes(await self._pool.fetchval(PART_OF, id_, n) or b"")

    async def end(self, id_: int, state: State, error: str = "") -> None:
        """It is over."""
        await self._pool.execute(END, id_, state, error)

    async def drop_parts(self, id_: int) -> None:
        """In steps, as they may be many."""
        while await self._pool.execute(DROP_PARTS, id_, SWEPT) == f"DELETE {SWEPT}":
            pass

    async def sweep(self, now: datetime) -> None:
        """Drop the files of imports that have ended, those that nobody sends any more, and refused rows of old ones."""
        await self._pool.execute(FORSAKE, now - FORSAKEN)
        for row in await self._pool.fetch(LEFT_OVER, now - FORSAKEN):
            await self.drop_parts(row["import_id"])
        while await self._pool.execute(DROP_ERRORS, now - KEPT, SWEPT) == f"DELETE {SWEPT}":
            pass


def _import(row: "asyncpg.Record | None") -> Import:
    assert row is not None
    facts: dict[str, Any] = dict(row)
    position = msgspec.convert(facts.pop("position"), Position)
    counted = {name: facts.pop(name) for name in Counts.__struct_fields__ if name in facts}
    beside = {name: getattr(position, name) for name in ("duplicates", "not_subscribed", "erased")}
    settings = msgspec.convert(facts.pop("settings"), Settings)
    return Import(**facts, settings=settings, position=position, counts=Counts(**counted, **beside))


async def held(connection: Connection, id_: int) -> Import | None:
    """The import, which nobody else changes until the caller's transaction is over."""
    row = await connection.fetchrow(f"{SHOW} FOR UPDATE", id_, None)
    return None if row is None else _import(row)
