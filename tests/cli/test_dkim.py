"""`mailerd dkim`: keys on disk and records in a real name server."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.cli.conftest import document, lines
from tests.support.dns_server import DnsServer
from tests.support.live import Finished, command


class Site:
    """A configuration with one domain; no daemon is needed for keys."""

    def __init__(self, directory: Path, nameserver: str) -> None:
        self.file = directory / "mailerd.yaml"
        self.directory = directory
        self.nameserver = nameserver
        self.configure("domains: {}\n")

    def configure(self, domains: str) -> None:
        self.file.write_text(
            f"data_dir: {self.directory}\nresolver: {{nameservers: ['{self.nameserver}'], timeout: 1s}}\n{domains}"
        )

    async def command(self, *arguments: str) -> Finished:
        return await asyncio.to_thread(command, "dkim", *arguments, "--config", str(self.file))


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
def site(tmp_path, dns) -> Site:
    return Site(tmp_path, dns.address)


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
async def test_a_new_key_comes_with_its_record_and_its_configuration_and_checks_out(site, dns, kind):
    made = document(await site.command("generate", "Bücher.example", "--kind", kind, "--selector", "s1", "--json"))
    key = Path(made["key_file"])
    assert key.is_relative_to(site.directory)
    assert key.stat().st_mode & 0o777 == 0o600
    site.configure(made["configuration"])

    missing = await site.command("check")
    assert missing.status == 1
    assert "missing" in missing.out

    [shown] = lines(await site.command("show", "--json"))
    dns.add(shown["record_name"], "TXT", *_strings(made["record"]))
    good = await site.command("check", "bücher.example", "--json")
    assert good.status == 0
    assert [(each["selector"], each["state"]) for each in lines(good)] == [("s1", "ok")]
    assert made["record"] in (await site.command("show")).out


def _strings(record: str) -> list[str]:
    """The strings of a zone line as one rdata text."""
    return [record.partition("( ")[2].rpartition(" )")[0]]


async def test_a_key_is_never_overwritten(site):
    first = await site.command("generate", "example.com", "--selector", "s1")
    assert first.status == 0
    content = (site.directory / "dkim/example.com/s1.pem").read_bytes()
    again = await site.command("generate", "example.com", "--selector", "s1")
    assert again.status == os.EX_CANTCREAT
    assert "is not overwritten" in again.err
    assert "- {selector: s1, key_file: dkim/example.com/s1.pem}" in again.err
    assert (site.directory / "dkim/example.com/s1.pem").read_bytes() == content


async def test_the_next_key_stands_before_the_old_one(site):
    site.configure(
        document(await site.command("generate", "example.com", "--selector", "s1", "--json"))["configuration"]
    )
    turned = document(await site.command("rotate", "EXAMPLE.com", "--kind", "ed25519", "--json"))
    site.configure(turned["configuration"])
    shown = lines(await site.command("show", "--json"))
    assert [each["selector"] for each in shown] == [turned["selector"], "s1"]


async def test_dns_that_does_not_answer_is_told_apart_from_a_missing_record(site, dns):
    site.configure(
        document(await site.command("generate", "example.com", "--selector", "s1", "--json"))["configuration"]
    )
    dns.misbehave("s1._domainkey.example.com", "servfail")
    done = await site.command("check")
    assert done.status == os.EX_TEMPFAIL
    assert "unknown" in done.out


async def test_a_key_that_is_not_configured_yet_is_named_with_the_lines_to_write(site):
    await site.command("generate", "example.com", "--selector", "s1")
    for asked in ("rotate", "check"):
        done = await site.command(asked, "example.com")
        assert done.status == os.EX_CONFIG
        assert "- {selector: s1, key_file: dkim/example.com/s1.pem}" in done.err
        assert "generate" not in done.err


async def test_what_is_not_configured_or_not_readable_is_told(site):
    assert (await site.command("rotate", "example.com")).status == os.EX_CONFIG
    site.configure("domains: {example.com: {dkim: [{selector: a, key_file: none.pem}]}}\n")
    done = await site.command("show")
    assert done.status == os.EX_CONFIG
    assert "none.pem" in done.err
    assert "Traceback" not in done.err
