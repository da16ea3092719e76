"""What a message asks of us: its campaign and topic, its priority, a way to unsubscribe, how much TLS matters to it,
whether opens and clicks are tracked.

The envelope says it, or the header of the message, in fields for us alone: `X-Mailerd-Campaign: spring`,
`X-Mailerd-Priority: high`, `X-Mailerd-Topic: offers`, `X-Mailerd-Unsubscribe: yes` and `X-Mailerd-Track: opens,
clicks`. `TLS-Required: No` (RFC 8689 section 3) is for everybody on the way and stays.

Campaigns and topics have names of up to 100 bytes (UTF-8). Topics are the same in upper and lower case: they are
kept in lower case, NFC.
"""

from dataclasses import dataclass
from typing import cast

from mailerd.errors import Refused
from mailerd.intake.envelope import UNTRACKED, Envelope, Priority, Track
from mailerd.queue.mail import PRIORITIES
from mailerd.queue.suppression import normalised_topic
from mailerd.wire import message as wire

CAMPAIGN = b"x-mailerd-campaign"
PRIORITY = b"x-mailerd-priority"
TOPIC = b"x-mailerd-topic"
UNSUBSCRIBE = b"x-mailerd-unsubscribe"
TRACK = b"x-mailerd-track"
TLS_REQUIRED = b"tls-required"
RECIPIENT = b"x-mailerd-recipient"  # of mail of ours that comes in again (`delivery.personal`)
FOR_US = (CAMPAIGN, PRIORITY, TOPIC, UNSUBSCRIBE, TRACK, RECIPIENT)  # nobody else's business: taken out
TLS_NOT_REQUIRED = b"TLS-Required: No\r\n"

MAX_CAMPAIGN = 100  # bytes, in UTF-8
SEPARATORS = frozenset("/:!")  # queues and flows are named with them


@dataclass(frozen=True, slots=True)
class Wishes:
    """`require_tls`: True REQUIRETLS, False "TLS-Required: No", None neither; `said`: the header says the latter.

    `unsubscribe`: with List-Unsubscribe fields, without, or None: as the stream has it.
    """

    campaign: str = ""
    priority: Priority = "normal"
    require_tls: bool | None = None
    said: bool = False
    topic: str = ""
    unsubscribe: bool | None = None
    track: Track = UNTRACKED


NOTHING = Wishes()
SILENT = (None,) * 6


def read_wishes(envelope: Envelope, header: bytes) -> Wishes:
    """What the envelope asks for, and where it is silent the header. Raises Refused for what cannot be meant."""
    probe = header.lower()
    ours, theirs = b"x-mailerd-" in probe, TLS_REQUIRED in probe
    campaign, priority = envelope.campaign, envelope.priority
    asked = (campaign, priority, envelope.require_tls, envelope.topic, envelope.unsubscribe, envelope.track)
    if not ours and not theirs and asked == SILENT:
        return NOTHING  # nearly all mail
    if campaign is None:
        campaign = (_single(header, CAMPAIGN) if ours else None) or ""
    if priority is None:
        priority = _priority((_single(header, PRIORITY) if ours else None) or "normal")
    # More than one, or another value, is no request (RFC 8689 section 3); REQUIRETLS overrules it (section 4.1).
    said = theirs and [value.lower() for value in wire.header_values(header, TLS_REQUIRED)] == [b"no"]
    require_tls = False if said and envelope.require_tls is None else envelope.require_tls
    topic = envelope.topic
    if topic is None:
        topic = (_single(header, TOPIC) if ours else None) or ""
    unsubscribe = envelope.unsubscribe
    if unsubscribe is None and ours:
        unsubscribe = _yes_or_no(_single(header, UNSUBSCRIBE))
    track = envelope.track
    if track is None:
        track = _tracked((_single(header, TRACK) if ours else None) or "off")
    topic = _name("topic", normalised_topic(topic))
    return Wishes(_name("campaign", campaign), priority, require_tls, said, topic, unsubscribe, track)


def _single(header: bytes, name: bytes) -> str | None:
    values = wire.header_values(header, name)
    if len(values) > 1:
        raise Refused(
            554, "5.6.0", f"more than one {name.decode().title()} field", name="malformed_header", field="raw"
        )
    return values[0].decode("utf-8", "surrogateescape") if values else None


def _name(what: str, text: str) -> str:
    if not text.isprintable() or len(text.encode()) > MAX_CAMPAIGN or not SEPARATORS.isdisjoint(text):
        advice = f"a {what} is named in up to {MAX_CAMPAIGN} bytes of printable text without a slash, : and !"
        raise Refused(550, "5.5.4", advice, name=f"invalid_{what}", field=what)
    return text


def _yes_or_no(text: str | None) -> bool | None:
    if text is None:
        return None
    if (word := text.lower()) in ("yes", "no"):
        return word == "yes"
    raise Refused(550, "5.5.4", "X-Mailerd-Unsubscribe is yes or no", name="invalid_unsubscribe", field="unsubscribe")


def _tracked(text: str) -> Track:
    words = {word.strip().lower() for word in text.split(",")}
    if words == {"off"}:
        return UNTRACKED
    if words <= {"opens", "clicks"}:
        return Track("opens" in words, "clicks" in words)
    text = "X-Mailerd-Track is opens, clicks, both with a comma, or off"
    raise Refused(550, "5.5.4", text, name="invalid_tracking", field="tracking")


def _priority(text: str) -> Priority:
    if (priority := text.lower()) in PRIORITIES:
        return cast(Priority, priority)
    raise Refused(550, "5.5.4", f"a priority is {', '.join(PRIORITIES)}", name="invalid_priority", field="priority")
