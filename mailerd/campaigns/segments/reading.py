"""Values in conditions: read from JSON, checked and bounded. Pure.

Each function raises `BadValueError`, whose text is a sentence for people.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, TypeVar

from mailerd.queue.ids import parse_id

MAX_TEXT = 1_000  # characters
MAX_VALUES = 1_000  # of one in, not_in
MAX_DAYS = 36_500
MAX_COUNT = 1_000_000
MAX_NUMBER = 10**18
YEARS = range(1000, 9000)  # others are typing errors, and at the ends of what clocks can tell

DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|z|[+-][0-9]{2}:[0-9]{2})"
)
TICK = timedelta(microseconds=1)
T = TypeVar("T")


class BadValueError(ValueError):
    """What stands at `key` is no good value, or, in a list, its value number `place`."""

    def __init__(self, detail: str, place: int | None = None, code: str = "invalid_value", key: str = "") -> None:
        super().__init__(detail)
        self.place = place
        self.code = code
        self.key = key


@contextmanager
def at(key: str) -> Iterator[None]:
    """What is raised inside, and does not say so itself, is the fault of that key."""
    try:
        yield
    except BadValueError as error:
        error.key = error.key or key
        raise


class Span(NamedTuple):
    """What a date or a time stands for: from `start`, inclusive, to `end`, exclusive."""

    start: datetime
    end: datetime


def text(value: object, *, empty: bool = True) -> str:
    if not isinstance(value, str):
        raise BadValueError("This must be a text.", code="invalid_type")
    if len(value) > MAX_TEXT:
        raise BadValueError(f"A text may have {MAX_TEXT} characters.")
    if not value and not empty:
        raise BadValueError("An empty text is in everything: give some letters.")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadValueError("A text has no null characters and no halves of characters.")
    return value


def number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValueError("This must be a number.", code="invalid_type")
    if not -MAX_NUMBER < value < MAX_NUMBER:  # nor is NaN
        raise BadValueError(f"A number lies between -{MAX_NUMBER:.0e} and {MAX_NUMBER:.0e}.")
    return Decimal(str(value))


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValueError("This must be true or false.", code="invalid_type")
    return value


def whole(value: object, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) <= most:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadValueError("This must be a whole number.", code="invalid_type")
    if not least <= value <= most:
        raise BadValueError(f"This must be from {least} to {most}.")
    return value


def span(value: object) -> Span:
    """A date is its whole day in UTC, a time itself."""
    if not isinstance(value, str):
        raise BadValueError("This must be a date (2026-11-22) or a time (2026-11-22T09:30:00Z).", code="invalid_type")
    with suppress(ValueError, OverflowError):
        if DATE.fullmatch(value):
            start = datetime.fromisoformat(value).replace(tzinfo=UTC)
            if start.year in YEARS:
                return Span(start, start + timedelta(days=1))
        if TIME.fullmatch(value):
            at = datetime.fromisoformat(value.upper()).astimezone(UTC)
            if at.year in YEARS:
                return Span(at, at + TICK)
    raise BadValueError("This must be a date (2026-11-22) or a time with its offset (2026-11-22T09:30:00Z).")


def looks_like_a_moment(value: object) -> bool:
    try:
        span(value)
    except BadValueError:
        return False
    return True


def one_id(prefix: str, value: object) -> int:
    if not isinstance(value, str):
        raise BadValueError(f"This must be an id such as {prefix}17.", code="invalid_type")
    try:
        return parse_id(prefix, value)
    except ValueError:
        raise BadValueError(f"{value[:40]!r} is not an id such as {prefix}17.", code="invalid_id") from None


def word(value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in words:
        raise BadValueError(f"This must be one of {', '.join(words)}.")
    return value


def several(value: object, read: Callable[[object], T]) -> tuple[T, ...]:
    """A list of at least one, without what comes again."""
    if not isinstance(value, list):
        raise BadValueError("This must be a list of values.", code="invalid_type")
    if not 1 <= len(value) <= MAX_VALUES:
        raise BadValueError(f"A list has 1 to {MAX_VALUES} values.")
    found: dict[T, None] = {}
    for place, each in enumerate(value):
        try:
            found[read(each)] = None
        except BadValueError as error:
            raise BadValueError(str(error), place, error.code) from None
    return tuple(found)
