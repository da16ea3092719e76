"""Asking whether recipients may be mailed, for many messages at a time and as late as can be.

An answer holds from the moment before its query was sent, by the clock of this process. Whoever adds a suppression
waits `suppression.GRACE` between the commit and saying so. A query that did not see it was sent before that commit, so
what is written less than GRACE after the query was sent is written before anybody was told.

Promised: a suppression that was acknowledged before the DATA of a transaction was handed to the kernel is honoured.

- The clock is compared right before the write that holds DATA, in the same stretch of code, and DATA leaves with it:
  the transport writes at once, and groups of commands that a socket might not take whole hold no DATA
  (`delivery.transaction`). Of several recipients the oldest answer counts.
- The clock is compared again right after that write. A process that was kept from running in between (stopped, swapped
  out, frozen with its machine) may have handed DATA over too late; it then cuts the connection before any content, asks
  again, and the mail is not sent.

Not promised: that the DATA command itself is not seen late by the host in that case (it gets no content), or when the
network or the host's own window holds it up on its way. Once DATA was in time its content follows, however much later
the host says 354. All this needs that clocks run at the same speed on all nodes, not that they agree.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import structlog

from mailerd.errors import MailerdError
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.suppression import CAMPAIGNS, GRACE, Suppression, SuppressionStore, Wanted

log = structlog.get_logger()

FRESH = GRACE - 0.02  # seconds from a query until we begin to write
HOLDS = GRACE - 0.002  # seconds from a query until DATA has left; a timer may ring a millisecond early
AT_ONCE = 500  # addresses of one query
FEW = 16  # questions that are worth a query of their own
GATHER = 0.005  # seconds between queries with fewer
# Seconds, while each answer is too old to be used when it comes: from one question to the next, and in all.
ASK_AFTER, ASK_AFTER_MOST = 0.05, 1.0
ASK_FOR = 5.0
SLOW = "the database took too long to say whether the recipients are suppressed"
TELL_EVERY = 60.0  # seconds between log lines about a slow database


class SlowDatabaseError(MailerdError):
    """No answer came in time to be used, for `ASK_FOR` seconds."""

    def __init__(self) -> None:
        super().__init__(SLOW)


class Suppressed(NamedTuple):
    recipient: Recipient
    suppression: Suppression


@dataclass(slots=True, eq=False)
class _Question:
    wanted: list[Wanted]
    answered: "asyncio.Future[tuple[float, list[Suppression | None]]]"


class Suppressions:
    """What gathers while one query runs makes up the next."""

    def __init__(
        self,
        store: SuppressionStore,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._waiting: list[_Question] = []
        self._running: asyncio.Task[None] | None = None
        self._ahead: dict[Recipient, asyncio.Future[tuple[float, list[Suppression | None]]]] = {}  # asked and not told
        self._told = -math.inf

    def cleared(self, recipients: Iterable[Recipient]) -> bool:
        """May a DATA for all of these be written at this moment?"""
        return self._since(recipients, FRESH)

    def held(self, recipients: Iterable[Recipient]) -> bool:
        """Is it certain that a DATA for all of these, written just now, left before anybody knew better?"""
        return self._since(recipients, HOLDS)

    def _since(self, recipients: Iterable[Recipient], seconds: float) -> bool:
        oldest = self._monotonic() - seconds
        for recipient in recipients:  # noqa: SIM110 - all() makes a generator, for every message
            if recipient.cleared < oldest:
                return False
        return True

    async def clear(self, recipients: Sequence[Recipient]) -> list[Suppressed]:
        """Those that must not be mailed; none: all are cleared at this moment.

        Raises SlowDatabaseError, and what asking the database raises.
        """
        if self.cleared(recipients):
            return []
        if self._ahead and (asked := {self._ahead[each] for each in recipients if each in self._ahead}):
            await asyncio.wait(asked)
            if self.cleared(recipients):
                return []
        begun, pause = self._monotonic(), ASK_AFTER
        while not (found := await self.screen(recipients)) and not self.cleared(recipients):
            if self._monotonic() > begun + ASK_FOR:
                raise SlowDatabaseError
            await asyncio.sleep(pause)
            pause = min(2 * pause, ASK_AFTER_MOST)
        return found

    def ahead(self, recipients: Sequence[Recipient]) -> None:
        """Ask for these, who are about to be mailed, so that `clear` finds the answer; of some 100 at most.

        Who is suppressed, or cannot be asked for now, is asked for again in his turn.
        """
        asked = [each for each in recipients[:AT_ONCE] if each not in self._ahead and not self.cleared((each,))]
        if not asked:
            return
        answered = self._ask([_wanted(each.address, each.message) for each in asked])
        self._ahead |= dict.fromkeys(asked, answered)

        def tell(answered: "asyncio.Future[tuple[float, list[Suppression | None]]]") -> None:
            for each in asked:
                del self._ahead[each]
            if answered.cancelled() or answered.exception() is not None:
                return
            asked_at, answers = answered.result()
            for recipient, suppression in zip(asked, answers, strict=True):
                recipient.cleared = asked_at if suppression is None else -math.inf

        answered.add_done_callback(tell)

    async def screen(self, recipients: Sequence[Recipient]) -> list[Suppressed]:
        """Those that must not be mailed; the others are cleared from the begin of the query on.

        Raises what asking the database raises.
        """
        found: list[Suppressed] = []
        for start in range(0, len(recipients), AT_ONCE):
            part = recipients[start : start + AT_ONCE]
            wanted = [_wanted(recipient.address, recipient.message) for recipient in part]
            asked_at, answers = await self._ask(wanted)
            for recipient, suppression in zip(part, answers, strict=True):
                recipient.cleared = asked_at if suppression is None else -math.inf
                if suppression is not None:
                    found.append(Suppressed(recipient, suppression))
        return found

    async def check(self, wanted: Sequence[Wanted]) -> list[Suppression | None]:
        """For each what forbids mailing it now, if anything does."""
        found: list[Suppression | None] = []
        for start in range(0, len(wanted), AT_ONCE):
            found += (await self._ask(list(wanted[start : start + AT_ONCE])))[1]
        return found

    def _ask(self, wanted: list[Wanted]) -> "asyncio.Future[tuple[float, list[Suppression | None]]]":
        question = _Question(wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="screening")
        return question.answered

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                if batch:
                    await self._answer(batch)
                # Where several ask at a time, who comes soon shares the next query; who asks alone waits for nobody.
                if len(self._waiting) < FEW and (len(batch) > 1 or self._waiting):
                    await asyncio.sleep(GATHER)
        finally:
            self._running = None

    def _take(self) -> list[_Question]:
        count = size = 0
        while count < len(self._waiting) and size < AT_ONCE:
            size += len(self._waiting[count].wanted)
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return [question for question in batch if not question.answered.done()]

    async def _answer(self, batch: list[_Question]) -> None:
        asked_at = self._monotonic()
        try:
            found = await self._store.check([each for question in batch for each in question.wanted], self._clock())
        except BaseException as error:
            for question in batch:
                if not question.answered.done():
                    question.answered.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
            self._tell("suppressions.unavailable", error=str(error))
            return
        took = self._monotonic() - asked_at
        if took > FRESH:
            self._tell("suppressions.slow", milliseconds=round(took * 1000), addresses=len(found))
        at = 0
        for question in batch:
            if not question.answered.done():
                question.answered.set_result((asked_at, found[at : at + len(question.wanted)]))
            at += len(question.wanted)

    def _tell(self, what: str, **facts: object) -> None:
        now = self._monotonic()
        if now >= self._told + TELL_EVERY:
            self._told = now
            log.warning(what, **facts)


def _wanted(address: str, message: Message) -> Wanted:
    return Wanted(address, message.tenant, message.stream, message.topic, CAMPAIGNS if message.render else "")
