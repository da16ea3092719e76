"""What comes back from a mailbox that has taken a message, in the forms in which it comes back in real life."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mailerd.wire.message import format_date, header_values, split
from mailerd.wire.reports import RecipientReport, build_report

Kind = Literal["unknown", "full", "complaint", "vacation"]

REFUSALS = {
    "unknown": ("5.1.1", "550 5.1.1 no such mailbox"),
    "full": ("5.2.2", "552 5.2.2 the mailbox is full"),
}
COMPLAINT = """\
From: Feedback loop of the sandbox <fbl@{hostname}>
To: <{to}>
Subject: Complaint about a message
Date: {date}
Message-ID: <{id}>
Auto-Submitted: auto-generated
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report;
 boundary="{boundary}"

--{boundary}
Content-Type: text/plain; charset=us-ascii

This is an email abuse report for a message received on {date}.

--{boundary}
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: mailerd-sandbox/1
Version: 1
Original-Mail-From: <{sender}>
Original-Rcpt-To: <{recipient}>
Arrival-Date: {date}
Reporting-MTA: dns; {hostname}

--{boundary}
Content-Type: message/rfc822
{encoding}
Return-Path: <{sender}>
"""
VACATION = """\
From: <{recipient}>
To: <{to}>
Subject: Out of office
Date: {date}
Message-ID: <{id}>
{thread}Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

I am away until Monday. Your message is kept, and I shall read it then.
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """One recipient's copy of a message: `sender` is its return path, never empty."""

    sender: str
    recipient: str
    content: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """A message to `to`, to be sent with the null sender."""

    to: str
    content: bytes


def answer(kind: Kind, taken: Taken, *, hostname: str, feedback: str, message_id: str) -> Answer:
    """A bounce (RFC 3464), a complaint (RFC 5965) or a vacation notice (RFC 3834) about what was taken.

    It goes to the return path; a complaint to `feedback`, the address given to feedback loops, unless that is "".
    """
    if kind == "complaint":
        to = feedback or taken.sender
        return Answer(to, _complaint(taken, to, hostname, message_id))
    if kind == "vacation":
        return Answer(taken.sender, _vacation(taken, message_id))
    status, said = REFUSALS[kind]
    content = build_report(
        sender=taken.sender,
        hostname=hostname,
        envid="",
        arrival=taken.at,
        now=taken.at,
        recipients=[RecipientReport(taken.recipient, "", "failed", status, said)],
        original=_returned(taken),
        ret="",
        message_id=message_id,
    )
    return Answer(taken.sender, content)


def _returned(taken: Taken) -> bytes:
    """What was taken, as the mailbox would have it: the return path is noted at final delivery (RFC 5321 4.4)."""
    return f"Return-Path: <{taken.sender}>\r\n".encode() + taken.content


def _complaint(taken: Taken, to: str, hostname: str, message_id: str) -> bytes:
    boundary = "=_" + hashlib.sha256(message_id.encode()).hexdigest()[:32]
    head = COMPLAINT.format(
        hostname=hostname,
        to=to,
        date=format_date(taken.at),
        id=message_id,
        boundary=boundary,
        sender=taken.sender,
        recipient=taken.recipient,
        encoding="" if taken.content.isascii() else "Content-Transfer-Encoding: 8bit\n",
    )
    return _crlf(head) + taken.content + f"\r\n--{boundary}--\r\n".encode()


def _vacation(taken: Taken, message_id: str) -> bytes:
    found = header_values(split(taken.content)[0], b"Message-ID")
    about = found[0].decode("ascii", "replace").strip() if found else ""
    thread = f"In-Reply-To: {about}\nReferences: {about}\n" if about.isprintable() and about else ""
    text = VACATION.format(
        recipient=taken.recipient, to=taken.sender, date=format_date(taken.at), id=message_id, thread=thread
    )
    return _crlf(text)


def _crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape")
