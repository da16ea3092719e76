"""Storing: each hit once, whoever dies when, and nothing waits for the database."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mailerd.campaigns.tracking import files, storing
from mailerd.campaigns.tracking.files import HitLog, left_behind
from mailerd.campaigns.tracking.records import Hit, encode
from mailerd.campaigns.tracking.store import HitStore
from mailerd.campaigns.tracking.storing import Storing
from mailerd.db import Pool, connect_pool
from tests.support.database_proxy import DatabaseProxy

WRITER = Path(__file__).with_name("writer.py")
KILLS = 5


def hits(first: int, last: int) -> list[Hit]:
    return [
        Hit(at=1_800_000_000_000_000 + n, kind="opened", message_id=1, campaign_id=2, contact_id=n)
        for n in range(first, last)
    ]


class Node:
    """One worker's files and what stores them."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        self.pool = pool
        self.directory = directory
        self.log = HitLog(directory, "node", milliseconds=lambda: 1_800_000_000_000)
        self.store = HitStore(pool)
        self.storing = Storing(self.log, self.store, directory, "node")

    def write(self, first: int, last: int) -> None:
        self.log.write([encode(hit) for hit in hits(first, last)])

    async def contacts(self) -> list[int]:
        return [row["contact_id"] for row in await self.pool.fetch("SELECT contact_id FROM hits ORDER BY id")]


@pytest.fixture
def node(pool: Pool, directory: Path) -> Node:
    return Node(pool, directory)


async def test_hits_are_stored_piece_by_piece_in_their_order(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "PIECE", 200)
    node.write(0, 50)
    assert await node.storing.turn()
    node.write(50, 60)
    assert await node.storing.turn()

    assert await node.contacts() == list(range(60))


async def test_every_field_arrives(node: Node) -> None:
    hit = Hit(
        at=1_800_000_000_123_456,
        kind="clicked",
        message_id=2**63 - 1,
        campaign_id=2,
        contact_id=3,
        link=4,
        url="https://bücher.example/?a=b",
        method="HEAD",
        ip="192.0.2.1",
        user_agent="Mozilla/5.0 😀",
        times=7,
    )
    node.log.write([encode(hit)])
    await node.storing.turn()

    async with node.pool.acquire() as connection:
        (stored,) = await node.store.of_messages(connection, [2**63 - 1])
    assert stored.hit == hit


async def test_what_a_dead_worker_left_is_taken_over_and_its_torn_end_is_told(
    node: Node, pool: Pool, directory: Path
) -> None:
    dead = Node(pool, directory)
    dead.write(0, 10)
    await dead.storing.turn()
    dead.write(10, 20)
    dead.log.write([encode(hits(20, 21)[0])[:-1]])
    dead.log.rotate()

    with capture_logs() as logs:
        assert await node.storing.turn()

    assert await node.contacts() == list(range(20))
    assert [entry["event"] for entry in logs] == ["hits.torn"]
    assert list(directory.iterdir()) == []
    assert await pool.fetchval("SELECT count(*) FROM hit_files") == 0


async def test_what_a_living_worker_writes_is_left_alone(node: Node, pool: Pool, directory: Path) -> None:
    Node(pool, directory).write(0, 10)

    assert await node.storing.turn()
    assert await node.contacts() == []
    assert len(left_behind(directory)) == 1


async def test_another_file_is_begun_when_all_of_a_large_one_is_stored(
    node: Node, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "DONE", 100)
    monkeypatch.setattr(storing, "LOOK_EVERY", 0.0)
    node.write(0, 10)
    await node.storing.turn()
    node.write(10, 11)
    await node.storing.turn()

    assert await node.contacts() == list(range(11))
    (path,) = left_behind(directory)
    assert path.stat().st_size < 100


async def test_a_piece_is_stored_once_whoever_comes_when(node: Node) -> None:
    assert await node.store.add("file", 0, 100, hits(0, 1))
    assert not await node.store.add("file", 0, 100, hits(0, 1))
    assert await node.store.add("file", 100, 200, hits(1, 2))
    assert not await node.store.add("file", 100, 150, hits(1, 2))
    assert await node.store.stored("file") == 200
    await node.store.forget(["file"])
    assert not await node.store.add("file", 200, 300, hits(2, 3))

    assert await node.contacts() == [0, 1]


async def test_two_who_store_the_same_file_at_once_store_it_once(
    node: Node, pool: Pool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "PIECE", 300)
    node.write(0, 200)
    other = Storing(node.log, HitStore(pool), directory, "node")
    await asyncio.gather(node.storing.turn(), other.turn())

    assert await node.contacts() == list(range(200))


async def test_a_file_that_was_stored_before_the_crash_is_not_stored_again(
    node: Node, pool: Pool, directory: Path
) -> None:
    dead = Node(pool, directory)
    dead.write(0, 10)
    await dead.storing.turn()
    dead.log.rotate()
    await node.storing.turn()

    assert await node.contacts() == list(range(10))
    assert left_behind(directory) == []


async def test_files_that_are_no_more_are_forgotten_after_a_day(node: Node, pool: Pool) -> None:
    old, other = "node.1700000000000.a", "elsewhere.1700000000000.a"
    new = "node.99999999999999.b"
    await pool.executemany("INSERT INTO hit_files VALUES ($1, 5)", [(old,), (other,), (new,)])
    await node.storing.turn()

    assert {row["name"] for row in await pool.fetch("SELECT name FROM hit_files")} == {other, new}


async def test_hits_wait_while_the_database_is_away(database: str, directory: Path, tmp_path: Path) -> None:
    async with DatabaseProxy(database, tmp_path) as proxy, await connect_pool(proxy.url, min=0) as through:
        node = Node(through, directory)
        node.write(0, 5)
        await node.storing.turn()
        proxy.stop()
        node.write(5, 10)
        with capture_logs() as logs:
            assert not await node.storing.turn()
        assert [entry["event"] for entry in logs] == ["hits.waiting"]
        await proxy.start()
        assert await node.storing.turn()
        assert await node.contacts() == list(range(10))


async def test_when_all_files_are_too_large_the_oldest_goes_and_its_hits_are_counted(
    node: Node, pool: Pool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> int:
        raise OSError("the database is away")

    monkeypatch.setattr(node.store, "stored", away)
    monkeypatch.setattr(files.too_many, "__defaults__", (1_000,))
    for first in range(0, 100, 10):
        node.write(first, first + 10)
        node.log.rotate()
    with capture_logs() as logs:
        assert not await node.storing.turn()

    dropped = [entry["hits"] for entry in logs if entry["event"] == "hits.dropped"]
    assert dropped == [10] * len(dropped) != []
    assert sum(path.stat().st_size for path in left_behind(directory)) <= 1_000


async def test_the_end_stores_what_was_written(node: Node, directory: Path) -> None:
    node.write(0, 10)
    await node.storing.finish()

    assert await node.contacts() == list(range(10))
    assert node.log.file is None


async def test_kill_9_at_any_moment_loses_nothing_and_doubles_nothing(
    node: Node, database: str, directory: Path
) -> None:
    written: set[int] = set()
    for round_ in range(KILLS):
        written |= await asyncio.to_thread(write_and_be_killed, database, directory, round_ * 1_000_000, round_ != 2)
    for path in left_behind(directory):
        assert not await locked(path)
    await node.storing.turn()

    contacts = await node.contacts()
    assert len(contacts) == len(set(contacts)), "some were stored twice"
    assert written <= set(contacts), "some were lost"
    assert len(contacts) - len(written) <= KILLS, "only what was being written when it died was not told"
    assert left_behind(directory) == []


async def locked(path: Path) -> bool:
    """A killed process lets go of its locks as soon as it is reaped."""
    with files.taken(path) as file:
        return file is None


def write_and_be_killed(url: str, directory: Path, first: int, stores: bool) -> set[int]:
    """The numbers that a process had written when it was killed, in the middle of it."""
    command = [sys.executable, str(WRITER), url, str(directory), str(first), str(int(stores))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1_500 + first // 4_000)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    return {int(line) for line in lines if line.endswith(b"\n")}
