"""Campaigns that come again: which times a rule has, also where clocks and months are short."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.recurrence import Recurrence, checked, following, last_until
from mailerd.campaigns.timing import DAYS, TimingError

DAILY = Recurrence(every="day", at="09:00", time_zone="Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(rule: Recurrence, after: str, count: int) -> list[str]:
    found, at = [], utc(after)
    for _ in range(count):
        later = following(rule, at)
        if later is None:
            break
        found.append(f"{later:%Y-%m-%dT%H:%M}")
        at = later
    return found


def test_a_daily_one_stays_at_its_hour_when_clocks_change() -> None:
    assert times(DAILY, "2026-03-27T12:00", 3) == ["2026-03-28T08:00", "2026-03-29T07:00", "2026-03-30T07:00"]


def test_a_day_without_that_hour_has_the_next_minute_and_none_has_two() -> None:
    rule = Recurrence(every="day", at="02:30", time_zone="Europe/Berlin")

    assert times(rule, "2026-03-28T00:00", 3) == ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]
    assert times(rule, "2026-10-24T12:00", 2) == ["2026-10-25T00:30", "2026-10-26T01:30"]


def test_a_weekly_one_has_its_days() -> None:
    rule = Recurrence(every="week", at="18:00", days=["mon", "thu"])

    assert times(rule, "2026-06-10T00:00", 3) == ["2026-06-11T18:00", "2026-06-15T18:00", "2026-06-18T18:00"]


def test_day_31_is_the_last_day_of_shorter_months() -> None:
    rule = Recurrence(every="month", at="10:00", day=31)

    assert times(rule, "2028-01-31T10:00", 3) == ["2028-02-29T10:00", "2028-03-31T10:00", "2028-04-30T10:00"]


def test_until_is_the_last_time_that_may_be() -> None:
    rule = Recurrence(every="day", at="09:00", until=utc("2026-06-11T09:00"))

    assert times(rule, "2026-06-09T09:00", 5) == ["2026-06-10T09:00", "2026-06-11T09:00"]


def test_of_several_that_were_missed_the_last_is_told() -> None:
    first = utc("2026-06-01T07:00")

    assert last_until(DAILY, first, utc("2026-06-05T06:59")) == (utc("2026-06-04T07:00"), 3)
    assert last_until(DAILY, first, first) == (first, 0)


@pytest.mark.parametrize(
    ("rule", "pointer"),
    [
        (Recurrence(every="week", at="09:00"), "/days"),
        (Recurrence(every="day", at="09:00", days=["mon"]), "/days"),
        (Recurrence(every="month", at="09:00"), "/day"),
        (Recurrence(every="day", at="09:00", day=3), "/day"),
        (Recurrence(every="day", at="09:00", time_zone="Mars/Olympus"), "/time_zone"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(rule: Recurrence, pointer: str) -> None:
    with pytest.raises(TimingError) as error:
        checked(rule)
    assert error.value.pointer == pointer


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Kiritimati")
CLOCKS = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
RULES = st.one_of(
    st.builds(Recurrence, every=st.just("day"), at=CLOCKS, time_zone=st.sampled_from(ZONES)),
    st.builds(
        Recurrence,
        every=st.just("week"),
        at=CLOCKS,
        days=st.lists(st.sampled_from(DAYS), min_size=1, unique=True),
        time_zone=st.sampled_from(ZONES),
    ),
    st.builds(Recurrence, every=st.just("month"), at=CLOCKS, day=st.integers(1, 31), time_zone=st.sampled_from(ZONES)),
)


@given(RULES, st.integers(0, 6 * 365 * 1440))
def test_every_rule_goes_on_and_no_day_has_two(rule: Recurrence, minutes: int) -> None:
    at, days = utc("2024-01-01T00:00") + timedelta(minutes=minutes), []
    for _ in range(4):
        later = following(rule, at)
        assert later is not None
        assert at < later <= at + timedelta(days=62)
        assert following(rule, later - timedelta(microseconds=1)) == later
        at = later
        days.append(at.astimezone(ZoneInfo(rule.time_zone)).date())
    assert len(set(days)) == 4
