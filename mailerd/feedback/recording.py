"""Acting on reports, each in one transaction: all that follows from it is durable, or nothing is.

A report that comes again, because its sender never saw our 250, finds that everything has happened already. Two that
come at the same time about one message wait for each other.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg

from mailerd import failpoints, metrics
from mailerd.config import Config
from mailerd.delivery.warmup import DayFacts
from mailerd.delivery.warmup_budgets import Key as Book
from mailerd.delivery.warmup_budgets import WarmUpStore
from mailerd.errors import Refused, Unavailable
from mailerd.events import EventStore
from mailerd.feedback.aggregates import AggregateStore
from mailerd.feedback.consequences import (
    Consequences,
    Entry,
    Found,
    of_answer,
    of_bounce,
    of_complaint,
    of_unsubscribe,
)
from mailerd.feedback.dmarc import DmarcReport
from mailerd.feedback.joining import JoinStore, Key, Subject, Trail, choose
from mailerd.feedback.reading import Reported
from mailerd.feedback.relevance import Relevance
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.queue.commit import BAD_DATA, LOST
from mailerd.queue.suppression import GRACE, SuppressionStore
from mailerd.wire.tls_report import Report as TlsReport

TRANSACTIONS = 2  # at once, of a worker's few connections
KEEPING = 1  # of them that keep aggregate reports, which may be large
TRIES = 4  # of a transaction that another one got in the way of
# A host may send mail back sooner than we have recorded that it took it.
LOOKS = 20
LOOK_EVERY = 0.1  # seconds


BY_REPORT = Found()


class Said(StrEnum):
    """What is said of recipients."""

    BOUNCED = "bounced"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    NOTHING = "nothing"  # it is only asked who is meant


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody says of the recipients to whom `trail` leads, named or not.

    `kind`: of an answer that says NOTHING.
    """

    said: Said
    trail: Trail
    reported: tuple[Reported, ...] = ()
    found: Found = BY_REPORT
    feedback_type: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a claim for one recipient."""

    claim: Claim
    subject: Subject
    consequences: Consequences


@dataclass(slots=True)
class Recorded:
    """What a transaction changed. `outcomes` are of all recipients that were found.

    `suppressing`: somebody must not be mailed from now on. `aggregates`: reports that were new.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    suppressing: bool = False
    aggregates: int = 0


Also = Callable[["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", Recorded], Awaitable[None]]


class _Waits(Exception):  # noqa: N818
    """Roll back: a recipient is still in our queue, which may be over in a moment."""


class Recorder:
    """Records what reports say. `book` names the books of warm-up of a domain's mail to a site."""

    def __init__(
        self,
        config: Config,
        pool: "asyncpg.Pool[asyncpg.Record]",
        *,
        suppressions: SuppressionStore,
        unsubscribes: UnsubscribeStore,
        book: Callable[[str, str], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._suppressions = suppressions
        self._unsubscribes = unsubscribes
        self._book = book
        self._clock = clock
        self._joins = JoinStore()
        self._aggregates = AggregateStore(pool)
        self._events = EventStore(pool)
        self._books = WarmUpStore(pool)
        self._slots = asyncio.Semaphore(TRANSACTIONS)
        self._keeping = asyncio.Semaphore(KEEPING)
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What is recorded from now on follows `config`."""
        self._rules = config.suppression
        self._memory = timedelta(seconds=config.retention.events)
        self._relevance = Relevance(config)

    async def record(
        self,
        claims: Sequence[Claim],
        *,
        dmarc: Sequence[DmarcReport] = (),
        tls: Sequence[TlsReport] = (),
        also: Also | None = None,
    ) -> Recorded:
        """Act on all of it in one transaction, with what `also` does at its end; durable when this returns.

        New suppressions hold for whatever is sent from the return on. Raises Unavailable, with nothing changed, while
        the database is away, and Refused for what it cannot hold.
        """

        async def work(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", last: bool) -> Recorded:
            recorded = await self._act(connection, claims, last)
            recorded.aggregates = await self._keep(connection, dmarc, tls)
            if also is not None:
                await also(connection, recorded)
            return recorded

        async with self._keeping if dmarc or tls else nullcontext():
            recorded = await self._in_transaction(work)
        if failpoints.ON:
            failpoints.reached("bounce.after_commit")
        if recorded.suppressing:
            await asyncio.sleep(GRACE)
        return recorded

    async def _in_transaction(
        self, work: Callable[["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", bool], Awaitable[Recorded]]
    ) -> Recorded:
        looks = tries = 0
        while True:
            try:
                async with self._slots, self._pool.acquire() as connection, connection.transaction():
                    recorded = await work(connection, looks == LOOKS)
                    if failpoints.ON:
                        failpoints.reached("bounce.before_commit")
                    return recorded
            except _Waits:
                looks += 1
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                tries += 1
                if tries == TRIES:
                    raise Unavailable("the report could not be recorded") from error
                continue
            except BAD_DATA as error:
                raise Refused(554, "5.6.0", "the report cannot be recorded", name="unstorable") from error
            except (*LOST, asyncpg.InsufficientResourcesError) as error:
                raise Unavailable("the report could not be recorded") from error
            await asyncio.sleep(LOOK_EVERY)

    async def _act(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", claims: Sequence[Claim], last: bool
    ) -> Recorded:
        now = self._clock()
        meant = [
            (claim, await self._joins.find(connection, claim.trail, claim.reported, now - self._memory))
            for claim in claims
        ]
        keys = sorted({key for _, found in meant for key in found})
        recorded = Recorded()
        if not keys:
            return recorded
        await self._joins.lock(connection, keys)
        subjects = {(each.sent.message_id, each.n): each for each in await self._joins.subjects(connection, keys)}
        # Classing words takes a millisecond each, and a report may name a thousand recipients.
        recorded.outcomes = await asyncio.to_thread(self._decide, meant, subjects, now)
        if not last and any(outcome.consequences.what == "waiting" for outcome in recorded.outcomes):
            raise _Waits
        await self._write(connection, recorded, now)
        return recorded

    def _decide(
        self,
        meant: Sequence[tuple[Claim, dict[Key, Reported | None]]],
        subjects: Mapping[Key, Subject],
        now: datetime,
    ) -> list[Outcome]:
        return [
            Outcome(
                claim,
                subject,
                self._consequences(claim, subject, named or choose(claim.reported, subject.address), now),
            )
            for claim, found in meant
            for key, named in found.items()
            if (subject := subjects.get(key)) is not None
        ]

    def _consequences(self, claim: Claim, subject: Subject, said: Reported | None, now: datetime) -> Consequences:
        trust = claim.trail.trust((subject.sent.message_id, subject.n))
        match claim.said:
            case Said.BOUNCED:
                return of_bounce(subject, said, claim.found, now, self._rules, trust)
            case Said.COMPLAINED:
                return of_complaint(subject, claim.feedback_type, claim.found, now, self._rules, trust)
            case Said.UNSUBSCRIBED:
                return of_unsubscribe(subject)
            case _:
                return of_answer(subject, claim.kind, claim.found, now)

    async def _write(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", recorded: Recorded, now: datetime
    ) -> None:
        """Events first: soft bounces are counted by what they tell."""
        all_ = [outcome.consequences for outcome in recorded.outcomes]
        await self._events.append(connection, [each.event for each in all_ if each.event])
        found = sorted((each.suppression for each in all_ if each.suppression), key=lambda each: each.key)
        await self._suppressions.record(found, connection)
        leaving = [(outcome.consequences.subscription, outcome.claim.found.source) for outcome in recorded.outcomes]
        for subscription, source in leaving:
            if subscription is not None:
                await self._unsubscribes.record(subscription, source, connection)
                recorded.suppressing = True
        recorded.suppressing |= bool(found)
        await self._books.add(self._pages([each.entry for each in all_ if each.entry], now), connection)

    def _pages(self, entries: Sequence[Entry], now: datetime) -> list[tuple[Book, DayFacts]]:
        """For today: the days before have been judged."""
        counts = Counter((each.source, self._book(each.domain, each.site), each.outcome) for each in entries)
        books = sorted({(source, book) for source, book, _ in counts})
        return [
            (
                book,
                DayFacts(
                    now.date(),
                    delivered=0,
                    deferred=0,
                    bounced=counts[*book, "bounced"],
                    complained=counts[*book, "complained"],
                ),
            )
            for book in books
        ]

    async def _keep(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        dmarc: Sequence[DmarcReport],
        tls: Sequence[TlsReport],
    ) -> int:
        now = self._clock()
        of_dmarc = [self._relevance.dmarc(report, now) for report in dmarc]
        of_tls = [self._relevance.tls(report, now) for report in tls]
        for _ in range([*of_dmarc, *of_tls].count(None)):
            metrics.report_followed("not_ours")
        kept = [await self._aggregates.add_dmarc(report, now, connection) for report in of_dmarc if report]
        kept += [await self._aggregates.add_tls(report, now, connection) for report in of_tls if report]
        return sum(kept)
