"""A book of contacts on a real database, with a clock that stands still until a test moves it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.campaigns.contacts.book import ContactBook, build_contacts
from mailerd.campaigns.contacts.store import ContactValues
from mailerd.db import Pool, connect_pool
from mailerd.queue.suppression import SuppressionStore

SECRET = b"secret of the installation"
TENANT = "acme"


@dataclass
class StillClock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Contacts:
    """Contacts of one tenant."""

    pool: Pool
    book: ContactBook
    suppressions: SuppressionStore
    clock: StillClock

    async def add(self, email: str = "ann@example.com", *, tenant: str = TENANT, **values: Any) -> int:
        names = set(ContactValues.__struct_fields__) & values.keys()
        given = ContactValues(email=email, **{name: values.pop(name) for name in names})
        async with self.pool.acquire() as connection, connection.transaction():
            return await self.book.contacts.create(connection, tenant, given, source="test", **values)

    async def add_list(self, name: str = "news", *, tenant: str = TENANT) -> int:
        async with self.pool.acquire() as connection, connection.transaction():
            made = await self.book.lists.create(connection, tenant, name, created_by="test", now=self.clock())
        return made.id

    async def join(self, list_id: int, *contact_ids: int) -> Any:
        return await self.book.members.add(TENANT, list_id, contact_ids, source="test", now=self.clock())

    async def status(self, contact_id: int) -> str:
        contact = await self.book.contacts.get(TENANT, contact_id)
        assert contact is not None
        return contact.status

    async def count(self, list_id: int) -> int:
        """What the list says; it must be what is true."""
        said = await self.pool.fetchval("SELECT contact_count FROM contact_lists WHERE id = $1", list_id)
        counted = await self.pool.fetchval(
            "SELECT count(*) FROM list_contacts WHERE list_id = $1 AND status = 'subscribed'", list_id
        )
        assert said == counted
        return int(said)

    async def statuses(self, contact_id: int) -> dict[int, str]:
        return {each.list_id: each.status for each in await self.book.subscriptions.of(TENANT, contact_id)}


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=6)
    yield pool
    await pool.close()


@pytest.fixture
def contacts(pool: Pool) -> Contacts:
    clock = StillClock(datetime.now(UTC).replace(microsecond=0))
    suppressions = SuppressionStore(pool)
    return Contacts(pool, build_contacts(pool, suppressions, SECRET, clock), suppressions, clock)
