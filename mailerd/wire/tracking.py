"""Tokens of pixels and tracked links: whose mail was opened, which link was clicked and where it leads.

A token carries its facts itself, authenticated by HMAC-SHA256 cut to 10 bytes, in base64url without padding: nothing is
looked up to answer it. The target of a link stands in its token, so a link leads where its template said for as long as
the installation's secret is kept, and nobody else can make one lead elsewhere. Opens and clicks have keys of their own.
"""

import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote

import idna

MAC = 10  # bytes: a forger who tries a million a second needs 19 billion years
MAX_URL = 2_000  # bytes
BLOCK = 64  # bytes, of SHA-256
MAX_LINK = (1 << 16) - 1
LONGEST = 4 * (8 + 1 + 8 + 8 + 2 + MAX_URL + MAC) // 3 + 4  # letters
HEAD = struct.Struct(">QB")  # message id; lengths of the campaign's id and the contact's, four bits each
LINK = struct.Struct(">H")
# A scheme and the beginning of a host; no control characters, no lone surrogates, no space at the end.
TARGET = re.compile(
    r"[hH][tT][tT][pP][sS]?://[^\s/?#\\:@\x00-\x1f\x7f-\x9f\ud800-\udfff][^\x00-\x1f\x7f-\x9f\ud800-\udfff]*(?<! )"
)
HOST = re.compile(r"([a-zA-Z]+://(?:[^/?#@]*@)?)([^/?#:@\[\]]+)(.*)", re.DOTALL)


class Open(NamedTuple):
    """Whose mail it was. Ids are 0 where there is none."""

    message_id: int
    campaign_id: int
    contact_id: int


class Click(NamedTuple):
    """The same, the link's slot in the template, and where it leads, as it stood in the mail."""

    message_id: int
    campaign_id: int
    contact_id: int
    link: int
    url: str


def is_target(url: str) -> bool:
    """May a tracked link lead there? http and https only, with a host, of at most `MAX_URL` bytes in UTF-8."""
    if len(url) > MAX_URL or TARGET.fullmatch(url) is None:
        return False
    return url.isascii() or len(url.encode()) <= MAX_URL


def location(url: str) -> str:
    """`url` for a Location field, which is ASCII (RFC 9110): what is ASCII stays as it is, but for spaces.

    The rest becomes what browsers would have asked for: the host in IDNA, all else as %-encoded UTF-8 (RFC 3987 3.1).
    """
    if not url.isascii() and (parts := HOST.fullmatch(url)):
        url = parts[1] + _ascii_host(parts[2]) + parts[3]
    return url if url.isascii() and " " not in url else "".join(map(_quoted, url))


def _quoted(letter: str) -> str:
    return letter if "!" <= letter <= "~" else quote(letter)


def _ascii_host(host: str) -> str:
    try:
        return host if host.isascii() else idna.encode(host, uts46=True).decode()
    except idna.IDNAError:
        return host


class Target(bytes):
    """A link of a template and where it leads, checked and written once for all mails that have it."""

    @classmethod
    def of(cls, link: int, url: str) -> "Target":
        """Raises ValueError where `is_target(url)` does not hold."""
        if not is_target(url):
            raise ValueError(f"a tracked link cannot lead to {url[:80]!r}")
        if not 0 <= link <= MAX_LINK:
            raise ValueError(f"{link} is not the number of a link")
        return cls(LINK.pack(link) + url.encode())


class Tracking:
    """Makes and reads the tokens under the installation's secret."""

    def __init__(self, secret: bytes) -> None:
        self._opens = _Seal(secret, "open")
        self._clicks = _Seal(secret, "click")

    def open_token(self, message_id: int, campaign_id: int, contact_id: int) -> str:
        """About 32 letters, digits, `-` and `_`; the same facts give the same token. Ids are of up to 63 bits."""
        return self._opens.make(_ids(message_id, campaign_id, contact_id))

    def click_token(self, message_id: int, campaign_id: int, contact_id: int, link: int, url: str) -> str:
        """The same and four thirds of the URL's bytes. Raises ValueError where `is_target(url)` does not hold."""
        return self._clicks.make(_ids(message_id, campaign_id, contact_id) + Target.of(link, url))

    def click_tokens(self, message_id: int, campaign_id: int, contact_id: int, targets: Iterable[Target]) -> list[str]:
        """The tokens of many links of one mail."""
        ids, make = _ids(message_id, campaign_id, contact_id), self._clicks.make
        return [make(ids + target) for target in targets]

    def read_open(self, text: str) -> Open | None:
        """What `open_token` was given; None for what it did not make, whatever that is."""
        facts = self._opens.read(text)
        return None if facts is None else _read_ids(facts)[0]

    def read_click(self, text: str) -> Click | None:
        """What `click_token` was given; None for what it did not make, whatever that is."""
        facts = self._clicks.read(text)
        if facts is None:
            return None
        ids, end = _read_ids(facts)
        (link,) = LINK.unpack_from(facts, end)
        return Click(ids.message_id, ids.campaign_id, ids.contact_id, link, facts[end + LINK.size :].decode())


def _ids(message_id: int, campaign_id: int, contact_id: int) -> bytes:
    """In as few bytes as they need."""
    campaign = (campaign_id.bit_length() + 7) >> 3
    contact = (contact_id.bit_length() + 7) >> 3
    if message_id >> 63 or campaign_id >> 63 or contact_id >> 63:  # negative ones, too
        raise ValueError(f"{message_id}, {campaign_id} or {contact_id} is not an id")
    head = HEAD.pack(message_id, campaign << 4 | contact)
    return head + campaign_id.to_bytes(campaign) + contact_id.to_bytes(contact)


def _read_ids(facts: bytes) -> tuple[Open, int]:
    """What `_ids` was given, and where it ends."""
    message_id, lengths = HEAD.unpack_from(facts)
    middle = HEAD.size + (lengths >> 4)
    end = middle + (lengths & 15)
    return Open(message_id, int.from_bytes(facts[HEAD.size : middle]), int.from_bytes(facts[middle:end])), end


class _Seal:
    """Authentic texts of one kind. A mail has many of them: the two halves of HMAC (RFC 2104) begin once for all."""

    def __init__(self, secret: bytes, kind: str) -> None:
        key = hmac.digest(secret, b"mailerd token tracking " + kind.encode(), sha256).ljust(BLOCK, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in key))

    def make(self, facts: bytes) -> str:
        return urlsafe_b64encode(facts + self._mac(facts)).rstrip(b"=").decode()

    def read(self, text: str) -> bytes | None:
        """What `make` was given; None for what it did not make."""
        if len(text) > LONGEST or not text.isascii():
            return None
        try:
            data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        facts, mac = data[:-MAC], data[-MAC:]
        # Decoding skips what is no base64, and there are bits that are not used: one token has one spelling.
        return facts if hmac.compare_digest(self._mac(facts), mac) and self.make(facts) == text else None

    def _mac(self, facts: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(facts)
        outer.update(inner.digest())
        return outer.digest()[:MAC]
