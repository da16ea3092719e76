"""The loop: mail in hand → route → source → destination.

Mail comes in hand in two ways: `offer()` gets what was just accepted, the claim loop gets what is due in the database.
Both are bounded (`memory`): what does not fit, and what could not leave soon anyway, stays in the database. There it is
claimed by queue: in each lane the flows take turns, and a queue whose path has no room is put off, with the reason.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from mailerd import failpoints
from mailerd.config import Config
from mailerd.delivery.attempt import Attempts, Job, Where
from mailerd.delivery.destination import AFTER_CRASH, CRASHED, PATIENCE, Destination, Key, Sessions, key_of
from mailerd.delivery.line import LEVELS, Line
from mailerd.delivery.memory import FIRST_LANES, Memory
from mailerd.delivery.paths import Path, Scarce, Wait
from mailerd.delivery.promises import Promises
from mailerd.delivery.routing import NoRoute, Route, Router
from mailerd.delivery.settler import Settler
from mailerd.delivery.sources import Source, Sources
from mailerd.delivery.tls_policy import TlsOutcome
from mailerd.delivery.traffic import Traffic
from mailerd.queue.commit import LOST
from mailerd.queue.control import Selection
from mailerd.queue.ids import format_message_id
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message, Queue, Recipient, parts_of_flow
from mailerd.queue.store import QueueStore, Settled
from mailerd.queue.workers import FENCE, WorkerStore

log = structlog.get_logger()

POLL = 1.0  # seconds between looks for due mail when nothing wakes us
LANES = 30  # ten precedences, three priorities
FLOWS_AT_ONCE = 64  # of a lane take their turns in one claim,
QUEUES_AT_ONCE = 1_024  # queues of a lane, shared by the flows that came with the look before:
LEAST_OF_FLOW = 16  # but so many of each; more would keep the loop from other work for long
CLAIM_AT_ONCE = 500
UNKNOWN_ROOM = 20  # recipients claimed of a queue whose route is not known yet
LEAST_ROOM = 100  # jobs of a destination in memory; from there on as many as leave in two seconds
KEPT = 1_000  # jobs of a destination in memory, for accepted mail
FEW = 50  # messages of a claim: after fewer, some more may come together in
BETWEEN = 0.02  # seconds
LOOKED_AFTER = 0.1  # seconds: claims that found only queues to put off are repeated after that,
SOON = 2.0  # as long as a queue's time comes that was put off for less than so many seconds


class Dispatcher:
    """What this worker sends, and to whom."""

    def __init__(
        self,
        config: Config,
        *,
        router: Router,
        sources: Sources,
        traffic: Traffic,
        store: QueueStore,
        leases: WorkerStore,
        journal: Journal,
        attempts: Attempts,
        settler: Settler,
        worker: int,
        clock: Callable[[], datetime],
        silent_for: Callable[[], float],
        tls_outcome: Callable[[TlsOutcome, str], None],
    ) -> None:
        self._config = config
        self._router = router
        self._sources = sources
        self._traffic = traffic
        self._store = store
        self._leases = leases
        self._journal = journal
        self._settler = settler
        self._worker = worker
        self._clock = clock
        self._silent_for = silent_for  # seconds since the last beat of our lease
        self._sessions = Sessions(
            config,
            traffic=traffic,
            attempts=attempts,
            back=self,
            clock=clock,
            silent_for=silent_for,
            tls_outcome=tls_outcome,
        )
        self._attempts = attempts
        self._memory = Memory(config.delivery)
        self._destinations: dict[Key, Destination] = {}
        self._of_path: Counter[tuple[str, str, str]] = Counter()  # destinations: by site, source and provider
        self._starving: dict[tuple[str, bool], int] = {}  # what a claim promises to paths without connection, as there
        self._claiming = asyncio.Lock()
        self._astray = False  # a claim may have been committed without our hearing of it
        self._wake = asyncio.Event()
        self._hungry = False  # there was more to claim than fitted
        self._cut: set[str] = set()  # campaigns that may have had more to claim than their share
        self._crowded: set[str] = set()  # queues that have all of the memory that one may have, and more to claim
        self._turns_until = 0.0  # of the loop's clock: then the last queue is due that was put off for a short time
        self._flows = FLOWS_AT_ONCE  # that the last look found mail of
        self._each = 1.0  # recipients that a claim finds in a queue
        self._turns = dict.fromkeys(range(LANES), "")  # lane → the flow that had its turn last
        self._claimed = False  # anything since the flows of some lane began to have their turns
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._routing: dict[tuple[str, str, str, str, bool], list[Job]] = {}

    def reconfigure(self, config: Config) -> None:
        """Take new limits; sources, router and traffic are told before, by themselves."""
        self._config = config
        self._memory.reconfigure(config.delivery)
        self._sessions.reconfigure(config)
        self._leave_removed()
        self.look_again()

    def _leave_removed(self) -> None:
        """Nothing more by sources that are not there any more, or are others now; nor for pools that have lost them."""
        members = {pool: set(self._sources.of(pool)) for pool in self._config.pools}
        kept = set().union(*members.values())
        for destination in list(self._destinations.values()):
            source = destination.source
            why = f"source {source.name} was changed" if source.name else "the host name was changed"
            if source not in kept:
                self._sessions.retire(destination, why)
                continue
            having = {pool for pool, sources in members.items() if source in sources}
            self.put_back(_without(destination.line, having), self._clock(), f"its pool has lost source {source.name}")

    # what fits into memory

    def keep(self, message: Message) -> bool:
        """Take room for a message that is about to be committed; False: it has to come by way of the database."""
        recipients = message.recipients
        if (
            self._stopping
            or recipients[0].due_at > message.accepted_at
            or not self._memory.has_room_for(message)
            or any(self._memory.crowded(recipient.queue) for recipient in recipients)
            or (message.render and not self._memory.room_of_campaign(message.flow, message.weight))
            or not self._sources.of(message.pool)
            or self._would_wait(message)
        ):
            return False
        self._memory.take(message)
        return True

    def _would_wait(self, message: Message) -> bool:
        """Is the way of the first recipient known, and full?"""
        route = self._cached(message, message.recipients[0].domain)
        if not isinstance(route, Route):
            return False
        source = self._sources.choose(message.pool, message.id, route.hosts)[0]
        provider = self._provider(message.recipients[0].domain, route)
        destination = self._destinations.get(key_of(route, source, provider))
        if destination is None:
            return False
        if destination.stuck_until > asyncio.get_running_loop().time():
            return True
        first = message.lane < FIRST_LANES
        scarce = None if destination.sessions else self._traffic.scarcest(destination.path)
        if scarce is not None and self._sessions.room_beside(scarce, first=first) <= 0:
            return True
        if first:
            return False
        if len(destination.line) >= KEPT:
            return True
        return not destination.sessions and self._traffic.free(destination.path) == 0

    def left(self, messages: Sequence[Message]) -> None:
        """These were stored and not kept: what goes first is claimed at once, other mail when there is room."""
        due = [message for message in messages if message.recipients[0].due_at <= message.accepted_at]
        if due and (self._memory.half_empty or any(message.lane < FIRST_LANES for message in due)):
            self._wake.set()

    @property
    def recipients_in_hand(self) -> int:
        return self._memory.recipients

    @property
    def bytes_in_hand(self) -> int:
        return self._memory.bytes

    def drop(self, message: Message) -> None:
        """Give back the room of a message that was not committed after all."""
        self.release(message.recipients)

    def strayed(self) -> None:
        """Mail was dropped that may have been committed as ours: look for it, and free it."""
        self._astray = True
        self._wake.set()

    def room_of_campaign(self, flow: str, weight: int) -> int:
        """How many more messages of so many bytes, of one campaign, would be kept in memory."""
        return 0 if self._stopping else self._memory.room_of_campaign(flow, weight)

    def held_of_campaign(self, flow: str) -> int:
        """How many messages of one campaign are in memory."""
        return self._memory.of_flow[flow]

    def release(self, recipients: Sequence[Recipient]) -> None:
        """These are settled."""
        self._memory.release(recipients)
        if (self._hungry and self._memory.half_empty) or any(map(self._memory.roomy, self._crowded)):
            self._wake.set()
        elif self._cut:
            flows = self._cut & {recipient.message.flow for recipient in recipients}
            if any(self._memory.room_to_claim_of_campaign(flow) > self._memory.of_flow[flow] for flow in flows):
                self._wake.set()

    # mail in hand

    def offer(self, messages: Sequence[Message]) -> None:
        """Send these, which this worker owns, as soon as may be."""
        for message in messages:
            by_domain: dict[str, list[Recipient]] = {}
            for recipient in message.recipients:
                by_domain.setdefault(recipient.domain, []).append(recipient)
            for group in by_domain.values():
                try:
                    self._direct(message, group)
                except Exception:
                    self._crashed(Job(message, group))

    def _crashed(self, job: Job) -> None:
        """In an `except`: nobody else holds this job now."""
        log.exception("dispatch.crashed", message=format_message_id(job.message.id))
        self.put_back([job], self._clock() + AFTER_CRASH, CRASHED)

    def _cached(self, message: Message, domain: str) -> Route | NoRoute | None:
        return self._router.cached(
            domain,
            sender=message.sender.rpartition("@")[2],
            stream=message.stream,
            pool=message.pool,
            ignore_policy=message.require_tls is False,
        )

    def _direct(self, message: Message, recipients: list[Recipient]) -> None:
        """Find the way of recipients in one domain; without waiting when it is known."""
        domain = recipients[0].domain
        route = self._cached(message, domain)
        if route is not None:
            self._put(route, Job(message, recipients))
            return
        sender_domain = message.sender.rpartition("@")[2]
        key = (domain, sender_domain, message.stream, message.pool, message.require_tls is False)
        if key in self._routing:
            self._routing[key].append(Job(message, recipients))
        else:
            self._routing[key] = [Job(message, recipients)]
            self.start(self._route(*key), f"route {domain}")

    async def _route(self, domain: str, sender: str, stream: str, pool: str, ignore_policy: bool) -> None:
        key = (domain, sender, stream, pool, ignore_policy)
        try:
            route = await self._router.route(
                domain, sender=sender, stream=stream, pool=pool, ignore_policy=ignore_policy
            )
        except Exception:
            log.exception("route.crashed", domain=domain)
            self.put_back(self._routing.pop(key), self._clock() + AFTER_CRASH, CRASHED)
            return
        self.again(route, self._routing.pop(key))

    def _put(self, route: Route | NoRoute, job: Job) -> None:
        if self._stopping:
            self.put_back([job], self._clock(), "")
            return
        if isinstance(route, NoRoute):
            self.start(self._sessions.refuse(job, route.verdict, Where(), "route"), "refuse")
            return
        destination = self._choose(route, job)
        if isinstance(destination, Wait):
            self._sessions.put_off([job], destination)
            return
        if self._sessions.blocked(destination) is not None:
            self._sessions.leave(destination, [job])
            return
        self._sessions.add(destination, job)

    def again(self, route: Route | NoRoute, jobs: Sequence[Job]) -> None:
        """Choose a source for each of these, which nobody holds."""
        for job in jobs:
            try:
                self._put(route, job)
            except Exception:
                self._crashed(job)

    def goes_for_queues(self, job: Job) -> bool:
        """Does what holds for this job hold for all mail of its queues: has it the same source and the same way?"""
        message = job.message
        return (
            message.require_tls is not False
            and len(self._sources.of(message.pool)) <= 1
            and not any(
                self._router.depends_on_sender(domain, stream=message.stream, pool=message.pool)
                for domain in {recipient.domain for recipient in job.recipients}
            )
        )

    def _choose(self, route: Route, job: Job) -> Destination | Wait:
        """The destination by the first source that may send soon, or what the job waits for the shortest."""
        pool = job.message.pool
        provider = self._provider(job.recipients[0].domain, route)
        sources = self._sources.choose(
            pool,
            job.message.id,
            route.hosts,
            lambda source: self._traffic.avoided(source.name, provider, route.site),
        )
        if not sources:
            return Wait(0.0, self._sources.why_not(pool))
        soonest: Wait | None = None
        for source in sources:
            path = self._traffic.path(source.name, route.site, provider)
            wait = self._traffic.wait_of(path)
            if wait is None or wait.seconds <= PATIENCE:
                return self._destination(route, source, path)
            if soonest is None or wait.seconds < soonest.seconds:
                soonest = wait
            if self._traffic.warming(path, 1) is not None and not self._traffic.overflows(source.name):
                break
        assert soonest is not None
        return soonest

    def _provider(self, domain: str, route: Route) -> str:
        return self._traffic.provider_of(domain, [host.name for host in route.hosts])

    def _destination(self, route: Route, source: Source, path: Path) -> Destination:
        key = key_of(route, source, path.provider)
        destination = self._destinations.get(key)
        if destination is None:
            self._of_path[_path_of(key)] += 1
        if destination is None or destination.retired:
            destination = self._destinations[key] = Destination(route, source, path)
        destination.route = route
        destination.path = path
        return destination

    def start(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception:  # one bad message must not stop the others; its lease ends with this worker
            log.exception("dispatch.crashed")

    # mail back

    def put_back(self, jobs: Sequence[Job], due_at: datetime, reason: str) -> None:
        """Return recipients to the database, untried; one that expires before is due at its expiry."""
        self._settler.add(
            [
                Settled(recipient, None, min(due_at, recipient.expires_at), reason)
                for job in jobs
                for recipient in job.recipients
            ]
        )

    async def hasten(self, reasons: Sequence[str], *, effects: Sequence[int] | None = None) -> None:
        """What waits for a reason in which one of these patterns is found, or any effect but `effects`, is due now."""
        await self._store.hasten(reasons, now=self._clock(), effects=effects)

    async def block(self, queues: Mapping[Queue, tuple[datetime, str]]) -> None:
        await self._store.block(queues)

    def forget(self, destination: Destination) -> None:
        """Ten thousand destinations that were used once must not stay in memory."""
        if (
            destination.sessions
            or destination.line
            or destination.again is not None
            or destination.blocked_until is not None
            or destination.stuck_until > asyncio.get_running_loop().time()
        ):
            return
        key = destination.key
        if self._destinations.get(key) is destination:
            del self._destinations[key]
            self._of_path[_path_of(key)] -= 1
            if not self._of_path[_path_of(key)]:
                del self._of_path[_path_of(key)]
                self._traffic.forget(destination.path)

    # claims

    async def run(self) -> None:
        """Claim what is due until `stop()`."""
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

    def wake(self) -> None:
        """There may be due mail in the database."""
        self._wake.set()

    async def _claim(self) -> tuple[int, int, bool]:
        """Claim what has its turn and room on its path.

        How many messages; how many queues were put off; whether there are flows that have not had their turn.
        """
        if self._silent_for() > FENCE or self._settler.uncertain:
            return 0, 0, False
        bulk = self._memory.room_to_claim(first=False)
        room = self._memory.room_to_claim(first=True)
        self._hungry = bulk < self._config.delivery.memory_messages / 8
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
        self._cut.clear()
        self._crowded.clear()
        self._flows = len({(queue.lane, queue.flow) for queue in queues})
        more = self._next_turns(last, lanes)
        self._starving.clear()
        wanted, put_off = self._sort_out(queues, min(room, CLAIM_AT_ONCE), min(bulk, CLAIM_AT_ONCE))
        if put_off:
            waits = {queue: (now + timedelta(seconds=wait.seconds), wait.why) for queue, wait in put_off.items()}
            await self._store.put_off(waits, now=now)
            turn = max((wait.seconds for wait in put_off.values() if wait.seconds <= SOON), default=-math.inf)
            self._turns_until = max(self._turns_until, asyncio.get_running_loop().time() + turn + LOOKED_AFTER)
        if not wanted:
            return 0, len(put_off), more
        claim = self._store.claim(wanted, now=now, worker=self._worker, bytes_=self._memory.bytes_left)
        messages = await self._taken(claim)
        self._claimed |= bool(messages)
        self._learn_lengths(len(wanted), sum(len(message.recipients) for message in messages))
        self.offer(messages)
        return len(messages), len(put_off), more

    def _learn_lengths(self, queues: int, recipients: int) -> None:
        """How many recipients a queue gave, on the average: ten thousand domains may have one each."""
        self._each = min(UNKNOWN_ROOM, max(1.0, (self._each + recipients / queues) / 2))

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

    def _sort_out(self, queues: Sequence[Queue], room: int, bulk: int) -> tuple[dict[str, int], dict[Queue, Wait]]:
        """How much to claim of each queue, and which of them wait for what.

        The precedences come one after the other; in each every tenant gets an equal part of the room, of that every
        flow of its first priority, and in a flow every queue. What one leaves is for the others at the next claim.
        """
        wanted: dict[str, int] = {}
        put_off: dict[Queue, Wait] = {}
        fitting: dict[int, dict[str, dict[int, dict[str, list[tuple[Queue, int]]]]]] = {}
        promises = Promises(self._each)
        of_flows: dict[str, int] = {}
        fits: list[tuple[Queue, int]] = []
        for queue in queues:
            found = self._room(queue, promises)
            if isinstance(found, Wait):
                put_off[queue] = found
            elif (found := self._of_campaign(queue, found, of_flows)) > 0:
                fits.append((queue, found))
        for queue, found in fits:
            tenants = fitting.setdefault(queue.lane // LEVELS, {})
            flows = tenants.setdefault(parts_of_flow(queue.flow)[0], {}).setdefault(queue.lane, {})
            flows.setdefault(queue.flow, []).append((queue, min(found, promises.share(queue, found))))
        for precedence, tenants in fitting.items():
            left = min(room, bulk) if precedence else room
            share = max(1, left // len(tenants))
            for lanes in tenants.values():
                taken = _shared(lanes, min(share, left))
                wanted |= taken
                count = sum(taken.values())
                left -= count
                room -= count
                bulk -= count if precedence else 0
        return wanted, put_off

    def _room(self, queue: Queue, promises: Promises) -> int | Wait:
        """How many recipients of the queue could leave soon; a Wait: look again later; 0: that is for others."""
        if self._memory.crowded(queue.name):
            self._crowded.add(queue.name)
            return 0
        if (wait := self._traffic.wait_of_queue(queue)) is not None and wait.seconds > PATIENCE:
            return wait
        route = self._router.cached(queue.domain, sender="", stream=queue.stream, pool=queue.pool)
        if route is None:
            return UNKNOWN_ROOM
        if isinstance(route, NoRoute):
            return LEAST_ROOM
        provider = self._provider(queue.domain, route)
        rooms: list[int] = []
        waits: list[Wait] = []
        before = 0.0
        for source in self._sources.of(queue.pool):
            path = self._traffic.path(source.name, route.site, provider)
            key = key_of(route, source, provider)
            destination = self._destinations.get(key)
            promised = promises.of(key)
            before += promised + (len(destination.line) if destination is not None else 0)
            found = self._room_of(destination, path, promised, first=queue.lane < FIRST_LANES)
            if isinstance(found, Wait):
                waits.append(found)
            else:
                rooms.append(found)
                promises.make(queue, key, found)
        if sum(rooms) > 0:
            return sum(rooms)
        if not waits or rooms:
            return 0
        soonest = min(waits, key=lambda wait: wait.seconds)
        if not self._router.depends_on_sender(queue.domain, stream=queue.stream, pool=queue.pool):
            return soonest
        # Mail of some sender may go another way: it is seen when it is claimed, and the other mail waits by itself.
        if soonest.full is None and before < UNKNOWN_ROOM:
            return math.ceil(UNKNOWN_ROOM - before)
        return soonest._replace(seconds=min(soonest.seconds, POLL))

    def _of_campaign(self, queue: Queue, found: int, of_flows: dict[str, int]) -> int:
        """How much of what has room a campaign may have, so that there is some for others."""
        flow = queue.flow
        if found <= 0 or queue.lane < FIRST_LANES or not parts_of_flow(flow)[1]:
            return found
        left = self._memory.room_to_claim_of_campaign(flow) - of_flows.get(flow, 0)
        if left < found:
            self._cut.add(flow)
            found = max(0, left)
        of_flows[flow] = of_flows.get(flow, 0) + min(found, math.ceil(self._each))
        return found

    def _room_of(self, destination: Destination | None, path: Path, promised: float, *, first: bool) -> int | Wait:
        wait = self._traffic.wait_of(path)
        if destination is not None and (until := self._sessions.blocked(destination)) is not None:
            if destination.blocked_by_policy:
                return max(0, UNKNOWN_ROOM - math.ceil(promised))
            blocked = Wait((until - self._clock()).total_seconds(), destination.reason)
            if wait is None or wait.seconds < blocked.seconds:
                wait = blocked
        if wait is not None and wait.seconds > PATIENCE:
            return wait._replace(seconds=self._traffic.postpone(path, wait))
        interval = self._traffic.interval(path)
        most = math.ceil(2 / interval) if interval else LEAST_ROOM + int(2 * self._traffic.measure(path))
        waiting = math.ceil(promised) + (len(destination.line) if destination is not None else 0)
        if destination is None or not destination.sessions:
            if self._traffic.full(path):
                return 0  # other workers of this node have its connections, and claim for them
            if (scarce := self._traffic.scarcest(path)) is not None:
                return self._room_beside(scarce, path, most - waiting, first=first)
        if waiting < most:
            return most - waiting
        before = "1 message is" if waiting == 1 else f"{waiting} messages are"
        why = f"{before} before it on the path {path}"
        return Wait(self._traffic.postpone(path, Wait(0.0, why)), why)

    def _room_beside(self, scarce: Scarce, path: Path, most: int, *, first: bool) -> int | Wait:
        """As `_room`, of a path without connection: all those that share one with it have this room together."""
        key = scarce.hold.meter.name, first
        promised = self._starving.get(key, 0)
        room = min(most, self._sessions.room_beside(scarce, first=first) - promised)
        if room > 0:
            self._starving[key] = promised + min(room, math.ceil(self._each))
            return room
        # With a connection of another worker, that one claims.
        return 0 if path.meter.held else self._traffic.line_up(scarce, first=first)

    async def _taken(self, claim: Coroutine[object, object, list[Message]]) -> list[Message]:
        """Take in hand what the statement claims. When it fails, it may have claimed all the same."""
        async with self._claiming:
            try:
                messages = await claim
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

    def taken_again(self, recipient: Recipient) -> bool:
        """Whether it is in hand twice: as what was put back, and as what was claimed since."""
        return self._memory.in_hand[recipient.message.id, recipient.n] > 1

    async def _free_strays(self) -> None:
        """Give up what is ours in the database and not in our hands."""
        await self._settler.recorded()  # else what was claimed unheard as it was put back would seem to be in hand
        async with self._claiming:
            freed = await self._leases.free_strays(self._worker, lambda: self._memory.in_hand, self._journal.taken)
            self._astray = False
        if freed:
            log.warning("strays.freed", recipients=freed)

    async def expire(self) -> None:
        """Bounce what is past its expiry, in whatever state it waits."""
        while not self._settler.uncertain:
            claim = self._store.claim_expired(now=self._clock(), worker=self._worker, limit=CLAIM_AT_ONCE)
            if not (messages := await self._taken(claim)):
                return
            for message in messages:
                job = Job(message, list(message.recipients))
                await self._attempts.give_up_expired(job)
                # Whom the clock, set back in between, has given more time.
                self._settler.add([Settled(recipient, None, recipient.due_at) for recipient in job.recipients])
            await self._settler.recorded()

    def forget_unblocked(self) -> None:
        """Drop destinations whose block has ended and that nobody has used since."""
        for destination in list(self._destinations.values()):
            if self._sessions.blocked(destination) is None:
                self._sessions.pump(destination)
                self.forget(destination)

    def idle_pools(self) -> tuple[list[str], dict[str, str]]:
        """The pools that there are, and those of them that cannot send from here, with the reason."""
        known = list(self._config.pools)
        serving = set(self._sources.pools())
        return known, {pool: self._sources.why_not(pool) for pool in known if pool not in serving}

    # steering

    def unblock(self) -> None:
        """Try everything again that is left alone, as if nothing had been learnt: an operator knows better."""
        self._traffic.forgive()
        self.look_again()

    def look_again(self) -> None:
        """Try again what is left alone: the limits are others now."""
        for destination in list(self._destinations.values()):
            destination.blocked_until = None
            destination.stuck_until = 0.0
            self.forget(destination)
        self._wake.set()

    def recall(self, selection: Selection) -> int:
        """Put back what is in hand, fits the selection and is not being sent; returns how many."""
        return self._recall(selection.matches)

    def recall_these(self, recipients: Container[tuple[int, int]]) -> int:
        """The same of recipients by message id and n."""
        return self._recall(lambda recipient: (recipient.message.id, recipient.n) in recipients)

    def _recall(self, meant: Callable[[Recipient], bool]) -> int:
        recalled: list[Recipient] = []
        for destination in self._destinations.values():
            destination.line.filter(lambda job: _split(job, meant, recalled))
        for key, jobs in self._routing.items():
            self._routing[key] = [job for job in jobs if _split(job, meant, recalled)]
        self._settler.add([Settled(recipient, None, recipient.due_at, "") for recipient in recalled])
        return len(recalled)

    def leave_sources(self, failing: Mapping[str, str]) -> None:
        """These sources must not be used any more: what waits for them goes by others, or waits in the database."""
        for destination in self._destinations.values():
            if (why := failing.get(destination.source.name)) is not None:
                self.put_back(destination.line.clear(), self._clock(), f"{destination.source.name}: {why}")

    async def stop(self, seconds: float) -> None:
        """Start nothing more, let the attempts under way end, put everything else back.

        After `seconds` the rest is cut off; it stays this worker's, and the journal tells what is in doubt.
        """
        self._stopping = True
        self._wake.set()
        self._sessions.stop(list(self._destinations.values()))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        now = self._clock()
        for destination in self._destinations.values():
            self.put_back(destination.line.clear(), now, "")
        for jobs in self._routing.values():
            self.put_back(jobs, now, "")
        await self._settler.drained()


def _path_of(key: Key) -> tuple[str, str, str]:
    site, _, _, _, source, provider = key
    return site, source, provider


def _without(line: Line, pools: Container[str]) -> list[Job]:
    """Take the jobs out of the line that are of none of the pools."""
    taken: list[Job] = []

    def keep(job: Job) -> bool:
        if job.message.pool not in pools:
            taken.append(job)
            return False
        return True

    line.filter(keep)
    return taken


def _split(job: Job, meant: Callable[[Recipient], bool], chosen: list[Recipient]) -> bool:
    """Take the recipients that are meant out of the job and add them to `chosen`; False when none is left."""
    chosen += [recipient for recipient in job.recipients if meant(recipient)]
    job.recipients = [recipient for recipient in job.recipients if not meant(recipient)]
    return bool(job.recipients)


def _shared(lanes: Mapping[int, Mapping[str, Sequence[tuple[Queue, int]]]], room: int) -> dict[str, int]:
    """How much to claim of the queues of one tenant, by name; what fits of each is given."""
    wanted: dict[str, int] = {}
    for lane in sorted(lanes):
        part = max(1, room // len(lanes[lane]))
        for members in lanes[lane].values():
            each = max(1, part // len(members))
            for queue, fits in members:
                if (take := min(each, fits, room)) > 0:
                    wanted[queue.name] = take
                    room -= take
    return wanted
