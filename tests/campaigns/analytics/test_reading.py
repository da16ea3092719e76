"""Where reports are read: on the replica, and on the database while that is away."""

import pytest

from mailerd.campaigns.analytics.reading import Reading
from mailerd.db import Connection, Pool
from tests.support.postgres import TestPostgres


async def name(connection: Connection) -> str:
    return str(await connection.fetchval("SELECT current_database()"))


async def test_reports_are_read_on_the_replica_and_what_must_be_of_now_is_not(
    postgres: TestPostgres, pool: Pool
) -> None:
    other = await postgres.fresh()
    reading = Reading(pool, postgres.url_of(other))
    try:
        assert await reading.soon(name) == other
        assert await reading.now(name) != other
    finally:
        await reading.close()
        await postgres.drop(other)


async def test_while_the_replica_is_away_the_database_answers(postgres: TestPostgres, pool: Pool) -> None:
    own = await pool.fetchval("SELECT current_database()")

    away = Reading(pool, "postgresql://nobody@127.0.0.1:1/none")
    assert [await away.soon(name) for _ in range(2)] == [own, own]
    assert await Reading(pool).soon(name) == own


async def test_a_replica_that_goes_away_or_is_behind_is_made_up_for(postgres: TestPostgres, pool: Pool) -> None:
    own = await pool.fetchval("SELECT current_database()")
    other = await postgres.fresh(migrated=False)  # as one that has not got the schema yet
    reading = Reading(pool, postgres.url_of(other))

    async def read(connection: Connection) -> str:
        await connection.fetch("SELECT campaign_id FROM campaign_totals")
        return await name(connection)

    assert await reading.soon(name) == other
    assert await reading.soon(read) == own
    assert await reading.soon(name) == own, "for a while it is not asked again"
    await reading.close()
    await postgres.drop(other)


async def test_what_is_wrong_with_a_statement_is_said(pool: Pool) -> None:
    async def wrong(connection: Connection) -> None:
        await connection.fetch("SELECT 1 / 0")

    with pytest.raises(Exception, match="division by zero"):
        await Reading(pool).soon(wrong)
