"""No regular expression of ours takes more than linear time, or what it is given is short.

An expression that goes back and forth is a denial of service for whoever may choose its input: once it was the TXT
record of a domain to which somebody sent a mail.
"""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.adversary.patterns import Found, all_patterns, apply, worst_inputs

# What is not linear, the longest text that it is ever given, and who sees to that.
BOUNDED = {
    "mailerd.delivery.diagnostic.INTRODUCES": 40,  # the characters before a code: read_diagnostic
    "mailerd.feedback.reading.aggregates._SUBJECT": 255,  # LONGEST_NAME
    "mailerd.feedback.reading.automatic._ANSWER": 255,  # LONGEST_NAME
    "mailerd.feedback.reading.dsn:168": 1_000,  # _address
    "mailerd.feedback.reading.marks.COPY_FOLLOWS": 200,  # human_lines
    "mailerd.feedback.reading.marks.ALONE_AFTER": 80,  # what stands around an address: prose._points
    "mailerd.feedback.reading.marks.RCPT": 80,
    "mailerd.wire.words.CUT": 4_096,  # MAX_VALUE of a header field; what we store of a subject is shorter
}
FEW = 26  # times: exponential ones take seconds for that
LONG = 1_000  # characters of the shorter text; the longer one is four times that
SLOW = 0.003  # seconds from which on it is worth comparing
LIMIT = 1.0  # seconds


class TooSlowError(Exception):
    pass


def _too_slow(*_: object) -> None:
    raise TooSlowError


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """The engine looks for signals now and then, so this ends also an expression that would take years."""
    before = signal.signal(signal.SIGALRM, _too_slow)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def taken(found: Found, text: str) -> float:
    """CPU seconds, the least of two when it matters."""
    least = LIMIT
    for _ in range(2):
        start = time.process_time()
        try:
            with limit(LIMIT):
                apply(found, text)
        except TooSlowError:
            return LIMIT
        least = min(least, time.process_time() - start)
        if least < SLOW:
            break
    return least


def worse_than_linear(found: Found, longest: int | None) -> str:
    """What takes too long, "": nothing that was tried."""
    for begin, repeated, end in worst_inputs(found):
        if longest is not None:
            text = begin + repeated * max(1, (longest - len(begin)) // len(repeated)) + end
            if taken(found, text) > 0.05:
                return f"{begin!r} + {repeated!r} * n + {end!r}, {longest} characters"
            continue
        if taken(found, begin + repeated * FEW + end) > 0.1:
            return f"{begin!r} + {repeated!r} * {FEW} + {end!r}"
        times = LONG // len(repeated) + 1
        long = taken(found, begin + repeated * times * 4 + end)
        if long > SLOW and long > 9 * max(taken(found, begin + repeated * times + end), 1e-5):
            return f"{begin!r} + {repeated!r} * n + {end!r}: {long * 1000:.0f} ms for {times * 4} times"
    return ""


def test_every_regular_expression_is_linear_or_bounded() -> None:
    found = all_patterns()
    assert len(found) > 250, "they are found"
    assert not set(BOUNDED) - {each.name for each in found}, "these are no more"
    wrong = {each.name: what for each in found if (what := worse_than_linear(each, BOUNDED.get(each.name)))}
    assert wrong == {}


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"\s+at\s+", r"x(?:[^;]*;[ ]*)*?y"])
def test_the_probe_finds_what_is_not_linear(pattern: str) -> None:
    assert worse_than_linear(Found("", re.compile(pattern), frozenset({"search"})), None)
