"""One mail of a campaign as RFC 5322 bytes. Pure.

Made by hand, with what is the same for all recipients made once: a mail takes some tens of microseconds.
"""

import re
from binascii import b2a_qp
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from mailerd.campaigns.templates.pieces import Body
from mailerd.wire.compose import Address, address_field, text_field
from mailerd.wire.dkim import is_canonical
from mailerd.wire.message import MAX_LINE

NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Head(NamedTuple):
    """What stands in the header of all mails of a campaign: whole fields with CRLF."""

    first: bytes  # From and Reply-To
    last: bytes  # List-Id, Feedback-ID, MIME-Version


class Made(NamedTuple):
    """A mail. `canonical`: its body is in DKIM's form; False: perhaps it is not."""

    content: bytes
    canonical: bool


class _Part(NamedTuple):
    """What follows a boundary: header and body, and what is known of that, as in `Made`."""

    head: bytes
    content: Sequence[bytes]
    canonical: bool


def head(sender: Address, reply_to: str, list_id: str, feedback_id: str) -> Head:
    """`reply_to`, `list_id` (RFC 2919) and `feedback_id`: "" for none. Raises compose.FieldError."""
    first = address_field("From", sender)
    if reply_to:
        first += address_field("Reply-To", Address(reply_to))
    last = b"MIME-Version: 1.0\r\n"
    for name, value in (("List-Id", list_id), ("Feedback-ID", feedback_id)):
        if value:
            last += text_field(name, value)
    return Head(first, last)


def to_field(address: str, name: str) -> bytes:
    """To whom; a name with line ends or other controls loses them. Raises compose.FieldError for a bad address."""
    return address_field("To", Address(address, NAME.sub(" ", name).strip()[:100]))


def mail(head: Head, to: bytes, subject: bytes, date: str, message_id: str, *, html: Body, text: Body) -> Made:
    """All of it: text and HTML as alternatives, in UTF-8. `to` and `subject` are whole fields."""
    plain, rich = _part("plain", text), _part("html", html)
    boundary = b"=_" + blake2b(message_id.encode(), digest_size=15).hexdigest().encode()
    content = b"".join(
        (
            head.first,
            to,
            subject,
            b"Date: ",
            date.encode(),
            b"\r\nMessage-ID: ",
            message_id.encode(),
            b"\r\n",
            head.last,
            b'Content-Type: multipart/alternative;\r\n boundary="',
            boundary,
            b'"\r\n\r\n--',
            boundary,
            plain.head,
            *plain.content,
            b"\r\n--",
            boundary,
            rich.head,
            *rich.content,
            b"\r\n--",
            boundary,
            b"--\r\n",
        )
    )
    return Made(content, plain.canonical and rich.canonical)


def _part(subtype: str, body: Body) -> _Part:
    """Quoted-printable where a line is too long (RFC 5322 2.1.1)."""
    content, outline = body
    canonical = is_canonical(outline)
    if _has_long_line(outline):
        content = [b2a_qp(b"".join(content), istext=True)]
        encoding, canonical = b"quoted-printable", False
    elif outline.isascii():
        encoding = b"7bit"
    else:
        encoding = b"8bit"
    head = b"\r\nContent-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: %s\r\n\r\n"
    return _Part(head % (subtype.encode(), encoding), content, canonical)


def _has_long_line(text: bytes) -> bool:
    """Is there a line of more than `MAX_LINE` bytes? Looked for by steps of about that length, not line by line."""
    at = 0
    while len(text) - at > MAX_LINE + 1:  # with its CR
        end = text.rfind(b"\n", at, at + MAX_LINE + 2)
        if end < 0:
            return True
        at = end + 1
    return False
