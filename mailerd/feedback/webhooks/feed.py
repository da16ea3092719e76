"""Events as they come, read once for all endpoints that keep up."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import structlog

from mailerd.events import START, EventStore, Page, Position
from mailerd.feedback.facts import FactStore
from mailerd.feedback.follower_locks import TROUBLE
from mailerd.feedback.names import inside
from mailerd.feedback.webhooks.bodies import Item, item_of
from mailerd.feedback.webhooks.endpoint import Endpoint

log = structlog.get_logger()

POLL = 0.25  # seconds between looks when all was read
AGAIN = 1.0  # seconds after trouble
PAGE = 1_000  # events

Wanted = dict[tuple[str, str], list[Endpoint]]  # by tenant and type inside
Offers = dict[Endpoint, list[Item]]


class Feed:
    """`take_in` an endpoint that has read everything; from then on it is offered what comes.

    `reading` is held while a page is read and handed out, by whoever reads: between two pages `head` stands still.
    """

    def __init__(self, events: EventStore, facts: FactStore) -> None:
        self._events = events
        self._facts = facts
        self.reading = asyncio.Lock()
        self.head = START  # all events before and at it were handed out
        self._members: set[Endpoint] = set()
        self._wanted: Wanted = {}
        self._stale = False
        self._wake = asyncio.Event()

    def reaches(self, endpoint: Endpoint) -> bool:
        """Has it read all that was handed out?"""
        return bool(self._members) and endpoint.read >= self.head

    def take_in(self, endpoint: Endpoint, end: Position) -> None:
        """To be called while `reading` is held. The endpoint has read up to `end`, and all that was handed out."""
        if not self._members:
            self.head = end
        endpoint.in_step = True
        self._members.add(endpoint)
        self._stale = True
        self._wake.set()

    def leave(self, endpoint: Endpoint) -> None:
        self._members.discard(endpoint)
        self._stale = True

    async def run(self) -> None:
        while True:
            self._wake.clear()
            more = False
            try:
                async with self.reading:
                    self._refresh()
                    if self._members:
                        more = await self._read()
            except TROUBLE as error:
                log.warning("webhooks.interrupted", error=str(error) or type(error).__name__)
                await asyncio.sleep(AGAIN)
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL if self._members else None):
                        await self._wake.wait()

    def _refresh(self) -> None:
        """Between two pages: forget who fell behind."""
        if any(not endpoint.in_step for endpoint in self._members):
            self._members = {endpoint for endpoint in self._members if endpoint.in_step}
            self._stale = True
        if self._stale:
            self._wanted = wanted_by(self._members)
            self._stale = False

    async def _read(self) -> bool:
        page, offers = await self.look(self.head, self._wanted, PAGE)
        if page.position == self.head:
            return False
        self.head = page.position
        for endpoint in self._members:
            if endpoint.in_step:
                endpoint.offer(offers.get(endpoint, []), page.position)
        return page.more

    async def look(self, position: Position, wanted: Wanted, limit: int) -> tuple[Page, Offers]:
        """Of the next `limit` events behind `position`, which endpoint wants what."""
        tenants = {tenant for tenant, _ in wanted}
        page = await self._events.after(
            position,
            limit=limit,
            types=sorted({type_ for _, type_ in wanted}),
            tenant=next(iter(tenants)) if len(tenants) == 1 else None,
        )
        return page, await self._sorted(page, wanted)

    async def _sorted(self, page: Page, wanted: Wanted) -> Offers:
        events = [each for each in page.events if (each.event.tenant, each.event.type) in wanted]
        facts = await self._facts.of(events) if events else {}
        offers: Offers = {}
        for each in events:
            if (item := item_of(each, facts.get(each.event.message_id))) is None:
                continue
            for endpoint in wanted[each.event.tenant, each.event.type]:
                if endpoint.webhook.wants(item.type, item.stream):
                    offers.setdefault(endpoint, []).append(item)
        return offers


def wanted_by(endpoints: Iterable[Endpoint]) -> Wanted:
    """Who wants which events."""
    wanted: Wanted = {}
    for endpoint in endpoints:
        for type_ in inside(endpoint.webhook.events):
            wanted.setdefault((endpoint.webhook.tenant, type_), []).append(endpoint)
    return wanted
