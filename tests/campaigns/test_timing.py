"""When recipients are due: their own clocks, changes of clocks, hours already past, windows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from mailerd.campaigns.timing import (
    Timing,
    TimingError,
    Window,
    begin_at,
    checked,
    closes_at,
    due,
    last_due,
    open_at,
    past_zones,
)
from mailerd.campaigns.zones import canonical_zone, instant, zone_of

LOCAL = Timing(local_time=True, time_zone="Europe/Berlin")
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        ("europe/kiev", "Europe/Kyiv"),
        ("US/Eastern", "America/New_York"),
        ("Asia/Calcutta", "Asia/Kolkata"),
        ("Europe/Stockholm", "Europe/Stockholm"),  # its clocks are those of Berlin, its name is its own
        ("Zulu", "UTC"),
        ("Etc/GMT+5", "Etc/GMT+5"),
    ],
)
def test_a_zone_has_one_name(given: str, name: str) -> None:
    assert canonical_zone(given) == name


@pytest.mark.parametrize("given", ["", "Mars/Olympus", "../etc/passwd", "Europe/Berlin\0", "x" * 5000, "Factory"])
def test_what_is_no_zone_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="not a time zone"):
        canonical_zone(given)


@pytest.mark.parametrize(
    ("zone", "wall", "moment"),
    [
        ("Europe/Berlin", "2026-03-29T01:59", "2026-03-29T00:59"),
        ("Europe/Berlin", "2026-03-29T02:00", "2026-03-29T01:00"),  # clocks go from 02:00 to 03:00
        ("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:00"),
        ("Europe/Berlin", "2026-03-29T03:00", "2026-03-29T01:00"),
        ("Europe/Berlin", "2026-10-25T02:30", "2026-10-25T00:30"),  # comes twice: the first
        ("Europe/Berlin", "2026-10-25T03:00", "2026-10-25T02:00"),
        ("America/New_York", "2026-03-08T02:15", "2026-03-08T07:00"),
        ("America/New_York", "2026-11-01T01:30", "2026-11-01T05:30"),
        ("Australia/Lord_Howe", "2026-10-04T02:10", "2026-10-03T15:30"),  # half an hour only
        ("America/Santiago", "2026-09-06T00:30", "2026-09-06T04:00"),  # at midnight
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00"),  # a whole day was left out
        ("Asia/Kathmandu", "2026-06-01T10:00", "2026-06-01T04:15"),
    ],
)
def test_a_wall_clock_means_one_moment_where_clocks_change(zone: str, wall: str, moment: str) -> None:
    assert instant(datetime.fromisoformat(wall), zone_of(zone)) == utc(moment)


@pytest.mark.parametrize(
    ("zone", "moment"),
    [
        ("Europe/Berlin", "2026-06-10T08:00"),
        ("Asia/Tokyo", "2026-06-10T01:00"),
        ("America/Los_Angeles", "2026-06-10T17:00"),
        ("Pacific/Kiritimati", "2026-06-09T20:00"),  # UTC+14, where the day begins
        ("", "2026-06-10T08:00"),
        ("Mars/Olympus", "2026-06-10T08:00"),
    ],
)
def test_ten_in_berlin_is_ten_everywhere(zone: str, moment: str) -> None:
    assert due(LOCAL, utc("2026-06-10T08:00"), zone, BEFORE) == utc(moment)


def test_without_local_time_all_are_due_at_the_same_moment() -> None:
    at = utc("2026-06-10T08:00")

    assert due(Timing(), at, "Asia/Tokyo", BEFORE) == at
    assert due(Timing(), at, "Asia/Tokyo", at + timedelta(hours=1)) == at + timedelta(hours=1)
    assert due(LOCAL, None, "Asia/Tokyo", at) == at  # sent by hand


@pytest.mark.parametrize(
    ("past", "moment"),
    [
        (None, "2026-06-11T01:00"),
        ("send_now", "2026-06-10T08:00"),  # not before the time it was scheduled for
        ("next_day", "2026-06-11T01:00"),
        ("skip", None),
    ],
)
def test_where_the_hour_is_past_the_campaign_says_what_then(past: Any, moment: str | None) -> None:
    timing = msgspec.structs.replace(LOCAL, **{} if past is None else {"past": past})

    found = due(timing, utc("2026-06-10T08:00"), "Asia/Tokyo", utc("2026-06-10T07:00"))

    assert found == (None if moment is None else utc(moment))


def test_the_zones_whose_hour_is_past_are_known_before() -> None:
    at = utc("2026-06-10T08:00")

    assert past_zones(LOCAL, at, BEFORE) == frozenset()  # it begins when the first hour comes
    past = past_zones(LOCAL, at, utc("2026-06-10T07:00"))
    assert {"Asia/Tokyo", "Australia/Sydney"} <= past
    assert not {"", "Europe/Berlin", "America/New_York"} & past
    assert {"", "Europe/Berlin"} <= past_zones(LOCAL, at, at + timedelta(hours=1))
    assert past_zones(Timing(), at, at + timedelta(hours=1)) == frozenset()


def test_an_hour_that_came_a_moment_ago_is_not_past() -> None:
    timing = Timing(local_time=True, time_zone="Asia/Tokyo", past="skip")
    hour = utc("2026-06-10T01:00")

    assert due(timing, hour, "Asia/Tokyo", hour + timedelta(minutes=15)) == hour + timedelta(minutes=15)
    assert due(timing, hour, "Asia/Tokyo", hour + timedelta(minutes=16)) is None


def test_a_campaign_with_local_time_begins_where_the_day_begins() -> None:
    at = utc("2026-06-10T08:00")

    assert begin_at(LOCAL, at) == utc("2026-06-09T19:55")
    assert begin_at(LOCAL, at) <= min(due(LOCAL, at, zone, BEFORE) or at for zone in ("Pacific/Kiritimati", ""))
    assert last_due(LOCAL, at) == due(LOCAL, at, "Etc/GMT+12", BEFORE) == utc("2026-06-10T22:00")
    assert begin_at(Timing(), at) == last_due(Timing(), at) == at


OFFICE = Window(days=["mon", "tue", "wed", "thu", "fri"], from_="09:00", until="17:00")


@pytest.mark.parametrize(
    ("at", "opens"),
    [
        ("2026-06-10T08:59", "2026-06-10T09:00"),  # a Wednesday
        ("2026-06-10T09:00", "2026-06-10T09:00"),
        ("2026-06-10T16:59", "2026-06-10T16:59"),
        ("2026-06-10T17:00", "2026-06-11T09:00"),
        ("2026-06-12T17:00", "2026-06-15T09:00"),  # Friday evening
        ("2026-06-14T12:00", "2026-06-15T09:00"),
    ],
)
def test_mail_waits_for_business_hours(at: str, opens: str) -> None:
    assert open_at(Timing(window=OFFICE), utc(at), "UTC") == utc(opens)


def test_a_window_is_that_of_the_recipient_unless_it_names_a_zone() -> None:
    at = utc("2026-06-10T05:00")

    assert open_at(Timing(window=OFFICE, time_zone="Europe/Berlin"), at, "") == utc("2026-06-10T07:00")
    assert open_at(Timing(window=OFFICE), at, "Asia/Tokyo") == at
    fixed = Window(from_="09:00", until="17:00", time_zone="America/New_York")
    assert open_at(Timing(window=fixed), at, "Asia/Tokyo") == utc("2026-06-10T13:00")


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    timing = Timing(window=Window(days=["fri"], from_="22:00", until="02:00"))

    assert open_at(timing, utc("2026-06-13T01:59"), "") == utc("2026-06-13T01:59")  # Saturday
    assert closes_at(timing, utc("2026-06-13T01:59"), "") == utc("2026-06-13T02:00")
    assert open_at(timing, utc("2026-06-13T02:00"), "") == utc("2026-06-19T22:00")
    assert open_at(timing, utc("2026-06-13T23:00"), "") == utc("2026-06-19T22:00")


def test_a_window_that_a_change_of_clocks_swallows_opens_a_week_later() -> None:
    timing = Timing(window=Window(days=["sun"], from_="02:10", until="02:50", time_zone="Europe/Berlin"))

    assert open_at(timing, utc("2026-03-28T00:00"), "") == utc("2026-04-05T00:10")


def test_who_is_due_outside_the_window_is_due_when_it_opens() -> None:
    timing = Timing(local_time=True, time_zone="UTC", window=Window(from_="14:00", until="18:00"))

    assert due(timing, utc("2026-06-10T10:00"), "Asia/Tokyo", BEFORE) == utc("2026-06-10T05:00")


@pytest.mark.parametrize(
    ("timing", "pointer"),
    [
        (Timing(time_zone="Mars/Olympus"), "/time_zone"),
        (Timing(window=Window(time_zone="Mars/Olympus")), "/window/time_zone"),
        (Timing(window=Window(days=[])), "/window/days"),
        (Timing(window=Window(from_="09:00", until="09:00")), "/window/until"),
        (Timing(window=Window(from_="24:00", until="09:00")), "/window/from"),
    ],
)
def test_a_timing_that_cannot_be_is_refused(timing: Timing, pointer: str) -> None:
    with pytest.raises(TimingError) as error:
        checked(timing)
    assert error.value.pointer == pointer


def test_zones_are_kept_by_their_names_of_today() -> None:
    timing = checked(Timing(time_zone="europe/kiev", window=Window(time_zone="US/Eastern")))

    assert (timing.time_zone, timing.window and timing.window.time_zone) == ("Europe/Kyiv", "America/New_York")
