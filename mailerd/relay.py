"""The relay put together: everything between a submission and its delivery, for one worker."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mailerd.config import Config
from mailerd.db import Pool
from mailerd.delivery.attempt import Attempts
from mailerd.delivery.dispatcher import Dispatcher
from mailerd.delivery.identity import Identity
from mailerd.delivery.notices import Notices
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.routing import Router
from mailerd.delivery.settler import Settler
from mailerd.intake.idempotency import IdempotencyStore
from mailerd.intake.submission import Submitter
from mailerd.queue import journal
from mailerd.queue.commit import GroupCommit
from mailerd.queue.ids import IdMaker, first_id_at
from mailerd.queue.mail import Recipient
from mailerd.queue.store import QueueStore
from mailerd.queue.workers import WorkerStore


def utc_now() -> datetime:
    return datetime.now(UTC)


def journal_path(data_dir: str, worker: int) -> Path:
    return Path(data_dir) / "journal" / str(worker)


class Relay:
    """`submitter` takes mail in, `dispatcher` sends it; `worker` numbers the lease that owns what is in memory."""

    def __init__(
        self,
        config: Config,
        pool: Pool,
        worker: int,
        *,
        workers: int = 1,
        clock: Callable[[], datetime] = utc_now,
        silent_for: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._config = config
        self._clock = clock
        self.journal = journal.Journal(journal_path(config.data_dir, worker))
        self.store = QueueStore(pool, keep_bodies=config.retention.bodies > 0)
        self.idempotency = IdempotencyStore(pool)
        self._resolver = Resolver(config.resolver)
        self._settler = Settler(self.store, self.journal, worker=worker, settled=self._release)
        ids = IdMaker(worker, lambda: int(time.time() * 1000))
        # As many event loops as cores: signing in them costs least. Fewer: a thread uses the core that is left.
        self._signers = ThreadPoolExecutor(1, "dkim") if workers < len(os.sched_getaffinity(0)) else None
        attempts = Attempts(
            config,
            store=self.store,
            identity=Identity(config),
            settler=self._settler,
            notices=Notices(hostname=config.hostname, pool=config.streams["transactional"].pool, next_id=ids.next),
            journal=self.journal,
            clock=clock,
            signers=self._signers,
        )
        self.dispatcher = Dispatcher(
            config,
            router=Router(config, self._resolver),
            store=self.store,
            leases=WorkerStore(pool),
            journal=self.journal,
            attempts=attempts,
            settler=self._settler,
            worker=worker,
            workers=workers,
            clock=clock,
            silent_for=silent_for,
        )
        self._commit = GroupCommit(
            self.store,
            worker=worker,
            keep=self.dispatcher.keep,
            kept=self.dispatcher.offer,
            dropped=self.dispatcher.drop,
            clock=clock,
        )
        self.submitter = Submitter(
            config,
            commit=self._commit,
            store=self.store,
            wake=self.dispatcher.wake,
            idempotency=self.idempotency,
            ids=ids,
            clock=clock,
            workers=workers,
        )

    def _release(self, recipients: Sequence[Recipient]) -> None:
        self.dispatcher.release(recipients)

    async def sweep(self) -> None:
        """Expire what is over, mend and forget what accumulates; to be called every now and then."""
        now = self._clock()
        retention = self._config.retention
        await self.dispatcher.expire()
        self.dispatcher.forget_unblocked()
        await self.store.mend_queues()
        bodies_before = int((now - timedelta(seconds=retention.bodies)).timestamp() * 1000)
        await self.store.forget(now=now, bodies_before=first_id_at(bodies_before) if retention.bodies else None)
        await self.idempotency.forget(now - timedelta(seconds=retention.idempotency_keys))

    async def drained(self) -> None:
        """Wait until what was submitted is committed and every result so far is recorded."""
        await self._commit.drained()
        await self._settler.drained()

    async def stop(self, seconds: float = 10.0) -> None:
        """Let what is under way end, for so long; put back the rest."""
        await self._commit.drained()
        await self.dispatcher.stop(seconds)
        await self._resolver.close()
        if self._signers is not None:
            self._signers.shutdown(wait=False)
