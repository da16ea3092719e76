"""Statistics of tables that have just grown."""

from mailerd.campaigns.statistics import StatisticsStore
from mailerd.db import connect_pool

GROW = """
    INSERT INTO list_contacts (list_id, contact_id, source) SELECT 1, n, 'test' FROM generate_series(1, 5000) AS n
"""


async def test_what_has_grown_a_moment_ago_is_known_to_the_planner(database: str) -> None:
    pool = await connect_pool(database, min=1, max=1)
    try:
        await pool.execute(GROW)
        await pool.execute("SELECT pg_stat_force_next_flush()")
        await StatisticsStore(pool).refresh()
        assert await pool.fetchval("SELECT reltuples FROM pg_class WHERE relname = 'list_contacts'") == 5000
    finally:
        await pool.close()
