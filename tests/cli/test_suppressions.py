"""`mailerd suppressions`, on a real database."""

import asyncio
import csv
import io
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from mailerd.cli.suppressions import drawn
from mailerd.db import connect_pool
from mailerd.queue.suppression import Reason, Suppression
from tests.cli.conftest import lines
from tests.support.live import Finished, command

Run = Callable[..., Awaitable[Finished]]


@pytest.fixture
def run(tmp_path: Path, database: str) -> Run:
    file = tmp_path / "mailerd.yaml"
    file.write_text(f'hostname: mail.test\ndatabase: {{url: "{database}"}}\n')

    async def run(*arguments: str, given: str = "") -> Finished:
        return await asyncio.to_thread(command, "suppressions", *arguments, "--config", str(file), given=given)

    return run


async def addresses(run: Run, *arguments: str) -> list[str]:
    return sorted(entry["address"] for entry in lines(await run("list", "--json", *arguments)))


async def test_an_address_is_added_listed_and_removed(run: Run) -> None:
    assert "ann@example.net is suppressed" in (await run("add", "Ann@Example.net", "--detail", "by phone")).out
    assert "was suppressed already" in (await run("add", "ann@example.net")).out
    drawn = (await run("list")).out

    assert "sup_1" in drawn
    assert "default, all streams" in drawn
    assert "by phone" in drawn
    assert await addresses(run, "ANN@example.net") == ["ann@example.net"]
    assert (await run("remove", "ann@example.net")).status == 0
    assert (await run("remove", "ann@example.net")).status == os.EX_NOINPUT


async def test_an_entry_is_shown_and_removed_by_its_id(run: Run) -> None:
    added = json.loads((await run("add", "ann@example.net", "--global", "--json")).out)
    await run("add", "ann@example.net")

    shown = json.loads((await run("show", added["id"], "--json")).out)
    assert shown | {"address": "ann@example.net", "tenant": "", "email_id": None, "id": added["id"]} == shown
    assert "all tenants" in (await run("show", added["id"])).out
    assert (await run("remove", added["id"])).status == 0
    for verb in ("show", "remove"):
        assert (await run(verb, added["id"])).status == os.EX_NOINPUT
        assert (await run(verb, "sup_x")).status == os.EX_USAGE
    assert (await run("remove", "sup_2", "--stream", "transactional")).status == os.EX_USAGE
    assert [entry["id"] for entry in lines(await run("list", "--json"))] == ["sup_2"]


async def test_what_is_over_is_listed_only_when_asked_for(run: Run, database: str) -> None:
    await run("add", "ann@example.net", "--until", "7d")
    (entry,) = lines(await run("list", "--json"))
    left = datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=6.9) < left < timedelta(days=7)
    async with await connect_pool(database, min=1, max=1) as pool:
        await pool.execute("UPDATE suppressions SET expires_at = now() - interval '1 minute'")

    assert await addresses(run) == []
    assert await addresses(run, "--all") == ["ann@example.net"]
    assert (await run("remove", "ann@example.net")).status == os.EX_NOINPUT


async def test_lists_are_narrowed(run: Run) -> None:
    await run("add", "ann@example.net", "--stream", "marketing", "--topic", "offers")
    await run("add", "@example.net")
    await run("add", "bob@sub.example.net", "--global")

    assert await addresses(run, "--stream", "marketing") == ["ann@example.net"]
    assert await addresses(run, "--topic", "offers") == ["ann@example.net"]
    assert await addresses(run, "--domain", "EXAMPLE.net") == ["@example.net", "ann@example.net"]
    assert await addresses(run, "--global") == ["bob@sub.example.net"]


async def test_names_that_fit_nothing_are_told(run: Run) -> None:
    for words in (["add", "a@b.example"], ["import", "-"]):
        refused = await run(*words, "--stream", "marketting", given="a@b.example\n")
        assert refused.status == os.EX_USAGE
        assert "marketting" in refused.err
    assert "No credential is of a tenant acme" in (await run("add", "a@b.example", "--tenant", "acme")).err
    assert (await run("add", "a@b.example")).err == ""
    assert (await run("import", "-", "--tenant", "shop", given="a@b.example\n")).err.startswith("No credential is of")
    assert await addresses(run) == ["a@b.example"] * 3


async def test_complaints_stay_without_force(run: Run) -> None:
    await run("add", "ann@example.net", "--reason", "complaint")
    await run("add", "ann@example.net", "--reason", "bounce")

    refused = await run("remove", "ann@example.net")

    assert refused.status == os.EX_DATAERR
    assert "--force" in refused.err
    assert [entry["reason"] for entry in lines(await run("list", "--json"))] == ["complaint"]
    assert (await run("remove", "ann@example.net", "--force")).status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "nobody"],
        ["add", "a@b.example", "--topic", "x"],
        ["add", "@"],
        ["add", "a@b.example", "--until", "2020-01-01"],
        ["add", "a@b.example", "--until", "soon"],
    ],
)
async def test_what_makes_no_sense_is_refused(run: Run, arguments: list[str]) -> None:
    assert (await run(*arguments)).status == os.EX_USAGE
    assert await addresses(run) == []


async def test_a_file_goes_in_and_comes_out_again(run: Run, tmp_path: Path) -> None:
    source, refused, out = (tmp_path / name for name in ("in.csv", "refused.csv", "out.csv"))
    source.write_bytes(
        b"\xef\xbb\xbfemail;reason\r\nann@example.net;spam\nbob@example.net;\rnobody;\r\n@old.example;\r\n"
    )

    told = (await run("import", str(source), "--errors", str(refused))).out
    again = json.loads((await run("import", str(source), "--json")).out)
    await run("export", str(out))

    assert "4 lines in" in told
    assert "3 added, 0 were there, 1 refused" in told
    assert again == {"read": 4, "added": 0, "there": 3, "refused": 1}
    assert (await run("import", str(source), "--strict")).status == os.EX_DATAERR
    with refused.open(newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["4"]
    assert json.loads((await run("import", str(out), "--json")).out) == {
        "read": 3,
        "added": 0,
        "there": 3,
        "refused": 0,
    }
    assert await addresses(run, "--reason", "complaint") == ["ann@example.net"]
    assert (await run("export", "--reason", "complaint")).out.splitlines()[1].startswith("ann@example.net,default,,,")


async def test_operators_may_suppress_for_everybody(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("address,tenant\nann@example.net,\nbob@example.net,acme\n")

    await run("import", str(source), "--global")

    assert {entry["address"]: entry["tenant"] for entry in lines(await run("list", "--json"))} == {
        "ann@example.net": "",
        "bob@example.net": "acme",
    }


async def test_what_was_exported_is_imported_in_its_scopes(run: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "out.csv")
    await run("add", "ann@example.net", "--global")
    await run("add", "bob@example.net", "--stream", "marketing", "--topic", "offers")
    await run("add", "@old.example", "--tenant", "acme")
    before = {entry["address"]: entry for entry in lines(await run("list", "--json"))}
    await run("export", out)
    for id_ in ("sup_1", "sup_2", "sup_3"):
        await run("remove", id_)

    await run("import", out)

    after = {entry["address"]: entry for entry in lines(await run("list", "--json"))}
    for address, entry in before.items():
        assert after[address] | {"id": entry["id"]} == entry
    assert (await run("export", "--tenant", "acme")).out.splitlines()[1:] != []


@pytest.mark.parametrize(("content", "word"), [(b"\0\1\2", "no text file"), (b"a,b\n1,2\n", "neither an address")])
async def test_a_file_that_is_no_list_is_refused_whole(run: Run, tmp_path: Path, content: bytes, word: str) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(content)

    finished = await run("import", str(source))

    assert finished.status == os.EX_DATAERR
    assert word in finished.err
    assert (await run("import", str(tmp_path / "none.csv"))).status == os.EX_NOINPUT


def test_lists_fit_a_terminal_and_no_address_is_broken() -> None:
    entries = [
        Suppression(
            address,
            tenant="acme",
            reason=Reason.SOFT_BOUNCE,
            source="smtp",
            detail="550 5.1.1 " + "no such user here " * 5,
            created_at=datetime.now(UTC),
            id=123_456,
        )
        for address in ("somebody.with.a.name@example.net", f"{'x' * 64}@a.example")
    ]
    for chosen in (entries[:1], entries):
        out = io.StringIO()
        Console(file=out, width=80).print(drawn(chosen))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        for entry in chosen:
            assert any(entry.address in line for line in lines)
