"""Results go to the database in batches: what gathers while one batch is written makes up the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import asyncpg
import structlog

from mailerd import failpoints
from mailerd.queue.commit import BAD_DATA, LOST
from mailerd.queue.ids import format_message_id
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Recipient
from mailerd.queue.store import QueueStore, Report, Settled

log = structlog.get_logger()

MAX_BATCH = 500  # results of one transaction
MAX_REPORTS = 200  # of one transaction; each may hold the 50 KB of an original
FEW = 100  # groups of results; with fewer, a moment is waited for more: a transaction costs as much as fifty results
GATHER = 0.01  # seconds
RETRY_AFTER = 0.5  # seconds, while the database is away


class _Group(NamedTuple):
    """What one attempt ended with; `told` of one without results: who waits for all that was added before it."""

    results: Sequence[Settled]
    reports: Sequence[Report]
    told: "asyncio.Future[None] | None" = None


class Settler:
    """Takes results and records them, in order, however long the database is away; what is in hand bounds them.

    `claimed` returns when no claim is under way. `taken_again` tells whether a recipient whose result is here is in
    hand once more: then it was claimed since, so that its result is recorded although nobody may have heard of it. To
    record it once more would take it out of our hands, and what the journal has of it is of the new attempt.
    """

    def __init__(
        self,
        store: QueueStore,
        journal: Journal,
        *,
        worker: int,
        settled: Callable[[Sequence[Recipient]], None],
        claimed: Callable[[], Awaitable[None]],
        taken_again: Callable[[Recipient], bool],
    ) -> None:
        self._store = store
        self._journal = journal
        self._worker = worker
        self._settled = settled
        self._claimed = claimed
        self._taken_again = taken_again
        self._waiting: deque[_Group] = deque()
        self._running: asyncio.Task[None] | None = None
        # Results may be recorded without our knowing. What is put back must not come back until they are recorded
        # once more, because that would take it out of our hands again.
        self.uncertain = False

    def add(self, results: Sequence[Settled], reports: Sequence[Report] = ()) -> None:
        """Record these soon; reports are queued in the same transaction as the results that caused them."""
        self._waiting.append(_Group(results, reports))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="settler")

    async def drained(self) -> None:
        """Wait until everything is recorded."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def recorded(self) -> None:
        """Wait until what was added so far is recorded, whatever comes meanwhile."""
        if self._running is not None:
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Group((), (), told))
            await told

    async def _run(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < FEW:
                    await asyncio.sleep(GATHER)
                batch, reports, told = self._take()
                if batch or reports:
                    await self._settle(batch, reports)
                for each in told:
                    if not each.done():
                        each.set_result(None)
        finally:
            self._running = None

    def _take(self) -> "tuple[list[Settled], list[Report], list[asyncio.Future[None]]]":
        batch: list[Settled] = []
        reports: list[Report] = []
        told: list[asyncio.Future[None]] = []
        while self._waiting and len(batch) < MAX_BATCH and len(reports) < MAX_REPORTS:
            group = self._waiting.popleft()
            batch += group.results
            reports += group.reports
            told += [group.told] if group.told is not None else []
        return batch, reports, told

    async def _settle(self, batch: list[Settled], reports: list[Report]) -> None:
        await self._record(batch, reports)
        if failpoints.ON:
            failpoints.reached("settle.after")
        self.uncertain = False
        recipients = [settled.recipient for settled in batch]
        for recipient in recipients:
            if not self._taken_again(recipient):
                self._journal.close(recipient.message.id, recipient.n)
        if failpoints.ON:
            failpoints.reached("settle.closed")
        self._settled(recipients)

    async def _record(self, batch: list[Settled], reports: list[Report]) -> None:
        wordless = False
        while True:
            try:
                if failpoints.ON:
                    failpoints.reached("settle.before")
                return await self._store.settle(batch, worker=self._worker, reports=reports)
            except LOST as error:
                self.uncertain = True
                log.warning("settle.interrupted", results=len(batch), error=str(error))
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                continue
            except BAD_DATA:  # it will never be taken, and must not stand in the way of all that comes after
                log.exception("settle.refused", results=len(batch), reports=len(reports))
                if len(batch) > 1:
                    return await self._record_singly(batch, reports)
                if wordless and reports:
                    log.error("reports.lost", messages=[format_message_id(report.message.id) for report in reports])
                    reports = []
                batch, wordless = [_wordless(batch[0])], True
            except Exception:
                # Such as a full disk. Dropping results would send mail twice, so wait for better times.
                log.exception("settle.failed", results=len(batch))
            await asyncio.sleep(RETRY_AFTER)
            await self._claimed()
            if any(self._taken_again(settled.recipient) for settled in batch):
                return None

    async def _record_singly(self, batch: list[Settled], reports: list[Report]) -> None:
        """Each result with the reports that are about it; a report about several goes with the first of them."""
        left = list(reports)
        for settled in batch:
            key = settled.recipient.message.id, settled.recipient.n
            await self._record([settled], [report for report in left if key in report.about])
            left = [report for report in left if key not in report.about]


def _wordless(settled: Settled) -> Settled:
    """The same result without the words that the database would not take."""
    settled.recipient.last_reply = ""
    event, suppression = settled.event, settled.suppression
    return Settled(
        settled.recipient,
        event and replace(event, data=None),
        settled.due_at,
        suppression=suppression and replace(suppression, detail=""),
    )
