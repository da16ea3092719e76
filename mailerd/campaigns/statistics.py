"""What PostgreSQL knows of tables that have just grown: without it a join of a new list takes the square of its length.

Autovacuum looks after them within minutes; a campaign to what was imported a moment ago does not wait for it.
"""

import asyncpg
import structlog

from mailerd.db import Pool

log = structlog.get_logger()

TABLES = ("contacts", "list_contacts", "contact_tags")
STALE = """
    SELECT relname FROM pg_stat_user_tables
     WHERE relname = ANY ($1) AND n_mod_since_analyze > 1000 + n_live_tup / 5 AND schemaname = current_schema()
"""
PATIENCE = 30.0  # seconds


class StatisticsStore:
    """Brings them up to date."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def refresh(self) -> None:
        """Of tables that have changed by a fifth, but for those that somebody else is at. Raises nothing."""
        try:
            for row in await self._pool.fetch(STALE, TABLES):
                await self._pool.execute(f"ANALYZE (SKIP_LOCKED) {row['relname']}", timeout=PATIENCE)
                log.info("statistics.refreshed", table=row["relname"])
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            log.warning("statistics.not_refreshed", error=str(error) or type(error).__name__)
