"""`mailerd explain-route`, with a real name server."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.cli.conftest import document
from tests.support.dns_server import DnsServer
from tests.support.live import Finished, command


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        server.add("example.com", "MX", "20 backup.example.com.", "10 mx.example.com.")
        server.add("mx.example.com", "A", "192.0.2.1", "127.0.0.9")
        server.add("backup.example.com", "A", "93.184.216.34")
        server.add("mx.example.com", "A", "93.184.216.33")
        server.add("private.example", "MX", "10 mx.private.example.")
        server.add("mx.private.example", "A", "10.1.2.3")
        server.add("null.example", "MX", "0 .")
        server.add("plain.example", "A", "93.184.216.35")
        server.misbehave("broken.example", "servfail")
        yield server


@pytest.fixture
def explain(tmp_path: Path, dns: DnsServer):
    file = tmp_path / "mailerd.yaml"
    file.write_text(
        f"hostname: mail.test\nresolver: {{nameservers: ['{dns.address}'], timeout: 1s}}\n"
        "routes:\n"
        "  - {match: {stream: marketing, domain: '*.corp.example'}, hosts: ['127.0.0.1:2600']}\n"
        "  - match: {sender: news.example}\n"
        "    hosts: ['127.0.0.1:2601', 'plain.example:26']\n"
        "    tls: required\n"
        "    auth: {username: relay, password: secret-word}\n"
    )

    async def explain(*arguments: str) -> Finished:
        return await asyncio.to_thread(command, "explain-route", *arguments, "--config", str(file))

    return explain


async def test_direct_mail_goes_to_the_mx_hosts_in_their_order(explain):
    done = await explain("ann@Example.com", "--json")
    told = document(done)
    assert done.status == 0
    assert told["rule"] is None
    assert [(each["preference"], each["name"]) for each in told["exchangers"]] == [
        (10, "mx.example.com"),
        (20, "backup.example.com"),
    ]
    assert [host["address"] for host in told["hosts"]] == ["93.184.216.33", "93.184.216.34"]
    assert (told["tls"], told["refusal"]) == ("opportunistic", None)
    people = (await explain("example.com")).out
    assert "none: direct to MX" in people
    assert "93.184.216.34" in people


async def test_a_rule_is_named_with_its_place_and_without_its_password(explain):
    done = await explain("ann@example.com", "--sender", "boss@news.example", "--json")
    told = document(done)
    assert told["rule"]["number"] == 1
    assert told["rule"]["line"] == 5
    assert told["rule"]["text"] == "sender news.example"
    assert [(host["address"], host["port"]) for host in told["hosts"]] == [("127.0.0.1", 2601), ("93.184.216.35", 26)]
    assert (told["tls"], told["username"]) == ("required", "relay")
    people = (await explain("ann@example.com", "--sender", "boss@news.example")).out
    assert "mailerd.yaml:5 (sender news.example)" in people
    assert "secret-word" not in done.out + people


async def test_stream_and_domain_choose_the_rule_too(explain):
    assert document(await explain("a@x.corp.example", "--stream", "marketing", "--json"))["rule"]["line"] == 4


async def test_a_domain_without_mx_is_its_own_host(explain):
    told = document(await explain("plain.example", "--json"))
    assert told["mx"] == "no MX"
    assert [host["name"] for host in told["hosts"]] == ["plain.example"]


@pytest.mark.parametrize(
    ("domain", "status", "enhanced", "word"),
    [
        ("null.example", os.EX_UNAVAILABLE, "5.1.10", "null MX"),
        ("missing.example", os.EX_UNAVAILABLE, "5.1.2", "no such domain"),
        ("private.example", os.EX_UNAVAILABLE, "5.4.4", "delivery.allow_private"),
        ("broken.example", os.EX_TEMPFAIL, "4.4.3", "SERVFAIL"),
    ],
)
async def test_what_would_be_refused_is_told_with_the_reason(explain, domain, status, enhanced, word):
    done = await explain(f"ann@{domain}", "--json")
    assert done.status == status
    assert document(done)["refusal"]["enhanced"] == enhanced
    people = await explain(domain)
    assert people.status == status
    assert enhanced in people.out
    assert word in people.out
