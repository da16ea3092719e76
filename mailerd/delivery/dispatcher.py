"""Mail in hand → route → source → destination, and what cannot leave soon back to the database.

Mail comes in hand in two ways: `offer()` gets what was just accepted, and what `claims` finds due in the database. Both
are bounded (`memory`): what does not fit, and what could not leave soon anyway, stays in the database.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Container, Coroutine, Mapping, Sequence
from datetime import datetime

import structlog

from mailerd.config import Config
from mailerd.delivery.attempt import Attempts, Job, Where
from mailerd.delivery.claims import Claims
from mailerd.delivery.destination import AFTER_CRASH, CRASHED, PATIENCE, Destination, Key, Sessions, key_of
from mailerd.delivery.line import Line
from mailerd.delivery.memory import FIRST_LANES, Memory
from mailerd.delivery.paths import Path, Wait
from mailerd.delivery.routing import NoRoute, Route, Router
from mailerd.delivery.settler import Settler
from mailerd.delivery.shares import Shares
from mailerd.delivery.sources import Source, Sources
from mailerd.delivery.tls_policy import TlsOutcome
from mailerd.delivery.traffic import Traffic
from mailerd.queue.control import Selection
from mailerd.queue.ids import format_message_id
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message, Queue, Recipient
from mailerd.queue.store import QueueStore, Settled
from mailerd.queue.workers import WorkerStore

log = structlog.get_logger()

KEPT = 1_000  # jobs of a destination in memory, for accepted mail


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
        withdrawn: Callable[[], Collection[tuple[int, int]]],
    ) -> None:
        self._config = config
        self._router = router
        self._sources = sources
        self._traffic = traffic
        self._store = store
        self._settler = settler
        self._clock = clock
        self._sessions = Sessions(
            config,
            traffic=traffic,
            attempts=attempts,
            back=self,
            clock=clock,
            silent_for=silent_for,
            tls_outcome=tls_outcome,
        )
        self._memory = Memory(config.delivery)
        self._destinations: dict[Key, Destination] = {}
        self._of_path: Counter[tuple[str, str, str]] = Counter()  # destinations: by site, source and provider
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._routing: dict[tuple[str, str, str, str, bool], list[Job]] = {}
        shares = Shares(
            memory=self._memory,
            router=router,
            sources=sources,
            traffic=traffic,
            sessions=self._sessions,
            destinations=self._destinations,
            clock=clock,
        )
        self.claims = Claims(
            shares,
            memory=self._memory,
            sources=sources,
            store=store,
            leases=leases,
            journal=journal,
            attempts=attempts,
            settler=settler,
            worker=worker,
            clock=clock,
            silent_for=silent_for,
            offer=self.offer,
            withdrawn=withdrawn,
        )

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
            self.claims.wake()

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
        """Mail was dropped that may have been committed as ours."""
        self.claims.strayed()

    def room_of_campaign(self, flow: str, weight: int) -> int:
        """How many more messages of so many bytes, of one campaign, would be kept in memory."""
        return 0 if self._stopping else self._memory.room_of_campaign(flow, weight)

    def held_of_campaign(self, flow: str) -> int:
        """How many messages of one campaign are in memory."""
        return self._memory.of_flow[flow]

    def release(self, recipients: Sequence[Recipient]) -> None:
        """These are settled."""
        self._memory.release(recipients)
        self.claims.released(recipients)

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

    def taken_again(self, recipient: Recipient) -> bool:
        """Whether it is in hand twice: as what was put back, and as what was claimed since."""
        return self._memory.in_hand[recipient.message.id, recipient.n] > 1

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
        self.claims.wake()

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
        self.claims.stop()
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
