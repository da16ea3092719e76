"""What is forgotten of campaigns, with the events: single opens and clicks, minutes and quarter hours. Sums stay."""

from datetime import datetime

from mailerd.campaigns.analytics.rollups import quarter_hour
from mailerd.db import Pool

STEP = 20_000  # rows of one statement
STEPS = 10  # of one call
MINUTES = 15  # of a quarter hour
ENGAGEMENTS = """
    DELETE FROM engagements WHERE ctid = ANY (ARRAY(SELECT ctid FROM engagements WHERE at < $1 LIMIT $2))
"""
# Of campaigns that are as old, locked in the order in which they are added to.
QUARTER_HOURS = """
    DELETE FROM campaign_quarter_hours WHERE (campaign_id, quarter_hour) IN (
        SELECT own.campaign_id, own.quarter_hour FROM campaigns AS c
          JOIN campaign_quarter_hours AS own ON own.campaign_id = c.id AND own.quarter_hour < $1
         WHERE c.created_at < $1 ORDER BY own.campaign_id, own.quarter_hour LIMIT $2 FOR UPDATE OF own)
    RETURNING campaign_id, quarter_hour
"""
OF_THEM = """
    DELETE FROM campaign_minutes AS own
     USING unnest($1::bigint[], $2::timestamptz[]) AS gone (campaign_id, quarter_hour)
     WHERE own.campaign_id = gone.campaign_id AND own.minute >= gone.quarter_hour
       AND own.minute < gone.quarter_hour + interval '15 minutes'
"""


class RetentionStore:
    """Forgets, in steps that hold no locks for long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def forget(self, before: datetime, *, step: int = STEP) -> None:
        """Some of what is older than `before`; call it again every now and then, from any node.

        Minutes go by whole quarter hours, together with these: reports of hours show what those of minutes do.
        """
        for _ in range(STEPS):
            if await self._pool.execute(ENGAGEMENTS, before, step) != f"DELETE {step}":
                break
        at_once = max(1, step // MINUTES)
        for _ in range(STEPS):
            if await self._forget_quarter_hours(quarter_hour(before), at_once) < at_once:
                break

    async def _forget_quarter_hours(self, before: datetime, most: int) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            gone = await connection.fetch(QUARTER_HOURS, before, most)
            # Only now, when nobody else has these in hand: a statement sees what was there when it began.
            await connection.execute(OF_THEM, [row[0] for row in gone], [row[1] for row in gone])
        return len(gone)
