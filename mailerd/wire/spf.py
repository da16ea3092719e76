"""SPF records (RFC 7208): text to terms, and macros to names. `delivery.spf` asks DNS and evaluates them."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Qualifier: TypeAlias = Literal["+", "-", "~", "?"]

VERSION = re.compile(r"v=spf1(?: +|$)", re.ASCII | re.IGNORECASE)
MODIFIER = re.compile(r"([a-z][a-z0-9._-]*)=(.*)", re.ASCII | re.IGNORECASE)
MECHANISM = re.compile(r"([-+?~]?)([a-z][a-z0-9._-]*)(?::(.+?))?((?:/[0-9]*)?(?://[0-9]*)?)", re.ASCII | re.IGNORECASE)
LENGTHS = re.compile(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?", re.ASCII)
MACRO = re.compile(r"%\{([slodiphvSLODIPHV])(0*[1-9][0-9]{0,2})?([rR]?)([-.+,/_=]*)\}", re.ASCII)
PIECE = re.compile(r"%\{[^}]*\}|%[%_-]|[!-$&-~]", re.ASCII)
# A domain ends in a label that is no number, or in a macro (RFC 7208 section 7.1).
LAST_LABEL = re.compile(r"(?![0-9]+\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
ESCAPES = {"%%": "%", "%_": " ", "%-": "%20"}
MAX_NAME = 253  # characters; of longer ones the left labels are dropped


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One directive. `domain` "": that of the record; `network`: of ip4, ip6; `lengths`: of a, mx (IPv4, IPv6)."""

    text: str
    qualifier: Qualifier
    name: Literal["all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"]
    domain: str = ""
    network: Network | None = None
    lengths: tuple[int, int] = (32, 128)


@dataclass(frozen=True, slots=True)
class Record:
    mechanisms: tuple[Mechanism, ...]
    redirect: str | None


@dataclass(frozen=True, slots=True)
class Macros:
    """What macros stand for. `%{p}` is always "unknown", as for an address without a validated name."""

    address: Address
    sender: str  # local@domain
    helo: str

    def expand(self, text: str, domain: str) -> str:
        """The name that a domain-spec means in the record of `domain`."""
        name = PIECE.sub(lambda piece: self._piece(piece[0], domain), text).removesuffix(".")
        while len(name) > MAX_NAME and "." in name:
            name = name.partition(".")[2]
        return name

    def _piece(self, text: str, domain: str) -> str:
        match = MACRO.fullmatch(text)
        if match is None:
            return ESCAPES.get(text, text)
        letter, count, reverse, delimiters = match.groups()
        parts = re.split(f"[{re.escape(delimiters or '.')}]", self._value(letter.lower(), domain))
        if reverse:
            parts.reverse()
        value = ".".join(parts[-int(count) :] if count else parts)
        return quote(value, safe="-._~") if letter.isupper() else value

    def _value(self, letter: str, domain: str) -> str:
        local, _, sender_domain = self.sender.rpartition("@")
        version4 = self.address.version == 4
        dotted = str(self.address) if version4 else ".".join(self.address.exploded.replace(":", ""))
        return {
            "s": self.sender,
            "l": local,
            "o": sender_domain,
            "d": domain,
            "i": dotted,
            "p": "unknown",
            "v": "in-addr" if version4 else "ip6",
            "h": self.helo,
        }[letter]


def is_spf(text: str) -> bool:
    """Is this TXT record one of SPF version 1 (RFC 7208 section 4.5)?"""
    return VERSION.match(text) is not None


def parse_record(text: str) -> Record:
    """Read a record for which `is_spf` holds. Raises ValueError that names the term with the first mistake."""
    version = VERSION.match(text)
    assert version is not None
    mechanisms: list[Mechanism] = []
    modifiers: dict[str, str] = {}
    for term in filter(None, text[version.end() :].split(" ")):
        modifier = MODIFIER.fullmatch(term)
        if modifier is None:
            mechanisms.append(_mechanism(term))
            continue
        name = modifier[1].lower()
        if name in ("redirect", "exp"):
            if name in modifiers:
                raise ValueError(f"{name}= stands twice")
            modifiers[name] = _domain(term, modifier[2])
        else:
            _check_macros(term, modifier[2])
    return Record(tuple(mechanisms), modifiers.get("redirect"))


def _mechanism(term: str) -> Mechanism:
    match = MECHANISM.fullmatch(term)
    if match is None:
        raise ValueError(f"{term!r} is no term of SPF")
    name, value, lengths = match[2].lower(), match[3], match[4]
    qualifier: Qualifier = match[1] or "+"  # type: ignore[assignment]
    if name == "all" and value is None and not lengths:
        return Mechanism(term, qualifier, "all")
    if name in ("ip4", "ip6") and value is not None:
        return Mechanism(term, qualifier, name, network=_network(term, name, value + lengths))  # type: ignore[arg-type]
    if name in ("include", "exists") and value is not None:
        return Mechanism(term, qualifier, name, domain=_domain(term, value + lengths))  # type: ignore[arg-type]
    if name == "ptr" and (value is not None or not lengths):
        return Mechanism(term, qualifier, "ptr", domain=_domain(term, value + lengths) if value else "")
    if name in ("a", "mx"):
        domain = _domain(term, value) if value else ""
        return Mechanism(term, qualifier, name, domain=domain, lengths=_lengths(term, lengths))  # type: ignore[arg-type]
    raise ValueError(f"{term!r} is no term of SPF")


def _network(term: str, name: str, value: str) -> Network:
    kind = ipaddress.IPv4Network if name == "ip4" else ipaddress.IPv6Network
    address, slash, length = value.partition("/")
    if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length, re.ASCII):
        raise ValueError(f"{term!r} has no prefix length after its slash")
    try:
        return kind(f"{address}/{length}" if slash else address, strict=False)
    except ValueError:
        raise ValueError(f"{term!r} names no IPv{name[2]} network") from None


def _lengths(term: str, text: str) -> tuple[int, int]:
    match = LENGTHS.fullmatch(text)
    version4, version6 = (32, 128) if match is None else (int(match[1] or 32), int(match[2] or 128))
    if match is None or version4 > 32 or version6 > 128:
        raise ValueError(f"{term!r} has a prefix length that does not exist")
    return version4, version6


def _domain(term: str, text: str) -> str:
    pieces = _check_macros(term, text)
    _, dot, label = text.removesuffix(".").rpartition(".")
    if not pieces or not (pieces[-1].startswith("%") or (dot and LAST_LABEL.fullmatch(label))):
        raise ValueError(f"{term!r} names no domain")
    return text


def _check_macros(term: str, text: str) -> list[str]:
    """The letters and macros of a text (RFC 7208 section 7.1)."""
    pieces = PIECE.findall(text)
    if "".join(pieces) != text or "\\" in text:  # a backslash is how the resolver shows bytes beyond ASCII
        raise ValueError(f"{term!r} has characters that SPF does not allow")
    for piece in pieces:
        if piece.startswith("%{") and not MACRO.fullmatch(piece):
            raise ValueError(f"{piece} is no macro for a domain name")
    return pieces
