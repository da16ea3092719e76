"""A sender with a backlog that never ends, and receivers that throttle it, in simulated time."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from mailerd.delivery.control import START, Pace, after_connection_failure, after_delivery, after_throttle

CONNECT = 0.15  # seconds until a connection is ready or refused
REPLY = (0.2, 0.4)  # seconds a message takes when it is accepted
REFUSAL = 0.1  # seconds when it is not
RECONNECT = 5.0  # seconds before a refused connection is tried again, for every sender
BIN = 60.0  # seconds of one figure of an outcome
REFUSALS_WATCHED = 60.0  # seconds in which a receiver counts what it refuses
MINUTE, HOUR = 60.0, 3600.0


@dataclass
class Receiver:
    """A hidden token bucket, a hidden number of connections, and what becomes of those who do not listen.

    `rate` and `connections` are functions of the time in seconds; `shut` says when everybody is sent away with 421.
    Who is refused more than `patience` times within a minute is sent away for `penalty` seconds, and then judged anew.
    """

    rate: Callable[[float], float] = lambda _: inf
    connections: Callable[[float], float] = lambda _: inf
    shut: Callable[[float], bool] = lambda _: False
    burst: float = 10.0  # seconds of `rate`
    patience: float = inf
    penalty: float = 0.0
    _tokens: float = inf
    _filled: float = 0.0
    _open: int = 0
    _sent_away_until: float = 0.0
    _refused: deque[float] = field(default_factory=deque)

    def connect(self, now: float) -> bool:
        if self._away(now) or self._open >= self.connections(now):
            self._refuse(now)
            return False
        self._open += 1
        return True

    def disconnect(self) -> None:
        self._open -= 1

    def keeps(self, now: float) -> bool:
        """Whether a connection is still welcome before its next message."""
        if self._open <= self.connections(now):
            return True
        self._refuse(now)
        return False

    def message(self, now: float) -> bool:
        rate = self.rate(now)
        refilled = self._tokens + (now - self._filled) * rate if rate < inf else inf
        self._tokens, self._filled = min(rate * self.burst, refilled), now
        if self._tokens < 1 or self._away(now):
            self._refuse(now)
            return False
        self._tokens -= 1
        return True

    def _away(self, now: float) -> bool:
        return now < self._sent_away_until or self.shut(now)

    def _refuse(self, now: float) -> None:
        if now < self._sent_away_until:
            return
        self._refused.append(now)
        while self._refused[0] < now - REFUSALS_WATCHED:
            self._refused.popleft()
        if len(self._refused) > self.patience:
            self._refused.clear()
            self._sent_away_until = now + self.penalty


class Sender(Protocol):
    """How many connections and how fast; it hears what becomes of them."""

    def connections(self, now: float) -> int: ...
    def interval(self, now: float) -> float: ...
    def delivered(self, now: float) -> None: ...
    def throttled(self, now: float) -> None: ...
    def refused(self, now: float) -> None: ...


@dataclass
class Fixed:
    """Limits somebody wrote into a file."""

    rate: float  # messages a second
    most: int = 20  # connections

    def connections(self, now: float) -> int:
        return self.most

    def interval(self, now: float) -> float:
        return 1 / self.rate

    def delivered(self, now: float) -> None: ...
    def throttled(self, now: float) -> None: ...
    def refused(self, now: float) -> None: ...


@dataclass
class FixedWithBrake(Fixed):
    """Fixed limits and the usual rule: at the first refusal 1/min on one connection for a while, then back at once."""

    lasts: float = 90 * MINUTE  # KumoMTA's shipped default for "rate limited" and "try again later"
    until: float = 0.0

    def connections(self, now: float) -> int:
        return 1 if now < self.until else self.most

    def interval(self, now: float) -> float:
        return MINUTE if now < self.until else 1 / self.rate

    def throttled(self, now: float) -> None:
        self.until = max(self.until, now + self.lasts)

    refused = throttled


@dataclass
class Adaptive:
    """`mailerd.delivery.control`."""

    most: int = 20
    pace: Pace = START

    def connections(self, now: float) -> int:
        return self.pace.connections(self.most)

    def interval(self, now: float) -> float:
        return self.pace.interval

    def delivered(self, now: float) -> None:
        self.pace = after_delivery(self._now(now), 1, now, limit=self.most, busy=True)

    def throttled(self, now: float) -> None:
        self.pace = after_throttle(self._now(now), now)

    def refused(self, now: float) -> None:
        self.pace = after_connection_failure(self._now(now), now)

    def _now(self, now: float) -> Pace:
        return Pace.unpack(self.pace.pack(), now)


@dataclass
class Outcome:
    """What the receiver saw; lists have one figure for each minute."""

    accepted: list[int]
    deferred: list[int]
    refused: list[int]  # connections
    most_connections: int = 0

    @classmethod
    def of(cls, seconds: float) -> "Outcome":
        bins = int(seconds / BIN) + 1
        return cls([0] * bins, [0] * bins, [0] * bins)


class Simulation:
    """One sender and one receiver; deferred mail is somebody else's after that, since the backlog does not end."""

    def __init__(self, receiver: Receiver, sender: Sender, *, seed: int = 1) -> None:
        self._receiver = receiver
        self._sender = sender
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._slots = 0  # connections open, being opened, or waiting to be tried again
        self._open = 0
        self._ready: deque[float] = deque()  # connections without a message
        self._next = 0.0  # when the next message may start

    def run(self, seconds: float) -> Outcome:
        self._outcome = Outcome.of(seconds)
        self._at(0.0, self._steer)
        while self._events and self._events[0][0] < seconds:
            now, _, event = heappop(self._events)
            event(now)
        return self._outcome

    def _at(self, time: float, event: Callable[[float], None]) -> None:
        self._count += 1
        heappush(self._events, (time, self._count, event))

    def _steer(self, now: float) -> None:
        """Looked at once a second, as if the configuration or a clock had changed something."""
        self._fill(now)
        self._at(now + 1.0, self._steer)

    def _fill(self, now: float) -> None:
        """Open what may be open, close what may not, start what may start."""
        allowed = self._sender.connections(now)
        while self._slots < allowed:
            self._slots += 1
            self._at(now + CONNECT, self._connected)
        while self._ready and self._slots > allowed:
            self._ready.popleft()
            self._close()
        while self._ready and self._next <= now:
            self._ready.popleft()
            self._next = now + self._sender.interval(now)
            self._begin(now)
        if self._ready:
            self._at(self._next, self._start)

    def _start(self, now: float) -> None:
        if self._ready and self._next <= now:
            self._fill(now)

    def _connected(self, now: float) -> None:
        if self._receiver.connect(now):
            self._open += 1
            self._outcome.most_connections = max(self._outcome.most_connections, self._open)
            self._ready.append(now)
            self._fill(now)
        else:
            self._refused(now)

    def _refused(self, now: float) -> None:
        self._outcome.refused[int(now / BIN)] += 1
        self._sender.refused(now)
        self._at(now + RECONNECT, self._slot_free)

    def _slot_free(self, now: float) -> None:
        self._slots -= 1
        self._fill(now)

    def _close(self) -> None:
        self._receiver.disconnect()
        self._open -= 1
        self._slots -= 1

    def _begin(self, now: float) -> None:
        if not self._receiver.keeps(now):
            self._receiver.disconnect()
            self._open -= 1
            self._refused(now)
        elif self._receiver.message(now):
            self._at(now + self._random.uniform(*REPLY), self._accepted)
        else:
            self._at(now + REFUSAL, self._deferred)

    def _accepted(self, now: float) -> None:
        self._outcome.accepted[int(now / BIN)] += 1
        self._sender.delivered(now)
        self._ready.append(now)
        self._fill(now)

    def _deferred(self, now: float) -> None:
        self._outcome.deferred[int(now / BIN)] += 1
        self._sender.throttled(now)
        self._ready.append(now)
        self._fill(now)
