"""The rules that no single module can keep alone: who may import whom, where SQL stands, what reads no clock."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailerd

ROOT = Path(mailerd.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
TOP = ("__main__",)  # starts all the others
PURE = (
    *sorted(ROOT.glob("wire/*.py")),
    *sorted(ROOT.glob("config/*.py")),
    *sorted(ROOT.glob("feedback/reading/*.py")),
    ROOT / "campaigns/analytics/counts.py",
    ROOT / "campaigns/analytics/periods.py",
    ROOT / "campaigns/analytics/progress.py",
    ROOT / "campaigns/analytics/rates.py",
    ROOT / "queue/retry.py",
    ROOT / "queue/ids.py",
    ROOT / "delivery/control.py",
    ROOT / "delivery/verdict.py",
    ROOT / "delivery/dane.py",
    ROOT / "delivery/tls_policy.py",
    ROOT / "delivery/shaping.py",
    ROOT / "delivery/shaping_lint.py",
    ROOT / "campaigns/runner/turns.py",
    ROOT / "campaigns/mime.py",
    ROOT / "delivery/warmup.py",
    ROOT / "campaigns/contacts/csv_reading.py",
    *(
        ROOT / f"campaigns/contacts/imports/{name}.py"
        for name in ("columns", "json_lines", "refused", "rows", "values")
    ),
    ROOT / "campaigns/audience.py",
    *(ROOT / f"campaigns/{name}.py" for name in ("values", "zones", "timing", "recurrence", "compliance", "forecast")),
    *(ROOT / f"campaigns/contacts/{name}.py" for name in ("values", "status", "fields", "refusals")),
    *(
        ROOT / f"campaigns/segments/{name}.py"
        for name in (
            *("conditions", "vocabulary", "reading", "leaves", "parsing"),
            *("parameters", "compiling", "sources", "sizing"),
        )
    ),
    *(ROOT / f"campaigns/tracking/{name}.py" for name in ("actors", "agents", "folding", "links", "records")),
    ROOT / "campaigns/templates/values.py",
    ROOT / "campaigns/templates/sandbox.py",
    ROOT / "campaigns/templates/filters.py",
    ROOT / "campaigns/templates/languages.py",
    ROOT / "campaigns/templates/checking.py",
    ROOT / "campaigns/templates/tags.py",
    ROOT / "campaigns/templates/markup.py",
    ROOT / "campaigns/templates/inspection.py",
    ROOT / "campaigns/templates/slots.py",
    ROOT / "campaigns/templates/wording.py",
    ROOT / "campaigns/templates/compiling.py",
    ROOT / "campaigns/templates/rendering.py",
    ROOT / "campaigns/templates/contexts.py",
    ROOT / "campaigns/templates/preview.py",
)
IMPURE_MODULES = {"asyncio", "asyncpg", "aiohttp", "aiosmtplib", "socket", "ssl", "threading", "time", "uvloop"}
CLOCKS = {"now", "utcnow", "today", "localtime", "formatdate", "make_msgid"}  # of datetime, date and email.utils
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE|COPY|LOCK|TRUNCATE|CREATE|ALTER|DROP|LISTEN)\s")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every import, wherever it stands: in functions and under TYPE_CHECKING too. `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def sql_lines(tree: ast.AST) -> list[int]:
    """Lines with text that begins as SQL does; docstrings are not meant."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
        if SQL.match(node.value)
    ]


def clocks_read(tree: ast.AST) -> list[int]:
    """Lines that call what tells the time."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in CLOCKS]


def ladder() -> list[str]:
    """The parts of mailerd, lowest first, as the docstring of the package names them."""
    block = re.search(r"\n\n((?:    .* <.*\n)+(?:    .*\n)?)\n", mailerd.__doc__ or "")
    assert block, "mailerd/__init__.py shows the ladder as an indented block"
    return [part.strip() for part in block[1].split("<")]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def test_the_ladder_has_a_place_for_every_part() -> None:
    parts = {part_of(path) for path in MODULES} - {"__init__", *TOP}

    assert sorted(ladder()) == sorted(parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_only_left(path: Path) -> None:
    heights = {"__init__": -1} | {part: height for height, part in enumerate((*ladder(), *TOP))}
    own = heights[part_of(path)]
    ours = [name.split(".") for name in imports(ast.parse(path.read_text())) if re.match(r"mailerd\b|\.", name)]

    assert [name for name in ours if name[0] != "mailerd"] == [], "imports are absolute"
    assert [".".join(name) for name in ours if heights.get((*name, "")[1], -1) > own] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sql_stands_only_beside_a_store_and_in_db(path: Path) -> None:
    tree = ast.parse(path.read_text())
    has_store = any(isinstance(node, ast.ClassDef) and node.name.endswith("Store") for node in tree.body)

    assert has_store or part_of(path) == "db" or sql_lines(tree) == []


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_modules_wait_for_nothing_and_read_no_clock(path: Path) -> None:
    tree = ast.parse(path.read_text())

    assert {name.split(".")[0] for name in imports(tree)} & IMPURE_MODULES == set()
    assert "mailerd.clock.utc_now" not in imports(tree)
    assert clocks_read(tree) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_these_checks_see_what_they_look_for() -> None:
    source = """
    import os, mailerd.web.app
    if TYPE_CHECKING:
        from mailerd.cli import queue
    def load():
        '''SELECT in a docstring is English.'''
        from .. import db
        at = datetime.now(UTC)
        return f"WITH due AS ({at})", '''
            SELECT 1''', "DELETE"
    """
    tree = ast.parse("if True:\n" + source)

    assert list(imports(tree)) == ["os", "mailerd.web.app", "mailerd.cli.queue", "...db"]
    assert sql_lines(tree) == [10, 10]
    assert clocks_read(tree) == [9]


GROUP_POSSESSIVE = re.compile(r"\)[*+?]\+")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_group_is_possessive_which_early_python_3_11_matches_wrongly(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose and isinstance(node.value, str | bytes):
            assert not GROUP_POSSESSIVE.search(str(node.value)), f"{path}:{node.lineno}: write (?>(?:...)*)"
