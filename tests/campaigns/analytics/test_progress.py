"""Transitions: whatever comes, in whatever order, the sum of the changes is what the row shows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns.analytics.counts import COUNTS, added
from mailerd.campaigns.analytics.progress import TYPES, progress
from mailerd.campaigns.ledger import Mark, Status

QUEUED = int(Status.QUEUED)
PERSON, MACHINE = {"actor": "human"}, {"actor": "scanner"}
HARD, SOFT = {"kind": "invalid_recipient", "action": "suppress"}, {"kind": "mailbox_full"}

types = st.sampled_from([*TYPES, "recipient.held", "message.accepted", "recipient.", "nonsense"])
data = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "actor": st.sampled_from(["human", "machine_open", "prefetch", "scanner", "unknown", 7]),
            "kind": st.sampled_from(["invalid_recipient", "mailbox_full", "", None]),
            "action": st.sampled_from(["suppress", "count"]),
            "reason": st.sampled_from(["unsubscribe", "bounce", "erased", "render_failed", "cancelled", None]),
            "late": st.booleans(),
        },
    ),
)


def moved(*events: tuple[str, Any]) -> tuple[int, int, dict[str, int]]:
    status, marks, counts = QUEUED, 0, []
    for type_, data in events:
        new = progress(status, marks, type_, data)
        status, marks = new.status, new.marks
        counts.append(new.counts)
    return status, marks, {name: number for name, number in added(counts).items() if number}


def shown(status: int, marks: int) -> dict[str, int]:
    """What the ledger says of a row that was handed over."""
    counts = {
        "delivered": status == Status.DELIVERED,
        "bounced": status == Status.BOUNCED,
        "hard_bounced": status == Status.BOUNCED and bool(marks & Mark.HARD_BOUNCED),
        "failed": status == Status.FAILED,
        "in_doubt": status == Status.IN_DOUBT,
        "suppressed": status == Status.SUPPRESSED,
        "cancelled": status == Status.CANCELLED,
        "recalled": status in (Status.SUPPRESSED, Status.CANCELLED),
        "sent": status in (Status.DELIVERED, Status.BOUNCED, Status.FAILED, Status.IN_DOUBT),
        "opened": bool(marks & Mark.OPENED),
        "machine_opened": bool(marks & Mark.MACHINE_OPENED) and not marks & Mark.OPENED,
        "clicked": bool(marks & Mark.CLICKED),
        "machine_clicked": bool(marks & Mark.MACHINE_CLICKED) and not marks & Mark.CLICKED,
        "unsubscribed": bool(marks & Mark.UNSUBSCRIBED),
        "complained": bool(marks & Mark.COMPLAINED),
    }
    return {name: 1 for name, there in counts.items() if there}


@given(st.lists(st.tuples(types, data), max_size=12))
@settings(max_examples=400, deadline=None)
def test_the_sum_of_all_changes_is_what_the_ledger_shows(events: list[tuple[str, Any]]) -> None:
    status, marks, counts = moved(*events)

    hits = ("opens", "clicks", "machine_opens", "machine_clicks", "deferred")
    assert {name: number for name, number in counts.items() if name not in hits} == shown(status, marks)
    assert set(counts) <= set(COUNTS)
    opened = [data for type_, data in events if type_ == "recipient.opened"]
    assert counts.get("opens", 0) + counts.get("machine_opens", 0) == len(opened)
    assert counts.get("opens", 0) == sum(bool(data) and data.get("actor") == "human" for data in opened)


@given(st.lists(st.tuples(types, data), max_size=8))
@settings(max_examples=200, deadline=None)
def test_outcomes_that_come_twice_count_once(events: list[tuple[str, Any]]) -> None:
    outcomes = [
        event for event in events if event[0] not in ("recipient.opened", "recipient.clicked", "recipient.deferred")
    ]
    twice = [event for event in outcomes for _ in range(2)]

    assert moved(*twice) == moved(*outcomes)


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        ([("recipient.delivered", None)], {"sent": 1, "delivered": 1}),
        ([("recipient.deferred", SOFT), ("recipient.deferred", SOFT)], {"deferred": 2}),
        (
            [("recipient.delivered", None), ("recipient.bounced", HARD | {"late": True})],
            {"sent": 1, "bounced": 1, "hard_bounced": 1},
        ),
        ([("recipient.bounced", SOFT), ("recipient.delivered", None)], {"sent": 1, "delivered": 1}),
        ([("recipient.bounced", SOFT), ("recipient.bounced", HARD)], {"sent": 1, "bounced": 1, "hard_bounced": 1}),
        ([("recipient.withheld", {"reason": "erased"})], {"suppressed": 1, "recalled": 1}),
        ([("recipient.cancelled", None), ("recipient.expired", None)], {"cancelled": 1, "recalled": 1}),
        ([("recipient.cancelled", None), ("recipient.delivered", None)], {"sent": 1, "delivered": 1}),
        ([("recipient.delivered", None), ("recipient.expired", None)], {"sent": 1, "delivered": 1}),
        ([("recipient.in_doubt", None), ("recipient.bounced", SOFT)], {"sent": 1, "bounced": 1}),
        ([("recipient.opened", MACHINE)] * 2, {"machine_opens": 2, "machine_opened": 1}),
        (
            [("recipient.opened", MACHINE), ("recipient.opened", PERSON), ("recipient.opened", MACHINE)],
            {"machine_opens": 2, "opens": 1, "opened": 1},
        ),
        (
            [("recipient.clicked", PERSON), ("recipient.clicked", None)],
            {"clicks": 1, "clicked": 1, "machine_clicks": 1},
        ),
        (
            [("recipient.unsubscribed", None), ("recipient.opened", PERSON)],
            {"unsubscribed": 1, "opens": 1, "opened": 1},
        ),
        ([("recipient.complained", None), ("recipient.complained", None)], {"complained": 1}),
        ([("recipient.held", None), ("message.accepted", None)], {}),
    ],
)
def test_each_kind_of_event(events: list[tuple[str, Any]], counts: dict[str, int]) -> None:
    assert moved(*events)[2] == counts


@pytest.mark.parametrize(
    ("type_", "data", "reason"),
    [
        ("recipient.bounced", HARD, "invalid_recipient"),
        ("recipient.bounced", None, "bounced"),
        ("recipient.suppressed", {"reason": "complaint"}, "complained"),
        ("recipient.withheld", {"reason": "left_list"}, "left_list"),
        ("recipient.expired", {"kind": "x"}, "expired"),
        ("recipient.in_doubt", None, "in_doubt"),
        ("recipient.delivered", None, ""),
        ("recipient.opened", PERSON, None),
    ],
)
def test_the_row_says_why_it_was_not_reached(type_: str, data: Any, reason: str | None) -> None:
    assert progress(QUEUED, 0, type_, data).reason == reason


@pytest.mark.parametrize(("reason", "status"), [("render_failed", Status.FAILED), ("cancelled", Status.CANCELLED)])
def test_what_was_withheld_for_our_own_reasons_is_not_suppressed(reason: str, status: Status) -> None:
    assert progress(QUEUED, 0, "recipient.withheld", {"reason": reason})[::3] == (status, reason)
