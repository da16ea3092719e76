"""Secrets and signatures of Standard Webhooks 1.0 (symmetric, `v1`). Pure.

Signed is `{id}.{timestamp}.{body}` by HMAC-SHA256; the key is what the text of a secret decodes to, not the text.
"""

import hmac
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

PREFIX = "whsec_"
BYTES = 32  # of a secret; the specification wants 24 to 64


def format_secret(secret: bytes) -> str:
    """As applications are given it."""
    return PREFIX + b64encode(secret).decode()


def headers(key: str, now: datetime, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The header fields of one attempt, with one signature for each secret."""
    timestamp = str(int(now.timestamp()))
    signed = f"{key}.{timestamp}.".encode() + body
    signatures = (b64encode(hmac.digest(secret, signed, sha256)).decode() for secret in secrets)
    return {
        "Content-Type": "application/json",
        "webhook-id": key,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
