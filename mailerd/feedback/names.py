"""Events as the outside sees them: the names and fields that webhooks, sinks and `/api/v1/events` share. Pure.

    inside                  outside
    message.accepted        email.queued; email.scheduled when its first attempt is due later
    recipient.delivered     email.delivered
    recipient.deferred      email.delivery_delayed
    recipient.bounced       email.bounced, also late, by a report
    recipient.expired       email.failed, reason expired
    recipient.cancelled     email.failed, reason cancelled
    recipient.complained    email.complained
    recipient.unsubscribed  email.unsubscribed
    recipient.suppressed    email.suppressed
    recipient.withheld      email.suppressed, when a campaign's mail turned out not to be sent: reason and detail
    recipient.in_doubt      email.failed, reason in_doubt: a crash hides whether the host took it; not tried again
    recipient.opened        email.opened, by whom: actor and reasons
    recipient.clicked       email.clicked, the same and the link
    campaign.started …      campaign.started, .paused, .resumed, .completed, .cancelled, .failed
    suppression.added       suppression.added
    suppression.removed     suppression.removed
    webhook.disabled        webhook.disabled

`recipient.held` and `recipient.released` are what operators do with a queue, and `recipient.answered` (an auto-reply, a
challenge …) is for traces; neither says anything about an outcome: the outside does not see them. Nor does it see
tenants: each has only its own events.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct, field

from mailerd.events import LAST_SEQ, Event, Position, Recorded
from mailerd.queue.ids import ALPHABET, PREFIX, SUPPRESSION, VALUES, format_message_id
from mailerd.wire.words import decode_words

ID = "evt_"
HALF = 13  # letters of each half of an id
OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "message.accepted": ("email.queued", "email.scheduled"),
    "recipient.delivered": ("email.delivered",),
    "recipient.deferred": ("email.delivery_delayed",),
    "recipient.bounced": ("email.bounced",),
    "recipient.expired": ("email.failed",),
    "recipient.cancelled": ("email.failed",),
    "recipient.complained": ("email.complained",),
    "recipient.unsubscribed": ("email.unsubscribed",),
    "recipient.suppressed": ("email.suppressed",),
    "recipient.withheld": ("email.suppressed",),
    "recipient.in_doubt": ("email.failed",),
    "recipient.opened": ("email.opened",),
    "recipient.clicked": ("email.clicked",),
    "campaign.started": ("campaign.started",),
    "campaign.paused": ("campaign.paused",),
    "campaign.resumed": ("campaign.resumed",),
    "campaign.completed": ("campaign.completed",),
    "campaign.cancelled": ("campaign.cancelled",),
    "campaign.failed": ("campaign.failed",),
    "suppression.added": ("suppression.added",),
    "suppression.removed": ("suppression.removed",),
    "webhook.disabled": ("webhook.disabled",),
}
NAMES = tuple(dict.fromkeys(name for names in OUTSIDE.values() for name in names))
FAMILIES = tuple(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in NAMES))
PERMANENT = frozenset({"invalid_recipient", "inactive", "bad_domain"})  # never again to this address
SAID = (
    "reason",
    "source",
    "since",
    "expires_at",
    "feedback_type",
    "reporter",
    "stream",
    "topic",
    "code",
    "enhanced",
    "text",
    "detail",
)
# Of a message that was not taken there is nothing but who was suppressed.
SPEAKS_FOR_ALL = ("message.accepted", "recipient.suppressed")
TIMES = ("since", "expires_at")
FAILURES = ("expired", "cancelled", "in_doubt")
ENGAGEMENTS = ("recipient.opened", "recipient.clicked")
ENGAGED = ("actor", "reasons", "rules", "url", "link", "ip", "user_agent")
UNDETERMINED = frozenset({"", "other", "policy"})


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was said of one recipient. `class` is the word of our taxonomy, `remote` the host that said it.

    `type` is of bounces: Permanent (do not mail this address again), Transient (it may work another time) or
    Undetermined. `reason` is of failures: expired, cancelled or in_doubt. `late`: the host had taken the mail at first.
    """

    type: Literal["", "Permanent", "Transient", "Undetermined"] = ""
    reason: str = ""
    class_: str = field(name="class", default="")
    code: int = 0
    enhanced: str = ""
    text: str = ""
    remote: str = ""
    attempt: int = 0
    late: bool = False
    next_attempt_at: str = ""


class EventData(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which mail to whom; one of `outcome`, `complaint`, `unsubscribe`, `suppression`, `engagement`, `webhook` and (of
    campaigns) `details` says the rest.

    Fields without a value are left out. `from` is the envelope sender, `message_id` the header field, `recipient` the
    number of the recipient within the email.
    """

    email_id: str = ""
    recipient: int = 0
    to: str = ""
    from_: str = field(name="from", default="")
    subject: str = ""
    message_id: str = ""
    stream: str = ""
    campaign: str = ""
    topic: str = ""
    tags: list[str] = []
    labels: dict[str, str] = {}
    scheduled_at: str = ""
    outcome: Outcome | None = None
    complaint: dict[str, Any] | None = None
    unsubscribe: dict[str, Any] | None = None
    suppression: dict[str, Any] | None = None
    webhook: dict[str, Any] | None = None
    engagement: dict[str, Any] | None = None
    details: dict[str, Any] | None = None


class OutsideEvent(Struct, frozen=True, kw_only=True):
    """An event as it is told. Ids sort in the order of events, and the same event has the same id for everybody."""

    id: str
    type: str
    created_at: datetime
    data: EventData


def outside(recorded: Recorded, facts: Mapping[str, Any] | None = None) -> OutsideEvent | None:
    """The event as the outside sees it; None for those that it does not.

    `facts` is what is true of all of its message: the data of the `message.accepted` of its first recipient (see
    `facts.FactStore`), None when nobody knows any more.
    """
    event = recorded.event
    names = OUTSIDE.get(event.type)
    if names is None:
        return None
    own = event.data or {}
    common = facts or (own if event.type in SPEAKS_FOR_ALL else {})
    scheduled_at = _utc(common.get("due_at")) if event.type == "message.accepted" else ""
    return OutsideEvent(
        id=format_event_id(recorded.position),
        type=names[-1] if scheduled_at else names[0],
        created_at=event.at,
        data=_data(event, own, common, scheduled_at),
    )


def fits(type_: str, patterns: Sequence[str]) -> bool:
    """Is this outside name one of `email.bounced`, `email.*`, `*`? Of no patterns all are."""
    return not patterns or any(
        pattern in ("*", type_) or (pattern.endswith(".*") and type_.startswith(pattern[:-1])) for pattern in patterns
    )


def inside(patterns: Sequence[str]) -> list[str]:
    """The types that events which fit have in the database: `EventStore.after(types=…)`. Some more may have them too.

    Of no patterns those that the outside sees at all.
    """
    return [type_ for type_, names in OUTSIDE.items() if any(fits(name, patterns) for name in names)]


def is_pattern(text: str) -> bool:
    """Is this a name of an event, or a pattern that fits any?"""
    return text == "*" or text in NAMES or text in FAMILIES


def format_event_id(position: Position) -> str:
    """`evt_` and 26 letters that sort as positions do."""
    return ID + "".join(format_message_id(number).removeprefix(PREFIX) for number in position)


def parse_event_id(text: str) -> Position:
    """The position behind `evt_…`; raises ValueError for anything else."""
    letters = text.removeprefix(ID)
    if len(letters) != 2 * HALF or letters == text or any(letter not in VALUES for letter in letters):
        raise ValueError(f"{text[:40]!r} is not an event id such as evt_{ALPHABET[:26]}")
    numbers = [0, 0]
    for index, letter in enumerate(letters):
        numbers[index // HALF] = numbers[index // HALF] << 5 | VALUES[letter]
    if max(numbers) > LAST_SEQ:
        raise ValueError(f"{text!r} is not an event id of ours")
    return Position(*numbers)


def _data(event: Event, own: Mapping[str, Any], common: Mapping[str, Any], scheduled_at: str) -> EventData:
    labels: Mapping[str, str] = common.get("labels") or {}
    return EventData(
        email_id=format_message_id(event.message_id) if event.message_id else "",
        recipient=event.n,
        to=event.address,
        from_=str(common.get("sender", "")),
        subject=decode_words(str(common.get("subject", ""))),
        message_id=str(common.get("message_id", "")),
        stream=event.stream,
        campaign=event.campaign,
        topic=str(common.get("topic") or own.get("topic") or ""),
        tags=[name for name, value in labels.items() if not value],
        labels={name: value for name, value in labels.items() if value},
        scheduled_at=scheduled_at,
        outcome=_outcome(event.type, own),
        complaint=_said(own) if event.type == "recipient.complained" else None,
        unsubscribe=_said(own) if event.type == "recipient.unsubscribed" else None,
        suppression=_said(own) if "suppress" in event.type or event.type == "recipient.withheld" else None,
        webhook=_endpoint(own) if event.type == "webhook.disabled" else None,
        engagement=_engagement(own) if event.type in ENGAGEMENTS else None,
        details=dict(own) if event.type.startswith("campaign.") else None,
    )


def _outcome(type_: str, own: Mapping[str, Any]) -> Outcome | None:
    word = type_.rpartition(".")[2]
    if word not in ("delivered", "deferred", "bounced", *FAILURES):
        return None
    return Outcome(
        type=_bounce_type(own) if word == "bounced" else "",
        reason=word if word in FAILURES else "",
        class_=str(own.get("kind", "")),
        code=int(own.get("code") or 0),
        enhanced=str(own.get("enhanced", "")),
        text=str(own.get("text", "")),
        remote=str(own.get("host") or own.get("remote") or own.get("ip") or ""),
        attempt=int(own.get("attempt") or 0),
        late=bool(own.get("late")),
        next_attempt_at=_utc(own.get("due_at")) if word == "deferred" else "",
    )


def _bounce_type(own: Mapping[str, Any]) -> Literal["Permanent", "Transient", "Undetermined"]:
    kind = str(own.get("kind", ""))
    if own.get("action") == "suppress" or kind in PERMANENT:
        return "Permanent"
    return "Undetermined" if kind in UNDETERMINED else "Transient"


def _said(own: Mapping[str, Any]) -> dict[str, Any]:
    """Of a complaint, an unsubscription or a suppression: what it says for others than us."""
    said = {name: own[name] for name in SAID if own.get(name) not in (None, "")}
    said.update({name: _utc(said[name]) for name in TIMES if name in said})
    if kind := own.get("kind"):
        said["class"] = kind
    if str(own.get("suppression", "")).startswith(SUPPRESSION):
        said["id"] = own["suppression"]
    scope = own.get("scope")
    if isinstance(scope, Mapping):
        said.update({name: scope[name] for name in ("stream", "topic") if scope.get(name)})
    return said


def _engagement(own: Mapping[str, Any]) -> dict[str, Any]:
    """Who opened or clicked, as far as can be told, and what."""
    return {name: own[name] for name in ENGAGED if own.get(name) not in (None, "", [])}


def _endpoint(own: Mapping[str, Any]) -> dict[str, Any]:
    """Which endpoint is told nothing more, and why; `failing_since` only if it failed."""
    told = {name: own[name] for name in ("id", "url") if own.get(name)} | {"reason": str(own.get("why", ""))}
    since = _utc(own.get("failing_since"))
    return told | ({"failing_since": since} if since else {})


def _utc(text: object) -> str:
    """A time of ours as the outside sees all of them: `2026-11-22T14:03:05Z`; "" for none."""
    text = str(text or "")
    if text.endswith("+00:00"):  # as we write them
        return text[:-6] + "Z"
    return datetime.fromisoformat(text).astimezone(UTC).isoformat()[:-6] + "Z" if text and text[-1] != "Z" else text
