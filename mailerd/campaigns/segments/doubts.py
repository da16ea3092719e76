"""What conditions name that nothing has: most likely a slip, and no fault, as it may be there tomorrow."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from mailerd.campaigns.contacts.values import tag_name
from mailerd.campaigns.segments.conditions import Fault
from mailerd.campaigns.segments.parsing import escape
from mailerd.campaigns.segments.vocabulary import CUSTOM, FIELDS, similar
from mailerd.db import Pool

LOOKED_AT = 2_000  # contacts, the last ones

DEFINED = "SELECT name FROM custom_field_definitions WHERE tenant = $1"
# The fields of some contacts, all in one go: few rows, whatever was asked.
SEEN = """
    SELECT DISTINCT jsonb_object_keys(custom_fields) AS name
      FROM (SELECT custom_fields FROM contacts WHERE tenant = $1 ORDER BY id DESC LIMIT $2) AS latest
"""
TAGS = "SELECT name FROM tags WHERE tenant = $1"


class Name(NamedTuple):
    """A custom field, or a tag, that is named, and where."""

    pointer: str
    name: str
    tag: bool


class DoubtStore:
    """Looks for what conditions name."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def doubts(self, tenant: str, tree: object) -> list[Fault]:
        """Custom fields without a definition that none of the last contacts has, and tags that there are not.

        `tree` was read without a fault. It takes milliseconds, whatever the number of contacts.
        """
        names = list(named(tree))
        found: list[Fault] = []
        fields = [each for each in names if not each.tag]
        tags = [each for each in names if each.tag]
        if fields:
            known = {row["name"] for row in await self._pool.fetch(DEFINED, tenant)}
            if any(each.name not in known for each in fields):
                known |= {row["name"] for row in await self._pool.fetch(SEEN, tenant, LOOKED_AT)}
            detail = f"No field {{}} is defined, and none of the last {LOOKED_AT:,} contacts has it"
            found += _unknown(fields, known, "unknown_field", detail)
        if tags:
            known = {row["name"] for row in await self._pool.fetch(TAGS, tenant)}
            found += _unknown(tags, known, "unknown_tag", "There is no tag {}")
        return found


def named(tree: object, pointer: str = "") -> Iterator[Name]:
    """The custom fields and tags that conditions name, from left to right."""
    if isinstance(tree, list):
        for place, each in enumerate(tree):
            yield from named(each, f"{pointer}/{place}")
    elif isinstance(tree, Mapping) and isinstance(tree.get("field"), str):
        yield from _of_leaf(tree, pointer)
    elif isinstance(tree, Mapping):
        for word, each in tree.items():
            yield from named(each, f"{pointer}/{escape(str(word))}")


def _of_leaf(leaf: Mapping[str, object], pointer: str) -> Iterator[Name]:
    field, value = str(leaf["field"]), leaf.get("value")
    if field not in FIELDS:
        yield Name(f"{pointer}/field", field.removeprefix(CUSTOM), tag=False)
    elif FIELDS[field] == "tags":
        several = isinstance(value, list)
        for place, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, str):
                yield Name(f"{pointer}/value" + (f"/{place}" if several else ""), _tag(each), tag=True)


def _tag(text: str) -> str:
    with suppress(ValueError):
        return tag_name(text)
    return text


def _unknown(names: list[Name], known: set[str], code: str, detail: str) -> Iterator[Fault]:
    for each in names:
        if each.name not in known:
            near = similar(each.name, sorted(known))
            end = f"; did you mean {near}?" if near else "."
            yield Fault(each.pointer, code, detail.format(repr(each.name[:64])) + end)
