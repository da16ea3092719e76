"""The rows that were not taken, as a file that people mend and import again. Pure.

It has the columns and cells of the file that came, cut by the same delimiter, behind three columns of ours, which an
import reads over: import_line, import_code and import_reason. Of JSON lines it has line, code, detail and content.
"""

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec

from mailerd.campaigns.contacts.csv_reading import meant, without_formula
from mailerd.campaigns.contacts.imports.values import Position, RefusedRow, Settings

OWN = ("import_line", "import_code", "import_reason")
OF_LINES = ("line", "code", "detail", "content")
MARK = "\ufeff"  # spreadsheets take a file without it for one of another encoding


class RefusedFile:
    """Writes it: `head`, then `lines` of the rows in their order."""

    def __init__(self, settings: Settings, position: Position) -> None:
        self._delimiter = settings.delimiter or ","
        self._kept = [n for n, name in enumerate(position.names) if name not in OWN]
        self._names = position.names

    def head(self) -> str:
        """The names of columns. Behind a byte order mark, where the delimiter tells of a spreadsheet."""
        if not self._names:
            return self._written([OF_LINES])
        head = self._written([[*OWN, *(_harmless(self._names[n]) for n in self._kept)]])
        return head if self._delimiter == "," else MARK + head

    def lines(self, rows: Iterable[RefusedRow]) -> str:
        return self._written([str(row.line), row.code, row.detail, *self._cells(row)] for row in rows)

    def _cells(self, row: RefusedRow) -> list[str]:
        cells = _cells_of(row) if self._names else None
        if cells is None:  # only its beginning is known
            return [without_formula(row.content)]
        more = cells[len(self._names) :]
        return [_harmless(cell) for cell in (*(cells[n] for n in self._kept if n < len(cells)), *more)]

    def _written(self, rows: Iterable[Sequence[str]]) -> str:
        out = io.StringIO()
        csv.writer(out, delimiter=self._delimiter, lineterminator="\r\n").writerows(rows)  # RFC 4180 section 2
        return out.getvalue()


def _harmless(cell: str) -> str:
    """A cell as it came, that means the same and that no spreadsheet runs."""
    return without_formula(meant(cell))


def _cells_of(row: RefusedRow) -> list[str] | None:
    if row.code == "unreadable":
        return None
    try:
        return msgspec.json.decode(row.content, type=list[str])
    except msgspec.MsgspecError:
        return None
