"""Header fields of any mail, however broken: bounded in number and length, names in lower case."""

import re
from dataclasses import dataclass, field

from mailerd.feedback.reading.text import decode, one_line
from mailerd.wire.words import decode_words

MAX_HEADER = 65_536  # bytes looked at
MAX_FIELDS = 400
MAX_VALUE = 4096  # bytes of one field

_END = re.compile(rb"\n[ \t]*\r?\n|\r\r")
_FIELD = re.compile(rb"([!-9;-~]{1,80})[ \t]*:")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_ADDRESS_IN_ANGLES = re.compile(r"<([^<>]*)>")
_PARAMETER = re.compile(r";\s*([\w!#$&+.^`|~*-]{1,60})\s*=\s*(?:\"((?:[^\"\\]|\\.){0,300})\"?|([^;\s]{0,300}))")


@dataclass(frozen=True, slots=True)
class Header:
    """The fields in the order they came in; values unfolded, as bytes."""

    fields: tuple[tuple[str, bytes], ...] = ()
    first: dict[str, bytes] = field(default_factory=dict)  # the first value of each name

    def text(self, name: str, longest: int = MAX_VALUE) -> str:
        """The first value of a field, encoded words decoded, one printable line; "" without it."""
        value = self.first.get(name)
        return "" if value is None else one_line(decode_words(decode(value, "")), longest)

    def all(self, name: str) -> list[str]:
        """Every value of a field, as `text` gives it."""
        return [one_line(decode(value, ""), MAX_VALUE) for known, value in self.fields if known == name]

    def __contains__(self, name: str) -> bool:
        return name in self.first

    def address(self, name: str) -> str:
        """The first address in a field, as it stands there; "" for an empty one as for none."""
        value = self.text(name)
        if angles := _ADDRESS_IN_ANGLES.findall(value):
            return str(angles[-1]).strip()
        return next((word.strip(",;\"'()") for word in value.split() if "@" in word), "")

    def sender(self) -> str:
        """Who wrote it."""
        return self.address("from") or self.text("from", 100)


def split_header(content: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the header that begins at `start` ends, and where the body begins; the search is bounded."""
    if content[start : start + 1] == b"\n":
        return start, start + 1
    if content[start : start + 2] == b"\r\n":
        return start, start + 2
    match = _END.search(content, start, min(end, start + MAX_HEADER))
    return (match.start(), match.end()) if match else (end, end)


def parse_header(data: bytes) -> Header:
    """The fields in `data`; lines that are none are passed over."""
    fields: list[tuple[str, bytes]] = []
    first: dict[str, bytes] = {}
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    for line in _FOLD.sub(b"", data[:MAX_HEADER]).split(b"\n"):
        match = _FIELD.match(line)
        if match is None:
            continue
        name, value = match[1].decode("ascii").lower(), line[match.end() : match.end() + MAX_VALUE].strip()
        fields.append((name, value))
        first.setdefault(name, value)
        if len(fields) == MAX_FIELDS:
            break
    return Header(tuple(fields), first)


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """A Content-Type as (type, parameters), both in lower case but for the parameters' values."""
    kind = value.partition(";")[0].strip().lower()
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        quoted, token = match[2], match[3]
        text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
        found.setdefault(match[1].lower().rstrip("*"), text)
    return kind, found
