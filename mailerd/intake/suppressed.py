"""Submitted mail to addresses that must not be mailed: refused as a whole, or taken for the others.

Nothing is dropped in silence. A submitter whose message is refused reads why; one whose message goes to some of several
recipients is told in the answer (HTTP), or by a report to the sender as of any other failure (SMTP). Each refused
recipient is an event `recipient.suppressed`; of a message that was not taken its `message_id` is 0.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mailerd.delivery.notices import Notice, Notices, wanted
from mailerd.delivery.verdict import Kind, local_verdict
from mailerd.errors import Refused
from mailerd.events import Event
from mailerd.intake.envelope import Origin, Receipt
from mailerd.queue.mail import Message
from mailerd.queue.screening import Suppressed
from mailerd.queue.suppression import REFUSAL

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Screened(NamedTuple):
    """What is left to be stored, and what the submitter is told."""

    messages: list[Message]
    events: list[Event]
    result: Receipt | Refused


def leave_out(
    message: Message, accepted: list[Event], found: Sequence[Suppressed], origin: Origin, notices: Notices
) -> Screened:
    """Take the suppressed recipients, at least one, out of a message that is about to be stored."""
    out = {suppressed.recipient.n for suppressed in found}
    left = [recipient for recipient in message.recipients if recipient.n not in out]
    if not left:
        subject = (accepted[0].data or {}).get("subject", "")
        refused = [
            _event(0, message, suppressed, {"sender": message.sender, "subject": subject}) for suppressed in found
        ]
        return Screened([], refused, _refusal(message, found))
    content = message.content or b""
    message.recipients = left
    message.total = len(left)
    messages = [message]
    events = accepted + [_event(message.id, message, suppressed) for suppressed in found]
    told = [] if origin.protocol == "http" else [_notice(each) for each in found if wanted(each.recipient, "failed")]
    if told:
        report, event = notices.report(message, content, told, message.accepted_at)
        messages.append(report)
        events.append(event)
    receipt = Receipt(
        message.id,
        [(recipient.n, recipient.address) for recipient in left],
        [(each.recipient.n, each.recipient.address, each.suppression) for each in found],
    )
    return Screened(messages, events, receipt)


def _refusal(message: Message, found: Sequence[Suppressed]) -> Refused:
    text = found[0].suppression.told_to(message.tenant)
    if len(found) > 1:
        text = f"all {len(found)} recipients are suppressed, the first: {text}"
    return Refused(*REFUSAL, text, name="suppressed", field="to")


def _notice(suppressed: Suppressed) -> Notice:
    recipient = suppressed.recipient
    text = suppressed.suppression.told_to(recipient.message.tenant)
    return Notice(recipient, "failed", local_verdict(Kind.SUPPRESSED, *REFUSAL, text))


def _event(message_id: int, message: Message, suppressed: Suppressed, more: Mapping[str, Any] = NOTHING) -> Event:
    recipient, suppression = suppressed
    facts = suppression.refusal(message.tenant) | {"at": "submission", "credential": message.credential}
    return Event(
        message.accepted_at,
        "recipient.suppressed",
        message_id,
        recipient.n,
        recipient.address,
        message.tenant,
        {**facts, **more},
        message.stream,
        message.campaign,
    )
