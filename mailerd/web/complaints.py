"""Sentences for clients out of what msgspec says of a request: what is allowed there, and nothing of how we check it.

Expected `str` matching regex '^[\\w…' - at `$.to[1].name`      It has characters that it may not have: …
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import inspect

PATH = re.compile(r" - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`$")
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
MEMBER = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
KIND = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
LENGTH = re.compile(r"Expected `(?P<what>\w+)` of length (?P<sign>>=|<=|==) (?P<bound>\d+)")
LIMIT = re.compile(r"Expected `\w+` (?P<sign>>=|<=|>|<) (?P<bound>\S+)")
BOUNDS = {">=": "at least", "<=": "at most", "==": "exactly", ">": "more than", "<": "less than"}
UNITS = {"str": "characters", "bytes": "bytes", "array": "items", "object": "members"}
KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
    "bytes": "base64",
    "datetime": "a time such as 2026-11-22T09:30:00Z",
}
PLAIN = {
    "Invalid RFC3339 encoded datetime": "This is not a time such as 2026-11-22T09:30:00Z.",
    "Expected `datetime` with a timezone component": "The time needs an offset, such as 2026-11-22T09:30:00Z.",
    "Invalid base64 encoded string": "This is not base64.",
    "Integer value out of range": "The number is too large.",
    "Number out of range": "The number is too large.",
    "Input data was truncated": "It ends too early.",
    "Given more than once": "Given more than once.",
}
# What the patterns of `bodies` let through, in words.
PATTERNS = {
    r"^[\w.:/@+-]+(?!\n)$": "only letters, digits and _ . : / @ + -",
    r"^[^\x00-\x1f\x7f]*(?!\n)$": "anything but control characters",
    r"^[^\x00-\x1f\x7f/:!]*(?!\n)$": "anything but / : ! and control characters",
    r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*(?!\n)$": "anything but control characters and line separators",
    r"^[^\x00-\x1f\x7f/:!<>,]*(?!\n)$": "anything but / : ! < > , and control characters",
    r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$": "anything but control characters, of which line breaks and tabs may stand",
    r"^[^\x00]*$": "anything but NUL",
    r"^#[0-9A-Fa-f]{6}(?!\n)$": "only a colour such as #14532d",
    r"^[a-z][a-z0-9_]*(?!\n)$": "only a lower-case letter, then lower-case letters, digits and underscores",
    r"^([01][0-9]|2[0-3]):[0-5][0-9](?!\n)$": "only a time of day such as 09:30",
    r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)(?!\n)$": "only a time of day such as 17:30, or 24:00",
}
MAX_NAME = 80


class Complaint(NamedTuple):
    """`code` for programs, `detail` for people; `steps` lead to the place: names and indexes."""

    code: str
    detail: str
    steps: tuple[str, ...]


def read_complaint(text: str, type_: Any) -> Complaint:
    """Read what msgspec said of a value that was to be a `type_`."""
    steps: tuple[str, ...] = ()
    key = False
    if place := PATH.search(text):
        text = text[: place.start()]
        steps = tuple(name or index or rest for name, index, rest in STEP.findall(place["path"]))
        key = place["key"] is not None
    outside = tuple(step for step in steps if step != "...")
    if member := MEMBER.fullmatch(text):
        name = _printable(member["name"])
        if member["what"].startswith("missing"):
            return Complaint("missing_field", f"The field {name} is required.", (*outside, name))
        return Complaint("unknown_field", f"There is no field {name}.", (*outside, name))
    return Complaint("invalid_value", _sentence(text, _types_at(inspect.type_info(type_), steps, key=key)), outside)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name[:MAX_NAME])


def _sentence(text: str, types: Sequence[inspect.Type]) -> str:
    if plain := PLAIN.get(text):
        return plain
    if match := LENGTH.fullmatch(text):
        units = UNITS.get(match["what"], "letters")
        units = units.removesuffix("s") if match["bound"] == "1" else units
        return f"Expected {BOUNDS[match['sign']]} {match['bound']} {units}."
    if match := LIMIT.fullmatch(text):
        return f"Expected {BOUNDS[match['sign']]} {match['bound']}."
    if " matching regex " in text:
        patterns = [type_.pattern for type_ in types if isinstance(type_, inspect.StrType) and type_.pattern]
        allowed = " or ".join(PATTERNS[pattern] for pattern in patterns if pattern in PATTERNS)
        return f"It may have {allowed}." if allowed else "It has characters that it may not have."
    if choices := _choices(types):
        return f"Expected {_either(choices)}."
    if match := KIND.fullmatch(text):
        wanted = [KINDS[name] for name in match["wanted"].split(" | ") if name in KINDS]
        return (
            f"Expected {_either(wanted)}, not {KINDS.get(match['got'], 'this')}." if wanted else "It is not valid here."
        )
    return "It is not valid here."


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _choices(types: Sequence[inspect.Type]) -> list[str]:
    """The values that are allowed, where they are named one by one."""
    named: list[str] = []
    for type_ in types:
        if isinstance(type_, inspect.LiteralType):
            named += map(str, type_.values)
        elif isinstance(type_, inspect.EnumType):
            named += (str(member.value) for member in type_.cls)
    return named


def _types_at(type_: inspect.Type, steps: Sequence[str], *, key: bool) -> list[inspect.Type]:
    """What the value at the end of these steps may be."""
    here = _alternatives(type_)
    for step in steps:
        here = [inner for each in here for inner in _inside(each, step)]
    if key:
        here = [inner for each in here if isinstance(each, inspect.DictType) for inner in _alternatives(each.key_type)]
    return here


def _inside(type_: inspect.Type, step: str) -> list[inspect.Type]:
    match type_:
        case inspect.StructType(fields=fields):
            return [inner for each in fields if each.encode_name == step for inner in _alternatives(each.type)]
        case inspect.ListType(item_type=item):
            return _alternatives(item)
        case inspect.DictType(value_type=value):
            return _alternatives(value)
        case _:
            return []


def _alternatives(type_: inspect.Type) -> list[inspect.Type]:
    match type_:
        case inspect.UnionType(types=types):
            return [inner for each in types for inner in _alternatives(each)]
        case inspect.Metadata(type=inner):
            return _alternatives(inner)
        case _:
            return [type_]
