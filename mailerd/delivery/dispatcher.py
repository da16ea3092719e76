"""The loop: mail in hand → route → destination → session → attempt.

Mail comes in hand in two ways: `offer()` gets what was just accepted, the claim loop gets what is due in the database.
Both are bounded by count and bytes: `keep()` says whether a message fits, and what does not stays in the database.

A *destination* is a site reached in one way. It has a line of jobs and some sessions; a session takes the next job as
soon as it is free, so nothing waits in two places. A destination that cannot be reached is blocked for a while: its
jobs go back to the database with the reason and the time, uncounted, and its queues are not claimed until then.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from mailerd import metrics
from mailerd.config import Config
from mailerd.delivery.attempt import Attempts, Job, Where
from mailerd.delivery.routing import Host, NoRoute, Route, Router
from mailerd.delivery.session import Session, SessionError
from mailerd.delivery.settler import Settler
from mailerd.delivery.sources import Source, Sources
from mailerd.delivery.transaction import Timeouts
from mailerd.delivery.verdict import Kind, Verdict, local_verdict, network_verdict
from mailerd.queue.commit import LOST
from mailerd.queue.control import Selection
from mailerd.queue.ids import format_message_id
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.store import QueueStore, Settled
from mailerd.queue.workers import FENCE, WorkerStore

log = structlog.get_logger()

POLL = 1.0  # seconds between looks for due mail when nothing wakes us
QUEUES_AT_ONCE = 200
CLAIM_AT_ONCE = 500
KEEP_SHARE = 0.75  # of the memory may be taken by accepted mail, so that claimed mail always finds room
QUEUE_SHARE = 0.5  # of the memory may be taken by one queue
BLOCK_FIRST = 60.0  # seconds that an unreachable destination is left alone
BLOCK_MOST = 900.0
AFTER_CRASH = timedelta(minutes=5)
CRASHED = "internal error; see the log"
LIMITED_FOR = timedelta(seconds=60)  # until another connection is tried


@dataclass(eq=False, slots=True)
class Destination:
    """A site reached in one way from one source; `limit` sessions of this worker at most."""

    route: Route
    source: Source
    limit: int
    jobs: deque[Job] = field(default_factory=deque)
    idle: deque["asyncio.Future[None]"] = field(default_factory=deque)
    sessions: int = 0
    opening: int = 0
    woken: int = 0  # idle sessions that were told of a job and have not run yet
    limited_until: datetime | None = None  # a host said "no more connections"; then `limit` grows back one by one
    failures: int = 0  # in a row, to open any session
    blocked_until: datetime | None = None
    reason: str = ""


Key = tuple[str, str, bool, str]


class Dispatcher:
    """What this worker sends, and to whom."""

    def __init__(
        self,
        config: Config,
        *,
        router: Router,
        store: QueueStore,
        leases: WorkerStore,
        journal: Journal,
        attempts: Attempts,
        settler: Settler,
        worker: int,
        workers: int,
        clock: Callable[[], datetime],
        silent_for: Callable[[], float],
    ) -> None:
        self._config = config
        self._router = router
        self._sources = Sources(config)
        self._store = store
        self._leases = leases
        self._journal = journal
        self._attempts = attempts
        self._settler = settler
        self._worker = worker
        self._limit = max(1, config.delivery.connections_per_site // workers)
        self._clock = clock
        self._silent_for = silent_for  # seconds since the last beat of our lease
        self._timeouts = Timeouts(connect=config.delivery.connect_timeout)
        self._destinations: dict[Key, Destination] = {}
        self._held = 0  # recipients in hand
        self._bytes = 0
        self._of_queue: Counter[str] = Counter()
        self._in_hand: Counter[tuple[int, int]] = Counter()  # twice, for a moment, what is claimed as it is put back
        self._claiming = asyncio.Lock()
        self._astray = False  # a claim may have been committed without our hearing of it
        self._wake = asyncio.Event()
        self._hungry = False  # there was more to claim than fitted
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._routing: dict[tuple[str, str, str, str], list[Job]] = {}

    # what fits into memory

    def keep(self, message: Message) -> bool:
        """Take room for a message that is about to be committed; False: it has to come by way of the database."""
        recipients = message.recipients
        limits = self._config.delivery
        if (
            self._stopping
            or self._held + len(recipients) > limits.memory_messages * KEEP_SHARE
            or self._bytes + message.size > limits.memory_bytes * KEEP_SHARE
            or recipients[0].due_at > message.accepted_at
            or any(self._crowded(recipient.queue) for recipient in recipients)
        ):
            return False
        self._take(message)
        return True

    def _crowded(self, queue: str) -> bool:
        return self._of_queue[queue] >= self._config.delivery.memory_messages * QUEUE_SHARE

    def _take(self, message: Message) -> None:
        message.in_hand = len(message.recipients)
        self._held += message.in_hand
        self._bytes += message.size
        for recipient in message.recipients:
            self._of_queue[recipient.queue] += 1
            self._in_hand[message.id, recipient.n] += 1

    @property
    def recipients_in_hand(self) -> int:
        return self._held

    @property
    def bytes_in_hand(self) -> int:
        return self._bytes

    def drop(self, message: Message) -> None:
        """Give back the room of a message that was not committed after all."""
        self.release(message.recipients)

    def release(self, recipients: Sequence[Recipient]) -> None:
        """These are settled."""
        for recipient in recipients:
            message = recipient.message
            self._held -= 1
            message.in_hand -= 1
            if not message.in_hand:
                self._bytes -= message.size
                # Message and recipients refer to each other: what is large must not wait for the garbage collector.
                message.content = message.signature = None
            queue = recipient.queue
            self._of_queue[queue] -= 1
            if not self._of_queue[queue]:
                del self._of_queue[queue]
            key = message.id, recipient.n
            self._in_hand[key] -= 1
            if not self._in_hand[key]:
                del self._in_hand[key]
        if self._hungry and self._held < self._config.delivery.memory_messages * QUEUE_SHARE:
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
                except Exception:  # nobody else holds them now
                    log.exception("dispatch.crashed", message=format_message_id(message.id))
                    self._put_back([Job(message, group)], self._clock() + AFTER_CRASH, CRASHED)

    def _direct(self, message: Message, recipients: list[Recipient]) -> None:
        """Find the way of recipients in one domain; without waiting when it is known."""
        sender_domain = message.sender.rpartition("@")[2]
        domain = recipients[0].domain
        route = self._router.cached(domain, sender=sender_domain, stream=message.stream, pool=message.pool)
        if route is not None:
            self._put(route, Job(message, recipients))
            return
        key = (domain, sender_domain, message.stream, message.pool)
        if key in self._routing:
            self._routing[key].append(Job(message, recipients))
        else:
            self._routing[key] = [Job(message, recipients)]
            self._start(self._route(*key), f"route {domain}")

    async def _route(self, domain: str, sender: str, stream: str, pool: str) -> None:
        try:
            route = await self._router.route(domain, sender=sender, stream=stream, pool=pool)
        except Exception:
            log.exception("route.crashed", domain=domain)
            self._put_back(self._routing.pop((domain, sender, stream, pool)), self._clock() + AFTER_CRASH, CRASHED)
            return
        for job in self._routing.pop((domain, sender, stream, pool)):
            self._put(route, job)

    def _put(self, route: Route | NoRoute, job: Job) -> None:
        if isinstance(route, NoRoute):
            self._start(self._refuse(job, route.verdict, Where(), "route"), "refuse")
            return
        destination = self._destination(route, self._sources.pick(job.message.pool))
        if destination.blocked_until is not None:
            if destination.blocked_until > self._clock():
                self._leave(destination, [job])
                return
            destination.blocked_until = None
        most = self._config.delivery.recipients_per_transaction
        last = destination.jobs[-1] if destination.jobs else None
        if last is not None and last.message is job.message and len(last.recipients) + len(job.recipients) <= most:
            last.recipients += job.recipients  # another domain of the same site
            return
        for start in range(0, len(job.recipients), most):
            destination.jobs.append(Job(job.message, job.recipients[start : start + most]))
        self._pump(destination)

    async def _refuse(self, job: Job, verdict: Verdict, where: Where, stage: str) -> None:
        try:
            await self._attempts.refuse(job, verdict, where, stage)
        except Exception:  # nobody else holds the job now
            log.exception("refusal.crashed", message=format_message_id(job.message.id))
            self._put_back([job], self._clock() + AFTER_CRASH, CRASHED)

    def _destination(self, route: Route, source: Source) -> Destination:
        key = _key(route, source)
        destination = self._destinations.get(key)
        if destination is None:
            destination = self._destinations[key] = Destination(route, source, self._limit)
        destination.route = route
        return destination

    def _pump(self, destination: Destination) -> None:
        """Wake idle sessions for the waiting jobs, and open further ones."""
        if self._stopping:
            return
        wanted = len(destination.jobs) - destination.woken
        while wanted > 0 and destination.idle:
            # The one that fell idle last, so that those too many are left alone and end.
            _wake(destination.idle.pop())  # its time may be over at this very moment
            destination.woken += 1
            wanted -= 1
        if destination.limited_until is not None and destination.limited_until <= self._clock():
            destination.limit += 1
            still = destination.limit < self._limit
            destination.limited_until = self._clock() + LIMITED_FOR if still else None
        while wanted > destination.opening and destination.sessions < destination.limit:
            destination.sessions += 1
            destination.opening += 1
            self._start(self._serve(destination), f"session {destination.route.site}")

    def _start(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception:  # one bad message must not stop the others; its lease ends with this worker
            log.exception("dispatch.crashed")

    # sessions

    async def _serve(self, destination: Destination) -> None:
        """The life of one session: open, send what is waiting, wait a little for more, quit."""
        session: Session | None = None
        opening = 1
        try:
            while not self._stopping and destination.jobs:
                failure: SessionError | None = None
                try:
                    session = await self._open(destination.route, destination.source)
                except SessionError as error:
                    failure = error
                finally:
                    destination.opening -= opening
                    opening = 0
                if failure is not None:
                    await self._unreachable(destination, failure)
                    return
                assert session is not None
                log.debug("session.opened", site=destination.route.site, host=session.host.name, tls=session.tls)
                metrics.sessions("out", 1)
                try:
                    await self._use(destination, session)
                finally:
                    metrics.sessions("out", -1)
                    session.close()
        finally:
            destination.opening -= opening
            destination.sessions -= 1
            if destination.jobs and not self._stopping and destination.blocked_until is None:
                self._pump(destination)
            self._forget(destination)

    async def _use(self, destination: Destination, session: Session) -> None:
        host, source = session.host, destination.source.name
        where = Where(destination.route.site, host.name, host.address, source, session.tls)
        most = self._config.delivery.messages_per_connection
        while session.alive and session.sent < most and (job := await self._next(destination)) is not None:
            if self._silent_for() > FENCE:
                self._put_back([job], self._clock(), "this worker lost sight of the database")
                continue
            try:
                if not await self._attempts.run(session, job, where):
                    destination.jobs.appendleft(job)
                    continue
            except Exception:
                log.exception("attempt.crashed", message=format_message_id(job.message.id))
                self._put_back([job], self._clock() + AFTER_CRASH, CRASHED)
            destination.failures = 0

    async def _next(self, destination: Destination) -> Job | None:
        """The next job; None when there was none for a while, or at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.delivery.idle
        while not destination.jobs and not self._stopping:
            waiter: asyncio.Future[None] = loop.create_future()
            destination.idle.append(waiter)
            timer = loop.call_at(until, _wake, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                if waiter in destination.idle:  # the timer, not a job
                    destination.idle.remove(waiter)
                else:
                    destination.woken -= 1
            if loop.time() >= until:
                break
        return destination.jobs.popleft() if destination.jobs and not self._stopping else None

    async def _open(self, route: Route, source: Source) -> Session:
        """A session with the first host that takes us; else the last host's SessionError."""
        unreachable = f"no host of {route.site} has an address that {source.name} reaches"
        failure = SessionError(local_verdict(Kind.ROUTING, 451, "4.4.4", unreachable), route.hosts[0], "route")
        hosts = [host for host in route.hosts if source.reaches(host.address)]
        for host in hosts[: self._config.delivery.max_hosts]:
            try:
                return await Session.open(
                    host,
                    ehlo=source.ehlo,
                    tls=route.tls,
                    auth=route.auth,
                    source=source.address,
                    timeouts=self._timeouts,
                )
            except SessionError as error:
                log.info("session.failed", host=host.name, ip=host.address, stage=error.stage, reply=str(error.verdict))
                failure = error
                if not error.verdict.retry_other_host:
                    break
            except Exception:  # mail for this host must wait, instead of being taken up again at once, and for ever
                log.exception("session.crashed", host=host.name, ip=host.address)
                failure = SessionError(network_verdict("garbage", CRASHED), host, "connect")
        raise failure

    async def _unreachable(self, destination: Destination, error: SessionError) -> None:
        """No host took us. With other sessions at work that means "no more connections"; else the site is away."""
        others = destination.sessions - destination.opening - 1
        if others > 0:
            destination.limit = others
            destination.limited_until = self._clock() + LIMITED_FOR
            return
        if destination.blocked_until is not None:  # by a session that failed at the same time
            jobs = list(destination.jobs)  # given back by another one since
            destination.jobs.clear()
            self._leave(destination, jobs)
            return
        destination.failures += 1
        job = destination.jobs.popleft() if destination.jobs else None
        if job is not None:
            host: Host = error.host
            where = Where(destination.route.site, host.name, host.address, destination.source.name)
            await self._refuse(job, error.verdict, where, error.stage)
        seconds = min(BLOCK_FIRST * 2 ** (destination.failures - 1), BLOCK_MOST)
        await self._block(destination, self._clock() + timedelta(seconds=seconds), error.verdict)

    async def _block(self, destination: Destination, until: datetime, verdict: Verdict) -> None:
        destination.blocked_until = until
        destination.reason = f"{destination.route.site} cannot be reached: {verdict}"
        jobs = list(destination.jobs)
        destination.jobs.clear()
        log.info(
            "site.blocked", site=destination.route.site, until=until.isoformat(), reply=str(verdict), jobs=len(jobs)
        )
        queues = {recipient.queue for job in jobs for recipient in job.recipients}
        self._leave(destination, jobs)
        if queues:
            with suppress(*LOST):
                await self._store.block(sorted(queues), until=until, reason=destination.reason)

    def _leave(self, destination: Destination, jobs: Sequence[Job]) -> None:
        """Put back what has to wait because the destination is away; should it expire so, its sender is told why."""
        assert destination.blocked_until is not None
        for job in jobs:
            for recipient in job.recipients:
                recipient.last_reply = recipient.last_reply or destination.reason
        self._put_back(jobs, destination.blocked_until, destination.reason)

    def _put_back(self, jobs: Sequence[Job], due_at: datetime, reason: str) -> None:
        """Return recipients to the database, untried; one that expires before is due at its expiry."""
        self._settler.add(
            [
                Settled(recipient, None, min(due_at, recipient.expires_at), reason)
                for job in jobs
                for recipient in job.recipients
            ]
        )

    def _forget(self, destination: Destination) -> None:
        """Ten thousand destinations that were used once must not stay in memory."""
        if destination.sessions or destination.jobs or destination.blocked_until is not None:
            return
        key = _key(destination.route, destination.source)
        if self._destinations.get(key) is destination:
            del self._destinations[key]

    # claims

    async def run(self) -> None:
        """Claim what is due until `stop()`."""
        while not self._stopping:
            self._wake.clear()
            claimed = 0
            try:
                if self._astray:
                    await self._free_strays()
                claimed = await self._claim()
            except LOST as error:
                log.warning("claim.interrupted", error=str(error))
            except Exception:
                log.exception("claim.failed")
            if claimed:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._wake.wait()

    def wake(self) -> None:
        """There may be due mail in the database."""
        self._wake.set()

    async def _claim(self) -> int:
        limits = self._config.delivery
        room = min(limits.memory_messages - self._held, CLAIM_AT_ONCE)
        bytes_ = limits.memory_bytes - self._bytes
        if self._silent_for() > FENCE or self._settler.uncertain:
            return 0
        if room < limits.memory_messages * (1 - KEEP_SHARE) / 2 or bytes_ <= 0:
            self._hungry = True
            return 0
        now = self._clock()
        most = int(limits.memory_messages * QUEUE_SHARE)
        busy = [queue for queue, count in self._of_queue.items() if count >= most]
        names = await self._store.due_queues(now=now, busy=busy, limit=QUEUES_AT_ONCE)
        self._hungry = bool(busy)
        if not names:
            return 0
        share = max(1, room // len(names))
        wanted = {name: min(share, most - self._of_queue[name]) for name in names[:room]}
        messages = await self._taken(self._store.claim(wanted, now=now, worker=self._worker, bytes_=bytes_))
        self.offer(messages)
        return len(messages)

    async def _taken(self, claim: Coroutine[object, object, list[Message]]) -> list[Message]:
        """Take in hand what the statement claims. When it fails, it may have claimed all the same."""
        async with self._claiming:
            try:
                messages = await claim
            except BaseException:
                self._astray = True
                raise
            for message in messages:
                self._take(message)
        return messages

    async def _free_strays(self) -> None:
        """Give up what is ours in the database and not in our hands."""
        async with self._claiming:
            freed = await self._leases.free_strays(self._worker, lambda: self._in_hand, self._journal.taken)
            self._astray = False
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
            await self._settler.drained()

    def forget_unblocked(self) -> None:
        """Drop destinations whose block has ended and that nobody has used since."""
        now = self._clock()
        for destination in list(self._destinations.values()):
            if destination.blocked_until is not None and destination.blocked_until <= now:
                destination.blocked_until = None
                self._pump(destination)
                self._forget(destination)

    # steering

    def unblock(self) -> None:
        """Try every site again that is left alone: an operator knows better."""
        for destination in list(self._destinations.values()):
            if destination.blocked_until is not None:
                destination.blocked_until = None
                self._forget(destination)

    def recall(self, selection: Selection) -> int:
        """Put back what is in hand, fits the selection and is not being sent; returns how many."""
        recalled: list[Recipient] = []
        for destination in self._destinations.values():
            destination.jobs = deque(_split(destination.jobs, selection, recalled))
        for key, jobs in self._routing.items():
            self._routing[key] = _split(jobs, selection, recalled)
        self._settler.add([Settled(recipient, None, recipient.due_at, "") for recipient in recalled])
        return len(recalled)

    async def stop(self, seconds: float) -> None:
        """Start nothing more, let the attempts under way end, put everything else back.

        After `seconds` the rest is cut off; it stays this worker's, and the journal tells what is in doubt.
        """
        self._stopping = True
        self._wake.set()
        for destination in self._destinations.values():
            for waiter in destination.idle:
                _wake(waiter)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        now = self._clock()
        for destination in self._destinations.values():
            self._put_back(list(destination.jobs), now, "")
            destination.jobs.clear()
        for jobs in self._routing.values():
            self._put_back(jobs, now, "")
        await self._settler.drained()


def _split(jobs: Iterable[Job], selection: Selection, chosen: list[Recipient]) -> list[Job]:
    """The jobs without the recipients that fit, which are added to `chosen`."""
    rest = []
    for job in jobs:
        chosen += [recipient for recipient in job.recipients if selection.matches(recipient)]
        job.recipients = [recipient for recipient in job.recipients if not selection.matches(recipient)]
        if job.recipients:
            rest.append(job)
    return rest


def _key(route: Route, source: Source) -> Key:
    return (route.site, route.tls, route.auth is not None, source.name)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
