"""Mailgun's webhooks: one event, signed with HMAC-SHA256 inside the body.

https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/
"""

import hmac
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct, field

from mailerd.feedback.upstreams.values import TOKEN, Forged, Happened, Unreadable, UpstreamEvent, is_recent


class _Signature(Struct):
    timestamp: str
    token: str
    signature: str


class _Event(Struct):
    event: str
    recipient: str = ""
    severity: str = ""
    reason: str = ""
    message: dict[str, Any] = {}
    variables: dict[str, Any] = field(name="user-variables", default_factory=dict)
    status: dict[str, Any] = field(name="delivery-status", default_factory=dict)


class _Body(Struct):
    signature: _Signature
    event: _Event = field(name="event-data")


HAPPENED = {
    "delivered": Happened.DELIVERED,
    "complained": Happened.COMPLAINED,
    "unsubscribed": Happened.UNSUBSCRIBED,
}

RECENT = timedelta(minutes=15)


def check(key: str, body: bytes, now: datetime) -> str:
    """The token of the request, which no other has; `key` is the webhook signing key. Raises Forged, Unreadable."""
    signed = _decode(body).signature
    expected = hmac.digest(key.encode(), (signed.timestamp + signed.token).encode(), sha256).hex()
    if not hmac.compare_digest(expected.encode(), signed.signature.encode()):
        raise Forged("the signature is not Mailgun's")
    if not is_recent(signed.timestamp, now, RECENT):
        raise Forged("it was signed too long ago, or the clock here is wrong")
    return signed.token


def read(body: bytes) -> Iterator[UpstreamEvent]:
    """What is said of recipients; raises Unreadable."""
    event = _decode(body).event
    happened = HAPPENED.get(event.event)
    permanent = None
    if event.event == "failed":
        permanent = event.severity == "permanent"
        happened = Happened.BOUNCED if permanent else Happened.DELAYED
    if happened is None:
        return
    headers = event.message.get("headers")
    status = event.status
    code = status.get("code")
    yield UpstreamEvent(
        happened,
        event.recipient,
        token=str(event.variables.get(TOKEN, "")),
        message_id=f"<{headers['message-id']}>" if isinstance(headers, dict) and headers.get("message-id") else "",
        permanent=permanent,
        status=str(status.get("enhanced-code") or ""),
        code=code if isinstance(code, int) and 400 <= code < 600 else 0,  # theirs go beyond: 605
        text=str(status.get("message") or status.get("description") or event.reason),
    )


def _decode(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("expected signature and event-data") from None
