"""Inputs made of good ones: for hypothesis, and those that are long and repeat something."""

import re
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from tests.adversary.targets import Target

CORPUS = Path(__file__).with_name("corpus")
NASTY = (
    *(
        b"",
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n.\r\n",
        b" ",
        b"\t",
        b"\\",
        b'"',
        b"'",
        b"(",
        b")",
        b"<",
        b">",
        b"[",
        b"]",
    ),
    *(
        b"{",
        b"}",
        b"{{",
        b"{%",
        b"@",
        b".",
        b",",
        b";",
        b":",
        b"=",
        b"=?",
        b"?=",
        b"=?utf-8?q?",
        b"%",
        b"%00",
        b"+",
        b"-",
    ),
    *(b"--", b"/", b"//", b"../", b"&", b"&amp;", b"&#0;", b"<!--", b"-->", b"<![CDATA[", b"#", b"*", b"|", b"\xff"),
    *(b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff\xfe", b"\xf0\x9f\x92\xa9", b"\xd9\xa0"),
    *(
        b"0",
        b"-1",
        b"99999999999999999999",
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b"\\u0000",
        b"\\ud800",
        b"a",
        b"A" * 70,
    ),
)
LONGEST = 4_096  # bytes of an input of hypothesis


def found_cases(target: Target) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target.name).glob("*")) if path.is_file()]


def pieces(target: Target) -> list[bytes]:
    """What the good inputs are made of."""
    found = {piece for seed in target.seeds for piece in re.findall(rb"\w+|\W", seed)}
    return sorted(found)[:200]


def mutated(target: Target) -> st.SearchStrategy[bytes]:
    """Good inputs, cut and mixed with each other and with what is often trouble."""
    parts = st.sampled_from([*NASTY, *pieces(target)]) | st.binary(max_size=6)
    edit = st.tuples(st.floats(0, 1), st.integers(0, 12), st.lists(parts, max_size=4).map(b"".join), st.integers(1, 20))
    edits = st.builds(_edited, st.sampled_from(target.seeds), st.lists(edit, min_size=1, max_size=6))
    mixture = st.lists(parts, max_size=60).map(b"".join)
    return st.one_of(edits, edits, mixture, st.binary(max_size=200)).map(lambda data: data[:LONGEST])


def _edited(data: bytes, edits: list[tuple[float, int, bytes, int]]) -> bytes:
    for where, gone, put, times in edits:
        at = int(where * len(data))
        data = data[:at] + put * times + data[at + gone :]
    return data


def long_ones(target: Target, size: int) -> Iterator[bytes]:
    """One thing again and again, alone and where a good input has its middle or its end."""
    for seed in target.seeds:
        if seed:
            yield seed * (size // len(seed) + 1)
    for index, piece in enumerate(NASTY):
        if piece:
            seed = target.seeds[index % len(target.seeds)]
            at = (len(seed) * (index % 5)) // 4
            yield seed[:at] + piece * (size // len(piece)) + seed[at:]
