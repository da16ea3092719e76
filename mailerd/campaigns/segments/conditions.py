"""Conditions on a contact, as values: what the parser makes of JSON and the compiler makes SQL of. Pure.

Every condition is true or false of every contact, never unknown. There are only positive ones: what JSON says by `!=`,
`not_in` and the like is `Not` of the positive, so it is true also of contacts who have no such value at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple

Engaged = Literal["opened", "clicked", "received"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `contacts`, or `domain`, which is the end of the address."""

    name: str


@dataclass(frozen=True, slots=True)
class Custom:
    """A custom field by its name."""

    name: str


Subject = Column | Custom


@dataclass(frozen=True, slots=True)
class All:
    """True when each part is; without parts, always."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True when some part is."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: "Condition"


@dataclass(frozen=True, slots=True)
class Exists:
    """The column is not empty; the custom field is there, and not null, "" or []."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Text:
    """Compared without regard to upper and lower case. A custom field that is a list fits when one of its texts does.

    `contains` looks for whole texts in a list.
    """

    subject: Subject
    how: Literal["equals", "contains", "starts", "ends"]
    values: tuple[str, ...]  # any of them


@dataclass(frozen=True, slots=True)
class Number:
    """Of a custom field that holds a number, or a text that is one. `=`: any of the values."""

    subject: Custom
    how: Literal["<", "<=", ">", ">=", "="]
    values: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Flag:
    """The custom field holds just this."""

    subject: Custom
    value: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """From `start`, inclusive, to `end`, exclusive; None: open. In a custom field a date is its midnight in UTC."""

    subject: Subject
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Recent:
    """In the last so many times 24 hours, up to now."""

    subject: Subject
    days: int


@dataclass(frozen=True, slots=True)
class StatusIn:
    """The status that is derived from suppressions; see `mailerd.campaigns.contacts.status`."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tagged:
    """Has any of the tags, by their exact names; without names, any tag at all."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnList:
    """Stands in any of the lists (none given: in any list of the tenant's) with that state (None: whatever state)."""

    ids: tuple[int, ...]
    state: str | None = "subscribed"


@dataclass(frozen=True, slots=True)
class InSegment:
    """Fits any of the segments. It is replaced by their conditions before anything is compiled."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Engagement:
    """Opened or clicked at least so many times, or received so many campaigns.

    Of these campaigns (none given: any), within the last so many days (None: ever), not before `since` (None: ever),
    by that link (None: any).
    `machines`: hits of machines count too.
    """

    kind: Engaged
    at_least: int = 1
    campaigns: tuple[int, ...] = ()
    days: int | None = None
    since: datetime | None = None
    link: int | None = None
    machines: bool = False


Leaf = Exists | Text | Number | Flag | Moment | Recent | StatusIn | Tagged | OnList | InSegment | Engagement
Condition = All | AnyOf | Not | Leaf


class Fault(NamedTuple):
    """One thing wrong, and where: a JSON pointer (RFC 6901) from the root of what was given."""

    pointer: str
    code: str
    detail: str


class ConditionError(ValueError):
    """What was given makes no sense; `problems` says where and why, at least one."""

    def __init__(self, problems: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in problems[:3]))
        self.problems = list(problems)


def leaves(condition: Condition) -> Iterator[Leaf]:
    """All leaves, from left to right."""
    match condition:
        case All(parts) | AnyOf(parts):
            for part in parts:
                yield from leaves(part)
        case Not(part):
            yield from leaves(part)
        case _:
            yield condition
