"""Whatever bytes come, a parser answers or refuses, soon. `scripts/fuzz` looks further for as long as there is time."""

import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.adversary.mutation import CORPUS, found_cases, long_ones, mutated
from tests.adversary.targets import TARGETS, Target

EVERY = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
LONG = 8_000  # bytes
MOMENT = 0.5  # seconds


@EVERY
def test_what_was_found_once_is_no_trouble_again(target: Target) -> None:
    for data in (*target.seeds, *found_cases(target)):
        start = time.process_time()
        target(data)
        assert time.process_time() - start < MOMENT + target.per_kb * len(data) / 1000


def test_every_found_case_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.glob("*")} <= {target.name for target in TARGETS}


@EVERY
def test_no_input_raises_what_it_may_not(target: Target) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(target))
    def read(data: bytes) -> None:
        target(data)

    read()


@EVERY
def test_long_inputs_take_time_in_proportion(target: Target) -> None:
    slow = {}
    for short, long in zip(long_ones(target, LONG // 4), long_ones(target, LONG), strict=True):
        if _time(target, long) < 0.1:  # not worth comparing
            continue
        taken = min(_time(target, long) for _ in range(2))
        if taken > 9 * _time(target, short) or taken > MOMENT + target.per_kb * LONG / 1000:
            slow[long[:60]] = taken
    assert slow == {}


def _time(target: Target, data: bytes) -> float:
    start = time.process_time()
    target(data)
    return time.process_time() - start
