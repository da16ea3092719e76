"""Stores the hits of files: of this worker's own, and of those that others of the node have left behind."""

import asyncio
import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import asyncpg
import structlog

from mailerd import metrics
from mailerd.campaigns.tracking import files
from mailerd.campaigns.tracking.files import HitFile, HitLog
from mailerd.campaigns.tracking.records import LONGEST, decode
from mailerd.campaigns.tracking.store import HitStore
from mailerd.errors import DatabaseError
from mailerd.queue.commit import LOST

log = structlog.get_logger()

EVERY = 0.5  # seconds
AGAIN = 2.0  # after a failure
LOOK_EVERY = 5.0  # seconds between looks for files left behind
CLEAN_EVERY = 600.0
PIECE = 3 * LONGEST  # bytes stored in one transaction; more would hold up the answers while they are read
DONE = 1_000_000  # bytes, all of them stored: another file
STALE = timedelta(days=1)  # so long it is known that a file was stored, after it is gone
TROUBLE = (*LOST, DatabaseError, asyncpg.PostgresError)


class Storing:
    """`run()` it, `finish()` at the end. One for each worker."""

    def __init__(self, log_: HitLog, store: HitStore, directory: Path, node: str) -> None:
        self._log = log_
        self._store = store
        self._directory = directory
        self._node = node
        self._known: dict[str, int] = {}  # how far files are stored, as far as we know
        self._look_at = self._clean_at = 0.0  # of the monotonic clock

    async def run(self) -> None:
        """Until cancelled. The database may be away: hits wait in their files."""
        while True:
            await asyncio.sleep(EVERY if await self.turn() else AGAIN)

    async def turn(self) -> bool:
        """One look, and whether it succeeded; raises nothing."""
        look = time.monotonic() >= self._look_at
        if look:
            self._look_at = time.monotonic() + LOOK_EVERY
        try:
            self._log.retry()
            await self._store_own()
            if look:
                await self._store_others()
        except Exception as error:
            self._known.clear()  # what was under way may be stored, or not
            known = isinstance(error, TROUBLE)
            log.warning("hits.waiting", error=str(error) or type(error).__name__, exc_info=None if known else error)
            return False
        finally:
            if look:
                with suppress(OSError):
                    self._measure()
                    await self._keep_bound()
        return True

    async def finish(self) -> None:
        """Store what was written; leave the file, to whoever comes next, if that does not succeed."""
        try:
            self._log.retry()
            await self._store_own()
        except TROUBLE as error:
            log.warning("hits.left", error=str(error) or type(error).__name__)
        finally:
            self._log.rotate()

    async def _store_own(self) -> None:
        writing = self._log.file
        if writing is None:
            return
        # The log may go on to another file meanwhile. A copy of the descriptor keeps this one open, and its lock.
        file = HitFile(writing.name, writing.path, os.dup(writing.descriptor))
        try:
            await self._store_file(file)
        finally:
            os.close(file.descriptor)
        if writing is self._log.file and self._known.get(file.name, 0) >= DONE:
            self._log.rotate()

    async def _store_others(self) -> None:
        for path in files.left_behind(self._directory):
            with files.taken(path) as file:
                if file is None:
                    continue
                await self._store_file(file)
                end = self._known.pop(file.name, 0)
                if torn := file.size - end:
                    log.error("hits.torn", file=file.name, bytes=torn)
                    metrics.hits_lost("torn", 1)
                # In this order: a file that is not known to be stored would be stored again.
                path.unlink(missing_ok=True)
                await self._store.forget([file.name])
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_EVERY
            await self._clean()

    async def _store_file(self, file: HitFile) -> None:
        """All of its whole records, piece by piece."""
        while True:
            begin = self._known.get(file.name)
            if begin is None:
                begin = self._known[file.name] = await self._store.stored(file.name)
            read = decode(file.read(begin, PIECE))
            if not read.size:
                return
            if read.bad:
                log.error("hits.unreadable", file=file.name, hits=read.bad)
                metrics.hits_lost("unreadable", read.bad)
            if await self._store.add(file.name, begin, begin + read.size, read.hits):
                self._known[file.name] = begin + read.size
            else:
                del self._known[file.name]

    async def _clean(self) -> None:
        """Forget files that are no more. Not at once: what a dying worker had asked for may still come."""
        gone = [
            name
            for name in await self._store.files(self._node)
            if time.time() - files.milliseconds_of(name) / 1000 > STALE.total_seconds()
            and not (self._directory / f"{name}{files.ENDING}").exists()
        ]
        if gone:
            await self._store.forget(gone)

    def _measure(self) -> None:
        sizes = [path.stat().st_size - self._known.get(path.stem, 0) for path in files.left_behind(self._directory)]
        metrics.hit_files(max(0, sum(sizes)))

    async def _keep_bound(self) -> None:
        """The disk is for mail: when hits cannot be stored for long, the oldest go."""
        for path in files.too_many(self._directory):
            with files.taken(path) as file:
                if file is not None:
                    hits = await asyncio.to_thread(_count, file, self._known.pop(file.name, 0))
                    path.unlink(missing_ok=True)
                    log.error("hits.dropped", file=file.name, hits=hits)
                    metrics.hits_lost("bound", hits)


def _count(file: HitFile, begin: int) -> int:
    return sum(hit.times for hit in decode(file.read(begin, file.size)).hits)
