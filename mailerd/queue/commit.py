"""Accept is commit: what arrives while the disk is busy is committed together, and only then does anyone answer 250."""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog

from mailerd import failpoints, metrics
from mailerd.errors import MailerdError, Refused, Unavailable
from mailerd.events import Event
from mailerd.queue.mail import Message
from mailerd.queue.store import LeaseLostError, QueueStore

log = structlog.get_logger()

MAX_MESSAGES = 500  # of one transaction
MAX_BYTES = 8_000_000
RESOLVE_FOR = 15.0  # seconds to find out whether an interrupted commit happened, before the submitter is told 451
WITHDRAW_FOR = 75.0  # seconds in which a server that we lost sight of may still commit: db.COMMAND_TIMEOUT and more
WITHDRAW_EVERY = 1.0
LOOK_EVERY = 0.25
SLACK = timedelta(minutes=5)  # between our clock and the partitions of events

NOT_STORED = "the message could not be stored"

# What PostgreSQL cannot hold, as it says itself, or asyncpg before it is asked.
BAD_DATA = (asyncpg.DataError, asyncpg.ProgramLimitExceededError)
# What tells of a database that went away; anything else is a bug, or a full disk.
# (InternalClientError: the server's last words came while nothing was being asked.)
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.exceptions.OperatorInterventionError,
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """Messages of one submitter, who waits for `done`."""

    messages: list[Message]
    accepted: list[Event]
    done: "asyncio.Future[None]"


class GroupCommit:
    """Stores messages in groups.

    `keep(message)` is asked at commit time whether the worker takes the message into memory, `kept(messages)` gets
    those that are durable, `left(messages)` those that are durable and in nobody's memory. When a group cannot be
    stored, its submitters are tried one by one, so that nobody is refused for another's mail. A message that was
    refused to its submitter after a lost connection is withdrawn, also when the server commits it late, so "451" means
    that it is not delivered, unless this process dies first.
    """

    def __init__(
        self,
        store: QueueStore,
        *,
        worker: int,
        keep: Callable[[Message], bool],
        kept: Callable[[list[Message]], None],
        left: Callable[[list[Message]], None],
        dropped: Callable[[Message], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._worker = worker
        self._keep = keep
        self._kept = kept
        self._left = left
        self._dropped = dropped
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None
        self._until_drained: list[asyncio.Future[None]] = []
        # Recipients, by message id and n, who must not come to be, until that time of the loop.
        self._withdrawn: dict[tuple[int, int], float] = {}
        self._withdrawing: asyncio.Task[None] | None = None

    async def add(self, messages: list[Message], accepted: list[Event]) -> None:
        """Returns when the messages, if any, and events are durable, all or none of them.

        Raises Unavailable when they are not, Refused when they never can be. Who is cancelled before the commit began
        has stored nothing, who is cancelled later cannot know.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(messages, accepted, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="group commit")
        await done

    @property
    def withdrawn(self) -> Collection[tuple[int, int]]:
        """Who is being withdrawn, by message id and n: should the server store them yet, nobody else may have them."""
        return self._withdrawn.keys()

    async def drained(self) -> None:
        """Wait until nothing is being committed."""
        if self._running is not None:
            drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._until_drained.append(drained)
            await drained

    async def _run(self) -> None:
        try:
            while self._waiting:
                if batch := self._take():
                    await self._commit(batch)
        finally:
            self._running = None
            for waiting in self._waiting:  # only after a bug above: nobody must wait for ever
                _answer(waiting.done, Unavailable(NOT_STORED))
            drained, self._until_drained = self._until_drained, []
            for each in drained:
                _answer(each)

    def _take(self) -> list[_Waiting]:
        size = 0
        for count, waiting in enumerate(self._waiting):
            size += sum(message.size for message in waiting.messages)
            if count == MAX_MESSAGES or (size > MAX_BYTES and count):
                break
        else:
            count = len(self._waiting)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return [waiting for waiting in batch if not waiting.done.done()]

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Store a group, or else its members one by one, and answer them all."""
        owned = {message.id for waiting in batch for message in waiting.messages if self._keep(message)}
        begun = time.perf_counter()
        errors = await self._store_all(batch, owned)
        metrics.committed(sum(len(waiting.messages) for waiting in batch), time.perf_counter() - begun)
        kept: list[Message] = []
        left: list[Message] = []
        for waiting, error in zip(batch, errors, strict=True):
            _answer(waiting.done, error)
            mine = [message for message in waiting.messages if message.id in owned]
            for message in waiting.messages:
                if error is not None or message.id not in owned:
                    message.content = None  # see Dispatcher.release
            if error is None:
                kept += mine
                left += [message for message in waiting.messages if message.id not in owned]
            else:
                for message in mine:
                    self._dropped(message)
        if failpoints.ON:
            failpoints.reached("accepted.answered")
        self._kept(kept)
        if left:
            self._left(left)

    async def _store_all(self, batch: list[_Waiting], owned: set[int]) -> list[MailerdError | None]:
        """What came in the way of each: None when its messages are durable."""
        messages = [message for waiting in batch for message in waiting.messages]
        accepted = [event for waiting in batch for event in waiting.accepted]
        owners = {message.id: self._worker for message in messages if message.id in owned}
        try:
            await self._withdraw()
            if failpoints.ON:
                failpoints.reached("accepted.before_commit")
            await self._store.accept(messages, accepted, owners)
            if failpoints.ON:
                failpoints.reached("accepted.after_commit")
        except BAD_DATA as error:
            log.warning("commit.refused", messages=len(messages), error=str(error)[:200])
            problem: MailerdError = Refused(554, "5.6.0", "the message cannot be stored", name="unstorable")
        except LOST as error:
            log.warning("commit.interrupted", messages=len(messages), error=str(error))
            stored = await self._find_out(messages)
            return [
                None if any(message.id in stored for message in waiting.messages) else Unavailable(NOT_STORED)
                for waiting in batch
            ]
        except (LeaseLostError, asyncpg.InsufficientResourcesError) as error:  # nobody's mail in particular
            log.error("commit.failed", messages=len(messages), error=repr(error))
            return [Unavailable(NOT_STORED)] * len(batch)
        except Exception:
            log.exception("commit.failed", messages=len(messages))
            problem = Unavailable(NOT_STORED)
        else:
            return [None] * len(batch)
        if len(batch) == 1:
            return [problem]
        return [error for waiting in batch for error in await self._store_all([waiting], owned)]

    async def _find_out(self, messages: list[Message]) -> set[int]:
        """Which messages of an interrupted commit were stored after all; the others are withdrawn for a while.

        They are not, only when nothing is under way any more that may store them: whoever is told 451 sends again.
        """
        ids = [message.id for message in messages]
        stored: set[int] = set()
        lost_at: datetime | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(RESOLVE_FOR):
                while True:
                    try:
                        lost_at = lost_at or await self._store.server_time()
                        under_way = await self._store.under_way(lost_at)
                        stored = await self._store.known(ids, self._clock() - SLACK)
                        if stored or not under_way:
                            break
                    except Exception as error:  # such as "too many clients" of a server that has just come back
                        log.debug("commit.looked_for", error=str(error))
                    await asyncio.sleep(LOOK_EVERY)
        until = asyncio.get_running_loop().time() + WITHDRAW_FOR
        refused = [message for message in messages if message.id not in stored]
        self._withdrawn.update(((each.message.id, each.n), until) for message in refused for each in message.recipients)
        if self._withdrawn and self._withdrawing is None:
            self._withdrawing = asyncio.create_task(self._keep_withdrawing(), name="withdraw refused mail")
        return stored

    async def _keep_withdrawing(self) -> None:
        """A server we lost sight of may commit when we have already looked, so look again, until it has given up."""
        try:
            while self._withdrawn:
                try:
                    await self._withdraw()
                    now = asyncio.get_running_loop().time()
                    self._withdrawn = {key: until for key, until in self._withdrawn.items() if until > now}
                except LOST as error:
                    log.warning("withdraw.interrupted", error=str(error))
                except Exception:  # such as a full disk
                    log.exception("withdraw.failed")
                await asyncio.sleep(WITHDRAW_EVERY)
        finally:
            self._withdrawing = None

    async def _withdraw(self) -> None:
        if self._withdrawn:
            ids = {message_id for message_id, _ in self._withdrawn}
            await self._store.withdraw(list(ids), self._clock() - timedelta(days=1))


def _answer(done: "asyncio.Future[None]", error: Exception | None = None) -> None:
    """The submitter may have gone away meanwhile."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
