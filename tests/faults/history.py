"""The order of what events say of each recipient: taken in once, then attempts one after the other, then one end."""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from mailerd import db

HISTORY = """
    SELECT message_id, n, address, type, data, at FROM events WHERE message_id > 0 AND starts_with(address, $1)
     ORDER BY message_id, n, txid, seq
"""
ACCEPTED = "message.accepted"
BETWEEN = {"recipient.deferred", "recipient.held", "recipient.released"}
ENDS = {
    "recipient.delivered",
    "recipient.bounced",
    "recipient.expired",
    "recipient.suppressed",
    "recipient.cancelled",
    "recipient.withheld",
    "recipient.in_doubt",
}
LATER = {
    "recipient.complained",
    "recipient.unsubscribed",
    "recipient.answered",
    "recipient.opened",
    "recipient.clicked",
}


class Fact(NamedTuple):
    """An event of one recipient."""

    type: str
    data: dict[str, Any]


def fault_in(history: Sequence[Fact], *, over: bool = True) -> str:
    """What is wrong with the order of these, "" when nothing is. `over`: nothing waits any more."""
    types = [fact.type for fact in history]
    ends = [n for n, fact in enumerate(history) if fact.type in ENDS and not fact.data.get("late")]
    if types[0] != ACCEPTED or types.count(ACCEPTED) != 1:
        return "not accepted once and first"
    if len(ends) > 1:
        return "ended more than once"
    end = ends[0] if ends else len(types)
    if over and not ends:
        return "never ended"
    if set(types[1:end]) - BETWEEN:
        return "something else before its end"
    if {fact.type for fact in history[end + 1 :] if not fact.data.get("late")} - LATER:
        return "something else after its end"
    attempts = [fact.data["attempt"] for fact in history if "attempt" in fact.data and not fact.data.get("late")]
    if any(earlier >= later for earlier, later in pairwise(attempts)):
        return "attempts out of order"
    return ""


async def disorder(connection: db.Connection, prefix: str) -> list[str]:
    """Recipients whose address begins so and whose events are not in order, with what is wrong and the events."""
    rows = await connection.fetch(HISTORY, prefix)
    histories = groupby(rows, key=lambda row: (row["message_id"], row["n"], row["address"]))
    return list(_faults((key[2], [Fact(row["type"], row["data"] or {}) for row in group]) for key, group in histories))


def _faults(histories: Iterable[tuple[str, list[Fact]]]) -> Iterable[str]:
    for address, history in histories:
        if fault := fault_in(history):
            yield f"{address}: {fault}: {' '.join(fact.type for fact in history)}"
