"""When to come back: the schedules, the bounds, the hints of peers."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.queue.retry import DEFAULT, SCHEDULES, hinted_wait, next_attempt

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
FAR = NOW + timedelta(days=30)
MIDDLE = 0.5  # a jitter that changes nothing
KINDS = st.sampled_from([*SCHEDULES, "other", "policy"])


def minutes(kind, attempts, **more):
    due = next_attempt(kind, attempts, NOW, FAR, MIDDLE, **more)
    return round((due - NOW).total_seconds() / 60, 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("greylisted", [5, 10, 20, 40]),
        ("mailbox_full", [60, 240, 480, 960]),
        ("network", [1, 5, 15, 30, 60, 120]),
        ("dns", [1, 5, 15, 30, 60, 120]),
        ("rate_limited", [10, 20, 40]),
        ("other", [5, 10, 20, 40, 78, 156, 240, 240, 240]),
    ],
)
def test_each_class_has_its_waits(kind, expected):
    assert [minutes(kind, n) for n in range(1, len(expected) + 1)] == expected


def test_the_last_wait_repeats():
    assert minutes("other", 1_000) == DEFAULT[-1] / 60


def test_configured_waits_stand_in_for_those_of_the_class():
    assert [minutes("mailbox_full", n, waits=(60.0, 120.0)) for n in (1, 2, 3)] == [1, 2, 2]


@given(KINDS, st.integers(1, 20), st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_a_wait_by_ten_percent(kind, attempts, jitter):
    wait = next_attempt(kind, attempts, NOW, FAR, jitter) - NOW
    middle = next_attempt(kind, attempts, NOW, FAR, MIDDLE) - NOW
    assert middle * 0.8999 <= wait <= middle * 1.1001


@given(KINDS, st.integers(0, 20), st.integers(-3600, 900_000), st.floats(0, 1, exclude_max=True), st.text(max_size=30))
def test_an_attempt_is_always_later_than_now_and_before_the_expiry(kind, attempts, seconds, jitter, text):
    expires_at = NOW + timedelta(seconds=seconds)
    due = next_attempt(kind, attempts, NOW, expires_at, jitter, text=text)
    assert due is None or NOW < due < expires_at


@pytest.mark.parametrize("left", [-60, 0, 60])
def test_nothing_is_tried_when_the_time_is_over(left):
    assert next_attempt("other", 3, NOW, NOW + timedelta(seconds=left), MIDDLE) is None


def test_a_wait_beyond_the_expiry_is_shortened_to_a_last_try_just_before_it():
    expires_at = NOW + timedelta(hours=3)
    assert next_attempt("other", 9, NOW, expires_at, MIDDLE) == expires_at - timedelta(minutes=2)


def test_a_wait_that_the_expiry_would_more_than_halve_is_not_worth_a_last_try():
    assert next_attempt("other", 9, NOW, NOW + timedelta(hours=2), MIDDLE) is None


def test_every_schedule_ends_with_a_day_of_life():
    for kind in [*SCHEDULES, "other"]:
        now, expires_at, attempts = NOW, NOW + timedelta(days=1), 1
        while (due := next_attempt(kind, attempts, now, expires_at, MIDDLE)) is not None:
            now, attempts = due, attempts + 1
        assert 3 <= attempts <= 30
        assert expires_at - now < timedelta(hours=12)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4.7.1 Greylisted, try again in 300 seconds", 300),
        ("please retry after 15 minutes", 900),
        ("Try again in 2h", 7_200),
        ("wait 90s", 90),
        ("Greylisting in action, please come back in 00:04:32", 272),
        ("delayed 20 min", 1_200),
        ("try again in 1 second", 30),
        ("try again in 99999 hours", 14_400),
        ("try again later 4.7.1", None),
        ("try again later, 3 messages are waiting", None),
        ("451 4.3.0 queue file write error", None),
        ("", None),
    ],
)
def test_a_time_named_in_the_reply_is_read_within_bounds(text, seconds):
    assert hinted_wait(text) == seconds


def test_a_hinted_retry_never_comes_before_the_time_named():
    for jitter in (0.0, 0.5, 0.999):
        wait = next_attempt("greylisted", 1, NOW, FAR, jitter, text="try again in 300 seconds") - NOW
        assert timedelta(seconds=300) <= wait <= timedelta(seconds=330)


def test_a_host_that_always_says_soon_falls_back_to_the_schedule():
    text = "try again in 60 seconds"
    assert minutes("other", 5, text=text) == pytest.approx(1.05)
    assert minutes("other", 6, text=text) == 156


def test_a_hint_may_always_make_us_wait_longer():
    assert minutes("network", 6, text="try again in 4 hours") == pytest.approx(252)
