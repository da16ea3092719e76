"""Periods: whole ones of a time zone, without gaps, also where clocks are put forward and back."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns.analytics.periods import (
    GRANULARITIES,
    MAX_PERIODS,
    Granularity,
    TooManyPeriodsError,
    fitting,
    periods,
)
from mailerd.campaigns.analytics.rates import rate, rates

ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Santiago",
         "America/Havana", "Pacific/Apia", "Africa/Monrovia")  # fmt: skip


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("start", "end", "granularity", "zone", "bounds"),
    [
        ("2026-11-22T12:30:15Z", "2026-11-22T12:31:00Z", "minute", "UTC", "12:30 12:31"),
        ("2026-11-22T12:30:15Z", "2026-11-22T12:30:15Z", "minute", "UTC", "12:30 12:31"),
        ("2026-11-22T12:30:15Z", "2026-11-22T14:00:00Z", "hour", "UTC", "12:00 13:00 14:00"),
        ("2026-11-22T12:20:00Z", "2026-11-22T13:10:00Z", "hour", "Asia/Kolkata", "11:30 12:30 13:30"),
        ("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "hour", "Europe/Berlin", "00:00 01:00 02:00"),
        ("2026-10-24T23:00:00Z", "2026-10-25T22:59:00Z", "day", "Europe/Berlin", "22:00 23:00"),
        ("2026-03-29T12:00:00Z", "2026-03-30T00:00:00Z", "day", "Europe/Berlin", "23:00 22:00 22:00"),
        ("2026-09-06T12:00:00Z", "2026-09-06T13:00:00Z", "day", "America/Santiago", "04:00 03:00"),
        ("2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z", "week", "UTC", "2026-11-23 2026-11-30"),
        ("2026-01-31T00:00:00Z", "2026-03-01T00:00:00Z", "month", "UTC", "2026-01-01 2026-02-01 2026-03-01"),
    ],
)
def test_bounds_are_those_of_the_zone(start: str, end: str, granularity: Granularity, zone: str, bounds: str) -> None:
    found = periods(at(start), at(end), granularity, ZoneInfo(zone))

    form = "%Y-%m-%d" if granularity in ("week", "month") else "%H:%M"
    assert " ".join(each.strftime(form) for each in found) == bounds


moments = st.integers(1_230_768_000, 1_798_761_600).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(moments, st.timedeltas(timedelta(0), timedelta(days=3)), st.sampled_from(GRANULARITIES), st.sampled_from(ZONES))
@settings(max_examples=300, deadline=None)
def test_periods_follow_one_another_and_reach_from_the_start_to_the_end(
    start: datetime, length: timedelta, granularity: Granularity, zone: str
) -> None:
    bounds = periods(start, start + length, granularity, ZoneInfo(zone))

    assert bounds == sorted(set(bounds))
    assert bounds[0] <= start < bounds[1]
    assert bounds[-2] < start + length <= bounds[-1] or length == timedelta(0)
    inner = periods(bounds[0], bounds[-1], granularity, ZoneInfo(zone))
    assert inner == bounds, "whole periods are widened no further"


def test_there_are_no_more_than_ten_thousand() -> None:
    start = at("2026-11-22T00:00:00Z")

    assert len(periods(start, start + timedelta(minutes=MAX_PERIODS), "minute", UTC)) == MAX_PERIODS + 1
    for days in (7, 1000, 300_000):
        with pytest.raises(TooManyPeriodsError):
            periods(start, start + timedelta(days=days), "minute", UTC)


@pytest.mark.parametrize(("hours", "granularity"), [(1, "minute"), (24, "hour"), (24 * 60, "day"), (24 * 900, "month")])
def test_whoever_names_no_granularity_gets_some_hundred_points(hours: int, granularity: str) -> None:
    start = at("2026-11-22T00:00:00Z")

    assert fitting(start, start + timedelta(hours=hours)) == granularity


def test_rates_are_percent_with_two_decimals_and_nothing_of_nothing() -> None:
    counts = {"sent": 3, "delivered": 3, "opened": 1, "clicked": 2, "bounced": 1, "unsubscribed": 1}

    assert rates(counts) == {
        "open_rate": 33.33, "click_rate": 66.67, "click_to_open_rate": 200.0, "bounce_rate": 33.33,
        "unsubscribe_rate": 33.33, "complaint_rate": 0.0, "deliverability_rate": 100.0, "machine_open_rate": 0.0,
        "machine_click_rate": 0.0,
    }  # fmt: skip
    assert set(rates({}).values()) == {0.0}
    assert rate("open_rate", {"opened": 1, "delivered": -1}) == 0.0
