"""Delivery status notifications (RFC 3464, RFC 6522, RFC 6533): what happened to a message, in words and fields."""

import hashlib
import re
import textwrap
from binascii import b2a_qp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mailerd.errors import LocalProtocolError
from mailerd.wire.message import fold, format_date, header_values, split
from mailerd.wire.smtp import line_problem, printable

MAX_ORIGINAL = 50_000  # bytes of a message that goes back whole, or of the headers of a longer one
MAX_DIAGNOSTIC = 1000  # characters of what a peer said
MAX_WORD = 980  # bytes without a space: with a name before it, it stays within the 998 of RFC 5322


@dataclass(frozen=True, slots=True)
class RecipientReport:
    """What happened to one recipient.

    `action` is failed, delayed, delivered, relayed or expanded (RFC 3464 section 2.3.3), `status` an enhanced code,
    `diagnostic` the reply of `remote_host` or words of ours, `orcpt` the decoded `type;address` of ORCPT or "".
    """

    address: str
    orcpt: str
    action: str
    status: str
    diagnostic: str
    remote_host: str = ""
    will_retry_until: datetime | None = None
    last_attempt: datetime | None = None


def build_report(
    *,
    sender: str,
    hostname: str,
    envid: str,
    arrival: datetime,
    now: datetime,
    recipients: Sequence[RecipientReport],
    original: bytes,
    ret: str,
    message_id: str,
) -> bytes:
    """Return the report to `sender` about `recipients` of the message `original`; send it from the null sender.

    It is ASCII unless `sender` is not, or a message with 8-bit lines goes back whole. The message goes back whole when
    delivery failed, RET was not HDRS and it is small; else its headers; nothing when `original` is empty. Whatever a
    peer or the original says, it makes no header and no line of its own. The same arguments give the same bytes.
    """
    if not sender:  # a report about a report: the loop that RFC 3464 section 2 forbids
        raise LocalProtocolError("no report goes to the null sender")
    if not recipients:
        raise LocalProtocolError("a report needs a recipient to report about")
    eight_bit = not sender.isascii()
    parts = [
        _text_part(_explanation(hostname, arrival, recipients), eight_bit=eight_bit),
        _status_part(_status_fields(hostname, envid, arrival, recipients), eight_bit=eight_bit),
    ]
    if original:
        whole = any(recipient.action == "failed" for recipient in recipients) and ret != "HDRS"
        parts.append(_original_part(original, whole=whole, eight_bit=eight_bit))
    boundary = _boundary(message_id, parts)
    header = [
        _field("Date", format_date(now)),
        _field("From", f"Mail Delivery System <MAILER-DAEMON@{hostname}>"),
        _field("To", f"<{sender}>"),
        _field("Subject", _subject(recipients)),
        _field("Message-ID", f"<{message_id.strip('<>')}>"),
        *_thread_fields(original),
        "Auto-Submitted: auto-replied\r\n",  # RFC 3834: nobody answers this
        "MIME-Version: 1.0\r\n",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary.decode()}"\r\n',
    ]
    if not all(part.isascii() for part in parts):
        header.append("Content-Transfer-Encoding: 8bit\r\n")
    opening = b"--" + boundary + b"\r\n"
    body = b"".join(opening + part + b"\r\n" for part in parts)
    return "".join(header).encode() + b"\r\n" + body + b"--" + boundary + b"--\r\n"


def _boundary(message_id: str, parts: Sequence[bytes]) -> bytes:
    """A boundary that no part holds; from the message id, since this module has no chance to draw on."""
    seed = message_id.encode("utf-8", "surrogateescape")
    while True:
        seed = hashlib.sha256(seed).hexdigest()[:32].encode()
        boundary = b"=_report_" + seed  # `=_` comes in no quoted-printable and no base64
        if not any(boundary in part for part in parts):
            return boundary


def _thread_fields(original: bytes) -> list[str]:
    """So that mail programs show the report beside the message."""
    found = header_values(split(original)[0], b"message-id")
    match = _MESSAGE_ID.search(found[0]) if found else None
    if match is None:
        return []
    return [_field(name, match[0].decode()) for name in ("In-Reply-To", "References")]


_MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,250}>")


# ---- lines that cannot break out


def _safe(text: str, *, ascii_only: bool) -> str:
    """`text` on one line, without controls and runs of spaces; what is not ASCII as `\\xe9` where it must be."""
    line = " ".join(printable(text).split())
    return line.encode("ascii", "backslashreplace").decode() if ascii_only else line


def _words(text: str) -> Iterator[str]:
    """The words of `text`; those too long for a line of mail in pieces."""
    for word in text.split(" "):
        if len(word.encode()) <= MAX_WORD:
            yield word
        else:
            yield from textwrap.wrap(word, MAX_WORD // 4, break_on_hyphens=False)  # a character has up to 4 bytes


def _field(name: str, value: str, *, ascii_only: bool = False) -> str:
    """One header or status field, folded, with its CRLF."""
    words = " ".join(_words(_safe(value, ascii_only=ascii_only)))
    return fold(f"{name}: {words}".encode()).decode() + "\r\n"


# ---- the part for programs


def _status_fields(hostname: str, envid: str, arrival: datetime, recipients: Sequence[RecipientReport]) -> str:
    """The blocks of message/delivery-status; with UTF-8 in it when an address has it (RFC 6533 section 4)."""
    fields = [_field("Reporting-MTA", f"dns; {hostname}", ascii_only=True)]
    if envid:
        fields.append(_field("Original-Envelope-Id", envid, ascii_only=True))
    fields.append(_field("Arrival-Date", format_date(arrival)))
    for recipient in recipients:
        fields.append("\r\n")
        fields.extend(_recipient_fields(recipient))
    return "".join(fields)


def _recipient_fields(recipient: RecipientReport) -> Iterator[str]:
    if recipient.orcpt:
        kind, _, address = recipient.orcpt.partition(";")
        yield _field("Original-Recipient", f"{kind}; {address}")
    kind = "rfc822" if recipient.address.isascii() else "utf-8"
    yield _field("Final-Recipient", f"{kind}; {recipient.address}")
    yield _field("Action", recipient.action, ascii_only=True)
    yield _field("Status", _status(recipient))
    if recipient.remote_host:
        yield _field("Remote-MTA", f"dns; {recipient.remote_host}", ascii_only=True)
    diagnostic = _diagnostic(recipient)
    if diagnostic:
        # RFC 3464 section 2.3.6: `smtp` is for the reply of a server, anything else has a type of its own.
        kind = "smtp" if _REPLY.match(diagnostic) else "x-mailerd"
        yield _field("Diagnostic-Code", f"{kind}; {diagnostic}", ascii_only=True)
    if recipient.last_attempt is not None:
        yield _field("Last-Attempt-Date", format_date(recipient.last_attempt))
    if recipient.action == "delayed" and recipient.will_retry_until is not None:
        yield _field("Will-Retry-Until", format_date(recipient.will_retry_until))


_REPLY = re.compile(r"[2-5][0-9]{2}(?: |\Z)")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_STATUS_OF_ACTION = {"failed": "5.0.0", "delayed": "4.0.0"}


def _status(recipient: RecipientReport) -> str:
    if _STATUS.fullmatch(recipient.status):
        return recipient.status
    return _STATUS_OF_ACTION.get(recipient.action, "2.0.0")


def _diagnostic(recipient: RecipientReport) -> str:
    text = _safe(recipient.diagnostic, ascii_only=True)
    return text if len(text) <= MAX_DIAGNOSTIC else text[:MAX_DIAGNOSTIC] + " [...]"


def _status_part(fields: str, *, eight_bit: bool) -> bytes:
    if fields.isascii():
        return b"Content-Type: message/delivery-status\r\n\r\n" + fields.encode()
    return _encoded("message/global-delivery-status", fields.encode(), eight_bit=eight_bit)


def _encoded(content_type: str, content: bytes, *, eight_bit: bool) -> bytes:
    """A part of a type that may be encoded: quoted-printable unless 8 bits get through to the sender (RFC 6533)."""
    encoding = "8bit" if eight_bit else "quoted-printable"
    header = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    return header + (content if eight_bit else b2a_qp(content, istext=True))


# ---- the original


def _original_part(original: bytes, *, whole: bool, eight_bit: bool) -> bytes:
    if line_problem(original):
        original = _ANY_LINE_END.sub(b"\r\n", original).replace(b"\0", b"")
    if not original.endswith(b"\r\n"):
        original += b"\r\n"
    header = split(original)[0]
    international = not header.isascii() and _is_utf8(header)
    if whole and len(original) <= MAX_ORIGINAL:
        if international:
            return _encoded("message/global", original, eight_bit=eight_bit)
        encoding = b"" if original.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        return b"Content-Type: message/rfc822\r\n" + encoding + b"\r\n" + original
    header = _cut(header)
    if international:
        return _encoded("message/global-headers", header, eight_bit=eight_bit)
    return b"Content-Type: text/rfc822-headers\r\n\r\n" + _NOT_ASCII.sub(
        b"?", header
    )  # 7 bits only, RFC 6522 section 4


_ANY_LINE_END = re.compile(rb"\r\n|\r|\n")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cut(header: bytes) -> bytes:
    if len(header) <= MAX_ORIGINAL:
        return header
    return header[: header.rfind(b"\r\n", 0, MAX_ORIGINAL) + 2]


# ---- the part for people

_SUBJECTS = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delayed mail: still being retried",
    "delivered": "Your mail was delivered",
    "relayed": "Your mail was relayed",
    "expanded": "Your mail was delivered to a list",
}

_OPENINGS = {
    "failed": "could not be delivered to the recipients below, and will not be tried again for them",
    "delayed": "has not been delivered to the recipients below yet. This is only a warning: you need not send it "
    "again, it is still being tried",
    "delivered": "was delivered to the recipients below",
    "relayed": "was handed on to a mail server that sends no delivery reports, for the recipients below. You may hear "
    "no more about them",
    "expanded": "was delivered to the lists below, which send it on to their members. You may hear no more about them",
}

# Subject and detail of an enhanced code (RFC 3463, RFC 7505, RFC 6531) -> what it means, what the sender can do. The
# longest that fits is taken.
_ADVICE = {
    "1.1": ("The address does not exist there.", "Check the spelling of the part before the @."),
    "1.2": ("The domain of the address does not exist or cannot take mail.", "Check the spelling after the @."),
    "1.3": ("The address is not written correctly.", "Check its spelling."),
    "1.6": ("The recipient has moved and left no new address.", "Ask the recipient for the new address."),
    "1.7": ("Your own address was refused.", "Check the sender address your program uses."),
    "1.8": ("The domain of your own address was refused.", "Check the sender address your program uses."),
    "1.10": ("The domain says that it takes no mail at all.", "Check the spelling after the @."),
    "2.1": ("The mailbox is switched off.", "Reach the recipient in another way."),
    "2.2": ("The mailbox is full.", "Ask the recipient in another way to make room, then send again."),
    "2.3": ("The message is too large for the recipient.", "Send it smaller, or send a link instead of the files."),
    "3.4": ("The message is too large for the other server.", "Send it smaller, or send a link instead of the files."),
    "4": ("The other mail server could not be reached.", "Check the spelling after the @; if it is right, try later."),
    "4.7": ("The time for trying ran out.", "Try later, or reach the recipient in another way."),
    "6": ("The other server cannot take this kind of message.", "Send it as plain text, or in a common format."),
    "6.7": ("The other server does not know addresses with such letters.", "Ask for an address in plain ASCII."),
    "7": (
        "The other server refused the message by its rules.",
        "Its answer above may say why; else ask the recipient's mail administrator, and include this report.",
    ),
}
_NO_ADVICE = (
    "The other server did not take the message.",
    "Its answer above may say why; else ask the recipient's mail administrator, and include this report.",
)


def _subject(recipients: Sequence[RecipientReport]) -> str:
    actions = {recipient.action for recipient in recipients}
    return next((subject for action, subject in _SUBJECTS.items() if action in actions), "Delivery report")


def _explanation(hostname: str, arrival: datetime, recipients: Sequence[RecipientReport]) -> str:
    paragraphs = [f"This is an automatic report from the mail system at {_safe(hostname, ascii_only=True)}."]
    for action, opening in _OPENINGS.items():
        concerned = [recipient for recipient in recipients if recipient.action == action]
        if concerned:
            paragraphs.append(textwrap.fill(f"Your message of {format_date(arrival)} {opening}.", 72))
            paragraphs.extend(_recipient_words(recipient) for recipient in concerned)
    paragraphs.append("Details for programs, and your message or its headers, are attached.")
    return "\n\n".join(paragraphs)


def _recipient_words(recipient: RecipientReport) -> str:
    lines = [f"<{_safe(recipient.address, ascii_only=False)}>"]
    meaning, advice = _advice(_status(recipient))
    trouble = recipient.action in ("failed", "delayed")
    if trouble:
        lines.append(meaning)
    diagnostic = _diagnostic(recipient)
    if diagnostic:
        host = _safe(recipient.remote_host, ascii_only=True)
        lines.append(f"{host} answered: {diagnostic}" if host else f"Reason: {diagnostic}")
    if recipient.action == "failed":
        lines.append(f"What you can do: {advice}")
    if recipient.action == "delayed" and recipient.will_retry_until is not None:
        until = format_date(recipient.will_retry_until)
        lines.append(f"It will be tried until {until}. If that fails, you get another report.")
    first, *rest = (" ".join(_words(line)) for line in lines)
    return "\n".join([first, *(_indented(line) for line in rest)])


def _indented(line: str) -> str:
    return textwrap.fill(
        line, 72, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _advice(status: str) -> tuple[str, str]:
    _, subject, detail = status.split(".")
    return _ADVICE.get(f"{subject}.{detail}") or _ADVICE.get(subject) or _NO_ADVICE


def _text_part(text: str, *, eight_bit: bool) -> bytes:
    content = text.replace("\n", "\r\n").encode() + b"\r\n"
    if content.isascii():
        return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + content
    return _encoded("text/plain; charset=utf-8", content, eight_bit=eight_bit)
