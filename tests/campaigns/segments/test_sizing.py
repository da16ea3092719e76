"""What samples tell: pure arithmetic, held against samples that are drawn many times."""

import random

import pytest

from mailerd.campaigns.segments.sizing import Sums, estimate

SPAN = 1_000_000
WIDTH = 32


def drawn(rng: random.Random, share: float, stretches: int, together: int) -> Sums:
    """Stretches of a population where runs of `together` contacts are alike, `share` of all."""
    seen = hits = squares = 0
    for _ in range(stretches):
        mine = sum(rng.random() < share for _ in range(WIDTH // together)) * together
        seen, hits, squares = seen + WIDTH, hits + mine, squares + mine * mine
    return Sums(stretches, seen, hits, squares)


@pytest.mark.parametrize("together", [1, 32])
@pytest.mark.parametrize("share", [0.5, 0.01, 0.001])
def test_the_truth_lies_between_the_limits_19_times_of_20(share: float, together: int) -> None:
    rng = random.Random(1)
    told = [estimate(drawn(rng, share, 1000, together), width=WIDTH, span=SPAN) for _ in range(150)]

    good = sum(each.low <= share * SPAN <= each.high for each in told)

    assert good >= 0.9 * len(told)
    assert sum(each.estimate for each in told) / len(told) == pytest.approx(share * SPAN, rel=0.15)


def test_seeing_none_or_all_is_no_certainty() -> None:
    none = estimate(Sums(100, 3200, 0, 0), width=WIDTH, span=SPAN)
    all_ = estimate(Sums(100, 3200, 3200, 100 * 32 * 32), width=WIDTH, span=SPAN)

    assert (none.estimate, none.low) == (0, 0)
    assert none.high > SPAN / 100
    assert (all_.estimate, all_.high) == (SPAN, SPAN)
    assert all_.low < SPAN * 0.99
