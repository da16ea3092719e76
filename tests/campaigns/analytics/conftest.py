"""A campaign that was handed over, and what happens to its mail, without a relay."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd import events
from mailerd.campaigns.analytics.agreement import AgreementStore, Difference
from mailerd.campaigns.analytics.counts import COUNTS, Delta
from mailerd.campaigns.analytics.follower import CampaignFollower
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.db import Pool, connect_pool
from mailerd.events import Event, FollowerStore
from mailerd.feedback.following import Following

NOW = datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)
FIRST = 1 << 40  # message ids begin here
CAMPAIGN = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by, status, started_at)
    VALUES ($1, 'News', 1, 'news@example.com', 'test', 'sending', $2) RETURNING id
"""
RUN = """
    INSERT INTO campaign_runs (campaign_id, tenant, version_id, written, total, next_at, started_at)
    VALUES ($1, $2, 1, true, $3, $4, $4)
"""
LEDGER = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, message_id)
    SELECT $1, n, $3, false, 1, $4::bigint + n FROM generate_series(1, $2::int) AS n
"""

SUMS = ", ".join(f"sum({name})::bigint AS {name}" for name in COUNTS)
SUMMED = f"""
    SELECT campaign_id, date_bin('15 minutes', minute, 'epoch') AS quarter_hour, {SUMS}
      FROM campaign_minutes GROUP BY 1, 2 ORDER BY 1, 2
"""
QUARTER_HOURS = f"""
    SELECT campaign_id, quarter_hour, {", ".join(COUNTS)} FROM campaign_quarter_hours ORDER BY campaign_id, quarter_hour
"""
TENANTS = f"SELECT tenant, quarter_hour, {', '.join(COUNTS)} FROM tenant_quarter_hours ORDER BY tenant, quarter_hour"
OF_CAMPAIGNS = f"""
    SELECT c.tenant, own.quarter_hour, {SUMS}
      FROM campaign_quarter_hours AS own JOIN campaigns AS c ON c.id = own.campaign_id GROUP BY 1, 2 ORDER BY 1, 2
"""


class Campaign:
    """`mailed` contacts, 1 and up, at `domain`."""

    def __init__(self, pool: Pool, id_: int, tenant: str, first: int) -> None:
        self.pool = pool
        self.id = id_
        self.tenant = tenant
        self.first = first

    def event(self, contact: int, word: str, *, after: float = 0.0, n: int = 1, **data: Any) -> Event:
        at = NOW + timedelta(seconds=after)
        address = f"User{contact}@d{contact % 3}.Example"
        return Event(
            at, f"recipient.{word}", self.first + contact, n, address, self.tenant, data or None, "m", f"cmp_{self.id}"
        )

    async def differences(self) -> list[Difference]:
        return await AgreementStore(self.pool).differences(self.id)

    async def totals(self) -> dict[str, int]:
        row = await self.pool.fetchrow("SELECT * FROM campaign_totals WHERE campaign_id = $1", self.id)
        assert row is not None
        return {name: number for name, number in row.items() if number and name != "campaign_id"}


async def begun(pool: Pool, mailed: int = 10, *, tenant: str = "default", first: int = FIRST) -> Campaign:
    """A campaign whose mail was handed over: its ledger, and the counts of that."""
    id_ = await pool.fetchval(CAMPAIGN, tenant, NOW)
    await pool.execute(RUN, id_, tenant, mailed, NOW)
    await pool.execute(LEDGER, id_, mailed, NOW, first)
    deltas = [Delta(id_, tenant, NOW, f"d{contact % 3}.example", {"queued": 1}) for contact in range(1, mailed + 1)]
    await added(pool, *deltas)
    return Campaign(pool, id_, tenant, first)


async def happened(pool: Pool, *told: Event) -> None:
    """Append the events, as those of one transaction."""
    await pool.execute(events.APPEND, *events.parameters(told))


class Follower:
    """The follower of campaigns, until it has read all that there is."""

    def __init__(self, url: str, pool: Pool) -> None:
        self.url = url
        self.pool = pool

    async def read(self, limit: int = 2_000) -> None:
        """Follow, to the end of the events there are."""
        following = Following(self.url, self.pool, poll=0.01)
        CampaignFollower(following, limit=limit).start()
        last = await self.pool.fetchrow("SELECT txid, seq FROM events ORDER BY txid DESC, seq DESC LIMIT 1")
        while last is not None:
            position = await FollowerStore(self.pool).position("campaigns")
            if position is not None and position >= tuple(last):
                break
            await asyncio.sleep(0.01)
        await following.stop()


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=4)
    yield pool
    await pool.close()


@pytest.fixture
def follower(database: str, pool: Pool) -> Follower:
    return Follower(database, pool)


async def added(pool: Pool, *deltas: Delta) -> None:
    """Add them to the roll-ups, in one transaction."""
    async with pool.acquire() as connection, connection.transaction():
        await RollUpStore().add(connection, deltas)


async def assert_in_step(pool: Pool) -> None:
    """The quarter hours are the sums of the minutes, row by row."""
    assert await pool.fetch(QUARTER_HOURS) == await pool.fetch(SUMMED)


async def assert_tenants_in_step(pool: Pool) -> None:
    """Those of tenants are the sums of those of their campaigns, row by row, where nothing was forgotten."""
    assert await pool.fetch(TENANTS) == await pool.fetch(OF_CAMPAIGNS)


def shown(rows: Sequence[Any], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]
