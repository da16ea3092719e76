"""What may leave now on which path, or what it waits for: limits, learnt pace, brakes and warm-up put together.

A *path* is a source and a site. Whoever wants to open a connection or to send a message on it asks here; the answer is
None, or a `Wait` that names the limit, how long it binds, and the file and line it comes from. Counters are shared by
all workers of this node (`ledger`); what is limited over all nodes is shared out among them (`grants`).
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

import structlog

from mailerd.config import Config, Rate
from mailerd.config.shaping import DEFAULT, Limits
from mailerd.config.values import ByteRate
from mailerd.delivery import control
from mailerd.delivery.attempt import Job
from mailerd.delivery.control import Pace
from mailerd.delivery.effects import Effect, Effects
from mailerd.delivery.grants import Grants
from mailerd.delivery.ledger import Charge, Hold, Ledger, Meter
from mailerd.delivery.shaping import Learnt, ProviderLimits, RuleBook
from mailerd.delivery.transaction import Result
from mailerd.delivery.verdict import Kind, Outcome
from mailerd.delivery.warmup_budgets import WarmUps
from mailerd.queue.mail import Queue

log = structlog.get_logger()

MOST_POSTPONED = 300.0  # seconds: then a queue is looked at again, whatever was thought of its path
SPREAD = 60.0  # seconds over which queues come back after a longer wait
LOOKS = 4.0  # times as many queues are looked at as messages leave, on a path that only connections limit,
LEAST_LOOKS = 1_000.0  # but so many a second
MAX_PATHS = 20_000  # known at a time
WISH_AGAIN = 3.0  # seconds: what other nodes want too has to be asked for as long as it is used
LOOK_EVERY = 0.05  # seconds between looks at what other workers made of a path's pace
FLUSH = 0.25  # seconds: deliveries are told to the control loop together
FORGET_LEARNT = 86_400.0  # seconds
BYTES = "#bytes"  # ends the name of a meter that counts them
MANY = 1 << 20  # connections
JITTER = 0.25  # seconds between the moments at which something leaves us and is counted by a receiver,
MOST_JITTER = 0.1  # of a period: more of a short one would cost too much
NOT_GRANTED = 1.0  # seconds after which we look whether other nodes left us a part of what is shared
PATH = re.compile(r"[^> ]*>[^#! ]*")  # a meter that is a path's own
WISH, WISH_FIRST = "!!", "!"  # end the names of meters that count who waits for a connection of another
USE_FOR_MORE = "!more"  # of meters that say when somebody last had mail for more connections than it got
SAID_LATELY = 1.0  # seconds
SCOPES = {
    "per_path": "{path}",
    "per_source": "{path.source} to all of {path.provider}",
    "per_site": "all sources to {path.site}",
    "total": "all sources to {path.provider}",
}
PERIODS = ((1.0, "a second"), (60.0, "a minute"), (3600.0, "an hour"), (86_400.0, "a day"))
THROTTLING = frozenset({Kind.RATE_LIMITED, Kind.SPAM_BLOCK})


class Asked(Enum):
    """What a refusal asks of all mail of the path."""

    NOTHING = "nothing"
    LESS = "less"
    FEWER_CONNECTIONS = "fewer connections"


class Wish(Enum):
    """Who waits for a connection of a path."""

    NONE = 0
    SOME = 1
    FIRST = 2  # mail that goes first


class Wait(NamedTuple):
    """Not now. `seconds` 0: until a connection is freed.

    `alone`: other mail of the same path may go on; `queue`: but none of the same queue. `full`: all of whose
    connections are in use. `elsewhere`: another source of the pool may be asked.
    """

    seconds: float
    why: str
    alone: bool = False
    queue: bool = True
    full: Meter | None = None
    elsewhere: bool = False


class Cause(NamedTuple):
    """What binds, and where it is set: `file:line` or a key of the configuration. `queue`: a whole queue, if any."""

    name: str
    place: str
    queue: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({self.place})"


class Constraint(NamedTuple):
    """One limit of a path, for people: what it allows, how much of it is used, where it is set, until when it waits."""

    name: str
    allows: str
    used: str
    place: str
    waits: float = 0.0  # seconds


@dataclass(eq=False, slots=True)
class Path:
    """What this worker knows of one source at one site."""

    source: str
    site: str
    provider: str
    limits: ProviderLimits
    meter: Meter
    holds: list[Hold] = field(default_factory=list)
    hold_causes: list[Cause] = field(default_factory=list)
    opening: list[Charge] = field(default_factory=list)
    opening_causes: list[Cause] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    paused: Effect | None = None
    pace: Pace = control.START
    known: tuple[int, int, float, int] = (-1, -1, 0.0, 0)  # what the lists above were made of
    looked: float = -math.inf  # when the pace was read
    ends: float = 0.0  # when the first of its effects is over
    delivered: int = 0  # not told to the control loop yet
    flushed: float = 0.0
    booked: float = 0.0  # until then what is in memory and in queues takes the path
    late: float = 0.0  # of the queue that was put off last, behind the end of a long wait
    departed: int = 0
    since: float = 0.0
    rate: float = 0.0  # messages a second of this worker, measured
    most_messages: int | None = None  # of a connection, as the host taught us
    most_recipients: int | None = None
    learnt_at: float = 0.0
    leaving: int = 0  # connections of this worker that say QUIT
    wishes: list[tuple[Meter, Meter]] = field(default_factory=list)  # of each hold: who wants it first, and who at all

    def __str__(self) -> str:
        return f"{self.source or 'this host'} to {self.site}"

    @property
    def book(self) -> str:
        """Under which name its warm-up is kept: the provider's, or its own where it belongs to none."""
        return self.site if self.provider == DEFAULT else self.provider


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
        self._config = config
        self._book = book
        self._ledger = ledger
        self._effects = effects
        self._warmups = warmups
        self._grants = grants
        self._clock = clock
        self._brake = brake
        self._now = monotonic
        self._generation = 0
        self._paths: dict[tuple[str, str, str], Path] = {}
        self._booked: dict[str, float] = {}  # by meter: when the queue that was put off last is looked at again

    def reconfigure(self, config: Config, book: RuleBook) -> None:
        """Take new limits and rules; what was counted stays."""
        self._config = config
        self._book = book
        self._generation += 1
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
        for record in self._ledger.records():
            if PATH.fullmatch(record.name):
                self._ledger.update(self._ledger.meter(record.name), lambda _: control.START.pack())
        for path in self._paths.values():
            path.looked = -math.inf

    def forget(self, path: Path) -> None:
        """No destination uses it any more."""
        self._flush(path)
        if not path.most_messages and not path.most_recipients:
            self._paths.pop((path.source, path.site, path.provider), None)

    # connections

    def connect(self, path: Path) -> Sequence[Hold] | Wait:
        """Take a connection of the path; what was taken is to be given back by `disconnect`."""
        self._renew(path)
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
        self._renew(path)
        return max(0, min(hold.limit - hold.meter.held for hold in path.holds))

    def full(self, path: Path) -> bool:
        """Are all connections that the path may have by itself in use, by whatever worker?"""
        self._renew(path)
        return path.meter.held >= path.holds[0].limit

    def surplus(self, path: Path) -> bool:
        """Are more connections open than are allowed by now?"""
        self._renew(path)
        return any(hold.meter.held - path.leaving > hold.limit for hold in path.holds)

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
        self._renew(path)
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
            meter = self._ledger.meter(wait.full.name + USE_FOR_MORE)
            self._ledger.update(meter, lambda state: (now, *state[1:]))

    def of_use_elsewhere(self, path: Path) -> bool:
        """Did anybody, in whatever worker, say lately that it has mail for an idle connection of this path?"""
        self._renew(path)
        lately = self._now() - SAID_LATELY
        return any(self._ledger.meter(h.meter.name + USE_FOR_MORE).state()[0] > lately for h in path.holds)

    def messages_per_connection(self, path: Path) -> int:
        """By the limit that is set, and by what the host has taught us."""
        self._forget_learnt(path)
        return min(path.most_messages or MANY, path.limits.per_path.messages_per_connection or MANY)

    def recipients_per_transaction(self, path: Path) -> int:
        """By the limit that is set, by what the host has taught us, and by what is left of a warm-up."""
        self._forget_learnt(path)
        left = max(1.0, self._warmups.left(path.source, path.book))
        return int(min(path.most_recipients or MANY, path.limits.per_path.recipients_per_transaction or MANY, left))

    def _forget_learnt(self, path: Path) -> None:
        if self._now() - path.learnt_at > FORGET_LEARNT:
            path.most_messages = path.most_recipients = None

    # messages

    def admit(self, path: Path, job: Job) -> Wait | None:
        """Take what one message needs: None, it may leave now."""
        self._renew(path)
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
        self._renew(path)
        gaps = (charge.interval for charge in path.charges if not charge.meter.name.endswith(BYTES))
        return max((gap for gap in gaps if gap < math.inf), default=0.0)

    def wait_of(self, path: Path) -> Wait | None:
        """What the next message of the path would wait for, without taking anything."""
        self._renew(path)
        if path.paused is not None:
            return self._pause(path.paused)
        if (warming := self.warming(path, 1)) is not None:
            return warming
        refused = self._refused(path.charges, self._ledger.peek)
        return None if refused is None else Wait(refused[1], str(path.causes[refused[0]]))

    def wait_of_queue(self, queue: Queue) -> Wait | None:
        """What all mail of a queue waits for: the rates of its tenant, campaign and domain, and brakes on them."""
        tenant, campaign = _parts(queue.flow)
        if self._effects.any_of_mail:
            for effect in self._effects.of_mail("", "", "", tenant, campaign):
                if effect.kind == "pause":
                    return self._pause(effect)
        charges, causes = self._flow_charges(tenant, campaign)
        if (limits := self._book.of_domain(queue.domain)) is not None:
            self._charge("domain", queue.domain, limits, charges, causes)
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
        interval = self.interval(path) or 1 / max(LOOKS * path.rate, LEAST_LOOKS)
        if wait.seconds > MOST_POSTPONED:  # with an end that is known, or is told
            path.late = (path.late + interval) % SPREAD
            return wait.seconds + path.late
        now = self._now()
        slot, path.booked = _slot(path.booked, now + wait.seconds, interval)
        return max(0.2, slot - now)

    def measure(self, path: Path) -> float:
        """Messages a second that left by this worker lately."""
        now = self._now()
        passed = now - path.since
        if passed >= 0.5:
            path.rate = path.departed / passed if path.rate == 0 else (path.rate + path.departed / passed) / 2
            path.departed = 0
            path.since = now
        return path.rate

    # what came of it

    def note(self, path: Path, results: Sequence[Result], sent: int) -> None:
        """Learn from a transaction's results; `sent` messages went over this connection, this one included."""
        path.departed += 1
        asked: set[Asked] = set()
        for result in results:
            verdict = result.verdict
            if verdict.outcome is Outcome.DELIVERED:
                self._warmups.note(path.source, path.book, "delivered", 1)
                continue
            wants = self._heed(path, result, sent)
            asked.add(wants)
            if wants is not Asked.NOTHING:
                self._warmups.note(path.source, path.book, "deferred", 1)
            elif verdict.outcome is Outcome.BOUNCED:
                self._warmups.note(path.source, path.book, "bounced", 1)
            else:
                self._warmups.spent(path.source, path.book, 1)
        if Asked.FEWER_CONNECTIONS in asked:
            self._change(path, control.after_connection_failure)
        elif Asked.LESS in asked:
            self._change(path, control.after_throttle)
        else:
            path.delivered += 1
            if path.delivered >= path.pace.window or self._now() - path.flushed > FLUSH:
                self._flush(path)

    def refused(self, path: Path, result: Result, *, alone: bool) -> None:
        """A host of the site refused the connection, greeting, EHLO or TLS; or none answered.

        `alone`: no other connection is open. One that is lost among others that work tells nothing.
        """
        self._heed(path, result, 0)
        if alone or result.reply is not None:
            self._change(path, control.after_connection_failure)

    def _change(self, path: Path, change: Callable[[Pace, float], Pace]) -> None:
        self._flush(path)
        if self._config.delivery.control:
            self._update(path, change)

    def _heed(self, path: Path, result: Result, sent: int) -> Asked:
        """React to a refusal by the rules, and say what it asks of all our mail."""
        verdict = result.verdict
        if result.reply is None:
            return Asked.NOTHING  # a connection was lost, or we refused it ourselves: nobody said anything about us
        text = str(verdict)
        learnt = self._book.learn(text)
        if learnt is not None:
            self._learn(path, learnt, sent)
        fewer = Asked.FEWER_CONNECTIONS if learnt is not None and learnt.key == "connections" else None
        if (found := self._book.react(path.provider, result.stage, text)) is not None:
            rule, place = found
            if rule.after is None or self._often(path, rule.id, rule.after.count, rule.after.period):
                now = self._clock()
                narrow = rule.scope == "path"
                value = rule.rate.count / rule.rate.period if rule.rate else float(rule.connections or 0)
                self._brake(
                    Effect(
                        0,
                        rule.effect,
                        path.source,
                        path.provider if not narrow else "",
                        path.site if narrow or path.provider == DEFAULT else "",
                        "",
                        "",
                        value,
                        f"{rule.id}: {text[:200]}",
                        place,
                        now,
                        now + timedelta(seconds=rule.lasts),
                    )
                )
            return fewer or Asked.LESS
        about_mailbox = verdict.enhanced.split(".")[1:2] == ["2"]  # "this user receives too much" says nothing of us
        if verdict.outcome is Outcome.DEFERRED and (verdict.kind in THROTTLING or verdict.code == 421):
            return Asked.NOTHING if about_mailbox else fewer or Asked.LESS
        return Asked.NOTHING

    def _learn(self, path: Path, learnt: Learnt, sent: int) -> None:
        """A host said what is too much; a day later we try again."""
        if learnt.key == "messages_per_connection":
            path.most_messages = max(1, min(path.most_messages or MANY, learnt.limit or max(1, sent - 1)))
        elif learnt.key == "recipients_per_transaction":
            half = max(1, self.recipients_per_transaction(path) // 2)
            path.most_recipients = max(1, learnt.limit or half)
        path.learnt_at = self._now()

    def _often(self, path: Path, rule: str, count: int, period: float) -> bool:
        """Has it happened `count` times within the period, counted over all workers of this node?"""
        now = self._now()
        seen = 0.0

        def one_more(state: tuple[float, ...]) -> tuple[float, ...]:
            nonlocal seen
            begun, number, *rest = state
            if now - begun > period:
                begun, number = now, 0.0
            seen = number + 1
            return (begun, seen, *rest)

        self._ledger.update(self._ledger.meter(f"rule {rule} {path.source}>{path.provider}"), one_more)
        return seen >= count

    # for people

    def constraints(self, path: Path) -> list[Constraint]:
        """Everything that limits the path now."""
        self._renew(path)
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
        left = self._warmups.left(path.source, path.book)
        if left != math.inf:
            found.append(Constraint("warm-up", f"{left:.0f} recipients left", "", f"sources.{path.source}.warmup"))
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
        charges, causes = self._mail_charges(tenant, campaign, credential, domain)
        return found + [self._rate(charge, cause, now) for charge, cause in zip(charges, causes, strict=True)]

    def _rate(self, charge: Charge, cause: Cause, now: float) -> Constraint:
        if charge.interval == math.inf:
            return Constraint(cause.name, "nothing until other nodes leave a part", "", cause.place, NOT_GRANTED)
        refused = self._ledger.peek([charge], now)
        what = "bytes " if charge.meter.name.endswith(BYTES) else ""
        period, word = next((unit for unit in PERIODS if unit[0] >= charge.interval), PERIODS[-1])
        allows = f"{period / charge.interval:,.5g} {what}{word}"
        return Constraint(cause.name, allows, "", cause.place, refused[1] if refused else 0.0)

    # what is behind it

    def _renew(self, path: Path) -> None:
        """Make the path's holds and charges anew when something they rest on has changed."""
        now = self._now()
        if self._config.delivery.control and now - path.looked > LOOK_EVERY:
            path.pace = Pace.unpack(path.meter.state(), now)
            path.looked = now
        known = (
            self._effects.generation,
            self._generation + self._grants.generation,
            _rounded(path.pace.interval) if self._config.delivery.control else 0.0,
            path.pace.connections(MANY) if self._config.delivery.control else MANY,
        )
        if known != path.known or path.ends <= now:
            path.known = known
            self._make(path)

    def _make(self, path: Path) -> None:
        clock, now = self._clock(), self._now()
        effects = [e for e in self._effects.of_path(path.source, path.provider, path.site) if e.until > clock]
        path.ends = min((now + (e.until - clock).total_seconds() for e in effects), default=math.inf)
        if not self._grants.alone():
            path.ends = min(path.ends, now + WISH_AGAIN)
        path.paused = next((effect for effect in effects if effect.kind == "pause"), None)
        limits = path.limits
        path.holds, path.hold_causes = [], []
        path.opening, path.opening_causes = [], []
        path.charges, path.causes = [], []
        # The pace of the path's own meter: the slowest of its limit, the brakes and what was learnt.
        _, _, interval, window = path.known
        allowed = [(window, Cause("connections learnt from its replies", "delivery.control"))]
        slowest = [(interval, Cause("rate learnt from its replies", "delivery.control"))]
        for effect in effects:
            cause = Cause(f"effect {effect.id}: {effect}", effect.rule)
            if effect.kind == "connections":
                allowed.append((max(1, int(effect.value)), cause))
            elif effect.kind == "slow" and effect.value > 0:
                slowest.append((1 / effect.value, cause))
        if limits.per_path.connections is not None:
            allowed.append((limits.per_path.connections, self._cause(path, "per_path", "connections")))
        if limits.per_path.message_rate is not None:
            slowest.append((_interval(limits.per_path.message_rate), self._cause(path, "per_path", "message_rate")))
        most, cause = min(allowed, key=lambda each: each[0])
        path.holds.append(Hold(path.meter, most))
        path.hold_causes.append(cause)
        gap, cause = max(slowest, key=lambda each: each[0])
        if gap > 0:
            path.charges.append(Charge(path.meter, gap))
            path.causes.append(cause)
        self._add(path, "per_path", str(path.meter.name), own=False)
        self._add(path, "per_source", f"{path.source}@{path.provider}", own=True)
        self._add(path, "per_site", f"site {path.site}", own=True, shared=True)
        self._add(path, "total", f"provider {path.provider}", own=True, shared=True)
        names = [hold.meter.name for hold in path.holds]
        path.wishes = [(self._ledger.meter(name + WISH_FIRST), self._ledger.meter(name + WISH)) for name in names]

    def _add(self, path: Path, scope: str, name: str, *, own: bool, shared: bool = False) -> None:
        """The limits of one scope, counted by meters of that name; `shared`: over all nodes."""
        limits: Limits = getattr(path.limits, scope)
        if own and limits.connections is not None:
            most = self._grants.connections(name, limits.connections) if shared else limits.connections
            path.holds.append(Hold(self._ledger.meter(name), most))
            path.hold_causes.append(self._cause(path, scope, "connections"))
        if limits.connection_rate is not None:
            gap = self._gap(f"{name}#open", limits.connection_rate, shared=shared)
            path.opening.append(Charge(self._ledger.meter(f"{name}#open"), gap))
            path.opening_causes.append(self._cause(path, scope, "connection_rate"))
        if own and limits.message_rate is not None:
            gap = self._gap(f"{name}#messages", limits.message_rate, shared=shared)  # connections are shared as `name`
            path.charges.append(Charge(self._ledger.meter(name), gap))
            path.causes.append(self._cause(path, scope, "message_rate"))
        if limits.byte_rate is not None:
            gap = self._gap(f"{name}{BYTES}", limits.byte_rate, shared=shared)
            path.charges.append(Charge(self._ledger.meter(f"{name}{BYTES}"), gap))
            path.causes.append(self._cause(path, scope, "byte_rate"))

    def _gap(self, name: str, rate: Rate | ByteRate, *, shared: bool) -> float:
        """Seconds between two units, on this node; inf while it has no part of what is shared."""
        share = self._grants.share(name) if shared else 1.0
        if share == 0:
            return math.inf
        # Whole units in the period: the nodes' windows must not add up to more.
        units = share * _count(rate)
        return _period(rate) / (math.floor(units + 1e-9) or units)

    def _refused(
        self, charges: Sequence[Charge], ask: Callable[[Sequence[Charge], float], tuple[int, float] | None]
    ) -> tuple[int, float] | None:
        """Which of the charges makes us wait longest, and for how long; `ask`: to take or to peek."""
        if not charges:
            return None
        if (index := _not_granted(charges)) is not None:
            return index, NOT_GRANTED
        return ask(charges, self._now())

    def _cause(self, path: Path, scope: str, key: str) -> Cause:
        name = f"{SCOPES[scope].format(path=path)}: {key.replace('_', ' ')}"
        return Cause(name, self._book.place(path.provider, scope, key))

    def _own_charges(self, path: Path, job: Job) -> tuple[list[Charge], list[Cause]] | Wait:
        """The rates that only this message's tenant, campaign, credential and domain have."""
        message = job.message
        if self._effects.any_of_mail:
            for effect in self._effects.of_mail(
                path.source, path.provider, path.site, message.tenant, message.campaign
            ):
                if effect.kind == "pause":
                    return self._pause(effect)._replace(alone=True)
        return self._mail_charges(message.tenant, message.campaign, message.credential, job.recipients[0].domain)

    def _mail_charges(
        self, tenant: str, campaign: str, credential: str, domain: str
    ) -> tuple[list[Charge], list[Cause]]:
        charges, causes = self._flow_charges(tenant, campaign)
        for kind, name, limits in (
            ("credential", credential, self._book.of_credential(credential)),
            ("domain", domain, self._book.of_domain(domain)),
        ):
            if limits is not None:
                self._charge(kind, name, limits, charges, causes)
        return charges, causes

    def _flow_charges(self, tenant: str, campaign: str) -> tuple[list[Charge], list[Cause]]:
        charges: list[Charge] = []
        causes: list[Cause] = []
        if (limits := self._book.of_tenant(tenant)) is not None:
            self._charge("tenant", tenant, limits, charges, causes)
        if campaign and (limits := self._book.of_campaign(campaign)) is not None:
            self._charge("campaign", campaign, limits, charges, causes)
        return charges, causes

    def _charge(self, kind: str, name: str, limits: Limits, charges: list[Charge], causes: list[Cause]) -> None:
        meter = f"{kind} {name}"
        for key, rate, suffix in (("message_rate", limits.message_rate, ""), ("byte_rate", limits.byte_rate, BYTES)):
            if rate is not None:
                gap = self._gap(meter + suffix, rate, shared=True)
                charges.append(Charge(self._ledger.meter(meter + suffix), gap))
                place = self._book.place(name, kind, key)
                causes.append(Cause(f"{key.replace('_', ' ')} of {meter}", place, kind != "credential"))

    def _pause(self, effect: Effect) -> Wait:
        return Wait(self._seconds(effect.until), f"effect {effect.id}: {effect} ({effect.rule})")

    def _seconds(self, until: datetime) -> float:
        return max(0.0, (until - self._clock()).total_seconds())

    def _flush(self, path: Path) -> None:
        """Tell the control loop what was delivered."""
        count, path.delivered = path.delivered, 0
        path.flushed = self._now()
        if count and self._config.delivery.control:
            limit = path.limits.per_path.connections or path.limits.per_site.connections or MANY
            busy = path.meter.held >= path.pace.connections(limit)
            self._update(path, lambda pace, now: control.after_delivery(pace, count, now, limit=limit, busy=busy))

    def _update(self, path: Path, change: Callable[[Pace, float], Pace]) -> None:
        now = self._now()
        state = self._ledger.update(path.meter, lambda state: change(Pace.unpack(state, now), now).pack())
        path.pace = Pace.unpack(state, now)
        path.looked = now


def _interval(rate: Rate | ByteRate) -> float:
    return _period(rate) / _count(rate)


def _period(rate: Rate | ByteRate) -> float:
    """A little longer than it is: what we send evenly may be held up on its way, and arrive together."""
    return rate.period + min(JITTER, MOST_JITTER * rate.period)


def _count(rate: Rate | ByteRate) -> int:
    return rate.count if isinstance(rate, Rate) else rate.size


def _not_granted(charges: Sequence[Charge]) -> int | None:
    return next((index for index, charge in enumerate(charges) if charge.interval == math.inf), None)


def _rounded(interval: float) -> float:
    """In steps of 3 %, upwards: a pace moves with every reply, and what rests on it need not."""
    return 1.03 ** math.ceil(math.log(interval, 1.03)) if interval > 0 else 0.0


def _slot(booked: float, soonest: float, interval: float) -> tuple[float, float]:
    """When the next queue is looked at, and what is booked after that.

    Where all of `MOST_POSTPONED` is booked, its beginning is booked once more: otherwise all further queues came
    together at its end, and nobody in between.
    """
    slot = booked if soonest <= booked <= soonest + MOST_POSTPONED else soonest
    return slot, slot + interval


def _parts(flow: str) -> tuple[str, str]:
    """Tenant and campaign of a flow's name."""
    tenant, _, campaign = flow.partition("!")[0].partition(":")
    return tenant, campaign
