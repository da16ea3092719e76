"""What an event changes in its row of the ledger, and in the counts. Pure.

Events may come in any order, twice, and of mail that has ended: what counts is what the row says before and after, so
the sum of all changes is always what the ledger shows. What a host said of the mail moves the row whenever it comes (a
late bounce takes the delivery back); what we decided ourselves, or do not know, only while nothing final is known.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mailerd.campaigns.analytics.counts import Counts
from mailerd.campaigns.ledger import Mark, Status
from mailerd.feedback.names import PERMANENT

PREFIX = "recipient."
PEOPLE = "human"  # the actor of opens and clicks that are counted as those of people; all others are machines
# By the last word of an event's type; plain numbers, since operators of enumerations are slow.
SAID = {"delivered": int(Status.DELIVERED), "bounced": int(Status.BOUNCED)}
DECIDED = {
    "expired": int(Status.FAILED),
    "in_doubt": int(Status.IN_DOUBT),
    "suppressed": int(Status.SUPPRESSED),
    "withheld": int(Status.SUPPRESSED),
    "cancelled": int(Status.CANCELLED),
}
# word: (mark by people, mark by machines, hits of people, hits of machines, contacts, contacts of machines only)
HITS = {
    "opened": (int(Mark.OPENED), int(Mark.MACHINE_OPENED), "opens", "machine_opens", "opened", "machine_opened"),
    "clicked": (int(Mark.CLICKED), int(Mark.MACHINE_CLICKED), "clicks", "machine_clicks", "clicked", "machine_clicked"),
}
LEFT = {"unsubscribed": int(Mark.UNSUBSCRIBED), "complained": int(Mark.COMPLAINED)}
HARD = int(Mark.HARD_BOUNCED)
TYPES = tuple(PREFIX + word for word in ("deferred", *SAID, *DECIDED, *HITS, *LEFT))  # all others change nothing
OPEN = (int(Status.PENDING), int(Status.QUEUED))
# What a row of a status counts as.
STANDS_FOR: Mapping[int, tuple[str, ...]] = {
    Status.PENDING: (),
    Status.QUEUED: (),
    Status.DELIVERED: ("sent", "delivered"),
    Status.BOUNCED: ("sent", "bounced"),
    Status.FAILED: ("sent", "failed"),
    Status.SUPPRESSED: ("suppressed", "recalled"),
    Status.CANCELLED: ("cancelled", "recalled"),
    Status.IN_DOUBT: ("sent", "in_doubt"),
}
# The words of suppressions as the ledger has them.
REASONS = {
    "unsubscribe": "unsubscribed",
    "bounce": "bounced",
    "soft_bounce": "bounced",
    "complaint": "complained",
    "manual": "suppressed",
}
# Withheld for what has nothing to do with the contact.
OUR_FAULT: Mapping[str, int] = {"render_failed": int(Status.FAILED), "cancelled": int(Status.CANCELLED)}
MAX_REASON = 100


class Progress(NamedTuple):
    """Of a row: how it stands now, why it was not reached ("" when it was), and what that changes in the counts.

    `reason` None: it stays what it is, as does the status then.
    """

    status: int
    marks: int
    counts: Counts
    reason: str | None = None


def progress(status: int, marks: int, type_: str, data: Mapping[str, Any] | None) -> Progress:
    """What an event of this type means to a row that was handed over. It changes nothing when that is known already."""
    word = type_[len(PREFIX) :] if type_.startswith(PREFIX) else ""
    data = data or {}
    if word in SAID:
        return _said(status, marks, word, data)
    if word in DECIDED:
        return _decided(status, marks, word, data)
    if word in HITS:
        return _hit(status, marks, word, by_people(data))
    if word in LEFT:
        mark = LEFT[word]
        return Progress(status, marks, {}) if marks & mark else Progress(status, marks | mark, {word: 1})
    return Progress(status, marks, {"deferred": 1} if word == "deferred" else {})


def by_people(data: Mapping[str, Any] | None) -> bool:
    """Was this open or click that of a person, as far as can be told?"""
    return data is not None and data.get("actor") == PEOPLE


def _said(status: int, marks: int, word: str, data: Mapping[str, Any]) -> Progress:
    new = SAID[word]
    hard = word == "bounced" and (data.get("action") == "suppress" or data.get("kind") in PERMANENT)
    if status == new and not (hard and not marks & HARD):
        return Progress(status, marks, {})
    after = marks & ~HARD | (HARD if hard else 0)
    reason = str(data.get("kind") or "bounced")[:MAX_REASON] if word == "bounced" else ""
    counts = _moved(status, new)
    if change := bool(after & HARD) - bool(marks & HARD):
        counts["hard_bounced"] = change
    return Progress(new, after, counts, reason)


def _decided(status: int, marks: int, word: str, data: Mapping[str, Any]) -> Progress:
    if status not in OPEN:
        return Progress(status, marks, {})
    new = DECIDED[word]
    reason = word
    said = str(data.get("reason") or "suppressed")
    if word == "withheld" and said in OUR_FAULT:
        return Progress(OUR_FAULT[said], marks, _moved(status, OUR_FAULT[said]), said)
    if new == Status.SUPPRESSED:
        reason = REASONS.get(said, said)[:MAX_REASON]
    return Progress(new, marks, _moved(status, new), reason)


def _moved(old: int, new: int) -> dict[str, int]:
    counts = dict.fromkeys(STANDS_FOR[new], 1)
    for name in STANDS_FOR.get(old, ()):
        if counts.pop(name, 0) == 0:
            counts[name] = -1
    return counts


def _hit(status: int, marks: int, word: str, person: bool) -> Progress:
    by_person, by_machine, hits, machine_hits, contacts, machine_contacts = HITS[word]
    if not person:
        first = not marks & (by_person | by_machine)
        return Progress(
            status, marks | by_machine, {machine_hits: 1, machine_contacts: 1} if first else {machine_hits: 1}
        )
    counts = {hits: 1}
    if not marks & by_person:
        counts[contacts] = 1
        if marks & by_machine:
            counts[machine_contacts] = -1
    return Progress(status, marks | by_person, counts)
