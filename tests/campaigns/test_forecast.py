"""When a campaign will be through, and what that hangs on."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.campaigns.forecast import Limit, Progress, forecast
from mailerd.campaigns.timing import Timing, Window

NOW = datetime(2026, 6, 10, 12, 0, tzinfo=UTC)  # a Wednesday
OFFICE = Timing(window=Window(from_="09:00", until="13:00"))
SENDING: dict[str, Any] = {"status": "sending", "timing": Timing(), "pace": 10_000.0, "waiting": 600_000}


def hours(count: float) -> datetime:
    return NOW + timedelta(hours=count)


@pytest.mark.parametrize(
    ("changes", "finish", "limit"),
    [
        ({}, hours(1), "pace"),
        ({"measured": 9_000.0}, hours(1), "pace"),  # near enough
        ({"measured": 5_000.0}, hours(2), "throughput"),
        ({"waiting": 0}, hours(0), "none"),
        ({"written": False}, hours(1), "audience"),
        ({"timing": OFFICE}, hours(1), "pace"),
        ({"timing": OFFICE, "waiting": 1_200_000}, hours(22), "window"),  # one hour today, one tomorrow from nine on
        ({"timing": Timing(local_time=True), "last_due": hours(9)}, hours(9), "local_time"),
        ({"timing": Timing(local_time=True), "last_due": hours(0.5)}, hours(1), "pace"),
        ({"timing": OFFICE, "waiting": 10, "last_due": hours(21)}, hours(21), "window"),
    ],
)
def test_what_takes_longest_is_named(changes: dict[str, Any], finish: datetime, limit: Limit) -> None:
    found = forecast(Progress(**SENDING | changes), NOW)

    assert found is not None
    assert (found.finish, found.limit) == (finish, limit)


def test_outside_its_hours_a_campaign_waits_for_them() -> None:
    found = forecast(Progress(**SENDING | {"timing": OFFICE, "waiting": 10_000}), hours(3))

    assert found is not None
    assert (found.until, found.finish, found.limit) == (hours(21), hours(21) + timedelta(minutes=1), "window")


@pytest.mark.parametrize(
    ("timing", "next_due", "until"),
    [
        (OFFICE, hours(4), hours(4)),  # in Tokyo the window opens before it does here
        (OFFICE, hours(3), None),  # somewhere it is open
        (Timing(local_time=True), hours(5), hours(5)),
        (Timing(window=Window(from_="09:00", until="13:00", time_zone="UTC")), hours(2), hours(21)),
    ],
)
def test_it_waits_no_longer_than_until_the_first_contact_is_due(
    timing: Timing, next_due: datetime, until: datetime | None
) -> None:
    found = forecast(Progress(**SENDING | {"timing": timing, "next_due": next_due}), hours(3))

    assert found is not None
    assert found.until == until


def test_a_scheduled_one_waits_for_its_time() -> None:
    progress = Progress(status="scheduled", timing=Timing(), pace=10.0, schedule_time=hours(5))
    found = forecast(progress, NOW)

    assert found is not None
    assert (found.finish, found.limit, found.until) == (None, "schedule", hours(5))


def test_nobody_knows_when_a_paused_one_ends() -> None:
    found = forecast(Progress(**SENDING | {"status": "paused"}), NOW)

    assert found is not None
    assert (found.finish, found.limit) == (None, "paused")


@pytest.mark.parametrize("status", ["draft", "sent", "cancelled", "failed"])
def test_nothing_is_said_of_what_is_not_under_way(status: Any) -> None:
    assert forecast(Progress(**SENDING | {"status": status}), NOW) is None


def test_hardly_any_throughput_is_still_a_forecast() -> None:
    found = forecast(Progress(**SENDING | {"measured": 0.0, "waiting": 1}), NOW)

    assert found is not None
    assert found.finish == hours(1)
