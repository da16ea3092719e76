"""What a verdict means for the address beyond the message: nothing, a soft bounce that counts, or no mail any more."""

from datetime import datetime

from mailerd.config import Suppression as Rules
from mailerd.delivery.identity import FOREIGN
from mailerd.delivery.verdict import Action, Outcome, Verdict
from mailerd.queue.mail import Recipient
from mailerd.queue.suppression import Reason, Suppression, bound_tenant

ABOUT_RECIPIENT = frozenset({"rcpt", "data", "dot"})  # the stages at which a host has been told whom the mail is for


def of_reply(recipient: Recipient, verdict: Verdict, stage: str, rules: Rules, now: datetime) -> Suppression | None:
    """Of a host's final word on a recipient; None: it says nothing about the address, or strangers wrote the mail."""
    if (
        recipient.message.credential == FOREIGN
        or verdict.outcome is not Outcome.BOUNCED
        or stage not in ABOUT_RECIPIENT
    ):
        return None
    match verdict.action:
        case Action.SUPPRESS:
            return _suppression(recipient, Reason.BOUNCE, str(verdict), rules, now)
        case Action.COUNT:
            return _suppression(recipient, Reason.SOFT_BOUNCE, str(verdict), rules, now)
    return None


def of_expiry(recipient: Recipient, verdict: Verdict, rules: Rules, now: datetime) -> Suppression | None:
    """Of mail that was given up after many tries: a soft bounce if the last answer was about the recipient."""
    if recipient.message.credential == FOREIGN or verdict.action is not Action.COUNT:
        return None
    return _suppression(recipient, Reason.SOFT_BOUNCE, recipient.last_reply, rules, now)


def _suppression(recipient: Recipient, reason: Reason, detail: str, rules: Rules, now: datetime) -> Suppression:
    message = recipient.message
    return Suppression(
        recipient.address,
        tenant=bound_tenant(rules, message.tenant),
        reason=reason,
        source="smtp",
        detail=detail,
        message_id=message.id,
        created_at=now,
    )
