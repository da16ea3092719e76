"""One JSON object a line, cut as `CsvReader` cuts CSV: any pieces of the same bytes give the same records. Pure."""

from mailerd.campaigns.contacts.csv_reading import MAX_RECORD, SHOWN, Block, Fault

TOO_LONG = f"The line has more than {MAX_RECORD:,} bytes."


class JsonLinesReader:
    """Cuts the bytes of a file into lines; each is a record of one cell. See `CsvReader`."""

    def __init__(self, *, line: int = 0, skipping: bool = False) -> None:
        self._rest = b""
        self._pending = 0
        self._line = line
        self._skipping = skipping

    def feed(self, data: bytes, *, final: bool = False) -> Block:
        """The lines that end within `data`; with `final` no more will come, and all is consumed."""
        self._pending += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if final and self._rest:
            lines.append(self._rest)
            self._rest = b""
        rows: list[list[str]] = []
        numbers: list[int] = []
        faults: list[Fault] = []
        for text in lines:
            self._line += 1
            if self._skipping:
                self._skipping = False
            elif len(text) > MAX_RECORD:
                faults.append(self._fault(text, self._line))
            else:
                rows.append([text.decode("utf-8", "surrogateescape").strip()])
                numbers.append(self._line)
        if len(self._rest) > MAX_RECORD and not self._skipping:
            faults.append(self._fault(self._rest, self._line + 1))
            self._skipping = True
        if self._skipping:
            self._rest = b""
        consumed, self._pending = self._pending - len(self._rest), len(self._rest)
        return Block(rows, numbers, faults, consumed, self._line, self._skipping)

    def _fault(self, text: bytes, line: int) -> Fault:
        return Fault(line, "unreadable", TOO_LONG, text[:SHOWN].decode("utf-8", "replace"))
