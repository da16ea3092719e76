"""The database fails over, is slow to commit, or has no connection left: 451 at worst, and mail goes on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailerd import db
from mailerd.db.embedded import EmbeddedPostgres
from tests.faults.laboratory import Laboratory, laboratory
from tests.faults.test_kills import assert_kept
from tests.support.database_proxy import DatabaseProxy
from tests.support.postgres import SMALL
from tests.support.replicated import Replicated

SLOW = 0.2  # seconds before each answer of the database
CONNECTIONS = 40  # what it has for everybody


async def test_fail_over_to_a_synchronous_standby_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    servers = Replicated(tmp_path / "servers")
    await servers.start()
    (tmp_path / "proxy").mkdir()
    try:
        async with (
            DatabaseProxy(servers.first.url, tmp_path / "proxy") as proxy,
            laboratory(tmp_path, database_url=proxy.url) as lab,
        ):
            load = lab.load(smtp=8, http=2)
            load.start()
            await load.until_promised(100)
            servers.lose_first()
            await servers.promote()
            proxy.turn_to(servers.second.url)
            await load.until_promised(100)
            await load.stop()

            assert_kept(await lab.verdict(load))
            assert {answer[:3] for answer in load.promises.refused.values()} <= {"451", "503"}
            assert len(lab.daemon.workers()) == 2
    finally:
        await servers.stop()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of somebody's own, durable."""
    server = EmbeddedPostgres(tmp_path / "server", SMALL, connections=CONNECTIONS)
    await server.start()
    yield server
    await server.stop(5.0)


async def test_commits_that_take_long_are_waited_for_and_nothing_is_refused_or_sent_twice(
    tmp_path: Path, server: EmbeddedPostgres
) -> None:
    (tmp_path / "proxy").mkdir()
    async with (
        DatabaseProxy(server.url, tmp_path / "proxy") as proxy,
        laboratory(tmp_path, database_url=proxy.url) as lab,
    ):
        load = lab.load(smtp=20, http=2)
        load.start()
        await load.until_promised(50)
        proxy.slow = SLOW
        await load.until_promised(150)
        proxy.slow = 0.0
        await load.until_promised(50)
        await load.stop()

        comparison = await lab.verdict(load)
        assert_kept(comparison)
        assert comparison.refused == comparison.unanswered == comparison.duplicates == 0


async def test_where_no_connection_is_left_mail_is_451_at_worst_the_log_says_so_and_it_goes_on(
    tmp_path: Path, server: EmbeddedPostgres
) -> None:
    async with laboratory(tmp_path, database_url=server.url) as lab:
        load = lab.load(smtp=8, http=2)
        load.start()
        await load.until_promised(50)
        async with others(server.url):
            # All sessions end, and the others have taken the places before anybody is back.
            await said(lab, "remaining connection slots are reserved", "too many clients")
            assert lab.daemon.process.returncode is None
        await load.until_promised(100)
        await load.stop()

        assert_kept(await lab.verdict(load))
        assert {answer[:3] for answer in load.promises.refused.values()} <= {"451", "503"}


class others:  # noqa: N801 - read as a sentence
    """Programs beside ours that take every connection there is, and end ours."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connections: list[db.Connection] = []

    async def __aenter__(self) -> None:
        first = await db.connect(self._url)
        await first.execute("SET application_name = 'others'")
        self._connections.append(first)
        await first.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        for _ in range(CONNECTIONS):
            try:
                self._connections.append(await db.connect(self._url))
            except db.DatabaseError:
                break

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            await connection.close()


async def said(lab: Laboratory, *words: str) -> None:
    """Wait until the log has one of these."""
    async with asyncio.timeout(60):
        while not any(word in line for line in lab.daemon.log_lines() for word in words):
            await asyncio.sleep(0.1)
