"""Contacts as files, page by page: CSV that an import reads back, or one JSON object a line.

CSV is safe to open in a spreadsheet and loses nothing but types that no definition says (`csv_reading.without_formula`;
a number in a field without a definition comes back as text). A list has semicolons between its texts.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from mailerd.campaigns.contacts.csv_reading import without_formula
from mailerd.campaigns.contacts.imports.columns import CUSTOM
from mailerd.campaigns.contacts.store import MANY
from mailerd.campaigns.contacts.values import Contact
from mailerd.db import Pool
from mailerd.queue.ids import CONTACT, format_id

PAGE = 2_000  # contacts
STEP = 20_000  # contacts that one statement looks for names of fields in
MAX_NAMES = 900  # custom fields that a CSV has columns for: an import reads a thousand columns

OF_TENANT = "SELECT id FROM contacts WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3"
OF_LIST = """
    SELECT l.contact_id AS id FROM list_contacts AS l JOIN contacts AS c ON c.id = l.contact_id AND c.tenant = $1
     WHERE l.list_id = $4 AND l.contact_id > $2 AND l.status = 'subscribed' ORDER BY l.contact_id LIMIT $3
"""
NAMES = """
    WITH part AS MATERIALIZED (
        SELECT id, custom_fields FROM contacts WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3)
    SELECT (SELECT max(id) FROM part) AS last,
           ARRAY(SELECT DISTINCT name FROM part, jsonb_object_keys(custom_fields) AS name) AS names
"""

FIELDS = (
    *("contact_id", "email", "first_name", "last_name", "phone", "time_zone", "tags", "tracking", "status"),
    *("unsubscribe_reason", "subscribed_at", "unsubscribed_at", "created_at", "updated_at"),
)


class ExportStore:
    """Reads contacts in the order of their ids; those made meanwhile may be among them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ids(self, tenant: str, *, list_id: int | None = None) -> AsyncIterator[list[int]]:
        """All contacts, or those subscribed to a static list, by pages."""
        last = 0
        while True:
            asked = (tenant, last, PAGE) if list_id is None else (tenant, last, PAGE, list_id)
            rows = await self._pool.fetch(OF_TENANT if list_id is None else OF_LIST, *asked)
            if not rows:
                return
            last = rows[-1]["id"]
            yield [row["id"] for row in rows]

    async def contacts(self, tenant: str, ids: Sequence[int], now: datetime) -> list[Contact]:
        """Those of these that there are, by id."""
        return [Contact(**row) for row in await self._pool.fetch(MANY, tenant, now, ids)]

    async def names(self, tenant: str) -> list[str]:
        """The custom fields that contacts have, sorted; it reads all of them, step by step."""
        last, found = 0, set[str]()
        while (row := await self._pool.fetchrow(NAMES, tenant, last, STEP)) is not None and row["last"] is not None:
            last = row["last"]
            found.update(row["names"])
        return sorted(found)


def csv_head(names: Sequence[str]) -> str:
    """The first line, with a column for each of these custom fields."""
    return _csv([[*FIELDS, *(CUSTOM + name for name in names)]])


def csv_lines(contacts: Iterable[Contact], names: Sequence[str]) -> str:
    return _csv(
        [*(_cell(value) for value in _facts(contact).values()), *_custom_cells(contact, names)] for contact in contacts
    )


def json_lines(contacts: Iterable[Contact]) -> bytes:
    """With the names of the API."""
    return b"".join(
        msgspec.json.encode(_facts(contact) | {"custom_fields": contact.custom_fields}) + b"\n" for contact in contacts
    )


def _facts(contact: Contact) -> dict[str, Any]:
    own = {name: getattr(contact, name) for name in FIELDS[1:]}
    return {"contact_id": format_id(CONTACT, contact.id)} | own


def _custom_cells(contact: Contact, names: Sequence[str]) -> list[str]:
    return [_cell(contact.custom_fields.get(name)) for name in names]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)  # RFC 4180 section 2
    return out.getvalue()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return without_formula(value)
        case datetime():
            return value.astimezone(UTC).isoformat()
        case list():
            cell = ";".join(map(str, value))
            return without_formula(f"{cell};" if "," in cell and ";" not in cell else cell)  # it is one text
        case _:
            return without_formula(msgspec.json.encode(value).decode())
