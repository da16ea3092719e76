"""Custom fields: what may stand in them, with a definition and without one. Pure.

A field is a name and a JSON scalar or a list of texts. A definition gives it a type, which then holds for everything
that is written: text, number, boolean, date (2026-11-22), datetime (2026-11-22T09:30:00Z, any offset), list (of texts).
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple, get_args

import msgspec

FieldType = Literal["text", "number", "boolean", "date", "datetime", "list"]
TYPES: tuple[str, ...] = get_args(FieldType)
MAX_VALUE = 4_096  # bytes of one value as JSON
MAX_FIELDS = 65_536  # bytes of all of a contact together, as JSON
MAX_NUMBER = 1 << 63  # absolute: what is longer is an id and should be text

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
NAME_RULE = "a lower-case letter, then at most 62 lower-case letters, digits and underscores"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?"
    r"(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
)
_DOTTED = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})")  # day, month, year: nobody dots them otherwise
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+")
_BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # line ends and tabs may stand in a value
_WORDS = {
    "text": "a text",
    "number": "a number",
    "boolean": "true or false",
    "date": "a date such as 2026-11-22",
    "datetime": "a time with its offset, such as 2026-11-22T09:30:00Z",
    "list": "a list of texts",
}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class FieldProblem(NamedTuple):
    """One thing wrong: with the field of that name, or, where it is "", with all of them together."""

    name: str
    code: str
    detail: str


def check_fields(values: Mapping[str, object], definitions: Mapping[str, str]) -> list[FieldProblem]:
    """Everything wrong with custom fields, in their order; none: they may be stored.

    `definitions` are names and types. A value None, which removes its field, is always right.
    """
    found = [problem for name, value in values.items() if (problem := _check(name, value, definitions.get(name)))]
    if not found and too_large(values):
        found.append(FieldProblem("", "too_large", f"all fields together have more than {MAX_FIELDS} bytes of JSON"))
    return found


def too_large(values: Mapping[str, object]) -> bool:
    return len(msgspec.json.encode(values)) > MAX_FIELDS


def merged(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields after a change: those given replace, None removes, all others stay."""
    return {name: value for name, value in {**fields, **given}.items() if value is not None}


def is_field_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def fits(value: object, type_: str) -> bool:
    """Whether a value that may stand in a field is of that type."""
    match type_:
        case "text":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list)
        case "date":
            return isinstance(value, str) and _is_date(value)
        case "datetime":
            return isinstance(value, str) and _is_datetime(value)
    return False


def from_text(text: str, type_: str | None, *, decimal_comma: bool = False) -> Any:
    """The value that a cell of a file means in a field of that type; None (no definition): the text itself.

    The empty text is None. The texts of a list stand between semicolons, or, where there is none, between commas. A
    date may also be 17.05.1980: day, month, year. With `decimal_comma` 12,50 and 1.234,50 are numbers, and 1.234 is
    refused, which may be either. Raises ValueError with a sentence.
    """
    text = text.strip()
    if not text:
        return None
    match type_:
        case "number":
            value: Any = _number(_with_point(text) if decimal_comma else text)
        case "boolean":
            value = _BOOLEANS.get(text.lower())
        case "list":
            value = [each for part in text.split(";" if ";" in text else ",") if (each := part.strip())]
        case "date":
            value = _iso(text)
        case _:
            value = text
    if value is None or (type_ is not None and not fits(value, type_)):
        raise ValueError(f"it is not {_WORDS[type_ or 'text']}")
    return value


def _check(name: str, value: object, type_: str | None) -> FieldProblem | None:
    if not is_field_name(name):
        return FieldProblem(name, "invalid_name", f"the name of a field has {NAME_RULE}")
    if value is None:
        return None
    if wrong := _value_problem(value):
        return FieldProblem(name, *wrong)
    if type_ is not None and not fits(value, type_):
        return FieldProblem(name, "invalid_type", f"it must be {_WORDS[type_]}")
    return None


def _value_problem(value: object) -> tuple[str, str] | None:
    match value:
        case bool():
            return None
        case int() | float():
            if not math.isfinite(value) or not -MAX_NUMBER < value < MAX_NUMBER:
                return "out_of_range", "the number is too large: write it as a text"
            return None
        case str():
            texts = [value]
        case list() if all(isinstance(each, str) for each in value):
            texts = value
        case _:
            return "invalid_type", "a field holds a text, a number, true, false, or a list of texts"
    if any(_BROKEN.search(text) for text in texts):
        return "invalid_value", "it has control characters, or bytes that are not UTF-8"
    if len(msgspec.json.encode(value)) > MAX_VALUE:
        return "too_large", f"it has more than {MAX_VALUE} bytes of JSON"
    return None


def _is_date(text: str) -> bool:
    if _DATE.fullmatch(text):
        with suppress(ValueError):
            date.fromisoformat(text)
            return True
    return False


def _is_datetime(text: str) -> bool:
    if _DATETIME.fullmatch(text):
        with suppress(ValueError, OverflowError):  # the latter: no such time in UTC
            datetime.fromisoformat(text).astimezone(UTC)
            return True
    return False


def _with_point(text: str) -> str:
    """A number with a decimal comma, and perhaps dots between thousands, as we write it; anything else as it is."""
    whole, comma, rest = text.partition(",")
    if _GROUPED.fullmatch(whole):
        if not comma and whole.count(".") == 1:
            raise ValueError("its dot may be a decimal point or stand between thousands: write 1234 or 1,234")
        whole = whole.replace(".", "")
    elif comma and "." in whole:
        return text
    return f"{whole}.{rest}" if comma else whole


def _iso(text: str) -> str:
    match = _DOTTED.fullmatch(text)
    return f"{match[3]}-{int(match[2]):02}-{int(match[1]):02}" if match else text


def _number(text: str) -> int | float | None:
    if "_" in text:  # Python's way of writing
        return None
    with suppress(ValueError):
        return int(text) if len(text) <= 20 else None
    with suppress(ValueError):
        number = float(text)
        return number if math.isfinite(number) else None
    return None
