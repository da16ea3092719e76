"""Whom a campaign is for: lists and segments, less others. Pure; `audience_store` finds the contacts.

A list reaches who is `subscribed` to it, a segment who fits it at the moment that is asked, the conditions of the
audience itself likewise. The audience is all of these together, less the excluded. Contacts that are suppressed belong
to it: that they are not mailed, and why, is found and kept at the hand-over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from mailerd.campaigns.ledger import Status
from mailerd.campaigns.segments.compiling import Scope, condition_sql
from mailerd.campaigns.segments.conditions import All, AnyOf, Condition, ConditionError, Fault, Not, OnList
from mailerd.campaigns.segments.counting import Wanted
from mailerd.campaigns.segments.sources import sources
from mailerd.queue.ids import CAMPAIGN, LIST, SEGMENT, format_id, parse_id

MAX_IDS = 100  # of each kind
GOT = (Status.PENDING, Status.QUEUED, Status.DELIVERED, Status.IN_DOUBT)
"""Whom an excluded campaign takes away: who got it, may have got it, or is still to get it."""

Ids = Annotated[list[Annotated[str, Meta(max_length=40)]], Meta(max_length=MAX_IDS)]


class AudienceError(ConditionError):
    """An audience that cannot be: `problems` have pointers into it, such as /list_ids/0."""


class Audience(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """As `campaigns.audience` has it. Ids are numbers; of `list_ids` and `segment_ids` either may name either kind.

    `conditions` is a tree as segments have it, for this campaign only. `everyone`: all contacts of the tenant, and
    nothing else may be included then.
    """

    list_ids: list[int] = []
    segment_ids: list[int] = []
    exclude_list_ids: list[int] = []
    exclude_segment_ids: list[int] = []
    exclude_campaign_ids: list[int] = []
    conditions: dict[str, Any] | None = None
    everyone: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it names nobody at all: no such campaign can begin."""
        return not (self.list_ids or self.segment_ids or self.conditions is not None or self.everyone)


class AudienceBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An audience as clients write and read it: `lst_1`, `seg_2`, `cmp_3`.

    Who is subscribed to any of the lists, fits any of the segments or the `conditions`, or `everyone`; less who is
    excluded. An excluded campaign takes away who got it or may still get it. Where lists stand beside segments or
    conditions, who has left a list is still reached if he fits those: leaving a list binds only where lists alone say
    who is reached. To leave somebody out all the same, unsubscribe the contact or exclude a list.
    """

    list_ids: Ids = []
    segment_ids: Ids = []
    exclude_list_ids: Ids = []
    exclude_segment_ids: Ids = []
    exclude_campaign_ids: Ids = []
    conditions: dict[str, Any] | None = None
    everyone: bool = False


KINDS = {
    "list_ids": (LIST, SEGMENT),
    "segment_ids": (SEGMENT, LIST),
    "exclude_list_ids": (LIST, SEGMENT),
    "exclude_segment_ids": (SEGMENT, LIST),
    "exclude_campaign_ids": (CAMPAIGN,),
}


def parse_audience(body: AudienceBody) -> Audience:
    """Raises `AudienceError` for what is no id and for what contradicts itself.

    Whether what it names exists is for `AudienceStore.check`.
    """
    faults: list[Fault] = []
    ids = {name: _numbers(name, getattr(body, name), faults) for name in KINDS}
    if body.everyone and (body.list_ids or body.segment_ids or body.conditions is not None):
        faults.append(Fault("/everyone", "contradiction", "Everyone is everyone: include nothing beside it."))
    if faults:
        raise AudienceError(faults)
    return Audience(**ids, conditions=body.conditions, everyone=body.everyone)


def audience_body(audience: Audience) -> AudienceBody:
    """The same as clients read it."""
    ids = {name: [format_id(KINDS[name][0], number) for number in getattr(audience, name)] for name in KINDS}
    return AudienceBody(**ids, conditions=audience.conditions, everyone=audience.everyone)


def read_audience(stored: object) -> Audience:
    """What `campaigns.audience` holds, decoded; `msgspec.to_builtins(audience)` is what to write there."""
    return msgspec.convert(stored, Audience)


def _numbers(name: str, texts: Sequence[str], faults: list[Fault]) -> list[int]:
    found: list[int] = []
    for place, text in enumerate(texts):
        for prefix in KINDS[name]:
            try:
                found.append(parse_id(prefix, text))
                break
            except ValueError:
                continue
        else:
            detail = f"{text!r} is not an id such as {KINDS[name][0]}17."
            faults.append(Fault(f"/{name}/{place}", "invalid_id", detail))
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Resolved:
    """An audience whose every name is looked up: ids of lists, and conditions of segments with no reference left."""

    tenant: str
    lists: tuple[int, ...]
    segments: tuple[Condition, ...]
    everyone: bool
    without_lists: tuple[int, ...]
    without_segments: tuple[Condition, ...]
    without_campaigns: tuple[int, ...]

    @property
    def is_of_lists(self) -> bool:
        """Whether its contacts are found by the lists alone, so that nobody else need be looked at."""
        return not self.everyone and not self.segments

    def fits(self, scope: Scope, after: int | None, end: int | None) -> str:
        """SQL that is true of the contacts `scope.alias` that belong to it, if their ids are in (after, end]."""
        if not self.is_of_lists:  # of a small list there may be very many other contacts between
            scope = scope.within(after, end)
        tests = [self._included(scope, after, end)]
        if self.without_lists:
            tests.append(condition_sql(Not(OnList(self.without_lists)), scope))
        if self.without_campaigns:
            campaigns = scope.parameters.add(list(self.without_campaigns), "bigint[]")
            got = scope.parameters.add([int(status) for status in GOT], "smallint[]")
            tests.append(
                f"NOT EXISTS (SELECT FROM campaign_contacts AS m WHERE m.campaign_id = ANY ({campaigns})"
                f" AND m.status = ANY ({got}) AND m.contact_id = {scope.alias}.id OFFSET 0)"
            )
        if self.without_segments:
            tests.append(condition_sql(Not(AnyOf(self.without_segments)), scope))
        return " AND ".join(f"({test})" for test in tests)

    def _included(self, scope: Scope, after: int | None, end: int | None) -> str:
        if self.everyone:
            return condition_sql(All(()), scope)
        if not self.segments:  # IN: the lists are read, and of the contacts only who is there
            ids = scope.parameters.add(list(self.lists), "bigint[]")
            subscribed = f"list_contacts AS m WHERE m.list_id = ANY ({ids}) AND m.status = 'subscribed'"
            return f"{scope.alias}.id IN (SELECT m.contact_id FROM {subscribed}{_bounds(scope, after, end)})"
        wanted = (OnList(self.lists), *self.segments) if self.lists else self.segments
        return condition_sql(AnyOf(wanted), scope)


def _bounds(scope: Scope, after: int | None, end: int | None) -> str:
    return "".join(
        f" AND m.contact_id {sign} {scope.parameters.add(bound, 'bigint')}"
        for sign, bound in ((">", after), ("<=", end))
        if bound is not None
    )


def wanted_of(resolved: Resolved, now: datetime) -> Wanted:
    """The contacts of an audience, to be counted or paged through."""
    parts: list[Condition] = list(resolved.segments)
    if resolved.lists:
        parts.append(OnList(resolved.lists))
    return Wanted(
        resolved.tenant,
        now,
        resolved.fits,
        sources=[] if resolved.everyone else sources(AnyOf(tuple(parts))),
        lists=resolved.lists if resolved.is_of_lists else (),
    )
