"""Following: events are handed to a reader in their order, each at least once, from where it was left.

    following = Following(database_url, pool)
    tasks = [asyncio.create_task(following.run("webhooks", read)), …]
    …
    await following.end("webhooks")     # this one
    await following.stop()              # all

`run(name, read)` hands `read` the events page by page, `Sequence[Recorded]`, at most `limit` of them and never none.
What `read` raises is logged, and the same page comes again after a while; when it returns, the position is moved on, so
after a crash a page may come again. `run_within(name, read)` is for readers that write into our database: `read` also
gets a connection, in whose transaction the position moves too, so each event counts exactly once. Of all processes of
all nodes that run one name, one reads; another takes over within seconds when it dies.

`types` and `streams` are of events as they stand in the database (`feedback.names.inside` translates), None: all.
`campaigns` is how the names of campaigns begin. Of the `limit` events that are looked at only those that fit are read.
`start` says where one begins that never followed: "now" or "beginning".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal

import structlog

from mailerd import failpoints, metrics
from mailerd.db import Connection, Pool
from mailerd.errors import MailerdError
from mailerd.events import START, EventStore, FollowerStore, Page, Position, Recorded
from mailerd.feedback.follower_locks import TROUBLE, FollowerLocks

log = structlog.get_logger()

POLL = 0.5  # seconds between looks when all was read
TAKE_AGAIN = 1.0  # seconds between tries to follow what somebody else follows
FIRST_WAIT = 0.5  # seconds after a failure; then twice as long each time
LONGEST_WAIT = 30.0
LAG_EVERY = 15.0  # seconds
STOP = 5.0  # seconds for the pages under way
LIMIT = 1_000  # events of a page

Start = Literal["now", "beginning"]
Read = Callable[[Sequence[Recorded]], Awaitable[None]]
ReadWithin = Callable[[Sequence[Recorded], Connection], Awaitable[None]]
Step = Callable[[str, Position, Page], Awaitable[None]]


class FollowerError(MailerdError):
    """What a reader may raise that needs no traceback in the log: the other side is away, slow, or refuses."""


class Moved(Exception):  # noqa: N818 - not our doing
    """Somebody else has moved the position of this follower, or forgotten it."""


class Following:
    """All followers of one process: they share a connection for their locks, and `pool` for the rest."""

    def __init__(self, url: str, pool: Pool, *, poll: float = POLL) -> None:
        self._pool = pool
        self._poll = poll
        self._events = EventStore(pool)
        self._positions = FollowerStore(pool)
        self._locks = FollowerLocks(url)
        self._stopped = False
        self._running: dict[asyncio.Task[object], _Follower] = {}

    async def run(
        self,
        name: str,
        read: Read,
        *,
        start: Start = "now",
        types: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        campaigns: str | None = None,
        limit: int = LIMIT,
    ) -> None:
        """Follow until `stop()` or cancelled; each event at least once. Raises nothing: trouble is waited out."""

        async def step(name: str, position: Position, page: Page) -> None:
            if page.events:
                await read(page.events)
            if failpoints.ON:
                failpoints.reached("follower.after_read")
            if not await self._positions.move(name, position, page.position):
                raise Moved

        await self._run(_Follower(name, step, start, types, streams, campaigns, limit))

    async def run_within(
        self,
        name: str,
        read: ReadWithin,
        *,
        start: Start = "now",
        types: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        campaigns: str | None = None,
        limit: int = LIMIT,
    ) -> None:
        """As `run`, with `read(events, connection)` in the transaction that moves the position: exactly once."""

        async def step(name: str, position: Position, page: Page) -> None:
            async with self._pool.acquire() as connection, connection.transaction():
                # First, so that a second reader, should there be one for a moment, waits here and then finds it moved.
                if not await self._positions.move(name, position, page.position, connection):
                    raise Moved
                if page.events:
                    await read(page.events, connection)
                if failpoints.ON:
                    failpoints.reached("follower.before_commit")

        await self._run(_Follower(name, step, start, types, streams, campaigns, limit))

    async def end(self, name: str, patience: float = STOP) -> None:
        """Let one follower finish the page under way and end; what is not finished by then is cut off, and comes again.

        When it ends only its task does: `run` it again with something else, and it goes on from there.
        """
        await self._end({task for task, follower in self._running.items() if follower.name == name}, patience)

    async def stop(self, patience: float = STOP) -> None:
        """`end` all of them, for good."""
        self._stopped = True
        await self._end(set(self._running), patience)
        await self._locks.close()

    async def _end(self, tasks: set[asyncio.Task[object]], patience: float) -> None:
        for task in tasks:
            self._running[task].stopping.set()
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # one follower

    async def _run(self, follower: "_Follower") -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._stopped:
            return
        self._running[task] = follower
        try:
            while not follower.stopping.is_set():
                await self._take_turn(follower)
        finally:
            del self._running[task]

    async def _take_turn(self, follower: "_Follower") -> None:
        """Follow for as long as it is ours; wait a little when it is not."""
        try:
            lost = await self._locks.take(follower.name)
        except TROUBLE as error:
            log.warning("follower.interrupted", follower=follower.name, error=str(error) or type(error).__name__)
            return await follower.pause(TAKE_AGAIN)
        if lost is None:
            return await follower.pause(TAKE_AGAIN)
        log.info("follower.started", follower=follower.name)
        try:
            await _until(lost, self._follow(follower))
        finally:
            metrics.followed(follower.name, 0, 0.0)  # whoever follows it now knows better
            await asyncio.shield(self._locks.give(follower.name))
        return None

    async def _follow(self, follower: "_Follower") -> None:
        position: Position | None = None
        wait, lag_at = FIRST_WAIT, 0.0
        while not follower.stopping.is_set():
            try:
                if position is None:
                    position = await self._begin(follower)
                page = await self._events.after(
                    position,
                    limit=follower.limit,
                    types=follower.types,
                    streams=follower.streams,
                    campaigns=follower.campaigns,
                )
                if page.position != position:
                    await follower.step(follower.name, position, page)
                    position = page.position
                if time.monotonic() >= lag_at:
                    await self._measure(follower.name, position)
                    lag_at = time.monotonic() + LAG_EVERY
            except Moved:
                log.warning("follower.moved", follower=follower.name)
                position = None
                continue
            except Exception as error:  # of the reader or the database: the same page again, later
                known = isinstance(error, (*TROUBLE, FollowerError))
                log.warning(
                    "follower.failed",
                    follower=follower.name,
                    error=str(error) or type(error).__name__,
                    again_in=wait,
                    exc_info=None if known else error,
                )
                if position is not None:
                    with suppress(*TROUBLE):
                        await self._measure(follower.name, position)
                await follower.pause(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            wait = FIRST_WAIT
            if not page.more:
                await follower.pause(self._poll)

    async def _begin(self, follower: "_Follower") -> Position:
        position = await self._positions.position(follower.name)
        if position is None:
            position = START if follower.start == "beginning" else await self._events.end()
            await self._positions.advance(follower.name, position)
        return position

    async def _measure(self, name: str, position: Position) -> None:
        lag = await self._events.behind(position)
        metrics.followed(name, lag.events, 0.0 if lag.since is None else max(0.0, time.time() - lag.since.timestamp()))


class _Follower:
    """One follower in this process."""

    def __init__(
        self,
        name: str,
        step: Step,
        start: Start,
        types: Sequence[str] | None,
        streams: Sequence[str] | None,
        campaigns: str | None,
        limit: int,
    ) -> None:
        self.name = name
        self.step = step
        self.start = start
        self.types = types
        self.streams = streams or None
        self.campaigns = campaigns
        self.limit = limit
        self.stopping = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()


async def _until(event: asyncio.Event, work: Awaitable[None]) -> None:
    """Do `work`, and give it up when the event is set; its errors come out."""
    doing = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not doing.done():
            doing.cancel()
        with suppress(asyncio.CancelledError):
            await doing
