"""The parts of a mail, flat and bounded.

The parser of the standard library recurses once a level and tries every open boundary on every line: a thousand levels
end in a RecursionError, a megabyte of boundaries in minutes. Here a few parts of a few levels are looked at, each up
to a length; what lies beyond is as if the mail had been cut off there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mailerd.feedback.reading.header import Header, media_type, parse_header, split_header
from mailerd.feedback.reading.text import decode, html_to_text, lines_of, transfer_decode

MAX_DEPTH = 6
MAX_PARTS = 40
MAX_PART = 131_072  # bytes of a part's content looked at
MAX_UNREAD = 2048  # of a picture and the like
MAX_CONTENT = 393_216  # bytes of all parts together
MAX_LOOKED_AT = 8_388_608  # bytes of the mail searched for boundaries
MAX_TEXT = 98_304  # characters of a part's text

_MBOX_LINE = re.compile(rb">?From [^\n]*\n")
_FIRST_BOUNDARY = re.compile(
    rb"^--([^\s-][^\r\n]{0,200}?|-{2,60}[^\s-][^\r\n]{0,200}?)[ \t]*\r?\n(?:Content-|\r?\n)",
    re.MULTILINE | re.IGNORECASE,
)
_READ = ("text/", "message/", "application/octet-stream")
_MESSAGES = frozenset(("message/rfc822", "message/global", "message/news"))


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf: no multipart. `raw` is its content as sent, cut at MAX_PART."""

    header: Header
    type: str
    parameters: dict[str, str]
    raw: bytes

    @property
    def is_message(self) -> bool:
        return self.type in _MESSAGES

    def content(self) -> bytes:
        """The content without its transfer encoding."""
        return transfer_decode(self.raw, self.header.text("content-transfer-encoding", 40))

    def text(self) -> str:
        """The content in characters, lines ended by \\n; HTML as its words."""
        text = lines_of(decode(self.content(), self.parameters.get("charset", ""))[:MAX_TEXT])
        return html_to_text(text) if self.type == "text/html" else text

    @property
    def filename(self) -> str:
        _, parameters = media_type(self.header.text("content-disposition"))
        return parameters.get("filename") or self.parameters.get("name", "")


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail's header and its leaves in order."""

    header: Header
    type: str
    parameters: dict[str, str]
    parts: tuple[Part, ...]

    def first(self, *types: str) -> Part | None:
        """The first part of one of these types."""
        return next((part for part in self.parts if part.type in types), None)


def read_mail(content: bytes) -> Mail:
    """Take a mail apart. Whatever `content` is, there is at least one part."""
    if b"\n" not in content[:MAX_PART] and b"\r" in content[:MAX_PART]:  # lines as old Macintoshes ended them
        content = content[:MAX_CONTENT].replace(b"\r", b"\n")
    match = _MBOX_LINE.match(content, 0, 1000)
    start = match.end() if match else 0
    end = min(len(content), start + MAX_LOOKED_AT)
    header_end, body = split_header(content, start, end)
    header = parse_header(content[start:header_end])
    kind, parameters = _type_of(header)
    parts: list[Part] = []
    _collect(content, body, end, header, 0, parts)
    return Mail(header, kind, parameters, tuple(parts))


def _type_of(header: Header) -> tuple[str, dict[str, str]]:
    kind, parameters = media_type(header.text("content-type"))
    return kind if "/" in kind else "text/plain", parameters


def _collect(content: bytes, start: int, end: int, header: Header, depth: int, parts: list[Part]) -> None:
    """Add the leaves of one part to `parts`; recursion ends at MAX_DEPTH."""
    kind, parameters = _type_of(header)
    if kind.startswith("multipart/") and depth < MAX_DEPTH:
        spans = list(_spans(content, start, end, parameters.get("boundary", ""), MAX_PARTS - len(parts)))
        for begin, stop in spans:
            header_end, body = split_header(content, begin, stop)
            _collect(content, body, stop, parse_header(content[begin:header_end]), depth + 1, parts)
            if len(parts) >= MAX_PARTS:
                return
        if spans:
            return
        kind = "text/plain"  # its boundary never comes: whatever there is, is text
    most = MAX_PART if kind.startswith(_READ) else MAX_UNREAD
    left = MAX_CONTENT - sum(len(part.raw) for part in parts)
    parts.append(Part(header, kind, parameters, content[start : min(end, start + most, start + left)]))


def _spans(content: bytes, start: int, end: int, boundary: str, most: int) -> Iterator[tuple[int, int]]:
    """Where the parts of a multipart lie: at most `most`, the last up to the end when its boundary is missing."""
    delimiter = b"--" + boundary.encode("utf-8", "replace")
    if not boundary or content.find(delimiter, start, end) < 0:
        match = _FIRST_BOUNDARY.search(content, start, min(end, start + MAX_PART))
        if match is None:
            return
        delimiter = b"--" + match[1]
    at = _next_delimiter(content, delimiter, start, end)
    while at < end and most > 0:
        most -= 1
        line = content.find(b"\n", at, end)
        if line < 0 or content[at + len(delimiter) : at + len(delimiter) + 2] == b"--":
            return
        at = _next_delimiter(content, delimiter, line + 1, end)
        yield line + 1, at


def _next_delimiter(content: bytes, delimiter: bytes, start: int, end: int) -> int:
    """Where the next line begins that is this boundary; `end` when none is."""
    if content.startswith(delimiter, start):
        return start
    at = content.find(b"\n" + delimiter, max(start - 1, 0), end)
    return end if at < 0 else at + 1
