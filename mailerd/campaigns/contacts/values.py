"""Contacts as values, and what may stand in them. Pure: no database and no clock."""

import re
import unicodedata
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import available_timezones

from msgspec import Struct

from mailerd.queue.suppression import normalised
from mailerd.wire.address import parse_mailbox

MAX_MISTAKEN = 1_000  # characters of what is no address and looked at for what it may be
_SEVERAL = re.compile(r"[,;\s/|]")
MAX_NAME = 255  # characters of a first or last name, and of the name of a list
MAX_PHONE = 32
MAX_TAG = 64
MAX_TAGS = 100  # of one contact
MAX_TENANT_TAGS = 10_000
MAX_TENANT_LISTS = 10_000  # lists and segments together
MAX_DEFINITIONS = 500  # custom fields that have a type, of one tenant
DEFAULT_COLOR = "#888888"  # as in the table `tags`

Status = Literal["active", "unsubscribed", "bounced", "complained", "suppressed"]
"""What a contact is: worst first complained, bounced, unsubscribed, suppressed (by hand). See `status`."""
ListStatus = Literal["subscribed", "unsubscribed", "unconfirmed"]


class Contact(Struct, frozen=True, kw_only=True):
    """One person of one tenant. `address` is `email` as suppressions have it; `tags` are names, in their order.

    `time_zone` is an IANA name, or "": that of the campaign. `tracking` False: no opens and clicks of it are kept.
    """

    id: int
    tenant: str
    email: str
    address: str
    first_name: str = ""
    last_name: str = ""
    phone: str = ""
    time_zone: str = ""
    custom_fields: dict[str, Any]
    tags: list[str]
    tracking: bool = True
    status: Status
    unsubscribe_reason: str = ""
    subscribed_at: datetime
    unsubscribed_at: datetime | None = None
    created_at: datetime
    updated_at: datetime


def parse_email(text: str) -> tuple[str, str]:
    """The address to write to, and its normalised form, by which it is unique.

    `local@domain` with a domain name that has a dot; white space around it is ignored. Raises ValueError with a
    sentence for people, which never quotes the address.
    """
    text = text.strip()
    try:
        mailbox = parse_mailbox(text)
    except ValueError as error:
        raise ValueError(_mistaken(text) or str(error)) from None
    if mailbox.domain.startswith("["):
        raise ValueError("the domain is an address literal: a contact needs a domain name")
    if "." not in mailbox.domain:
        raise ValueError("the domain has no dot: write all of it, as example.com")
    return mailbox.address, normalised(mailbox.address)


def _mistaken(text: str) -> str:
    """What people put where an address belongs; "": something else."""
    if len(text) > MAX_MISTAKEN:
        return ""
    if text.lower().startswith("mailto:"):
        return "it begins with mailto:, which is no part of an address"
    if text.count("@") > 1 and _SEVERAL.search(text):
        return "there are two addresses: a contact has one"
    if "@" in text and text.endswith(">") and "<" in text:
        return "it is a name and an address: only the address belongs here"
    if any(letter.isspace() for letter in text):
        return "the address has a space in it"
    return ""


def spellings(email: str, address: str) -> list[str]:
    """Those in which events have the address of a contact: as given, normalised, and in lower case.

    Domains are in lower case everywhere: `wire.address` makes them so.
    """
    return sorted({email, address, email.lower()})


def text_problem(text: str, longest: int) -> str | None:
    """What is wrong with a name, a phone number or the like (None: nothing): one line of text without controls."""
    if len(text) > longest:
        return f"it is longer than {longest} characters"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        return "it has control characters, line ends, or bytes that are not UTF-8"
    return None


def tag_name(text: str) -> str:
    """The name of a tag as the table has it: NFC, no space around it. Upper and lower case are two tags.

    Raises ValueError with a sentence. No comma and no semicolon: in files they stand between tags.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise ValueError("a tag has at least one character")
    if "," in name or ";" in name:
        raise ValueError("a tag has no comma and no semicolon")
    if problem := text_problem(name, MAX_TAG):
        raise ValueError(f"no name of a tag: {problem}")
    return name


def is_time_zone(name: str) -> bool:
    """Whether it is an IANA time zone such as Europe/Berlin."""
    return name in _time_zones()


@lru_cache(maxsize=1)
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())
