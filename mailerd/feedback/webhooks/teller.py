"""Tells all endpoints: one process of one node at a time, and what the endpoints share there.

Events are read once for all endpoints that keep up (`Feed`), and a few times for all those that are behind
(`CatchingUp`). What happened at all endpoints is recorded together, a few times a second.
"""

import asyncio
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import structlog

from mailerd import failpoints, metrics
from mailerd.config import Webhooks as WebhooksConfig
from mailerd.db import Pool
from mailerd.delivery.https import Poster
from mailerd.events import START, EventStore, FollowerStore, Position, Recorded
from mailerd.feedback.facts import FactStore
from mailerd.feedback.follower_locks import TROUBLE, FollowerLocks
from mailerd.feedback.names import fits
from mailerd.feedback.webhooks.bodies import Item, item_of
from mailerd.feedback.webhooks.budget import Budget
from mailerd.feedback.webhooks.catching_up import CatchingUp
from mailerd.feedback.webhooks.endpoint import Endpoint, Read
from mailerd.feedback.webhooks.feed import Feed
from mailerd.feedback.webhooks.records import TRIES, RecordStore
from mailerd.feedback.webhooks.sending import send
from mailerd.feedback.webhooks.store import WebhookStore
from mailerd.feedback.webhooks.values import Outcome, Pending, Replay, Told, Webhook
from mailerd.feedback.webhooks.window import Changes, Window

log = structlog.get_logger()

NAME = "webhooks"  # of the lock, and of the follower that stands for the endpoint that is furthest behind
TAKE_AGAIN = 1.0  # seconds between tries to become the one who tells
RECORD_EVERY = 0.1  # seconds
RECORD_AGAIN = 1.0
IDLE_EVERY = 10.0  # seconds between records that endpoints came further without anything to tell
REFRESH_EVERY = 15.0  # seconds; what somebody changes is heard at once
REFRESH_PAUSE = 0.05  # so that those who change much are looked at together
TIDY_EVERY = 3600.0
STOP = 3.0  # seconds for requests under way
STOP_RECORD = 1.0  # for their record; what is not recorded is told again
MOST_OPEN = 256  # requests under way, of all endpoints
MOST_OPEN_OF_TENANT = 64
FIRST_REST, LONGEST_REST = 1.0, 300.0  # seconds for an endpoint whose task has crashed; then twice as long each time


class Rest(NamedTuple):
    """How long an endpoint is left alone that has crashed, by the monotonic clock."""

    seconds: float
    until: float


class Teller:
    """`run()` in any number of processes; in one of them it tells. `clock`: the date, which tests move."""

    def __init__(
        self,
        url: str,
        pool: Pool,
        config: WebhooksConfig,
        poster: Poster,
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._config = config
        self._poster = poster
        self._clock = clock
        self._chance = chance
        self._locks = FollowerLocks(url)
        self._turn: Turn | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def reconfigure(self, config: WebhooksConfig, poster: Poster) -> None:
        """Work by these from now on. The old poster is the caller's to close."""
        self._config, self._poster = config, poster
        if self._turn is not None:
            self._turn.reconfigure(config, poster)

    def heard(self, webhook_id: str) -> None:
        """Somebody changed an endpoint (`store.CHANNEL`)."""
        if self._turn is not None and webhook_id.isdigit():
            self._turn.heard(int(webhook_id))

    async def run(self) -> None:
        """Tell whenever nobody else does, until `stop()` or cancelled. Raises nothing: trouble is waited out."""
        while not self._stopping.is_set():
            try:
                lost = await self._locks.take(NAME)
                if lost is not None:
                    await self._tell(lost)
            except TROUBLE as error:
                log.warning("webhooks.interrupted", error=str(error) or type(error).__name__)
            except Exception:
                log.exception("webhooks.failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(TAKE_AGAIN):
                    await self._stopping.wait()

    async def _tell(self, lost: asyncio.Event) -> None:
        self._turn = turn = Turn(self._pool, self._config, self._poster, clock=self._clock, chance=self._chance)
        working = asyncio.create_task(turn.run(), name="webhooks")
        ends = [asyncio.create_task(event.wait()) for event in (lost, self._stopping)]
        try:
            await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not lost.is_set():
                await turn.finish(STOP)
        finally:
            self._turn = None
            for task in (working, *ends):
                task.cancel()
            results = await asyncio.gather(working, *ends, return_exceptions=True)
            await asyncio.shield(self._locks.give(NAME))
        if isinstance(results[0], Exception):
            raise results[0]

    async def stop(self) -> None:
        """Let the requests under way end, record them, and let others tell."""
        self._stopping.set()
        while self._turn is not None:
            await asyncio.sleep(0.02)
        await self._locks.close()


class Turn:
    """The telling of all endpoints, from when it became ours."""

    def __init__(
        self,
        pool: Pool,
        config: WebhooksConfig,
        poster: Poster,
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
    ) -> None:
        self._config = config
        self._poster = poster
        self._chance = chance
        self._store = WebhookStore(pool)
        self._records = RecordStore(pool)
        self._events = EventStore(pool)
        self._followers = FollowerStore(pool)
        self._facts = FactStore(pool)
        self._feed = Feed(self._events, self._facts)
        self._catching_up = CatchingUp(self._feed)
        self._budget = Budget()
        self._endpoints: dict[int, Endpoint] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._recording = asyncio.Lock()  # also: no endpoint is looked at while it is not recorded
        self._replaying = asyncio.Semaphore(1)
        self._open = asyncio.Semaphore(MOST_OPEN)
        self._open_of: defaultdict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, MOST_OPEN_OF_TENANT)
        )
        self._resting: dict[int, Rest] = {}
        self._changed: set[Endpoint] = set()
        self._dirty = asyncio.Event()
        self._refresh = asyncio.Event()
        self._heard: set[int] = set()
        self._unrecorded: list[Changes] = []
        self._last_id = 0
        self.now = clock

    def reconfigure(self, config: WebhooksConfig, poster: Poster) -> None:
        self._config, self._poster = config, poster
        for endpoint in self._endpoints.values():
            endpoint.window.connections = config.connections

    def heard(self, webhook_id: int) -> None:
        self._heard.add(webhook_id)
        self._refresh.set()

    async def run(self) -> None:
        ready = await self._tidied(tries=1)
        await self._look_at_all(None)
        log.info("webhooks.started", endpoints=len(self._endpoints))
        try:
            async with asyncio.TaskGroup() as group:
                for work in (
                    self._feed.run(),
                    self._catching_up.run(),
                    self._keep_recording(),
                    self._keep_refreshing(),
                    self._keep_tidy(ready),
                ):
                    group.create_task(work)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def finish(self, seconds: float) -> None:
        """Let what is under way end, and record it."""
        await asyncio.gather(*(endpoint.finish(seconds) for endpoint in self._endpoints.values()))
        with suppress(*TROUBLE):
            async with asyncio.timeout(STOP_RECORD):
                await self._record(idle=True)

    # what endpoints share

    async def send(self, webhook: Webhook, key: str, body: bytes) -> Outcome:
        async with self._open_of[webhook.tenant], self._open:
            outcome = await send(self._poster, webhook, key, body, clock=self.now, timeout=float(self._config.timeout))
        if failpoints.ON:
            failpoints.reached("webhook.after_reply")
        metrics.webhook_answered("delivered" if outcome.good else "failed", outcome.took)
        return outcome

    async def items(self, told: Told) -> list[Item]:
        return await self._items(await self._records.events(told.positions))

    async def once_more(self, webhook: Webhook, replay: Replay, position: Position, limit: int) -> Read:
        async with self._replaying:
            page = await self._records.between(
                position, tenant=webhook.tenant, since=replay.since, until=replay.until, limit=limit
            )
            items = await self._items(page.events)
        wanted = [item for item in items if webhook.wants(item.type, item.stream) and fits(item.type, replay.types)]
        return Read(wanted, page.position, page.more)

    async def _items(self, events: list[Recorded]) -> list[Item]:
        facts = await self._facts.of(events)
        made = (item_of(recorded, facts.get(recorded.event.message_id)) for recorded in events)
        return [item for item in made if item is not None]

    def catch_up(self, endpoint: Endpoint) -> None:
        self._catching_up.add(endpoint)

    def changed(self, endpoint: Endpoint) -> None:
        self._changed.add(endpoint)
        self._dirty.set()

    def _next_id(self) -> int:
        """Grows, also when the clock is set back, and is not what the API makes in the same millisecond."""
        self._last_id = max(self._last_id + 1, new_id(self.now()))
        return self._last_id

    # recording

    async def _keep_recording(self) -> None:
        idle_at = time.monotonic() + IDLE_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, idle_at - time.monotonic())):
                    await self._dirty.wait()
            self._dirty.clear()
            idle = time.monotonic() >= idle_at
            try:
                await self._record(idle=idle)
            except TROUBLE as error:
                log.warning("webhooks.not_recorded", error=str(error) or type(error).__name__)
                self._dirty.set()
                await asyncio.sleep(RECORD_AGAIN)
                continue
            if idle:
                idle_at = time.monotonic() + IDLE_EVERY
            await asyncio.sleep(RECORD_EVERY)

    async def _record(self, *, idle: bool) -> None:
        """All that is not recorded yet, in one transaction; what fails is tried again as it is."""
        async with self._recording:
            now = self.now()
            if not self._unrecorded:
                changed, self._changed = self._changed, set()
                there = self._endpoints.values() if idle else changed & set(self._endpoints.values())
                made = [endpoint.window.changes(now, idle=idle) for endpoint in there]
                self._unrecorded = [changes for changes in made if changes is not None]
            if self._unrecorded:
                await self._records.record(self._unrecorded, now)
                if failpoints.ON:
                    failpoints.reached("webhook.recorded")
            for changes in self._unrecorded:
                if endpoint := self._endpoints.get(changes.webhook_id):
                    endpoint.look()  # there is room again
                if changes.disable:
                    log.warning("webhook.disabled", webhook=changes.webhook_id, why=changes.disable)
                    metrics.webhook_disabled()
                    self._forget(changes.webhook_id)
            self._unrecorded = []
            if self._changed:
                self._dirty.set()
        if idle:
            await self._tell_how_far()

    async def _tell_how_far(self) -> None:
        """For those who drop old events, and those who look at the figures."""
        now = self.now()
        for endpoint in self._endpoints.values():
            metrics.webhook_behind(endpoint.webhook.outside_id, endpoint.window.lag(now), endpoint.window.pending)
        furthest = min((endpoint.window.main.position for endpoint in self._endpoints.values()), default=None)
        if furthest is None:
            await self._followers.forget(NAME)
        else:
            await self._followers.advance(NAME, furthest)

    # which endpoints there are

    async def _keep_refreshing(self) -> None:
        """Look at those that somebody changed, and now and then at all, for what was said while nobody could hear."""
        all_at = time.monotonic() + REFRESH_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, all_at - time.monotonic())):
                    await self._refresh.wait()
            self._refresh.clear()
            heard, self._heard = self._heard, set()
            everything = time.monotonic() >= all_at
            try:
                await self._look_at_all(None if everything else heard)
            except TROUBLE as error:
                log.warning("webhooks.interrupted", error=str(error) or type(error).__name__)
                self._heard |= heard
                await asyncio.sleep(RECORD_AGAIN)
                self._refresh.set()
            else:
                all_at = time.monotonic() + REFRESH_EVERY if everything else all_at
            await asyncio.sleep(REFRESH_PAUSE)

    async def _look_at_all(self, heard: Collection[int] | None) -> None:
        """Take on what was added and changed, and what somebody wants told again: of these, or of all."""
        async with self._recording:
            looked_at = self._endpoints.keys() | () if heard is None else set(heard)
            there = {one.id: one for one in await self._store.enabled(None if heard is None else sorted(heard))}
            for id_ in looked_at - there.keys():
                self._forget(id_)
            pending = await self._records.pending(list(there)) if there else {}
            replays = await self._records.replays(list(there)) if there else {}
            # Not before all that can be seen: what a dump was restored from may have been further than we are.
            end = await self._events.end() if there.keys() - self._endpoints.keys() else START
            for id_, webhook in there.items():
                if id_ not in self._endpoints:
                    if self._rests(id_):
                        continue
                    self._add(replace(webhook, position=min(webhook.position, end)))
                self._take_on(self._endpoints[id_], webhook, pending.get(id_, []), replays.get(id_))

    def _take_on(self, endpoint: Endpoint, webhook: Webhook, pending: list[Pending], replay: Replay | None) -> None:
        if endpoint.webhook.version != webhook.version:
            endpoint.reconfigure(webhook)
        recording = {id_ for each in self._unrecorded if each.webhook_id == webhook.id for id_ in each.pending}
        endpoint.window.add_pending(row for row in pending if row.id not in recording)
        if replay is not None:
            endpoint.begin_replay(replay)
        endpoint.look()

    def _add(self, webhook: Webhook) -> None:
        window = Window(
            webhook,
            connections=self._config.connections,
            budget=self._budget,
            ids=self._next_id,
            chance=self._chance,
        )
        endpoint = Endpoint(window, self)
        self._endpoints[webhook.id] = endpoint
        task = asyncio.create_task(endpoint.run(), name=f"webhook {webhook.id}")
        task.add_done_callback(lambda task: self._crashed(webhook.id, task))
        self._tasks[webhook.id] = task

    def _rests(self, id_: int) -> bool:
        rest = self._resting.get(id_)
        return rest is not None and time.monotonic() < rest.until

    def _crashed(self, id_: int, task: asyncio.Task[None]) -> None:
        """A bug at one endpoint stops none of the others; it begins anew where its record says."""
        if task.cancelled() or self._tasks.get(id_) is not task:
            return
        log.error("webhook.crashed", webhook=id_, exc_info=task.exception())
        last = self._resting.get(id_)
        seconds = min(LONGEST_REST, FIRST_REST if last is None else 2 * last.seconds)
        self._resting[id_] = Rest(seconds, time.monotonic() + seconds)
        self._forget(id_)

    def _forget(self, id_: int) -> None:
        endpoint, task = self._endpoints.pop(id_, None), self._tasks.pop(id_, None)
        if endpoint is not None:
            endpoint.window.close()
            self._feed.leave(endpoint)
            self._catching_up.leave(endpoint)
            metrics.webhook_left(endpoint.webhook.outside_id)
        if task is not None:
            task.cancel()

    async def _keep_tidy(self, ready: bool) -> None:
        while True:
            if ready:
                await asyncio.sleep(TIDY_EVERY)
            ready = True
            await self._tidied()

    async def _tidied(self, *, tries: int = TRIES) -> bool:
        """Whether it could be done now. It is no reason to tell nobody."""
        try:
            await self._tidy(tries=tries)
        except TROUBLE as error:
            log.warning("webhooks.not_tidied", error=str(error) or type(error).__name__)
            return False
        return True

    async def _tidy(self, *, tries: int = TRIES) -> None:
        await self._records.tidy(self.now(), timedelta(seconds=float(self._config.log)), tries=tries)


def new_id(now: datetime) -> int:
    """An id of a row that sorts by time."""
    return int(now.timestamp() * 1000) << 20 | secrets.randbits(20)
