"""What is due in the database comes in hand: queue by queue, in turns, as much as has room and may leave soon."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from mailerd import failpoints
from mailerd.delivery.attempt import Attempts, Job
from mailerd.delivery.memory import FIRST_LANES, Memory
from mailerd.delivery.settler import Settler
from mailerd.delivery.shares import Shares
from mailerd.delivery.sources import Sources
from mailerd.queue.commit import LOST
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.store import QueueStore, Settled
from mailerd.queue.workers import FENCE, WorkerStore

log = structlog.get_logger()

POLL = 1.0  # seconds between looks for due mail when nothing wakes us
LANES = 30  # ten precedences, three priorities
FLOWS_AT_ONCE = 64  # of a lane take their turns in one claim,
QUEUES_AT_ONCE = 1_024  # queues of a lane, shared by the flows that came with the look before:
LEAST_OF_FLOW = 16  # but so many of each; more would keep the loop from other work for long
CLAIM_AT_ONCE = 500
FEW = 50  # messages of a claim: after fewer, some more may come together in
BETWEEN = 0.02  # seconds
LOOKED_AFTER = 0.1  # seconds: claims that found only queues to put off are repeated after that,
SOON = 2.0  # as long as a queue's time comes that was put off for less than so many seconds


class Claims:
    """Claims what is due until `stop()`, and gives it to `offer`.

    In each lane the flows take turns; a queue whose path has no room is put off, with the reason.
    """

    def __init__(
        self,
        shares: Shares,
        *,
        memory: Memory,
        sources: Sources,
        store: QueueStore,
        leases: WorkerStore,
        journal: Journal,
        attempts: Attempts,
        settler: Settler,
        worker: int,
        clock: Callable[[], datetime],
        silent_for: Callable[[], float],
        offer: Callable[[Sequence[Message]], None],
        withdrawn: Callable[[], Collection[tuple[int, int]]],
    ) -> None:
        self._shares = shares
        self._memory = memory
        self._sources = sources
        self._store = store
        self._leases = leases
        self._journal = journal
        self._attempts = attempts
        self._settler = settler
        self._worker = worker
        self._clock = clock
        self._silent_for = silent_for  # seconds since the last beat of our lease
        self._offer = offer
        self._withdrawn = withdrawn  # who was refused, and may be stored as ours all the same for a moment
        self._claiming = asyncio.Lock()
        self._astray = False  # a claim may have been committed without our hearing of it
        self._wake = asyncio.Event()
        self._hungry = False  # there was more to claim than fitted
        self._turns_until = 0.0  # of the loop's clock: then the last queue is due that was put off for a short time
        self._flows = FLOWS_AT_ONCE  # that the last look found mail of
        self._turns = dict.fromkeys(range(LANES), "")  # lane → the flow that had its turn last
        self._claimed = False  # anything since the flows of some lane began to have their turns
        self._stopping = False

    async def run(self) -> None:
        """Until `stop()`."""
        while not self._stopping:
            self._wake.clear()
            claimed = put_off = 0
            more = False
            try:
                if self._astray:
                    await self._free_strays()
                claimed, put_off, more = await self._claim()
            except LOST as error:
                log.warning("claim.interrupted", error=str(error))
            except Exception:
                log.exception("claim.failed")
            if claimed >= FEW or more:
                continue
            turns = asyncio.get_running_loop().time() < self._turns_until
            with suppress(TimeoutError):
                async with asyncio.timeout(BETWEEN if claimed else LOOKED_AFTER if put_off or turns else POLL):
                    await self._wake.wait()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """There may be due mail in the database."""
        self._wake.set()

    def strayed(self) -> None:
        """Mail was dropped that may have been committed as ours: look for it, and free it."""
        self._astray = True
        self._wake.set()

    def released(self, recipients: Sequence[Recipient]) -> None:
        """These have given back their room in memory."""
        if (self._hungry and self._memory.half_empty) or any(map(self._memory.roomy, self._shares.crowded)):
            self._wake.set()
        elif self._shares.cut:
            flows = self._shares.cut & {recipient.message.flow for recipient in recipients}
            if any(self._memory.room_to_claim_of_campaign(flow) > self._memory.of_flow[flow] for flow in flows):
                self._wake.set()

    async def _claim(self) -> tuple[int, int, bool]:
        """Claim what has its turn and room on its path.

        How many messages; how many queues were put off; whether there are flows that have not had their turn.
        """
        if self._silent_for() > FENCE or self._settler.uncertain:
            return 0, 0, False
        bulk = self._memory.room_to_claim(first=False)
        room = self._memory.room_to_claim(first=True)
        self._hungry = self._memory.nearly_full
        lanes = range(FIRST_LANES if self._hungry else LANES)
        if not room:
            return 0, 0, False
        now = self._clock()
        queues, last = await self._store.due_queues(
            now=now,
            after={lane: self._turns[lane] for lane in lanes},
            pools=self._sources.pools(),
            flows=FLOWS_AT_ONCE,
            queues=max(LEAST_OF_FLOW, QUEUES_AT_ONCE // max(1, self._flows)),
        )
        self._flows = len({(queue.lane, queue.flow) for queue in queues})
        more = self._next_turns(last, lanes)
        wanted, put_off = self._shares.sort_out(queues, min(room, CLAIM_AT_ONCE), min(bulk, CLAIM_AT_ONCE))
        if put_off:
            waits = {queue: (now + timedelta(seconds=wait.seconds), wait.why) for queue, wait in put_off.items()}
            await self._store.put_off(waits, now=now)
            turn = max((wait.seconds for wait in put_off.values() if wait.seconds <= SOON), default=-math.inf)
            self._turns_until = max(self._turns_until, asyncio.get_running_loop().time() + turn + LOOKED_AFTER)
        if not wanted:
            return 0, len(put_off), more
        messages = await self._taken(
            lambda: self._store.claim(wanted, now=now, worker=self._worker, bytes_=self._memory.bytes_left)
        )
        self._claimed |= bool(messages)
        self._shares.learn_lengths(len(wanted), sum(len(message.recipients) for message in messages))
        self._offer(messages)
        return len(messages), len(put_off), more

    def _next_turns(self, last: Mapping[int, str], lanes: Iterable[int]) -> bool:
        """Where there are more flows than one claim looks at, go on behind the last one, else start over.

        True when there are. Once all had their turn and anything was claimed, the first ones may have theirs at once.
        """
        over = any(self._turns[lane] and lane not in last for lane in lanes)
        for lane in lanes:
            self._turns[lane] = last.get(lane, "")
        if over and self._claimed:
            self._claimed = False
            self._wake.set()
        return bool(last)

    async def _taken(self, claim: Callable[[], Awaitable[list[Message]]]) -> list[Message]:
        """Take in hand what the statement claims. When it fails, it may have claimed all the same.

        Nothing while results may be recorded unheard: they are recorded once more, and what was claimed since would go
        out of our hands with that.
        """
        async with self._claiming:
            if self._settler.uncertain:
                return []
            try:
                messages = await claim()
                if failpoints.ON:
                    failpoints.reached("claim.after")
            except BaseException:
                self._astray = True
                raise
            for message in messages:
                self._memory.take(message)
        return messages

    async def claimed(self) -> None:
        """Return when what is being claimed is in hand."""
        async with self._claiming:
            pass

    async def _free_strays(self) -> None:
        """Give up what is ours in the database and not in our hands."""
        self._astray = False  # what goes astray from here on may be passed by, and is looked for once more
        try:
            await self._settler.recorded()  # else what was claimed unheard as it was put back would seem to be in hand
            async with self._claiming:
                freed = await self._leases.free_strays(
                    self._worker, lambda: [*self._memory.in_hand, *self._withdrawn()], self._journal.taken
                )
        except BaseException:
            self._astray = True
            raise
        if freed:
            log.warning("strays.freed", recipients=freed)

    async def expire(self) -> None:
        """Bounce what is past its expiry, in whatever state it waits."""
        while messages := await self._taken(
            lambda: self._store.claim_expired(now=self._clock(), worker=self._worker, limit=CLAIM_AT_ONCE)
        ):
            for message in messages:
                job = Job(message, list(message.recipients))
                await self._attempts.give_up_expired(job)
                # Whom the clock, set back in between, has given more time.
                self._settler.add([Settled(recipient, None, recipient.due_at) for recipient in job.recipients])
            await self._settler.recorded()
