"""The templates of the database. A version never changes; the template says which of its versions is in force."""

from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from mailerd.campaigns.templates.contexts import Person
from mailerd.campaigns.templates.values import CompiledTemplate, Format
from mailerd.db import Connection, Pool

MAX_ID = 2**63 - 1
TEMPLATE = "t.id, t.tenant, t.name, t.version, t.revision, t.is_active, t.created_by, t.created_at, t.updated_at"
SOURCE = "v.format, v.subject, v.html_content, v.text_content, v.variables"
VERSION = f"v.id, v.template_id, v.version, {SOURCE}, v.compiled, v.restored, v.created_by, v.created_at"
IN_FORCE = "templates AS t JOIN template_versions AS v ON v.template_id = t.id AND v.version = t.version"
CREATE = """
    INSERT INTO templates (tenant, name, created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $4) RETURNING id
"""
ADD_VERSION = """
    INSERT INTO template_versions (template_id, version, format, subject, html_content, text_content, variables,
                                   compiled, restored, created_by, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
GET = f"SELECT {TEMPLATE} FROM templates AS t WHERE t.id = $1 AND t.tenant = $2 AND t.is_active"
LOCK = f"{GET} FOR UPDATE"
CHANGE = f"""
    UPDATE templates AS t SET name = $2, version = $3, updated_at = $4, revision = revision + 1
     WHERE t.id = $1 RETURNING {TEMPLATE}
"""
LAST = "SELECT max(version) FROM template_versions WHERE template_id = $1"
LIST = f"""
    SELECT {TEMPLATE}, v.subject, v.format FROM {IN_FORCE}
     WHERE t.tenant = $1 AND t.id < $2 AND t.is_active ORDER BY t.id DESC LIMIT $3
"""
CURRENT_ID = f"SELECT v.id FROM {IN_FORCE} WHERE t.id = $1 AND t.tenant = $2 AND t.is_active"
CURRENT = f"SELECT {VERSION} FROM {IN_FORCE} WHERE t.id = $1 AND t.tenant = $2 AND t.is_active"
BY_ID = f"SELECT {VERSION} FROM template_versions AS v WHERE v.id = $1"
NUMBERED = f"""
    SELECT {VERSION} FROM template_versions AS v JOIN templates AS t ON t.id = v.template_id
     WHERE t.id = $1 AND t.tenant = $2 AND t.is_active AND v.version = $3
"""
HISTORY = """
    SELECT v.version, v.format, v.subject, v.restored, v.created_by, v.created_at
      FROM template_versions AS v JOIN templates AS t ON t.id = v.template_id
     WHERE t.id = $1 AND t.tenant = $2 AND t.is_active AND v.version < $3 ORDER BY v.version DESC LIMIT $4
"""
DELETE = """
    UPDATE templates SET is_active = false, revision = revision + 1, updated_at = $3
     WHERE id = $1 AND tenant = $2 AND is_active
"""
SCHEDULED = """
    SELECT id, name FROM campaigns WHERE tenant = $2 AND template_id = $1 AND status = 'scheduled' ORDER BY id LIMIT 20
"""
PEOPLE = """
    SELECT c.id, c.email, c.first_name, c.last_name, c.phone,
           ARRAY(SELECT tag.name FROM contact_tags AS has JOIN tags AS tag ON tag.id = has.tag_id
                  WHERE has.contact_id = c.id ORDER BY tag.name) AS tags,
           c.custom_fields, c.time_zone, c.created_at
      FROM contacts AS c WHERE c.tenant = $1 AND c.id = ANY ($2::bigint[]) ORDER BY c.id
"""


class Source(Struct, frozen=True, kw_only=True):
    """What a user wrote. `text_content` "": the text part is made from the HTML."""

    format: Format = "html"
    subject: str
    html_content: str
    text_content: str = ""
    variables: list[str] = []


class Template(Struct, frozen=True, kw_only=True):
    """A template without its content."""

    id: int
    tenant: str
    name: str
    version: int
    revision: int
    is_active: bool
    created_by: str
    created_at: datetime
    updated_at: datetime


class TemplateLine(Template, frozen=True, kw_only=True):
    """One of a list."""

    subject: str
    format: Format


class Version(Source, frozen=True, kw_only=True):
    """A version: what was written, and what it was compiled to. `restored`: the version that it is a copy of."""

    id: int
    template_id: int
    version: int
    compiled: CompiledTemplate
    restored: int | None
    created_by: str
    created_at: datetime

    @property
    def source(self) -> Source:
        return Source(**{name: getattr(self, name) for name in Source.__struct_fields__})


class VersionLine(Struct, frozen=True, kw_only=True):
    """One of a history."""

    version: int
    format: Format
    subject: str
    restored: int | None
    created_by: str
    created_at: datetime


class TemplateStore:
    """Reads and writes them. What takes a `connection` belongs to the caller's transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(
        self,
        connection: Connection,
        tenant: str,
        name: str,
        source: Source,
        compiled: CompiledTemplate,
        *,
        by: str,
        now: datetime,
    ) -> int:
        """A new template with its version 1; names need not be unique."""
        id_: int = await connection.fetchval(CREATE, tenant, name, by, now)
        await _add_version(connection, id_, 1, source, compiled, None, by, now)
        return id_

    async def get(self, tenant: str, template_id: int) -> Template | None:
        """None: this tenant has none of that id, or deleted it."""
        return _template(await self._pool.fetchrow(GET, template_id, tenant))

    async def lock(self, connection: Connection, tenant: str, template_id: int) -> Template | None:
        """The same, and nobody else changes it until the transaction ends."""
        return _template(await connection.fetchrow(LOCK, template_id, tenant))

    async def change(
        self, connection: Connection, template: Template, *, name: str, version: int, now: datetime
    ) -> Template:
        """Rename it, put another of its versions in force. The caller has locked it."""
        changed = _template(await connection.fetchrow(CHANGE, template.id, name, version, now))
        assert changed is not None
        return changed

    async def add_version(
        self,
        connection: Connection,
        template: Template,
        source: Source,
        compiled: CompiledTemplate,
        *,
        restored: int | None = None,
        by: str,
        now: datetime,
    ) -> int:
        """One more version; returns its number. The caller has locked the template, and puts it in force."""
        number = 1 + int(await connection.fetchval(LAST, template.id))
        await _add_version(connection, template.id, number, source, compiled, restored, by, now)
        return number

    async def page(self, tenant: str, *, limit: int, before: int = MAX_ID) -> list[TemplateLine]:
        """Newest first, ids below `before`."""
        return [TemplateLine(**row) for row in await self._pool.fetch(LIST, tenant, before, limit)]

    async def current(self, tenant: str, template_id: int) -> Version | None:
        """The version in force; None: this tenant has no such template, or deleted it."""
        return _version(await self._pool.fetchrow(CURRENT, template_id, tenant))

    async def current_id(self, tenant: str, template_id: int) -> int | None:
        """The id of that version, without what stands in it."""
        found: int | None = await self._pool.fetchval(CURRENT_ID, template_id, tenant)
        return found

    async def version(self, version_id: int) -> Version | None:
        """By the id of the version, also of a template that was deleted: what has begun with it goes on."""
        return _version(await self._pool.fetchrow(BY_ID, version_id))

    async def numbered(self, tenant: str, template_id: int, number: int) -> Version | None:
        """By the number of the version within its template."""
        return _version(await self._pool.fetchrow(NUMBERED, template_id, tenant, number))

    async def history(self, tenant: str, template_id: int, *, limit: int, before: int = 2**31 - 1) -> list[VersionLine]:
        """Newest first, numbers below `before`."""
        rows = await self._pool.fetch(HISTORY, template_id, tenant, before, limit)
        return [VersionLine(**row) for row in rows]

    async def scheduled_in(self, connection: Connection, tenant: str, template_id: int) -> list[tuple[int, str]]:
        """Ids and names of scheduled campaigns that will be made from it, 20 at most."""
        return [(row["id"], row["name"]) for row in await connection.fetch(SCHEDULED, template_id, tenant)]

    async def delete(self, connection: Connection, tenant: str, template_id: int, now: datetime) -> None:
        """It is not there any more; its versions stay, for campaigns that have begun."""
        await connection.execute(DELETE, template_id, tenant, now)

    async def people(self, tenant: str, contact_ids: list[int]) -> list[Person]:
        """Those of these contacts that the tenant has, as templates see them; to try templates out."""
        return [Person(*row) for row in await self._pool.fetch(PEOPLE, tenant, contact_ids)]


async def _add_version(
    connection: Connection,
    template_id: int,
    number: int,
    source: Source,
    compiled: CompiledTemplate,
    restored: int | None,
    by: str,
    now: datetime,
) -> None:
    await connection.execute(
        ADD_VERSION,
        template_id,
        number,
        source.format,
        source.subject,
        source.html_content,
        source.text_content,
        source.variables,
        msgspec.to_builtins(compiled),
        restored,
        by,
        now,
    )


def _template(row: asyncpg.Record | None) -> Template | None:
    return None if row is None else Template(**row)


def _version(row: asyncpg.Record | None) -> Version | None:
    if row is None:
        return None
    fields: dict[str, Any] = dict(row) | {"compiled": msgspec.convert(row["compiled"], CompiledTemplate)}
    return Version(**fields)
