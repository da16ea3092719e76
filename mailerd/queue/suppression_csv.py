"""Suppressions as CSV: what people and other products have, read; what `export` writes, to be read again.

A tenant of `*` is all tenants; an empty one is left to whoever reads the file. A file may have a byte order mark, any
line ends, commas, semicolons or tabs, and a line of names or not. Without names the first column is the address. Each
line is taken or refused by itself.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from mailerd.errors import MailerdError
from mailerd.queue.suppression import normalised
from mailerd.wire.address import domain_to_ascii, parse_mailbox

FIELDS = ("address", "tenant", "stream", "topic", "reason", "source", "detail", "created_at", "expires_at")
# What other products call them.
NAMES = {
    "email": "address",
    "email_address": "address",
    "e-mail": "address",
    "recipient": "address",
    "type": "reason",
    "origin": "source",
    "description": "detail",
    "created": "created_at",
    "added_at": "created_at",
    "date": "created_at",
    "expires": "expires_at",
} | {name: name for name in FIELDS}
REASONS = {
    "bounce": "bounce",
    "bounced": "bounce",
    "hard_bounce": "bounce",
    "hardbounce": "bounce",
    "invalid": "bounce",
    "soft_bounce": "soft_bounce",
    "complaint": "complaint",
    "complained": "complaint",
    "spam": "complaint",
    "spamcomplaint": "complaint",
    "spam_report": "complaint",
    "abuse": "complaint",
    "unsubscribe": "unsubscribe",
    "unsubscribed": "unsubscribe",
    "manual": "manual",
    "manualsuppression": "manual",
}
SAMPLE = 65_536  # characters looked at to find the separator
LONGEST = 2_000  # characters of one field
MAX_WORD = 100  # characters of a stream, topic, tenant or source
MAX_DETAIL = 500
EVERYBODY = "*"  # in the column tenant: binds all tenants; no tenant can be called so
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run; an address may begin so


class NotCsvError(MailerdError):
    """The file as a whole cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: strings "" and times None where it does not say."""

    line: int
    address: str
    tenant: str = ""
    stream: str = ""
    topic: str = ""
    reason: str = ""
    source: str = ""
    detail: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """One line that is not taken, and why."""

    line: int
    text: str
    problem: str


def normalised_entry(text: str) -> str:
    """An address as suppressions have it: lower case, A-labels; `@example.com` for a whole domain.

    Raises ValueError with words for people.
    """
    if text.startswith("@"):
        return "@" + domain_to_ascii(text[1:])
    return normalised(parse_mailbox(text).address)


def read_rows(stream: io.TextIOBase | io.TextIOWrapper) -> Iterator[Row | BadRow]:
    """The lines of a file, opened with `newline=""`. Raises NotCsvError, at once or on the way."""
    line = 0
    try:
        for line, row in _rows(stream):  # noqa: B007
            yield row
    except csv.Error as error:
        raise NotCsvError(f"after line {line} the file cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise NotCsvError(f"after line {line} the file is not UTF-8 ({error.reason}): convert it") from None


def _rows(stream: io.TextIOBase | io.TextIOWrapper) -> Iterator[tuple[int, Row | BadRow]]:
    sample = stream.read(SAMPLE).removeprefix("\ufeff")
    if "\0" in sample:
        raise NotCsvError("this is no text file: expected CSV in UTF-8")
    separator = _separator(sample)
    columns: list[str] | None = None
    # Line by line: nothing that we read has line ends, and a quote that is not closed must not swallow what follows.
    for number, line in enumerate(_lines(sample, stream), 1):
        if not line.strip(f"{separator} \t"):
            continue
        if line.count('"') % 2 or "\0" in line:
            problem = "a quote is not closed" if "\0" not in line else "it has a NUL"
            yield number, BadRow(number, line[:200].replace("\0", ""), problem)
            continue
        (cells,) = csv.reader([line], delimiter=separator)
        if columns is None:
            columns = _columns(cells)
            if columns is not None:
                continue
            columns = ["address"]
        yield number, _row(number, columns, cells)


def _lines(sample: str, stream: io.TextIOBase | io.TextIOWrapper) -> Iterator[str]:
    """Lines whatever they end in, of what was read already and of the rest; bounded in length."""
    rest = sample
    while True:
        *whole, rest = rest.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from whole
        if len(rest) > LONGEST * len(FIELDS):
            raise NotCsvError(f"a line has more than {LONGEST * len(FIELDS)} characters: this is no list of addresses")
        more = stream.read(SAMPLE)
        if more.endswith("\r"):  # its \n may come with the next piece
            more += stream.read(1)
        if not more:
            break
        rest += more
    if rest:
        yield rest


def _separator(sample: str) -> str:
    first = sample.partition("\n")[0].partition("\r")[0]
    return max(",;\t", key=first.count)


def _columns(cells: list[str]) -> list[str] | None:
    """The names in the first line; None when it has an address."""
    if any("@" in cell for cell in cells):
        return None
    names = [NAMES.get(cell.strip().lower().replace(" ", "_"), "") for cell in cells]
    if "address" not in names:
        known = ", ".join(FIELDS)
        raise NotCsvError(f"the first line has neither an address nor a column called address: expected {known}")
    return names


def _row(line: int, columns: list[str], cells: list[str]) -> Row | BadRow:
    values = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name}
    try:
        return Row(
            line,
            normalised_entry(_plain(values.get("address", ""))),
            **{name: _word(name, values.get(name, "")) for name in ("tenant", "stream", "topic", "source")},
            reason=_reason(values.get("reason", "")),
            detail=_plain(values.get("detail", ""))[:MAX_DETAIL],
            created_at=_time("created_at", values.get("created_at", "")),
            expires_at=_time("expires_at", values.get("expires_at", "")),
        )
    except ValueError as error:
        return BadRow(line, ",".join(cells)[:200], str(error))


def _plain(text: str) -> str:
    """Without the quote by which `write_rows` keeps spreadsheets from running it."""
    return text[1:] if text[:1] == "'" and text[1:2] in FORMULAS else text


def _word(name: str, text: str) -> str:
    text = _plain(text)
    if len(text) > MAX_WORD or not text.isprintable():
        raise ValueError(f"{name} has more than {MAX_WORD} characters, or some that are not printable")
    return text


def _reason(text: str) -> str:
    if not text:
        return ""
    reason = REASONS.get(text.lower().replace(" ", "_").replace("-", "_"))
    if reason is None:
        raise ValueError(f"reason {text[:40]!r}: expected bounce, soft_bounce, complaint, unsubscribe or manual")
    return reason


def _time(name: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} {text[:40]!r}: expected a time such as 2026-11-22T09:30:00Z") from None


def write_rows(rows: Iterable[Row], *, header: bool = True) -> str:
    """CSV that `read_rows` reads and that no spreadsheet takes for formulas."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # RFC 4180 section 2
    if header:
        writer.writerow(FIELDS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in FIELDS])
    return out.getvalue()


def _cell(value: str | datetime | None) -> str:
    if value is None:
        return ""
    text = value.isoformat() if isinstance(value, datetime) else " ".join(value.splitlines())
    return "'" + text if text.startswith(FORMULAS) or (text[:1] == "'" and text[1:2] in FORMULAS) else text
