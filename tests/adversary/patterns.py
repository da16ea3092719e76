"""Every regular expression of the package, how it is used, and the inputs that are worst for it.

The inputs are made of the expression itself: for each repeat in it something that leads there, many times what it
repeats, and something that it does not want. That finds what goes back and forth over the same letters.
"""

import ast
import importlib
import pkgutil
import re
import re._constants as codes  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

import mailerd

ROOT = Path(mailerd.__file__).parent
ANYWHERE = frozenset({"search", "findall", "finditer", "sub", "subn", "split"})
METHODS = ANYWHERE | {"match", "fullmatch"}
ENDINGS = ("\0", "x", "")
REPEATED = 8  # fewer times are no danger
MOST_INPUTS = 24


class Found(NamedTuple):
    """An expression by the module and name that it has there, and with which methods it is called."""

    name: str
    pattern: "re.Pattern[Any]"
    methods: frozenset[str]


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages([str(ROOT)], "mailerd."):
        if info.name.rpartition(".")[2] not in ("__main__", "kafka", "amqp", "nats"):
            yield importlib.import_module(info.name)


def all_patterns() -> list[Found]:
    """Each once: what modules and classes hold, what struct types ask of texts, what is written in a call."""
    used = _methods_by_name()
    found: dict[tuple[Any, int], Found] = {}

    def add(name: str, pattern: "re.Pattern[Any]", methods: frozenset[str]) -> None:
        key = pattern.pattern, pattern.flags
        if key in found:
            methods |= found[key].methods
            name = found[key].name
        found[key] = Found(name, pattern, methods)

    for module in modules():
        for name, value in vars(module).items():
            if not name.startswith("__"):
                for pattern in _inside(value):
                    if isinstance(pattern, re.Pattern):
                        add(f"{module.__name__}.{name}", pattern, used.get(f"{module.__name__}.{name}", METHODS))
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                for pattern in _of_struct(value):
                    add(f"{module.__name__}.{name}", pattern, frozenset({"search"}))
    for name, pattern, method in _in_calls():
        add(name, pattern, frozenset({method}))
    return sorted(found.values(), key=lambda each: each.name)


def _inside(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple | set | frozenset) and depth < 4:
        for each in value:
            yield from _inside(each, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        for each in [*value, *value.values()]:
            yield from _inside(each, depth + 1)
    elif hasattr(type(value), "__dataclass_fields__") and depth < 4:
        for field in type(value).__dataclass_fields__:
            yield from _inside(getattr(value, field, None), depth + 1)


def _of_struct(struct: type) -> Iterator["re.Pattern[str]"]:
    def walk(of: Any) -> Iterator["re.Pattern[str]"]:
        if getattr(of, "pattern", None):
            yield re.compile(of.pattern)
        for name in ("item_type", "key_type", "value_type"):
            if (inner := getattr(of, name, None)) is not None:
                yield from walk(inner)
        for inner in getattr(of, "types", ()):
            yield from walk(inner)

    info = msgspec.inspect.type_info(struct)
    for field in getattr(info, "fields", ()):
        yield from walk(field.type)


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT.parent).with_suffix("").parts), ast.parse(path.read_text("utf-8"))


def _methods_by_name() -> dict[str, frozenset[str]]:
    """What is called of `module.NAME`, in its own module and where it is imported."""
    used: dict[str, set[str]] = {}
    for module, tree in _trees():
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS and isinstance(node.value, ast.Name):
                name = node.value.id
                used.setdefault(imported.get(name, f"{module.removesuffix('.__init__')}.{name}"), set()).add(node.attr)
    return {name: frozenset(methods) for name, methods in used.items()}


def _in_calls() -> Iterator[tuple[str, "re.Pattern[Any]", str]]:
    for module, tree in _trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.args:
                text = _literal(node.args[0])
                if text is not None:
                    yield f"{module}:{node.lineno}", re.compile(text), node.func.attr


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.JoinedStr):  # what is put in is a word or a number
        return "".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values)
    return None


# ---- what is worst for one


def worst_inputs(found: Found) -> list[tuple[str, str, str]]:
    """(beginning, what is repeated, end) of inputs to try."""
    tree = parser.parse(found.pattern.pattern, found.pattern.flags & ~re.DEBUG)
    inputs: dict[tuple[str, str, str], None] = {}
    for before, bodies in _repeats(list(tree), ""):
        for pump in bodies:
            for end in ENDINGS:
                inputs[before, pump, end] = None
    if found.methods & ANYWHERE:
        for _, pump, end in list(inputs):
            inputs["", pump, end] = None
    return list(inputs)[:MOST_INPUTS]


def _repeats(items: list[Any], before: str) -> Iterator[tuple[str, list[str]]]:
    for at, (op, value) in enumerate(items):
        follows = "".join(_sample(item, 0) for item in items[at + 1 : at + 3])
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            _, most, body = value
            if most >= REPEATED:
                pumps = {_samples(list(body), which) for which in range(4)}
                pumps |= {pump + follows for pump in list(pumps)[:2]}
                yield before, [pump for pump in pumps if pump]
            yield from _repeats(list(body), before)
        elif op is codes.SUBPATTERN:
            yield from _repeats(list(value[3]), before)
        elif op is codes.ATOMIC_GROUP:
            yield from _repeats(list(value), before)
        elif op is codes.BRANCH:
            for branch in value[1]:
                yield from _repeats(list(branch), before)
        elif op in (codes.ASSERT, codes.ASSERT_NOT):
            yield from _repeats(list(value[1]), before)
        before += _sample((op, value), 0)


def _samples(items: list[Any], which: int) -> str:
    return "".join(_sample(item, which) for item in items)


def _sample(item: Any, which: int) -> str:
    """A short text that the item matches; another `which`, maybe another text."""
    op, value = item
    if op is codes.LITERAL:
        return chr(value)
    if op is codes.NOT_LITERAL:
        return _letter(lambda letter: ord(letter) != value, which)
    if op is codes.ANY:
        return " a;.\t-"[which % 6]
    if op is codes.IN:
        return _letter(lambda letter: _in_set(value, letter), which)
    if op is codes.BRANCH:
        return _samples(list(value[1][which % len(value[1])]), which)
    if op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least, most, body = value
        return _samples(list(body), which) * max(least, 1 if which % 2 and most else 0)
    if op is codes.SUBPATTERN:
        return _samples(list(value[3]), which)
    if op is codes.ATOMIC_GROUP:
        return _samples(list(value), which)
    return ""


LETTERS = " \ta;A0.-_,:@=\"'()<>/%\r\n\\\x80\u00e4\u0660\0!#$&*+?[]^`{|}~bcdefghijklmnopqrstuvwxyz123456789" + (
    "BCDEFGHIJKLMNOPQRSTUVWXYZ"
)


def _letter(fits: Any, which: int) -> str:
    fitting = [letter for letter in LETTERS if fits(letter)]
    return fitting[which % len(fitting)] if fitting else ""


def _in_set(members: list[Any], letter: str) -> bool:
    negated, inside, point = False, False, ord(letter)
    for op, value in members:
        if op is codes.NEGATE:
            negated = True
        elif op is codes.LITERAL:
            inside |= point == value
        elif op is codes.RANGE:
            inside |= value[0] <= point <= value[1]
        elif op is codes.CATEGORY:
            name = str(value).rpartition("_")[2].lower()
            is_in = {"digit": letter.isdigit(), "space": letter.isspace(), "word": letter.isalnum() or letter == "_"}
            inside |= is_in.get(name, False) != ("NOT" in str(value))
    return inside != negated


def apply(found: Found, text: str) -> None:
    """Use it as it is used."""
    data: Any = text.encode("utf-8", "surrogateescape") if isinstance(found.pattern.pattern, bytes) else text
    for method in found.methods:
        if method in ("sub", "subn"):
            getattr(found.pattern, method)("" if isinstance(data, str) else b"", data)
        elif method == "finditer":
            for _ in found.pattern.finditer(data):
                pass
        else:
            getattr(found.pattern, method)(data)
