"""A server that we lost sight of commits in the end: what its submitter was refused is not sent all the same."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from mailerd.errors import Unavailable
from mailerd.queue import commit
from tests.support.database_proxy import DatabaseProxy
from tests.support.dns_server import DnsServer
from tests.support.relay import relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx

# The commit of a message waits as long as somebody holds the lock 42.
SLOW_COMMITS = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait()
"""
STUCK = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def stuck(connection: asyncpg.Connection, count: int) -> None:
    """Return when so many others wait for a lock."""
    async with asyncio.timeout(60):
        while await connection.fetchval(STUCK) < count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("memory", [1_000, 1], ids=["kept in memory", "left in the database"])
async def test_who_waits_is_told_what_became_of_it_when_the_commit_takes_longer_than_the_connection_lives(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path, memory: int
) -> None:
    """Told 451 he would send it again, and it would arrive twice."""
    around = await asyncpg.connect(database)
    await around.execute(SLOW_COMMITS)
    config = relay_config(tmp_path, dns, mx.port)
    config = replace(config, delivery=replace(config.delivery, memory_messages=memory))
    async with DatabaseProxy(database, tmp_path) as proxy, running_relay(config, proxy.url) as relay:
        await around.execute("SELECT pg_advisory_lock(42)")
        submitting = asyncio.create_task(relay.submit("bob@example.net"))
        await stuck(around, 1)
        proxy.cut(server_sees=False)
        await asyncio.sleep(1)
        assert not submitting.done()
        await around.execute("SELECT pg_advisory_unlock(42)")
        receipt = await submitting
        relay.relay.dispatcher.claims.wake()
        await relay.settled()
        assert await relay.states(receipt) == ["delivered"]
        assert len(mx.delivered) == 1
    await around.close()


async def test_what_was_refused_is_not_freed_as_astray_when_the_server_commits_it_late(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim was lost with it, so that the worker looks for what it may own: that is not given up for anybody."""
    monkeypatch.setattr(commit, "RESOLVE_FOR", 0.5)
    around = await asyncpg.connect(database)
    await around.execute(SLOW_COMMITS)
    async with (
        DatabaseProxy(database, tmp_path) as proxy,
        running_relay(relay_config(tmp_path, dns, mx.port), proxy.url) as relay,
    ):
        await around.execute("SELECT pg_advisory_lock(42)")
        refused = asyncio.create_task(relay.submit("bob@example.net"))
        await stuck(around, 1)
        proxy.cut(server_sees=False)
        with pytest.raises(Unavailable):
            await refused
        relay.relay.dispatcher.strayed()
        await stuck(around, 2)
        await around.execute("SELECT pg_advisory_unlock(42)")
        async with asyncio.timeout(60):
            while await around.fetchval("SELECT count(*) FROM messages"):
                relay.relay.dispatcher.claims.wake()
                await asyncio.sleep(0.02)
        await relay.settled()
        assert mx.delivered == []
    await around.close()
