"""How results are shown: tables and words for people, JSON for programs.

What comes from outside (addresses, replies, subjects) is shown without control characters: a mail server must not be
able to write to the terminal of an operator.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # columns, where no terminal sets a limit: a program that reads us wants whole lines
STYLES = {
    "delivered": "green",
    "ok": "green",
    "accepted": "cyan",
    "released": "cyan",
    "relayed": "cyan",
    "deferred": "yellow",
    "queued": "yellow",
    "held": "magenta",
    "unknown": "yellow",
    "warning": "yellow",
    "failing": "bold red",
    "failed": "yellow",
    "dead": "bold red",
    "bounced": "bold red",
    "expired": "bold red",
    "cancelled": "red",
    "suppressed": "red",
    "disabled": "red",
    "not configured": "yellow",
}


def print_json(value: Any) -> None:
    """One document on one line."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")
    sys.stdout.flush()


def print_json_lines(values: Iterable[Any]) -> None:
    for value in values:
        print_json(value)


def console(*, errors: bool = False) -> Console:
    """Of standard output, or standard error for what is said beside the result. Takes text as it is: no markup."""
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else UNBOUNDED
    return Console(stderr=errors, markup=False, emoji=False, highlight=False, width=width)


def say(text: str) -> None:
    """A word to the person at the terminal, beside the result."""
    console(errors=True).print(Text(text))


def working(text: str) -> AbstractContextManager[Any]:
    """Show that something is under way; nothing where nobody watches."""
    return console(errors=True).status(Text(text))


def table(columns: Sequence[str], *, numbers: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """An empty table; `numbers` are the columns that are set flush right, `whole` those never folded."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column in numbers else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in (*numbers, *whole))
    return made


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one a line; those without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(name, value if isinstance(value, Text) else clean(value))
    return grid


def clean(text: object) -> str:
    """Fit for a terminal: control characters, and what changes the direction of writing, become `�`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def coloured(word: str) -> Text:
    """A state or outcome in its colour."""
    return Text(word, style=STYLES.get(word, ""))


def time_of(at: datetime | None) -> str:
    """`2026-11-22 14:03:05Z`, "" for None."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def from_now(at: datetime | None, now: datetime, *, units: int = 1) -> str:
    """`in 4 min`, `2 h ago`, `now`; "" for None. With two units: `in 4 min 10 s`."""
    if at is None:
        return ""
    seconds = (at - now).total_seconds()
    if abs(seconds) < 1:
        return "now"
    words = span(abs(seconds), units)
    return f"in {words}" if seconds > 0 else f"{words} ago"


def span(seconds: float, units: int = 2) -> str:
    """The largest units, as `3 d 4 h` or `12 s`, to the nearest of the smallest of them."""
    parts = []
    lengths = (86_400, 3_600, 60, 1)
    first = next((n for n, length in enumerate(lengths) if seconds >= length), 3)
    smallest = lengths[min(first + units, 4) - 1]
    left = int(seconds / smallest + 0.5) * smallest
    for unit, length in zip(("d", "h", "min", "s"), lengths, strict=True):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:units]) or "0 s"


def count_of(count: int, noun: str) -> str:
    """`1 recipient`, `2,000 recipients`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
