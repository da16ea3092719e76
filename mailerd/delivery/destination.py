"""A destination and its sessions: the jobs that wait for a site, and the connections that carry them there.

A destination is a site reached in one way from one source; all destinations of one path share its limits. A session
takes the next job as soon as it is free and the path admits it, so nothing waits in two places. What cannot leave
within `PATIENCE` goes back to the database with the time and the reason.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from mailerd import metrics
from mailerd.config import Config
from mailerd.delivery.attempt import Attempts, Job, Where
from mailerd.delivery.ledger import Hold
from mailerd.delivery.line import Line
from mailerd.delivery.memory import FIRST_LANES
from mailerd.delivery.paths import Path, Scarce, Wait, Wish
from mailerd.delivery.ready import IN_A_ROW
from mailerd.delivery.routing import Host, Route
from mailerd.delivery.session import Session, SessionError
from mailerd.delivery.sources import Source
from mailerd.delivery.tls_policy import TlsOutcome, TlsPolicy
from mailerd.delivery.traffic import Traffic
from mailerd.delivery.transaction import Result, Timeouts
from mailerd.delivery.turns import Starts
from mailerd.delivery.verdict import Kind, Verdict, local_verdict, network_verdict
from mailerd.queue.commit import LOST
from mailerd.queue.control import RECALL_FOR
from mailerd.queue.ids import format_message_id
from mailerd.queue.mail import Queue, queue_of
from mailerd.queue.screening import SlowDatabaseError
from mailerd.queue.workers import FENCE

log = structlog.get_logger()

PATIENCE = 1.0  # seconds that a job waits in memory for a limit; longer waits are due times in rows
PATIENCE_FIRST = 10.0  # of mail that goes first, for a connection that others are asked to give up
# More at once, and so much is to be done between a step of one and its next that answers of the database are too old
# when they are used (`queue.screening`). An opening that takes longer waits for the host, not for us.
OPENED_AT_ONCE, SLOW_OPENING = 30, 0.25  # sessions, seconds
MOST_IDLE = 1_000  # sessions of all destinations that wait for more mail
LOOK_UP = 0.5  # seconds between looks of an idle session whether others want its connection
ASK_AGAIN = 0.05  # seconds between tries to get a connection
BLOCK_FIRST = 60.0  # seconds that an unreachable destination is left alone
BLOCK_MOST = 900.0
TURN = 10  # jobs of a session before another destination of its path may have the connection
OPEN_AGAIN = 10.0  # seconds until another connection is tried after a host refused one beside those it has
# Whether mail may be sent is asked about as many as leave in so many seconds: the answer is good for a little longer.
SOON = 0.03
MOST_AHEAD = 100
# What is rendered then, too, is as many mails as can be rendered and sent while that answer is good: of more the last
# ones are asked about again, and rendered one by one.
MOST_RENDERED = 2 * IN_A_ROW
AFTER_CRASH = timedelta(minutes=5)
AFTER_SLOW = timedelta(seconds=5)
OTHERS_WAIT = "others have waited longer for a connection"
CRASHED = "internal error; see the log"

Key = tuple[str, TlsPolicy, bool, str, str, str]


@dataclass(eq=False, slots=True)
class Destination:
    """A site reached in one way from one source."""

    route: Route
    source: Source
    path: Path
    line: Line = field(default_factory=Line)
    # Until when, of the loop's clock; its result: it is too many, and is to end now.
    idle: dict["asyncio.Future[bool]", float] = field(default_factory=dict)
    alarm: asyncio.TimerHandle | None = None  # for the first of them: a timer for each costs too much
    rings_at: float = 0.0
    pacer: "asyncio.Future[bool] | None" = None  # of the session that waits until the path admits the next job
    pacer_alone: bool = False  # what it waits for binds only the jobs that are there
    sessions: int = 0
    opening: int = 0  # of them,
    working: int = 0
    woken: int = 0  # idle sessions that were told of a job and have not run yet
    starving: float | None = None  # since when it has jobs and gets no connection
    starves_for: tuple[str, bool] | None = None  # the meter of connections; is it mail that goes first?
    given: float = 0.0  # when a connection was given up for others
    signs: Sequence[Hold] = ()  # by which others see that it starves
    again: asyncio.TimerHandle | None = None  # the next try to get a connection
    told_at: float = 0.0  # when we said last that more connections would be of use
    weighed_at: float = 0.0  # when we looked last whether another worker has far fewer connections
    open_after: float = 0.0  # no further connection before
    stuck_until: float = 0.0  # nothing more is taken into memory before; of the loop's clock
    asked: int = 0  # jobs about which was asked with the one before,
    asked_at: float = -math.inf  # when
    failures: int = 0  # in a row, to open any session
    blocked_until: datetime | None = None
    blocked_by_policy: bool = False  # mail for which the policy about TLS does not count may go on
    reason: str = ""
    retired: str = ""  # why nothing may leave this way any more: its source was taken away

    @property
    def key(self) -> Key:
        return key_of(self.route, self.source, self.path.provider)


def key_of(route: Route, source: Source, provider: str) -> Key:
    return (route.site, route.tls, route.auth is not None, route.upstream, source.name, provider)


class Back(Protocol):
    """How jobs leave a destination unsent."""

    def put_back(self, jobs: Sequence[Job], due_at: datetime, reason: str) -> None: ...

    def again(self, route: Route, jobs: Sequence[Job]) -> None: ...

    def goes_for_queues(self, job: Job) -> bool: ...

    def block(self, queues: dict[Queue, tuple[datetime, str]]) -> Coroutine[object, object, None]: ...

    def start(self, work: Coroutine[object, object, None], name: str) -> None: ...

    def forget(self, destination: Destination) -> None: ...


class Sessions:
    """Opens sessions for destinations and lets them work."""

    def __init__(
        self,
        config: Config,
        *,
        traffic: Traffic,
        attempts: Attempts,
        back: Back,
        clock: Callable[[], datetime],
        silent_for: Callable[[], float],
        tls_outcome: Callable[[TlsOutcome, str], None],
    ) -> None:
        self._traffic = traffic
        self._attempts = attempts
        self._back = back
        self._clock = clock
        self._silent_for = silent_for
        self._tls_outcome = tls_outcome
        self._stopping = False
        self._starving: dict[tuple[str, bool], set[Destination]] = {}  # by what they starve for
        self._starts = Starts(OPENED_AT_ONCE, slow=SLOW_OPENING)
        self._idling: dict[asyncio.Future[bool], None] = {}  # each looks up twice a second, and is last then
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self._timeouts = Timeouts(connect=config.delivery.connect_timeout)

    def stop(self, destinations: Sequence[Destination]) -> None:
        """Start nothing more, and let idle sessions end."""
        self._stopping = True
        for destination in destinations:
            for waiter in (*destination.idle, *((destination.pacer,) if destination.pacer else ())):
                _wake(waiter)
            self._sated(destination)

    def retire(self, destination: Destination, why: str) -> None:
        """Send nothing more this way: what waits is put back, sessions end after what they are sending."""
        destination.retired = why
        destination.blocked_until = None
        self.put_back_retired(destination)
        for waiter in (*destination.idle, *((destination.pacer,) if destination.pacer else ())):
            _wake(waiter)
        self._sated(destination)
        self._back.forget(destination)

    def put_back_retired(self, destination: Destination) -> None:
        self._back.put_back(destination.line.clear(), self._clock(), destination.retired)

    # jobs in, sessions up

    def add(self, destination: Destination, job: Job) -> None:
        """Send this as soon as may be."""
        alone = self._attempts.alone(job.message, destination.route)
        most = 1 if alone else self._traffic.recipients_per_transaction(destination.path)
        last = destination.line.last_of(job)
        if (
            last is not None
            and last.message is job.message
            and len(last.recipients) + len(job.recipients) <= most
            and self._may_join(last.recipients[0].domain, job.recipients[0].domain)
        ):
            last.recipients += job.recipients  # another domain of the same site
            return
        if len(job.recipients) <= most:
            destination.line.push(job)
        else:
            for start in range(0, len(job.recipients), most):
                destination.line.push(Job(job.message, job.recipients[start : start + most]))
        if last is None and destination.pacer is not None and destination.pacer_alone:
            _wake(destination.pacer)  # what it waits for may not bind this one
        self.pump(destination)

    def _may_join(self, domain: str, other: str) -> bool:
        """May both be in one transaction? What limits a domain is charged once for each transaction."""
        return domain == other or not (self._traffic.limits_domain(domain) or self._traffic.limits_domain(other))

    def pump(self, destination: Destination) -> None:
        """Wake idle sessions for the waiting jobs, and open further ones."""
        if self._stopping:
            return
        if destination.retired:
            self.put_back_retired(destination)
            return
        wanted = len(destination.line) - destination.woken
        while wanted > 0 and destination.idle:
            # The one that fell idle last, so that those too many are left alone and end.
            _wake(destination.idle.popitem()[0])  # its time may be over at this very moment
            destination.woken += 1
            wanted -= 1
        now = asyncio.get_running_loop().time()
        may_open = destination.open_after <= now or not destination.sessions
        while wanted > destination.opening and destination.pacer is None and may_open:
            holds = self._connect(destination)
            if isinstance(holds, Wait):
                if not destination.sessions:
                    self._starve(destination, holds)
                else:
                    destination.open_after = now + ASK_AGAIN
                    if destination.told_at < now - LOOK_UP:
                        destination.told_at = now
                        self._traffic.could_use_more(holds)
                return
            self._sated(destination)
            destination.sessions += 1
            destination.opening += 1
            self._back.start(self._serve(destination, holds), f"session {destination.route.site}")

    def _connect(self, destination: Destination) -> Sequence[Hold] | Wait:
        """A connection of the path, unless others have waited for one longer."""
        first = (destination.line.lane or 0) < FIRST_LANES
        wish = self._traffic.wanted(destination.path)
        if destination.starving is None and (wish is Wish.FIRST or (wish is Wish.SOME and not first)):
            return Wait(0.0, OTHERS_WAIT)
        if destination.sessions and self._traffic.uneven(destination.path, 1):
            return Wait(0.0, OTHERS_WAIT)
        return self._traffic.connect(destination.path)

    def _starve(self, destination: Destination, wait: Wait) -> None:
        """There are jobs and no connection: ask again soon, and have others give one up; or put all back."""
        loop = asyncio.get_running_loop()
        first = (destination.line.lane or 0) < FIRST_LANES
        scarce = self._traffic.scarcest(destination.path)
        crowded = destination.starving is None and scarce is not None and self.room_beside(scarce, first=first) <= 0
        destination.starving = destination.starving or loop.time()
        patience = PATIENCE_FIRST if first and not wait.seconds else PATIENCE
        if crowded or wait.seconds > PATIENCE or loop.time() - destination.starving > patience:
            self._sated(destination)
            if scarce is not None and wait.seconds <= PATIENCE:
                wait = self._traffic.line_up(scarce, first=first)
            self.postpone(destination, wait)
            return
        if scarce is not None and destination.starves_for is None:
            destination.starves_for = scarce.hold.meter.name, first
            self._starving.setdefault(destination.starves_for, set()).add(destination)
        if not destination.signs:
            destination.signs = self._traffic.want(wait, first=first)
        if destination.again is None:
            destination.again = loop.call_later(max(wait.seconds, ASK_AGAIN), self._ask_again, destination)

    def room_beside(self, scarce: Scarce, *, first: bool) -> int:
        """How many more jobs may wait in memory for these connections, beside those that do."""
        starving = self._starving.get((scarce.hold.meter.name, first), ())
        return scarce.room - sum(len(destination.line) for destination in starving)

    def _ask_again(self, destination: Destination) -> None:
        destination.again = None
        if destination.line and not destination.sessions:
            self.pump(destination)
        else:
            self._sated(destination)
            self._back.forget(destination)

    def _sated(self, destination: Destination) -> None:
        destination.starving = None
        if destination.starves_for is not None:
            starving = self._starving[destination.starves_for]
            starving.discard(destination)
            if not starving:
                del self._starving[destination.starves_for]
            destination.starves_for = None
        self._traffic.disconnect(destination.signs)
        destination.signs = ()
        if destination.again is not None:
            destination.again.cancel()
            destination.again = None

    # a session

    async def _serve(self, destination: Destination, holds: Sequence[Hold]) -> None:
        """The life of one session: open, send what is waiting, wait a little for more, quit."""
        session: Session | None = None
        opening = 1
        begun: Callable[[], None] = _nothing
        try:
            begun = await self._starts.begin(first=(destination.line.lane or 0) < FIRST_LANES)
            if self._stopping or not destination.line:
                return
            try:
                session = await self._open(destination)
            except SessionError as error:
                destination.opening -= opening
                opening = 0
                await self._unreachable(destination, error)
                return
            destination.opening -= opening
            opening = 0
            log.debug("session.opened", site=destination.route.site, host=session.host.name, tls=session.tls)
            metrics.sessions("out", 1)
            destination.working += 1
            try:
                await self._use(destination, session, begun)
            finally:
                destination.working -= 1
                metrics.sessions("out", -1)
                await self._end(destination.path, session)
        finally:
            begun()
            destination.opening -= opening
            destination.sessions -= 1
            self._traffic.disconnect(holds)
            if destination.retired:
                self.put_back_retired(destination)
            elif destination.line and not self._stopping and destination.blocked_until is None:
                self.pump(destination)
            self._back.forget(destination)

    async def _end(self, path: Path, session: Session) -> None:
        """Close, and wait until the host has seen it: it counts us until then."""
        if self._stopping:
            session.close()
            return
        path.leaving += 1
        try:
            await session.quit()
        except Exception as error:  # whatever it says now, it is over
            log.debug("session.quit_failed", host=session.host.name, error=str(error))
        finally:
            path.leaving -= 1

    async def _use(self, destination: Destination, session: Session, begun: Callable[[], None]) -> None:
        """Send what there is; `begun` is told when the first mail is through."""
        host, source = session.host, destination.source
        where = Where(
            destination.route.site, host.name, host.address, source.name, session.tls, destination.route.upstream
        )
        jobs = 0
        while (
            session.alive
            and session.sent < self._traffic.messages_per_connection(destination.path)
            and not self._yields(destination, jobs)
            and (job := await self._next(destination)) is not None
        ):
            jobs += 1
            if self._silent_for() > FENCE:
                self._traffic.not_sent(destination.path, len(job.recipients))
                self._back.put_back([job], self._clock(), "this worker lost sight of the database")
                continue
            try:
                await self._send(destination, session, job, where)
            except Exception:
                log.exception("attempt.crashed", message=format_message_id(job.message.id))
                self._attempts.broken_off(job)
                self._back.put_back([job], self._clock() + AFTER_CRASH, CRASHED)
            destination.failures = 0
            begun()

    async def _send(self, destination: Destination, session: Session, job: Job, where: Where) -> None:
        path, admitted = destination.path, len(job.recipients)
        most = session.features.rcpt_max
        if most is not None and len(job.recipients) > most:  # RFC 9422: the host takes fewer
            destination.line.push_back(Job(job.message, job.recipients[most:]))
            job.recipients = job.recipients[:most]  # of this very job: whoever gives it back gives back no more
        self._look_ahead(destination, job)
        begun = asyncio.get_running_loop().time()
        try:
            results = await self._attempts.run(session, job, where)
        except SlowDatabaseError as error:
            self._traffic.not_sent(path, admitted)
            self._back.put_back([job], self._clock() + AFTER_SLOW, str(error))
            return
        self._traffic.not_sent(path, admitted - len(results or ()))  # expired, over what the host takes, or not asked
        if results is None and asyncio.get_running_loop().time() - begun > RECALL_FOR:
            self._back.put_back([job], self._clock(), "")  # it may be held: nobody could recall it meanwhile
        elif results is None:
            destination.line.push_back(job)
        elif results:
            self._traffic.lessons.note(path, results, session.sent)

    def _look_ahead(self, destination: Destination, job: Job) -> None:
        """Unless this was asked about with those before it, ask now, and about those that leave soon as well."""
        now = asyncio.get_running_loop().time()
        if job.asked_at > now - 2 * SOON:
            return
        took = max(now - destination.asked_at, 0.001)
        destination.asked_at = now
        most = min(MOST_AHEAD, int((destination.asked + 1) * SOON / took))
        if job.message.render:
            most = min(most, MOST_RENDERED - 1)
        jobs = [job, *(destination.line.upcoming(most) if most and destination.line else ())]
        destination.asked = len(jobs) - 1
        for each in jobs:
            each.asked_at = now
        self._attempts.ahead(jobs)

    def _yields(self, destination: Destination, jobs: int) -> bool:
        """Is this connection wanted more urgently elsewhere, or one too many by now?"""
        if self._traffic.surplus(destination.path):
            return True
        if not jobs:  # whoever got a connection sends something by it
            return False
        now = asyncio.get_running_loop().time()
        if destination.sessions > 1 and destination.weighed_at < now - ASK_AGAIN:
            destination.weighed_at = now
            if self._traffic.uneven(destination.path, 2):
                return True
        wish = self._traffic.wanted(destination.path)
        if wish is Wish.NONE:
            return False
        lane = destination.line.lane
        urgent = lane is None or (wish is Wish.FIRST and lane >= FIRST_LANES)
        return (urgent or destination.sessions > 1 or jobs >= TURN) and self._gives(destination)

    def _gives(self, destination: Destination) -> bool:
        """All sessions see that one connection is wanted: one of them gives its own, then those who want it ask."""
        now = asyncio.get_running_loop().time()
        if now < destination.given + ASK_AGAIN:
            return False
        destination.given = now
        return True

    async def _next(self, destination: Destination) -> Job | None:
        """The next job; None when there was none for a while, or at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.delivery.idle
        while not self._stopping and not destination.retired:
            if destination.line and destination.pacer is None:
                found = self._admitted(destination)
                if isinstance(found, Job):
                    self._hand_on(destination)
                    return found
                if found is None:
                    continue
                if found.seconds > PATIENCE and found.elsewhere:
                    self._back.again(destination.route, destination.line.clear())
                    continue
                if found.seconds > PATIENCE:
                    self.postpone(destination, found)
                    continue
                await self._pace(destination, found)
                until = max(until, loop.time() + self._config.delivery.idle)
                continue
            if loop.time() >= until:
                break
            if self._traffic.wanted(destination.path) is not Wish.NONE and self._gives(destination):
                break
            looked = loop.time()
            if await self._idle(destination, min(until, looked + LOOK_UP)) and not destination.line:
                break
            idle = loop.time() - looked >= LOOK_UP and not destination.line
            if idle and self._traffic.of_use_elsewhere(destination.path):
                break
        return None

    def _hand_on(self, destination: Destination) -> None:
        """There is another job: one idle session is enough to see whether it may leave, or to wait until it may."""
        if not destination.line:
            return
        if not destination.idle:
            self.pump(destination)
        elif not destination.woken:
            _wake(destination.idle.popitem()[0])
            destination.woken += 1

    async def _pace(self, destination: Destination, wait: Wait) -> None:
        """Wait until the path may admit the next job; the other sessions leave that to this one."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        destination.pacer = waiter
        destination.pacer_alone = wait.alone
        timer = loop.call_later(wait.seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            destination.pacer = None

    async def _idle(self, destination: Destination, until: float) -> bool:
        """Wait for a job, until then at most. True: too many sessions are idle, and this one has to end."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        destination.idle[waiter] = until
        if destination.alarm is None or until < destination.rings_at:
            self._set_alarm(destination, until)
        self._idling[waiter] = None
        if len(self._idling) > MOST_IDLE:
            self._end_one()
        try:
            return await waiter
        finally:
            self._idling.pop(waiter, None)
            if destination.idle.pop(waiter, None) is None:  # a job, not the timer
                destination.woken -= 1

    def _end_one(self) -> None:
        """Mail to many domains, one each, must not leave thousands of connections behind."""
        waiter = next(iter(self._idling))
        del self._idling[waiter]
        if not waiter.done():
            waiter.set_result(True)

    def _set_alarm(self, destination: Destination, at: float) -> None:
        if destination.alarm is not None:
            destination.alarm.cancel()
        destination.rings_at = at
        destination.alarm = asyncio.get_running_loop().call_at(at, self._ring, destination)

    def _ring(self, destination: Destination) -> None:
        """The time of idle sessions may be over; those that fell idle since have theirs later."""
        destination.alarm = None
        now = asyncio.get_running_loop().time()
        later = [until for until in destination.idle.values() if until > now]
        for waiter, until in destination.idle.items():
            if until <= now:
                _wake(waiter)
        if later:
            self._set_alarm(destination, max(min(later), now + 0.001))  # timers may ring that much too early

    def _admitted(self, destination: Destination) -> Job | Wait | None:
        """The job whose turn it is and that may leave now, else what the soonest of them waits for; None: look again.

        What binds only one job (its tenant, campaign, credential or domain) lets the next flow go ahead.
        """
        soonest: Wait | None = None
        late: list[tuple[Job, Wait]] = []
        for job in destination.line.heads():
            wait = self._traffic.admit(destination.path, job)
            if wait is None:
                return destination.line.take(job)
            if not wait.alone:
                return wait
            if wait.seconds > PATIENCE:
                late.append((job, wait))
            elif soonest is None or wait.seconds < soonest.seconds:
                soonest = wait
        for job, wait in late:
            destination.line.take(job)
            self.put_off([job], wait)
        return soonest

    # opening

    async def _open(self, destination: Destination) -> Session:
        """A session with the first host that takes us; else the last host's SessionError."""
        route, source = destination.route, destination.source
        unreachable = f"no host of {route.site} has an address that {source.name} reaches"
        failure = SessionError(local_verdict(Kind.ROUTING, 451, "4.4.4", unreachable), route.hosts[0], "route")
        hosts = [host for host in route.hosts if source.reaches(host.address)]
        for host in hosts[: self._config.delivery.max_hosts]:
            try:
                session = await Session.open(
                    host,
                    ehlo=source.ehlo,
                    tls=route.tls,
                    auth=route.auth,
                    source=source.address,
                    timeouts=self._timeouts,
                )
            except SessionError as error:
                log.info("session.failed", host=host.name, ip=host.address, stage=error.stage, reply=str(error.verdict))
                if error.tls_outcome is not None:
                    self._tls_outcome(error.tls_outcome, source.address or "")
                failure = error
                if not error.verdict.retry_other_host:
                    break
            except Exception:  # mail for this host must wait, instead of being taken up again at once, and for ever
                log.exception("session.crashed", host=host.name, ip=host.address)
                failure = SessionError(network_verdict("garbage", CRASHED), host, "connect")
            else:
                if session.tls_outcome is not None:
                    self._tls_outcome(session.tls_outcome, source.address or "")
                return session
        raise failure

    async def _unreachable(self, destination: Destination, error: SessionError) -> None:
        """No host took us. With other sessions at work that means "no more connections"; else the site is away."""
        reply = error.steps[-1].reply if error.steps else None
        if reply is not None and reply.code != error.verdict.code:
            reply = None  # of an earlier step: what failed then had no words
        refusal = Result(error.verdict, error.stage, reply)
        self._traffic.lessons.refused(destination.path, refusal, alone=not destination.working)
        loop = asyncio.get_running_loop()
        if destination.working or destination.opening:  # the last one that fails finds the site away
            destination.open_after = loop.time() + OPEN_AGAIN
            loop.call_later(OPEN_AGAIN, self.pump, destination)
            return
        if destination.blocked_until is not None:  # by a session that failed at the same time
            self.leave(destination, destination.line.clear())  # given back by another one since
            return
        destination.failures += 1
        job = next(iter(destination.line.heads()), None)
        if job is not None:
            destination.line.take(job)
            host: Host = error.host
            where = Where(destination.route.site, host.name, host.address, destination.source.name)
            await self.refuse(job, error.verdict, where, error.stage)
        seconds = min(BLOCK_FIRST * 2 ** (destination.failures - 1), BLOCK_MOST)
        await self._block(destination, self._clock() + timedelta(seconds=seconds), error.verdict)

    async def refuse(self, job: Job, verdict: Verdict, where: Where, stage: str) -> None:
        """Settle a job that no transaction was needed for."""
        try:
            await self._attempts.refuse(job, verdict, where, stage)
        except Exception:  # nobody else holds the job now
            log.exception("refusal.crashed", message=format_message_id(job.message.id))
            self._back.put_back([job], self._clock() + AFTER_CRASH, CRASHED)

    # jobs back

    async def _block(self, destination: Destination, until: datetime, verdict: Verdict) -> None:
        destination.blocked_until = until
        destination.reason = f"{destination.route.site} cannot be reached: {verdict}"
        destination.blocked_by_policy = verdict.kind is Kind.TLS and destination.route.tls.mode in ("dane", "sts")
        jobs = destination.line.clear()
        log.info(
            "site.blocked", site=destination.route.site, until=until.isoformat(), reply=str(verdict), jobs=len(jobs)
        )
        queues = {
            queue_of(recipient): (until, destination.reason)
            for job in jobs
            if not destination.blocked_by_policy and self._back.goes_for_queues(job)
            for recipient in job.recipients
        }
        self.leave(destination, jobs)
        if queues:
            with suppress(*LOST):
                await self._back.block(queues)

    def leave(self, destination: Destination, jobs: Sequence[Job]) -> None:
        """Put back what has to wait because the destination is away; should it expire so, its sender is told why."""
        until = self.blocked(destination)
        if until is None:
            for job in jobs:
                self.add(destination, job)
            return
        for job in jobs:
            for recipient in job.recipients:
                recipient.last_reply = recipient.last_reply or destination.reason
        self._back.put_back(jobs, until, destination.reason)

    def blocked(self, destination: Destination) -> datetime | None:
        """Until when it is left alone; never longer than `BLOCK_MOST` from now, however the clock was set meanwhile."""
        until = destination.blocked_until
        if until is None:
            return None
        now = self._clock()
        if until <= now:
            destination.blocked_until = None
            return None
        destination.blocked_until = min(until, now + timedelta(seconds=BLOCK_MOST))
        return destination.blocked_until

    def postpone(self, destination: Destination, wait: Wait) -> None:
        """Put back all jobs, to be looked at again when the path is expected to have a place for the first."""
        if jobs := destination.line.clear():
            destination.stuck_until = asyncio.get_running_loop().time() + min(wait.seconds, BLOCK_FIRST)
            self.put_off(jobs, wait)
            log.debug("jobs.postponed", path=str(destination.path), jobs=len(jobs), seconds=wait.seconds, why=wait.why)

    def put_off(self, jobs: Sequence[Job], wait: Wait) -> None:
        """Let the queues of the jobs wait: that ends for all of their mail at once when the reason goes.

        Where other mail of a queue may leave another way, only the jobs wait.
        """
        now = self._clock()
        until = now + timedelta(seconds=wait.seconds)
        queues: dict[Queue, tuple[datetime, str]] = {}
        for job in jobs:
            whole = wait.queue and self._back.goes_for_queues(job)
            self._back.put_back([job], now if whole else until, wait.why)
            if whole and wait.seconds > 0:
                queues |= {queue_of(recipient): (until, wait.why) for recipient in job.recipients}
        if queues:
            self._back.start(self._block_queues(queues), "postpone")

    async def _block_queues(self, queues: dict[Queue, tuple[datetime, str]]) -> None:
        with suppress(*LOST):
            await self._back.block(queues)


def _nothing() -> None:
    """Of work that has not begun."""


def _wake(waiter: "asyncio.Future[bool]") -> None:
    if not waiter.done():
        waiter.set_result(False)
