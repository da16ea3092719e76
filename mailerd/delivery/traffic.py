"""What may leave now on which path, or what it waits for: limits, learnt pace, brakes and warm-up put together.

A *path* is a source and a site. Whoever wants to open a connection or to send a message on it asks here; the answer is
None, or a `Wait` that names the limit, how long it binds, and the file and line it comes from. Counters are shared by
all workers of this node (`ledger`); what is limited over all nodes is shared out among them (`grants`).
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from mailerd.config import Config
from mailerd.delivery.attempt import Job
from mailerd.delivery.bounds import BYTES, MANY, WISH, WISH_FIRST, Bound, Bounds
from mailerd.delivery.effects import Effect, Effects
from mailerd.delivery.grants import Grants
from mailerd.delivery.ledger import Charge, Hold, Ledger
from mailerd.delivery.lessons import Lessons
from mailerd.delivery.paths import Cause, Constraint, Path, Scarce, Wait, Wish
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.warmup_budgets import WarmUps
from mailerd.queue.mail import Queue, parts_of_flow

log = structlog.get_logger()

LEAST_POSTPONED = 0.1  # seconds
MOST_POSTPONED = 300.0  # seconds: then a queue is looked at again, whatever was thought of its path
SPREAD = 60.0  # seconds over which queues come back after a longer wait
LOOKS = 4.0  # times as many queues are looked at as messages leave, on a path that only connections limit,
LEAST_LOOKS = 1_000.0  # but so many a second,
FIRST_LOOKS = 10_000.0  # and so many on a path that is open, and of which it is not known yet how fast mail leaves
WINDOW = 0.5  # seconds in which what leaves is counted;
ENOUGH = 50  # messages are enough the first time,
LATELY = 10.0  # and after so many seconds it is the first time again
LEAST_FREED = 100.0  # looks a second for connections that several paths share, or LOOKS for each of them
STARVING_ROOM = 5  # jobs without a connection in memory, more than connections that they may get,
MOST_STARVING = 100  # of which so many count that are not free
MAX_PATHS = 20_000  # known at a time
NOT_GRANTED = 1.0  # seconds after which we look whether other nodes left us a part of what is shared
# Of meters that say when somebody last had mail for more connections than it got; with a slot: when that worker had.
USE_FOR_MORE = "!more"
SAID_LATELY = 1.0  # seconds
PERIODS = ((1.0, "a second"), (60.0, "a minute"), (3600.0, "an hour"), (86_400.0, "a day"))


class Traffic:
    """The shaping of one worker."""

    def __init__(
        self,
        config: Config,
        book: RuleBook,
        *,
        ledger: Ledger,
        effects: Effects,
        warmups: WarmUps,
        grants: Grants,
        clock: Callable[[], datetime],
        brake: Callable[[Effect], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._effects = effects
        self._warmups = warmups
        self._clock = clock
        self._now = monotonic
        self._bounds = Bounds(
            config, book, ledger=ledger, effects=effects, grants=grants, clock=clock, monotonic=monotonic
        )
        self.lessons = Lessons(
            config,
            book,
            ledger=ledger,
            warmups=warmups,
            clock=clock,
            brake=brake,
            crowded=lambda: effects.crowded,
            monotonic=monotonic,
        )
        self._paths: dict[tuple[str, str, str], Path] = {}
        self._booked: dict[str, float] = {}  # by meter: when the queue that was put off last is looked at again

    def reconfigure(self, config: Config, book: RuleBook) -> None:
        """Take new limits and rules; what was counted stays."""
        self._book = book
        self._bounds.reconfigure(config, book)
        self.lessons.reconfigure(config, book)
        for path in self._paths.values():
            path.limits = book.limits(path.provider)

    def avoided(self, source: str, provider: str, site: str) -> bool:
        """Is there a brake by which other sources are to be preferred?"""
        return any(effect.kind == "avoid" for effect in self._effects.of_path(source, provider, site))

    def warming(self, path: Path, recipients: int) -> Wait | None:
        """What the warm-up of the path's source has against so many recipients now."""
        if self._warmups.left(path.source, path.book) >= recipients:
            return None
        wait = self._warmups.take(path.source, path.book, recipients)
        if wait is None:
            self._warmups.give_back(path.source, path.book, recipients)
            return None
        return Wait(self._seconds(wait.until), wait.text)

    def overflows(self, source: str) -> bool:
        """May mail that is over in this source's warm-up go by other sources of the pool?"""
        return self._warmups.overflows(source)

    def limits_domain(self, domain: str) -> bool:
        """Has the domain limits of its own? Its mail shares no transaction with that of other domains then."""
        return self._book.of_domain(domain) is not None

    def provider_of(self, domain: str, hosts: Sequence[str]) -> str:
        return self._book.provider_of(domain, hosts)

    def path(self, source: str, site: str, provider: str) -> Path:
        """The path, with what was learnt of it."""
        path = self._paths.get((source, site, provider))
        if path is None:
            if len(self._paths) >= MAX_PATHS:
                del self._paths[next(iter(self._paths))]  # if it is in use, its destinations keep it
            name = f"{source}>{site}"
            path = Path(
                source,
                site,
                provider,
                self._book.limits(provider),
                self._ledger.meter(name),
                since=self._now(),
            )
            self._paths[source, site, provider] = path
        return path

    def forgive(self) -> None:
        """Forget what the control loop made of failures, on whatever path of this node."""
        self.lessons.forgive(self._paths.values())

    def forget(self, path: Path) -> None:
        """No destination uses it any more."""
        self.lessons.flush(path)
        if not path.most_messages and not path.most_recipients:
            self._paths.pop((path.source, path.site, path.provider), None)

    # connections

    def connect(self, path: Path) -> Sequence[Hold] | Wait:
        """Take a connection of the path; what was taken is to be given back by `disconnect`."""
        self._bounds.renew(path)
        if path.paused is not None:
            return self._pause(path.paused)
        holds = path.holds
        if (index := _not_granted(path.opening)) is not None:
            return Wait(NOT_GRANTED, str(path.opening_causes[index]))
        refused = self._ledger.hold(holds, path.opening, self._now())
        if refused is None:
            return holds
        index, seconds = refused
        if index < len(path.holds):
            return Wait(seconds, str(path.hold_causes[index]), full=holds[index].meter)
        return Wait(seconds, str(path.opening_causes[index - len(path.holds)]))

    def disconnect(self, holds: Sequence[Hold]) -> None:
        """Give a connection back; to be called when the host has seen its end."""
        self._ledger.release(holds)

    def free(self, path: Path) -> int:
        """How many connections might be opened now."""
        self._bounds.renew(path)
        return max(0, min(hold.limit - hold.meter.held for hold in path.holds))

    def full(self, path: Path) -> bool:
        """Are all connections that the path may have by itself in use, by whatever worker?"""
        self._bounds.renew(path)
        return path.meter.held >= path.holds[0].limit

    def scarcest(self, path: Path) -> Scarce | None:
        """The connections that the path shares with other paths and of which fewest are free; None: it shares none."""
        self._bounds.renew(path)
        left, index = min(((hold.limit - hold.meter.held, n) for n, hold in enumerate(path.holds) if n), default=(0, 0))
        if not index:
            return None
        hold = path.holds[index]
        room = STARVING_ROOM + max(left, min(hold.limit, MOST_STARVING))
        return Scarce(hold, path.hold_causes[index], room)

    def line_up(self, scarce: Scarce, *, first: bool) -> Wait:
        """For how long a queue waits that finds too many others waiting for these connections.

        Each gets a later time, about as fast as connections are freed. `first`: of mail that goes first.
        """
        meter, now = scarce.hold.meter, self._now()
        name = meter.name + (WISH_FIRST if first else WISH)
        if name not in self._booked and len(self._booked) >= MAX_PATHS:
            self._booked.clear()
        interval = 1 / max(LOOKS * scarce.hold.limit, LEAST_FREED)
        slot, self._booked[name] = _slot(self._booked.get(name, 0.0), now + LEAST_POSTPONED, interval)
        return Wait(slot - now, str(scarce.cause), full=meter)

    def surplus(self, path: Path) -> bool:
        """Are more connections open than are allowed by now?"""
        self._bounds.renew(path)
        for meter, limit in path.holds:  # noqa: SIM110 - any() makes a generator, for every message
            if meter.held - path.leaving > limit:
                return True
        return False

    def want(self, wait: Wait, *, first: bool) -> Sequence[Hold]:
        """Ask those who have the connections to give one up (`first`: for mail that goes first), until `disconnect`."""
        if wait.full is None:
            return ()
        signs = [Hold(self._ledger.meter(wait.full.name + WISH), MANY)]
        if first:
            signs.append(Hold(self._ledger.meter(wait.full.name + WISH_FIRST), MANY))
        return signs if self._ledger.hold(signs, (), self._now()) is None else ()

    def wanted(self, path: Path) -> Wish:
        """Does anybody, in whatever worker, wait for a connection that this path has?"""
        self._bounds.renew(path)
        wish = Wish.NONE
        for first, any_ in path.wishes:
            if first.held:
                return Wish.FIRST
            if any_.held:
                wish = Wish.SOME
        return wish

    def could_use_more(self, wait: Wait) -> None:
        """Say that there is mail for another connection beside those we have, for whoever has an idle one."""
        if wait.full is not None:
            now = self._now()
            for mark in (USE_FOR_MORE, f"{USE_FOR_MORE}{self._ledger.slot}"):
                self._ledger.update(self._ledger.meter(wait.full.name + mark), lambda state: (now, *state[1:]))

    def of_use_elsewhere(self, path: Path) -> bool:
        """Did anybody, in whatever worker, say lately that it has mail for an idle connection of this path?"""
        self._bounds.renew(path)
        lately = self._now() - SAID_LATELY
        return any(self._ledger.meter(h.meter.name + USE_FOR_MORE).state()[0] > lately for h in path.holds)

    def uneven(self, path: Path, by: int) -> bool:
        """Has this worker so many connections more than another one that lately had mail for more of them?

        One that has many while another has one is not faster for it, but the other pays for each message alone what
        those that leave together share.
        """
        self._bounds.renew(path)
        lately = self._now() - SAID_LATELY
        for meter, _ in path.holds:
            most = meter.mine - by
            for slot, held in enumerate(self._ledger.holders(meter) if most > 0 else ()):
                if 0 < held <= most and self._ledger.meter(f"{meter.name}{USE_FOR_MORE}{slot}").state()[0] > lately:
                    return True
        return False

    def messages_per_connection(self, path: Path) -> int:
        """By the limit that is set, and by what the host has taught us."""
        self.lessons.forget_old(path)
        return min(path.most_messages or MANY, path.limits.per_path.messages_per_connection or MANY)

    def recipients_per_transaction(self, path: Path) -> int:
        """By the limit that is set, by what the host has taught us, and by what is left of a warm-up."""
        self.lessons.forget_old(path)
        left = max(1.0, self._warmups.left(path.source, path.book))
        return int(min(path.most_recipients or MANY, path.limits.per_path.recipients_per_transaction or MANY, left))

    # messages

    def admit(self, path: Path, job: Job) -> Wait | None:
        """Take what one message needs: None, it may leave now."""
        self._bounds.renew(path)
        if path.paused is not None:
            return self._pause(path.paused)
        found = self._own_charges(path, job)
        if isinstance(found, Wait):
            return found
        own, own_causes = found
        recipients = len(job.recipients)
        # Before the rates, because what is taken of those cannot be given back.
        if (wait := self._warmups.take(path.source, path.book, recipients)) is not None:
            return Wait(self._seconds(wait.until), wait.text, elsewhere=self.overflows(path.source))
        if path.charges or own:
            size = float(job.message.size)
            charges = [
                charge._replace(amount=size) if charge.meter.name.endswith(BYTES) else charge
                for charge in (*path.charges, *own)
            ]
            refused = self._refused(charges, self._ledger.take)
            if refused is not None:
                self.not_sent(path, recipients)
                index, seconds = refused
                if index < len(path.causes):
                    return Wait(seconds, str(path.causes[index]))
                cause = own_causes[index - len(path.causes)]
                return Wait(seconds, str(cause), alone=True, queue=cause.queue)
        return None

    def not_sent(self, path: Path, recipients: int) -> None:
        """What was admitted was not sent after all."""
        if recipients:
            self._warmups.give_back(path.source, path.book, recipients)

    def interval(self, path: Path) -> float:
        """Seconds between two messages of the path as it is allowed; 0: nothing but connections binds."""
        self._bounds.renew(path)
        gaps = (charge.interval for charge in path.charges if not charge.meter.name.endswith(BYTES))
        return max((gap for gap in gaps if gap < math.inf), default=0.0)

    def wait_of(self, path: Path) -> Wait | None:
        """What the next message of the path would wait for, without taking anything."""
        self._bounds.renew(path)
        if path.paused is not None:
            return self._pause(path.paused)
        if (warming := self.warming(path, 1)) is not None:
            return warming
        refused = self._refused(path.charges, self._ledger.peek)
        return None if refused is None else Wait(refused[1], str(path.causes[refused[0]]))

    def wait_of_queue(self, queue: Queue) -> Wait | None:
        """What all mail of a queue waits for: the rates of its tenant, campaign and domain, and brakes on them."""
        tenant, campaign, _ = parts_of_flow(queue.flow)
        if self._effects.any_of_mail:
            for effect in self._effects.of_mail("", "", "", tenant, campaign):
                if effect.kind == "pause":
                    return self._pause(effect)
        charges, causes = self._bounds.of_queue(tenant, campaign, queue.domain)
        refused = self._refused(charges, self._ledger.peek)
        if refused is None:
            return None
        if charges[refused[0]].interval == math.inf:
            return Wait(refused[1], str(causes[refused[0]]), alone=True)
        # Each queue that has to wait gets a later time, at the rate at which mail leaves.
        name, now = charges[refused[0]].meter.name, self._now()
        slot, self._booked[name] = _slot(self._booked.get(name, 0.0), now + refused[1], charges[refused[0]].interval)
        return Wait(slot - now, str(causes[refused[0]]), alone=True)

    def postpone(self, path: Path, wait: Wait) -> float:
        """In how many seconds a queue that finds no room on the path should be looked at again.

        Each gets a later time, at the rate at which mail leaves, so that they do not all come at once. Where only
        connections bind, they come several times as fast, for the rate may have grown by then: a queue that is looked
        at in vain costs less than connections without mail.
        """
        looks = max(LOOKS * path.rate, LEAST_LOOKS) if path.measured or wait.seconds else FIRST_LOOKS
        interval = self.interval(path) or 1 / looks
        if wait.seconds > MOST_POSTPONED:  # with an end that is known, or is told
            path.late = (path.late + interval) % SPREAD
            return wait.seconds + path.late
        now = self._now()
        slot, path.booked = _slot(path.booked, now + wait.seconds, interval)
        return max(LEAST_POSTPONED, slot - now)

    def measure(self, path: Path) -> float:
        """Messages a second that left by this worker lately; 0 where that is not known."""
        now = self._now()
        passed = now - path.since
        if passed > LATELY:
            path.rate, path.measured = 0.0, False
            path.departed, path.since = 0, now
        elif passed >= WINDOW or (not path.measured and path.departed >= ENOUGH):
            rate = path.departed / max(passed, 1e-3)
            path.rate = (path.rate + rate) / 2 if path.rate else rate
            path.measured = True
            path.departed, path.since = 0, now
        return path.rate

    # for people

    def constraints(self, path: Path) -> list[Constraint]:
        """Everything that limits the path now."""
        self._bounds.renew(path)
        now = self._now()
        found = []
        if path.paused is not None:
            wait = self._pause(path.paused)
            name = f"effect {path.paused.id}: {path.paused}"
            found.append(Constraint(name, "nothing", "", path.paused.rule, wait.seconds))
        for hold, cause in zip(path.holds, path.hold_causes, strict=True):
            found.append(Constraint(cause.name, f"{hold.limit} connections", f"{hold.meter.held} open", cause.place))
        for charges, causes in ((path.opening, path.opening_causes), (path.charges, path.causes)):
            found += [self._rate(charge, cause, now) for charge, cause in zip(charges, causes, strict=True)]
        if (budget := self._warmups.budget(path.source, path.book)) is not None:
            warming = self.warming(path, 1)
            waits = warming.seconds if warming is not None else 0.0
            found.append(Constraint("warm-up", *budget, f"sources.{path.source}.warmup", waits))
        return found

    def constraints_of_mail(
        self, path: Path, *, tenant: str, campaign: str, credential: str, domain: str
    ) -> list[Constraint]:
        """What limits only the mail of these on the path; "": of nobody in particular."""
        now = self._now()
        effects = self._effects.of_mail(path.source, path.provider, path.site, tenant, campaign)
        found = [
            Constraint(f"effect {effect.id}: {effect}", "nothing", "", effect.rule, self._seconds(effect.until))
            for effect in effects
            if effect.kind == "pause"
        ]
        charges, causes = self._bounds.of_mail(tenant, campaign, credential, domain)
        return found + [self._rate(charge, cause, now) for charge, cause in zip(charges, causes, strict=True)]

    def _rate(self, charge: Charge, cause: Cause, now: float) -> Constraint:
        if charge.interval == math.inf:
            return Constraint(cause.name, "nothing until other nodes leave a part", "", cause.place, NOT_GRANTED)
        refused = self._ledger.peek([charge], now)
        return Constraint(cause.name, _allowed(charge, cause), "", cause.place, refused[1] if refused else 0.0)

    # what is behind it

    def _refused(
        self, charges: Sequence[Charge], ask: Callable[[Sequence[Charge], float], tuple[int, float] | None]
    ) -> tuple[int, float] | None:
        """Which of the charges makes us wait longest, and for how long; `ask`: to take or to peek."""
        if not charges:
            return None
        if (index := _not_granted(charges)) is not None:
            return index, NOT_GRANTED
        return ask(charges, self._now())

    def _own_charges(self, path: Path, job: Job) -> Bound | Wait:
        """The rates that only this message's tenant, campaign, credential and domain have."""
        message = job.message
        if self._effects.any_of_mail:
            for effect in self._effects.of_mail(
                path.source, path.provider, path.site, message.tenant, message.campaign
            ):
                if effect.kind == "pause":
                    return self._pause(effect)._replace(alone=True)
        return self._bounds.of_mail(message.tenant, message.campaign, message.credential, job.recipients[0].domain)

    def _pause(self, effect: Effect) -> Wait:
        return Wait(self._seconds(effect.until), f"effect {effect.id}: {effect} ({effect.rule})")

    def _seconds(self, until: datetime) -> float:
        return max(0.0, (until - self._clock()).total_seconds())


def _allowed(charge: Charge, cause: Cause) -> str:
    """What a rate allows, in the words that set it; intervals are a little longer than those say, see `bounds`."""
    if cause.allows:
        return cause.allows
    what = "bytes " if charge.meter.name.endswith(BYTES) else ""
    period, word = next((unit for unit in PERIODS if unit[0] >= charge.interval), PERIODS[-1])
    return f"{float(f'{period / charge.interval:.3g}'):,g} {what}{word}"


def _not_granted(charges: Sequence[Charge]) -> int | None:
    return next((index for index, charge in enumerate(charges) if charge.interval == math.inf), None)


def _slot(booked: float, soonest: float, interval: float) -> tuple[float, float]:
    """When the next queue is looked at, and what is booked after that.

    Where all of `MOST_POSTPONED` is booked, its beginning is booked once more: otherwise all further queues came
    together at its end, and nobody in between.
    """
    slot = booked if soonest <= booked <= soonest + MOST_POSTPONED else soonest
    return slot, slot + interval
