"""Twilio SendGrid's Event Webhook: an array of events, signed with ECDSA.

https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event
"""

from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mailerd.feedback.upstreams.values import TOKEN, Forged, Happened, Headers, Unreadable, UpstreamEvent, is_recent

SIGNATURE = "X-Twilio-Email-Event-Webhook-Signature"
TIMESTAMP = "X-Twilio-Email-Event-Webhook-Timestamp"
HAPPENED = {
    "delivered": Happened.DELIVERED,
    "deferred": Happened.DELAYED,
    "bounce": Happened.BOUNCED,
    "dropped": Happened.BOUNCED,
    "spamreport": Happened.COMPLAINED,
    "unsubscribe": Happened.UNSUBSCRIBED,
    "group_unsubscribe": Happened.UNSUBSCRIBED,
}


RECENT = timedelta(days=1)  # they try for a day


def check(key: str, headers: Headers, body: bytes, now: datetime) -> None:
    """`key` is the verification key, base64 of DER. Raises Forged."""
    try:
        public = load_der_public_key(b64decode(key))
        signature = b64decode(headers.get(SIGNATURE, ""))
    except ValueError:
        raise Forged("the key or the signature is not base64") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise Forged("the key is not an elliptic curve key")
    try:
        public.verify(signature, headers.get(TIMESTAMP, "").encode() + body, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise Forged("the signature is not SendGrid's") from None
    if not is_recent(headers.get(TIMESTAMP, ""), now, RECENT):
        raise Forged("it was signed too long ago, or the clock here is wrong")


def read(body: bytes) -> Iterator[UpstreamEvent]:
    """What is said of recipients; raises Unreadable."""
    try:
        events = msgspec.json.decode(body, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("expected a JSON array of events") from None
    for event in events:
        happened = HAPPENED.get(str(event.get("event")))
        if happened is None:
            continue
        blocked = event.get("type") == "blocked"  # their word for what another try may get through
        yield UpstreamEvent(
            happened,
            str(event.get("email", "")),
            token=str(event.get(TOKEN, "")),
            message_id=str(event.get("smtp-id", "")),
            permanent=happened is Happened.BOUNCED and not blocked if happened is not Happened.DELIVERED else None,
            status=str(event.get("status", "")),
            text=str(event.get("reason") or event.get("response") or ""),
        )
