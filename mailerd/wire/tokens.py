"""Tokens that go out with mail and come back: nobody else can make one, and no database is needed to tell.

Two forms. A recipient's token is short and survives mail systems that change upper and lower case, so that it can stand
in an address: the message's id, the recipient's number and a MAC, in base 32. A sealed token is for URLs: it carries
the facts themselves, encrypted and authenticated (AES-SIV, RFC 5297), so it is good for as long as the installation's
secret, whatever is forgotten meanwhile. Each purpose has its own key: a token for one is none for another.
"""

import hmac
from base64 import b32decode, b32encode, urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

ID = 8  # bytes
N = 3
MAC = 8  # a forger who tries a million addresses a second needs 300,000 years
LENGTH = 31  # letters of a recipient's token
MAX_N = (1 << 8 * N) - 1
PADDING = "="


class RecipientToken(NamedTuple):
    """Which recipient of which message; `n` is 0 when the whole message is meant."""

    message_id: int
    n: int


class Tokens:
    """Makes and reads the tokens of one purpose, such as "return-path", under the installation's secret."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._key = hmac.digest(secret, b"mailerd token " + purpose.encode(), sha256)
        self._sealer = AESSIV(self._key)

    def make(self, message_id: int, n: int) -> str:
        """31 letters and digits, lower case."""
        payload = message_id.to_bytes(ID) + n.to_bytes(N)
        return b32encode(payload + self._mac(payload)).decode().rstrip(PADDING).lower()

    def read(self, text: str) -> RecipientToken | None:
        """What `make` was given, in whatever case it comes back; None for what it did not make."""
        if len(text) != LENGTH or not text.isascii():
            return None
        try:
            data = b32decode(text.upper() + PADDING)
        except ValueError:
            return None
        payload, mac = data[:-MAC], data[-MAC:]
        if not hmac.compare_digest(self._mac(payload), mac) or b32encode(data)[:LENGTH].decode() != text.upper():
            return None  # the last letter has bits that are not used: one token has one spelling
        return RecipientToken(int.from_bytes(payload[:ID]), int.from_bytes(payload[ID:]))

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, sha256)[:MAC]

    def seal(self, facts: bytes) -> str:
        """Letters, digits, `-` and `_`; the same facts give the same token."""
        return urlsafe_b64encode(self._sealer.encrypt(facts, None)).decode().rstrip(PADDING)

    def open(self, text: str) -> bytes | None:
        """What was sealed; None for what was not."""
        try:
            data = urlsafe_b64decode(text + PADDING * (-len(text) % 4))
            if urlsafe_b64encode(data).decode().rstrip(PADDING) != text:  # it skips what is no base64
                return None
            return self._sealer.decrypt(data, None)
        except (InvalidTag, ValueError):
            return None
