"""What templates see: the variables of one mail, from a contact and a campaign, or made up to try a template out."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from mailerd.queue.ids import CONTACT, format_id

MAX_DEPTH = 10


class Person(NamedTuple):
    """A contact as templates see it."""

    id: int
    email: str
    first_name: str
    last_name: str
    phone: str
    tags: list[str]
    custom_fields: dict[str, Any]
    time_zone: str
    created_at: datetime


def of_person(person: Person, campaign: Mapping[str, Any] | None = None, postal_address: str = "") -> dict[str, Any]:
    """The variables of a mail to this contact; links that only a mail that is sent has are made up."""
    return SAMPLE | {
        "contact": {
            "contact_id": format_id(CONTACT, person.id),
            "email": person.email,
            "first_name": person.first_name,
            "last_name": person.last_name,
            "phone": person.phone,
            "tags": person.tags,
            "custom_fields": person.custom_fields,
            "time_zone": person.time_zone,
            "created_at": person.created_at.isoformat(),
        },
        "custom_fields": person.custom_fields,
        "campaign": dict(SAMPLE["campaign"] if campaign is None else campaign),
        "postal_address": postal_address or SAMPLE["postal_address"],
    }


SAMPLE: dict[str, Any] = {
    "contact": {
        "contact_id": "con_1",
        "email": "ann@example.com",
        "first_name": "Ann",
        "last_name": "Example",
        "phone": "+1 555 0100",
        "tags": [],
        "custom_fields": {},
        "time_zone": "UTC",
        "created_at": "2026-01-01T09:00:00+00:00",
    },
    "custom_fields": {},
    "campaign": {
        "campaign_id": "cmp_1",
        "name": "Sample campaign",
        "subject": "Sample subject",
        "sender_name": "Example",
        "sender_email": "news@example.com",
    },
    "unsubscribe_url": "https://example.com/unsubscribe",
    "preferences_url": "https://example.com/preferences",
    "view_url": "",
    "postal_address": "Example Ltd, 1 Example Street, Example",
    "sender_name": "Example",
}


def with_variables(context: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The context with what a caller wants to see in it: `{"contact": {"first_name": "Bo"}, "coupon": "X"}`.

    Names may have dots (`contact.first_name`); objects are merged. Raises ValueError for what is nested too deeply.
    """
    result = dict(context)
    for name, value in variables.items():
        _check_depth(value, 1)
        *path, last = name.split(".")
        holder = result
        for step in path[:MAX_DEPTH]:
            inner = holder.get(step)
            holder[step] = dict(inner) if isinstance(inner, dict) else {}
            holder = holder[step]
        holder[last] = _merged(holder.get(last), value)
    contact, fields = result["contact"], result["custom_fields"]
    if isinstance(contact, dict) and isinstance(fields, dict) and isinstance(contact.get("custom_fields"), dict):
        both = contact["custom_fields"] | fields
        result["contact"], result["custom_fields"] = contact | {"custom_fields": both}, both
    return result


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: _merged(old.get(name), value) for name, value in new.items()}
    return new


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("variables are nested too deeply")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, depth + 1)
