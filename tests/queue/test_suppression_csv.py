"""Suppressions as CSV: everything that people have, read; nothing that a spreadsheet would run, written."""

import contextlib
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.queue.suppression_csv import FIELDS, BadRow, NotCsvError, Row, read_rows, write_rows


def read(text: str) -> list[Row | BadRow]:
    return list(read_rows(io.StringIO(text, newline="")))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_line_ends_and_separators_do_not_matter(ends: str, separator: str, mark: str) -> None:
    rows = [["Email", "Reason"], ["Ann@Example.net", "spam"], [], ["bob@example.net", ""]]
    found = read(mark + ends.join(separator.join(row) for row in rows))

    assert [(row.address, row.reason) for row in found if isinstance(row, Row)] == [
        ("ann@example.net", "complaint"),
        ("bob@example.net", ""),
    ]


def test_a_bare_list_needs_no_names() -> None:
    assert [row.address for row in read("a@b.example\n@c.example\n") if isinstance(row, Row)] == [
        "a@b.example",
        "@c.example",
    ]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("nobody,,", "no @"),
        ("a@b.example,because,", "reason 'because'"),
        ("a@b.example,,yesterday", "created_at 'yesterday'"),
        ("a@b.example,,0001-01-01T00:00:00+23:00", "created_at"),
        (f"{'a' * 65}@b.example,,", "longer than 64"),
        ("a@b_é.\u0000example,,", ""),
    ],
)
def test_a_bad_line_is_told_and_its_neighbours_are_read(line: str, word: str) -> None:
    try:
        found = read(f"address,reason,created_at\n{line}\nann@example.net,,\n")
    except NotCsvError:
        assert "\0" in line
        return
    assert isinstance(found[0], BadRow)
    assert word in found[0].problem
    assert found[0].line == 2
    assert isinstance(found[1], Row)


ADDRESSES = st.sampled_from(
    ["a@b.example", "=1+1@b.example", "'x@b.example", "+a@b.example", '"a b"@b.example', "@b.example"]
)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20)
TIMES = st.none() | st.datetimes(timezones=st.just(UTC))
ROWS = st.builds(
    Row,
    st.just(1),
    ADDRESSES,
    tenant=WORDS,
    stream=WORDS,
    topic=WORDS,
    reason=st.sampled_from(["bounce", "manual"]),
    source=WORDS,
    detail=WORDS,
    created_at=TIMES,
    expires_at=TIMES,
)


@given(st.lists(ROWS, max_size=5))
def test_what_is_written_is_read_again(rows: list[Row]) -> None:
    found = read(write_rows(rows))

    assert [[getattr(row, name) for name in FIELDS] for row in found] == [
        [getattr(row, name) for name in FIELDS] for row in rows
    ]


@given(ROWS)
def test_nothing_that_is_written_is_a_formula(row: Row) -> None:
    for cell in write_rows([row], header=False).rstrip("\r\n").split(","):
        assert not cell.strip('"').startswith(("=", "+", "-", "@"))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(NotCsvError):
        read(text)


def test_an_endless_line_is_refused_before_it_is_read() -> None:
    class Endless(io.StringIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> str:
            self.taken += 1
            assert self.taken < 10
            return "x" * 65_536

    with pytest.raises(NotCsvError, match="a line has more than"):
        list(read_rows(Endless()))


def test_times_are_taken_with_and_without_an_offset() -> None:
    rows = read("address,created\na@b.example,2026-01-01\na@b.example,2026-01-01T02:00:00+02:00\n")
    assert {row.created_at for row in rows if isinstance(row, Row)} == {datetime(2026, 1, 1, tzinfo=UTC)}


def test_a_stray_quote_swallows_nothing() -> None:
    found = read('address,detail\na@b.example,"says\nb@b.example,bar\nc@b.example,baz\n')

    assert isinstance(found[0], BadRow)
    assert (found[0].line, found[0].problem) == (2, "a quote is not closed")
    assert [row.address for row in found if isinstance(row, Row)] == ["b@b.example", "c@b.example"]


def test_a_nul_far_behind_spoils_its_own_line_only() -> None:
    found = read("a@b.example\n" * 10_000 + "x\0@b.example\nb@b.example\n")

    assert [row.line for row in found if isinstance(row, BadRow)] == [10_001]
    assert len(found) == 10_002
