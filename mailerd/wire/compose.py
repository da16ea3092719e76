"""From the fields of a mail to RFC 5322 bytes: 7-bit, CRLF, MIME built as clients expect it.

Made by hand rather than with the `email` package: that one takes a millisecond and more for a mail, and its folding
breaks long words, Message-IDs and names with commas beyond ASCII. Nothing here can be made to start another header
field: what holds a control character is refused with the name of the field it stands in.
"""

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from mimetypes import MimeTypes
from typing import Literal
from urllib.parse import quote

from inscriptis import get_text
from inscriptis.model.config import ParserConfig

from mailerd.wire.address import parse_mailbox
from mailerd.wire.message import FOLD_AT, MAX_LINE, fold

# Fields a caller may not set as custom headers: they have a parameter of their own, or only the daemon may write them.
REFUSED_HEADERS = frozenset(
    {
        "authentication-results",
        "bcc",
        "cc",
        "date",
        "delivered-to",
        "dkim-signature",
        "domainkey-signature",
        "from",
        "message-id",
        "mime-version",
        "received",
        "received-spf",
        "reply-to",
        "return-path",
        "sender",
        "subject",
        "to",
        "x-original-to",
    }
)
REFUSED_PREFIXES = ("arc-", "content-", "resent-", "x-mailerd-")
ONCE_HEADERS = frozenset({"in-reply-to", "references", "list-unsubscribe", "list-unsubscribe-post", "list-id"})

ENCODED_WORD = 45  # bytes of text in one encoded word: 60 of base64, 72 of 75 columns (RFC 2047 section 2)
FILENAME_PIECE = 54  # columns of one piece of a long file name (RFC 2231 section 3)
BASE64_LINE = 76  # columns (RFC 2045 section 6.8)
MAX_NAME = 255  # characters of a display name or file name

HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
MESSAGE_ID = re.compile(r"[!-;=?A-~]+@[!-;=?A-~]+")
CONTENT_ID = re.compile(r"[!-;=?-~]{1,200}")
TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105  RFC 2045 section 5.1
CONTENT_TYPE = re.compile(rf'({TOKEN})/({TOKEN})((?:; *{TOKEN}=(?:{TOKEN}|"[^"\\\x00-\x1f\x7f-\uffff]*"))*)')
PLAIN_FILENAME = re.compile(r"[ !#-\[\]-~]{1,60}")
ANY_FILE = "application/octet-stream"
# Not in the table of Python 3.11, which is all that is used: that of the machine would make mails differ by machine.
OFFICE = "application/vnd.openxmlformats-officedocument."
NEWER_TYPES = {
    ".docx": OFFICE + "wordprocessingml.document",
    ".pptx": OFFICE + "presentationml.presentation",
    ".xlsx": OFFICE + "spreadsheetml.sheet",
    ".ics": "text/calendar",
    ".webp": "image/webp",
}
HTML_TO_TEXT = ParserConfig(display_links=True)  # a text part without its links is of no use


class FieldError(ValueError):
    """A value that cannot stand in a mail. `field` names it as a path (`to[0].name`), the text is for people."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Address:
    """An address with the name to show for it, in any script. The domain may be in its own script too."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file. With a `content_id`, HTML shows it as `cid:…`, and it travels inline unless `disposition` says else.

    Without a `content_type`, the end of `filename` tells it.
    """

    filename: str
    content: bytes
    content_type: str = ""
    content_id: str = ""
    disposition: Literal["", "attachment", "inline"] = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A mail in its parts. `text` None: made from `html`. `date` and `message_id` empty: left to the fix-up."""

    from_: Address
    to: Sequence[Address] = ()
    cc: Sequence[Address] = ()
    reply_to: Sequence[Address] = ()
    subject: str = ""
    html: str | None = None
    text: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    attachments: Sequence[Attachment] = ()
    date: str = ""
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A MIME entity: its header fields with CRLF, its encoded body ending in CRLF."""

    header: bytes
    body: bytes


def compose(mail: Outgoing) -> bytes:
    """The whole message. Raises FieldError (a ValueError) that names the first field that cannot be sent."""
    fields = [_addresses("From", "from", [mail.from_])]
    if mail.to or not mail.cc:
        fields.append(_addresses("To", "to", mail.to) if mail.to else b"To: undisclosed-recipients:;\r\n")
    if mail.cc:
        fields.append(_addresses("Cc", "cc", mail.cc))
    if mail.reply_to:
        fields.append(_addresses("Reply-To", "reply_to", mail.reply_to))
    fields.append(_text_field("Subject", "subject", mail.subject))
    if mail.date:
        fields.append(_text_field("Date", "date", mail.date))
    if mail.message_id:
        fields.append(_message_id(mail.message_id))
    fields += _custom_headers(mail.headers)
    fields.append(b"MIME-Version: 1.0\r\n")
    content = _content(mail)
    return b"".join([*fields, content.header, b"\r\n", content.body])


def address_field(name: str, address: Address) -> bytes:
    """`From: Ann <ann@example.com>` with CRLF, folded and in encoded words as it must. Raises FieldError."""
    return _addresses(name, name.lower(), [address])


def text_field(name: str, value: str, *, literal: bool = False) -> bytes:
    """`Subject: …` with CRLF, folded and in encoded words as it must. Raises FieldError.

    `literal`: what looks like an encoded word is no more than text, and its reader sees it as it was written.
    """
    return _text_field(name, name.lower(), value, literal=literal)


def is_refused_header(name: str) -> bool:
    """Whether a custom header of that name is refused: `REFUSED_HEADERS` and `REFUSED_PREFIXES`, in any case."""
    lower = name.lower()
    return lower in REFUSED_HEADERS or lower.startswith(REFUSED_PREFIXES)


# ---------------------------------------------------------------------------------------------------- header fields


def _custom_headers(headers: Sequence[tuple[str, str]]) -> list[bytes]:
    fields = []
    seen: set[str] = set()
    for index, (name, value) in enumerate(headers):
        field = f"headers[{index}]"
        lower = name.lower()
        if not HEADER_NAME.fullmatch(name):
            raise FieldError(f"{field}.name", "a header name is 1 to 76 printable ASCII characters without a colon")
        if is_refused_header(name):
            raise FieldError(
                f"{field}.name", f"{name} cannot be set here: it has a field of its own or is ours to write"
            )
        if lower in ONCE_HEADERS and lower in seen:
            raise FieldError(f"{field}.name", f"{name} may stand only once")
        seen.add(lower)
        fields.append(_text_field(name, f"{field}.value", value))
    return fields


def _text_field(name: str, field: str, value: str, *, literal: bool = False) -> bytes:
    """An unstructured field: ASCII as it is, folded at its white space; anything else as encoded words.

    What an ASCII value holds in the way of structure (URLs, ids, encoded words unless `literal`) so stays as it was
    given.
    """
    _check(field, value)
    if value.isascii() and not (literal and "=?" in value):
        line = fold(f"{name}: {value.strip()}".rstrip().encode("ascii"))
        if max(map(len, line.split(b"\r\n"))) <= MAX_LINE:
            return line + b"\r\n"
        if name != "Subject":
            raise FieldError(field, f"a word of it is longer than the {MAX_LINE} bytes of a line")
    return f"{name}: {_encoded_words(value.strip(), len(name) + 2)}\r\n".encode("ascii")


def _message_id(value: str) -> bytes:
    inside = value.removeprefix("<").removesuffix(">")
    if not MESSAGE_ID.fullmatch(inside) or len(inside) > MAX_LINE // 2:
        raise FieldError("message_id", "write it as <unique@your.domain>, in ASCII")
    return b"Message-ID: <%s>\r\n" % inside.encode("ascii")


def _addresses(name: str, field: str, addresses: Sequence[Address]) -> bytes:
    """An address list, one address a line once it does not fit in one."""
    line = f"{name}:".encode("ascii")
    lines: list[bytes] = []
    for index, address in enumerate(addresses):
        where = field if name == "From" else f"{field}[{index}]"
        mailbox = _mailbox(where, address, len(name) + 2 if not lines else 1)
        comma = b"," if index + 1 < len(addresses) else b""
        if index and len(line) + len(mailbox) + 2 > FOLD_AT:
            lines.append(line)
            line = b""
        line += b" " + mailbox + comma
    return b"\r\n".join([*lines, line]) + b"\r\n"


def _mailbox(field: str, address: Address, column: int) -> bytes:
    _check(f"{field}.address", address.address)
    _check(f"{field}.name", address.name)
    try:
        spec = parse_mailbox(address.address).address
    except ValueError as error:
        raise FieldError(f"{field}.address", str(error)) from None
    if not address.name.strip():
        return spec.encode()
    if len(address.name) > MAX_NAME:
        raise FieldError(f"{field}.name", f"longer than {MAX_NAME} characters")
    phrase = _phrase(address.name.strip(), column)
    last_line = len(phrase) - phrase.rfind("\n") - 1 + (column if "\n" not in phrase else 0)
    gap = "\r\n " if last_line + len(spec) + 4 > FOLD_AT else " "
    return f"{phrase}{gap}<{spec}>".encode()


def _phrase(name: str, column: int) -> str:
    if not name.isascii() or "=?" in name:  # nobody shall pass off a quoted string as an encoded word
        return _encoded_words(name, column)
    if ATOMS.fullmatch(name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _encoded_words(text: str, column: int) -> str:
    """RFC 2047: base64 of whole characters, one word a line; the first one starts at `column`."""
    words = []
    room = max((ENCODED_WORD // 3 - column // 4) * 3, 4)  # base64 turns 3 bytes into 4 columns
    chunk = b""
    for character in text:
        encoded = character.encode()
        if len(chunk) + len(encoded) > room:
            words.append(chunk)
            chunk, room = b"", ENCODED_WORD
        chunk += encoded
    words.append(chunk)
    return "\r\n ".join(f"=?utf-8?B?{b64encode(word).decode('ascii')}?=" for word in words)


def _check(field: str, value: str) -> None:
    """Refuse what could end a header field or cannot be encoded."""
    if CONTROL.search(value):
        raise FieldError(field, "line breaks and control characters are not allowed")
    _utf8(field, value)


def _utf8(field: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise FieldError(field, "half of a surrogate pair: not valid Unicode") from None


# ------------------------------------------------------------------------------------------------------- MIME parts


def _content(mail: Outgoing) -> Part:
    inline: list[Part] = []
    attached: list[Part] = []
    for index, attachment in enumerate(mail.attachments):
        embedded = bool(attachment.content_id) and attachment.disposition != "attachment" and mail.html is not None
        (inline if embedded else attached).append(_attachment(f"attachments[{index}]", attachment, embedded=embedded))
    body = _readable(mail, inline)
    return _multipart("mixed", [body, *attached]) if attached else body


def _readable(mail: Outgoing, inline: list[Part]) -> Part:
    if mail.html is None:
        return _text_part("plain", "text", mail.text or "")
    html = _text_part("html", "html", mail.html)
    if inline:
        html = _multipart("related", [html, *inline], '; type="text/html"')
    text = html_to_text(mail.html) if mail.text is None else mail.text
    return _multipart("alternative", [_text_part("plain", "text", text), html])


def html_to_text(html: str) -> str:
    """What a reader sees of HTML, with the targets of links; control characters that HTML may carry are left out."""
    return CONTROL.sub(lambda match: "\n" if match[0] == "\n" else "", get_text(html, HTML_TO_TEXT))


def _text_part(subtype: str, field: str, text: str) -> Part:
    if "\0" in text:
        raise FieldError(field, "it has a NUL character")
    content = _utf8(field, text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    encoding, body = _encoded_text(content)
    header = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return Part(header.encode("ascii"), body)


def _encoded_text(content: bytes) -> tuple[str, bytes]:
    """The plainest encoding that survives: as it is, quoted-printable, or base64 where that is shorter."""
    if content.isascii() and max(map(len, content.split(b"\r\n"))) <= MAX_LINE:
        return "7bit", content
    if len(content.translate(None, ASCII)) * 6 > len(content):
        return "base64", encoded_base64(content)
    return "quoted-printable", b2a_qp(content, istext=True)


ASCII = bytes(range(128))


def encoded_base64(content: bytes) -> bytes:
    """In lines, as a body has it."""
    encoded = b64encode(content)
    return b"\r\n".join([*(encoded[at : at + BASE64_LINE] for at in range(0, len(encoded), BASE64_LINE)), b""])


def _attachment(field: str, attachment: Attachment, *, embedded: bool) -> Part:
    content_type, encoding, body = _attached_content(field, attachment)
    disposition = attachment.disposition or ("inline" if embedded else "attachment")
    lines = [f"Content-Type: {content_type}", f"Content-Transfer-Encoding: {encoding}"]
    lines.append(f"Content-Disposition: {disposition}{_filename(f'{field}.filename', attachment.filename)}")
    if attachment.content_id:
        content_id = attachment.content_id.removeprefix("<").removesuffix(">")
        if not CONTENT_ID.fullmatch(content_id):
            raise FieldError(f"{field}.content_id", "1 to 200 printable ASCII characters without spaces, < and >")
        lines.append(f"Content-ID: <{content_id}>")
    return Part(("\r\n".join(lines) + "\r\n").encode("ascii"), body)


def _attached_content(field: str, attachment: Attachment) -> tuple[str, str, bytes]:
    """The content type, the transfer encoding, and the encoded content."""
    content_type = attachment.content_type or guess_type(attachment.filename)
    match = CONTENT_TYPE.fullmatch(content_type)
    if match is None or len(content_type) > MAX_NAME:
        raise FieldError(f"{field}.content_type", "write it as type/subtype, with `; name=value` where needed")
    kind = match[1].lower()
    if kind == "multipart":
        raise FieldError(f"{field}.content_type", "a multipart type cannot be attached: attach its parts")
    content = attachment.content
    if kind != "message":
        return _folded_parameters(content_type), "base64", encoded_base64(content)
    # RFC 2046 section 5.2.1: no encoding of a message but 7bit or 8bit. What is neither travels as a file.
    strict = content.isascii() and b"\0" not in content and content.count(b"\r\n") == content.count(b"\n")
    if strict and content.count(b"\r") == content.count(b"\n") and max(map(len, content.split(b"\r\n"))) <= MAX_LINE:
        return content_type, "7bit", content if content.endswith(b"\r\n") else content + b"\r\n"
    return ANY_FILE, "base64", encoded_base64(content)


def guess_type(filename: str) -> str:
    """The content type that the end of a file name stands for; that of any file when it stands for none."""
    stem, dot, ending = filename.rpartition(".")
    if not (stem and dot):
        return ANY_FILE
    found, encoding = TYPES.guess_type(f"file.{ending}")
    if encoding is not None:  # compressed: what is inside does not matter to who opens it
        return "application/gzip" if encoding == "gzip" else ANY_FILE
    return found or ANY_FILE


def _types() -> MimeTypes:
    types = MimeTypes()
    for ending, content_type in NEWER_TYPES.items():
        types.add_type(content_type, ending)
    return types


TYPES = _types()


def _folded_parameters(content_type: str) -> str:
    return fold(f"Content-Type: {content_type}".encode("ascii")).decode("ascii").removeprefix("Content-Type: ")


def _filename(field: str, filename: str) -> str:
    """The `filename` parameter: quoted when short ASCII, else in UTF-8 and pieces (RFC 2231)."""
    _check(field, filename)
    if not filename:
        return ""
    if len(filename) > MAX_NAME:
        raise FieldError(field, f"longer than {MAX_NAME} characters")
    if PLAIN_FILENAME.fullmatch(filename):
        return f'; filename="{filename}"' if len(filename) < 40 else f';\r\n filename="{filename}"'
    encoded = "utf-8''" + quote(filename, safe="!#$&+-.^_`{}~")
    if len(encoded) <= FILENAME_PIECE:
        return f";\r\n filename*={encoded}"
    pieces = re.findall(rf"(?:%[0-9A-F]{{2}}|[^%]){{1,{FILENAME_PIECE // 3}}}", encoded)
    return "".join(f";\r\n filename*{number}*={piece}" for number, piece in enumerate(pieces))


def _multipart(subtype: str, parts: Sequence[Part], parameters: str = "") -> Part:
    boundary = _boundary(subtype, parts)
    header = f'Content-Type: multipart/{subtype}{parameters};\r\n boundary="{boundary.decode("ascii")}"\r\n'
    pieces: list[bytes] = []
    for part in parts:
        pieces += (b"--", boundary, b"\r\n", part.header, b"\r\n", part.body)
        pieces.append(b"\r\n")  # belongs to the boundary: the part keeps its own last line end
    pieces += (b"--", boundary, b"--\r\n")
    return Part(header.encode("ascii"), b"".join(pieces))


def _boundary(subtype: str, parts: Iterable[Part]) -> bytes:
    """The hash of what it must not occur in; `=_` cannot stand in quoted-printable or base64 anyway."""
    digest = blake2b(subtype.encode("ascii"), digest_size=15)
    for part in parts:
        digest.update(part.header)
        digest.update(part.body)
    return b"=_" + digest.hexdigest().encode("ascii")
