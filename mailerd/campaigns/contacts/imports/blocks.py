"""The blocks of a file: read, checked and made ready beside the event loop, one ahead of what is being written."""

import asyncio
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from mailerd.campaigns.contacts.csv_reading import CsvReader
from mailerd.campaigns.contacts.imports.columns import is_separator
from mailerd.campaigns.contacts.imports.json_lines import JsonLinesReader
from mailerd.campaigns.contacts.imports.rows import Batch, Person, RowReader
from mailerd.campaigns.contacts.imports.store import PART, Import, ImportStore

Line = tuple[Person, str]


class Ready(Struct):
    """A block whose rows can be written. `end` is the byte after it, `final`: there is nothing behind it.

    `lines` are the people by address, in the order of addresses, each with its line for COPY from the second column on.
    """

    batch: Batch
    lines: dict[str, Line]
    end: int
    line: int
    skipping: bool
    wary: int
    final: bool

    @property
    def done_parts(self) -> int:
        """So many parts of the file are not needed any more."""
        return self.end // PART


class Blocks:
    """The blocks of an import, from where it is."""

    def __init__(self, work: Import, store: ImportStore, definitions: Mapping[str, str]) -> None:
        self._work = work
        self._store = store
        self._end = work.bytes_done
        self._part, self._offset = divmod(work.bytes_done, PART)
        self._header = work.position.header
        self._begins = work.bytes_done == 0 and work.settings.format == "csv"
        self._reader: CsvReader | JsonLinesReader
        position, settings = work.position, work.settings
        if settings.format == "json":
            self._reader = JsonLinesReader(line=position.line, skipping=position.skipping)
        else:
            self._reader = CsvReader(
                settings.encoding,
                settings.delimiter,
                start=work.bytes_done,
                line=position.line,
                skipping=position.skipping,
                wary=position.wary,
            )
        self._rows = RowReader(
            position.columns,
            definitions,
            work.mode,
            names=position.names,
            decimal_comma=settings.format == "csv" and settings.delimiter == ";",
        )

    async def next(self) -> Ready | None:
        """The next block that has rows, or the last; None behind that."""
        while self._end < self._work.bytes:
            data = (await self._store.part(self._work.id, self._part))[self._offset :]
            self._part, self._offset = self._part + 1, 0
            final = self._part * PART >= self._work.bytes
            if not data:
                return None  # cancelled, and swept already
            ready = await asyncio.to_thread(self._make, data, final)
            if ready.batch.rows or final:
                return ready
        return None

    def _make(self, data: bytes, final: bool) -> Ready:
        block = self._reader.feed(data, final=final)
        self._end += block.consumed
        for n, row in enumerate(block.rows):
            if not (self._header or self._begins):
                break
            if any(cell.strip() for cell in row):
                separator, self._begins = self._begins and is_separator(row), False
                if separator or self._header:
                    block.rows[n] = []
                self._header = self._header and separator
        batch = self._rows.read(block)
        mark = self._work.created_at.isoformat()
        constant = _escaped(self._work.tenant), f"{mark}\t{mark}\t{mark}\n"
        people = batch.people
        lines = {address: (people[address], _line(people[address], *constant)) for address in sorted(people)}
        return Ready(batch, lines, self._end, block.line, block.skipping, block.wary, final)


# What _line has, and the number before it.
LINE = (
    *("tenant", "email", "address", "first_name", "last_name", "phone", "time_zone", "custom_fields"),
    *("subscribed_at", "created_at", "updated_at"),
)


def _line(person: Person, tenant: str, times: str) -> str:
    """For COPY in its text format, where nothing but a backslash needs care: no value has a tab or a line end."""
    _, email, address, first_name, last_name, phone, time_zone, custom, _ = person
    fields = msgspec.json.encode(custom).decode() if custom else "{}"
    text = f"{email}\t{address}\t{first_name}\t{last_name}\t{phone}\t{time_zone}\t{fields}"
    if "\\" in text:
        text = _escaped(text)
    return f"{tenant}\t{text}\t{times}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")


def without_removals(line: Line, tenant: str, times: str) -> str:
    """The line of somebody new: of fields that are to be removed there are none."""
    person, text = line
    if None not in person.custom.values():
        return text
    custom = {name: value for name, value in person.custom.items() if value is not None}
    return _line(person._replace(custom=custom), _escaped(tenant), times)
