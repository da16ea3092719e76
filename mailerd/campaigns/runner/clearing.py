"""Clearing: rows of a campaign that was cancelled, or failed, wait for nothing any more."""

from collections.abc import Callable
from datetime import datetime

from mailerd.campaigns.analytics.counts import Delta
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.campaigns.ledger import LedgerStore
from mailerd.campaigns.runner.runs import RunStore
from mailerd.db import Pool

STEP = 10_000  # rows of one transaction


class Clearing:
    """Gives up rows in steps."""

    def __init__(self, pool: Pool, clock: Callable[[], datetime], *, size: int = STEP) -> None:
        self._pool = pool
        self._clock = clock
        self._size = size
        self._runs = RunStore(pool)
        self._ledger = LedgerStore()
        self._roll_ups = RollUpStore()

    async def step(self) -> bool:
        """Up to so many rows of one campaign that is over; False: no such campaign has any, or others are at it."""
        async with self._pool.acquire() as connection, connection.transaction():
            found = await self._runs.left_over(connection)
            if found is None:
                return False
            campaign_id, tenant = found
            now = self._clock()
            gone = await self._ledger.cancel(connection, campaign_id, now, most=self._size)
            if sum(gone.values()) < self._size:
                await self._runs.cleared(connection, campaign_id)
            deltas = (Delta(campaign_id, tenant, now, domain, {"cancelled": count}) for domain, count in gone.items())
            await self._roll_ups.add(connection, deltas)
        return True
