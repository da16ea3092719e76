"""`mailerd verdicts`."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.cli.conftest import document
from tests.support.live import Finished, command

MINE = """\
rules:
  - {id: mine, class: policy, match: [wibble], samples: [550 wibble]}
"""


@pytest.fixture
def verdicts(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(MINE)
    config = tmp_path / "mailerd.yaml"
    config.write_text("verdicts: {files: [builtin, mine.yaml]}\n")

    async def verdicts(*arguments: str) -> Finished:
        return await asyncio.to_thread(command, "verdicts", *arguments, "--config", str(config))

    return verdicts


async def test_good_rules_pass(verdicts):
    done = await verdicts("lint")
    assert (done.status, done.out) == (0, "")
    assert document(await verdicts("lint", "--json")) == {"ok": True, "findings": []}


async def test_doubts_are_told_with_file_and_line(verdicts, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE.replace("550 wibble", "550 wobble"))
    done = await verdicts("lint")
    assert done.status == os.EX_CONFIG
    assert done.out.startswith(f"{tmp_path / 'mine.yaml'}:2: error: mine: sample '550 wobble' does not fit it")


async def test_what_cannot_be_loaded_is_a_finding_too(verdicts, tmp_path):
    (tmp_path / "new.yaml").write_text("rules: [{id: a, class: nonsense, match: [x]}]")
    done = await verdicts("lint", str(tmp_path / "new.yaml"), "--json")
    assert done.status == os.EX_CONFIG
    assert document(done)["findings"][0]["place"] == f"{tmp_path / 'new.yaml'}:1"


async def test_a_reply_can_be_tried(verdicts, tmp_path):
    told = document(await verdicts("test", "550 5.1.1 no such user", "--json"))
    assert told["place"].startswith("mailerd/verdicts.yaml:")
    del told["place"]
    assert told == {
        "kind": "invalid_recipient",
        "outcome": "bounced",
        "permanent": True,
        "blame": "recipient",
        "action": "suppress",
        "rule": "no-such-recipient",
    }
    told = document(await verdicts("test", "550 5.1.1 wibble", "--json"))
    assert (told["kind"], told["rule"], told["place"]) == ("policy", "mine", f"{tmp_path / 'mine.yaml'}:2")
    assert document(await verdicts("test", "451 4.7.1 greylisted", "--json"))["kind"] == "greylisted"
    assert "mailbox_full" in (await verdicts("test", "--report", "Das Postfach des Empfängers ist voll")).out


async def test_what_cannot_be_tried_is_a_usage_error(verdicts):
    assert (await verdicts("test", "550 x", "--stage", "somewhere")).status == os.EX_USAGE
    assert (await verdicts("test", "550 x", "--stage", "rcpt", "--report")).status == os.EX_USAGE
    words = await verdicts("test", "hello")
    assert (words.status, "--report" in words.err) == (os.EX_USAGE, True)


async def test_classes_are_listed(verdicts):
    rows = {row["kind"]: row for row in document(await verdicts("classes", "--json"))["classes"]}
    assert (rows["mailbox_full"]["blame"], rows["mailbox_full"]["action"]) == ("recipient", "count")
    assert (rows["greylisted"]["may_be_permanent"], rows["invalid_recipient"]["may_be_permanent"]) == (False, True)
    listed = (await verdicts("classes")).out
    assert "domain_block" in listed
    assert "may be permanent" in listed
