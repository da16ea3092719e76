"""Periods of a time series: whole minutes, hours, days, weeks and months of a time zone. Pure."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, get_args

Granularity = Literal["minute", "hour", "day", "week", "month"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
MAX_PERIODS = 10_000
SHORTEST = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(minutes=30),  # where clocks are put back by half an hour
    "day": timedelta(hours=23),
    "week": timedelta(hours=7 * 24 - 1),
    "month": timedelta(hours=28 * 24 - 1),
}
FINE = {"minute": timedelta(hours=6), "hour": timedelta(days=14), "day": timedelta(days=400)}


class TooManyPeriodsError(ValueError):
    """The series would have more than `MAX_PERIODS` points."""


def periods(start: datetime, end: datetime, granularity: Granularity, zone: tzinfo) -> list[datetime]:
    """The bounds of the periods from the one with `start` to the one before `end`, in UTC.

    One bound more than periods: each reaches to the next bound, which is not in it. At least one period. Days begin at
    midnight of the zone, or right after it where there is none; of an hour that comes twice there are two.
    """
    if (end - start) / SHORTEST[granularity] > 4 * MAX_PERIODS:  # not even worth counting
        raise TooManyPeriodsError
    bounds = [_begin(start, granularity, zone)]
    while len(bounds) < 2 or bounds[-1] < end:
        if len(bounds) > MAX_PERIODS:
            raise TooManyPeriodsError
        bounds.append(_next(bounds[-1], granularity, zone))
    return bounds


def fitting(start: datetime, end: datetime) -> Granularity:
    """The granularity for whoever names none: some hundred points."""
    length = end - start
    return next((name for name in GRANULARITIES if name in FINE and length <= FINE[name]), "month")


def _begin(at: datetime, granularity: Granularity, zone: tzinfo) -> datetime:
    local = at.astimezone(zone)
    if granularity == "minute":
        return at.astimezone(UTC).replace(second=0, microsecond=0)
    if granularity == "hour":  # within it the offset does not change, but for the few zones that say so
        return (at - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)).astimezone(
            UTC
        )
    day = local.date()
    if granularity == "week":
        day -= timedelta(days=day.weekday())
    elif granularity == "month":
        day = day.replace(day=1)
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _next(start: datetime, granularity: Granularity, zone: tzinfo) -> datetime:
    """The beginning of the period behind the one that begins at `start`."""
    if granularity == "minute":
        return start + timedelta(minutes=1)
    if granularity == "hour":
        after = _begin(start + timedelta(hours=1), granularity, zone)
        return after if after > start else start + timedelta(hours=1)
    # Some hours into the next period, wherever clocks were put; then back to where that begins.
    steps = {
        "day": timedelta(days=1, hours=6),
        "week": timedelta(days=7, hours=6),
        "month": timedelta(days=31, hours=6),
    }
    return _begin(start + steps[granularity], granularity, zone)
