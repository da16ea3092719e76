"""Followers: each event in its order, at least once or exactly once, by one process at a time, whatever breaks."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mailerd import db
from mailerd.events import START, Event, EventStore, FollowerStore, Recorded
from mailerd.feedback import following as module
from mailerd.feedback.following import FollowerError, Following
from tests.support.database_proxy import DatabaseProxy

TOP = Path(__file__).parents[2]
HOLDER = """
import asyncio, sys
from mailerd import db
from mailerd.feedback.following import Following
async def main(url):
    pool = await db.connect_pool(url, max=2)
    async def read(events):
        print("read", flush=True)
    await Following(url, pool, poll=0.05).run("log", read, start="beginning")
asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_AGAIN", 0.05)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[db.Pool]:
    async with await db.connect_pool(database, min=0, max=6) as pool:
        yield pool


class Reader:
    """Remembers the messages of what it is handed; fails on those in `bad`."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.failures = 0
        self.bad: set[int] = set()
        self.changed = asyncio.Event()

    async def __call__(self, events: Sequence[Recorded]) -> None:
        ids = [each.event.message_id for each in events]
        if self.bad & set(ids):
            self.failures += 1
            self.changed.set()
            raise FollowerError("not this one")
        self.seen += ids
        self.changed.set()

    async def until(self, *expected: int) -> None:
        async with asyncio.timeout(20):
            while self.seen != list(expected):
                self.changed.clear()
                await self.changed.wait()

    async def until_last(self, *expected: int) -> None:
        """What was read when something broke may have come again before."""
        async with asyncio.timeout(20):
            while tuple(self.seen[-len(expected) :]) != expected:
                self.changed.clear()
                await self.changed.wait()

    async def until_failed(self, times: int) -> None:
        async with asyncio.timeout(20):
            while self.failures < times:
                self.changed.clear()
                await self.changed.wait()


async def append(pool: db.Pool, *ids: int, **changes: str) -> None:
    values = {"type": "recipient.delivered", "stream": "transactional"} | changes
    some = [Event(datetime.now(UTC), message_id=id_, n=1, address="a@b.example", tenant="t", **values) for id_ in ids]
    async with pool.acquire() as connection, connection.transaction():
        await EventStore(pool).append(connection, some)


@asynccontextmanager
async def followed(url: str, pool: db.Pool, *readers: Reader, **options: object) -> AsyncIterator[Following]:
    """All of them follow as `log`, one at a time."""
    following = Following(url, pool, poll=0.02)
    options = {"start": "beginning"} | options
    tasks = [asyncio.create_task(following.run("log", reader, **options)) for reader in readers]  # type: ignore[arg-type]
    try:
        yield following
    finally:
        await following.stop()
        await asyncio.gather(*tasks)


async def test_events_come_in_their_order_and_go_on_where_they_were_left(database, pool):
    await append(pool, 1, 2, 3)
    reader, second = Reader(), Reader()
    async with followed(database, pool, reader, limit=2):
        await reader.until(1, 2, 3)
        await append(pool, 4)
        await reader.until(1, 2, 3, 4)
    await append(pool, 5)
    async with followed(database, pool, second):
        await second.until(5)


async def test_who_starts_now_gets_what_comes_later(database, pool):
    await append(pool, 1)
    reader = Reader()
    async with followed(database, pool, reader, start="now"):
        async with asyncio.timeout(20):
            while await FollowerStore(pool).position("log") is None:
                await asyncio.sleep(0)
        await append(pool, 2)
        await reader.until(2)


async def test_only_what_fits_comes_and_the_position_moves_over_the_rest(database, pool):
    reader = Reader()
    async with followed(database, pool, reader, types=["recipient.bounced"], streams=["marketing"]):
        await append(pool, 1)
        await append(pool, 2, type="recipient.bounced")
        await append(pool, 3, type="recipient.bounced", stream="marketing")
        await append(pool, 4)
        await reader.until(3)
    async with followed(database, pool, Reader(), types=["recipient.bounced"]), asyncio.timeout(20):
        while (await EventStore(pool).behind((await FollowerStore(pool).position("log")) or START)).events:
            await asyncio.sleep(0)


async def test_a_page_that_fails_comes_again_before_anything_else(database, pool):
    reader = Reader()
    reader.bad = {2}
    async with followed(database, pool, reader, limit=1):
        await append(pool, 1, 2, 3)
        await reader.until_failed(3)
        assert reader.seen == [1]
        reader.bad = set()
        await reader.until(1, 2, 3)


async def test_what_was_read_before_a_stop_is_not_read_again(database, pool):
    await append(pool, 1)
    entered, leave = asyncio.Event(), asyncio.Event()

    async def read(_: Sequence[Recorded]) -> None:
        entered.set()
        await leave.wait()

    following = Following(database, pool)
    task = asyncio.create_task(following.run("log", read, start="beginning"))
    await entered.wait()
    stopping = asyncio.create_task(following.stop())
    leave.set()
    await stopping
    await task
    assert (await EventStore(pool).behind(await FollowerStore(pool).position("log") or START)).events == 0


async def test_a_reader_that_does_not_end_is_cut_off_and_its_page_comes_again(database, pool):
    await append(pool, 1)
    entered = asyncio.Event()

    async def read(_: Sequence[Recorded]) -> None:
        entered.set()
        await asyncio.Event().wait()

    following = Following(database, pool)
    task = asyncio.create_task(following.run("log", read, start="beginning"))
    await entered.wait()
    await following.stop(0.01)
    await asyncio.gather(task, return_exceptions=True)
    reader = Reader()
    async with followed(database, pool, reader):
        await reader.until(1)


async def test_of_several_one_reads(database, pool):
    readers = [Reader() for _ in range(3)]
    async with followed(database, pool, *readers[:2]), followed(database, pool, readers[2]):
        for id_ in range(30):
            await append(pool, id_)
        async with asyncio.timeout(20):
            while sum(len(reader.seen) for reader in readers) < 30:
                await asyncio.sleep(0)
    assert sorted(len(reader.seen) for reader in readers) == [0, 0, 30]


async def test_another_process_takes_over_when_one_is_killed(database, pool):
    await append(pool, 1)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, database], cwd=TOP, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    await asyncio.to_thread(lambda out: next(line for line in out if line == "read\n"), holder.stdout)
    reader = Reader()
    async with followed(database, pool, reader):
        holder.kill()
        holder.communicate()
        await append(pool, 2)
        await reader.until_last(2)


async def test_another_takes_over_when_the_connection_of_one_is_lost(database, pool, tmp_path):
    first, second = Reader(), Reader()
    async with DatabaseProxy(database, tmp_path) as proxy, followed(proxy.url, pool, first):
        await append(pool, 1)
        await first.until(1)
        async with followed(database, pool, second):
            proxy.stop()
            await append(pool, 2)
            await second.until_last(2)
            assert first.seen == [1]


async def test_a_database_that_was_away_is_followed_again(database, pool, tmp_path):
    async with DatabaseProxy(database, tmp_path) as proxy:
        reader = Reader()
        through = await db.connect_pool(proxy.url, min=0, max=2)
        async with through, followed(proxy.url, through, reader):
            await append(pool, 1)
            await reader.until(1)
            proxy.stop()
            await append(pool, 2)
            await proxy.start()
            await reader.until_last(2)


async def test_who_was_moved_back_reads_again_and_who_was_forgotten_begins_anew(database, pool):
    reader = Reader()
    async with followed(database, pool, reader):
        await append(pool, 1)
        await reader.until(1)
        await FollowerStore(pool).advance("log", START)
        await append(pool, 2)
        await reader.until_last(1, 2)
        await FollowerStore(pool).forget("log")
        reader.seen.clear()
        await append(pool, 3)
        await reader.until_last(1, 2, 3)


async def test_within_our_database_each_event_counts_exactly_once(database, pool):
    await pool.execute("CREATE TABLE counted (message_id bigint)")
    failures = iter([True, True, False, True])
    done = asyncio.Event()

    async def read(events: Sequence[Recorded], connection: db.Connection) -> None:
        ids = [(each.event.message_id,) for each in events]
        await connection.executemany("INSERT INTO counted VALUES ($1)", ids)
        if next(failures, False):
            raise FollowerError("after it was written")
        if ids[-1] == (20,):
            done.set()

    following = Following(database, pool, poll=0.02)
    task = asyncio.create_task(following.run_within("counts", read, start="beginning", limit=3))
    for id_ in range(1, 21):
        await append(pool, id_)
    async with asyncio.timeout(20):
        await done.wait()
    await following.stop()
    await task
    rows = await pool.fetch("SELECT message_id FROM counted ORDER BY message_id")
    assert [row["message_id"] for row in rows] == list(range(1, 21))
