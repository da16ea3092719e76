"""How many there are, from a sample: pure arithmetic.

The sample is of stretches of ids of one width, each drawn at random from its own stratum of the whole span. The number
of contacts that fit in a stretch, times how often the stretch goes into the span, is an estimate without bias, however
the ids lie; how much stretches differ tells how good it is. Contacts that were imported together are often alike, so
that rows of one stretch count for less than as many from all over: the spread of stretches has that in it.
"""

import math
from dataclasses import dataclass
from typing import Literal

SURE = 1.96  # standard deviations: 19 of 20
NONE_SEEN = 3.7  # seen none, there may be so many (the exact 97.5 % limit of a Poisson count)
FEW = 100  # hits below which they are taken to be scattered at best


@dataclass(frozen=True, slots=True)
class Sums:
    """Of the stretches looked at: how many, contacts in them, those that fit, and the sum of the squares of these."""

    stretches: int = 0
    seen: int = 0
    hits: int = 0
    squares: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.stretches + other.stretches,
            self.seen + other.seen,
            self.hits + other.hits,
            self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """With a certainty of 95 % there are from `low` to `high`. `sampled` contacts were looked at."""

    estimate: int
    low: int
    high: int
    method: Literal["exact", "sampled"]
    sampled: int


def exactly(count: int, looked_at: int) -> Estimate:
    return Estimate(count, count, count, "exact", looked_at)


def estimate(sums: Sums, *, width: int, span: int, once: bool = False) -> Estimate:
    """What stretches of `width` ids tell of `span` ids; `once`: none of these was drawn twice."""
    times = span / (width * sums.stretches)
    found = times * sums.hits
    left = max(0.0, 1 - 1 / times) if once else 1.0  # nothing is uncertain of what was looked at
    low, high = _limits(sums)
    limits = [found + (limit * times - found) * math.sqrt(left) for limit in (low, high)]
    middle = min(round(found), span)
    return Estimate(
        middle,
        min(middle, math.floor(limits[0])),
        min(span, max(middle, math.ceil(limits[1]))),
        "sampled",
        sums.seen,
    )


def _limits(sums: Sums) -> tuple[float, float]:
    """Limits of the number of hits: those of a Poisson count (Wilson and Hilferty), for as many as count for one."""
    if sums.hits == 0:
        return 0.0, NONE_SEEN * max(1.0, sums.seen / sums.stretches)  # a stretch may have all or none
    mean = sums.hits / sums.stretches
    variance = max(0.0, sums.squares / sums.stretches - mean * mean) * sums.stretches / max(1, sums.stretches - 1)
    together = variance / mean
    if sums.hits < FEW:
        together = max(1.0, together)
    if sums.hits == sums.seen or together <= 0:  # it seems to be all of them
        return max(0.0, sums.hits - NONE_SEEN * sums.seen / sums.stretches), float(sums.hits)
    k = sums.hits / together
    low = k * max(0.0, 1 - 1 / (9 * k) - SURE / (3 * math.sqrt(k))) ** 3
    high = (k + 1) * (1 - 1 / (9 * (k + 1)) + SURE / (3 * math.sqrt(k + 1))) ** 3
    return low * together, high * together
