"""What follows from a report about one recipient: events, suppressions, entries in the books (pure).

It is decided by what has happened to the recipient before: the same report again has no consequences.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mailerd.config import Suppression as Rules
from mailerd.delivery import verdict
from mailerd.delivery.verdict import Action, Outcome, Verdict
from mailerd.events import Event
from mailerd.feedback.joining import Subject, Trust
from mailerd.feedback.reading import Reported
from mailerd.feedback.reading.dsn import without_xtext
from mailerd.queue.ids import names_campaign
from mailerd.queue.suppression import CAMPAIGNS, Reason, Suppression, bound_tenant, normalised
from mailerd.wire.smtp import printable
from mailerd.wire.unsubscribe import Subscription

LATE = timedelta(days=30)  # after acceptance; a bounce that is older changes nothing
REASONS = {Action.SUPPRESS: Reason.BOUNCE, Action.COUNT: Reason.SOFT_BOUNCE}
ANSWERED = "recipient.answered"
OPT_OUT = ("opt-out", "opt-out-list")  # complaints (RFC 5965) that ask for no more of this kind only


@dataclass(frozen=True, slots=True)
class Found:
    """Who says it and how we came by it: `source` is report, mailto or the name of an upstream."""

    reporter: str = ""
    source: str = "report"


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipient for the books of warm-up: what became of mail that `source` sent to `site`."""

    source: str
    site: str
    domain: str
    outcome: str  # bounced or complained


@dataclass(frozen=True, slots=True)
class Consequences:
    """A suppression of reason soft_bounce counts with others; whoever leaves `subscription` may have done so before.

    `what` is one word for counters: late, waiting (it is still in our queue), known (it changes nothing any more), old,
    harmless, complained, unsubscribed, told, unverified (another recipient of the message could have made it up).
    """

    what: str
    event: Event | None = None
    suppression: Suppression | None = None
    subscription: Subscription | None = None
    entry: Entry | None = None


def of_bounce(
    subject: Subject, said: Reported | None, found: Found, now: datetime, rules: Rules, trust: Trust = Trust.SURE
) -> Consequences:
    """Mail that a host took, and sent back. What was bounced before, at once or late, stays as it is.

    Who is bounced for good is suppressed when a token says that it was his mail, and the report names him or nobody:
    an alias has members, of whom one is gone. Else it counts.
    """
    if now - subject.sent.accepted_at > LATE:
        return Consequences("old")
    said = said or Reported("")
    meant = verdict.of_report(said.action, said.status, said.code, said.diagnostic, said.words)
    if meant.outcome is not Outcome.BOUNCED:
        return Consequences("harmless")
    if subject.bounced:
        return Consequences("known")
    if trust is not Trust.SURE and (subject.waits or _unverified(subject, trust)):
        return Consequences("waiting" if subject.waits else "unverified")
    data = _facts(meant, found) | {"late": True}
    if said.remote:
        data["remote"] = said.remote
    event = _event(subject, "recipient.bounced", data, now)
    if subject.waits:  # it may have been another try of ours that came back: what the next one meets decides
        return Consequences("waiting", event)
    reason = REASONS.get(meant.action)
    if reason is Reason.BOUNCE and (trust is not Trust.SURE or _names_another(said, subject.address)):
        reason = Reason.SOFT_BOUNCE
    suppression = None if reason is None else _suppression(subject, reason, str(meant), found, now, rules, trust)
    return Consequences("late", event, suppression, entry=_entry(subject, "bounced"))


def of_complaint(
    subject: Subject, feedback_type: str, found: Found, now: datetime, rules: Rules, trust: Trust = Trust.SURE
) -> Consequences:
    """A reader's complaint: no more mail, for good; of an opt-out no more of this stream, and topic.

    No more of this stream either when only the link to unsubscribe tells who it was.
    """
    if _unverified(subject, trust):
        return Consequences("unverified")
    if feedback_type.lower() in OPT_OUT:
        return of_unsubscribe(subject)
    meant = verdict.complaint(feedback_type)
    if meant.action is not Action.SUPPRESS:
        return Consequences("harmless")
    if subject.complained:
        return Consequences("known")
    data = _facts(meant, found) | {"feedback_type": feedback_type}
    return Consequences(
        "complained",
        _event(subject, "recipient.complained", data, now),
        _suppression(subject, Reason.COMPLAINT, printable(feedback_type), found, now, rules, trust),
        entry=_entry(subject, "complained"),
    )


def of_unsubscribe(subject: Subject) -> Consequences:
    """A reader leaves the stream, or of it the topic. Who came back since, and leaves again by old mail, may do so.

    Of a campaign he leaves campaigns, whichever stream it went out on.
    """
    sent = subject.sent
    stream = CAMPAIGNS if names_campaign(sent.campaign) else sent.stream
    subscription = Subscription(
        sent.tenant, stream, sent.topic, sent.campaign, subject.address, sent.message_id, subject.n
    )
    return Consequences("unsubscribed", subscription=subscription)


def of_answer(subject: Subject, kind: str, found: Found, now: datetime) -> Consequences:
    """An answer that changes nothing: an auto-reply, a challenge, a report of delay or success. One of a kind is noted.

    Whoever has the address that it came to could send any number of them.
    """
    known = any(event.type == ANSWERED and (event.data or {}).get("kind") == kind for event in subject.past)
    if not kind or known or now - subject.sent.accepted_at > LATE:
        return Consequences("told")
    data = {"kind": kind} | ({"reporter": found.reporter} if found.reporter else {})
    return Consequences("told", _event(subject, ANSWERED, data, now))


def _unverified(subject: Subject, trust: Trust) -> bool:
    """Mail that carried a token comes back with it: a report without one may be of anybody who got the message."""
    return trust is Trust.NAMED and subject.personal


def _names_another(said: Reported, address: str) -> bool:
    named = [normalised(each) for each in (said.original, said.address) if each]
    wanted = {normalised(address), normalised(without_xtext(address))}
    wanted |= {each.rpartition("@")[0] for each in wanted}  # a host may say `bob` alone
    return bool(named) and wanted.isdisjoint(named)


def _facts(meant: Verdict, found: Found) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": str(meant.kind),
        "code": meant.code,
        "enhanced": meant.enhanced,
        "text": meant.text,
        "action": str(meant.action),
        "stage": "report",
    }
    if found.reporter:
        facts["reporter"] = found.reporter
    return facts


def _event(subject: Subject, type_: str, data: dict[str, Any], now: datetime) -> Event:
    sent = subject.sent
    return Event(now, type_, sent.message_id, subject.n, subject.address, sent.tenant, data, sent.stream, sent.campaign)


def _suppression(
    subject: Subject, reason: Reason, detail: str, found: Found, now: datetime, rules: Rules, trust: Trust
) -> Suppression:
    """It binds more than the tenant, or of a link than the stream, only if it is sure."""
    return Suppression(
        address=normalised(subject.address),
        tenant=bound_tenant(rules, subject.sent.tenant) if trust is Trust.SURE else subject.sent.tenant,
        stream=subject.sent.stream if trust is Trust.LINK else "",
        reason=reason,
        source=found.source,
        detail=detail[:500],
        message_id=subject.sent.message_id,
        created_at=now,
    )


def _entry(subject: Subject, outcome: str) -> Entry | None:
    """None when it is not known who delivered it; then nobody's warm-up is to blame."""
    if subject.delivered is None:
        return None
    data = subject.delivered.data or {}
    return Entry(data.get("source", ""), data.get("site", ""), subject.address.rpartition("@")[2], outcome)
