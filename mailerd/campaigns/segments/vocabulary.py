"""The words of conditions as clients write them: fields, what kind of value each has, operators of each kind. Pure.

`!=` and every `not_…` is true of exactly those contacts of whom its positive is not, so also of those without a value.
"""

from difflib import get_close_matches
from typing import Literal

Kind = Literal[
    "text", "moment", "number", "boolean", "list", "status", "tags", "lists", "segment", "engagement", "last"
]

FIELDS: dict[str, Kind] = {
    "email": "text",
    "domain": "text",
    "first_name": "text",
    "last_name": "text",
    "phone": "text",
    "time_zone": "text",
    "status": "status",
    "created_at": "moment",
    "updated_at": "moment",
    "subscribed_at": "moment",
    "unsubscribed_at": "moment",
    "tags": "tags",
    "lists": "lists",
    "segment": "segment",
    "opened": "engagement",
    "clicked": "engagement",
    "received": "engagement",
    "total_opens": "engagement",
    "total_clicks": "engagement",
    "last_opened": "last",
    "last_clicked": "last",
}
CUSTOM = "custom_fields."
TYPES: dict[str, Kind] = {
    "text": "text",
    "number": "number",
    "boolean": "boolean",
    "date": "moment",
    "datetime": "moment",
    "list": "list",
}
"""Kinds of custom fields, by the type of their definition."""

POSITIVE = {
    "!=": "=",
    "not_contains": "contains",
    "not_in": "in",
    "not_exists": "exists",
    "not_within_days": "within_days",
}
ALIASES = {"==": "="}
COMPARISONS = (">", ">=", "<", "<=")
EQUAL = ("=", "!=", "in", "not_in")
PRESENCE = ("exists", "not_exists")
TEXT = (*EQUAL, "contains", "not_contains", "starts_with", "ends_with", *PRESENCE)
MOMENT = (*COMPARISONS, "=", "!=", "before", "after", "within_days", "not_within_days", *PRESENCE)
ANY_OF = (*EQUAL, "contains", "not_contains")
OPERATORS: dict[Kind, tuple[str, ...]] = {
    "text": TEXT,
    "moment": MOMENT,
    "number": (*COMPARISONS, *EQUAL, *PRESENCE),
    "boolean": ("=", "!=", *PRESENCE),
    "list": ("contains", "not_contains", "in", "not_in", *PRESENCE),
    "status": EQUAL,
    "tags": (*ANY_OF, *PRESENCE),
    "lists": (*ANY_OF, *PRESENCE),
    "segment": EQUAL,
    "engagement": (*COMPARISONS, *ANY_OF, "within_days", "not_within_days", *PRESENCE),
    "last": MOMENT,
}
EVERY = tuple(dict.fromkeys(operator for operators in OPERATORS.values() for operator in operators))

STATUSES = ("active", "unsubscribed", "bounced", "complained", "suppressed")
STATES = ("subscribed", "unsubscribed", "unconfirmed")
ENGAGEMENTS = ("opened", "clicked", "received", "not_opened", "not_clicked", "not_received")


def similar(word: str, words: tuple[str, ...] | list[str]) -> str:
    """What was probably meant, "" when nothing is near."""
    return next(iter(get_close_matches(word[:64], words, 1, 0.75)), "")


def meant(word: str, words: tuple[str, ...] | list[str]) -> str:
    """`; did you mean tags?`, or nothing."""
    near = similar(word, words)
    return f"; did you mean {near}?" if near else "."
