"""Which of our addresses a message leaves from."""

from collections import Counter
from pathlib import Path

import pytest

from mailerd.config import Config, IpAddress, Pool, PoolSource
from mailerd.config import Source as Settings
from mailerd.delivery.routing import Host
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
        "six": Settings(address=IpAddress("2001:db8::9")),
    },
    pools={
        "default": Pool(),
        "one": Pool(sources=(PoolSource("a"),)),
        "two": Pool(sources=(PoolSource("a", weight=3), PoolSource("b", weight=1), PoolSource("c", weight=0))),
        "both": Pool(sources=(PoolSource("a"), PoolSource("six"))),
    },
)


def names(sources: Sources, pool: str, message_id: int, *hosts: Host, avoided: str = "") -> list[str]:
    return [source.name for source in sources.choose(pool, message_id, hosts, lambda source: source.name == avoided)]


def test_a_pool_without_sources_leaves_the_address_to_the_system() -> None:
    assert Sources(CONFIG).choose("default", 1, ()) == [Source("", None, "mail.example.com")]


def test_sources_are_first_for_the_share_of_their_weight() -> None:
    sources = Sources(CONFIG)
    first = Counter(names(sources, "two", 7_000_000_000 + number * 4096)[0] for number in range(4_000))
    assert set(first) == {"a", "b"}
    assert 0.72 < first["a"] / 4_000 < 0.78


def test_a_message_has_the_same_source_first_at_every_try_and_all_others_behind_it() -> None:
    sources = Sources(CONFIG)
    for number in range(50):
        order = names(sources, "two", number)
        assert order == names(sources, "two", number)
        assert sorted(order) == ["a", "b"]


def test_a_source_that_is_avoided_or_reaches_no_host_comes_last() -> None:
    sources = Sources(CONFIG)
    only_six = Host("mx6.example", "2001:db8::1", 25)
    for number in range(20):
        assert names(sources, "two", number, avoided="a") == ["b", "a"]
        assert names(sources, "both", number, only_six)[0] == "six"
        assert names(sources, "both", number, Host("mx.example", "192.0.2.1", 25))[0] == "a"


def test_a_source_that_fails_is_out_of_its_pools_until_it_is_right_again() -> None:
    failing: dict[str, str] = {}
    sources = Sources(CONFIG, lambda: failing)
    assert sources.pools() == ["default", "one", "two", "both"]
    failing["a"] = "listed"
    assert {names(sources, "two", number)[0] for number in range(50)} == {"b"}
    assert sources.choose("one", 1, ()) == sources.of("one") == []
    assert sources.pools() == ["default", "two", "both"]
    assert sources.why_not("one") == "no source of pool one may be used here: a: listed"
    failing.clear()
    assert names(sources, "one", 1) == ["a"]


def test_a_source_without_weight_sends_nothing() -> None:
    assert all("c" not in names(Sources(CONFIG), "two", number) for number in range(50))


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
