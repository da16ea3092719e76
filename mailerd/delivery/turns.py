"""Slots for work that strangers can make slow: given in turn to the parties that want them, not to who asks most."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# Under these and a country, domains are registered one label further down. Not complete: a suffix that is missing makes
# strangers share their turns, nothing else.
SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "id", "ltd", "me", "ne", "net", "nom", "or", "org", "plc")
)

LATE = 0.01  # seconds that a timer may be late where this process does all it has to do in time
LOOKS = 8  # whether it does: then the work is taken for slow whoever is to blame


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


class Starts:
    """Lets `at_once` pieces of work begin, and another one when one of them has ended, or is slow through others.

    Who waits for a stranger that keeps silent takes no time of this process, and must hold up nobody. Where this
    process is what is slow, beginning more would only make everything later.
    """

    def __init__(self, at_once: int, *, slow: float) -> None:
        """`slow`: seconds."""
        self._free = at_once
        self._slow = slow
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def begin(self, *, first: bool) -> Callable[[], None]:
        """Wait for a turn (`first`: before all others that wait); to be called when the work has ended."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(first=first)
        return _Start(self._give, self._slow).end

    async def _wait(self, *, first: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._first if first else self._others).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given at that moment
                self._give()
            raise

    def _give(self) -> None:
        while waiting := self._first or self._others:
            if not (turn := waiting.popleft()).done():
                turn.set_result(None)
                return
        self._free += 1


class _Start:
    """A turn that is over at its end, or when it has been slow for `slow` seconds while this process was not."""

    def __init__(self, give: Callable[[], None], slow: float) -> None:
        self._give = give
        self._slow = slow
        self._looks = LOOKS
        self._over = False
        self._look_later()

    def end(self) -> None:
        self._timer.cancel()
        if not self._over:
            self._over = True
            self._give()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._slow
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._looks -= 1
        if self._looks and asyncio.get_running_loop().time() > self._due + LATE:
            self._look_later()
        else:
            self.end()


def party_of(name: str) -> str:
    """Who is behind a name, nearly: the domain that was registered (`example.co.uk` of `a.b.example.co.uk`)."""
    labels = name.rsplit(".", 3)
    known = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    return ".".join(labels[-3:] if known else labels[-2:])
