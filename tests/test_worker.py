"""What a worker hears from the database: again after it was away, and by one connection."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from structlog.testing import capture_logs

from mailerd.db import connected
from mailerd.worker import listen
from tests.support.database_proxy import DatabaseProxy

OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_is_told_is_heard_again_after_the_connection_was_lost(database: str, tmp_path: Path) -> None:
    heard: list[str] = []
    begun: list[int] = []

    async def caught_up() -> None:
        begun.append(len(heard))

    async with DatabaseProxy(database, tmp_path) as proxy, connected(database) as connection:
        listening = asyncio.create_task(listen(proxy.url, {"words": heard.append}, begun=caught_up, again=0.05))
        for number, word in enumerate(("one", "two")):
            await until(lambda number=number: len(begun) > number)  # type: ignore[misc]
            await connection.execute("SELECT pg_notify('words', $1)", word)
            await until(lambda word=word: word in heard)  # type: ignore[misc]
            proxy.cut()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert heard == ["one", "two"]


async def test_a_channel_that_cannot_be_listened_to_costs_no_connection_each_time(database: str) -> None:
    async def never() -> None:
        raise AssertionError

    async with connected(database) as connection:
        with capture_logs() as logs:
            listening = asyncio.create_task(listen(database, {"": print}, begun=never, again=0.02))
            await until(lambda: len(logs) >= 20)
            assert await connection.fetchval(OTHERS) < 10
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    assert {log["event"] for log in logs} == {"recall.failed"}
