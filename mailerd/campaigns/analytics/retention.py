"""What is forgotten of campaigns, with the events: single opens and clicks, and minutes. Sums stay."""

from datetime import datetime

from mailerd.db import Pool

STEP = 20_000  # rows of one statement
STEPS = 10  # of one call
ENGAGEMENTS = """
    DELETE FROM engagements WHERE ctid = ANY (ARRAY(SELECT ctid FROM engagements WHERE at < $1 LIMIT $2))
"""
# Of campaigns that are as old: the minutes of each stand together, in the order of time.
MINUTES = """
    DELETE FROM campaign_minutes WHERE (campaign_id, minute) IN (
        SELECT own.campaign_id, own.minute FROM campaigns AS c
          JOIN campaign_minutes AS own ON own.campaign_id = c.id AND own.minute < $1
         WHERE c.created_at < $1 LIMIT $2)
"""


class RetentionStore:
    """Forgets, in steps that hold no locks for long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def forget(self, before: datetime, *, step: int = STEP) -> None:
        """Some of what is older than `before`; call it again every now and then, from any node."""
        for statement in (ENGAGEMENTS, MINUTES):
            for _ in range(STEPS):
                done = await self._pool.execute(statement, before, step)
                if done != f"DELETE {step}":
                    break
