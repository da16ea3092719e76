"""`mailerd contacts`, in this process, on a real database."""

import asyncio
import csv
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mailerd.cli.app import run as run_command
from mailerd.db import connect_pool
from tests.cli.conftest import lines
from tests.support.live import Finished

Run = Callable[..., Awaitable[Finished]]


@pytest.fixture
def run(tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    file = tmp_path / "mailerd.yaml"
    file.write_text(f'hostname: mail.test\ndatabase: {{url: "{database}"}}\n')

    async def run(*arguments: str, given: bytes = b"") -> Finished:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        status = await asyncio.to_thread(run_command, ["contacts", *arguments, "--config", str(file)])
        out, err = capsys.readouterr()
        return Finished(status, out, err)

    return run


async def test_a_file_goes_in_and_comes_out_again(run: Run, tmp_path: Path) -> None:
    source, refused, out = (tmp_path / name for name in ("in.csv", "refused.csv", "out.csv"))
    source.write_bytes(
        "Mail;Vorname;Phone;Plan;x\nann@example.com;Jürgen;+49 30;=gold;1\nnobody;;;;\n".encode("cp1252")
    )

    told = await run(
        *("import", str(source), "--map", "Plan=custom_fields.plan", "--tag", "fair"),
        *("--consent", "form", "--errors", str(refused)),
    )
    await run("export", str(out))
    again = json.loads((await run("import", str(out), "--json")).out)
    printed = await run("export", "--format", "jsonl")

    assert told.status == 0
    assert "cim_1 completed: 2 rows" in told.out
    assert "1 created, 0 updated, 0 unchanged, 0 skipped, 0 duplicates, 1 refused" in told.out
    assert "x" in told.err
    with refused.open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file, delimiter=";")
    assert (row["import_line"], row["Mail"]) == ("3", "nobody")
    shown = await run("imports", "cim_1", "--errors", str(out))
    assert out.read_bytes() == refused.read_bytes()
    assert "--errors FILE" in shown.out
    assert not any(word in shown.out for word in ("False", "[]", "None", "+00:00"))
    await run("export", str(out))
    assert (again["rows"], again["unchanged"], again["refused"]) == (1, 1, 0)
    (ann,) = [json.loads(line) for line in printed.out.splitlines()]
    assert (ann["email"], ann["first_name"], ann["phone"]) == ("ann@example.com", "Jürgen", "+49 30")
    assert (ann["custom_fields"], ann["tags"]) == ({"plan": "=gold"}, ["fair"])
    assert "--errors FILE` writes" not in told.err  # they are written already
    strict = await run("import", str(source), "--strict")
    assert strict.status == os.EX_DATAERR
    assert "`mailerd contacts imports cim_3 --errors FILE` writes the refused rows, each with why." in strict.err


async def test_imports_are_shown_and_standard_input_is_read(run: Run, database: str) -> None:
    async with await connect_pool(database, min=1, max=1) as pool:
        await pool.execute("INSERT INTO contact_lists (tenant, name, created_by) VALUES ('default', 'news', 'test')")
    given = b"email\nann@example.com\n"

    dry = json.loads((await run("import", "-", "--dry-run", "--list", "lst_1", "--json", given=given)).out)
    done = json.loads((await run("import", "-", "--list", "lst_1", "--json", given=given)).out)

    assert (dry["dry_run"], dry["created"]) == (True, 1)
    assert (done["status"], done["created"], done["list_id"]) == ("completed", 1, "lst_1")
    assert [each["import_id"] for each in lines(await run("imports", "--json"))] == ["cim_2", "cim_1"]
    assert "upsert (dry)" in (await run("imports")).out
    assert "completed" in (await run("imports", "cim_2")).out
    assert (await run("imports", "cim_9")).status == os.EX_NOINPUT
    assert json.loads((await run("imports", "cim_2", "--cancel", "--json")).out)["status"] == "completed"
    exported = await run("export", "--list", "lst_1")
    assert exported.out.splitlines()[1].startswith("con_1,ann@example.com,")


async def test_what_makes_no_sense_is_refused(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("name,shoe\nann,38\n")

    unreadable = await run("import", str(source))

    assert unreadable.status == os.EX_DATAERR
    assert "name, shoe" in unreadable.err
    assert (await run("import", str(tmp_path / "none.csv"))).status == os.EX_NOINPUT
    assert (await run("import", str(source), "--list", "lst_5")).status == os.EX_NOINPUT
    for words in (
        ["--map", "name"],
        ["--map", "name=shoe"],
        ["--list", "5"],
        ["--tag", "a,b"],
        ["--consent-text", "x"],
    ):
        assert (await run("import", str(source), *words)).status == os.EX_USAGE
    assert (await run("imports", "--cancel")).status == os.EX_USAGE
    assert (await run("imports", "--errors", "x.csv")).status == os.EX_USAGE
