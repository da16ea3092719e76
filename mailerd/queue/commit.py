"""Accept is commit: what arrives while the disk is busy is committed together, and only then does anyone answer 250."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog

from mailerd.errors import Unavailable
from mailerd.events import Event
from mailerd.queue.mail import Message
from mailerd.queue.store import QueueStore

log = structlog.get_logger()

MAX_MESSAGES = 500  # of one transaction
MAX_BYTES = 32_000_000
RESOLVE_FOR = 15.0  # seconds to find out whether an interrupted commit happened, before the submitter is told 451
SLACK = timedelta(minutes=5)  # between our clock and the partitions of events

# What tells of a database that went away; anything else is a bug or bad data.
LOST = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.exceptions.OperatorInterventionError)


@dataclass(slots=True, eq=False)
class _Waiting:
    """Messages of one submitter, who waits for `done`."""

    messages: list[Message]
    accepted: list[Event]
    done: "asyncio.Future[None]"


class GroupCommit:
    """Stores messages in groups.

    `keep(message)` is asked at commit time whether the worker takes the message into memory, `kept(messages)` gets
    those that are durable. A message that was refused to its submitter after a lost connection is withdrawn before the
    next commit, so "451" means that it is not delivered, unless this process dies first.
    """

    def __init__(
        self,
        store: QueueStore,
        *,
        worker: int,
        keep: Callable[[Message], bool],
        kept: Callable[[list[Message]], None],
        dropped: Callable[[Message], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._worker = worker
        self._keep = keep
        self._kept = kept
        self._dropped = dropped
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None
        self._withdraw: list[int] = []

    async def add(self, messages: list[Message], accepted: list[Event]) -> None:
        """Returns when the messages are durable, all or none of them; raises Unavailable when they are not."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(messages, accepted, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="group commit")
        await done

    async def drained(self) -> None:
        """Wait until nothing is being committed."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._take())
        finally:
            self._running = None
            for waiting in self._waiting:  # only after a bug above: nobody must wait for ever
                self._fail(waiting, {})

    def _take(self) -> list[_Waiting]:
        size = 0
        for count, waiting in enumerate(self._waiting):
            size += sum(message.size for message in waiting.messages)
            if count == MAX_MESSAGES or (size > MAX_BYTES and count):
                break
        else:
            count = len(self._waiting)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        messages = [message for waiting in batch for message in waiting.messages]
        owners = {message.id: self._worker for message in messages if self._keep(message)}
        try:
            await self._withdraw_refused()
            await self._store.accept(messages, [event for waiting in batch for event in waiting.accepted], owners)
            stored = {message.id for message in messages}
        except LOST as error:
            log.warning("commit.interrupted", messages=len(messages), error=str(error))
            stored = await self._find_out([message.id for message in messages])
        except Exception:  # a full disk, or a bug: the submitters must know
            log.exception("commit.failed", messages=len(messages))
            stored = set()
        for waiting in batch:
            if waiting.messages[0].id in stored:
                _answer(waiting.done)
            else:
                self._fail(waiting, owners)
        self._kept([message for message in messages if message.id in owners and message.id in stored])

    def _fail(self, waiting: _Waiting, owners: Mapping[int, int]) -> None:
        for message in waiting.messages:
            if message.id in owners:
                self._dropped(message)
        _answer(waiting.done, Unavailable("the message could not be stored"))

    async def _find_out(self, ids: list[int]) -> set[int]:
        """Which messages of an interrupted commit were stored after all."""
        try:
            async with asyncio.timeout(RESOLVE_FOR):
                while True:
                    try:
                        stored = await self._store.known(ids, self._clock() - SLACK)
                        break
                    except LOST:
                        await asyncio.sleep(0.25)
        except TimeoutError:
            stored = set()
        # Withdrawn also when just found absent: a server we lost sight of may still be about to commit.
        self._withdraw += [id_ for id_ in ids if id_ not in stored]
        return stored

    async def _withdraw_refused(self) -> None:
        if self._withdraw:
            await self._store.withdraw(self._withdraw, self._clock() - timedelta(days=1))
            self._withdraw.clear()


def _answer(done: "asyncio.Future[None]", error: Exception | None = None) -> None:
    """The submitter may have gone away meanwhile."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
