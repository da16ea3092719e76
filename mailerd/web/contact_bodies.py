"""Contacts and what belongs to them as clients send and get them."""

import ipaddress
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, field

from mailerd.campaigns.contacts.consent import Action, Consent, ConsentFacts
from mailerd.campaigns.contacts.refusals import ContactExistsError, FieldsRefusedError
from mailerd.campaigns.contacts.store import ContactValues
from mailerd.campaigns.contacts.values import (
    MAX_NAME,
    MAX_PHONE,
    MAX_TAGS,
    Contact,
    ListStatus,
    Status,
    is_time_zone,
    parse_email,
    tag_name,
    text_problem,
)
from mailerd.errors import Refused
from mailerd.queue.ids import CONSENT, CONTACT, LIST, format_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Moment, Request
from mailerd.web.operations import Call
from mailerd.web.problems import FieldError, ProblemError

CONTACTS = "/api/v1/contacts"
MAX_LISTS = 100  # in one call
LINE = r"^[^\x00-\x1f\x7f]*(?!\n)$"
Id = Annotated[str, Meta(max_length=40)]
Email = Annotated[str, Meta(max_length=1000)]
PersonName = Annotated[str, Meta(max_length=MAX_NAME, pattern=LINE)]
Phone = Annotated[str, Meta(max_length=MAX_PHONE, pattern=LINE)]
TimeZone = Annotated[str, Meta(max_length=64, description="An IANA name such as Europe/Berlin; empty: unknown")]
Tags = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=MAX_TAGS)]
Fields = Annotated[dict[str, Any], Meta(max_length=2000)]
Lists = Annotated[list[Id], Meta(max_length=MAX_LISTS)]
Words = Annotated[str, Meta(max_length=500, pattern=LINE)]
Cursor = Annotated[str, Meta(max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=500)]


class ConsentBody(Request, frozen=True, kw_only=True):
    """How the person agreed: by which `method` (form, double-opt-in, phone …), to which text, from where.

    `at` is when; now if it is not given.
    """

    method: Annotated[str, Meta(min_length=1, max_length=64, pattern=LINE)]
    text_version: Annotated[str, Meta(max_length=256, pattern=LINE)] = ""
    ip: Annotated[str, Meta(max_length=45)] = ""
    at: Moment | None = None


class NewContact(Request, frozen=True, kw_only=True):
    """`tags` that are not there yet are made. `list_ids`: static lists that it is added to.

    `consent` is put on record, and is needed for an address that was erased. Who has unsubscribed stays so: see
    /contacts/{contact_id}/subscribe.
    """

    email: Email
    first_name: PersonName = ""
    last_name: PersonName = ""
    phone: Phone = ""
    time_zone: TimeZone = ""
    tags: Tags = field(default_factory=list)
    custom_fields: Fields = field(default_factory=dict)
    tracking: bool = True
    list_ids: Lists = field(default_factory=list)
    consent: ConsentBody | None = None


class ContactChange(Request, frozen=True, kw_only=True):
    """What is not given stays. `tags`: these and no others; of `custom_fields` those given replace, null removes.

    `consent` is for an address that was erased.
    """

    email: Email | None = None
    first_name: PersonName | None = None
    last_name: PersonName | None = None
    phone: Phone | None = None
    time_zone: TimeZone | None = None
    tags: Tags | None = None
    custom_fields: Fields | None = None
    tracking: bool | None = None
    consent: ConsentBody | None = None


class ContactQuery(Request, frozen=True, kw_only=True):
    """What is looked for; `tag` is a name, `list_id` a static list that they are subscribed to."""

    email: Email | None = None
    status: Status | None = None
    tag: Annotated[str, Meta(max_length=200)] | None = None
    list_id: Id | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class Unsubscribe(Request, frozen=True, kw_only=True):
    """With `list_id` from this list only, else from all mail of campaigns."""

    reason: Words = ""
    list_id: Id | None = None


class Subscribe(Request, frozen=True, kw_only=True):
    """The person wants mail again, and said so after they had left. `list_ids`: the lists they come back to."""

    consent: ConsentBody
    list_ids: Lists = field(default_factory=list)


class NewConsent(ConsentBody, frozen=True, kw_only=True):
    """`withdrawn` unsubscribes as well; `granted` subscribes nobody again who has left. `list_id`: for this list."""

    action: Action = "granted"
    list_id: Id | None = None


class ContactMade(Answer, frozen=True, kw_only=True):
    contact_id: str


class ContactView(Answer, frozen=True, kw_only=True):
    """One contact. `status` is what the suppressions of its address say now.

    complained, bounced, unsubscribed, suppressed (by hand): no mail of campaigns goes there. `tracking` false: no opens
    and clicks of it are kept.
    """

    contact_id: str
    email: str
    first_name: str
    last_name: str
    phone: str
    time_zone: str
    tags: list[str]
    custom_fields: dict[str, Any]
    tracking: bool
    status: Status
    unsubscribe_reason: str
    subscribed_at: datetime
    unsubscribed_at: datetime | None
    created_at: datetime
    updated_at: datetime


class ContactPage(Answer, frozen=True, kw_only=True):
    """Newest first. With a rare filter a page may be short, or empty, and not be the last: see `has_more`."""

    data: list[ContactView]
    has_more: bool
    next_cursor: str | None


class Unsubscribed(Answer, frozen=True, kw_only=True):
    """`changed` false: it was so already."""

    contact_id: str
    list_id: str | None
    status: Status
    changed: bool


class SubscriptionView(Answer, frozen=True, kw_only=True):
    """What the contact is on a list, since when, and by whom: api:NAME, import:ID, page …"""

    list_id: str
    name: str
    status: ListStatus
    source: str
    added_at: datetime
    changed_at: datetime


class SubscriptionChange(Answer, frozen=True, kw_only=True):
    """`was` is none when there was nothing before; `became` also removed."""

    list_id: str
    was: str
    became: str
    source: str
    detail: str
    at: datetime


class Subscriptions(Answer, frozen=True, kw_only=True):
    """`data` is what holds now, `history` every change, the last first, at most a thousand."""

    contact_id: str
    status: Status
    data: list[SubscriptionView]
    history: list[SubscriptionChange]


class ConsentView(Answer, frozen=True, kw_only=True):
    """One record of the ledger. `list_id` null: all mail; `actor` is who recorded it."""

    consent_id: str
    list_id: str | None
    action: Action
    method: str
    text_version: str
    ip: str
    actor: str
    at: datetime


class ConsentList(Answer, frozen=True, kw_only=True):
    """All of them, the last first: there are never more than a thousand."""

    data: list[ConsentView]
    has_more: Literal[False] = False
    next_cursor: None = None


T = TypeVar("T")


def contact_view(contact: Contact) -> ContactView:
    return ContactView(**contact_facts(contact))


def contact_facts(contact: Contact) -> dict[str, Any]:
    """The members of a `ContactView`."""
    names = [name for name in ContactView.__struct_fields__ if name != "contact_id"]
    return {"contact_id": format_id(CONTACT, contact.id)} | {name: getattr(contact, name) for name in names}


def consent_view(consent: Consent) -> ConsentView:
    return ConsentView(
        consent_id=format_id(CONSENT, consent.id),
        list_id=list_name(consent.list_id),
        action=consent.action,
        method=consent.method,
        text_version=consent.text_version,
        ip=consent.ip,
        actor=consent.actor,
        at=consent.at,
    )


def list_name(list_id: int | None) -> str | None:
    return None if list_id is None else format_id(LIST, list_id)


def contact_values(asked: NewContact | ContactChange) -> ContactValues:
    """What is to be written. Raises `ProblemError` (422) with all that is wrong in it, but for the custom fields."""
    errors: list[FieldError] = []

    def checked(name: str, check: Callable[[str], T], text: str | None, pointer: str = "") -> T | None:
        if text is None:
            return None
        try:
            return check(text)
        except ValueError as error:
            errors.append(FieldError(f"invalid_{name}", f"{error}."[:1].upper() + f"{error}."[1:], pointer=pointer))
        return None

    email = checked("address", lambda text: parse_email(text)[0], asked.email, "/email")
    for name, longest in (("first_name", MAX_NAME), ("last_name", MAX_NAME), ("phone", MAX_PHONE)):
        checked("value", _line(longest), getattr(asked, name), f"/{name}")
    checked("time_zone", _zone, asked.time_zone, "/time_zone")
    tags = None if asked.tags is None else [checked("tag", tag_name, t, f"/tags/{n}") for n, t in enumerate(asked.tags)]
    if errors:
        raise problems.invalid(errors)
    return ContactValues(
        email=email,
        first_name=asked.first_name,
        last_name=asked.last_name,
        phone=asked.phone,
        time_zone=asked.time_zone,
        tags=None if tags is None else [tag for tag in tags if tag is not None],
        custom_fields=asked.custom_fields,
        tracking=asked.tracking,
    )


def _line(longest: int) -> Callable[[str], None]:
    def check(text: str) -> None:
        if problem := text_problem(text, longest):
            raise ValueError(problem)

    return check


def _zone(text: str) -> None:
    if text and not is_time_zone(text):
        raise ValueError("there is no such time zone; write it as Europe/Berlin")


def consent_facts(asked: ConsentBody | None, now: datetime, pointer: str = "/consent") -> ConsentFacts | None:
    """Raises `ProblemError` (422) for what is no IP address."""
    if asked is None:
        return None
    ip = ""
    if asked.ip:
        with suppress(ValueError):
            ip = str(ipaddress.ip_address(asked.ip))
        if not ip:
            raise problems.invalid([FieldError("invalid_value", "This is no IP address.", pointer=f"{pointer}/ip")])
    return ConsentFacts(method=asked.method, text_version=asked.text_version, ip=ip, at=asked.at or now)


def list_number(text: str, *, pointer: str = "", parameter: str = "") -> int:
    """The number of a list id in a body or query; raises `ProblemError` (422)."""
    try:
        return parse_id(LIST, text)
    except ValueError as error:
        fault = FieldError("invalid_id", f"{error}.", pointer=pointer, parameter=parameter)
        raise problems.invalid([fault]) from None


def list_numbers(texts: list[str], pointer: str = "/list_ids") -> list[int]:
    return [list_number(text, pointer=f"{pointer}/{n}") for n, text in enumerate(texts)]


def path_number(call: Call, name: str, *prefixes: str) -> int:
    """The number in the path; raises `ProblemError` (404) for anything else."""
    for prefix in prefixes:
        with suppress(ValueError):
            return parse_id(prefix, call.request.match_info[name])
    raise missing(name.removesuffix("_id"))


def missing(what: str) -> ProblemError:
    return ProblemError(404, "not_found", f"There is no such {what} of yours.")


def problem_of(error: Refused) -> ProblemError:
    """The answer for what the stores refuse, which points to what was at fault."""
    if isinstance(error, ContactExistsError):
        name = format_id(CONTACT, error.contact_id)
        fault = FieldError(error.name, name, pointer="/email")
        headers = {"Location": f"{CONTACTS}/{name}"}
        detail = f"{name} has this address already; change that one."
        return ProblemError(409, error.name, detail, errors=[fault], headers=headers)
    if isinstance(error, FieldsRefusedError):
        return problems.invalid(
            [
                FieldError(
                    each.code, each.detail[:1].upper() + each.detail[1:] + ".", pointer=_field_pointer(each.name)
                )
                for each in error.problems
            ]
        )
    return problems.of_refusal(error, (error.field,) if error.field else ())


def _field_pointer(name: str) -> str:
    return f"/custom_fields/{problems.escape(name)}" if name else "/custom_fields"
