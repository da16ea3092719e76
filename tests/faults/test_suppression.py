"""Addresses are suppressed while processes are killed, frozen and restarted: who was told may rely on it."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from mailerd.db import Pool, connect_pool
from mailerd.db.embedded import running_url
from mailerd.errors import DatabaseError
from mailerd.queue.commit import LOST
from mailerd.queue.suppression import GRACE, Reason, Suppression, SuppressionStore
from tests.faults.laboratory import Mailerd, kill
from tests.support.clocked_mx import ClockedMx
from tests.support.submitters import Submitters

pytestmark = pytest.mark.asyncio(loop_scope="package")

SLOW = 0.25  # seconds of the host for one message, so that there is a queue
SAID = "SELECT DISTINCT address FROM events WHERE type = 'recipient.suppressed'"
FREEZES = 15


async def kill_a_worker(daemon: Mailerd) -> None:
    kill(random.choice(daemon.workers()))


async def freeze_workers(daemon: Mailerd) -> None:
    """As a hypervisor does it, at any moment: also between our last look at the clock and the write."""
    for _ in range(FREEZES):
        pid = random.choice(daemon.workers())
        if kill(pid, signal.SIGSTOP):
            await asyncio.sleep(random.uniform(0.5, 4) * GRACE)
            kill(pid, signal.SIGCONT)
        await asyncio.sleep(random.random() * GRACE)


async def restart_the_database(daemon: Mailerd) -> None:
    postmaster = daemon.postmaster()
    assert postmaster is not None
    kill(postmaster, signal.SIGINT)


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClockedMx]:
    async with ClockedMx(tmp_path_factory.mktemp("host"), dot=SLOW) as mx:
        yield mx


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def daemon(host: ClockedMx, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mailerd]:
    directory: Path = tmp_path_factory.mktemp("daemon")
    daemon = Mailerd(directory, host.port)
    await daemon.start()
    yield daemon
    await daemon.end()


class Suppressor:
    """Suppresses mail that waits, one address after the other, and keeps when each was acknowledged."""

    def __init__(self, daemon: Mailerd, waiting: Callable[[], list[str]]) -> None:
        self.acknowledged: dict[str, float] = {}
        self.tried: set[str] = set()
        self._daemon = daemon
        self._waiting = waiting

    async def run(self) -> None:
        while True:
            with suppress(*LOST, DatabaseError):
                pool = await self._pool()
                try:
                    await self._use(pool)
                finally:
                    pool.terminate()

    async def _pool(self) -> Pool:
        while (url := running_url(self._daemon.data_dir)) is None:
            await asyncio.sleep(0.05)
        return await connect_pool(url, min=1, max=1)

    async def _use(self, pool: Pool) -> None:
        store = SuppressionStore(pool)
        while True:
            waiting = [address for address in self._waiting() if address not in self.tried]
            for address in random.sample(waiting, min(3, len(waiting))):
                self.tried.add(address)
                entry = Suppression(address, reason=Reason.MANUAL, source="api", created_at=datetime.now(UTC))
                await store.add([entry])
                self.acknowledged[address] = time.monotonic() + GRACE
            await asyncio.sleep(0.02)

    async def until(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(60):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("hurt", [kill_a_worker, freeze_workers, restart_the_database])
async def test_nothing_is_sent_to_whom_a_suppression_was_acknowledged_and_the_rest_arrives(
    daemon: Mailerd, host: ClockedMx, hurt: Callable[[Mailerd], Awaitable[None]]
) -> None:
    await host.pause(dot=SLOW)
    load = Submitters(daemon, smtp=8, http=2, pause=0.1, prefix=f"{hurt.__name__}-")

    def waiting() -> list[str]:
        return sorted(load.promises.promised - {each.address for each in host.sightings()})

    suppressor = Suppressor(daemon, waiting)
    load.start()
    await load.until_promised(200)
    suppressing = asyncio.create_task(suppressor.run())
    await suppressor.until(30)
    await hurt(daemon)
    await suppressor.until(60)
    suppressing.cancel()
    await load.stop()
    await host.pause()
    await daemon.drained()

    seen = [each for each in host.sightings() if each.taken and each.address.startswith(load.prefix)]
    late = {
        each.address: round(each.at - suppressor.acknowledged[each.address], 4)
        for each in seen
        if each.address in suppressor.acknowledged and each.at > suppressor.acknowledged[each.address]
    }
    assert late == {}
    connection = await daemon.connection()
    said = {row["address"] for row in await connection.fetch(SAID)}
    await connection.close()
    assert len(said & suppressor.acknowledged.keys()) > 30
    assert load.promises.promised - {each.address for each in seen} - said == set()
    assert {address for address in said if address.startswith(load.prefix)} <= suppressor.tried
