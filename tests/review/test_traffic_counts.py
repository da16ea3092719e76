"""What a node counts is counted once: by all its workers in one place, by one daemon of its name, in bounded memory."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mailerd import db
from mailerd.config import Config, IpAddress, Source, WarmUpOf
from mailerd.daemon.data_dir import StartError
from mailerd.daemon.node_lock import NodeLock
from mailerd.db import connect_pool
from mailerd.delivery.grants import Grants, GrantStore
from mailerd.delivery.ledger import Charge, Hold, Ledger, handed_on, open_ledger
from mailerd.delivery.warmup_budgets import MAX_PURSES, WarmUps, WarmUpStore
from tests.support.database_proxy import DatabaseProxy
from tests.support.live import LiveDaemon

NODE = "6a0f8f0e-3f0b-4a57-9b0c-2f1c3a6d5e11"
CONFIG = """
hostname: mail.test
data_dir: {{data_dir}}
workers: 2
database: {{{{url: "{url}"}}}}
listeners: [{{{{bind: "127.0.0.1:0", starttls: off, auth: optional, trusted: [127.0.0.0/8]}}}}]
http: null
routes: [{{{{match: {{{{domain: "*"}}}}, hosts: ["127.0.0.1:{{sandbox}}"], tls: none}}}}]
sandbox: {{{{bind: "127.0.0.1:{{sandbox}}"}}}}
"""


async def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.05)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose path is short enough for a UNIX socket."""
    with TemporaryDirectory(prefix="mailerd-") as directory:
        yield Path(directory)


# The ledger


def test_workers_count_together_also_when_the_name_of_the_ledger_is_gone(tmp_path: Path) -> None:
    held = open_ledger(tmp_path / "ledger", 2)
    with closing(held), closing(Ledger(handed_on(held.fileno()), 0, 2)) as first:
        hold = Hold(first.meter("mta1>mx.example"), 1)
        assert first.hold([hold], (), 1000.0) is None

        (tmp_path / "ledger").unlink()

        with closing(Ledger(handed_on(held.fileno()), 1, 2)) as second:
            assert second.hold([Hold(second.meter("mta1>mx.example"), 1)], (), 1000.0) == (0, 0.0)
            first.release([hold])
            assert second.hold([Hold(second.meter("mta1>mx.example"), 1)], (), 1000.0) is None


def test_workers_that_were_handed_one_descriptor_shut_each_other_out(tmp_path: Path) -> None:
    held = open_ledger(tmp_path / "ledger", 2)
    with (
        closing(held),
        closing(Ledger(handed_on(held.fileno()), 0, 2)) as first,
        closing(Ledger(handed_on(held.fileno()), 1, 2)) as second,
    ):
        meter = first.meter("mta1>mx.example")
        reading, writing = os.pipe()
        first.take([Charge(meter, 1.0)], 1000.0)

        children = []

        def change(state: tuple[float, ...]) -> tuple[float, ...]:
            child = os.fork()
            if child == 0:  # waits for the lock that we hold
                second.update(second.meter("mta1>mx.example"), lambda theirs: (theirs[0] + 1.0, *theirs[1:]))
                os.write(writing, b"done")
                os._exit(0)
            children.append(child)
            os.set_blocking(reading, False)
            for _ in range(1000):
                os.sched_yield()
            with pytest.raises(BlockingIOError):
                os.read(reading, 4)
            return (1.0, *state[1:])

        first.update(meter, change)
        os.waitpid(children[0], 0)  # any child would do for os.wait(), also one that somebody else awaits
        assert meter.state()[0] == 2.0


def mapped_ledgers(data_dir: Path) -> dict[int, set[str]]:
    """pid of a worker → inodes of the ledgers that it has mapped."""
    ledgers = {}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines() if f"{data_dir}/ledger" in line]
        except OSError:
            continue  # it has ended, or is none of ours
        if lines:
            ledgers[int(maps.parent.name)] = {line[4] for line in lines}
    return ledgers


async def test_a_worker_that_takes_the_place_of_another_counts_in_the_ledger_of_the_others(
    database: str, tmp_path: Path
) -> None:
    daemon = LiveDaemon(tmp_path, config=CONFIG.format(url=database))
    await asyncio.to_thread(daemon.start)
    try:
        before = mapped_ledgers(daemon.data_dir)
        assert len(before) == 2

        (daemon.data_dir / "ledger").unlink()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)

        await until(lambda: len(mapped_ledgers(daemon.data_dir).keys() - {killed}) == 2)
        after = mapped_ledgers(daemon.data_dir)
        assert set.union(*after.values()) == set.union(*before.values()) == before[killed]
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0


# Other nodes


async def test_a_node_that_is_not_alone_knows_it_whatever_names_fill_the_ledger(database: str, tmp_path: Path) -> None:
    now = 1000.0
    pool = await connect_pool(database)
    with closing(Ledger(tmp_path / "ledger", 0, 1, clock=lambda: now, records=64)) as ledger:
        grants = Grants(GrantStore(pool), ledger, "one", monotonic=lambda: now)
        grants.seen(["one", "two"])
        generation = grants.generation
        names = count()
        for _ in range(5):
            now += 3_700
            for _ in range(200):
                ledger.update(ledger.meter(f"mta1>mx{next(names)}.stranger.example"), lambda state: state)
            grants.seen(["one", "two"])
            assert not grants.alone()
            assert grants.connections("provider big", 3) == 0
        assert grants.generation == generation

        grants.seen(["one"])
        assert grants.connections("provider big", 3) == 3
    await pool.close()


# One name, one daemon


@asynccontextmanager
async def keeping(lock: NodeLock) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(lock.keep())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        lock.release()


async def test_a_copied_data_directory_does_not_start_beside_its_original(database: str, tmp_path: Path) -> None:
    daemons = []
    for name in ("original", "copy"):
        (tmp_path / name).mkdir()
        daemons.append(LiveDaemon(tmp_path / name, config=CONFIG.format(url=database)))
    original, copy = daemons
    await asyncio.to_thread(original.start)
    try:
        copy.data_dir.mkdir()
        shutil.copy(original.data_dir / "node", copy.data_dir / "node")
        with pytest.raises(AssertionError, match=r"another mailerd runs as node .* remove the file `node`"):
            await asyncio.to_thread(copy.start)
        assert copy.process.returncode == os.EX_TEMPFAIL
        assert not re.search("declared_dead|worker.died", original.log)

        await asyncio.to_thread(original.kill)
        await asyncio.to_thread(copy.start)  # waits for the connection of the killed one
        assert await asyncio.to_thread(copy.stop) == 0
    finally:
        await asyncio.to_thread(original.stop)


async def test_the_name_is_free_when_its_daemon_has_ended(database: str) -> None:
    first, second = NodeLock(database, NODE, patience=0.5), NodeLock(database, NODE, patience=0.5)
    await first.take()
    another = NodeLock(database, "another", patience=0.0)
    await another.take()
    another.release()
    with pytest.raises(StartError, match=NODE):
        await second.take()

    first.release()

    await second.take()
    second.release()


async def test_who_loses_its_connection_takes_the_name_again(database: str) -> None:
    lock = NodeLock(database, NODE, patience=5.0)
    await lock.take()
    async with keeping(lock) as task, db.connected(database) as other:
        ended = await other.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")
        assert len(ended) == 1
        async with asyncio.timeout(60):
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"):
                await asyncio.sleep(0.05)
        assert not task.done()
        with pytest.raises(StartError):
            await NodeLock(database, NODE, patience=0.0).take()


async def test_a_connection_that_only_the_server_still_has_does_not_shut_its_own_daemon_out(
    database: str, sockets: Path
) -> None:
    async with DatabaseProxy(database, sockets) as proxy:
        lock = NodeLock(proxy.url, NODE, patience=2.0)
        await lock.take()
        proxy.cut(server_sees=False)  # as when the network forgets a connection

        await lock.take()

        with pytest.raises(StartError):
            await NodeLock(database, NODE, patience=0.0).take()
        lock.release()


async def test_who_loses_the_name_to_another_stops(database: str, sockets: Path) -> None:
    async with DatabaseProxy(database, sockets) as proxy:
        lock = NodeLock(proxy.url, NODE, patience=1.0)
        await lock.take()
        async with keeping(lock) as task:
            proxy.stop()
            other = NodeLock(database, NODE, patience=5.0)
            await other.take()
            await proxy.start()
            with pytest.raises(StartError, match=NODE):
                async with asyncio.timeout(60):
                    await task
        other.release()


# Warm-up


async def test_strangers_sites_do_not_fill_the_memory_with_budgets(database: str) -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    source = Source(address=IpAddress("127.0.0.51"), warmup=WarmUpOf(plan="standard"))
    pool = await connect_pool(database)
    warmups = WarmUps(Config(sources={"a": source}), WarmUpStore(pool), lambda: now)
    await warmups.judge(now.date())

    warmups.take("a", "busy", 1)
    await warmups.draw()
    assert warmups.take("a", "busy", 1) is None
    left = warmups.left("a", "busy")
    for n in range(2 * MAX_PURSES):
        warmups.left("a", f"mx{n}.stranger.example")

    assert len(warmups._sources["a"].purses) <= MAX_PURSES
    assert warmups.left("a", "busy") == left
    warmups.note("a", "busy", "delivered", 1)
    now += timedelta(days=1)
    for n in range(2 * MAX_PURSES):
        warmups.left("a", f"mx{n}.stranger.example")
    assert "busy" not in warmups._sources["a"].purses
    await warmups.stop()
    await pool.close()
