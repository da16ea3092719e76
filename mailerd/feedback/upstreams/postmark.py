"""Postmark's webhooks: one record; they are not signed but come with the user and password of the webhook's URL.

https://postmarkapp.com/developer/webhooks/webhooks-overview
"""

import hmac
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec

from mailerd.feedback.upstreams.values import TOKEN, Forged, Happened, Headers, Unreadable, UpstreamEvent

HAPPENED = {"Delivery": Happened.DELIVERED, "Bounce": Happened.BOUNCED, "SpamComplaint": Happened.COMPLAINED}
# Kinds of their "Bounce" record that are not the end: https://postmarkapp.com/developer/api/bounce-api#bounce-types
SOFT = frozenset({"SoftBounce", "Transient", "DnsError", "VirusNotification", "ChallengeVerification", "Unknown"})
NOTHING = frozenset({"AutoResponder", "AddressChange", "OpenRelayTest", "Subscribe", "SpamNotification"})
LEAVES = frozenset({"Unsubscribe"})
NO_SUCH = frozenset({"HardBounce", "BadEmailAddress"})


def check(key: str, headers: Headers, body: bytes) -> None:
    """`key` is `user:password`. Raises Forged."""
    scheme, _, given = headers.get("Authorization", "").partition(" ")
    try:
        right = scheme.lower() == "basic" and hmac.compare_digest(b64decode(given), key.encode())
    except ValueError:
        right = False
    if not right:
        raise Forged("the user or password of the URL is wrong")


def read(body: bytes) -> Iterator[UpstreamEvent]:
    """What is said of recipients; raises Unreadable."""
    try:
        record = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("expected a JSON object") from None
    kind, type_ = str(record.get("RecordType")), str(record.get("Type", ""))
    happened = HAPPENED.get(kind)
    if kind == "SubscriptionChange" and record.get("SuppressSending") and record.get("Origin") == "Recipient":
        happened = Happened.UNSUBSCRIBED
    if happened is Happened.BOUNCED and type_ in LEAVES:
        happened = Happened.UNSUBSCRIBED
    if happened is None or (happened is Happened.BOUNCED and type_ in NOTHING):
        return
    metadata = record.get("Metadata")
    bounced = happened is Happened.BOUNCED
    yield UpstreamEvent(
        happened,
        str(record.get("Recipient") or record.get("Email") or ""),
        token=str(metadata.get(TOKEN, "")) if isinstance(metadata, dict) else "",
        permanent=type_ not in SOFT if bounced else None,
        status="5.1.1" if type_ in NO_SUCH and not record.get("Details") else "",
        text=str(record.get("Details") or record.get("Description") or ""),
    )
