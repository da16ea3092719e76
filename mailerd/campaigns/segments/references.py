"""What conditions refer to: lists, campaigns and other segments; and who refers to a list or segment."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mailerd.campaigns.segments.conditions import (
    All,
    AnyOf,
    Condition,
    ConditionError,
    Fault,
    InSegment,
    Not,
    leaves,
)
from mailerd.campaigns.segments.leaves import Reference
from mailerd.campaigns.segments.parsing import Parsed, parse_tree
from mailerd.db import Connection, Pool
from mailerd.queue.ids import CAMPAIGN, LIST, SEGMENT, format_id

MAX_NESTED = 5  # segments within segments
MAX_EXPANDED = 1_000  # leaves, with those of the segments that are named
WHAT = {LIST: "list", SEGMENT: "segment", CAMPAIGN: "campaign"}

DEFINITIONS = "SELECT name, type FROM custom_field_definitions WHERE tenant = $1"
LISTS = "SELECT id, type, segment_conditions FROM contact_lists WHERE tenant = $1 AND id = ANY ($2::bigint[])"
CAMPAIGNS = "SELECT id FROM campaigns WHERE tenant = $1 AND id = ANY ($2::bigint[])"
# Ids of lists and of segments are of one series, so an array of the audience that has the number means this one;
# those of excluded campaigns are of another.
CAMPAIGNS_NAMING = """
    SELECT id FROM campaigns
     WHERE tenant = $1 AND status IN ('scheduled', 'sending', 'paused')
       AND (jsonb_path_exists(audience - 'exclude_campaign_ids' - 'conditions', '$.*[*] ? (@ == $id)',
                              jsonb_build_object('id', $2::bigint))
            OR strpos((audience -> 'conditions')::text, '"' || $3 || '"') > 0)
     ORDER BY id LIMIT 10
"""
SEGMENTS_NAMING = """
    SELECT id FROM contact_lists
     WHERE tenant = $1 AND type = 'dynamic' AND id <> $2 AND strpos(segment_conditions::text, '"' || $3 || '"') > 0
     ORDER BY id LIMIT 10
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A list of the tenant: `conditions` when it is a segment, else None."""

    id: int
    conditions: object


class ReferenceStore:
    """Looks up what conditions name, always among what is the tenant's own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def definitions(self, tenant: str) -> dict[str, str]:
        """The types of custom fields, by their names."""
        return {row["name"]: row["type"] for row in await self._pool.fetch(DEFINITIONS, tenant)}

    async def lists(self, tenant: str, ids: Iterable[int]) -> dict[int, Found]:
        """Those of them that there are, lists and segments."""
        rows = await self._pool.fetch(LISTS, tenant, list(set(ids)))
        return {
            row["id"]: Found(row["id"], row["segment_conditions"] if row["type"] == "dynamic" else None) for row in rows
        }

    async def campaigns(self, tenant: str, ids: Iterable[int]) -> set[int]:
        """Those of them that there are."""
        wanted = list(set(ids))
        return {row["id"] for row in await self._pool.fetch(CAMPAIGNS, tenant, wanted)} if wanted else set()

    async def check(self, tenant: str, tree: object, *, own: int | None = None) -> Condition:
        """Read conditions that are to be stored, of the segment `own` if it is there already.

        Raises `ConditionError` for what makes no sense, for lists, campaigns and segments that are not the tenant's,
        and for segments that lead back to themselves. The result may still have `InSegment` leaves.
        """
        definitions = await self.definitions(tenant)
        parsed = parse_tree(tree, definitions)
        await self._check_references(tenant, parsed.references)
        await self._expanded(tenant, parsed.condition, definitions, own)
        return parsed.condition

    async def condition(self, tenant: str, tree: object, *, own: int | None = None) -> Condition:
        """As `check`, with segments replaced by their conditions: fit to be compiled."""
        definitions = await self.definitions(tenant)
        parsed = parse_tree(tree, definitions)
        await self._check_references(tenant, parsed.references)
        return await self._expanded(tenant, parsed.condition, definitions, own)

    async def _check_references(self, tenant: str, references: Iterable[Reference]) -> None:
        references = list(references)
        if not references:
            return
        lists = await self.lists(tenant, (each.id for each in references if each.prefix != CAMPAIGN))
        known = {
            LIST: {id_ for id_, found in lists.items() if found.conditions is None},
            SEGMENT: {id_ for id_, found in lists.items() if found.conditions is not None},
            CAMPAIGN: await self.campaigns(tenant, (each.id for each in references if each.prefix == CAMPAIGN)),
        }
        missing = [each for each in references if each.id not in known[each.prefix]]
        if missing:
            raise ConditionError([_missing(each) for each in missing])

    async def _expanded(
        self, tenant: str, condition: Condition, definitions: Mapping[str, str], own: int | None
    ) -> Condition:
        """Replace segments by their conditions, which are read level by level."""
        read: dict[int, Condition] = {}
        wanted = _named(condition)
        if not wanted:
            return condition
        for _ in range(MAX_NESTED):
            if own is not None and own in wanted:
                raise _nested(f"The segment {format_id(SEGMENT, own)} would be made of itself.")
            for id_, found in (await self.lists(tenant, wanted)).items():
                read[id_] = self._stored(id_, found, definitions).condition
            if gone := sorted(wanted - read.keys()):
                raise _nested(f"The segment {format_id(SEGMENT, gone[0])} is not there any more.")
            wanted = {id_ for each in wanted for id_ in _named(read[each])} - read.keys()
            if not wanted:
                return _replaced(condition, read)
        raise _nested(f"Segments are nested more than {MAX_NESTED} deep.")

    def _stored(self, id_: int, found: Found, definitions: Mapping[str, str]) -> Parsed:
        try:
            return parse_tree(found.conditions, definitions)
        except ConditionError as error:
            first = error.problems[0]
            name = format_id(SEGMENT, id_)
            raise _nested(f"The segment {name} makes no sense any more: {first.pointer} {first.detail}") from None

    async def users(self, tenant: str, id_: int, connection: Connection | None = None) -> list[str]:
        """Who needs a list or segment, so that it cannot be deleted: `campaign cmp_3`, `segment seg_4`.

        Campaigns that are scheduled, sending or paused; segments whose conditions name it. A few are enough.
        """
        source = connection or self._pool
        found = []
        for prefix in (LIST, SEGMENT):
            name = format_id(prefix, id_)
            found += [
                f"campaign {format_id(CAMPAIGN, row['id'])}"
                for row in await source.fetch(CAMPAIGNS_NAMING, tenant, id_, name)
            ]
            found += [
                f"segment {format_id(SEGMENT, row['id'])}"
                for row in await source.fetch(SEGMENTS_NAMING, tenant, id_, name)
            ]
        return list(dict.fromkeys(found))


def _missing(reference: Reference) -> Fault:
    what = WHAT[reference.prefix]
    name = format_id(reference.prefix, reference.id)
    return Fault(reference.pointer, f"unknown_{what}", f"There is no {what} {name} of yours.")


def _nested(detail: str) -> ConditionError:
    return ConditionError([Fault("", "invalid_segment", detail)])


def _named(condition: Condition) -> set[int]:
    return {id_ for leaf in leaves(condition) if isinstance(leaf, InSegment) for id_ in leaf.ids}


def _replaced(condition: Condition, read: Mapping[int, Condition]) -> Condition:
    """With every segment replaced. Raises `ConditionError` when one leads back to itself, or it becomes too much."""
    left = MAX_EXPANDED

    def replace(part: Condition, within: frozenset[int]) -> Condition:
        nonlocal left
        match part:
            case All(parts):
                return All(tuple(replace(each, within) for each in parts))
            case AnyOf(parts):
                return AnyOf(tuple(replace(each, within) for each in parts))
            case Not(inner):
                return Not(replace(inner, within))
            case InSegment(ids):
                if again := within & set(ids):
                    raise _nested(f"The segment {format_id(SEGMENT, min(again))} is made of itself.")
                return AnyOf(tuple(replace(read[id_], within | {id_}) for id_ in ids))
            case _:
                left -= 1
                if left < 0:
                    raise _nested(f"With all segments that are named it has more than {MAX_EXPANDED} conditions.")
                return part

    return replace(condition, frozenset())
