"""What came back of our message: as a part, or copied into the text."""

import re

from mailerd.feedback.reading.header import Header, parse_header, split_header
from mailerd.feedback.reading.mime import Mail, Part
from mailerd.feedback.reading.values import Returned

MAX_RETURNED = 65_536  # bytes of header

HEADERS_ONLY = frozenset(
    ("text/rfc822-headers", "message/rfc822-headers", "message/global-headers", "text/rfc822-header")
)
_WITH_HEADER = frozenset(("message/rfc822", "message/global", "message/partial", "message/news")) | HEADERS_ONLY
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,900}>")
_NAMED = re.compile(
    r"^[^\w\n]{0,12}(?:original )?message[- ]?id\s?[::]\s?(<[^<>\s]{1,900}>)", re.IGNORECASE | re.MULTILINE
)
_ANSWERED = re.compile(r"(<[^<>\s]{1,900}>)")
_FIELD_LINE = re.compile(r">?\s{0,8}([A-Za-z][A-Za-z0-9-]{1,40}):(\s|$)?")
_KNOWN = frozenset(
    [
        "received",
        "from",
        "to",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "return-path",
        "content-type",
        "dkim-signature",
        "x-mailer",
        "reply-to",
        "cc",
        "sender",
        "list-unsubscribe",
        "content-transfer-encoding",
        "x-originating-ip",
        "x-received",
        "feedback-id",
        "list-id",
    ]
)
_OF_MACHINES = frozenset(["received", "message-id", "mime-version", "return-path", "dkim-signature", "x-received"])
_ENOUGH = 3  # known fields in a row: fewer may be a sentence about the message


def returned_part(mail: Mail) -> tuple[Returned, Header]:
    """Our message where it came back as a part of its own; empty when it did not."""
    for part in mail.parts:
        if part.type in _WITH_HEADER or _holds_a_message(part):
            found = returned_from(part.content())
            if found.header:
                return found, parse_header(found.header)
    return Returned(), Header()


def _holds_a_message(part: Part) -> bool:
    """Whether something labelled otherwise is a message: an attachment `original.eml`, or headers as text."""
    if part.filename.lower().endswith((".eml", ".msg", ".hdr")):
        return True
    if part.type not in ("text/plain", "application/octet-stream") or "content-type" not in part.header:
        return False
    first = _FIELD_LINE.match(part.raw[:200].lstrip().decode("latin-1"))
    return first is not None and first[1].lower() in _OF_MACHINES


def returned_from(content: bytes) -> Returned:
    """The header at the start of `content`, a message or only its header."""
    content = content[: MAX_RETURNED * 2].lstrip(b"\r\n")
    if content.startswith((b"From ", b">From ")):
        content = content.partition(b"\n")[2]
    end, _ = split_header(content, 0, len(content))
    return _returned(content[: min(end, MAX_RETURNED)])


def _returned(header: bytes) -> Returned:
    fields = parse_header(header)
    if not _KNOWN & fields.first.keys():
        return Returned()
    match = _MESSAGE_ID.search(fields.text("message-id", 1000))
    return Returned(header, match[0] if match else "")


def find_copy(lines: list[str], start: int = 0) -> int | None:
    """The line where a copy of a message's header begins in a text: several known fields in a row, some of machines."""
    begin, seen = -1, set[str]()
    for number in range(start, len(lines)):
        line = lines[number]
        match = _FIELD_LINE.match(line)
        if match and (match[2] is not None or match[1].lower() in _KNOWN):  # `Message-ID:<…>` is one, `http:` is none
            if begin < 0:
                begin = number
            seen.add(match[1].lower())
            if len(seen & _KNOWN) >= _ENOUGH and seen & _OF_MACHINES:
                return begin
        elif begin >= 0 and not line[:1].isspace():
            begin, seen = -1, set()
    return None


def named_message(text: str, header: Header) -> Returned:
    """Our message where a report only names it: as `Message-ID: <…>` in its text, or as what it answers."""
    match = _NAMED.search(text) or _ANSWERED.match(header.text("in-reply-to", 1000))
    return Returned(message_id=match[1]) if match else Returned()


def copied(lines: list[str], begin: int) -> tuple[Returned, Header]:
    """Our message's header out of the lines of a text, from `begin` to the next empty one."""
    indent = len(lines[begin]) - len(lines[begin].lstrip(" >"))
    header: list[str] = []
    for line in lines[begin : begin + 1000]:
        if not line.strip(" >"):
            break
        header.append(line[indent:] if not line[:indent].strip(" >") else line)
    found = _returned("\r\n".join(header).encode("utf-8", "replace")[:MAX_RETURNED])
    return found, parse_header(found.header)
