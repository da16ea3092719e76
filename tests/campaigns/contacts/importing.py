"""What tests of imports share: a file goes in, and what became of it."""

import hashlib
from dataclasses import dataclass
from typing import Any

from mailerd.campaigns.contacts.imports.importer import Importer
from mailerd.campaigns.contacts.imports.receiving import Receiver, Request
from mailerd.campaigns.contacts.imports.store import Import, ImportStore
from mailerd.campaigns.contacts.imports.values import RefusedRow, Settings
from mailerd.db import Pool
from mailerd.queue.suppression import SuppressionStore

SECRET = b"secret of the installation"
TENANT = "default"
STATE = (
    """SELECT address, email, first_name, last_name, phone, time_zone, custom_fields::text, unsubscribed_at IS NULL,
              ARRAY(SELECT t.name FROM contact_tags AS ct JOIN tags AS t ON t.id = ct.tag_id
                     WHERE ct.contact_id = c.id ORDER BY t.name) AS tags,
              ARRAY(SELECT list_id || ' ' || status FROM list_contacts WHERE contact_id = c.id ORDER BY list_id)
         FROM contacts AS c ORDER BY tenant, address""",
    "SELECT address, list_id, action, method, text_version, ip, actor FROM consents ORDER BY address, list_id, action",
    "SELECT id, name, contact_count FROM contact_lists ORDER BY id",
    "SELECT address, tenant, stream, reason FROM suppressions ORDER BY address, reason",
    "SELECT line, code, detail, content FROM contact_import_errors ORDER BY import_id, line",
    "SELECT count(*) FROM contact_import_parts",
)


@dataclass
class Imports:
    """Imports of one database, carried out at once."""

    pool: Pool
    url: str

    @property
    def store(self) -> ImportStore:
        return ImportStore(self.pool)

    def importer(self, **options: Any) -> Importer:
        return Importer(self.url, self.pool, SuppressionStore(self.pool), SECRET, **options)

    async def receive(self, data: bytes, *, size: int = 1 << 20, most: int = 1 << 30, **asked: Any) -> Import:
        """The file comes in by pieces; nothing is imported yet."""
        settings = {name: asked.pop(name) for name in Settings.__struct_fields__ if name in asked}
        request = Request(**{"tenant": TENANT, "created_by": "api:test"} | asked, settings=Settings(**settings))
        async with await Receiver.begin(self.store, request, most) as receiver:
            for n in range(0, len(data), size):
                await receiver.feed(data[n : n + size])
            return await receiver.finish()

    async def run(self, data: bytes | str, **asked: Any) -> Import:
        """The import when it is over."""
        made = await self.receive(data.encode() if isinstance(data, str) else data, **asked)
        assert await self.importer().advance(made.id)
        return await self.get(made.id)

    async def get(self, id_: int) -> Import:
        found = await self.store.get(id_, None)
        assert found is not None
        return found

    async def errors(self, made: Import) -> list[RefusedRow]:
        return [row async for page in self.store.errors(made.id) for row in page]

    async def contact(self, address: str) -> dict[str, Any]:
        row = await self.pool.fetchrow("SELECT * FROM contacts WHERE address = $1", address)
        assert row is not None
        return dict(row)

    async def list(self, name: str = "news") -> int:
        """A new static list."""
        statement = "INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, $2, 'test') RETURNING id"
        return int(await self.pool.fetchval(statement, TENANT, name))

    async def on_list(self, list_id: int) -> dict[str, str]:
        statement = "SELECT address, status FROM list_contacts JOIN contacts ON id = contact_id WHERE list_id = $1"
        return {row["address"]: row["status"] for row in await self.pool.fetch(statement, list_id)}

    async def state(self) -> str:
        """A digest of all that imports write, but numbers of contacts and times."""
        rows = [tuple(row) for statement in STATE for row in await self.pool.fetch(statement)]
        return hashlib.sha256(repr(rows).encode()).hexdigest()
