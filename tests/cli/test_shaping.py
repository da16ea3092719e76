"""`mailerd shaping`, with a real name server."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.cli.conftest import document
from tests.support.dns_server import DnsServer
from tests.support.live import Finished, command

MINE = """\
providers:
  mine:
    match: {mx: [mx.mine.example]}
    source: a letter
    date: 2026-11-01
    per_path: {connections: 3}
    rules:
      - {id: stop, match: stop it, effect: pause, for: 1h, samples: [421 stop it]}
"""


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        server.add("mine.example", "MX", "10 a.mx.mine.example.", "20 b.mx.mine.example.")
        server.add("other.example", "MX", "10 a.mx.mine.example.", "20 mx.other.example.")
        server.misbehave("broken.example", "servfail")
        yield server


@pytest.fixture
def shaping(tmp_path: Path, dns: DnsServer):
    (tmp_path / "mine.yaml").write_text(MINE)
    config = tmp_path / "mailerd.yaml"
    config.write_text(
        f"resolver: {{nameservers: ['{dns.address}'], timeout: 1s}}\nshaping: {{files: [builtin, mine.yaml]}}\n"
    )

    async def shaping(*arguments: str) -> Finished:
        return await asyncio.to_thread(command, "shaping", *arguments, "--config", str(config))

    return shaping


async def test_good_rules_pass(shaping):
    done = await shaping("lint")
    assert (done.status, done.out) == (0, "")
    assert "Nothing is doubtful" in done.err
    assert document(await shaping("lint", "--json")) == {"ok": True, "findings": []}


async def test_doubts_are_told_with_file_and_line(shaping, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE.replace("421 stop it", "421 go on"))
    done = await shaping("lint")
    assert done.status == os.EX_CONFIG
    assert done.out.startswith(f"{tmp_path / 'mine.yaml'}:8: error: mine stop: sample '421 go on' does not match")
    assert "1 error, 0 warnings" in done.err


async def test_warnings_alone_do_not_fail(shaping, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE.replace("    source: a letter\n", ""))
    done = await shaping("lint", "--json")
    assert done.status == 0
    assert [each["severity"] for each in document(done)["findings"]] == ["warning"]


async def test_what_cannot_be_loaded_is_a_finding_too(shaping, tmp_path):
    (tmp_path / "mine.yaml").write_text("providers: {gogle: {per_path: {connections: 3}}}")
    done = await shaping("lint", "--json")
    assert done.status == os.EX_CONFIG
    (finding,) = document(done)["findings"]
    assert finding["place"] == f"{tmp_path / 'mine.yaml'}:1"
    assert "did you mean google?" in finding["text"]


async def test_a_file_can_be_linted_before_it_is_configured(shaping, tmp_path):
    (tmp_path / "new.yaml").write_text("providers: {google: {per_path: {connections: 30}}}")
    done = await shaping("lint", str(tmp_path / "new.yaml"), "--json")
    assert "per_path.connections never binds" in document(done)["findings"][0]["text"]
    absent = await shaping("lint", str(tmp_path / "absent.yaml"))
    assert (absent.status, "cannot be read" in absent.out) == (os.EX_CONFIG, True)


async def test_a_reply_can_be_tried_at_a_provider(shaping, tmp_path):
    told = document(await shaping("test", "421 Stop it", "--provider", "mine", "--json"))
    assert (told["rule"], told["effect"], told["seconds"], told["scope"]) == ("stop", "pause", 3600.0, "source")
    assert told["place"] == f"{tmp_path / 'mine.yaml'}:8"
    people = (await shaping("test", "421 Stop it", "--provider", "mine")).out
    assert "pause: nothing is sent for 1 h, this source at the whole provider" in people


async def test_a_reply_can_be_tried_as_if_it_came_from_a_domain(shaping):
    assert document(await shaping("test", "421 stop it", "--domain", "mine.example", "--json"))["provider"] == "mine"
    other = document(await shaping("test", "421 stop it", "--domain", "other.example", "--json"))
    assert (other["provider"], other["rule"]) == ("default", "")
    assert (await shaping("test", "421 stop it", "--domain", "broken.example")).status == os.EX_TEMPFAIL
    assert (await shaping("test", "421 stop it", "--domain", "absent.example")).status == os.EX_UNAVAILABLE


async def test_a_reply_shows_its_class_and_what_it_teaches(shaping):
    told = document(await shaping("test", "452 4.5.3 too many recipients (limit 25)", "--stage", "rcpt", "--json"))
    assert (told["kind"], told["rule"]) == ("too_many_recipients", "")
    assert (told["learnt"], told["learnt_limit"]) == ("recipients_per_transaction", 25)
    assert document(await shaping("test", "250 2.0.0 too many connections", "--json"))["learnt"] == ""


@pytest.mark.parametrize("wrong", [["42"], ["421 x", "--provider", "nobody"], ["421 x", "--domain", "a..b"]])
async def test_what_makes_no_sense_is_refused(shaping, wrong):
    assert (await shaping("test", *wrong)).status == os.EX_USAGE


async def test_a_line_of_a_longer_reply_can_be_tried_as_logs_show_it(shaping):
    told = document(await shaping("test", "421-Stop it", "--provider", "mine", "--json"))
    assert told["rule"] == "stop"


async def test_a_stage_that_there_is_not_is_a_matter_of_usage(shaping):
    done = await shaping("test", "421 stop it", "--stage", "dta")
    assert (done.status, "there is no stage 'dta'" in done.err) == (os.EX_USAGE, True)


async def test_a_shaping_file_that_is_missing_is_told_with_the_line_that_names_it(shaping, tmp_path):
    (tmp_path / "mine.yaml").unlink()
    done = await shaping("test", "421 stop it")
    assert done.status == os.EX_CONFIG
    assert f"{tmp_path / 'mailerd.yaml'}:2: shaping.files[1]: {tmp_path / 'mine.yaml'} cannot be read" in done.err
