"""Campaigns that come again: daily, on days of the week, on a day of the month, at a wall time in a zone.

Day 31 of a month that has none is its last day. A time that does not exist (clocks are put forward) means the next
minute that does, one that comes twice means the first: each day has its occurrence, and no day has two.
"""

from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mailerd.campaigns.timing import DAYS, Day, TimingError
from mailerd.campaigns.zones import canonical_zone, instant, wall_clock, zone_of

ONE_DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)
HORIZON = 62  # days that hold at least one occurrence of any rule


class Recurrence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`days` of weekly, `day` of monthly, `at` a wall time in `time_zone`; `until` (inclusive) or `count` ends it.

    `count` counts the campaigns that came of it, not the times that were missed.
    """

    every: Literal["day", "week", "month"]
    at: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](?!\n)$")]
    days: list[Day] = []
    day: Annotated[int, Meta(ge=1, le=31)] | None = None
    time_zone: str = "UTC"
    until: Annotated[datetime, Meta(tz=True)] | None = None
    count: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    made: int = 0  # campaigns that came of it


def checked(recurrence: Recurrence) -> Recurrence:
    """The same with the canonical zone. Raises `TimingError` for parts that are missing or do not belong together."""
    try:
        zone = canonical_zone(recurrence.time_zone)
    except ValueError as error:
        raise TimingError("/time_zone", f"{error}.") from None
    if (recurrence.every == "week") != bool(recurrence.days):
        raise TimingError("/days", "Weekly campaigns have days, such as [mon, thu], and no others have.")
    if (recurrence.every == "month") != (recurrence.day is not None):
        raise TimingError("/day", "Monthly campaigns have a day, 1 to 31, and no others have.")
    days = [day for day in DAYS if day in recurrence.days]
    return msgspec.structs.replace(recurrence, time_zone=zone, days=days)


def following(recurrence: Recurrence, after: datetime) -> datetime | None:
    """The first occurrence later than `after`, in UTC; None when `until` ends it before. `count` is not looked at."""
    zone = zone_of(recurrence.time_zone)
    clock = time.fromisoformat(recurrence.at)
    for day in _days(recurrence, wall_clock(after, zone).date() - ONE_DAY):
        at = instant(datetime.combine(day, clock), zone)
        if at > after:
            return None if recurrence.until is not None and at > recurrence.until else at.astimezone(UTC)
    return None


def _days(recurrence: Recurrence, first: date) -> Iterator[date]:
    for offset in range(HORIZON + 2):
        day = first + offset * ONE_DAY
        match recurrence.every:
            case "week" if DAYS[day.weekday()] not in recurrence.days:
                continue
            case "month" if day.day != min(recurrence.day or 1, monthrange(day.year, day.month)[1]):
                continue
        yield day


def last_until(recurrence: Recurrence, first: datetime, now: datetime) -> tuple[datetime, int]:
    """The latest occurrence not later than `now`, `first` being the earliest looked at; and how many it passes over.

    `first` is an occurrence and not later than `now`.
    """
    passed, at = 0, first
    while (later := following(recurrence, at)) is not None and later <= now:
        at, passed = later, passed + 1
    return at, passed
