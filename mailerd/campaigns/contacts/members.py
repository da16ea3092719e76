"""Who is on a static list, added and removed by the tenant; what the people themselves say is `subscriptions`."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
from msgspec import Struct

from mailerd.campaigns.contacts.consent import left_sql
from mailerd.campaigns.contacts.lists import move_counts
from mailerd.campaigns.contacts.refusals import refused, unknown
from mailerd.campaigns.contacts.values import ListStatus
from mailerd.db import Connection, Pool

MAX_ADDED = 10_000  # contacts in one call

TYPE = "SELECT type FROM contact_lists WHERE tenant = $1 AND id = $2"
LOCK_CONTACTS = "SELECT id FROM contacts WHERE tenant = $1 AND id = ANY ($2::bigint[]) ORDER BY id FOR KEY SHARE"
ADD = f"""
    INSERT INTO list_contacts (list_id, contact_id, status, source, added_at, changed_at)
    SELECT $1, c.id, CASE WHEN {left_sql("c", "$1")} THEN 'unsubscribed' ELSE 'subscribed' END, $3, $4, $4
      FROM contacts AS c WHERE c.id = ANY ($2::bigint[]) ORDER BY c.id
    ON CONFLICT DO NOTHING RETURNING contact_id, status
"""
LEFT = """
    SELECT contact_id FROM list_contacts
     WHERE list_id = $1 AND contact_id = ANY ($2::bigint[]) AND status = 'unsubscribed' ORDER BY contact_id
"""
LOCK_ROWS = """
    SELECT contact_id, status FROM list_contacts
     WHERE list_id = $1 AND contact_id = ANY ($2::bigint[]) ORDER BY contact_id FOR UPDATE
"""
REMOVE = "DELETE FROM list_contacts WHERE list_id = $1 AND contact_id = ANY ($2::bigint[])"
NOTE = """
    INSERT INTO subscription_history (contact_id, list_id, was, became, source, detail, at)
    SELECT contact_id, $1, was, $4, $5, $6, $7 FROM unnest($2::bigint[], $3::text[]) AS rows (contact_id, was)
"""
PAGE = """
    SELECT contact_id, status, added_at, changed_at FROM list_contacts
     WHERE list_id = $1 AND contact_id > $2 AND ($3::text IS NULL OR status = $3)
     ORDER BY contact_id OFFSET $4 LIMIT $5
"""


class Member(Struct, frozen=True, kw_only=True):
    """One contact of a list."""

    contact_id: int
    status: ListStatus
    added_at: datetime
    changed_at: datetime


class Added(Struct, frozen=True, kw_only=True):
    """What became of the contacts that were to be added: ids, sorted.

    `left` have unsubscribed from this list, and stay so; `missing` are no contacts of the tenant.
    """

    added: list[int]
    already: list[int]
    left: list[int]
    missing: list[int]


async def static_list(connection: Connection, tenant: str, list_id: int) -> None:
    """Raises `Refused` when there is no such list, or it is a segment.

    It is not locked, which would stand in the way of its deletion: `move_counts` notices that at the end.
    """
    type_ = await connection.fetchval(TYPE, tenant, list_id)
    if type_ is None:
        raise unknown("list")
    if type_ != "static":
        raise refused("dynamic_list", "Who is on a dynamic list is said by its conditions.")


class MemberStore:
    """The rows of `list_contacts`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(
        self,
        tenant: str,
        list_id: int,
        contact_ids: Sequence[int],
        *,
        source: str,
        now: datetime,
        connection: Connection | None = None,
    ) -> Added:
        """Subscribe contacts to a list, all in one transaction; who has left it before is not subscribed by this.

        Raises `Refused` when there is no such static list.
        """
        if connection is not None:
            return await self._add(connection, tenant, list_id, contact_ids, source, now)
        async with self._pool.acquire() as own, own.transaction():
            return await self._add(own, tenant, list_id, contact_ids, source, now)

    async def _add(
        self, connection: Connection, tenant: str, list_id: int, contact_ids: Sequence[int], source: str, now: datetime
    ) -> Added:
        await static_list(connection, tenant, list_id)
        wanted = sorted(set(contact_ids))
        there = [row["id"] for row in await connection.fetch(LOCK_CONTACTS, tenant, wanted)]
        rows = await connection.fetch(ADD, list_id, there, source, now)
        added = sorted(row["contact_id"] for row in rows if row["status"] == "subscribed")
        left = [row["contact_id"] for row in await connection.fetch(LEFT, list_id, there)]
        await move_counts(connection, {list_id: len(added)})
        known = {*added, *left}
        return Added(
            added=added,
            already=[id_ for id_ in there if id_ not in known],
            left=left,
            missing=sorted(set(wanted) - set(there)),
        )

    async def remove(
        self, tenant: str, list_id: int, contact_ids: Sequence[int], *, source: str, now: datetime
    ) -> list[int]:
        """Take contacts off a list; returns those that were on it. Raises `Refused` as `add` does."""
        async with self._pool.acquire() as connection, connection.transaction():
            await static_list(connection, tenant, list_id)
            rows = await connection.fetch(LOCK_ROWS, list_id, sorted(set(contact_ids)))
            ids = [row["contact_id"] for row in rows]
            await connection.execute(REMOVE, list_id, ids)
            await note(connection, list_id, rows, "removed", source=source, now=now)
            subscribed = sum(row["status"] == "subscribed" for row in rows)
            await move_counts(connection, {list_id: -subscribed})
        return ids

    async def page(
        self, list_id: int, *, status: str | None, after: int = 0, offset: int = 0, limit: int
    ) -> list[Member]:
        """Who is on the list, by id: behind the contact `after`, and `offset` further."""
        return [Member(**row) for row in await self._pool.fetch(PAGE, list_id, after, status, offset, limit)]


async def note(
    connection: Connection,
    list_id: int,
    rows: Sequence[asyncpg.Record],
    became: str,
    *,
    source: str,
    now: datetime,
    detail: str = "",
) -> None:
    """Write into the history what rows with `contact_id` and `status` became."""
    if rows:
        ids, was = [row["contact_id"] for row in rows], [row["status"] for row in rows]
        await connection.execute(NOTE, list_id, ids, was, became, source, detail, now)
