"""Trees of conditions: what is taken, what is refused, and where the answer points."""

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns.segments.conditions import (
    All,
    Column,
    ConditionError,
    Custom,
    Engagement,
    Moment,
    Not,
    Number,
    Tagged,
    Text,
)
from mailerd.campaigns.segments.parsing import MAX_DEPTH, MAX_LEAVES, parse_conditions
from mailerd.campaigns.segments.vocabulary import EVERY, FIELDS

DEFINITIONS = {"score": "number", "born": "date", "colours": "list", "ok": "boolean", "note": "text"}
VIP = {"field": "tags", "operator": "contains", "value": "vip"}


def faults(tree: object) -> list[tuple[str, str]]:
    with pytest.raises(ConditionError) as raised:
        parse_conditions(tree, DEFINITIONS)
    assert all(fault.detail[-1] in ".?" for fault in raised.value.problems)
    return [(fault.pointer, fault.code) for fault in raised.value.problems]


def test_the_example_of_the_documents_is_taken_as_it_stands() -> None:
    tree = {
        "and": [
            {"field": "last_purchase_date", "operator": ">", "value": "2024-01-01"},
            {"field": "tags", "operator": "contains", "value": "active"},
        ]
    }

    condition = parse_conditions(tree, {})

    assert isinstance(condition, All)
    moment, tagged = condition.parts
    assert isinstance(moment, Moment)
    assert moment.subject == Custom("last_purchase_date")
    assert moment.start is not None
    assert moment.start.isoformat() == "2024-01-02T00:00:00+00:00"
    assert tagged == Tagged(("active",))


def test_addresses_are_compared_as_they_are_kept() -> None:
    tree = {"field": "email", "operator": "in", "value": ["Ann@Example.COM", "ann@example.com", "b@bücher.example"]}

    assert parse_conditions(tree, {}) == Text(
        Column("address"), "equals", ("ann@example.com", "b@xn--bcher-kva.example")
    )


def test_a_field_without_a_definition_is_compared_by_what_the_value_is() -> None:
    assert isinstance(parse_conditions({"field": "age", "operator": ">", "value": 18}, {}), Number)
    assert isinstance(parse_conditions({"field": "age", "operator": "=", "value": "18"}, {}), Text)
    assert isinstance(parse_conditions({"field": "age", "operator": "<", "value": "2026-01-01"}, {}), Moment)


def test_engagement_is_said_in_one_form_or_the_other() -> None:
    short = {"field": "opened", "operator": ">=", "value": 3, "within_days": 30}
    long = {"engagement": "opened", "at_least": 3, "within_days": 30}

    assert parse_conditions(short, {}) == parse_conditions(long, {}) == Engagement("opened", at_least=3, days=30)
    assert parse_conditions({"field": "opened", "operator": "not_in", "value": ["cmp_7"]}, {}) == Not(
        Engagement("opened", campaigns=(7,))
    )


@pytest.mark.parametrize(
    ("leaf", "pointer", "code"),
    [
        ({"field": "tagz", "operator": "=", "value": "x"}, "/field", "unknown_field"),
        ({"field": "custom_fields.UPPER", "operator": "=", "value": "x"}, "/field", "unknown_field"),
        ({"field": "first name", "operator": "=", "value": "x"}, "/field", "unknown_field"),
        ({"field": 5, "operator": "=", "value": "x"}, "/field", "invalid_type"),
        ({"field": "email", "value": "x"}, "/operator", "missing_field"),
        ({"field": "email", "operator": ">", "value": "x"}, "/operator", "unknown_operator"),
        ({"field": "email", "operator": ["="], "value": "x"}, "/operator", "unknown_operator"),
        ({"field": "email", "operator": "="}, "/value", "missing_field"),
        ({"field": "email", "operator": "=", "value": 5}, "/value", "invalid_type"),
        ({"field": "email", "operator": "=", "value": "a\0b"}, "/value", "invalid_value"),
        ({"field": "email", "operator": "contains", "value": ""}, "/value", "invalid_value"),
        ({"field": "email", "operator": "in", "value": []}, "/value", "invalid_value"),
        ({"field": "email", "operator": "in", "value": ["a", 5]}, "/value/1", "invalid_type"),
        ({"field": "email", "operator": "exists", "value": 1}, "/value", "invalid_value"),
        ({"field": "email", "operator": "=", "value": "x", "state": "any"}, "/state", "unknown_field"),
        ({"field": "created_at", "operator": ">", "value": "2026-02-30"}, "/value", "invalid_value"),
        ({"field": "created_at", "operator": ">", "value": "2026-02-01T10:00:00"}, "/value", "invalid_value"),
        ({"field": "created_at", "operator": ">", "value": "0001-01-01"}, "/value", "invalid_value"),
        ({"field": "created_at", "operator": "within_days", "value": 10**30}, "/value", "invalid_value"),
        ({"field": "created_at", "operator": "within_days", "value": True}, "/value", "invalid_type"),
        ({"field": "score", "operator": ">", "value": "5"}, "/value", "invalid_type"),
        ({"field": "score", "operator": "=", "value": float("nan")}, "/value", "invalid_value"),
        ({"field": "score", "operator": "=", "value": 10**400}, "/value", "invalid_value"),
        ({"field": "custom_fields.score", "operator": "contains", "value": "5"}, "/operator", "unknown_operator"),
        ({"field": "ok", "operator": "=", "value": 1}, "/value", "invalid_type"),
        ({"field": "undeclared", "operator": ">", "value": "abc"}, "/value", "invalid_value"),
        ({"field": "status", "operator": "=", "value": "dead"}, "/value", "invalid_value"),
        ({"field": "lists", "operator": "=", "value": "seg_1"}, "/value", "invalid_id"),
        ({"field": "lists", "operator": "=", "value": "lst_1", "state": "gone"}, "/state", "invalid_value"),
        ({"field": "segment", "operator": "in", "value": ["seg_1", "lst_2"]}, "/value/1", "invalid_id"),
        ({"field": "opened", "operator": ">", "value": "cmp_1"}, "/value", "invalid_value"),
        ({"field": "opened", "operator": "=", "value": "cmp_1", "campaign": "any"}, "/campaign", "invalid_value"),
        ({"engagement": "loved"}, "/engagement", "invalid_value"),
        ({"engagement": "opened", "campaign": 5}, "/campaign", "invalid_type"),
        ({"engagement": "opened", "at_least": 0}, "/at_least", "invalid_value"),
        ({"engagement": "opened", "link": 1}, "/link", "invalid_value"),
        ({"engagement": "received", "machines": True}, "/machines", "invalid_value"),
        ({"engagement": "opened", "withindays": 3}, "/withindays", "unknown_field"),
        ({"and": []}, "/and", "empty"),
        ({"and": {}}, "/and", "invalid_type"),
        ({"and": [VIP], "or": [VIP]}, "", "invalid_condition"),
        ({"and": [VIP], "a/b~c": 1}, "/a~1b~0c", "unknown_field"),
        ({"not": [VIP]}, "/not", "invalid_type"),
        ({}, "", "invalid_condition"),
        ("vip", "", "invalid_type"),
        (None, "", "invalid_type"),
    ],
)
def test_what_makes_no_sense_is_refused_and_says_where(leaf: Any, pointer: str, code: str) -> None:
    assert faults(leaf) == [(pointer, code)]
    assert faults({"or": [VIP, {"not": leaf}]}) == [(f"/or/1/not{pointer}", code)]


def test_all_faults_are_told_at_once_but_not_hundreds() -> None:
    bad = {"field": "email", "operator": "=", "value": 5}

    assert faults({"and": [bad, VIP, bad]}) == [("/and/0/value", "invalid_type"), ("/and/2/value", "invalid_type")]
    assert len(faults({"and": [bad] * 100})) == 20


def test_a_word_that_is_nearly_right_gets_the_right_one_and_the_operators_are_listed() -> None:
    with pytest.raises(ConditionError, match="did you mean first_name"):
        parse_conditions({"field": "firstname", "operator": "=", "value": "x"}, {})
    with pytest.raises(ConditionError, match="contains, not_contains, starts_with"):
        parse_conditions({"field": "email", "operator": "like", "value": "x"}, {})


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = VIP
    for _ in range(depth - 1):
        tree = {"not": tree}
    return tree


def test_trees_are_bounded_in_depth_and_size_and_refused_quickly() -> None:
    parse_conditions(nested(MAX_DEPTH), {})
    parse_conditions({"and": [VIP] * MAX_LEAVES}, {})
    loop: dict[str, Any] = {"and": []}
    loop["and"] += [loop, loop]
    started = time.perf_counter()

    assert faults(nested(100)) == [("/not" * MAX_DEPTH, "too_deep")]
    assert faults({"and": [VIP] * 1_000_000}) == [(f"/and/{MAX_LEAVES}", "too_many")]
    assert faults({"and": [{"not": 1}] * 1_000_000})[-1][1] == "invalid_type"
    assert faults(loop)[-1][1] == "too_deep"
    values = {"field": "email", "operator": "in", "value": ["x"] * 1000}
    assert faults({"and": [values] * 11}) == [("/and/10", "too_many")]

    assert time.perf_counter() - started < 0.5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["cmp_1", "lst_1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["and", "or", "not", "field", "operator", "value", "engagement"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
NEARLY = st.fixed_dictionaries(
    {
        "field": st.sampled_from([*FIELDS, *DEFINITIONS, "custom_fields.x"]) | JSON,
        "operator": st.sampled_from(EVERY) | JSON,
        "value": JSON,
    },
    optional=dict.fromkeys(("state", "campaign", "within_days", "link", "machines"), JSON),
)


@settings(max_examples=200, deadline=None, database=None)
@given(JSON | NEARLY | st.lists(NEARLY, max_size=3).map(lambda parts: {"or": parts}))
def test_whatever_is_given_nothing_but_a_condition_error_is_raised(tree: object) -> None:
    with suppress(ConditionError):
        parse_conditions(tree, DEFINITIONS)
