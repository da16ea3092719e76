"""Rows that fit any terminal: what does not fit beside the rest goes below, and no address or id is cut in pieces."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2  # columns between cells
INDENT = 4  # columns before what stands below its row
Cell = str | Text


class Listing:
    """A table that may give up columns.

    `below` are those that go below their rows, the first first, as many as it takes for the others to fit; there they
    stand as `name value`, broken at spaces. `numbers` are set flush right. Cells are one line each.
    """

    def __init__(self, columns: Sequence[str], *, below: Sequence[str] = (), numbers: Sequence[str] = ()) -> None:
        self._columns = list(columns)
        self._below = [self._columns.index(name) for name in below]
        self._numbers = {self._columns.index(name) for name in numbers}
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: Cell) -> None:
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [
            max(cell_len(name), *(cell_len(row[index].plain) for row in self._rows), 0)
            for index, name in enumerate(self._columns)
        ]
        kept = self._kept(widths, options.max_width)
        yield self._line([Text(name, style="bold") for name in self._columns], kept, widths)
        yield Text("─" * min(options.max_width, _width(kept, widths)))
        for row in self._rows:
            yield self._line(row, kept, widths)
            moved = [index for index in range(len(row)) if index not in kept and row[index].plain]
            yield from self._moved(console, row, moved, options.max_width)

    def _kept(self, widths: Sequence[int], room: int) -> list[int]:
        kept = list(range(len(widths)))
        for index in self._below:
            if _width(kept, widths) <= room:
                break
            kept.remove(index)
        return kept

    def _line(self, cells: Sequence[Text], kept: Sequence[int], widths: Sequence[int]) -> Text:
        line = Text(overflow="fold")
        for index in kept:
            pad = " " * (widths[index] - cell_len(cells[index].plain))
            line.append_text(Text.assemble(pad, cells[index]) if index in self._numbers else cells[index])
            if index != kept[-1]:
                line.append(" " * GAP if index in self._numbers else pad + " " * GAP)
        return line

    def _moved(self, console: Console, row: Sequence[Text], moved: Sequence[int], room: int) -> Iterable[Text]:
        """What stands below a row: side by side while there is room, so that nothing is broken which need not be."""
        line = Text()
        for index in moved:
            name = self._columns[index]
            item = Text.assemble((f"{name} " if name else "", "dim"), row[index])
            if line and INDENT + cell_len(line.plain) + GAP + cell_len(item.plain) <= room:
                line.append(" " * GAP)
                line.append_text(item)
                continue
            yield from _indented(console, line, room)
            line = item
        yield from _indented(console, line, room)


def _indented(console: Console, text: Text, room: int) -> Iterable[Text]:
    if text:
        for line in text.wrap(console, max(1, room - INDENT), overflow="fold"):
            yield Text.assemble(" " * INDENT, line)


def _width(kept: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[index] for index in kept) + GAP * (len(kept) - 1)
