"""From bytes to a report: which kind it is, and who reads it."""

from dataclasses import dataclass, replace

from mailerd.feedback.reading.aggregates import aggregate_kind
from mailerd.feedback.reading.automatic import (
    daemon_address,
    from_challenger,
    from_daemon,
    is_answer,
    is_automatic_answer,
    is_challenge,
    is_forwarded,
    null_sender,
)
from mailerd.feedback.reading.complaints import read_complaint
from mailerd.feedback.reading.dsn import StatusReport, read_status
from mailerd.feedback.reading.header import Header
from mailerd.feedback.reading.last_resort import ask_flufl
from mailerd.feedback.reading.mime import Mail, Part, read_mail
from mailerd.feedback.reading.phrases import DELAYED, FAILED, GAVE_UP, folded, says
from mailerd.feedback.reading.prose import human_lines, read_prose, reported
from mailerd.feedback.reading.replies import addresses, clean_address, reply_at
from mailerd.feedback.reading.returned import HEADERS_ONLY, copied, named_message, returned_part
from mailerd.feedback.reading.text import one_line
from mailerd.feedback.reading.values import LONGEST_NAME, Report, Reported, ReportKind, Returned

MAX_TEXTS = 6  # parts of a mail that are read as its words
BOUNCE = 4  # points of evidence from which a mail is a bounce

_LISTED = ("x-failed-recipients", "x-failed-recipient", "x-bounced-recipient")


def read_report(content: bytes) -> Report:
    """Tell what a mail that came back is, and of whom and what it speaks.

    Takes any bytes: never raises, and looks at a bounded part of them (some hundred kilobytes), so its time is bounded
    too. A mail that is no report is one of kind `other`. A bounce that names nobody has one recipient with the address
    "": the caller knows from the return path whom it is about.
    """
    mail = _unwrapped(read_mail(content))
    subject = mail.header.text("subject", LONGEST_NAME)
    returned, header = returned_part(mail)
    status = read_status(mail)
    if status is None:
        if complaint := read_complaint(mail, returned, header, subject):
            return complaint
        if kind := aggregate_kind(mail, subject):
            return Report(kind, (), returned, _writer(mail), "", subject)
    words = _words_of(mail, returned, header)
    if status is not None:
        return _of_status(mail, status, words, subject)
    return _of_words(content, mail, words, subject)


def _unwrapped(mail: Mail) -> Mail:
    """The report that a mail begins with as an attachment, as some gateways pass one on."""
    parts = [part for part in mail.parts if part.raw.strip()]
    if not parts or not parts[0].is_message:
        return mail
    inner = read_mail(parts[0].content())
    wrapped = inner.type == "multipart/report" or (len(parts) == 1 and from_daemon(inner.header))
    return inner if wrapped else mail


@dataclass(frozen=True, slots=True)
class _Words:
    """What a mail says to people, and our message as it came back with it."""

    lines: list[str]
    returned: Returned
    header: Header

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def _words_of(mail: Mail, returned: Returned, header: Header) -> _Words:
    texts = [text for part in _read_as_words(mail) if (text := part.text()).strip()]
    lines: list[str] = []
    for text in texts:
        human, copy = human_lines(text)
        lines += human
        if copy is not None and not returned.header:
            returned, header = copied(text.split("\n"), copy)
    if not returned.header:
        returned = named_message("\n".join(lines), mail.header)
    return _Words(lines, returned, header)


def _read_as_words(mail: Mail) -> list[Part]:
    """The parts in front of the returned message that people read; HTML only where there is no plain text."""
    plain, html = [], []
    for part in mail.parts:
        if part.is_message or part.type in HEADERS_ONLY:
            break
        if part.type == "text/html":
            html.append(part)
        elif part.type.startswith("text/"):
            plain.append(part)
    return (plain if any(part.raw.strip() for part in plain) else html)[:MAX_TEXTS]


# ---- reports with fields for machines


def _of_status(mail: Mail, status: StatusReport, words: _Words, subject: str) -> Report:
    """A DSN: its fields, and for each recipient the words that people get to read."""
    recipients = status.recipients
    if len(recipients) == 1:
        recipients = (_with_words(recipients[0], words.lines),)
    else:
        named = read_prose(words.lines, [known.address for known in recipients], frozenset(), Header(), "")
        said = {found.address.lower(): found for found in named.recipients}
        recipients = tuple(
            replace(known, words=said[key].words) if (key := known.address.lower()) in said else known
            for known in recipients
        )
    kind = ReportKind.CHALLENGE if from_challenger(mail) else status.kind
    return Report(kind, recipients, words.returned, status.reporter or _writer(mail), "", subject)


def _with_words(known: Reported, lines: list[str]) -> Reported:
    said = reported(known.address, lines, known.action)
    return replace(
        known,
        diagnostic=known.diagnostic or said.diagnostic,
        code=known.code or (said.code if not known.diagnostic else 0),
        status=known.status or said.status,
        words=said.words,
    )


# ---- all others


def _of_words(content: bytes, mail: Mail, words: _Words, subject: str) -> Report:
    text = words.text
    kind = _kind_of(mail, words, subject, text)
    recipients: tuple[Reported, ...] = ()
    if kind in (ReportKind.BOUNCE, ReportKind.DELAYED):
        recipients = _recipients(content, mail, words, "delayed" if kind is ReportKind.DELAYED else "failed")
    return Report(kind, recipients, words.returned, _writer(mail), "", subject)


def _kind_of(mail: Mail, words: _Words, subject: str, text: str) -> ReportKind:
    if is_automatic_answer(mail, subject, text):
        return ReportKind.CHALLENGE if is_challenge(mail, subject, text) else ReportKind.AUTO_REPLY
    if _evidence(mail, words, subject, text) < BOUNCE:
        return ReportKind.CHALLENGE if is_challenge(mail, subject, text) else ReportKind.OTHER
    said = folded(f"{subject}\n{text}", 3000)
    return ReportKind.DELAYED if says(said, DELAYED) and not says(said, GAVE_UP) else ReportKind.BOUNCE


def _evidence(mail: Mail, words: _Words, subject: str, text: str) -> int:
    """How much speaks for a bounce, in points."""
    header = mail.header
    if any(name in header for name in _LISTED):
        return BOUNCE
    daemon = from_daemon(header)
    points = 3 if daemon else 0
    if not daemon and _of_a_person_or_list(header, subject):
        return 0
    points -= 2 if not daemon and is_answer(subject) else 0
    points += 1 if null_sender(header) or "auto-submitted" in header else 0
    points += 3 if _says_undelivered(folded(subject)) else 0
    tells = _says_undelivered(folded(text, 4096))
    points += 3 if tells else 0
    points += 2 if words.returned.header else 0
    points += 2 if mail.type == "multipart/report" else 0
    points += 1 if reply_at(text[:8192]) >= 0 else 0
    vague = not words.returned.header and not any(addresses(text[:8192]))
    if vague and not daemon_address(header) and (daemon or points <= 6):
        return 0  # parcels fail to be delivered too, and spam calls itself an administrator's
    if vague and not tells and not null_sender(header):
        return 0  # nor does a worm that calls itself a postmaster say what failed
    return points


def _of_a_person_or_list(header: Header, subject: str) -> bool:
    """Whether a person passed something on or wrote back, or a list sent it to its readers."""
    if is_forwarded(subject) or "list-id" in header or "list-unsubscribe" in header:
        return True
    return is_answer(subject) and ("in-reply-to" in header or "references" in header)


def _says_undelivered(text: str) -> bool:
    return says(text, FAILED) or says(text, DELAYED)


def _recipients(content: bytes, mail: Mail, words: _Words, action: str) -> tuple[Reported, ...]:
    listed = [value for name in _LISTED for value in mail.header.all(name)]
    never = frozenset(
        clean_address(address).lower()
        for name in ("from", "to", "return-path", "reply-to", "sender", "delivered-to", "x-original-to")
        for _, _, address in addresses(mail.header.text(name))
    )
    found = read_prose(words.lines, listed, never, words.header, action)
    if found.sure:
        return found.recipients
    named = ask_flufl(content)
    if not named and found.recipients:
        return found.recipients
    named = named or [_only_recipient(words.header)]
    return tuple(reported(address, words.lines, action) for address in named)


def _only_recipient(header: Header) -> str:
    """For whom our message was, where it came back and went to one person, not to a list."""
    if "list-id" in header or "cc" in header:
        return ""
    to = {clean_address(address) for _, _, address in addresses(header.text("to"))}
    return to.pop() if len(to) == 1 else ""


def _writer(mail: Mail) -> str:
    return one_line(mail.header.sender().rpartition("@")[2].lower(), LONGEST_NAME)
