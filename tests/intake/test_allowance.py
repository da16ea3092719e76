"""Rates: a table of takes at certain seconds, and what is left then."""

import pytest

from mailerd.config import Rate
from mailerd.intake.allowance import Allowances, RateLimited
from mailerd.intake.credentials import Credential

TEN_A_MINUTE = Credential(name="key", message_rate=Rate(10, 60))


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(allowances: Allowances, credential: Credential, messages: int, recipients: int = 1) -> int:
    """Seconds to wait; 0: granted."""
    try:
        allowances.take(credential, messages, recipients)
    except RateLimited as refusal:
        return refusal.wait
    return 0


@pytest.mark.parametrize(
    ("workers", "takes", "expected"),
    [  # takes: amount and second; expected: remaining and wait
        (1, [(1, 0)], (9, 0)),
        (1, [(10, 0)], (0, 0)),
        (1, [(10, 0), (1, 0)], (0, 6)),
        (1, [(10, 0), (1, 6)], (0, 0)),
        (1, [(10, 0), (1, 60)], (9, 0)),
        (1, [(10, 0), (1, 6000)], (9, 0)),
        (1, [(1, 0), (100, 0)], (9, 6)),
        (1, [(100, 0)], (0, 0)),
        (1, [(100, 0), (1, 60)], (0, 486)),
        (2, [(5, 0), (1, 0)], (0, 12)),
        (100, [(1, 0), (1, 0)], (0, 60)),
    ],
)
def test_ten_a_minute(workers: int, takes: list[tuple[int, float]], expected: tuple[int, int]) -> None:
    seconds = Seconds()
    allowances = Allowances(workers, seconds)
    for amount, second in takes:
        seconds.now = 1000.0 + second
        wait = take(allowances, TEN_A_MINUTE, amount)

    (left,) = allowances.left(TEN_A_MINUTE)
    assert (left.remaining, wait) == expected
    assert left.limit == max(1, 10 // workers)


def test_what_is_left_tells_when_all_of_it_is_back() -> None:
    allowances = Allowances(1, Seconds())
    take(allowances, TEN_A_MINUTE, 4)

    (left,) = allowances.left(TEN_A_MINUTE)
    assert (left.what, left.remaining, left.reset, left.period) == ("messages", 6, 24, 60)


def test_both_rates_grant_or_nothing_is_counted() -> None:
    credential = Credential(name="key", message_rate=Rate(10, 60), recipient_rate=Rate(10, 60))
    allowances = Allowances(1, Seconds())
    assert take(allowances, credential, 1, 8) == 0
    assert take(allowances, credential, 1, 3) == 6

    assert [(left.what, left.remaining) for left in allowances.left(credential)] == [("messages", 9), ("recipients", 2)]


def test_without_a_rate_there_is_no_limit_and_nothing_to_tell() -> None:
    allowances = Allowances(1, Seconds())
    free = Credential(name="key")

    assert take(allowances, free, 1_000_000, 1_000_000) == 0
    assert allowances.left(free) == []


def test_a_credential_whose_rate_is_changed_starts_anew() -> None:
    allowances = Allowances(1, Seconds())
    take(allowances, Credential(name="key", message_rate=Rate(1, 60)), 1)

    assert take(allowances, Credential(name="key", message_rate=Rate(2, 60)), 1) == 0
