"""Cursors: where a search went on, opaque and signed, good for that one search only."""

import base64
import binascii
import hashlib
import hmac

import msgspec

POSITION = 8  # bytes of a message id; other positions may have more
SIGNATURE = 16  # bytes


class Cursors:
    """Makes and reads cursors. A cursor of another search, of another tenant or of a forger is no cursor at all."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.sha256(b"mailerd cursors\0" + key).digest()

    def make(self, filters: msgspec.Struct, before: int) -> str:
        position = before.to_bytes(max(POSITION, (before.bit_length() + 7) // 8), "big")
        return base64.urlsafe_b64encode(position + self._sign(filters, position)).decode().rstrip("=")

    def read(self, filters: msgspec.Struct, cursor: str) -> int:
        """Return the id below which the search goes on; raises ValueError for what we did not make for `filters`."""
        try:
            data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeError, ValueError):
            raise ValueError("not a cursor") from None
        position, signature = data[:-SIGNATURE], data[-SIGNATURE:]
        if not hmac.compare_digest(signature, self._sign(filters, position)):
            raise ValueError("a cursor of another search")
        return int.from_bytes(position, "big")

    def _sign(self, filters: msgspec.Struct, position: bytes) -> bytes:
        return hmac.digest(self._key, position + msgspec.json.encode(filters), "sha256")[:SIGNATURE]
