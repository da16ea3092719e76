"""What replies teach: the control loop's pace, limits of the host that we met, and brakes by the rules."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import Enum

from mailerd.config import Config, Rate
from mailerd.config.shaping import DEFAULT, ReplyRule
from mailerd.delivery import control
from mailerd.delivery.bounds import MANY
from mailerd.delivery.control import Pace
from mailerd.delivery.effects import Effect
from mailerd.delivery.ledger import Ledger
from mailerd.delivery.paths import Path, of_meter
from mailerd.delivery.shaping import Learnt, RuleBook
from mailerd.delivery.transaction import Result
from mailerd.delivery.verdict import Kind, Outcome
from mailerd.delivery.warmup_budgets import WarmUps

FLUSH = 0.25  # seconds: deliveries are told to the control loop together
FORGET_LEARNT = 86_400.0  # seconds
FORGET_GUESSED = 3_600.0  # seconds: one recipient's own limit looks the same as that of a host
LEAST_GUESSED = 10  # recipients of a transaction; fewer only if the host says how many
THROTTLING = frozenset({Kind.RATE_LIMITED, Kind.SPAM_BLOCK})


class Asked(Enum):
    """What a refusal asks of all mail of the path."""

    NOTHING = "nothing"
    LESS = "less"
    FEWER_CONNECTIONS = "fewer connections"


class Lessons:
    """Listens to the results of one worker. `brake` lets an effect hold; `crowded`: sites of strangers get no more."""

    def __init__(
        self,
        config: Config,
        book: RuleBook,
        *,
        ledger: Ledger,
        warmups: WarmUps,
        clock: Callable[[], datetime],
        brake: Callable[[Effect], None],
        crowded: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._book = book
        self._ledger = ledger
        self._warmups = warmups
        self._clock = clock
        self._brake = brake
        self._crowded = crowded
        self._now = monotonic

    def reconfigure(self, config: Config, book: RuleBook) -> None:
        """Other rules."""
        self._config = config
        self._book = book

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
                self.flush(path)

    def refused(self, path: Path, result: Result, *, alone: bool) -> None:
        """A host of the site refused the connection, greeting, EHLO or TLS; or none answered.

        `alone`: no other connection is open. One that is lost among others that work tells nothing.
        """
        self._heed(path, result, 0)
        if alone or result.reply is not None:
            self._change(path, control.after_connection_failure)

    def _change(self, path: Path, change: Callable[[Pace, float], Pace]) -> None:
        self.flush(path)
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
            self._obey(path, *found, text)
            return fewer or Asked.LESS
        about_mailbox = verdict.enhanced.split(".")[1:2] == ["2"]  # "this user receives too much" says nothing of us
        if verdict.outcome is Outcome.DEFERRED and (verdict.kind in THROTTLING or verdict.code == 421):
            return Asked.NOTHING if about_mailbox else fewer or Asked.LESS
        return Asked.NOTHING

    def _obey(self, path: Path, rule: ReplyRule, place: str, text: str) -> None:
        """Let the rule's effect hold, if it has been set off often enough."""
        narrow = rule.scope == "path" or path.provider == DEFAULT
        where = path.site if narrow else path.provider
        if rule.after is not None and not self._often(f"{rule.id} {path.source}>{where}", rule.after):
            return
        if path.provider == DEFAULT and self._crowded():
            return  # the control loop slows it down all the same
        now = self._clock()
        self._brake(
            Effect(
                id=0,
                kind=rule.effect,
                source=path.source,
                provider="" if narrow else path.provider,
                site=path.site if narrow else "",
                tenant="",
                campaign="",
                value=rule.rate.count / rule.rate.period if rule.rate else float(rule.connections or 0),
                reason=f"{rule.id}: {text[:200]}",
                rule=place,
                since=now,
                until=now + timedelta(seconds=rule.lasts),
            )
        )

    def _learn(self, path: Path, learnt: Learnt, sent: int) -> None:
        """A host said what is too much; a day later we try again, or an hour, if it did not say how much may be."""
        if learnt.key == "messages_per_connection":
            path.most_messages = max(1, min(path.most_messages or MANY, learnt.limit or max(1, sent - 1)))
        elif learnt.key == "recipients_per_transaction":
            most = min(path.most_recipients or MANY, path.limits.per_path.recipients_per_transaction or MANY)
            if learnt.limit is None and path.guessed_at is None:
                path.guessed_at = self._now()
            path.most_recipients = learnt.limit or max(min(LEAST_GUESSED, most), most // 2)
        path.learnt_at = self._now()

    def forget_old(self, path: Path) -> None:
        """What a host taught us is tried anew after a day; what it made us guess, an hour after the first time."""
        if path.most_messages is None and path.most_recipients is None:
            return
        if path.guessed_at is not None and self._now() - path.guessed_at > FORGET_GUESSED:
            path.guessed_at = path.most_recipients = None
        if self._now() - path.learnt_at > FORGET_LEARNT:
            path.most_messages = path.most_recipients = None

    def forgive(self, paths: Iterable[Path]) -> None:
        """Forget what the control loop made of failures, on whatever path of this node; `paths`: those in use."""
        for record in self._ledger.records():
            if of_meter(record.name) is not None:
                self._ledger.update(self._ledger.meter(record.name), lambda _: control.START.pack())
        for path in paths:
            path.looked = -math.inf

    def _often(self, what: str, after: Rate) -> bool:
        """Has it happened so many times within the period, counted over all workers of this node?"""
        now = self._now()
        seen = 0.0

        def one_more(state: tuple[float, ...]) -> tuple[float, ...]:
            nonlocal seen
            begun, number, *rest = state
            if now - begun > after.period:
                begun, number = now, 0.0
            seen = number + 1
            return (begun, seen, *rest)

        self._ledger.update(self._ledger.meter(f"rule {what}"), one_more)
        return seen >= after.count

    def flush(self, path: Path) -> None:
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
