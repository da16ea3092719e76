"""The filters and tests of templates, each with its costs; and those that compiling puts in, whose names begin with _.

Filters take and give plain text: what a `{% set %}` block made is unescaped first, and escaped where it is put out.
"""

import math
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Undefined
from jinja2.utils import pass_context
from markupsafe import Markup, escape

from mailerd.campaigns.templates.sandbox import (
    CHARACTERS,
    MAX_NUMBER,
    Language,
    Missing,
    Rendering,
    in_range,
    plain,
    text_of,
)
from mailerd.campaigns.templates.values import RenderError

MAX_ITEMS = 1_000  # of a range
MAX_DIGITS = 15
COMPARED = 256  # characters that take as long to compare as a step
DIRECTIVE = re.compile(r"%(-?[A-Za-z%]|$)")
DIRECTIVES = frozenset("dmYyHIMSpBbAajZz%")
NOT_CSS = re.compile(r"[^\w#%., +-]+")  # no parentheses, quotes, colons or slashes: a value, and no url()
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
IGNORED_IN_SCHEME = re.compile(r"[\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u2028\u2029\ufeff]+")  # as lenient readers do
SAFE_SCHEMES = frozenset({"http:", "https:", "mailto:", "tel:", "sms:", "cid:"})
SAFE_DATA = ("data:image/png", "data:image/jpeg", "data:image/gif", "data:image/webp")
URL_CHARACTERS = "%:/?#[]@!$&'()+*,;=-._~"
UNSAFE_URL = "#"

Function = Callable[..., Any]
FILTERS: dict[str, Function] = {}
TESTS: dict[str, Function] = {}


def _filter(*names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for name in names:
            FILTERS[name] = pass_context(function)
        return function

    return register


def _test(*names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for name in names:
            TESTS[name] = pass_context(function)
        return function

    return register


def install(language: Language) -> Language:
    """Give a language its words."""
    language.filters.update(FILTERS)
    language.tests.update(TESTS)
    return language


# --- text


def _text(context: Rendering, value: Any) -> str:
    text = plain(context, text_of(context, value))
    context.made(len(text))
    return text


@_filter("upper")
def upper(context: Rendering, value: Any) -> str:
    return _text(context, value).upper()


@_filter("lower")
def lower(context: Rendering, value: Any) -> str:
    return _text(context, value).lower()


@_filter("capitalize")
def capitalize(context: Rendering, value: Any) -> str:
    return _text(context, value).capitalize()


@_filter("title")
def title(context: Rendering, value: Any) -> str:
    words = _text(context, value).split(" ")
    context.spend(len(words) // 4)
    return " ".join(word.capitalize() for word in words)


@_filter("trim")
def trim(context: Rendering, value: Any) -> str:
    return _text(context, value).strip()


@_filter("string")
def string(context: Rendering, value: Any) -> str:
    return _text(context, value)


@_filter("escape", "e")
def escaped(context: Rendering, value: Any) -> str:
    """Text is escaped anyway: once, and not in plain text."""
    return text_of(context, value)


@_filter("replace")
def replace(context: Rendering, value: Any, old: Any, new: Any) -> str:
    text, was, becomes = _text(context, value), _text(context, old), _text(context, new)
    if not was:
        return text
    context.made(len(text) + text.count(was) * max(0, len(becomes) - len(was)))
    return text.replace(was, becomes)


@_filter("truncate")
def truncate(context: Rendering, value: Any, length: Any = 255, end: Any = "…") -> str:
    """The first `length` characters, `end` included, cut at a word where there is one."""
    text, mark = _text(context, value), _text(context, end)
    keep = _whole(length)
    if len(text) <= keep:
        return text
    cut = text[: max(0, keep - len(mark))]
    return (cut.rpartition(" ")[0] or cut) + mark


@_filter("urlencode")
def urlencode(context: Rendering, value: Any) -> str:
    found = _text(context, value).encode("utf-8", "replace")
    context.spend(len(found) // 8)
    return quote(found, safe="")


@_filter("wordcount")
def wordcount(context: Rendering, value: Any) -> int:
    return len(_text(context, value).split())


# --- numbers and dates


@_filter("int")
def to_int(context: Rendering, value: Any, default: Any = 0) -> Any:
    return _number(context, value, default, int)


@_filter("float")
def to_float(context: Rendering, value: Any, default: Any = 0.0) -> Any:
    return _number(context, value, default, float)


def _number(context: Rendering, value: Any, default: Any, kind: Callable[[Any], Any]) -> Any:
    if not isinstance(value, int | float):
        value = _text(context, value).strip()[: MAX_DIGITS * 2]
    try:
        number = kind(float(value)) if kind is int and isinstance(value, str) and not value.isdigit() else kind(value)
    except (ValueError, OverflowError):
        return default
    return number if -MAX_NUMBER <= number <= MAX_NUMBER else default


@_filter("round")
def round_(context: Rendering, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if not isinstance(value, int | float):
        return value
    digits = min(max(_whole(precision), 0), MAX_DIGITS)
    factor = 10.0**digits
    match method:
        case "ceil":
            return math.ceil(value * factor) / factor
        case "floor":
            return math.floor(value * factor) / factor
    return round(float(in_range(value)), digits)


@_filter("abs")
def absolute(context: Rendering, value: Any) -> Any:
    return abs(value) if isinstance(value, int | float) else value


@_filter("number")
def number(context: Rendering, value: Any, decimals: Any = 0, thousands: Any = ",", point: Any = ".") -> str:
    """`1234.5 | number(2, '.', ',')` is 1.234,50."""
    if isinstance(value, str):
        value = _number(context, value, value, float)
    if not isinstance(value, int | float):
        return text_of(context, value)
    digits = f"{in_range(value):,.{min(max(_whole(decimals), 0), MAX_DIGITS)}f}"
    marks = {",": _text(context, thousands)[:3], ".": _text(context, point)[:3]}
    return "".join(marks.get(character, character) for character in digits)


@_filter("date")
def format_date(context: Rendering, value: Any, form: Any = "%Y-%m-%d") -> str:
    """A moment or an RFC 3339 text by strftime's letters (those of `DIRECTIVES`); other text stays as it is."""
    form = _text(context, form)[:200]
    context.spend(2 * form.count("%"))
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return text_of(context, value)
    if not isinstance(value, date):
        return text_of(context, value)

    def one(match: re.Match[str]) -> str:
        letter = match[1].removeprefix("-")
        if letter not in DIRECTIVES or not letter:
            raise RenderError("render_failed", f"The date filter does not know {match[0]}.")
        part: str = value.strftime(f"%{letter}")
        return (part.lstrip("0") or "0") if match[1].startswith("-") else part

    return DIRECTIVE.sub(one, form)


def _whole(value: Any) -> int:
    if not isinstance(value, int | float) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise RenderError("render_failed", "A whole number is needed there.")
    return int(value)


# --- lists and anything


@_filter("default", "d")
def default(context: Rendering, value: Any, instead: Any = "", boolean: Any = True) -> Any:
    """What is missing or empty gets a stand-in. (Jinja asks for `true` before it takes empty text as missing.)"""
    if isinstance(value, Undefined) or value is None or (boolean and value in ("", [], {})):
        return instead
    return value


@_filter("length", "count", "size")
def length(context: Rendering, value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0


@_filter("first")
def first(context: Rendering, value: Any) -> Any:
    return next(iter(_sequence(context, value)), Missing(name="first"))


@_filter("last")
def last(context: Rendering, value: Any) -> Any:
    items = _sequence(context, value)
    return items[-1] if items else Missing(name="last")


@_filter("reverse")
def reverse(context: Rendering, value: Any) -> Any:
    if isinstance(value, str):
        return _text(context, value)[::-1]
    return _paid(context, value)[::-1]


@_filter("sort")
def sort(context: Rendering, value: Any, reverse: Any = False) -> list[Any]:
    items = _paid(context, value, 4)
    _pay_for_comparing(context, items)
    return sorted(items, key=_sort_key, reverse=bool(reverse))


@_filter("unique")
def unique(context: Rendering, value: Any) -> list[Any]:
    return list({_sort_key(each): each for each in _paid(context, value, 2)}.values())


def _sort_key(value: Any) -> tuple[int, Any]:
    """Numbers before texts before the rest, so that nothing is beyond comparing."""
    if isinstance(value, int | float):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, str(type(value)))


@_filter("items")
def items(context: Rendering, value: Any) -> list[tuple[Any, Any]]:
    """The pairs of an object, by name."""
    if not isinstance(value, dict):
        return []
    context.spend(1 + 2 * len(value))
    return sorted(value.items(), key=lambda pair: _sort_key(pair[0]))


@_filter("join")
def join(context: Rendering, value: Any, by: Any = "") -> str:
    if isinstance(value, str):
        return value
    between = _text(context, by)
    texts = [plain(context, text_of(context, each)) for each in _paid(context, value)]
    context.made(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


@_filter("sum")
def total(context: Rendering, value: Any) -> Any:
    return in_range(sum(each for each in _paid(context, value) if isinstance(each, int | float)))


@_filter("min")
def smallest(context: Rendering, value: Any) -> Any:
    return min(_paid(context, value, 2), key=_sort_key, default=Missing(name="min"))


@_filter("max")
def largest(context: Rendering, value: Any) -> Any:
    return max(_paid(context, value, 2), key=_sort_key, default=Missing(name="max"))


@_filter("split")
def split(context: Rendering, value: Any, by: Any = ",") -> list[str]:
    text, by = _text(context, value), _text(context, by)
    parts = text.split(by, MAX_ITEMS) if by else [text]
    context.spend(len(parts))
    return parts


def _sequence(context: Rendering, value: Any) -> Any:
    if isinstance(value, dict):
        context.spend(1 + len(value) // CHARACTERS)
        return list(value)
    return value if isinstance(value, list | tuple | range | str) else ()


def _paid(context: Rendering, value: Any, each: int = 1) -> list[Any]:
    if isinstance(value, str):
        raise RenderError("render_failed", "A list is needed there, and it is a text.")
    found = _sequence(context, value)
    context.spend(1 + len(found) * each)
    return list(found)


def _pay_for_comparing(context: Rendering, value: Any) -> None:
    """For a value that is compared with others: for all that is in it."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            context.spend(len(each) // COMPARED)
        elif isinstance(each, list | tuple | dict | range):
            context.spend(1 + len(each))
            if not isinstance(each, range):
                waiting += each.values() if isinstance(each, dict) else each


# --- tests


@_test("defined")
def is_defined(context: Rendering, value: Any) -> bool:
    return not isinstance(value, Undefined)


@_test("undefined")
def is_undefined(context: Rendering, value: Any) -> bool:
    return isinstance(value, Undefined)


@_test("none")
def is_none(context: Rendering, value: Any) -> bool:
    return value is None


@_test("empty", "blank")
def is_empty(context: Rendering, value: Any) -> bool:
    return isinstance(value, Undefined) or value is None or value in ("", [], {}, ())


@_test("string")
def is_string(context: Rendering, value: Any) -> bool:
    return isinstance(value, str)


@_test("number")
def is_number(context: Rendering, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@_test("odd")
def is_odd(context: Rendering, value: Any) -> bool:
    return isinstance(value, int) and value % 2 == 1


@_test("even")
def is_even(context: Rendering, value: Any) -> bool:
    return isinstance(value, int) and value % 2 == 0


@_test("divisibleby")
def is_divisible(context: Rendering, value: Any, by: Any) -> bool:
    return isinstance(value, int) and isinstance(by, int) and by != 0 and value % by == 0


@_test("contains")
def contains(context: Rendering, value: Any, item: Any) -> bool:
    """A list has the item, a text the piece, an object the name. What is missing contains nothing."""
    if isinstance(value, str):
        context.made(len(value))
        if isinstance(item, Undefined) or item is None:
            return False
        return plain(context, text_of(context, item)) in plain(context, value)
    found = _sequence(context, value)
    if isinstance(item, str):
        item = plain(context, item)
        context.spend(1 + len(found) * (1 + len(item) // COMPARED))
    else:
        context.spend(1 + len(found))
    return not isinstance(item, Undefined | list | tuple | dict) and item in found  # lists are in no list


# --- what compiling puts in


@_filter("_loop")
def loop_over(context: Rendering, value: Any, weight: int) -> Iterable[Any]:
    """What a loop goes over; it pays `weight` steps for each turn before the first one."""
    if isinstance(value, str):
        raise RenderError("render_failed", "A loop goes over a list, and it is a text.")
    found = _sequence(context, value)
    context.spend(1 + len(found) * weight)
    return found  # type: ignore[no-any-return]


@_filter("_range")
def range_(context: Rendering, start: Any, stop: Any = None, step: Any = 1) -> range:
    start, step = _whole(start), _whole(step)
    numbers = range(start) if stop is None else range(start, _whole(stop), step or 1)
    if len(numbers) > MAX_ITEMS:
        raise RenderError("too_much_work", f"A range has at most {MAX_ITEMS:,} numbers.")
    return numbers


@_filter("_slice")
def slice_(context: Rendering, value: Any, start: Any, stop: Any, step: Any) -> Any:
    """`x[1:3]` of a list or a text."""
    if not isinstance(value, str | list | tuple | range):
        return Missing(name="slice")
    context.spend(1 + len(value) // CHARACTERS)
    try:
        return value[start:stop:step]
    except (ValueError, TypeError):
        return Missing(name="slice")


@_filter("_joined")
def joined(context: Rendering, *parts: Any) -> str:
    """`a ~ b`: HTML if one of them is, the others escaped."""
    texts = [text_of(context, each) for each in parts]
    if any(isinstance(text, Markup) for text in texts):
        texts = [escape(text) for text in texts]
    context.made(sum(map(len, texts)))
    return (Markup("") if any(isinstance(text, Markup) for text in texts) else "").join(texts)


@_filter("_flat")
def flat(context: Rendering, value: Any) -> Any:
    """A list as it stands in a template: of plain values only, so that no list grows by holding itself."""
    inner = value.values() if isinstance(value, dict) else value
    if any(isinstance(each, list | tuple | dict) for each in inner):
        raise RenderError("render_failed", "A list in a template holds texts and numbers only.")
    context.spend(len(value))
    return value


@_filter("_kept")
def kept(context: Rendering, value: str) -> str:
    """What a {% set %} block made."""
    context.made(len(value))
    return value


@_filter("_compare")
def compare(context: Rendering, left: Any, operator: str, right: Any) -> bool:
    """Comparing what cannot be compared, or is not there, is false (`!=`: true), never an error."""
    left, right = _comparable(context, left), _comparable(context, right)
    try:
        match operator:
            case "eq":
                return bool(left == right)
            case "ne":
                return bool(left != right)
            case "in":
                return contains(context, right, left)  # type: ignore[no-any-return]
            case "notin":
                return not contains(context, right, left)
            case "lt":
                return bool(left < right)
            case "lteq":
                return bool(left <= right)
            case "gt":
                return bool(left > right)
            case _:
                return bool(left >= right)
    except TypeError:
        return False


def _comparable(context: Rendering, value: Any) -> Any:
    if isinstance(value, str):
        context.spend(1 + len(value) // COMPARED)
        return plain(context, value)
    if isinstance(value, list | tuple | dict | range):
        _pay_for_comparing(context, value)
        return value
    return None if isinstance(value, Undefined) else value


@_filter("_css")
def css_value(context: Rendering, value: Any) -> str:
    """A value in a style: a colour or a length, and nothing that could be a declaration or a URL."""
    text = plain(context, text_of(context, value))
    context.spend(len(text) // 4)
    return NOT_CSS.sub("", text)


@_filter("_source")
def url_value(context: Rendering, value: str) -> str:
    """A URL that is not tracked."""
    return _as_made(value, _safe_url(context, value))


@_filter("_link")
def link_value(context: Rendering, value: str, slot: int) -> str:
    """A URL that is tracked, made for this recipient."""
    url = _safe_url(context, value)
    if context.link is not None and url.startswith(("https://", "http://")):
        url = context.link(slot, url) or url
    return _as_made(value, url)


def _safe_url(context: Rendering, value: str) -> str:
    context.spend(1 + len(value) // 4)
    return safe_url(plain(context, value))


def _as_made(value: str, url: str) -> str:
    return escape(url) if isinstance(value, Markup) else url


def safe_url(url: str) -> str:
    """A URL that no reader runs as a script, without spaces and control characters; `#` instead of one it might."""
    url = url.strip()
    found = SCHEME.match(IGNORED_IN_SCHEME.sub("", url).lower())
    if found and found[0] not in SAFE_SCHEMES:
        whole = IGNORED_IN_SCHEME.sub("", url).lower()
        if not whole.startswith(SAFE_DATA) and not _is_host_and_port(whole):
            return UNSAFE_URL
    _, colon, rest = url.partition(":")
    if colon and found and found[0] in ("http:", "https:"):
        url = found[0] + rest
    return quote(url.encode("utf-8", "replace"), safe=URL_CHARACTERS) if not _is_clean(url) else url


def _is_host_and_port(url: str) -> bool:
    """`example.com:8080/x` has no scheme."""
    host, _, rest = url.partition(":")
    return "." in host and rest[:1].isdigit()


def _is_clean(url: str) -> bool:
    return url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}')
