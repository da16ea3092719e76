"""Message ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.queue.ids import IdMaker, first_id_at, format_message_id, milliseconds_of, parse_message_id


def test_ids_grow_when_the_clock_stands_still_jumps_back_or_a_millisecond_is_used_up() -> None:
    times = iter([1000] * 3000 + [500] * 10 + [2000])
    maker = IdMaker(7, lambda: next(times))
    ids = [maker.next() for _ in range(3011)]
    assert ids == sorted(set(ids))
    assert milliseconds_of(ids[0]) == 1000
    assert milliseconds_of(ids[-1]) == 2000
    assert ids[-1] >= first_id_at(2000)


def test_two_workers_never_make_the_same_id() -> None:
    one, two = IdMaker(1, lambda: 5), IdMaker(2, lambda: 5)
    assert {one.next() for _ in range(2000)}.isdisjoint({two.next() for _ in range(2000)})


@pytest.mark.parametrize("number", [-1, 2048])
def test_a_worker_number_that_does_not_fit_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="worker number"):
        IdMaker(number, lambda: 0)


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1))
def test_the_public_form_is_reversible_and_sorts_as_the_numbers(one: int, two: int) -> None:
    assert parse_message_id(format_message_id(one)) == one
    assert (format_message_id(one) < format_message_id(two)) == (one < two)


@given(st.text())
def test_anything_else_is_refused(text: str) -> None:
    try:
        number = parse_message_id(text)
    except ValueError:
        return
    assert format_message_id(number) == text


@pytest.mark.parametrize(
    "text", ["", "msg_", "0123456789abc", "msg_0123456789abcd", "msg_zzzzzzzzzzzzz", "MSG_0000000000000"]
)
def test_these_are_not_ids(text: str) -> None:
    with pytest.raises(ValueError, match="id"):
        parse_message_id(text)
