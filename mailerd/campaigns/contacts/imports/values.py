"""What an import is asked to do, and how far it is. Pure."""

from datetime import datetime
from typing import Literal

from msgspec import Struct

Mode = Literal["upsert", "skip", "unsubscribe"]
State = Literal["receiving", "processing", "completed", "failed", "cancelled"]
MAX_ERRORS = 100_000  # refused rows of an import that are kept


class Consent(Struct, frozen=True, kw_only=True):
    """How the people of a file agreed, for the ledger of consent. `at` None: when it was imported."""

    method: str
    text_version: str = ""
    ip: str = ""
    at: datetime | None = None


class Settings(Struct, frozen=True, kw_only=True):
    """How a file is read, as stored with its import.

    `mapping`: fields by the names of columns. `unknown`: what becomes of columns that are called as no field is. Empty
    `encoding` and `delimiter` are found out.
    """

    format: Literal["csv", "json"] = "csv"
    encoding: str = ""
    delimiter: str = ""
    mapping: dict[str, str] = {}
    unknown: Literal["ignore", "custom_fields"] = "ignore"
    tags: list[str] = []
    consent: Consent | None = None


class Position(Struct, kw_only=True):
    """Where an import is, beside the byte, and what it counts beside the columns of its row.

    `columns` are the fields of the file's columns, "" for those that are ignored, whose names `ignored` has; `names`
    are those of all columns, as the file has them.
    """

    line: int = 0
    skipping: bool = False
    wary: int = 0  # up to this line records have few lines
    header: bool = False  # the first record is still to be left out
    columns: list[str] = []
    ignored: list[str] = []
    names: list[str] = []
    duplicates: int = 0  # rows whose address stands in the file again
    not_subscribed: int = 0  # rows that did not subscribe, as the address is suppressed or had left the list
    erased: int = 0  # of those skipped: who was erased
    errors: int = 0  # refused rows that are kept
    seconds: float = 0.0  # of work so far


class RefusedRow(Struct, frozen=True):
    """A row that was not taken: its first line, a word for programs, a sentence, and what it has.

    `content` is a JSON list of its cells; of a row that cannot be cut into cells, or is very long, its beginning; of
    JSON lines the line.
    """

    line: int
    code: str
    detail: str
    content: str


class Counts(Struct, kw_only=True):
    """What became of rows: all of them are one of created, updated, unchanged, skipped, refused, duplicates."""

    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    refused: int = 0
    duplicates: int = 0
    not_subscribed: int = 0
    erased: int = 0
