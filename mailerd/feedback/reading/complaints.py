"""Complaints: ARF (RFC 5965), and the forms of those who send something else."""

import re

from mailerd.feedback.reading.header import Header, parse_header
from mailerd.feedback.reading.mime import Mail
from mailerd.feedback.reading.phrases import COMPLAINTS, folded, says
from mailerd.feedback.reading.replies import addresses, clean_address
from mailerd.feedback.reading.text import lines_of, one_line
from mailerd.feedback.reading.values import LONGEST_NAME, LONGEST_WORDS, Report, Reported, ReportKind, Returned

MAX_RECIPIENTS = 100

_NO_COMPLAINT = frozenset(("not-spam", "auth-failure"))  # the opposite; what a host found (RFC 6591), no person
_REDACTED = re.compile(
    r"redact|\*|x{4,}|^[<\[(]?(?:hidden|removed|undisclosed|anonym|unknown|recipient|user|nobody)[\])>]?@",
    re.IGNORECASE,
)
_TO_ORIGINAL = (  # in the returned header: for whom it was, best first
    "x-hmxmroriginalrecipient", "x-original-to", "x-rcpt-to", "x-envelope-to",
    "envelope-to", "original-recipient", "delivered-to",
)  # fmt: skip
_FOR = re.compile(r"\bfor\s+<?([^\s<>;]{1,250}@[^\s<>;]{1,250})>?")
_SENDERS = re.compile(
    r"^(?:staff|scomp|fbl|feedback(?:loop)?|abuse|complaints?|spam|arf|postmaster|noreply|no-reply)\b", re.IGNORECASE
)


def read_complaint(mail: Mail, returned: Returned, header: Header, subject: str) -> Report | None:
    """The complaint in a mail, None when it is none. `header` is that of our message, as `returned` has it."""
    part = mail.first("message/feedback-report")
    if part is None and mail.parameters.get("report-type", "").lower() == "feedback-report":
        part = next((other for other in mail.parts if b"eedback-type:" in other.raw[:2000]), None)
    if part is not None:
        return _arf(parse_header(part.content()), mail, returned, header, subject)
    if (
        "x-hmxmroriginalrecipient" in header
        or "x-hmxmroriginalrecipient" in mail.header
        or _is_complaint(mail, returned, subject)
    ):
        return _complaint(mail, returned, "", _original(header) or _original(mail.header), subject, "")
    return None


def _arf(fields: Header, mail: Mail, returned: Returned, header: Header, subject: str) -> Report:
    kind = one_line(fields.text("feedback-type", 60).strip("\"' ").lower(), 40) or "abuse"
    named = [
        value for name in ("original-rcpt-to", "removal-recipient", "original-recipient") for value in fields.all(name)
    ]
    found = [_plain(value) for value in named[:MAX_RECIPIENTS]] if named else [_original(header)]
    reporter = fields.text("reporting-mta", LONGEST_NAME).rpartition(";")[2].strip() or fields.text(
        "source", LONGEST_NAME
    )
    report = _complaint(mail, returned, kind, "", subject, reporter)
    recipients = tuple(Reported(address, words=report.recipients[0].words) for address in dict.fromkeys(found))
    return Report(report.kind, recipients, returned, report.reporter, kind, subject)


def _complaint(mail: Mail, returned: Returned, feedback_type: str, address: str, subject: str, reporter: str) -> Report:
    text = mail.first("text/plain", "text/html")
    words = one_line(lines_of(text.text()), LONGEST_WORDS) if text else ""
    kind = ReportKind.OTHER if feedback_type in _NO_COMPLAINT else ReportKind.COMPLAINT
    reporter = reporter or mail.header.sender().rpartition("@")[2].lower()
    return Report(
        kind, (Reported(address, words=words),), returned, one_line(reporter, LONGEST_NAME), feedback_type, subject
    )


def _is_complaint(mail: Mail, returned: Returned, subject: str) -> bool:
    """Whether it is one by its subject, from somebody who sends such, with our message in it."""
    return (
        bool(returned.header) and says(folded(subject), COMPLAINTS) and _SENDERS.match(mail.header.sender()) is not None
    )


def _plain(value: str) -> str:
    """An address, unless it is made unreadable on purpose."""
    address = clean_address(value.rpartition(";")[2])
    return "" if _REDACTED.search(address) else address


def _original(header: Header) -> str:
    """For whom the message was that came back, as its header says."""
    for name in _TO_ORIGINAL:
        if address := _plain(header.text(name)):
            return address
    for value in header.all("received")[:5]:
        match = _FOR.search(value)
        if match and (address := _plain(match[1])):
            return address
    to = [_plain(address) for _, _, address in addresses(header.text("to"))]
    return to[0] if len(to) == 1 else ""
