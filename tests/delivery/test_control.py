"""What a path learns from its replies, step by step, and over hours at receivers that throttle."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import inf, isnan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation import HOUR, MINUTE, Adaptive, Fixed, FixedWithBrake, Outcome, Receiver, Simulation
from benchmarks.throttle import by_day, by_the_hour
from mailerd.delivery.control import (
    CLEAN,
    DOUBLING,
    FORGET,
    IDLE,
    ROUND,
    SLOWEST,
    SLOWEST_CONNECTING,
    START,
    TOLERATED,
    Pace,
    after_connection_failure,
    after_delivery,
    after_throttle,
)

LIMIT = 20
NOW = 50_000.0  # seconds of a host that has been up for a while
STRICT = partial(Receiver, patience=30, penalty=5 * MINUTE)


def deliver(pace: Pace, messages: int, *, begin: float, every: float, busy: bool = True) -> tuple[Pace, float]:
    now = begin
    for _ in range(messages):
        now += every
        pace = after_delivery(Pace.unpack(pace.pack(), now), 1, now, limit=LIMIT, busy=busy)
    return pace, now


def refuse(pace: Pace, messages: int, *, begin: float, every: float) -> tuple[Pace, float]:
    now = begin
    for _ in range(messages):
        now += every
        pace = after_throttle(Pace.unpack(pace.pack(), now), now)
    return pace, now


def settled(rate: float = 10.0) -> tuple[Pace, float]:
    """A path at full width that has just met its first trouble and found its feet."""
    pace, now = deliver(START, 1000, begin=NOW, every=1 / rate)
    pace, now = refuse(pace, 20, begin=now, every=0.01)
    return deliver(pace, 200, begin=now, every=1 / rate)


def test_a_record_of_zeros_is_a_path_nothing_is_known_of() -> None:
    assert Pace.unpack((0.0,) * 8, NOW) == START
    assert START.connections(LIMIT) == 2
    assert START.interval == 0


def test_a_fast_receiver_has_all_its_connections_after_forty_messages() -> None:
    pace, _ = deliver(START, 40, begin=NOW, every=0.001)

    assert pace.connections(LIMIT) == LIMIT
    assert pace.interval == 0
    assert not pace.braked


def test_connections_double_for_each_round_of_accepted_mail() -> None:
    pace = START
    for window in (4, 8, 16, 20, 20):
        pace = after_delivery(pace, pace.connections(LIMIT), NOW, limit=LIMIT, busy=True)
        assert pace.connections(LIMIT) == window


def test_connections_that_are_not_all_used_do_not_become_more() -> None:
    pace, _ = deliver(START, 500, begin=NOW, every=0.1, busy=False)

    assert pace.connections(LIMIT) == START.connections(LIMIT)


def test_the_configured_limit_holds_at_once_when_it_is_lowered() -> None:
    pace, now = deliver(START, 100, begin=NOW, every=0.1)

    assert pace.connections(3) == 3
    assert after_delivery(pace, 1, now, limit=3, busy=True).window == 3


def test_one_refusal_in_a_hundred_changes_nothing() -> None:
    pace, now = START, NOW
    for _ in range(50):
        pace, now = deliver(pace, 99, begin=now, every=0.01)
        pace, now = refuse(pace, 1, begin=now, every=0.01)

    assert pace.connections(LIMIT) == LIMIT
    assert pace.interval == 0


def test_refusals_of_one_burst_count_once() -> None:
    pace, now = deliver(START, 500, begin=NOW, every=0.1)
    few, _ = refuse(pace, 5, begin=now, every=0.01)
    many, _ = refuse(pace, 20, begin=now, every=0.01)

    assert few.connections(LIMIT) == many.connections(LIMIT) == 14
    assert few.interval == pytest.approx(many.interval, rel=0.01)
    assert 0.1 < few.interval < 1  # slower than what was accepted


def test_a_settled_path_goes_down_by_a_fifth_of_what_was_accepted_and_keeps_its_connections() -> None:
    pace, now = settled()
    for _ in range(3000):  # slowly up, until it is a tenth too much
        pace, now = deliver(pace, 1, begin=now, every=max(0.1, pace.interval))
    slower, _ = refuse(pace, 5, begin=now, every=0.1)

    assert slower.rate == pytest.approx(0.8 * pace.flow, rel=0.1)
    assert slower.connections(LIMIT) == pace.connections(LIMIT)


def test_trouble_right_after_a_decrease_halves() -> None:
    pace, now = settled()
    pace, now = refuse(pace, 4, begin=now, every=0.01)
    pace, now = deliver(pace, 5, begin=now, every=ROUND / 5)
    again, _ = refuse(pace, 5, begin=now, every=0.01)

    assert again.rate == pytest.approx(pace.rate / 2, rel=0.01)


def test_a_receiver_that_refuses_everything_is_asked_less_and_less_on_one_connection() -> None:
    pace, now = settled()
    asked = []
    while now < NOW + 3 * HOUR:
        pace, now = refuse(pace, 1, begin=now, every=max(0.05, pace.interval))
        asked.append(now)

    assert pace.connections(LIMIT) == 1
    assert pace.rate == pytest.approx(SLOWEST)
    assert len([each for each in asked if each < asked[0] + HOUR]) < 60
    assert all(later - earlier <= 1 / SLOWEST + 0.1 for earlier, later in pairwise(asked))


def test_after_an_hour_of_refusals_the_rate_at_most_doubles_in_ten_seconds_or_with_each_message() -> None:
    pace, now = settled()
    height = pace.rate
    while now < NOW + HOUR:
        pace, now = refuse(pace, 1, begin=now, every=max(0.05, pace.interval))
    seen = [(now, pace.rate)]
    while pace.rate < height and now < NOW + 2 * HOUR:
        pace, now = deliver(pace, 1, begin=now, every=max(0.05, pace.interval))
        seen.append((now, pace.rate))

    assert now < NOW + HOUR + 25 * MINUTE
    for (earlier, before), (later, after) in pairwise(seen):
        assert after <= before * 2 ** min(1.0, (later - earlier) / DOUBLING) * 1.01


def test_a_rate_that_no_longer_binds_is_forgotten_after_half_an_hour_without_trouble() -> None:
    pace, now = settled()
    pace, now = deliver(pace, int(10 * (CLEAN - MINUTE)), begin=now, every=0.1)
    assert pace.rate < inf

    pace, now = deliver(pace, 10 * 3 * 60, begin=now, every=0.1)
    assert pace.rate == inf


def test_a_rate_that_was_not_made_use_of_stays() -> None:
    pace, now = settled()
    later, _ = deliver(pace, 3600, begin=now, every=1.0, busy=False)

    assert later.rate == pytest.approx(pace.rate, rel=0.5)


def test_refused_connections_lower_the_connections_and_leave_the_rate() -> None:
    pace, now = deliver(START, 100, begin=NOW, every=0.1)
    for _ in range(5):
        pace = after_connection_failure(pace, now)

    assert pace.connections(LIMIT) == 14
    assert pace.interval == 0


def test_a_site_that_cannot_be_reached_is_asked_once_a_minute_at_least() -> None:
    pace, now = START, NOW
    for _ in range(100):
        now += max(1.0, pace.interval)
        pace = after_connection_failure(pace, now)
    assert pace.connections(LIMIT) == 1
    assert pace.rate == pytest.approx(SLOWEST_CONNECTING)

    while pace.connections(LIMIT) < LIMIT:  # reached again, and nothing was learnt about its limits
        pace, now = deliver(pace, 1, begin=now, every=max(0.05, pace.interval))
    assert now < NOW + 100 * MINUTE + 10 * MINUTE


def test_idle_paths_fade_towards_the_start_and_are_forgotten_in_the_end() -> None:
    pace, now = settled()
    values = pace.pack()

    assert Pace.unpack(values, now + IDLE) == Pace.unpack(values, now)
    assert Pace.unpack(values, now + 2 * IDLE).window == pytest.approx(pace.window / 2)
    hours = [Pace.unpack(values, now + hour * HOUR) for hour in range(6)]
    assert [each.connections(LIMIT) for each in hours[1:]] == [2] * 5
    assert all(later.rate <= 2.001 * earlier.rate for earlier, later in pairwise(hours))
    assert Pace.unpack(values, now + FORGET + 1) == START


def test_idle_time_is_not_time_without_trouble() -> None:
    pace, now = settled()
    before, _ = deliver(pace, 1, begin=now, every=0.1)
    rested = Pace.unpack(pace.pack(), now + 3 * HOUR)
    after = after_delivery(rested, 1, now + 3 * HOUR, limit=LIMIT, busy=True)

    assert after.rate / rested.rate - 1 < 0.02
    assert before.rate > pace.rate


def test_a_clock_that_begins_anew_keeps_what_was_learnt() -> None:
    pace, _ = settled()
    values = pace.pack()

    after = Pace.unpack(values, 12.0)
    assert (after.window, after.rate, after.touched, after.decreased) == (pace.window, pace.rate, 12.0, 12.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["delivered", "throttled", "failed"]),
            st.floats(-5.0, 50_000.0) | st.floats(0.0, 1.0),
            st.integers(1, 500),
            st.integers(1, 5000),
            st.booleans(),
        ),
        max_size=200,
    )
)
def test_whatever_happens_a_pace_stays_within_its_bounds(
    facts: list[tuple[str, float, int, int, bool]],
) -> None:
    values: tuple[float, ...] = (0.0,) * 8
    now = 1.0
    for fact, later, n, limit, busy in facts:
        now = max(1.0, now + later)
        pace = Pace.unpack(values, now)
        if fact == "delivered":
            pace = after_delivery(pace, n, now, limit=limit, busy=busy)
            assert pace.window <= max(limit, 1)
        else:
            pace = (after_throttle if fact == "throttled" else after_connection_failure)(pace, now)
        values = pace.pack()
        assert len(values) == 8
        assert not any(isnan(value) for value in values)
        assert 1 <= pace.connections(limit) <= limit
        assert 0 <= pace.interval <= 1 / SLOWEST + 1e-6
        assert 0 <= pace.share < max(TOLERATED, 1e-9) + 0.02
        assert Pace.unpack(values, now)[:8] == pytest.approx(pace[:8])


# over hours, in simulated time


def run(receiver: Receiver, sender: Adaptive | Fixed, hours: float) -> tuple[int, int, Outcome]:
    outcome = Simulation(receiver, sender).run(hours * HOUR)
    return sum(outcome.accepted), sum(outcome.deferred), outcome


@pytest.mark.parametrize(
    ("receiver", "hours", "possible", "accepted_share", "deferred_share"),
    [
        pytest.param(lambda: STRICT(lambda _: 5.0), 4, 5 * 4 * HOUR, 0.95, 0.01, id="5/s"),
        pytest.param(lambda: STRICT(lambda _: 5.0, burst=1), 4, 5 * 4 * HOUR, 0.88, 0.015, id="5/s, nothing saved up"),
        pytest.param(lambda: STRICT(lambda _: 5.0, burst=60), 4, 5 * 4 * HOUR, 0.95, 0.01, id="5/s, much saved up"),
        pytest.param(lambda: STRICT(lambda _: 40.0, patience=60), 1, 40 * HOUR, 0.9, 0.005, id="40/s"),
        pytest.param(lambda: STRICT(lambda _: 1 / 6, burst=60), 12, 2 * HOUR, 0.95, 0.07, id="10/min"),
        pytest.param(lambda: STRICT(lambda _: 1 / 60, burst=300), 24, 24 * 60, 0.9, 0.1, id="1/min"),
        pytest.param(lambda: STRICT(by_the_hour), 6, 28 * HOUR, 0.9, 0.01, id="by the hour"),
        pytest.param(lambda: STRICT(by_day), 24, 5.5 * 24 * HOUR, 0.95, 0.01, id="by day"),
    ],
)
def test_a_receiver_that_counts_messages_gets_nearly_all_it_takes_and_has_to_refuse_little(
    receiver: Callable[[], Receiver], hours: float, possible: float, accepted_share: float, deferred_share: float
) -> None:
    accepted, deferred, _ = run(receiver(), Adaptive(), hours)

    assert accepted > accepted_share * possible
    assert deferred < deferred_share * accepted


def test_a_receiver_that_counts_connections_is_used_to_the_full_and_refuses_a_few() -> None:
    accepted, deferred, outcome = run(STRICT(connections=lambda now: 6 if now < 2 * HOUR else 3), Adaptive(), 4)

    assert accepted > 0.9 * (6 + 3) * 2 * HOUR / 0.3  # 0.3 s for each message
    assert deferred == 0
    assert sum(outcome.refused) < 100
    assert outcome.most_connections == 6


def test_a_receiver_without_limits_gets_all_that_the_configured_connections_carry() -> None:
    accepted, deferred, outcome = run(Receiver(), Adaptive(), 0.2)

    assert accepted > 0.97 * LIMIT / 0.3 * 0.2 * HOUR
    assert (deferred, outcome.most_connections) == (0, LIMIT)


def test_421_to_all_for_an_hour_costs_few_refusals_and_mail_flows_again_within_a_quarter_of_an_hour() -> None:
    closed = STRICT(lambda _: 5.0, shut=lambda now: HOUR <= now < 2 * HOUR)
    _, _, outcome = run(closed, Adaptive(), 3)

    during = sum(outcome.deferred[60:120]) + sum(outcome.refused[60:120])
    assert during < 80
    assert sum(outcome.accepted[135:180]) > 0.9 * 5 * 45 * MINUTE


def test_no_fixed_limit_does_as_well_at_receivers_that_change_and_punish() -> None:
    accepted, deferred, _ = run(STRICT(by_the_hour), Adaptive(), 6)

    for rate in (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 15):
        for sender in (Fixed(rate), FixedWithBrake(rate)):
            theirs, refused, _ = run(STRICT(by_the_hour), sender, 6)
            assert theirs < 0.7 * accepted, f"{sender}: accepted {theirs}"
            assert theirs - refused < accepted - deferred
