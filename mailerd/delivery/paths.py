"""What a worker knows of a path, and the words in which it says that something must wait."""

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from mailerd.config.shaping import DEFAULT
from mailerd.delivery import control
from mailerd.delivery.control import Pace
from mailerd.delivery.effects import Effect
from mailerd.delivery.ledger import Charge, Hold, Meter
from mailerd.delivery.shaping import ProviderLimits

# A path's own meter; those of its rules have a space in front, the others something behind the site.
METER = re.compile(r"(?P<source>[^> ]*)>(?P<site>[^#! ]+)")


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
    """What binds, and where it is set: `file:line` or a key of the configuration. `queue`: a whole queue, if any.

    `allows`: in the words of the configuration, such as `100/h`; "" where no words set it.
    """

    name: str
    place: str
    queue: bool = True
    allows: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.place})"


class Scarce(NamedTuple):
    """Connections that several paths share. `room`: how many jobs without one may wait for them in memory."""

    hold: Hold
    cause: Cause
    room: int


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
    renewed_for: Pace | None = None  # the pace and the sum of generations that this was seen with last
    generation: int = -1
    looked: float = -math.inf  # when the pace was read
    ends: float = 0.0  # when the first of its effects is over
    delivered: int = 0  # not told to the control loop yet
    flushed: float = 0.0
    booked: float = 0.0  # until then what is in memory and in queues takes the path
    late: float = 0.0  # of the queue that was put off last, behind the end of a long wait
    departed: int = 0
    since: float = -math.inf
    rate: float = 0.0  # messages a second of this worker,
    measured: bool = False  # lately
    most_messages: int | None = None  # of a connection, as the host taught us
    most_recipients: int | None = None
    guessed_at: float | None = None  # when `most_recipients` began to be a guess
    learnt_at: float = 0.0
    leaving: int = 0  # connections of this worker that say QUIT
    wishes: list[tuple[Meter, Meter]] = field(default_factory=list)  # of each hold: who wants it first, and who at all

    def __str__(self) -> str:
        return f"{self.source or 'this host'} to {self.site}"

    @property
    def book(self) -> str:
        """Under which name its warm-up is kept: the provider's, or its own where it belongs to none."""
        return self.site if self.provider == DEFAULT else self.provider


def of_meter(name: str) -> tuple[str, str] | None:
    """Source and site of a path's own meter; None for those of its rules, bytes, openings, and of who waits for one."""
    match = METER.fullmatch(name)
    return None if match is None else (match["source"], match["site"])
