"""Where the contacts of a condition can be found without looking at all of the tenant's: pure.

Who must have a tag, stand on a list, have an address or stand in a campaign's ledger is found there. What is found may
be more than fits, never less.
"""

from mailerd.campaigns.segments.compiling import Scope
from mailerd.campaigns.segments.conditions import All, AnyOf, Column, Condition, Engagement, OnList, Tagged, Text

MAX_SOURCES = 4  # of one condition
MAX_PARTS = 20  # of one source

Part = Tagged | OnList | Engagement | Text
Source = tuple[Part, ...]
"""Who fits any of these, or nearly."""


def sources(condition: Condition) -> list[Source]:
    """Each has all that fit; none: only looking at all contacts helps."""
    match condition:
        case All(parts):
            return [source for part in parts for source in sources(part)][:MAX_SOURCES]
        case AnyOf(parts):
            firsts = [sources(part)[:1] for part in parts]
            union = tuple(each for first in firsts for source in first for each in source)
            return [union] if firsts and all(firsts) and len(union) <= MAX_PARTS else []
        case Tagged(names=[_, *_]) | OnList(ids=[_, *_]) | Engagement(campaigns=[_, *_]):
            return [(condition,)]
        case Text(Column("address"), "equals"):
            return [(condition,)]
    return []


def source_sql(source: Source, scope: Scope) -> str:
    """A query of contact ids, some of them more than once."""
    return " UNION ALL ".join(_part(part, scope) for part in source)


def _part(part: Part, scope: Scope) -> str:
    match part:
        case Tagged(names):
            tags = f"(SELECT t.id FROM tags AS t WHERE t.tenant = {scope.text(scope.tenant)}"
            return _query("contact_tags", f"m.tag_id = ANY (ARRAY {tags} AND t.name = ANY ({scope.texts(names)})))")
        case OnList(ids):
            return _query("list_contacts", f"m.list_id = ANY ({scope.parameters.add(list(ids), 'bigint[]')})")
        case Engagement():  # who opened or clicked has a row of the ledger, too
            campaigns = scope.parameters.add(list(part.campaigns), "bigint[]")
            return _query("campaign_contacts", f"m.campaign_id = ANY ({campaigns})")
        case Text(values=values):
            tests = f"m.tenant = {scope.text(scope.tenant)} AND m.address = ANY ({scope.texts(values)})"
            return _query("contacts", tests, "m.id")


def _query(table: str, tests: str, id_: str = "m.contact_id") -> str:
    return " ".join(("SELECT", id_, f"FROM {table} AS m WHERE {tests}"))
