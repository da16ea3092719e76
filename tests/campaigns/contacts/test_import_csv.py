"""CSV as people have it: any pieces of the same bytes give the same records."""

import csv
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns.contacts.csv_reading import (
    MAX_RECORD,
    CsvReader,
    EncodingGuess,
    Fault,
    meant,
    without_formula,
)

Read = tuple[list[tuple[int, list[str]]], list[Fault]]
PIECES = ['"', '""', "'", ",", ";", "\r", "\n", "\r\n", "a", "bb", "ü", "€", "\x85", "\u2028", "\0", " ", "=", "x@y.zz"]


def read(data: bytes, sizes: list[int], encoding: str = "utf-8", *, resume: bool = False) -> Read:
    """All records with their lines, fed in pieces of these sizes; `resume`: by a new reader for each."""
    rows: list[tuple[int, list[str]]] = []
    faults: list[Fault] = []
    reader, start, fed, number = CsvReader(encoding, ","), 0, 0, 0
    while True:
        size = sizes[number % len(sizes)]
        number += 1
        piece = data[fed : fed + size]
        fed += len(piece)
        block = reader.feed(piece, final=not piece)
        rows += [(line, row) for line, row in zip(block.lines, block.rows, strict=True) if row]
        faults += block.faults
        start += block.consumed
        if not piece:
            assert start == len(data)
            return rows, faults
        if resume and block.consumed:
            reader = CsvReader(encoding, ",", start=start, line=block.line, skipping=block.skipping, wary=block.wary)
            fed = start


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=60),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "cp1252"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_pieces_of_a_file_give_the_same_records(pieces: list[str], encoding: str, sizes: list[int]) -> None:
    data = "".join(pieces).encode(encoding, "replace")
    codec = encoding.removesuffix("-sig")
    whole = read(data, [len(data) + 1], codec)

    assert read(data, sizes, codec) == whole
    assert read(data, sizes, codec, resume=True) == whole


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "cp1252"]), st.integers(1, 7))
def test_bytes_that_are_no_text_are_read_all_the_same(data: bytes, encoding: str, size: int) -> None:
    assert read(data, [size], encoding) == read(data, [len(data) + 1], encoding)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=4)))
def test_what_was_written_is_read(table: list[list[str]]) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(table)

    assert [row for _, row in read(out.getvalue().encode(), [7])[0]] == table


@pytest.mark.parametrize("size", [1, 1000, 10_000_000])
def test_a_quote_that_is_not_closed_costs_one_line(size: int) -> None:
    if size == 1:
        data = b'a@b.example,1\n"c@d.example,2\ne@f.example,3\n'
        rows, faults = read(data, [size])
    else:
        data = b'a@b.example,1\n"c@d.example,2\n' + b"e@f.example,3\n" * 50_000
        rows, faults = read(data, [size])

    assert [fault.line for fault in faults] == [2]
    assert rows[0] == (1, ["a@b.example", "1"])
    assert rows[1] == (3, ["e@f.example", "3"])
    assert len(rows) == data.count(b"\n") - 1


@pytest.mark.parametrize("line", [b'a","\n', b'"\n', b'"a\n', b'a,"\n\n', b'"' + b"x" * 200 + b'","\n'])
def test_lines_that_all_begin_a_record_without_end_take_time_in_proportion(line: bytes) -> None:
    few, many = (min(seconds_to_read(line * (size // len(line))) for _ in range(2)) for size in (40_000, 160_000))

    assert many < 10 * max(few, 0.01), "four times as much"


def seconds_to_read(data: bytes) -> float:
    began = time.thread_time()
    CsvReader("utf-8", ",").feed(data, final=True)
    return time.thread_time() - began


@pytest.mark.parametrize("resume", [False, True])
def test_what_comes_behind_a_broken_record_is_the_same_in_any_pieces(resume: bool) -> None:
    short = b'a@b.example,"1\n2"\n'
    data = short + b'"c,1\n' * 2 + short * 3 + b'"d\n' + b"e,1\n" * 300_000 + short + b'"f\n' * 3 + b"g,1\n" * 20

    whole = read(data, [len(data)])

    assert whole[0][0] == (1, ["a@b.example", "1\n2"])
    assert len(whole[1]) > 1
    assert read(data, [200_001], resume=resume) == whole


@pytest.mark.parametrize("size", [65_536, 10_000_000])
@pytest.mark.parametrize("resume", [False, True])
def test_a_record_that_does_not_end_is_skipped(size: int, resume: bool) -> None:
    long = b"x," * (MAX_RECORD + 5)
    data = b"a,1\n" + long + b"\nb,2\r\n" + long + b"\rc,3"

    rows, faults = read(data, [size], resume=resume)

    assert rows == [(1, ["a", "1"]), (3, ["b", "2"]), (5, ["c", "3"])]
    assert [fault.line for fault in faults] == [2, 4]
    assert all(len(fault.content) == 200 for fault in faults)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("Jürgen,müller\n".encode(), "utf-8"),
        ("Jürgen,müller\n".encode("utf-8-sig"), "utf-8"),
        ("Jürgen,müller\n".encode("utf-16"), "utf-16-le"),
        ("\ufeffJürgen,müller\n".encode("utf-16-be"), "utf-16-be"),
        ("email,name\nann@a.example,Jürgen\n".encode("utf-16-be"), "utf-16-be"),
        ("email,name\nann@a.example,Jürgen\n".encode("utf-16-le"), "utf-16-le"),
        ("Jürgen,müller\n".encode("cp1252"), "cp1252"),
        ("Jürgen,müller\n".encode() * 10 + "Jürgen\n".encode("cp1252"), "utf-8"),
        ("Jürgen,müller\n".encode()[:2], "cp1252"),
        (b"", "utf-8"),
        (b"a\0b,c\n", "utf-8"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_encoding_is_found_out(data: bytes, encoding: str, size: int) -> None:
    guess = EncodingGuess()
    for n in range(0, len(data), size):
        guess.feed(data[n : n + size])

    assert guess.result() == encoding


def test_records_end_in_any_line_end() -> None:
    rows, _ = read(b'a,1\rb,2\nc,3\r\nd,"4\r5\n6"\r\n\r\ne', [2])

    assert rows == [(1, ["a", "1"]), (2, ["b", "2"]), (3, ["c", "3"]), (4, ["d", "4\r5\n6"]), (8, ["e"])]


@settings(max_examples=200)
@given(st.text(st.sampled_from("'=+-@\t\r\n ＝＋－＠4a"), max_size=6))
def test_no_cell_is_a_formula_and_every_text_comes_back(text: str) -> None:
    cell = without_formula(text)

    assert cell[:1] not in set("=+-@\t\r\n＝＋－＠")
    assert meant(cell) == text


def test_a_phone_number_stays_as_it_is() -> None:
    assert meant("+49 30 1234") == meant(without_formula("+49 30 1234")) == "+49 30 1234"
