"""Makes a message of what a client sent: addresses into an envelope, content into RFC 5322 bytes.

Everything wrong with one message is collected and told at once, each with a pointer to where it stands. Pure, so that
large messages can go into a thread.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from mailerd.intake.envelope import Envelope, Track
from mailerd.web import problems
from mailerd.web.bodies import Addresses, Email, NamedAddress, Options, RawEmail
from mailerd.web.problems import FieldError
from mailerd.web.services import Limits
from mailerd.wire import compose, smtp
from mailerd.wire.address import Mailbox, parse_mailbox

Kind = Literal["to", "cc", "bcc"]
MAX_FAULTS = 50  # told at once
MAX_NAMED = 2_000  # characters of a name and its address
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
ANGLED = re.compile(r'\s*(?P<name>"(?:[^"\\]|\\.)*"|[^"<>]*?)\s*<(?P<address>[^<>]*|"[^"]*"@[^<>]*)>\s*', re.DOTALL)
HEADER_PATH = re.compile(r"headers\[(\d+)\]")
LONE_LF = re.compile(rb"(?<!\r)\n")


TEST_MARK = "[Test] "  # before the subject of mail that somebody wants to see before it goes out


@dataclass(slots=True)
class Prepared:
    """A message ready to be submitted, how each recipient was addressed, and which fields the client filled."""

    envelope: Envelope
    content: bytes
    kinds: dict[str, Kind]
    sent: frozenset[str]


@dataclass(frozen=True, slots=True)
class Named:
    mailbox: Mailbox
    name: str


@dataclass(slots=True)
class Faults:
    """What is wrong so far."""

    found: list[FieldError] = field(default_factory=list)

    def add(self, pointer: str, code: str, detail: str) -> None:
        if len(self.found) < MAX_FAULTS:
            self.found.append(FieldError(code, detail, pointer=pointer))

    def settle(self) -> None:
        """Raise `ProblemError` (422) if anything was found."""
        if self.found:
            raise problems.invalid(self.found)


def prepare_email(email: Email, limits: Limits) -> Prepared:
    """Compose `email`. Raises `ProblemError` with every fault, pointers being relative to the email."""
    faults = Faults()
    _check_count(sum(_count(given) for given in (email.to, email.cc, email.bcc)), limits, faults)
    sender = _read_address(email.from_, "/from", faults)
    lists = {kind: _read_addresses(getattr(email, kind), f"/{kind}", faults) for kind in ("to", "cc", "bcc")}
    reply_to = _read_addresses(email.reply_to, "/reply_to", faults)
    kinds = _kinds(lists)
    if not (email.to or email.cc or email.bcc):
        faults.add("/to", "missing_field", "The message needs at least one recipient.")
    _check_options(email, faults)
    if email.html is None and email.text is None:
        faults.add("/text", "missing_field", "The message needs html, text, or both.")
    faults.settle()
    if sender is None:
        raise AssertionError("an unreadable sender without a fault")
    content = _compose(email, sender, lists, reply_to)
    _check_size(content, limits)
    return _prepared(email, sender.mailbox, kinds, content)


def prepare_raw(email: RawEmail, limits: Limits) -> Prepared:
    """Take a complete message. Lone LFs become CRLF, since files on Unix have them; other stray bytes are refused."""
    faults = Faults()
    sender = _read_mailbox(email.from_, "/from", faults)
    listed = [email.to] if isinstance(email.to, str) else email.to
    _check_count(len(listed), limits, faults)
    kinds: dict[Mailbox, Kind] = {}
    for index, text in enumerate(listed):
        if mailbox := _read_mailbox(text, "/to" if isinstance(email.to, str) else f"/to/{index}", faults):
            kinds.setdefault(mailbox, "to")
    if not listed:
        faults.add("/to", "missing_field", "The message needs at least one recipient.")
    _check_options(email, faults)
    content = LONE_LF.sub(b"\r\n", email.raw)
    if problem := smtp.line_problem(content):
        faults.add("/raw", "invalid_value", f"The message has a {problem}.")
    if b":" not in content.partition(b"\r\n")[0]:
        faults.add("/raw", "invalid_value", "The message does not begin with a header field.")
    faults.settle()
    if sender is None:
        raise AssertionError("an unreadable sender without a fault")
    _check_size(content, limits)
    return _prepared(email, sender, kinds, content)


def parse_named(text: str) -> tuple[str, str]:
    """Split `Ann <ann@example.com>` or `"Ann, A." <…>` into name and address; a bare address has no name."""
    if len(text) > MAX_NAMED:  # the expression below is not for novels
        raise ValueError(f"a name and its address are longer than {MAX_NAMED} characters")
    if not text.rstrip(" ").endswith(">"):
        return "", text.strip(" ")
    match = ANGLED.fullmatch(text)
    if match is None:
        raise ValueError("write Ann <ann@example.com>, with the name in double quotes if it has < > or quotes in it")
    name = match["name"]
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return name, match["address"]


def _read_address(given: str | NamedAddress, pointer: str, faults: Faults) -> Named | None:
    try:
        if isinstance(given, str):
            name, address = parse_named(given)
        else:
            name, address, pointer = given.name, given.email, f"{pointer}/email"
        if CONTROL.search(name):
            raise ValueError("the name has a line end or another control character")
        return Named(parse_mailbox(address), name)
    except ValueError as error:
        faults.add(pointer, "invalid_address", _sentence(error))
        return None


def _read_addresses(given: Addresses, pointer: str, faults: Faults) -> list[Named]:
    if not isinstance(given, list):
        named = _read_address(given, pointer, faults)
        return [named] if named else []
    return [named for index, item in enumerate(given) if (named := _read_address(item, f"{pointer}/{index}", faults))]


def _read_mailbox(text: str, pointer: str, faults: Faults) -> Mailbox | None:
    try:
        return parse_mailbox(text)
    except ValueError as error:
        faults.add(pointer, "invalid_address", _sentence(error))
        return None


def _kinds(lists: dict[str, list[Named]]) -> dict[Mailbox, Kind]:
    """Each mailbox once, as what it was named first: who stands in to and in bcc gets one copy."""
    kinds: dict[Mailbox, Kind] = {}
    order: tuple[Kind, ...] = ("to", "cc", "bcc")
    for kind in order:
        for named in lists[kind]:
            kinds.setdefault(named.mailbox, kind)
    return kinds


def _prepared(email: Email | RawEmail, sender: Mailbox, kinds: dict[Mailbox, Kind], content: bytes) -> Prepared:
    return Prepared(
        envelope=_envelope(email, sender, kinds, content, _labels(email)),
        content=content,
        kinds={mailbox.address: kind for mailbox, kind in kinds.items()},
        sent=frozenset(field.encode_name for field in msgspec.structs.fields(email) if getattr(email, field.name)),
    )


def _compose(email: Email, sender: Named, lists: dict[str, list[Named]], reply_to: list[Named]) -> bytes:
    outgoing = compose.Outgoing(
        from_=_shown(sender),
        to=[_shown(named) for named in lists["to"]],
        cc=[_shown(named) for named in lists["cc"]],
        reply_to=[_shown(named) for named in reply_to],
        subject=email.subject,
        html=email.html,
        text=email.text,
        headers=list(email.headers.items()),
        attachments=[
            compose.Attachment(
                filename=attachment.filename,
                content=attachment.content,
                content_type=attachment.content_type,
                content_id=attachment.content_id,
                disposition=attachment.disposition or "",
            )
            for attachment in email.attachments
        ],
    )
    try:
        return compose.compose(outgoing)
    except compose.FieldError as error:
        detail = error.problem[:1].upper() + error.problem[1:] + "."
        raise problems.invalid([FieldError("invalid_value", detail, pointer=_pointer(error.field, email))]) from None


def _shown(named: Named) -> compose.Address:
    return compose.Address(address=named.mailbox.address, name=named.name)


def _pointer(path: str, email: Email) -> str:
    """Where `to[0].name` or `headers[2].value` of the composer stands in what the client sent."""
    if header := HEADER_PATH.match(path):
        return "/headers/" + problems.escape(list(email.headers)[int(header[1])])
    name, *rest = re.findall(r"\w+", path)
    if name in ("to", "cc", "reply_to") and not isinstance(getattr(email, name), list):
        rest = rest[1:]
    return "/".join(["", name, *rest])


def _count(given: Addresses) -> int:
    return len(given) if isinstance(given, list) else 1


def _check_count(count: int, limits: Limits, faults: Faults) -> None:
    """Nothing else is looked at when there are too many: that alone would be work."""
    if count > limits.max_recipients:
        detail = f"One message may have {limits.max_recipients:,} recipients; this one has {count:,}."
        faults.add("/to", "too_many_recipients", detail)
    faults.settle()


def _check_options(options: Options, faults: Faults) -> None:
    start, end = options.scheduled_at, options.expires_at
    if start and end and end <= start:
        faults.add("/expires_at", "invalid_value", "The message would expire before it may leave.")
    for tag in options.tags:
        if options.labels.get(tag):
            faults.add("/tags", "invalid_value", f"{tag} is a label with a value as well; it can be only one of them.")


def _check_size(content: bytes, limits: Limits) -> None:
    if len(content) > limits.max_message:
        detail = f"A message may have {limits.max_message:,} bytes; composed, this one has {len(content):,}."
        raise problems.ProblemError(413, "message_too_large", detail)


def _labels(options: Options) -> dict[str, str]:
    return {**dict.fromkeys(options.tags, ""), **options.labels}


def _envelope(
    options: Options, sender: Mailbox, kinds: Iterable[Mailbox], content: bytes, labels: dict[str, str]
) -> Envelope:
    mailboxes = list(kinds)
    return Envelope(
        sender=sender.address,
        recipients=[smtp.RcptCommand(address=mailbox, notify="", orcpt="") for mailbox in mailboxes],
        size=len(content),
        smtputf8=sender.needs_smtputf8 or any(mailbox.needs_smtputf8 for mailbox in mailboxes),
        eight_bit=not content.isascii(),
        stream=options.stream,
        pool=options.pool,
        not_before=options.scheduled_at,
        expires_at=options.expires_at,
        labels=labels,
        campaign=options.campaign,
        priority=options.priority,
        require_tls=options.require_tls,
        topic=options.topic,
        unsubscribe=options.unsubscribe,
        track=Track(options.tracking.opens, options.tracking.clicks) if options.tracking else None,
    )


def _sentence(error: ValueError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
