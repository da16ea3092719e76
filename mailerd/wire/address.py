"""Mail addresses (RFC 5321 section 4.1.2, RFC 6531 section 3.3): text in, a `Mailbox` or words on what is wrong out."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import idna
import msgspec

MAX_LOCAL = 64  # octets, RFC 5321 section 4.5.3.1.1
MAX_DOMAIN = 255  # octets, section 4.5.3.1.2
MAX_ADDRESS = 254  # octets: a path has 256 with its angle brackets, section 4.5.3.1.3

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_ATEXT_UTF8 = _ATEXT + r"\u0080-\U0010ffff"
# The underscore is not in RFC 5321, but hosts that send and take mail have it in their names and DNS carries it.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
# The last label of a name holds something else than digits: `ann@10.0.0.1` is an address that lost its brackets.
_NAME = rf"(?>(?:{_LABEL}\.)*)(?![0-9]+\Z){_LABEL}"

_PLAIN = re.compile(rf"([{_ATEXT}]+(?>(?:\.[{_ATEXT}]+)*))@({_NAME})")
_DOMAIN_NAME = re.compile(_NAME)
_DOT_ATOM = re.compile(rf"[{_ATEXT_UTF8}]+(?>(?:\.[{_ATEXT_UTF8}]+)*)")
_QUOTED = re.compile(r'"(?>(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*)"')
_QUOTED_PAIR = re.compile(r"\\(.)")
_TO_ESCAPE = re.compile(r'["\\]')
# Never in an address, quoted or not: C1 controls, spaces beyond ASCII, and bytes that were no UTF-8 (surrogates).
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|(?! )\s")


class Mailbox(msgspec.Struct, frozen=True):
    """One address. `domain` is lower-case A-labels, an address literal, or "" for the bare `postmaster` of a RCPT.

    `local` is as it was given, quotes included: only its own domain may say which spellings are the same.
    """

    address: str
    local: str
    domain: str

    @property
    def needs_smtputf8(self) -> bool:
        """True when the local part is not ASCII: it cannot be said to a host without SMTPUTF8."""
        return not self.local.isascii()


def parse_mailbox(text: str) -> Mailbox:
    """Return the mailbox that `text` names: `local@domain` and nothing around it.

    Takes dot-atoms, quoted local parts, `[127.0.0.1]`, `[IPv6:::1]`, and domains in their own script, which become
    A-labels. Raises ValueError whose text says what is wrong in words for people; it never quotes the address.
    """
    match = _PLAIN.fullmatch(text)
    if match is None or len(text) > MAX_ADDRESS:
        return _parse_unusual(text)
    local, domain = match.groups()
    if len(local) > MAX_LOCAL:
        raise ValueError(_LONG_LOCAL)
    if not domain.islower():
        domain = domain.lower()
        text = f"{local}@{domain}"
    return Mailbox(text, local, domain)


def domain_to_ascii(text: str) -> str:
    """Return a domain name as lower-case A-labels (IDNA 2008 with the mapping of UTS 46).

    Raises ValueError with words for people. Address literals are no names and are refused.
    """
    if len(text) > MAX_DOMAIN:
        raise ValueError(_LONG_DOMAIN)
    if not text:
        raise ValueError("the domain is empty: write it after the @")
    name = text.lower() if text.isascii() else _to_a_labels(text)
    if len(name) > MAX_DOMAIN:
        raise ValueError(_LONG_DOMAIN)
    if not _DOMAIN_NAME.fullmatch(name):
        raise ValueError(_domain_problem(name))
    return name


_LONG_LOCAL = f"the part before the @ is longer than {MAX_LOCAL} bytes"
_LONG_DOMAIN = f"the domain is longer than {MAX_DOMAIN} bytes"
_LONG_ADDRESS = f"the address is longer than {MAX_ADDRESS} bytes"


def _parse_unusual(text: str) -> Mailbox:
    """The whole grammar, for what the fast path left: quotes, literals, other scripts, and mistakes."""
    if len(text) > 4 * MAX_ADDRESS:  # before anything slow looks at it; A-labels may be shorter than the U-labels
        raise ValueError(_LONG_ADDRESS)
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError("the address has no @: write local@domain")
    _check_local(local)
    domain = _literal(domain) if domain.startswith("[") else domain_to_ascii(domain)
    address = f"{local}@{domain}"
    if len(address.encode()) > MAX_ADDRESS:
        raise ValueError(_LONG_ADDRESS)
    return Mailbox(address, local, domain)


def _check_local(local: str) -> None:
    if not local:
        raise ValueError("the part before the @ is empty")
    if _UNPRINTABLE.search(local):
        raise ValueError("the part before the @ has control characters, exotic spaces, or bytes that are not UTF-8")
    if len(local.encode()) > MAX_LOCAL:
        raise ValueError(_LONG_LOCAL)
    if _DOT_ATOM.fullmatch(local) or _QUOTED.fullmatch(local):
        return
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError("the part before the @ starts or ends with a dot or has two in a row: put it in double quotes")
    if local.startswith('"'):
        raise ValueError('the quoted part before the @ is broken: close it, and write \\ before each " and \\ inside')
    raise ValueError('the part before the @ has a character that must be quoted: write it as "local part"@domain')


def _literal(domain: str) -> str:
    """Address literals of RFC 5321 section 4.1.3, in one spelling for each address."""
    inside = domain[1:-1] if domain.endswith("]") else ""
    try:
        if inside[:5].lower() == "ipv6:":
            if "%" in inside:  # a zone means something on this host only
                raise ValueError(inside)
            return f"[IPv6:{IPv6Address(inside[5:])}]"
        return f"[{IPv4Address(inside)}]"
    except ValueError:
        raise ValueError("the address literal is wrong: write [192.0.2.1] or [IPv6:2001:db8::1]") from None


def _to_a_labels(text: str) -> str:
    if _UNPRINTABLE.search(text):  # UTS 46 would drop or map some of them without a word
        raise ValueError("the domain has control characters, exotic spaces, or bytes that are not UTF-8")
    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except UnicodeError:  # IDNAError is one; its texts are for programmers
        raise ValueError("the domain is no valid international domain name (IDNA 2008): check its spelling") from None


def _domain_problem(name: str) -> str:
    labels = name.split(".")
    if "" in labels:
        return "the domain starts or ends with a dot or has two in a row"
    if labels[-1].isdigit():
        return "the domain ends in a number: write an IP address in brackets, [192.0.2.1]"
    if any(len(label) > 63 for label in labels):
        return "the domain has a label longer than 63 characters"
    if any(label.startswith("-") or label.endswith("-") for label in labels):
        return "the domain has a label that starts or ends with a hyphen"
    return "the domain has a character that no domain has: use letters, digits, hyphens and dots"


def unquoted(local: str) -> str:
    """What a local part says, without quotes: for a domain that takes both spellings for one, as RFC 5321 wishes."""
    return _QUOTED_PAIR.sub(r"\1", local[1:-1]) if local.startswith('"') else local


def quoted(text: str) -> str:
    """The local part that says `text`, in quotes where it must be."""
    return text if _DOT_ATOM.fullmatch(text) else '"' + _TO_ESCAPE.sub(r"\\\g<0>", text) + '"'


def with_parents(domain: str) -> Iterator[str]:
    """The domain, the one it is in, and so on: `a.b.example`, `b.example`, `example`."""
    while domain:
        yield domain
        domain = domain.partition(".")[2]
