"""Which of our addresses a message leaves from."""

import random
from collections import Counter
from pathlib import Path

import pytest

from mailerd.config import Config, IpAddress, Pool, PoolSource
from mailerd.config import Source as Settings
from mailerd.delivery.sources import Source, Sources
from tests.support.dns_server import DnsServer
from tests.support.relay import relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx

CONFIG = Config(
    hostname="mail.example.com",
    sources={
        "a": Settings(address=IpAddress("127.0.0.51")),
        "b": Settings(address=IpAddress("127.0.0.52")),
        "c": Settings(),
    },
    pools={
        "default": Pool(),
        "one": Pool(sources=(PoolSource("a"),)),
        "two": Pool(sources=(PoolSource("a", weight=3), PoolSource("b", weight=1), PoolSource("c", weight=0))),
    },
)


def test_a_pool_without_sources_leaves_the_address_to_the_system() -> None:
    assert Sources(CONFIG).pick("default") == Source("", None, "mail.example.com")


def test_sources_get_the_share_of_their_weight() -> None:
    sources = Sources(CONFIG, random.Random(1))
    picks = Counter(sources.pick("two").name for _ in range(4000))
    assert set(picks) == {"a", "b"}
    assert 0.72 < picks["a"] / 4000 < 0.78


@pytest.mark.parametrize(
    ("ours", "theirs", "reaches"),
    [
        (None, "192.0.2.1", True),
        (None, "2001:db8::1", True),
        ("127.0.0.1", "192.0.2.1", True),
        ("127.0.0.1", "2001:db8::1", False),
        ("::1", "192.0.2.1", False),
        ("::1", "2001:db8::1", True),
    ],
)
def test_a_source_reaches_hosts_of_its_address_family(ours: str | None, theirs: str, reaches: bool) -> None:
    assert Source("s", ours, "x").reaches(theirs) is reaches


async def test_mail_leaves_from_the_addresses_of_its_pool(database: str, tmp_path: Path) -> None:
    sources = {
        "a": Settings(address=IpAddress("127.0.0.51"), ehlo="a.example.com"),  # type: ignore[arg-type]
        "b": Settings(address=IpAddress("127.0.0.52")),
    }
    pools = {"default": Pool(sources=(PoolSource("a"), PoolSource("b")))}
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        config = relay_config(tmp_path, dns, mx.port, sources=sources, pools=pools)
        async with running_relay(config, database) as relay:
            receipts = [await relay.submit(f"user{n}@example.net") for n in range(20)]
            await relay.settled()
            used = {(await relay.view(receipt)).attempts[0].source for receipt in receipts}
        assert used == {"a", "b"}
        assert set(mx.peers) == {"127.0.0.51", "127.0.0.52"}
        greeted = {command for command in mx.commands if command.startswith("EHLO")}
        assert greeted == {"EHLO a.example.com", "EHLO mail.sender.example"}


async def test_mail_for_hosts_that_the_source_cannot_reach_waits_with_that_reason(
    database: str, tmp_path: Path
) -> None:
    sources = {"six": Settings(address=IpAddress("::1"))}
    pools = {"default": Pool(sources=(PoolSource("six"),))}
    async with DnsServer() as dns:
        dns.add("four.example", "A", "127.0.0.2")
        async with running_relay(relay_config(tmp_path, dns, sources=sources, pools=pools), database) as relay:
            receipt = await relay.submit("ann@four.example")
            await relay.settled()
            recipient = (await relay.view(receipt)).recipients[0]
            assert recipient.state == "deferred"
            assert "no host of four.example has an address that six reaches" in recipient.last_reply
