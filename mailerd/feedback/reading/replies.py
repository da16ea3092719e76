"""SMTP replies, enhanced codes and addresses inside text that people and machines wrote."""

import re
from collections.abc import Iterator
from contextlib import suppress

from mailerd.feedback.reading.text import one_line
from mailerd.feedback.reading.values import LONGEST_ADDRESS, LONGEST_DIAGNOSTIC
from mailerd.wire.address import domain_to_ascii

MAX_ADDRESSES = 200  # occurrences in one text

_ENHANCED = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d]|\.\d)")
_REPLY = re.compile(r"(?<![\w.:/@-])([245]\d\d)(?:[ \t]+|-|:[ \t]+)(?=\(?#?[245]\.\d{1,3}\.\d|[^\W\d]|[<*'\"(#\[])")
_CODE_ONLY = re.compile(
    r"(?:said|error|reply|replied|response|returned|status|code|smtp)\W{1,6}([45]\d\d)\b", re.IGNORECASE
)
_NO_CODE_BEFORE = re.compile(
    r"\b(?:port|id|line|size|after|than|of|bytes|page|room|tel|phone|box|street|queue)[ \t#.:]*$", re.IGNORECASE
)
_CONTINUED = re.compile(r"(?<=\S)\s+(?:([245]\d\d)[-\s](?:\s*([245]\.\d{1,3}\.\d{1,3})\s)?)(?=\S)")
_LOCAL = re.compile(r"(?:\"[^\"\r\n]{1,64}\"|[\w.!#$%&'*+/=?^`{|}~-]{1,128})\Z")
_DOMAIN = re.compile(r"\[[\da-fA-F:.IPv]{3,45}\]|[\w-]{1,63}(?:[.。][\w-]{1,63}){0,10}")
_WESTERN_DOMAIN = re.compile(  # in scripts written without spaces the words around an address would join it
    r"\[[\da-fA-F:.IPv]{3,45}\]|(?:[^\W\u2e80-\U0010ffff]|-){1,63}(?:\.(?:[^\W\u2e80-\U0010ffff]|-){1,63}){0,10}"
)
_FIRST_CJK = "\u2e80"
_EAGER = "'`=/*|!.{}?&$#"  # may stand in a local part, and more often before one


def enhanced_code(text: str) -> str:
    """The first enhanced status code in `text` (RFC 3463), not an address of a host; "" without one."""
    match = _ENHANCED.search(text)
    return match[1] if match else ""


def refusal_code(text: str) -> str:
    """The first enhanced code of a refusal: `2.0.12` in words is the version of something."""
    return next((match[1] for match in _ENHANCED.finditer(text) if match[1][0] != "2"), "")


def reply_at(text: str) -> int:
    """Where the first reply of refusal begins in `text`, -1 for none."""
    for match in _REPLY.finditer(text):
        if match[1][0] != "2" and not _NO_CODE_BEFORE.search(text, max(0, match.start() - 12), match.start()):
            return match.start()
    return -1


def reply_code(text: str) -> int:
    """The code of the first reply of refusal in `text`, 0 for none."""
    at = reply_at(text)
    if at >= 0:
        return int(text[at : at + 3])
    match = _CODE_ONLY.search(text)
    return int(match[1]) if match else 0


def one_reply(text: str) -> str:
    """A reply of several lines as one: `550-5.1.1 No 550 5.1.1 such user` says `550 5.1.1 No such user`."""
    text = one_line(text, LONGEST_DIAGNOSTIC * 2)
    match = re.match(r"([245]\d\d)-", text)
    if match:
        text = f"{match[1]} {text[4:].lstrip()}"
    code = text[:3]
    if code.isdigit():
        enhanced = enhanced_code(text[:16])
        text = _CONTINUED.sub(lambda m: " " if m[1] == code and (m[2] or "") in ("", enhanced) else m[0], text)
    return one_line(text, LONGEST_DIAGNOSTIC)


def addresses(text: str) -> Iterator[tuple[int, int, str]]:
    """Where addresses stand in `text`, and which: (start, end, address), at most MAX_ADDRESSES."""
    at = -1
    for _ in range(MAX_ADDRESSES):
        at = text.find("@", at + 1)
        if at < 0:
            return
        found = _address_around(text, at)
        if found:
            yield found
            at = found[1] - 1


def _address_around(text: str, at: int) -> tuple[int, int, str] | None:
    domain = _WESTERN_DOMAIN.match(text, at + 1) or _DOMAIN.match(text, at + 1)
    if domain is None:
        return None
    start = at
    last = _FIRST_CJK if text[at - 1 : at] < _FIRST_CJK else "\U0010ffff"
    first = max(0, at - 128)
    if text[at - 1 : at] == '"':
        start = max(text.rfind('"', first, at - 1), first)
    else:
        while start > first and _in_local_part(text[start - 1], last):
            start -= 1
    local = text[start:at].lstrip(_EAGER)
    if local.lower().startswith(("mailto=", "smtp=")):  # X.400 addresses have `dda:SMTP=ann@example.net`
        local = local.partition("=")[2]
    end = domain.end()
    if not local or not _LOCAL.match(local):
        return None
    host = domain[0].rstrip(".-_")
    if not host or ("." not in host and host[0] != "["):
        return None
    return at - len(local), end, f"{local}@{host}"


def _in_local_part(character: str, last: str) -> bool:
    return character in "_.!#$%&'*+/=?^`{|}~-" or (character.isalnum() and character <= last)


def clean_address(text: str) -> str:
    """An address as a report gives it, with its domain in lower case and in ASCII; "" when it is none."""
    text = one_line(text, LONGEST_ADDRESS * 2).strip("<>\"' \t;,()[]") if "@" in text else ""
    if text.lower().startswith("mailto:"):
        text = text[7:]
    text = text.partition(" ")[0] if " " in text and '"' not in text else text
    local, _, domain = text.rstrip(".").rpartition("@")
    if local.startswith("@") and ":" in local:  # a source route (RFC 5321 appendix C)
        local = local.partition(":")[2]
    domain = domain.strip("[]<>,;:'\"").lower() if not domain.startswith("[") else domain
    if not local or not domain or len(local) + len(domain) >= LONGEST_ADDRESS:
        return ""
    if not domain.isascii():
        with suppress(ValueError):
            domain = domain_to_ascii(domain)
    return f"{local}@{domain}"
