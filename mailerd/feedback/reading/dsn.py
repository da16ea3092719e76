"""Delivery status notifications (RFC 3464, RFC 6533): the fields for machines, as real systems write them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mailerd.feedback.reading.mime import Mail, Part
from mailerd.feedback.reading.replies import addresses, clean_address, enhanced_code, one_reply, reply_at, reply_code
from mailerd.feedback.reading.text import decode, lines_of, one_line
from mailerd.feedback.reading.values import LONGEST_NAME, Reported, ReportKind
from mailerd.wire.words import decode_words

MAX_RECIPIENTS = 500

_STATUS_TYPES = frozenset(("message/delivery-status", "message/global-delivery-status"))
_FIELD = re.compile(r"[ \t]{0,4}([A-Za-z][A-Za-z0-9-]{1,40})[ \t]*:[ \t]*(.*)")
_RECIPIENT_LINE = re.compile(r"^[ \t>]{0,4}(?:Final-Recipient|Original-Recipient)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_OUTCOME_LINE = re.compile(r"^[ \t>]{0,4}(?:Action|Status)[ \t]*:[ \t]*\w", re.IGNORECASE | re.MULTILINE)
_TYPED = re.compile(r"\s*([\w.-]{1,30})\s*;\s*(.*)")
_BEFORE_REPLY = re.compile(
    r"(?:\b(?:said|smtp|lmtp|error|code|returned|response|reply):?|^)[\s<>#:;('\"-]*$", re.IGNORECASE
)
_COMMENT = re.compile(r"\([^()]{0,1000}\)")
_XTEXT = re.compile(r"\+(2B|3D|40|20|22|28|29|5C)")  # what some forget to decode; not +AB, which is as likely a tag
_UTF8_XTEXT = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
_ACTIONS = (
    ("fail", "failed"), ("undeliver", "failed"), ("error", "failed"), ("expired", "failed"), ("reject", "failed"),
    ("bounce", "failed"), ("delay", "delayed"), ("defer", "delayed"), ("relay", "relayed"), ("expand", "expanded"),
    ("deliver", "delivered"), ("success", "delivered"), ("not delivered", "failed"), ("perm", "failed"),
)  # fmt: skip
_BY_CLASS = {"5": "failed", "4": "delayed", "2": "delivered"}
_EXPIRED = "4.4.7"  # "delivery time expired": a failure although its class is transient
_KINDS = (
    ("failed", ReportKind.BOUNCE),
    ("delayed", ReportKind.DELAYED),
    ("delivered", ReportKind.DELIVERED),
    ("relayed", ReportKind.DELIVERED),
    ("expanded", ReportKind.DELIVERED),
)


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The fields of a DSN. `recipients` have no words yet; at least one."""

    recipients: tuple[Reported, ...]
    reporter: str

    @property
    def kind(self) -> ReportKind:
        """A failure counts before a delay, a delay before a success."""
        actions = {reported.action for reported in self.recipients}
        return next((kind for action, kind in _KINDS if action in actions), ReportKind.BOUNCE)


def read_status(mail: Mail) -> StatusReport | None:
    """The status fields of a mail: of the part that should have them, or of one that does by another name."""
    labelled = [part for part in mail.parts if part.type in _STATUS_TYPES]
    for part in labelled:
        if found := _status_of(decode(part.content(), part.parameters.get("charset", ""))):
            return found
    for part in filter(_may_be_mislabelled, mail.parts):
        text = part.text()
        if (match := _RECIPIENT_LINE.search(text)) and _OUTCOME_LINE.search(text):
            before = text.rfind("\n\n", 0, text.rfind("\n\n", 0, match.start()) + 1)  # the fields of the message
            if found := _status_of(text[max(before, 0) :]):
                return found
    return None


def _may_be_mislabelled(part: Part) -> bool:
    return (
        part.type not in _STATUS_TYPES
        and not part.is_message
        and part.type.startswith(("text/", "message/", "application/octet"))
    )


def _status_of(text: str) -> StatusReport | None:
    reporter, groups = "", list[dict[str, str]]()
    for group in _groups(lines_of(text)):
        if "final-recipient" in group or "original-recipient" in group:
            groups.append(group)
        reporter = reporter or group.get("reporting-mta", "") or group.get("x-reporting-mta", "")
    recipients = tuple(dict.fromkeys(_reported(group) for group in groups[:MAX_RECIPIENTS]))
    return StatusReport(recipients, _host(reporter)) if recipients else None


def _groups(text: str) -> Iterator[dict[str, str]]:
    """Fields by recipient, the names in lower case; those before the first recipient are a group as well.

    Empty lines part the groups (RFC 3464 section 2.1), but some systems leave them out and some put more in.
    """
    group: dict[str, str] = {}
    apart = False
    for name, value in _fields(text):
        if not name:
            apart = True
            continue
        if name in group if name == "final-recipient" else _begins_another(name, group, apart):
            yield group
            group = {}
        apart = False
        group.setdefault(name, value)
    yield group


def _begins_another(name: str, group: dict[str, str], apart: bool) -> bool:
    if name == "original-recipient":
        return name in group or (apart and "final-recipient" in group)
    return False


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """(name, unfolded value) of each field, ("", "") for each empty line."""
    name, value = "", list[str]()
    for line in text.split("\n"):
        if name and line[:1] in (" ", "\t") and line.strip():
            if len(value) < 60:
                value.append(line.strip())
            continue
        if name:
            yield name, " ".join(value)
            name = ""
        match = _FIELD.match(line)
        if match:
            name, value = match[1].lower(), [match[2].strip()]
        elif not line.strip():
            yield "", ""
    if name:
        yield name, " ".join(value)


def _reported(group: dict[str, str]) -> Reported:
    diagnostic = _diagnostic(group.get("diagnostic-code", ""))
    status = _status(group.get("status", ""), diagnostic)
    original = _address(group.get("original-recipient", ""))
    return Reported(
        address=_final(group, diagnostic) or original,
        original=original,
        action=_action(group.get("action", ""), status),
        status=status,
        code=reply_code(diagnostic[:200]),
        diagnostic=diagnostic,
        remote=_host(group.get("remote-mta", "")),
    )


def _final(group: dict[str, str], diagnostic: str) -> str:
    """Whom it is about: the field that says so, or another one when that has no address (X.400, a local name)."""
    for name in ("final-recipient", "x-actual-recipient", "original-recipient"):
        if address := _address(group.get(name, "")):
            return address
    return next((clean_address(found) for _, _, found in addresses(diagnostic)), "")


def _address(value: str) -> str:
    """The address in `rfc822; ann@example.net` and what others make of it."""
    match = _TYPED.fullmatch(value[:1000])
    kind, text = (match[1].lower(), match[2]) if match else ("", value[:1000])
    if kind == "utf-8":
        text = _UTF8_XTEXT.sub(_character, text)
    text = decode_words(text)
    text = without_xtext(text)
    if "<" in text:
        text = text.rpartition("<")[2].partition(">")[0]
    if "@" not in text:
        text = re.sub(r"\s+at\s+", "@", text, count=1)
    if "(" in text:
        text = _COMMENT.sub("", text)
    return clean_address(text.strip())


def without_xtext(text: str) -> str:
    """The address without the encoding of RFC 3461 section 4, if it has any: a tag such as `ann+28` looks like that.

    Whoever knows the address takes it for the same either way.
    """
    return _XTEXT.sub(lambda found: chr(int(found[1], 16)) if found[1] != "40" or "@" not in text else found[0], text)


def _character(match: re.Match[str]) -> str:
    point = int(match[1], 16)
    return chr(point) if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF else ""


def _diagnostic(value: str) -> str:
    """`smtp; 550 5.1.1 No such user` without its type; what stands before the reply goes too."""
    match = _TYPED.fullmatch(value)
    text = decode_words((match[2] if match else value).strip())
    at = reply_at(text[:500])
    return one_reply(text[at:] if at > 0 and _BEFORE_REPLY.search(text[:at]) else text)


def _status(value: str, diagnostic: str) -> str:
    """The status field, or the code in the diagnostic when that says more than the field's `5.0.0`."""
    said = enhanced_code(value.replace(" ", "")[:40]) or enhanced_code(value[:80])
    if said and not said.endswith(".0.0"):
        return said
    other = enhanced_code(diagnostic[:200])
    return other if other and (not said or other[0] == said[0]) else said


def _action(value: str, status: str) -> str:
    value = value.lower().strip(" \t;<>\"'")
    for begin, action in _ACTIONS:
        if value.startswith(begin):
            return action
    return "failed" if status == _EXPIRED else _BY_CLASS.get(status[:1], "failed")


def _host(value: str) -> str:
    """The name in `dns; mx.example.net (192.0.2.1)`."""
    match = _TYPED.fullmatch(value[:1000])
    name = one_line(match[2] if match else value, LONGEST_NAME)
    return name.partition(" ")[0].lower() if name[:1] != "(" else name
