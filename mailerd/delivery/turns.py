"""Slots for work that strangers can make slow: given in turn to the parties that want them, not to who asks most."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Under these and a country, domains are registered one label further down. Not complete: a suffix that is missing makes
# strangers share their turns, nothing else.
SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "id", "ltd", "me", "ne", "net", "nom", "or", "org", "plc")
)


class Turns:
    """`slots` in all, at most `each` held by one party. Parties that wait get one each, round and round."""

    def __init__(self, slots: int, *, each: int) -> None:
        self._free = slots
        self._each = each
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._ready: dict[str, None] = {}  # those waiting who may hold one more, the next one first

    @asynccontextmanager
    async def slot(self, party: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        if self._free and self._held[party] < self._each:
            self._take(party)
        else:
            await self._wait(party)
        try:
            yield
        finally:
            self._give(party)

    async def _wait(self, party: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, deque()).append(turn)
        if self._held[party] < self._each:
            self._ready.setdefault(party)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given at that moment
                self._give(party)
            raise

    def _take(self, party: str) -> None:
        self._free -= 1
        self._held[party] += 1

    def _give(self, party: str) -> None:
        self._free += 1
        self._held[party] -= 1
        if not self._held[party]:
            del self._held[party]
        if party in self._waiting:
            self._ready.setdefault(party)
        while self._free and self._ready:
            self._serve(next(iter(self._ready)))

    def _serve(self, party: str) -> None:
        """Give a slot to the first of the party who has not given up."""
        del self._ready[party]
        queue = self._waiting[party]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                self._take(party)
                break
        if not queue:
            del self._waiting[party]
        elif self._held[party] < self._each:
            self._ready[party] = None


def party_of(name: str) -> str:
    """Who is behind a name, nearly: the domain that was registered (`example.co.uk` of `a.b.example.co.uk`)."""
    labels = name.rsplit(".", 3)
    known = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    return ".".join(labels[-3:] if known else labels[-2:])
