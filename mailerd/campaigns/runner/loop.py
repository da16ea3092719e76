"""The runner of a worker: two loops, one that hands over and one that writes ledgers and clears them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

import asyncpg
import structlog

from mailerd.campaigns.runner.clearing import Clearing
from mailerd.campaigns.runner.handing import Handing
from mailerd.campaigns.runner.runs import RunStore, Work
from mailerd.campaigns.runner.writing import Writing
from mailerd.db import Pool
from mailerd.queue.commit import LOST

log = structlog.get_logger()

POLL = 0.5  # seconds between looks when nobody wakes us
TAKEN = 0.02  # until the next look when others have all whose turn it is
SET_RIGHT = 10.0  # between looks for what a clock that was ahead has put off
AT_IT = 0.1  # until the next look at what others are writing
AFTER_TROUBLE = 1.0
STOP = 5.0  # for the transactions under way


class Runner:
    """`wake` it when a campaign begins, pauses, goes on or ends."""

    def __init__(self, pool: Pool, handing: Handing, *, clock: Callable[[], datetime]) -> None:
        self._handing = handing
        self._clock = clock
        self._runs = RunStore(pool)
        self._writing = Writing(pool, clock)
        self._clearing = Clearing(pool, clock)
        self._stopping = False
        self._set_right_at = 0.0
        self._turn = asyncio.Event()
        self._to_write = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._guarded(self._hand_over), name="hand over"),
            asyncio.create_task(self._guarded(self._write), name="write ledgers"),
        ]

    def wake(self) -> None:
        """There may be something to do."""
        self._turn.set()

    async def stop(self) -> None:
        """Let the transactions under way end; what is cut off has not happened."""
        self._stopping = True
        self._turn.set()
        self._to_write.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """Whatever happens, go on."""
        while not self._stopping:
            try:
                await step()
            except LOST as error:
                log.warning("campaigns.interrupted", error=str(error) or type(error).__name__)
                await asyncio.sleep(AFTER_TROUBLE)
            except Exception:
                log.exception("campaigns.failed")
                await asyncio.sleep(AFTER_TROUBLE)

    async def _hand_over(self) -> None:
        """Look what there is to do, hand over until it is nobody's turn, and wait."""
        self._turn.clear()
        work = await self._look()
        while not self._stopping and self._is_due(work):
            if not await self._step():
                break
            work = await self._look()
        await _wait(self._turn, self._pause(work))

    async def _look(self) -> Work:
        if time.monotonic() >= self._set_right_at:
            self._set_right_at = time.monotonic() + SET_RIGHT
            await self._runs.set_right(self._clock())
        work = await self._runs.work()
        if work.unwritten or work.left_over:
            self._to_write.set()
        return work

    def _is_due(self, work: Work) -> bool:
        return work.turn_at is not None and work.turn_at <= self._clock()

    def _pause(self, work: Work) -> float:
        if work.turn_at is None:
            return POLL
        if (seconds := (work.turn_at - self._clock()).total_seconds()) > 0:
            return min(seconds, POLL)
        return max(TAKEN, self._handing.slow_for)

    async def _step(self) -> bool:
        try:
            return await self._handing.step()
        except (TimeoutError, asyncpg.QueryCanceledError) as error:  # the database is there: it was too much for it
            log.warning("campaigns.turn_failed", error=str(error) or type(error).__name__)
        except LOST:
            raise
        except Exception:
            log.exception("campaigns.turn_failed")
        await self._handing.alone()
        return True

    async def _write(self) -> None:
        """Write and clear for as long as there is something."""
        await self._to_write.wait()
        self._to_write.clear()
        while not self._stopping and await self._writing.round():
            self._turn.set()
        while not self._stopping and await self._clearing.step():
            pass
        await asyncio.sleep(AT_IT)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
