"""The documents that a mail carries: aggregate reports in XML or JSON, plain or compressed (pure).

Found and unpacked within bounds, whatever the mail says of them: types and names of attachments lie, the first bytes do
not. Anybody may write to the addresses that reports come to, so the bounds are those of the mail, not of a part.
"""

import binascii
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from mailerd.feedback.reading.header import media_type, parse_header, split_header
from mailerd.feedback.reading.text import transfer_decode

MAX_LOOKED_AT = 28_000_000  # bytes of a mail: 20 MB in base64
MAX_UNPACKED = 20_000_000  # bytes of all documents of a mail, and of what they were unpacked from
MAX_ATTACHMENTS = 5  # that could be documents
MAX_PARTS = 60
MAX_DELIMITERS = 1000  # of one multipart, with lines that only look like one
MAX_DEPTH = 4  # of parts in parts
MAX_ENTRIES = 20  # of an archive

GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
SPACE = b" \t\r\n\xef\xbb\xbf"  # and a byte order mark
UTF16 = (b"\xff\xfe", b"\xfe\xff")

_REST_OF_LINE = re.compile(rb"(--)?[ \t]{0,100}(?:\r?\n|\r?\Z)")
_LOCAL_HEADER = 30  # bytes of a file in an archive, before its name
_ENCRYPTED, _SIZES_FOLLOW = 0x01, 0x08
_DESCRIPTOR = 24  # bytes after a file, at most
_STORED, _DEFLATED = 0, 8


@dataclass(slots=True)
class Budget:
    """What may still be unpacked of one mail."""

    attachments: int = MAX_ATTACHMENTS
    unpacked: int = MAX_UNPACKED  # bytes
    parts: int = MAX_PARTS


def documents(content: bytes) -> Iterator[bytes]:
    """What the parts of a mail unpack to, as far as it looks like XML or JSON; 20 MB altogether, five at most.

    Never raises: what is broken, encrypted or too large is passed over. One at a time is in memory.
    """
    budget = Budget()
    for part in _leaves(content, 0, min(len(content), MAX_LOOKED_AT), 0, budget):
        if not _promises(part):
            continue
        if not budget.attachments:
            return
        budget.attachments -= 1
        if (document := unpack(part, budget)) is not None:
            yield document


def unpack(data: bytes, budget: Budget | None = None) -> bytes | None:
    """The document in `data`: plain, in gzip, in a zip with one file, or in gzip in such a zip.

    None when there is none, or it is larger than what the budget has left.
    """
    budget = budget or Budget()
    if data.startswith(ZIP):
        data = _unzip(data, budget) or b""
    if data.startswith(GZIP):
        return _inflate(data, 31, budget)[0] or None
    if not is_document(data) or len(data) > budget.unpacked:
        return None
    budget.unpacked -= len(data)
    return data


def is_document(data: bytes) -> bool:
    """Whether it begins as XML or JSON does."""
    return first_character(data) in (b"<", b"{")


def first_character(data: bytes) -> bytes:
    """The first byte that is neither space nor a byte order mark."""
    start = data[2:16].replace(b"\0", b"") if data.startswith(UTF16) else data[:64]
    return start.lstrip(SPACE)[:1]


def _promises(data: bytes) -> bool:
    return data.startswith((GZIP, ZIP)) or is_document(data)


def _inflate(data: bytes, wbits: int, budget: Budget) -> tuple[bytes, bytes]:
    """What a stream unpacks to, and what follows it; nothing when it is broken, cut off, too large or no document."""
    inflate = zlib.decompressobj(wbits=wbits)
    try:
        start = inflate.decompress(data, 64)
        if not is_document(start) and not (wbits < 0 and start.startswith(GZIP)):
            return b"", b""
        rest = inflate.decompress(inflate.unconsumed_tail, max(1, budget.unpacked)) if not inflate.eof else b""
    except zlib.error:
        budget.unpacked = max(0, budget.unpacked - 1_000_000)  # it may have cost work
        return b"", b""
    size = len(start) + len(rest)
    too_large, budget.unpacked = size > budget.unpacked, max(0, budget.unpacked - size)
    return (b"", b"") if too_large or not inflate.eof else (start + rest, inflate.unused_data)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file in an archive, as the header before it tells."""

    begin: int  # of its bytes
    packed: int  # bytes, if known
    method: int
    encrypted: bool
    size_follows: bool
    beside: bool  # what systems put beside the file that is meant


def _unzip(data: bytes, budget: Budget) -> bytes | None:
    """The one file of an archive; what systems put beside it (folders, `__MACOSX/`) does not count.

    Read from its start on: the directory at the end may list half a million files, and nobody needs it for one. Of the
    methods only those are taken that reports come in, as their cost is known.
    """
    at = 0
    for _ in range(MAX_ENTRIES):
        entry = _entry(data, at)
        if entry is None:
            return None
        if not entry.beside:
            return _only_file(data, entry, budget)
        at = max(data.find(ZIP, entry.begin + entry.packed, entry.begin + entry.packed + 64), 0) or len(data)
    return None


def _entry(data: bytes, at: int) -> _Entry | None:
    head = data[at : at + _LOCAL_HEADER]
    if len(head) < _LOCAL_HEADER or not head.startswith(ZIP):
        return None
    flags, method, packed, name, extra = (
        int.from_bytes(head[a:b], "little") for a, b in ((6, 8), (8, 10), (18, 22), (26, 28), (28, 30))
    )
    begin = at + _LOCAL_HEADER + name
    path = data[at + _LOCAL_HEADER : begin]
    beside = path.endswith(b"/") or path.startswith((b"__MACOSX", b"."))
    return _Entry(begin + extra, packed, method, bool(flags & _ENCRYPTED), bool(flags & _SIZES_FOLLOW), beside)


def _only_file(data: bytes, entry: _Entry, budget: Budget) -> bytes | None:
    """What it unpacks to, unless another file follows."""
    if entry.encrypted:
        return None
    if entry.method == _DEFLATED:
        unpacked, rest = _inflate(data[entry.begin :], -15, budget)
    elif entry.method == _STORED and not entry.size_follows and entry.packed <= len(data) - entry.begin:
        end = entry.begin + entry.packed
        unpacked, rest = data[entry.begin : end], data[end:]
    else:
        return None
    another = _entry(rest, max(0, rest.find(b"PK", 0, _DESCRIPTOR + 2)))
    return unpacked if another is None or another.beside else None


def _leaves(content: bytes, start: int, end: int, depth: int, budget: Budget) -> Iterator[bytes]:
    """The parts between `start` and `end` that are no multipart, without their transfer encoding."""
    if not budget.parts:
        return
    budget.parts -= 1
    header_end, body = split_header(content, start, end)
    header = parse_header(content[start:header_end])
    kind, parameters = media_type(header.text("content-type"))
    boundary = parameters.get("boundary", "").encode("utf-8", "replace")
    if not kind.startswith("multipart/") or not boundary:
        yield _decoded(content[body:end], header.text("content-transfer-encoding", 40))
    elif depth < MAX_DEPTH:
        for begin, stop in spans(content, body, end, boundary):
            yield from _leaves(content, begin, stop, depth + 1, budget)


def spans(content: bytes, start: int, end: int, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Where the parts of a multipart lie. A boundary has a line to itself (RFC 2046 section 5.1.1)."""
    delimiter = b"\n--" + boundary
    begin = -1
    at = content.find(delimiter, max(0, start - 1), end)
    for _ in range(MAX_DELIMITERS):
        if at < 0:
            break
        if match := _REST_OF_LINE.match(content, at + len(delimiter), end):
            if begin >= 0:
                yield begin, max(begin, at)
            begin = match.end()
            if match[1]:
                return
        at = content.find(delimiter, at + 1, end)
    if begin >= 0:
        yield begin, end


def _decoded(data: bytes, encoding: str) -> bytes:
    if encoding.strip().lower() != "base64":
        return transfer_decode(data, encoding)
    for padding in (b"==", b"A=="):  # where it was cut
        try:
            return binascii.a2b_base64(data + padding)
        except binascii.Error:
            continue
    return b""
