"""The JSON of conditions, read into values. Pure; whatever is given, nothing but `ConditionError` is raised.

A node is `{"and": […]}`, `{"or": […]}`, `{"not": {…}}`, `{"field": …, "operator": …, "value": …}` or
`{"engagement": "opened", "campaign": "cmp_1", "at_least": 2, "within_days": 30}`. `vocabulary` has the words.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mailerd.campaigns.segments.conditions import All, AnyOf, Condition, ConditionError, Fault, Not
from mailerd.campaigns.segments.leaves import Reference, read_engagement, read_field
from mailerd.campaigns.segments.reading import BadValueError

MAX_DEPTH = 20
MAX_LEAVES = 200
MAX_NODES = 500  # all of the tree
MAX_VALUES = 10_000  # in lists, all of the tree
MAX_FAULTS = 20  # that are told
JOINING = ("and", "or", "not")
SHAPE = (
    'A condition is {"and": [...]}, {"or": [...]}, {"not": {...}}, {"field": ..., "operator": ..., "value": ...} or '
    '{"engagement": ...}.'
)


class Parsed(NamedTuple):
    """A condition, and what it refers to."""

    condition: Condition
    references: list[Reference]


def parse_conditions(tree: object, definitions: Mapping[str, str]) -> Condition:
    """Read a tree of conditions; `definitions` are the types of custom fields by name.

    Raises `ConditionError` with pointers from the root of `tree`. Whether what it refers to exists is for
    `ReferenceStore.check`, which calls this.
    """
    return parse_tree(tree, definitions).condition


def parse_tree(tree: object, definitions: Mapping[str, str]) -> Parsed:
    """As `parse_conditions`, with what it refers to."""
    reader = _Reader(definitions)
    condition = reader.node(tree, "", 1)
    if reader.faults or condition is None:
        raise ConditionError(reader.faults)
    return Parsed(condition, reader.references)


class _BadError(Exception):
    """A node is wrong; when `last`, the rest of the tree is not worth looking at."""

    def __init__(self, pointer: str, code: str, detail: str, *, last: bool = False) -> None:
        self.fault = Fault(pointer, code, detail)
        self.last = last


class _Reader:
    def __init__(self, definitions: Mapping[str, str]) -> None:
        self._definitions = definitions
        self._nodes = self._leaves = self._values = 0
        self._over = False
        self.faults: list[Fault] = []
        self.references: list[Reference] = []

    def node(self, given: object, pointer: str, depth: int) -> Condition | None:
        """None: there is something wrong with it, which is among the faults."""
        if self._over:
            return None
        try:
            return self._node(given, pointer, depth)
        except _BadError as error:
            self.faults.append(error.fault)
            self._over = self._over or error.last or len(self.faults) >= MAX_FAULTS
            return None

    def _node(self, given: object, pointer: str, depth: int) -> Condition | None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _BadError(pointer, "too_many", f"A tree has at most {MAX_NODES} nodes.", last=True)
        if depth > MAX_DEPTH:
            raise _BadError(pointer, "too_deep", f"Conditions are nested at most {MAX_DEPTH} deep.", last=True)
        if not isinstance(given, dict):
            raise _BadError(pointer, "invalid_type", SHAPE)
        words = [word for word in (*JOINING, "field", "engagement") if word in given]
        if len(words) != 1:
            raise _BadError(pointer, "invalid_condition", SHAPE)
        word = words[0]
        if word not in JOINING:
            return self._leaf(word, given, pointer)
        if unknown := [str(key) for key in given if key != word]:
            raise _BadError(f"{pointer}/{escape(unknown[0])}", "unknown_field", f'Nothing stands beside "{word}".')
        if word == "not":
            part = self.node(given[word], f"{pointer}/not", depth + 1)
            return None if part is None else Not(part)
        return self._joined(word, given[word], f"{pointer}/{word}", depth)

    def _joined(self, word: str, given: object, pointer: str, depth: int) -> Condition | None:
        if not isinstance(given, list):
            raise _BadError(pointer, "invalid_type", f'"{word}" has a list of conditions.')
        if not given:
            raise _BadError(pointer, "empty", f'"{word}" has at least one condition.')
        parts = []
        for place, each in enumerate(given):
            parts.append(self.node(each, f"{pointer}/{place}", depth + 1))
            if self._over:
                return None
        good = tuple(part for part in parts if part is not None)
        if len(good) < len(parts):
            return None
        return All(good) if word == "and" else AnyOf(good)

    def _leaf(self, word: str, given: dict[Any, Any], pointer: str) -> Condition:
        self._leaves += 1
        if self._leaves > MAX_LEAVES:
            raise _BadError(pointer, "too_many", f"There are at most {MAX_LEAVES} conditions.", last=True)
        self._values += sum(len(value) for value in given.values() if isinstance(value, list))
        if self._values > MAX_VALUES:
            raise _BadError(pointer, "too_many", f"All lists have at most {MAX_VALUES} values.", last=True)
        try:
            leaf = read_field(given, self._definitions) if word == "field" else read_engagement(given)
        except BadValueError as error:
            place = "" if error.place is None else f"/{error.place}"
            raise _BadError(f"{pointer}/{escape(error.key)}{place}", error.code, str(error)) from None
        self.references += [each._replace(pointer=pointer + each.pointer) for each in leaf.references]
        return leaf.condition


def escape(name: str) -> str:
    """A member's name as a step of a JSON pointer (RFC 6901 section 3)."""
    return name[:100].replace("~", "~0").replace("/", "~1")
