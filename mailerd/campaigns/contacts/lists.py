"""Lists: their names, and how many are subscribed. `members` says who; a dynamic one is a segment, which others make.

Locks are taken in one order everywhere, so that nobody waits in a circle: contacts by id, then rows of `list_contacts`
by list and contact, then the counts by list (`move_counts`), which comes last in every transaction.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from mailerd.campaigns.contacts.refusals import refused, unknown
from mailerd.campaigns.contacts.values import MAX_TENANT_LISTS
from mailerd.db import Connection, Pool

STEP = 20_000  # rows that one statement deletes
MAX_ID = (1 << 63) - 1

COLUMNS = """id, name, description, type, segment_conditions, contact_count, counted_at, created_by, created_at,
             updated_at"""
COUNT = "SELECT count(*) FROM contact_lists WHERE tenant = $1"
CREATE = f"""
    INSERT INTO contact_lists (tenant, name, description, created_by, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $5) RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM contact_lists WHERE tenant = $1 AND id = $2"
LIST = f"""
    SELECT {COLUMNS} FROM contact_lists
     WHERE tenant = $1 AND type = ANY ($2::text[]) AND id < $3 ORDER BY id DESC LIMIT $4
"""
CHANGE = f"""
    UPDATE contact_lists SET name = coalesce($3, name), description = coalesce($4, description), updated_at = $5
     WHERE tenant = $1 AND id = $2 RETURNING {COLUMNS}
"""
EMPTY = """
    WITH gone AS (DELETE FROM list_contacts WHERE list_id = $1 AND contact_id = ANY (ARRAY(
                         SELECT contact_id FROM list_contacts WHERE list_id = $1 ORDER BY contact_id LIMIT $2))
                  RETURNING status)
    SELECT count(*) AS seen, count(*) FILTER (WHERE status = 'subscribed') AS subscribed FROM gone
"""
DELETE = "DELETE FROM contact_lists WHERE tenant = $1 AND id = $2 RETURNING true"
EMPTY_REST = "DELETE FROM list_contacts WHERE list_id = $1"
LOCK_COUNTS = "SELECT id FROM contact_lists WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"
MOVE_COUNTS = """
    UPDATE contact_lists SET contact_count = contact_count + moved.by
      FROM unnest($1::bigint[], $2::bigint[]) AS moved (id, by) WHERE contact_lists.id = moved.id
"""

ListType = Literal["static", "dynamic"]


class ContactList(Struct, frozen=True, kw_only=True):
    """`contact_count` are the subscribed of a static list, exact; of a dynamic one those at `counted_at`."""

    id: int
    name: str
    description: str
    type: ListType
    segment_conditions: Any
    contact_count: int
    counted_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


async def move_counts(connection: Connection, moves: Mapping[int, int]) -> None:
    """Add to the counts of lists what rows of `list_contacts` have come or gone, last in their transaction.

    Raises `Refused` when a list that somebody came to has been deleted meanwhile: nothing may be written then.
    """
    moves = {list_id: by for list_id, by in moves.items() if by}
    if not moves:
        return
    there = {row["id"] for row in await connection.fetch(LOCK_COUNTS, list(moves))}
    if any(by > 0 and list_id not in there for list_id, by in moves.items()):
        raise unknown("list")
    await connection.execute(MOVE_COUNTS, list(moves), list(moves.values()))


class ListStore:
    """The table of lists; segments are among them, as the dynamic ones."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(
        self,
        connection: Connection,
        tenant: str,
        name: str,
        *,
        description: str = "",
        created_by: str,
        now: datetime,
    ) -> ContactList:
        """A new static list. Raises `Refused`: too many."""
        if await connection.fetchval(COUNT, tenant) >= MAX_TENANT_LISTS:
            raise refused("too_many", f"A tenant has at most {MAX_TENANT_LISTS:,} lists and segments.")
        row = await connection.fetchrow(CREATE, tenant, name, description, created_by, now)
        assert row is not None
        return ContactList(**row)

    async def get(self, tenant: str, list_id: int) -> ContactList | None:
        row = await self._pool.fetchrow(GET, tenant, list_id)
        return None if row is None else ContactList(**row)

    async def list(
        self, tenant: str, *, type_: ListType | None = None, limit: int, before: int = MAX_ID
    ) -> "list[ContactList]":
        """Newest first, ids below `before`."""
        types = ["static", "dynamic"] if type_ is None else [type_]
        return [ContactList(**row) for row in await self._pool.fetch(LIST, tenant, types, before, limit)]

    async def change(
        self,
        tenant: str,
        list_id: int,
        *,
        name: str | None = None,
        description: str | None = None,
        now: datetime,
    ) -> ContactList | None:
        """None stays as it is. None: no such list."""
        row = await self._pool.fetchrow(CHANGE, tenant, list_id, name, description, now)
        return None if row is None else ContactList(**row)

    async def delete(self, tenant: str, list_id: int) -> bool:
        """Take all off it, in steps, and then it away; its contacts stay. False: no such list.

        Whether campaigns need it is for the caller to ask. Cut off, it is called again.
        """
        if await self.get(tenant, list_id) is None:
            return False
        while await self._empty(list_id) == STEP:
            pass
        async with self._pool.acquire() as connection, connection.transaction():
            gone = bool(await connection.fetchval(DELETE, tenant, list_id))
            if gone:  # who was adding to it meanwhile has found it gone, or is seen here
                await connection.execute(EMPTY_REST, list_id)
        return gone

    async def _empty(self, list_id: int) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(EMPTY, list_id, STEP)
            assert row is not None
            await move_counts(connection, {list_id: -row["subscribed"]})
        return int(row["seen"])
