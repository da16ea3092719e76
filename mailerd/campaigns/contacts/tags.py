"""Tags: names with a colour that contacts bear. They come into being with the first contact that is given one."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import asyncpg
from msgspec import Struct

from mailerd.campaigns.contacts.refusals import refused
from mailerd.campaigns.contacts.values import DEFAULT_COLOR, MAX_TENANT_TAGS
from mailerd.db import Connection, Pool

STEP = 20_000  # contacts that one statement takes a tag from

COLUMNS = "id, name, color, created_at"
COUNT = "SELECT count(*) FROM tags WHERE tenant = $1"
# In the order of names, in which all lock.
MAKE = """
    INSERT INTO tags (tenant, name, color, created_at)
    SELECT $1, name, $3, $4 FROM unnest($2::text[]) AS name ORDER BY name
    ON CONFLICT (tenant, name) DO NOTHING
"""
FIND = "SELECT id, name FROM tags WHERE tenant = $1 AND name = ANY ($2::text[])"
LOCK = f"{FIND} ORDER BY name FOR KEY SHARE"
CREATE = f"INSERT INTO tags (tenant, name, color, created_at) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"
GET = f"SELECT {COLUMNS} FROM tags WHERE tenant = $1 AND id = $2"
LIST = f"SELECT {COLUMNS} FROM tags WHERE tenant = $1 AND id < $2 ORDER BY id DESC LIMIT $3"
CHANGE = f"""
    UPDATE tags SET name = coalesce($3, name), color = coalesce($4, color) WHERE tenant = $1 AND id = $2
    RETURNING {COLUMNS}
"""
UNTIE = """
    DELETE FROM contact_tags WHERE tag_id = $1 AND contact_id = ANY (ARRAY(
           SELECT contact_id FROM contact_tags WHERE tag_id = $1 LIMIT $2))
"""
DELETE = "DELETE FROM tags WHERE tenant = $1 AND id = $2 RETURNING true"
UNTIE_REST = "DELETE FROM contact_tags WHERE tag_id = $1"
OF_CONTACT = "SELECT tag_id FROM contact_tags WHERE contact_id = $1"
TAKE = "DELETE FROM contact_tags WHERE contact_id = $1 AND tag_id = ANY ($2::bigint[])"
GIVE = """
    INSERT INTO contact_tags (contact_id, tag_id, created_at)
    SELECT $1, tag_id, $3 FROM unnest($2::bigint[]) AS tag_id ORDER BY tag_id ON CONFLICT DO NOTHING
"""


class Tag(Struct, frozen=True, kw_only=True):
    """`color` is #rrggbb."""

    id: int
    name: str
    color: str
    created_at: datetime


class TagStore:
    """The tags of tenants, and which contacts bear them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def resolve(
        self, connection: Connection, tenant: str, names: Iterable[str], *, now: datetime
    ) -> dict[str, int]:
        """The ids of these names (as `values.tag_name` makes them); tags that are not there are made.

        They stay at least until the caller's transaction is over. Raises `Refused` when the tenant has too many.
        """
        wanted = sorted(set(names))
        if not wanted:
            return {}
        found = await self._locked(connection, tenant, wanted)
        while missing := [name for name in wanted if name not in found]:
            if await connection.fetchval(COUNT, tenant) + len(missing) > MAX_TENANT_TAGS:
                raise _too_many()
            await connection.execute(MAKE, tenant, missing, DEFAULT_COLOR, now)
            found |= await self._locked(connection, tenant, missing)  # one may have been deleted between the two
        return found

    async def _locked(self, connection: Connection, tenant: str, names: Sequence[str]) -> dict[str, int]:
        return {row["name"]: row["id"] for row in await connection.fetch(LOCK, tenant, list(names))}

    async def set(
        self, connection: Connection, tenant: str, contact_id: int, names: Iterable[str], *, now: datetime
    ) -> None:
        """Give the contact these tags and no others, in the transaction that holds its row."""
        wanted = set((await self.resolve(connection, tenant, names, now=now)).values())
        had = {row["tag_id"] for row in await connection.fetch(OF_CONTACT, contact_id)}
        if had - wanted:
            await connection.execute(TAKE, contact_id, sorted(had - wanted))
        if wanted - had:
            await connection.execute(GIVE, contact_id, sorted(wanted - had), now)

    async def find(self, tenant: str, name: str) -> int | None:
        """The id of the tag of this name."""
        row = await self._pool.fetchrow(FIND, tenant, [name])
        return None if row is None else int(row["id"])

    async def create(self, connection: Connection, tenant: str, name: str, color: str, *, now: datetime) -> Tag:
        """Raises `Refused` when there is one of this name, or there are too many."""
        if await connection.fetchval(COUNT, tenant) >= MAX_TENANT_TAGS:
            raise _too_many()
        try:
            async with connection.transaction():
                row = await connection.fetchrow(CREATE, tenant, name, color, now)
        except asyncpg.UniqueViolationError:
            raise _duplicate() from None
        assert row is not None
        return Tag(**row)

    async def get(self, tenant: str, tag_id: int) -> Tag | None:
        row = await self._pool.fetchrow(GET, tenant, tag_id)
        return None if row is None else Tag(**row)

    async def list(self, tenant: str, *, limit: int, before: int) -> "list[Tag]":
        """Newest first, ids below `before`."""
        return [Tag(**row) for row in await self._pool.fetch(LIST, tenant, before, limit)]

    async def change(self, tenant: str, tag_id: int, *, name: str | None, color: str | None) -> Tag | None:
        """None stays as it is. None: no such tag; raises `Refused` when there is another of this name."""
        try:
            row = await self._pool.fetchrow(CHANGE, tenant, tag_id, name, color)
        except asyncpg.UniqueViolationError:
            raise _duplicate() from None
        return None if row is None else Tag(**row)

    async def delete(self, tenant: str, tag_id: int) -> bool:
        """Take it from all contacts, in steps, and then away; False: no such tag. Cut off, it is called again."""
        if await self.get(tenant, tag_id) is None:
            return False
        while await self._pool.execute(UNTIE, tag_id, STEP) == f"DELETE {STEP}":
            pass
        async with self._pool.acquire() as connection, connection.transaction():
            gone = bool(await connection.fetchval(DELETE, tenant, tag_id))
            if gone:  # whoever was giving it meanwhile held the row of the tag: what they gave is seen now
                await connection.execute(UNTIE_REST, tag_id)
        return gone


def _duplicate() -> Exception:
    return refused("duplicate_tag", "There is a tag of this name already.", field="name")


def _too_many() -> Exception:
    return refused("too_many", f"A tenant has at most {MAX_TENANT_TAGS:,} tags.")
