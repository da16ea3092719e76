"""The telling of one endpoint: a task that makes requests while there is something to tell, and waits for it."""

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Protocol

import structlog

from mailerd.events import Position
from mailerd.feedback.follower_locks import TROUBLE
from mailerd.feedback.webhooks.bodies import Item, body_of
from mailerd.feedback.webhooks.schedule import Health
from mailerd.feedback.webhooks.values import Outcome, Replay, Told, Webhook
from mailerd.feedback.webhooks.window import GONE, Pick, Track, Window

log = structlog.get_logger()

LOOK = 30.0  # seconds without anything happening
AGAIN = 1.0  # seconds after trouble of ours, such as the database's
SPARSE_PAGE = 2_000  # events of a replay looked at together where few of them are wanted
FEW = 0.1


class Read(NamedTuple):
    """What is wanted of a page of events; all before and at `position` were looked at, `more` may follow."""

    items: list[Item]
    position: Position
    more: bool


class Shared(Protocol):
    """What all endpoints share."""

    def now(self) -> datetime: ...

    async def send(self, webhook: Webhook, key: str, body: bytes) -> Outcome:
        """One attempt; raises nothing."""
        ...

    async def items(self, told: Told) -> list[Item]:
        """The events of a request that is pending, those that are still kept."""
        ...

    async def once_more(self, webhook: Webhook, replay: Replay, position: Position, limit: int) -> Read:
        """Of the next `limit` events what the replay is about."""
        ...

    def catch_up(self, endpoint: "Endpoint") -> None:
        """It is `hungry`: offer it the events behind `read`, and at the end those that come."""
        ...

    def changed(self, endpoint: "Endpoint") -> None:
        """There is something to record."""
        ...


class Endpoint:
    """`run()` until cancelled. In step: it is offered events as they come; else it has to be caught up."""

    def __init__(self, window: Window, shared: Shared) -> None:
        self.window = window
        self.in_step = False
        self._shared = shared
        self._wake = asyncio.Event()
        self._sparse = False  # is the replay
        self._replayed = True  # all of it was read
        self._stopping = False

    @property
    def webhook(self) -> Webhook:
        return self.window.webhook

    @property
    def read(self) -> Position:
        """Behind the last event that was looked at for it."""
        return self.window.main.read

    @property
    def hungry(self) -> bool:
        """Is it behind, and is there room enough that reading is worth while?"""
        return not self.in_step and not self.window.disable and self.window.hungry(self.window.main)

    # from outside

    def reconfigure(self, webhook: Webhook) -> None:
        """Work by this from now on."""
        if webhook.url != self.webhook.url:
            self.window.health = Health()
            self.window.disable = ""
        self.window.webhook = webhook
        self._fall_behind()

    def begin_replay(self, replay: Replay) -> None:
        if self.window.replay is None:
            self.window.begin_replay(replay)
            self._sparse = self._replayed = False
            self._wake.set()

    def offer(self, items: list[Item], read: Position) -> bool:
        """Events up to `read`, those that it wants. Whether there was room for all; else it is behind."""
        main = self.window.main
        items = [item for item in items if item.position > main.read]
        if fits := not items or len(items) <= (room := self.window.room(main)):
            main.take(items, max(read, main.read), self._shared.now())
        else:
            if room > 0:  # it need not read these again
                main.take(items[:room], items[room - 1].position, self._shared.now())
            self._fall_behind()
        if items:
            self._wake.set()
        return fits

    def look(self) -> None:
        """Something may be due that was not."""
        self._wake.set()

    async def finish(self, seconds: float) -> None:
        """Begin nothing more; wait for what is under way."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.window.open:
                    await asyncio.sleep(0.02)

    def _fall_behind(self) -> None:
        self.in_step = False
        self._wake.set()

    # the telling

    async def run(self) -> None:
        async with asyncio.TaskGroup() as posts:
            while True:
                self._wake.clear()
                try:
                    reading = await self._read_again()
                except TROUBLE as error:
                    log.warning("webhook.interrupted", webhook=self.webhook.outside_id, error=str(error))
                    await asyncio.sleep(AGAIN)
                    continue
                while not self._stopping and (pick := self.window.pick(self._shared.now())) is not None:
                    posts.create_task(self._tell(pick), name=f"webhook {self.webhook.id}")
                if self.window.release():
                    self.in_step = False
                if self.hungry:
                    self._shared.catch_up(self)
                if self.window.unwritten:  # such as what waits behind what is pending, without a request
                    self._shared.changed(self)
                if not reading:
                    await self._rest()

    async def _rest(self) -> None:
        now = self._shared.now()
        due = self.window.next_due(now)
        seconds = LOOK if due is None else max(0.0, (due - now).total_seconds())
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, LOOK)):
                await self._wake.wait()

    async def _tell(self, pick: Pick) -> None:
        webhook = self.webhook
        try:
            items = pick.items or await self._shared.items(pick.told)
        except TROUBLE as error:
            log.warning("webhook.interrupted", webhook=webhook.outside_id, error=str(error))
            await asyncio.sleep(AGAIN)
            self.window.abandon(pick)
            self._wake.set()
            return
        outcome = GONE
        if items:
            outcome = await self._shared.send(webhook, pick.told.key, body_of(items, batched=pick.told.batched))
        self.window.settle(pick, outcome, self._shared.now())
        self._shared.changed(self)
        self._wake.set()

    # replays

    async def _read_again(self) -> bool:
        """Read what there is room for; whether to go on at once."""
        track = self.window.replay
        if track is None or track.replay is None or not self.window.hungry(track):
            return False
        if self._replayed:
            if track.replay.finished_at is None:
                self.window.end_replay(self._shared.now())
                self._shared.changed(self)
            return False
        await self._read_page(track, track.replay)
        return True

    async def _read_page(self, track: Track, replay: Replay) -> None:
        limit = SPARSE_PAGE if self._sparse else self.window.room(track)
        begun = track.read
        page = await self._shared.once_more(self.webhook, replay, begun, limit)
        room = self.window.room(track)
        if track.read != begun or room <= 0:  # the endpoint went down meanwhile: later
            return
        self._sparse = len(page.items) < FEW * limit
        taken = page.items[:room]
        complete = len(taken) == len(page.items)
        track.take(taken, page.position if complete else taken[-1].position, self._shared.now())
        self._replayed = complete and not page.more
