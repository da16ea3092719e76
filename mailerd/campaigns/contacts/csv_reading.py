"""CSV as people have it, read piece by piece: any pieces of the same bytes give the same records. Pure.

    guess = EncodingGuess()                     # while the file comes in
    guess.feed(data) …
    reader = CsvReader(guess.result(), ";")     # later, from the beginning or from where it was left
    block = reader.feed(data) …

Encodings: a byte order mark decides, else NULs at every other byte mean UTF-16. What is left is UTF-8 when all of the
file is, or when more of its characters beyond ASCII are UTF-8 than are not (a damaged file: the damaged records are
refused); else it is Windows-1252. Records end in CR LF, LF or a lone CR; a quoted field may have line ends within. A
record that does not end, a quote that is not closed, cost one line and not the rest of the file. So what such a record
took for its own is read again, and there records have few lines: else each line of it might be read as often as there
are lines before it.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec import Struct

MAX_RECORD = 1_000_000  # characters
JOINED = 16  # lines of a record that begins where a broken one has been read already
LONGEST_CELL = 131_072  # characters: csv.field_size_limit() as Python sets it, for the whole process
SHOWN = 200  # characters of a record that a fault shows
DELIMITERS = ",;\t|"
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "cp1252")
_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "cp1252": b"",
}
_SAMPLE = 4_096  # bytes looked at for NULs
_NO_CHARACTER = "\udcff"
BROKEN = f"A quote is not closed, or the record has more than {MAX_RECORD:,} characters, or a cell {LONGEST_CELL:,}."
_BEGINS = r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]"  # a formula, those of full width too
_FORMULA = re.compile(f"'*{_BEGINS}")  # what a spreadsheet would run, also behind quotes of ours
_QUOTED_FORMULA = re.compile(f"'+{_BEGINS}")


class Fault(Struct, frozen=True):
    """A record that cannot be read, by the line in which it begins (from 1); `content` is its beginning."""

    line: int
    code: str
    detail: str
    content: str


class Block(Struct):
    """The records that a piece completed: `lines[n]` is where `rows[n]` begins. `consumed`: bytes since the last block.

    Where a file is left after a block it can be gone on with: a new reader from the same byte on, with `line`,
    `skipping` and `wary` of the block.
    """

    rows: list[list[str]]
    lines: Sequence[int]
    faults: list[Fault]
    consumed: int
    line: int
    skipping: bool
    wary: int = 0


class EncodingGuess:
    """Finds out in which encoding a file is that comes in piece by piece."""

    def __init__(self) -> None:
        self._head = b""
        self._decoder = _decoder("utf-8")
        self._good = 0  # characters beyond ASCII that are UTF-8
        self._bad = 0  # bytes that are not

    def feed(self, data: bytes) -> None:
        if len(self._head) < _SAMPLE:
            self._head += data[: _SAMPLE - len(self._head)]
        self._count(self._decoder.decode(data))

    def result(self) -> str:
        """One of `ENCODINGS`, for all that was fed."""
        for encoding, mark in _MARKS.items():
            if mark and self._head.startswith(mark):
                return encoding
        if wide := _wide(self._head):
            return wide
        unfinished = len(self._decoder.getstate()[0])
        return "utf-8" if self._bad + unfinished == 0 or self._good > self._bad + unfinished else "cp1252"

    def _count(self, text: str) -> None:
        if text.isascii():
            return
        try:
            text.encode()
            bad = 0
        except UnicodeEncodeError:
            bad = sum(1 for letter in text if "\udc80" <= letter <= "\udcff")
        self._bad += bad
        self._good += len(text) - len(text.encode("ascii", "ignore")) - bad


def _wide(head: bytes) -> str:
    """UTF-16 without a mark: Latin letters have a NUL beside them."""
    pairs = len(head) // 2
    if pairs < 2:
        return ""
    if head[1::2].count(0) > pairs * 0.4 and not head[0::2].count(0):
        return "utf-16-le"
    if head[0::2].count(0) > pairs * 0.4 and not head[1::2].count(0):
        return "utf-16-be"
    return ""


class CsvReader:
    """Cuts the bytes of a file into records.

    Lone surrogates in a cell are bytes that are not in the encoding. Empty lines are records without cells.
    """

    def __init__(
        self,
        encoding: str,
        delimiter: str,
        *,
        start: int = 0,
        line: int = 0,
        skipping: bool = False,
        wary: int = 0,
    ) -> None:
        """`start` is the byte that comes first, `line` how many lines ended before it.

        Records that begin in lines up to `wary` have at most `JOINED` lines.
        """
        self._encoding = encoding
        self._errors = _errors(encoding)
        self._delimiter = delimiter
        self._decoder = _decoder(encoding)
        self._marked = start == 0  # there may be a byte order mark
        self._rest = ""
        self._pending = 0  # bytes that are fed and not consumed
        self._line = line
        self._skipping = skipping
        self._wary = wary

    def feed(self, data: bytes, *, final: bool = False) -> Block:
        """The records that end within `data`; with `final` no more will come, and all is consumed."""
        self._pending += len(data)
        text = self._rest + self._decode(data, final)
        lines = self._cut_lines(text, final=final)
        if '"' not in text and max(map(len, lines), default=0) <= LONGEST_CELL:
            read = _Read(list(csv.reader(lines, delimiter=self._delimiter)), range(1, len(lines) + 1), (), len(lines))
        else:
            read = self._read_quoted(lines, final=final)
        numbers = [self._line + number for number in read.lines]
        faults = [_fault(self._line + number, lines[number - 1]) for number in read.broken]
        self._line += read.taken
        if len(self._rest) > MAX_RECORD and read.taken == len(lines):
            faults.append(_fault(self._line + 1, self._rest))
            self._rest = "\r" if self._rest.endswith("\r") else ""
            self._skipping = True
        self._rest = "".join(lines[read.taken :]) + self._rest
        left = len(self._rest.encode(self._encoding, self._errors)) + len(self._decoder.getstate()[0])
        consumed, self._pending = self._pending - left, left
        return Block(read.rows, numbers, faults, consumed, self._line, self._skipping, self._wary)

    def _decode(self, data: bytes, final: bool) -> str:
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError:  # half a character of UTF-16 at the very end
            text = self._decoder.decode(data) + _NO_CHARACTER
            self._decoder.reset()
        if self._marked and text:
            self._marked = False
            text = text.removeprefix("\ufeff")
        return text

    def _cut_lines(self, text: str, *, final: bool) -> list[str]:
        """The whole lines of it, ends included; the rest waits. What is being skipped goes first."""
        lines = list(io.StringIO(text, newline=""))
        self._rest = ""
        if lines and not final and not lines[-1].endswith("\n"):  # a CR may have its LF in the next piece
            self._rest = lines.pop()
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
            self._line += 1
        elif self._skipping:
            self._rest = "\r" if self._rest.endswith("\r") else ""
        return lines

    def _read_quoted(self, lines: list[str], *, final: bool) -> "_Read":
        """Records that may have several lines. A broken one costs the line that it begins in."""
        rows: list[list[str]] = []
        numbers: list[int] = []
        broken: list[int] = []
        begin = 0
        while begin < len(lines):
            done = begin
            wary = self._line + begin < self._wary
            stop = begin + JOINED if wary else len(lines)
            seen = len(lines) + 1
            reader = csv.reader(_ending(lines, begin, stop), delimiter=self._delimiter)
            try:
                for cells in reader:
                    end = begin + reader.line_num
                    if _length(lines, done, end) > MAX_RECORD:
                        break
                    rows.append(cells)
                    numbers.append(done + 1)
                    done = end
                    if wary:
                        break
            except _NoMoreLinesError:
                may_go_on = not final and (stop > len(lines) or not wary)
                if done == len(lines) or (may_go_on and self._is_short(lines, done)):
                    return _Read(rows, numbers, broken, done)
            except csv.Error:  # a cell is too long
                seen = begin + reader.line_num
            if wary and done > begin:
                begin = done
                continue
            if not wary:
                self._wary = self._line + min(seen, _end_of_bound(lines, done))
            broken.append(done + 1)
            begin = done + 1
        return _Read(rows, numbers, broken, begin)

    def _is_short(self, lines: list[str], begin: int) -> bool:
        return _length(lines, begin, len(lines)) + len(self._rest) <= MAX_RECORD


class _Read(NamedTuple):
    """What was read of some lines: the records, and by their number (from 1) the lines where those and faults begin."""

    rows: list[list[str]]
    lines: Sequence[int]
    broken: Sequence[int]
    taken: int  # lines


class _NoMoreLinesError(Exception):
    """The lines are used up; it tells a record that is complete from one that is not."""


def _end_of_bound(lines: list[str], begin: int) -> int:
    """How many lines there are up to the one in which a record that begins there has more than `MAX_RECORD`."""
    lengths = accumulate(map(len, lines[begin:]))
    return next((n for n, length in enumerate(lengths, begin + 1) if length > MAX_RECORD), len(lines) + 1)


def _ending(lines: list[str], begin: int, end: int) -> Iterator[str]:
    yield from lines[begin:end]  # islice would walk from the first one
    raise _NoMoreLinesError


def _fault(line: int, text: str) -> Fault:
    return Fault(line, "unreadable", BROKEN, text[:SHOWN])


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(encoding)(_errors(encoding))


def _errors(encoding: str) -> str:
    """What makes every byte come back as it was: we count in bytes what we have read as text."""
    return "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"


def _length(lines: list[str], begin: int, end: int) -> int:
    return len(lines[begin]) if end - begin == 1 else sum(map(len, lines[begin:end]))


def without_formula(text: str) -> str:
    """The cell that stands for `text`: with an apostrophe before it where a spreadsheet would run it.

    That is when it begins with = + - @ (also of full width), TAB, CR or LF, or with apostrophes and one of these: so
    `meant` gives back any text, `+49 30 123` and `'=1` too.
    """
    return "'" + text if _FORMULA.match(text) else text


def meant(cell: str) -> str:
    """What a cell stands for: one apostrophe before one of these, or before more of them, is taken off."""
    return cell[1:] if _QUOTED_FORMULA.match(cell) else cell
