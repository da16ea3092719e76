"""Events for the endpoints that are behind, read once for all that stand near each other.

Those that have room gather in *cohorts*: a cohort reads on from where its last one stands and offers each page to all
of its endpoints, so others join in as it passes them. Who is full leaves and gathers again when it has room; who has
come to the end goes over to the feed. There are few cohorts, each reads a page in turn, and those that come near each
other are made one: however many endpoints are behind, the events are read a few times, and one that is far behind does
not hold up one that is not.
"""

import asyncio
from dataclasses import dataclass, field

import structlog

from mailerd.events import Position
from mailerd.feedback.follower_locks import TROUBLE
from mailerd.feedback.webhooks.endpoint import Endpoint
from mailerd.feedback.webhooks.feed import AGAIN, PAGE, Feed, wanted_by

log = structlog.get_logger()

FIRST_PAGE = 250  # events: most of those behind are full soon
GROWTH = 2  # of the next page
MOST_COHORTS = 4
NEAR = 5_000  # transactions: closer than that they are one cohort


@dataclass(slots=True, eq=False)
class Cohort:
    """All members have read what stands before and at `position`, some of them more."""

    position: Position
    members: set[Endpoint] = field(default_factory=set)
    page: int = FIRST_PAGE


class CatchingUp:
    """`add` an endpoint that is behind and has room; when it is full it has to be added again."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._cohorts: list[Cohort] = []
        self._waiting: set[Endpoint] = set()
        self._wake = asyncio.Event()

    def add(self, endpoint: Endpoint) -> None:
        if not any(endpoint in cohort.members for cohort in self._cohorts):
            self._waiting.add(endpoint)
            self._wake.set()

    def leave(self, endpoint: Endpoint) -> None:
        self._waiting.discard(endpoint)
        for cohort in self._cohorts:
            cohort.members.discard(endpoint)

    async def run(self) -> None:
        while True:
            self._wake.clear()
            self._gather()
            if not self._cohorts:
                await self._wake.wait()
                continue
            for cohort in tuple(self._cohorts):
                try:
                    await self._read(cohort)
                except TROUBLE as error:
                    log.warning("webhooks.interrupted", error=str(error) or type(error).__name__)
                    await asyncio.sleep(AGAIN)

    def _gather(self) -> None:
        self._cohorts = sorted((cohort for cohort in self._cohorts if cohort.members), key=lambda one: one.position)
        for lower, upper in zip(self._cohorts[-2::-1], self._cohorts[:0:-1], strict=True):
            if upper.position.txid - lower.position.txid <= NEAR:
                lower.members |= upper.members
                upper.members = set()
        self._cohorts = [cohort for cohort in self._cohorts if cohort.members]
        for endpoint in sorted(self._waiting, key=lambda one: one.read):
            if not endpoint.hungry:
                self._waiting.discard(endpoint)
            elif cohort := self._cohort_for(endpoint.read):
                self._waiting.discard(endpoint)
                cohort.members.add(endpoint)

    def _cohort_for(self, read: Position) -> Cohort | None:
        """The nearest that will come by there; None: all are past it, and there may be no more of them."""
        before = [cohort for cohort in self._cohorts if cohort.position <= read]
        nearest = max(before, key=lambda one: one.position, default=None)
        if nearest is not None and read.txid - nearest.position.txid <= NEAR:
            return nearest
        if len(self._cohorts) < MOST_COHORTS:
            self._cohorts.append(Cohort(read))
            return self._cohorts[-1]
        return nearest

    async def _read(self, cohort: Cohort) -> None:
        async with self._feed.reading:
            self._drop_strays(cohort, cohort.position)
            if not cohort.members:
                return
            position = min(endpoint.read for endpoint in cohort.members)
            asked = {endpoint: endpoint.webhook for endpoint in cohort.members}
            page, offers = await self._feed.look(position, wanted_by(asked), cohort.page)
            self._drop_strays(cohort, position)
            end = page.position if page.more else max(page.position, self._feed.head)  # there is none between them
            for endpoint, webhook in asked.items():
                if endpoint not in cohort.members:
                    continue
                if endpoint.webhook is not webhook:  # it may want something else than was asked for
                    self._stray(cohort, endpoint)
                elif endpoint.read <= end and not endpoint.offer(offers.get(endpoint, []), end):
                    cohort.members.discard(endpoint)  # it is full
                elif not page.more or self._feed.reaches(endpoint):
                    cohort.members.discard(endpoint)
                    self._feed.take_in(endpoint, end)
            cohort.position, cohort.page = end, min(PAGE, cohort.page * GROWTH)

    def _drop_strays(self, cohort: Cohort, position: Position) -> None:
        """Those that went back meanwhile, or have no room left, are for another cohort."""
        for endpoint in [one for one in cohort.members if one.read < position or one.in_step or one.window.disable]:
            self._stray(cohort, endpoint)

    def _stray(self, cohort: Cohort, endpoint: Endpoint) -> None:
        cohort.members.discard(endpoint)
        self._waiting.add(endpoint)
        self._wake.set()
