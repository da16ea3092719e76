"""Segments as they are kept: rows of `contact_lists` of the type dynamic."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from mailerd.campaigns.contacts.values import MAX_TENANT_LISTS
from mailerd.campaigns.segments.conditions import Condition
from mailerd.campaigns.segments.counting import CountStore
from mailerd.campaigns.segments.doubts import DoubtStore
from mailerd.campaigns.segments.references import ReferenceStore
from mailerd.db import Connection, Pool

COLUMNS = """
    id, name, description, segment_conditions AS conditions, contact_count, counted_at, created_by, created_at,
    updated_at
"""
ADD = f"""
    INSERT INTO contact_lists (tenant, name, description, type, segment_conditions, created_by)
    SELECT $1, $2, $3, 'dynamic', $4, $5
     WHERE (SELECT count(*) FROM contact_lists WHERE tenant = $1) < {MAX_TENANT_LISTS}
    RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM contact_lists WHERE tenant = $1 AND id = $2 AND type = 'dynamic'"
LIST = f"""
    SELECT {COLUMNS} FROM contact_lists WHERE tenant = $1 AND type = 'dynamic' AND id < $2 ORDER BY id DESC LIMIT $3
"""
CHANGE = f"""
    UPDATE contact_lists
       SET name = coalesce($3, name), description = coalesce($4, description),
           counted_at = CASE WHEN $5::jsonb IS DISTINCT FROM segment_conditions AND $5 IS NOT NULL THEN NULL
                             ELSE counted_at END,
           segment_conditions = coalesce($5, segment_conditions), updated_at = now()
     WHERE tenant = $1 AND id = $2 AND type = 'dynamic'
    RETURNING {COLUMNS}
"""
DELETE = "DELETE FROM contact_lists WHERE tenant = $1 AND id = $2 AND type = 'dynamic' RETURNING id"
# What was counted is that of other conditions when these have changed meanwhile.
COUNTED = f"""
    UPDATE contact_lists SET contact_count = $3, counted_at = $4
     WHERE tenant = $1 AND id = $2 AND type = 'dynamic' AND segment_conditions = $5
    RETURNING {COLUMNS}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One row. `contact_count` is what was counted at `counted_at`; None: not since its conditions are these."""

    id: int
    name: str
    description: str
    conditions: dict[str, Any]
    contact_count: int
    counted_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class InUseError(Exception):
    """It cannot be deleted: `users` need it, such as `campaign cmp_3`."""

    def __init__(self, users: Sequence[str]) -> None:
        super().__init__(", ".join(users))
        self.users = list(users)


class SegmentStore:
    """The segments of all tenants; each call names whose."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.references = ReferenceStore(pool)
        self.doubts = DoubtStore(pool)
        self.counts = CountStore(pool)

    async def check(self, tenant: str, conditions: object, *, own: int | None = None) -> Condition:
        """What is to be stored, as `ReferenceStore.check`. Raises `ConditionError`."""
        return await self.references.check(tenant, conditions, own=own)

    async def add(
        self,
        connection: Connection,
        tenant: str,
        *,
        name: str,
        description: str,
        conditions: object,
        actor: str,
    ) -> Segment | None:
        """Keep a new one, whose conditions were checked; None: the tenant has too many."""
        return _segment(await connection.fetchrow(ADD, tenant, name, description, conditions, actor))

    async def get(self, tenant: str, id_: int) -> Segment | None:
        return _segment(await self._pool.fetchrow(GET, tenant, id_))

    async def list(self, tenant: str, *, before: int, limit: int) -> "list[Segment]":
        """Newest first, ids below `before`."""
        return [Segment(**row) for row in await self._pool.fetch(LIST, tenant, before, limit)]

    async def condition(self, tenant: str, segment: Segment) -> Condition:
        """Its conditions, with those of the segments that they name. Raises `ConditionError`: they hold no longer."""
        return await self.references.condition(tenant, segment.conditions, own=segment.id)

    async def change(
        self,
        tenant: str,
        id_: int,
        *,
        name: str | None = None,
        description: str | None = None,
        conditions: object = None,
    ) -> Segment | None:
        """Change what is not None; None: there is no such segment of the tenant's. Raises `ConditionError`.

        A campaign that is under way goes on with the new conditions: those it has written stay.
        """
        if conditions is not None:
            await self.references.check(tenant, conditions, own=id_)
        return _segment(await self._pool.fetchrow(CHANGE, tenant, id_, name, description, conditions))

    async def delete(self, tenant: str, id_: int) -> bool:
        """Forget it; False: there is none. Raises `InUseError` while campaigns or other segments need it.

        A campaign that is scheduled in the same moment is not stopped by that: it fails when it begins, and says why.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(DELETE, tenant, id_) is None:
                return False
            if users := await self.references.users(tenant, id_, connection):
                raise InUseError(users)
        return True

    async def counted(self, tenant: str, segment: Segment, count: int, now: datetime) -> Segment | None:
        """Keep what was counted, if the conditions are still those; None: they are not."""
        return _segment(await self._pool.fetchrow(COUNTED, tenant, segment.id, count, now, segment.conditions))


def _segment(row: asyncpg.Record | None) -> Segment | None:
    return None if row is None else Segment(**row)
