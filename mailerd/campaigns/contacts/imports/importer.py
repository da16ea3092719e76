"""The importer: works on the imports that are open, block by block, until there is none, and looks again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog

from mailerd import db
from mailerd.campaigns.contacts.definitions import DefinitionStore
from mailerd.campaigns.contacts.imports.blocks import Blocks, Ready
from mailerd.campaigns.contacts.imports.store import Import, ImportStore
from mailerd.campaigns.contacts.imports.writing import BlockStore, ErasedError, MovedError, OtherTypesError
from mailerd.campaigns.contacts.tags import TagStore
from mailerd.campaigns.statistics import StatisticsStore
from mailerd.clock import utc_now
from mailerd.db import Pool
from mailerd.errors import DatabaseError, Refused
from mailerd.queue.commit import LOST
from mailerd.queue.suppression import GRACE, SuppressionStore

log = structlog.get_logger()

POLL = 1.0  # seconds between looks for new imports
SLICE = 10.0  # seconds of work on one import before another one has its turn
SWEEP_EVERY = 600.0  # seconds
AGAIN = 5.0  # seconds after trouble
TRIES = 10  # of one block, when others write the same contacts at that moment
OURS = "This is our fault; our log has it. What was imported so far stays."
# Somebody else was there first: the whole transaction again.
CROSSED = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, ErasedError)


class Importer:
    """One of each node runs; several nodes share the work. `secret` is the installation's (erased addresses)."""

    def __init__(
        self,
        url: str,
        pool: Pool,
        suppressions: SuppressionStore,
        secret: bytes,
        *,
        after_block: Callable[[Import], None] = lambda _: None,
    ) -> None:
        """`after_block` is called when a block is committed, for progress."""
        self._url = url
        self._store = ImportStore(pool)
        self._definitions = DefinitionStore(pool)
        self._tags = TagStore(pool)
        self._statistics = StatisticsStore(pool)
        self._suppressions = suppressions
        self._secret = secret
        self._after_block = after_block

    async def run(self) -> None:
        """Work until cancelled. Raises nothing: trouble is waited out. A block under way is undone, and comes again."""
        sweep_after = 0.0
        while True:
            try:
                if time.monotonic() >= sweep_after:
                    await self._store.sweep(utc_now())
                    sweep_after = time.monotonic() + SWEEP_EVERY
                worked = await self.work()
            except (*LOST, DatabaseError, asyncpg.InsufficientResourcesError) as error:
                log.warning("importer.interrupted", error=str(error) or type(error).__name__)
                worked = False
            except Exception:
                log.exception("importer.failed")
                worked = False
                await asyncio.sleep(AGAIN)
            if not worked:
                await asyncio.sleep(POLL)

    async def work(self) -> bool:
        """Take the import whose turn it is, for `SLICE` seconds or to its end; False: none is open that we can have."""
        for id_ in await self._store.open():
            if await self.advance(id_, SLICE):
                return True
        return False

    async def advance(self, id_: int, seconds: float | None = None) -> bool:
        """Work on one import for so long (None: to its end); False when somebody else does, or it has ended."""
        async with self._taken(id_) as blocks:
            if blocks is None:
                return False
            work = await self._store.get(id_, None)
            if work is None or work.state != "processing":
                return False
            try:
                await self._advance(work, blocks, seconds)
            except MovedError:
                log.info("import.moved", number=id_)
                return False
            except Refused as refused:
                await self._fail(id_, refused.text)
            except (*LOST, DatabaseError, asyncpg.InsufficientResourcesError):
                raise
            except Exception:
                log.exception("import.crashed", number=id_)
                await self._fail(id_, OURS)
        return True

    async def _advance(self, work: Import, blocks: BlockStore, seconds: float | None) -> None:
        begun = time.monotonic()
        while work.bytes_done < work.bytes:
            if seconds is not None and time.monotonic() - begun >= seconds:
                return
            work = await self._write_blocks(work, blocks, None if seconds is None else begun + seconds)
        await self._finish(work)

    async def _write_blocks(self, work: Import, blocks: BlockStore, until: float | None) -> Import:
        """Write block by block, the next being read meanwhile; until the types of fields change, at most."""
        types = await self._definitions.types(work.tenant)
        source = Blocks(work, self._store, types)
        reading = asyncio.create_task(source.next(), name=f"read {work.name}")
        try:
            last = time.monotonic()
            while (ready := await reading) is not None:
                if not ready.final:
                    reading = asyncio.create_task(source.next(), name=f"read {work.name}")
                begun = time.monotonic()
                work = await self._write(work, blocks, ready, types, begun - last)
                last = begun  # the time of the writing stands with the next block
                self._after_block(work)
                if ready.final or (until is not None and time.monotonic() >= until):
                    return work
        except OtherTypesError:
            return work
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        raise MovedError(f"the file of {work.name} is gone")

    async def _write(
        self, work: Import, blocks: BlockStore, ready: Ready, types: dict[str, str], seconds: float
    ) -> Import:
        for tries in range(1, TRIES + 1):
            try:
                return await blocks.write(work, ready, types, seconds)
            except CROSSED as error:
                if tries == TRIES:
                    raise
                log.info("import.crossed", number=work.id, error=type(error).__name__)
                await asyncio.sleep(0.01 * tries**2)
        raise AssertionError

    async def _finish(self, work: Import) -> None:
        if work.mode == "unsubscribe":
            await asyncio.sleep(GRACE)  # so that it holds when we say so
        await self._statistics.refresh()
        await self._store.end(work.id, "completed")
        await self._store.drop_parts(work.id)
        log.info(
            "import.done",
            number=work.id,
            rows=work.counts.rows,
            created=work.counts.created,
            updated=work.counts.updated,
            refused=work.counts.refused,
            seconds=work.position.seconds,
        )

    async def _fail(self, id_: int, text: str) -> None:
        log.warning("import.failed", number=id_, reason=text)
        await self._store.end(id_, "failed", text)
        await self._store.drop_parts(id_)

    @asynccontextmanager
    async def _taken(self, id_: int) -> AsyncIterator[BlockStore | None]:
        """A connection of its own, which is the lock: it ends with the process. None: somebody else has it."""
        connection = await db.connect(self._url)
        try:
            blocks = BlockStore(connection, self._definitions, self._tags, self._suppressions, self._secret)
            if await blocks.take(id_):
                await blocks.prepare()
                yield blocks
            else:
                yield None
        finally:
            with suppress(*LOST):
                await connection.close(timeout=5)
