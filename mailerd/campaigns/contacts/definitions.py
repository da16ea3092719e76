"""Definitions of custom fields: names that have a type, kept in the database.

Whoever writes fields reads the definitions by `for_writing`, in the transaction of the writing: while a type is made or
changed, which reads all contacts, they wait. So no value comes in that does not fit the type.
"""

from datetime import datetime

from msgspec import Struct

from mailerd.campaigns.contacts.fields import FieldType, fits
from mailerd.campaigns.contacts.refusals import refused
from mailerd.campaigns.contacts.values import MAX_DEFINITIONS
from mailerd.db import Connection, Pool

STEP = 20_000  # contacts that one statement reads

COLUMNS = "name, type, label, created_at"
# Readers do not wait for each other, only for who changes a type.
READ_LOCK = "SELECT pg_advisory_xact_lock_shared(hashtextextended('custom fields of ' || $1, 0))"
WRITE_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('custom fields of ' || $1, 0))"
TYPES = "SELECT name, type FROM custom_field_definitions WHERE tenant = $1"
LIST = f"SELECT {COLUMNS} FROM custom_field_definitions WHERE tenant = $1 ORDER BY name"
GET = f"SELECT {COLUMNS} FROM custom_field_definitions WHERE tenant = $1 AND name = $2"
CREATE = f"""
    INSERT INTO custom_field_definitions (tenant, name, type, label, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING RETURNING {COLUMNS}
"""
CHANGE = f"""
    UPDATE custom_field_definitions SET type = coalesce($3, type), label = coalesce($4, label)
     WHERE tenant = $1 AND name = $2 RETURNING {COLUMNS}
"""
DELETE = "DELETE FROM custom_field_definitions WHERE tenant = $1 AND name = $2 RETURNING true"
VALUES = """
    WITH part AS MATERIALIZED (
        SELECT id, custom_fields FROM contacts WHERE tenant = $1 AND id > $3 ORDER BY id LIMIT $4)
    SELECT DISTINCT ON (custom_fields -> $2) custom_fields -> $2 AS value, id
      FROM part WHERE custom_fields ? $2
"""
NEXT = "SELECT max(id) FROM (SELECT id FROM contacts WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3) AS part"


class Definition(Struct, frozen=True, kw_only=True):
    """A field of this name holds values of this type only; `label` is what people are shown."""

    name: str
    type: FieldType
    label: str
    created_at: datetime


class DefinitionStore:
    """The table of definitions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def for_writing(self, connection: Connection, tenant: str) -> dict[str, str]:
        """Names and types that hold until the caller's transaction is over."""
        await connection.execute(READ_LOCK, tenant)
        return {row["name"]: row["type"] for row in await connection.fetch(TYPES, tenant)}

    async def types(self, tenant: str) -> dict[str, str]:
        """Names and types, as of now: for segments."""
        return {row["name"]: row["type"] for row in await self._pool.fetch(TYPES, tenant)}

    async def list(self, tenant: str) -> "list[Definition]":
        """All of them, by name: there are never more than `MAX_DEFINITIONS`."""
        return [Definition(**row) for row in await self._pool.fetch(LIST, tenant)]

    async def get(self, tenant: str, name: str) -> Definition | None:
        row = await self._pool.fetchrow(GET, tenant, name)
        return None if row is None else Definition(**row)

    async def create(
        self, connection: Connection, tenant: str, name: str, type_: FieldType, label: str, *, now: datetime
    ) -> Definition:
        """Raises `Refused`: there is one, there are too many, or contacts have values that do not fit."""
        await connection.execute(WRITE_LOCK, tenant)
        known = {row["name"] for row in await connection.fetch(TYPES, tenant)}
        if name in known:
            raise refused("duplicate_field", "There is a definition of this name already.", field="name")
        if len(known) >= MAX_DEFINITIONS:
            raise refused("too_many", f"A tenant has at most {MAX_DEFINITIONS} definitions.")
        await self._check(connection, tenant, name, type_)
        row = await connection.fetchrow(CREATE, tenant, name, type_, label, now)
        assert row is not None
        return Definition(**row)

    async def change(self, tenant: str, name: str, *, type_: FieldType | None, label: str | None) -> Definition | None:
        """None stays as it is. None: no such definition; raises `Refused` when contacts have values that do not fit."""
        async with self._pool.acquire() as connection, connection.transaction():
            if type_ is not None:
                await connection.execute(WRITE_LOCK, tenant)
            row = await connection.fetchrow(GET, tenant, name)
            if row is None:
                return None
            if type_ is not None and row["type"] != type_:
                await self._check(connection, tenant, name, type_)
            row = await connection.fetchrow(CHANGE, tenant, name, type_, label)
        return None if row is None else Definition(**row)

    async def delete(self, tenant: str, name: str) -> bool:
        """Its values stay, and may be anything from now on. False: no such definition."""
        return bool(await self._pool.fetchval(DELETE, tenant, name))

    async def _check(self, connection: Connection, tenant: str, name: str, type_: str) -> None:
        """Read the field of all contacts, by steps; nobody writes any meanwhile."""
        after = 0
        while (end := await connection.fetchval(NEXT, tenant, after, STEP)) is not None:
            for row in await connection.fetch(VALUES, tenant, name, after, STEP):
                if not fits(row["value"], type_):
                    detail = f"Contact con_{row['id']} and perhaps others have a value that is no {type_}."
                    raise refused("values_do_not_fit", detail, field="type")
            after = end
