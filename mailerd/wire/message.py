"""RFC 5322 messages as bytes: where the header block ends, what stands in it, and what a submission server mends.

Lines end in CRLF here: intake has seen to that before. Nothing in this module decodes or touches a body.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from mailerd.wire.address import domain_to_ascii

MAX_HEADER = 1_000_000  # bytes of a header block; what reads the fields of one takes a second for some tens of these
MAX_LINE = 998  # bytes without CRLF: RFC 5322 section 2.1.1
FOLD_AT = 78  # columns, the same section

# Header fields a submission server takes out: hidden recipients, and trace fields that only a final delivery may add.
REMOVED = (b"bcc", b"resent-bcc", b"return-path")

# More than one of these is how a message shows one author to a filter and another to a reader (RFC 5322 section 3.6).
SINGLE = (b"from", b"sender", b"reply-to", b"subject", b"date", b"message-id")

# Each repeat is possessive: what one alternative took is never tried again, so the time is linear.
FIELD_START = re.compile(rb"[!-9;-~]++[ \t]*+:")
FIELDS = re.compile(rb"(?>(?:[!-9;-~]++[ \t]*+:[^\r\n\0]*+\r\n(?>(?:[ \t][^\r\n\0]*+\r\n)*))*)")
SINGLE_FIELD = re.compile(rb"\n(%s)[ \t]*+:" % b"|".join(SINGLE))
SPACE_BEFORE_COLON = re.compile(rb"^([!-9;-~]++)[ \t]++:", re.MULTILINE)
MBOX_LINE = re.compile(rb"From (?![ \t]*:)[^\r\n]*(?:\r\n|\Z)")


def split(content: bytes) -> tuple[bytes, bytes]:
    """The header block with its last CRLF, and the body after the empty line.

    A message without header fields gives an empty block. When no empty line ends the block, it ends before the first
    line that is neither a field nor the continuation of one. A first line `From …` (mbox) belongs to neither.
    """
    start, end, body = _bounds(content)
    return _ended(content[start:end]), content[body:]


def split_view(content: bytes) -> tuple[bytes, memoryview]:
    """The same, without a copy of the body."""
    start, end, body = _bounds(content)
    return _ended(content[start:end]), memoryview(content)[body:]


def header_block(content: bytes) -> bytes:
    """The first half of `split`, without a copy of the body."""
    start, end, _ = _bounds(content)
    return _ended(content[start:end])


def _ended(header: bytes) -> bytes:
    return header if not header or header.endswith(b"\r\n") else header + b"\r\n"


def _bounds(content: bytes) -> tuple[int, int, int]:
    """Where the header block starts and ends, and where the body starts."""
    start = 0
    if content.startswith(b"From ") and (mbox := MBOX_LINE.match(content)):
        start = mbox.end()
    if content.startswith(b"\r\n", start):
        return start, start, start + 2
    if FIELD_START.match(content, start) is None:
        return start, start, start
    empty_line = content.find(b"\r\n\r\n", start)
    if empty_line >= 0:
        return start, empty_line + 2, empty_line + 4
    fields = FIELDS.match(content, start)
    end = fields.end() if fields else start
    if content.find(b"\n", end) < 0 and FIELD_START.match(content, end):
        end = len(content)  # the last field, cut off before its CRLF
    return start, end, end


def header_values(header: bytes, name: bytes) -> list[bytes]:
    """The unfolded values of all fields of that name (any case), from the top down, without white space around them."""
    return [
        header[value:end].replace(b"\r\n", b"").strip(b" \t") for _, value, end in _spans(header, _probe(header), name)
    ]


def has_header(header: bytes, name: bytes) -> bool:
    return bool(_spans(header, _probe(header), name))


def remove_headers(header: bytes, names: Iterable[bytes]) -> bytes:
    """The header block without the fields of these names; the same object when there are none."""
    probe = _probe(header)
    doomed = sorted((start, end) for name in names for start, _, end in _spans(header, probe, name))
    if not doomed:
        return header
    kept = []
    at = 0
    for start, end in doomed:
        kept.append(header[at:start])
        at = end
    kept.append(header[at:])
    return b"".join(kept)


def _probe(header: bytes) -> bytes:
    """What `_spans` searches: lower case, and a line feed before every line, so before every field name."""
    return b"\n" + header.lower()


def _spans(header: bytes, probe: bytes, name: bytes) -> list[tuple[int, int, int]]:
    """(start of the field, start of its value, its end after CRLF) of each field of that name."""
    spans = []
    needle = b"\n" + name.lower()
    at = probe.find(needle)
    while at >= 0:
        # `at` in the probe is the line feed before the field, and in the header the field's first byte.
        colon = at + len(name)
        while header[colon : colon + 1] in (b" ", b"\t"):  # the obsolete `Subject : x`
            colon += 1
        if header[colon : colon + 1] == b":":
            spans.append((at, colon + 1, _field_end(header, colon)))
        at = probe.find(needle, at + 1)
    return spans


def _field_end(header: bytes, at: int) -> int:
    while True:
        at = header.find(b"\r\n", at) + 2
        if at == 1:
            return len(header)
        if header[at : at + 1] not in (b" ", b"\t"):
            return at


def header_problem(header: bytes) -> str | None:
    """What is so wrong with a header block that the message is refused (554 5.6.0); None when nothing is."""
    if len(header) > MAX_HEADER:
        return f"it has more than {MAX_HEADER:,} bytes"
    if FIELDS.fullmatch(header) is None:
        return _first_bad_line(header)
    names = SINGLE_FIELD.findall(_probe(header))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"more than one {twice.decode('ascii').title()} header field"
    return None


def _first_bad_line(header: bytes) -> str:
    if b"\0" in header:
        return "a NUL byte in the header"
    lines = header.split(b"\r\n")
    for number, line in enumerate(lines, 1):
        if b"\r" in line or b"\n" in line:
            return f"header line {number} has a bare CR or LF"
        if line[:1] in (b" ", b"\t"):
            if number == 1:
                return "the header starts with a continuation line"
        elif line and FIELD_START.match(line) is None:
            return f"header line {number} has no field name before a colon: {line[:40].decode('ascii', 'replace')!r}"
    return "the header does not end in CRLF" if lines[-1] else "an empty line within the header"


def fix_up(
    content: bytes,
    *,
    message_id: str,
    date: str,
    received: bytes,
    add_from: str = "",
    remove: tuple[bytes, ...] = REMOVED,
) -> bytes:
    """The message as it is queued (RFC 6409 section 8): `received` in front, what is missing added, `remove` removed.

    Date and Message-ID are added when missing, From when missing and `add_from` (an address) is given. Header lines
    over 998 bytes are folded where they have white space, and the obsolete space before a colon goes, because many
    verifiers and filters do not know it. The body stays byte for byte as it is; an empty line is put before it when
    the message has none. `remove` holds names in lower case.
    """
    start, end, body = _bounds(content)
    probe = b"\n" + content[start:end].lower()
    parts = [received]
    if not _has(probe, b"from") and add_from:
        parts.append(b"From: <%s>\r\n" % add_from.encode())
    if not _has(probe, b"date"):
        parts.append(b"Date: %s\r\n" % date.encode("ascii"))
    if not _has(probe, b"message-id"):
        parts.append(b"Message-ID: <%s>\r\n" % message_id.strip("<>").encode("ascii"))

    whole = body == end + 2 and not start
    odd = b" :" in probe or b"\t:" in probe or _has_long_line(probe)
    if whole and not odd and _starting(remove).search(probe) is None:
        parts.append(content)  # one copy of the content, and only one
        return b"".join(parts)

    header, _ = split(content[:body])
    header = SPACE_BEFORE_COLON.sub(rb"\1:", remove_headers(header, remove))
    return b"".join([*parts, fold_long_lines(header), b"\r\n", memoryview(content)[body:]])


@lru_cache(maxsize=16)
def _starting(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    return re.compile(b"\n(?:" + b"|".join(map(re.escape, names)) + b")")


def _has(probe: bytes, name: bytes) -> bool:
    if b"\n" + name + b":" in probe:
        return True
    return b"\n" + name in probe and bool(_spans(probe[1:], probe, name))


def _has_long_line(header: bytes) -> bool:
    return len(header) > MAX_LINE and max(map(len, header.split(b"\n"))) > MAX_LINE


def fold_long_lines(header: bytes) -> bytes:
    """The block with every line over 998 bytes folded, where it has white space to fold at."""
    if not _has_long_line(header):
        return header
    return b"\r\n".join(fold(line) if len(line) > MAX_LINE else line for line in header.split(b"\r\n"))


def fold(line: bytes, width: int = FOLD_AT) -> bytes:
    """Break a header line at white space into lines of up to `width` bytes; unfolding gives the same line again.

    A word longer than that stays whole, the field name keeps its first word, and no line is left with white space only
    (RFC 5322 section 3.2.2).
    """
    if len(line) <= width:
        return line
    lines = []
    start = 0
    name = FIELD_NAME.match(line)
    for blank in FOLD_POINT.finditer(line, name.end() if name else 0):
        if blank.end() - start > width and blank.start() > start:
            lines.append(line[start : blank.start()])
            start = blank.start()
    lines.append(line[start:])
    return b"\r\n".join(lines)


FIELD_NAME = re.compile(rb"[^: \t]++[ \t]*+:[ \t]*+")
FOLD_POINT = re.compile(rb"(?<![ \t])[ \t]++[^ \t]++")  # white space and the word after it, so never at the end


def format_date(moment: datetime) -> str:
    """RFC 5322 section 3.3: `Sun, 22 Nov 2026 01:54:12 +0000`; `moment` is aware."""
    return _format_second(moment.replace(microsecond=0))


@lru_cache(maxsize=16)
def _format_second(moment: datetime) -> str:
    return format_datetime(moment)


def received_line(
    *,
    helo: str,
    peer: str,
    by: str,
    protocol: str,
    message_id: str,
    date: str,
    tls: str = "",
    recipient: str = "",
) -> bytes:
    """A Received field (RFC 5321 section 4.4), CRLF included.

    `helo` is what the client called itself (may be empty) and `peer` its address; `protocol` one of `with_protocol()`
    or `HTTP`; `message_id` the id of the queue; `tls` a version and cipher for people; `recipient` only for a message
    with a single one, as the others must not learn of each other.
    """
    literal = f"[IPv6:{peer}]" if ":" in peer else f"[{peer}]"
    lines = [f"Received: from {_harmless(helo) or literal} ({literal})"]
    if tls:
        lines.append(f"({_harmless(tls, TLS_HARM)})")
    lines.append(f"by {by} (mailerd) with {protocol} id {message_id}")
    if recipient and _harmless(recipient) == recipient:
        lines.append(f"for <{recipient}>")
    return ("\r\n\t".join(lines) + f";\r\n\t{date}\r\n").encode()


NAME_HARM = re.compile(r"[^A-Za-z0-9.:@+=_\[\]-]")
TLS_HARM = re.compile(r"[^A-Za-z0-9._ -]")


@lru_cache(maxsize=256)
def _harmless(text: str, harm: re.Pattern[str] = NAME_HARM) -> str:
    """What a client said, cut down to bytes that cannot end a field, open a comment or feign a clause."""
    return harm.sub("?", text[:255])


def with_protocol(*, extended: bool = True, tls: bool = False, authenticated: bool = False, utf8: bool = False) -> str:
    """The `with` clause: SMTP, ESMTP, ESMTPS, ESMTPSA … (RFC 3848), UTF8SMTPSA … (RFC 6531 section 4.3)."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if utf8 else "ESMTP") + "S" * tls + "A" * authenticated


# The two forms nearly all mail has: `ann@example.com`, and a name without traps before `<ann@example.com>`.
PLAIN_ADDRESS = re.compile(
    rb"(?:[^\x00-\x1f\x7f\"(),:;<>@\[\\\]]*+|\"[^\"\\<>\x00-\x1f]*+\" ?)<[\w.+=-]++@([A-Za-z0-9.-]++)>"
    rb"|[\w.+=-]++@([A-Za-z0-9.-]++)",
    re.ASCII,
)
EMPTY_GROUP = re.compile(rb"[^@:;=]*+:[ \t]*+;")
ADDRESS_TOKEN = re.compile(r'"(?>(?:[^"\\]|\\.)*)"|\[[^\[\]]*+\]|\\.|\(|[<>,:;@]|[^"\[\\(<>,:;@]++|.', re.DOTALL)


def first_address_domain(header: bytes, name: bytes) -> str:
    """The domain of the first address in the first field of that name, in A-labels and lower case; "" when none."""
    return next(iter(address_domains(header, name)), "")


def address_domains(header: bytes, name: bytes) -> list[str]:
    """The domains of all addresses in the first field of that name, in A-labels and lower case.

    "" stands for what no domain can be read from, also when that is the whole field. An empty list: there is no such
    field, or nobody is in it (RFC 6854).
    """
    values = header_values(header, name)
    if not values:
        return []
    if plain := PLAIN_ADDRESS.fullmatch(values[0]):
        return [_ascii_or_nothing((plain[1] or plain[2]).decode("ascii"))]
    found = _address_domains(values[0].decode("utf-8", "surrogateescape"))
    return [_ascii_or_nothing(domain) for domain in found] or [""] * (not EMPTY_GROUP.fullmatch(values[0]))


def _ascii_or_nothing(domain: str) -> str:
    try:
        return domain_to_ascii(domain) if domain else ""
    except ValueError:
        return ""


def _address_domains(value: str) -> Iterator[str]:
    """The domains of an RFC 5322 address list: comments, quoted strings, routes and groups are seen through."""
    domain: str | None = None  # since the last `@`
    in_angle = False
    for piece in _address_tokens(value):
        if piece == "<":
            domain, in_angle = None, True  # what stood before was a display name
        elif piece == ">" or (piece in ",;" and not in_angle):
            if domain is not None:
                yield domain
            domain, in_angle = None, False
        elif piece == ":":
            domain = None  # the end of a group's name, or of a source route
        elif piece == "@":
            domain = ""
        elif piece == ",":
            domain = None  # within a source route
        elif domain is not None and not piece.startswith('"'):
            domain += ".".join(map(str.strip, piece.split(".")))
    if domain is not None:
        yield domain


def _address_tokens(value: str) -> Iterable[str]:
    """The tokens of an address list outside of comments, which nest."""
    depth = 0
    at = 0
    while at < len(value):
        if depth:
            skipped = COMMENT_PART.match(value, at)
            at = skipped.end() if skipped else at
            if at < len(value):
                depth += 1 if value[at] == "(" else -1
                at += 1
            continue
        token = ADDRESS_TOKEN.match(value, at)
        if token is None:
            return
        at = token.end()
        if token[0] == "(":
            depth = 1
        else:
            yield token[0]


COMMENT_PART = re.compile(r"(?>(?:[^()\\]|\\.|\\\Z)*)", re.DOTALL)
