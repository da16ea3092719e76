"""The contacts of an audience: in ranges of ids for the ledger, and how many they are."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from mailerd.campaigns.audience import Audience, AudienceError, Resolved, wanted_of
from mailerd.campaigns.segments.compiling import Scope
from mailerd.campaigns.segments.conditions import Condition, ConditionError, Fault
from mailerd.campaigns.segments.counting import MANY_ROWS, CountStore, Progress, Wanted
from mailerd.campaigns.segments.parameters import Compiled, Parameters
from mailerd.campaigns.segments.references import Found, ReferenceStore
from mailerd.campaigns.segments.sizing import Estimate
from mailerd.db import Connection, Pool
from mailerd.queue.ids import LIST, SEGMENT, format_id

__all__ = ["MANY_ROWS", "AudienceStore", "select"]
LOOKED = 2.0  # seconds for anybody at all
NEVER = datetime.min.replace(tzinfo=UTC)  # ranges hang on no time

SELECT = """
    SELECT {c}.id AS contact_id, {c}.time_zone FROM contacts AS {c}
     WHERE {c}.tenant = {tenant} AND {c}.id > {after} AND {c}.id <= {end} AND ({fits})
"""


class AudienceStore:
    """Finds the contacts of audiences. All of it is as of the moment it is asked."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._references = ReferenceStore(pool)
        self._counts = CountStore(pool)

    async def check(self, tenant: str, audience: Audience) -> None:
        """Raises `AudienceError` when it names what is not there, or has conditions that make no sense.

        An empty audience is no error here: see `Audience.is_empty`.
        """
        await self.resolve(tenant, audience)

    async def resolve(self, tenant: str, audience: Audience) -> Resolved:
        """Look up all that it names; raises `AudienceError`, whose text is a reason for people.

        For one range it is enough: lists and segments may have changed before the next.
        """
        faults: list[Fault] = []
        known = await self._references.lists(
            tenant,
            (
                *audience.list_ids,
                *audience.segment_ids,
                *audience.exclude_list_ids,
                *audience.exclude_segment_ids,
            ),
        )
        campaigns = await self._references.campaigns(tenant, audience.exclude_campaign_ids)
        for place, id_ in enumerate(audience.exclude_campaign_ids):
            if id_ not in campaigns:
                pointer = f"/exclude_campaign_ids/{place}"
                faults.append(Fault(pointer, "unknown_campaign", f"There is no campaign cmp_{id_} of yours."))
        lists, segments = await self._split(tenant, audience, ("list_ids", "segment_ids"), known, faults)
        without = await self._split(tenant, audience, ("exclude_list_ids", "exclude_segment_ids"), known, faults)
        if audience.conditions is not None:
            own = await self._condition(tenant, audience.conditions, "/conditions", faults)
            segments = [*segments, *own]
        if faults:
            raise AudienceError(faults)
        return Resolved(
            tenant=tenant,
            lists=tuple(lists),
            segments=tuple(segments),
            everyone=audience.everyone,
            without_lists=tuple(without[0]),
            without_segments=tuple(without[1]),
            without_campaigns=tuple(audience.exclude_campaign_ids),
        )

    async def _split(
        self,
        tenant: str,
        audience: Audience,
        names: Iterable[str],
        known: dict[int, Found],
        faults: list[Fault],
    ) -> tuple[list[int], list[Condition]]:
        lists: list[int] = []
        segments: list[Condition] = []
        for name in names:
            word, prefix = ("list", LIST) if name.endswith("list_ids") else ("segment", SEGMENT)
            for place, id_ in enumerate(getattr(audience, name)):
                pointer = f"/{name}/{place}"
                found = known.get(id_)
                if found is None:
                    detail = f"There is no {word} {format_id(prefix, id_)} of yours."
                    faults.append(Fault(pointer, f"unknown_{word}", detail))
                elif found.conditions is None:
                    lists.append(id_)
                else:
                    segments += await self._condition(tenant, found.conditions, pointer, faults, segment=id_)
        return lists, segments

    async def _condition(
        self, tenant: str, tree: object, pointer: str, faults: list[Fault], *, segment: int | None = None
    ) -> list[Condition]:
        try:
            return [await self._references.condition(tenant, tree, own=segment)]
        except ConditionError as error:
            if segment is None:
                faults += [fault._replace(pointer=pointer + fault.pointer) for fault in error.problems]
            else:  # it was right when it was stored
                detail = f"The segment {format_id(SEGMENT, segment)} makes no sense any more: {error}"
                faults.append(Fault(pointer, "invalid_segment", detail))
            return []

    async def range_end(
        self, tenant: str, audience: Audience, after: int, size: int, connection: Connection | None = None
    ) -> int | None:
        """The contact id that ends the next range after `after`: about `size` candidates, never more than that.

        None: there is nobody behind `after`, the audience is through. Of lists the candidates are subscriptions, else
        all contacts of the tenant. Raises `AudienceError`.
        """
        return await self.next_end(await self.resolve(tenant, audience), after, size, connection)

    async def next_end(
        self, resolved: Resolved, after: int, size: int, connection: Connection | None = None
    ) -> int | None:
        """As `range_end`, of an audience that is resolved."""
        if not (resolved.lists or resolved.segments or resolved.everyone):
            return None
        return await self._counts.next_end(wanted_of(resolved, NEVER), after, size, connection)

    async def select_sql(
        self, tenant: str, audience: Audience, after: int, end: int, *, now: datetime, first: int = 1
    ) -> Compiled:
        """A SELECT of `contact_id` and `time_zone` of those with ids in (after, end] that belong to the audience.

        Each once, in no order; run it after `MANY_ROWS`. Its parameters are numbered from `first` on. Raises
        `AudienceError`.
        """
        return select(await self.resolve(tenant, audience), after, end, now=now, first=first)

    async def estimate(
        self, tenant: str, audience: Audience, now: datetime, *, zones: Sequence[str] | None = None
    ) -> Estimate:
        """About how many contacts it has, in these time zones if any are given, in less than a second.

        Raises `AudienceError`.
        """
        wanted = wanted_of(await self.resolve(tenant, audience), now)
        return await self._counts.estimate(wanted if zones is None else _in_zones(wanted, zones))

    async def first(self, tenant: str, audience: Audience, limit: int, now: datetime) -> list[int]:
        """Ids of up to `limit` of its contacts, to try something out; it looks about a second long."""
        wanted = wanted_of(await self.resolve(tenant, audience), now)
        page = await self._counts.page(wanted, after=0, limit=limit, seconds=1.0)
        return [person.id for person in page.people]

    async def anybody(self, tenant: str, audience: Audience, now: datetime) -> bool | None:
        """Whether it has any contact at all; None: `LOOKED` seconds were not enough to tell."""
        wanted = wanted_of(await self.resolve(tenant, audience), now)
        try:
            async with asyncio.timeout(LOOKED):
                page = await self._counts.page(wanted, after=0, limit=1, seconds=LOOKED)
        except TimeoutError:
            return None
        return True if page.people else None if page.after is not None else False

    async def count(
        self, tenant: str, audience: Audience, now: datetime, *, after: int = 0, counted: int = 0, seconds: float = 8.0
    ) -> Progress:
        """Count exactly, for about so long: call it again with what it gave until `after` is None."""
        wanted = wanted_of(await self.resolve(tenant, audience), now)
        return await self._counts.count(wanted, after=after, counted=counted, seconds=seconds)


def _in_zones(wanted: Wanted, zones: Sequence[str]) -> Wanted:
    def fits(scope: Scope, after: int | None, end: int | None) -> str:
        there = scope.parameters.add(list(zones), "text[]")
        return f"({wanted.fits(scope, after, end)}) AND {scope.alias}.time_zone = ANY ({there})"

    return replace(wanted, fits=fits)


def select(resolved: Resolved, after: int, end: int, *, now: datetime, first: int = 1) -> Compiled:
    """As `AudienceStore.select_sql`, of an audience that is resolved."""
    scope = Scope(alias="c", tenant=resolved.tenant, now=now, parameters=Parameters(first))
    sql = SELECT.format(
        c=scope.alias,
        tenant=scope.text(resolved.tenant),
        after=scope.parameters.add(after, "bigint"),
        end=scope.parameters.add(end, "bigint"),
        fits=resolved.fits(scope, after, end),
    )
    return scope.parameters.compiled(sql)
