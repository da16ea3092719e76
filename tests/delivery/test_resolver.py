"""The resolver against a real name server on the loopback interface."""

import asyncio
import socket

import pytest

from mailerd import config
from mailerd.delivery.resolver import (
    MAX_NEGATIVE_TTL,
    MAX_RECORDS,
    Failed,
    Found,
    Mx,
    NameServer,
    NoData,
    NoDomain,
    Resolver,
    parse_nameserver,
    system_nameservers,
)
from tests.support.dns_server import DnsServer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def resolver(dns, clock):
    resolver = Resolver(settings(dns.address), clock=clock)
    yield resolver
    await resolver.close()


@pytest.fixture
async def hasty(dns, clock):
    """A resolver that gives up soon, for name servers that keep silent."""
    resolver = Resolver(settings(dns.address, timeout=0.4), clock=clock)
    yield resolver
    await resolver.close()


def settings(*nameservers, timeout=5, **more):
    return config.Resolver(nameservers=nameservers, timeout=config.Duration(timeout), **more)


@pytest.fixture
def silent_port():
    """A UDP port where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_mail_exchangers_come_sorted_by_preference_and_in_lower_case(dns, resolver):
    dns.add("example.com", "MX", "20 B.Example.com.", "10 c.example.com.", "20 a.example.com.")
    answer = await resolver.mx("example.com")
    assert answer.records == (Mx(10, "c.example.com"), Mx(20, "a.example.com"), Mx(20, "b.example.com"))


async def test_addresses_of_both_families_and_texts_are_found(dns, resolver):
    dns.add("mx.example.com", "A", "127.0.0.2", "127.0.0.3")
    dns.add("mx.example.com", "AAAA", "::1")
    dns.add("s1._domainkey.example.com", "TXT", '"v=DKIM1; " "p=abc"')
    assert set((await resolver.a("mx.example.com")).records) == {"127.0.0.2", "127.0.0.3"}
    assert (await resolver.aaaa("mx.example.com")).records == ("::1",)
    assert (await resolver.txt("s1._domainkey.example.com")).records == ("v=DKIM1; p=abc",)


async def test_a_null_mx_has_the_empty_name(dns, resolver):
    dns.add("example.com", "MX", "0 .")
    assert (await resolver.mx("example.com")).records == (Mx(0, ""),)


async def test_the_four_kinds_of_no_are_told_apart(dns, hasty):
    dns.add("here.example", "A", "127.0.0.2")
    dns.misbehave("broken.example", "servfail")
    dns.misbehave("silent.example", "drop")
    assert isinstance(await hasty.mx("here.example"), NoData)
    assert isinstance(await hasty.mx("nowhere.example"), NoDomain)
    servfail, timeout = await hasty.mx("broken.example"), await hasty.mx("silent.example")
    assert (servfail.kind, timeout.kind) == ("dns_servfail", "dns_timeout")
    assert servfail.text == f"{dns.address} answered SERVFAIL"
    assert timeout.text == f"no answer from {dns.address}"


async def test_the_case_and_the_final_dot_of_a_name_do_not_matter(dns, resolver):
    dns.add("example.com", "A", "127.0.0.2")
    await resolver.a("Example.COM.")
    await resolver.a("example.com")
    assert dns.asked("example.com", "A") == 1


async def test_an_internationalised_name_is_asked_for_in_a_labels(dns, resolver):
    dns.add("xn--bcher-kva.example", "A", "127.0.0.2")
    assert (await resolver.a("bücher.example")).records == ("127.0.0.2",)


@pytest.mark.parametrize("name", ["a..example", "x" * 64 + ".example", ".".join(["abcdefgh"] * 40), "xn--a.example"])
async def test_a_name_that_cannot_exist_does_not_exist(resolver, name):
    assert isinstance(await resolver.a(name), NoDomain)


# -- CNAMEs --


async def test_a_cname_is_followed(dns, resolver):
    dns.add("www.example.com", "CNAME", "mx.example.com.", ttl=30)
    dns.add("mx.example.com", "A", "127.0.0.2")
    assert (await resolver.a("www.example.com")).records == ("127.0.0.2",)


async def test_a_chain_that_a_name_server_does_not_finish_is_asked_on(dns, resolver):
    for n in range(4):
        dns.add(f"c{n}.example.com", "CNAME", f"c{n + 1}.example.com.")
        dns.misbehave(f"c{n}.example.com", "bare_cname")
    dns.add("c4.example.com", "A", "127.0.0.2")
    assert (await resolver.a("c0.example.com")).records == ("127.0.0.2",)


@pytest.mark.parametrize("bare", [True, False])
async def test_a_loop_of_cnames_fails_for_now(dns, resolver, bare):
    for here, there in (("a", "b"), ("b", "c"), ("c", "a")):
        dns.add(f"{here}.example.com", "CNAME", f"{there}.example.com.")
        if bare:
            dns.misbehave(f"{here}.example.com", "bare_cname")
    answer = await resolver.a("a.example.com")
    assert isinstance(answer, Failed)
    assert answer.kind == "dns_servfail"
    assert sum(dns.queries.values()) <= 3


@pytest.mark.parametrize("bare", [True, False])
async def test_an_endless_chain_of_cnames_is_given_up(dns, resolver, bare):
    for n in range(40):
        dns.add(f"c{n}.example.com", "CNAME", f"c{n + 1}.example.com.")
        if bare:
            dns.misbehave(f"c{n}.example.com", "bare_cname")
    dns.add("c40.example.com", "A", "127.0.0.2")
    assert isinstance(await resolver.a("c0.example.com"), Failed)
    assert sum(dns.queries.values()) <= 8


async def test_a_cname_to_nowhere_is_no_domain_and_one_to_a_name_without_the_type_is_no_data(dns, resolver):
    dns.add("dead.example.com", "CNAME", "nowhere.example.com.")
    dns.add("half.example.com", "CNAME", "mx.example.com.")
    dns.add("mx.example.com", "A", "127.0.0.2")
    assert isinstance(await resolver.a("dead.example.com"), NoDomain)
    assert isinstance(await resolver.aaaa("half.example.com"), NoData)


# -- large, wrong and hostile answers --


async def test_of_five_hundred_mail_exchangers_the_most_preferred_are_kept_and_tcp_carries_them(dns, resolver):
    dns.add("example.com", "MX", *(f"{n} mx{n}.example.com." for n in range(500, 0, -1)))
    answer = await resolver.mx("example.com")
    assert [mx.preference for mx in answer.records] == list(range(1, MAX_RECORDS + 1))
    assert dns.tcp_queries == 1


async def test_a_truncated_answer_is_asked_for_again_over_tcp(dns, resolver):
    dns.add("example.com", "A", "127.0.0.2")
    dns.misbehave("example.com", "truncate")
    assert (await resolver.a("example.com")).records == ("127.0.0.2",)
    assert dns.tcp_queries == 1


@pytest.mark.parametrize("mode", ["malformed", "wrong_id"])
async def test_an_answer_that_does_not_fit_the_question_is_ignored(dns, hasty, mode):
    dns.add("example.com", "A", "127.0.0.66")
    dns.misbehave("example.com", mode)
    answer = await hasty.a("example.com")
    assert isinstance(answer, Failed)
    assert answer.kind == "dns_timeout"


async def test_a_malformed_answer_over_tcp_fails(dns, resolver):
    dns.misbehave("example.com", "malformed_tcp")
    assert isinstance(await resolver.a("example.com"), Failed)


# -- several name servers --


@pytest.mark.parametrize("mode", ["servfail", "refused", "drop", "malformed"])
async def test_the_next_name_server_is_asked_when_one_fails(dns, clock, mode):
    async with DnsServer() as second:
        dns.misbehave("example.com", mode)
        second.add("example.com", "A", "127.0.0.2")
        resolver = Resolver(settings(dns.address, second.address, timeout=3), clock=clock)
        assert (await resolver.a("example.com")).records == ("127.0.0.2",)


async def test_a_name_server_that_is_not_there_is_passed_over_at_once(dns, clock, silent_port):
    dns.add("example.com", "A", "127.0.0.2")
    resolver = Resolver(settings(silent_port, dns.address, timeout=60), clock=clock)
    async with asyncio.timeout(60):
        assert (await resolver.a("example.com")).records == ("127.0.0.2",)


async def test_no_name_server_at_all_is_a_timeout_that_says_so(clock, silent_port):
    answer = await Resolver(settings(silent_port, timeout=0.4), clock=clock).a("example.com")
    assert isinstance(answer, Failed)
    assert answer.kind == "dns_timeout"
    assert answer.text == f"no answer from {silent_port}: Connection refused"


async def test_a_lost_packet_is_asked_for_again(dns, hasty):
    dns.add("example.com", "A", "127.0.0.2")
    dns.misbehave("example.com", "drop")
    lookup = asyncio.create_task(hasty.a("example.com"))
    while not dns.asked("example.com", "A"):
        await asyncio.sleep(0)
    dns.behave("example.com")
    assert isinstance(await lookup, Found)
    assert dns.asked("example.com", "A") == 2


async def test_one_lookup_ends_within_its_time_however_many_servers_are_silent(clock):
    async with DnsServer() as one, DnsServer() as two, DnsServer() as three:
        for server in (one, two, three):
            server.misbehave("example.com", "drop")
        resolver = Resolver(settings(one.address, two.address, three.address, timeout=0.3), clock=clock)
        async with asyncio.timeout(60):
            assert isinstance(await resolver.a("example.com"), Failed)
        assert [server.asked("example.com", "A") for server in (one, two, three)] == [2, 2, 2]


# -- the cache --


async def test_an_answer_is_kept_for_its_ttl(dns, resolver, clock):
    dns.add("example.com", "A", "127.0.0.2", ttl=120)
    await resolver.a("example.com")
    clock.now += 119
    await resolver.a("example.com")
    assert dns.asked("example.com", "A") == 1
    clock.now += 2
    dns.add("example.com", "A", "127.0.0.3")
    assert (await resolver.a("example.com")).records == ("127.0.0.3",)


async def test_the_shortest_ttl_of_a_chain_counts(dns, resolver, clock):
    dns.add("www.example.com", "CNAME", "mx.example.com.", ttl=30)
    dns.add("mx.example.com", "A", "127.0.0.2", ttl=3600)
    assert (await resolver.a("www.example.com")).expires == clock.now + 30


@pytest.mark.parametrize(("ttl", "kept"), [(0, 10), (10, 10), (60, 60), (100_000, 1_000)])
async def test_a_ttl_is_put_within_the_configured_bounds(dns, clock, ttl, kept):
    bounds = {"min_ttl": config.Duration(10), "max_ttl": config.Duration(1_000)}
    dns.add("example.com", "A", "127.0.0.2", ttl=ttl)
    answer = await Resolver(settings(dns.address, **bounds), clock=clock).a("example.com")
    assert answer.expires == clock.now + kept


@pytest.mark.parametrize(("minimum", "kept"), [(60, 60), (86_400, MAX_NEGATIVE_TTL)])
async def test_a_no_is_kept_as_long_as_the_soa_says_but_not_for_long(dns, resolver, clock, minimum, kept):
    dns.soa_minimum = minimum
    dns.add("example.com", "A", "127.0.0.2")
    for answer in (await resolver.a("nowhere.example"), await resolver.mx("example.com")):
        assert answer.expires == clock.now + min(kept, 3600)
    await resolver.a("nowhere.example")
    assert dns.asked("nowhere.example", "A") == 1


async def test_a_no_without_an_soa_is_kept_for_a_short_time(dns, resolver, clock):
    dns.misbehave("nowhere.example", "no_soa")
    answer = await resolver.a("nowhere.example")
    assert isinstance(answer, NoDomain)
    assert clock.now < answer.expires <= clock.now + MAX_NEGATIVE_TTL


async def test_a_failure_is_kept_for_seconds_only(dns, resolver, clock):
    dns.add("example.com", "A", "127.0.0.2")
    dns.misbehave("example.com", "servfail")
    assert isinstance(await resolver.a("example.com"), Failed)
    dns.behave("example.com")
    assert isinstance(await resolver.a("example.com"), Failed)
    clock.now += 6
    assert isinstance(await resolver.a("example.com"), Found)


async def test_the_cache_is_bounded_and_forgets_what_was_not_used(dns, clock):
    resolver = Resolver(settings(dns.address, cache=100), clock=clock)
    for n in range(150):
        dns.add(f"d{n}.example", "A", "127.0.0.2")
        await resolver.a(f"d{n}.example")
        await resolver.a("d0.example")
    await resolver.a("d149.example")
    assert dns.asked("d0.example", "A") == 1
    assert dns.asked("d149.example", "A") == 1
    await resolver.a("d1.example")
    assert dns.asked("d1.example", "A") == 2


async def test_identical_lookups_under_way_share_one_question(dns, resolver):
    dns.hold = asyncio.Event()
    dns.add("example.com", "A", "127.0.0.2")
    lookups = [asyncio.create_task(resolver.a("example.com")) for _ in range(50)]
    while not dns.asked("example.com", "A"):
        await asyncio.sleep(0)
    lookups[0].cancel()  # whoever gives up does not take the answer from the others
    dns.hold.set()
    answers = await asyncio.gather(*lookups[1:])
    assert {answer.records for answer in answers} == {("127.0.0.2",)}
    assert dns.asked("example.com", "A") == 1


async def test_a_thousand_lookups_at_once_are_all_answered(dns, clock):
    resolver = Resolver(settings(dns.address, timeout=30), clock=clock)
    for n in range(1_000):
        dns.add(f"d{n}.example", "A", "127.0.0.2")
    answers = await asyncio.gather(*(resolver.a(f"d{n}.example") for n in range(1_000)))
    assert all(isinstance(answer, Found) for answer in answers)


# -- configuration --


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("9.9.9.9", NameServer("9.9.9.9", 53)),
        ("127.0.0.1:5353", NameServer("127.0.0.1", 5353)),
        ("2620:fe::fe", NameServer("2620:fe::fe", 53)),
        ("[::1]:5353", NameServer("::1", 5353)),
        ("[::1]", NameServer("::1", 53)),
    ],
)
def test_a_name_server_is_an_address_with_or_without_a_port(text, server):
    assert parse_nameserver(text) == server
    assert parse_nameserver(str(server)) == server


@pytest.mark.parametrize(
    "text", ["", "dns.example.com", "9.9.9", "9.9.9.9:", "9.9.9.9:x", "9.9.9.9:0", "[::1]:99999", "[::1"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="is not a name server"):
        parse_nameserver(text)


def test_without_configuration_the_systems_name_servers_are_used():
    assert Resolver(config.Resolver()).nameservers == system_nameservers() != ()


class Forger(asyncio.DatagramProtocol):
    """Answers each question with these messages, one after the other; ID and QUESTION stand for those of the query."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        for answer in self._answers:
            self._transport.sendto(answer.replace(b"ID", data[:2]).replace(b"QUESTION", question), address)


RIGHT = b"ID\x81\x80\0\1\0\1\0\0\0\0QUESTION\xc0\x0c\0\1\0\1\0\0\1\0\0\4\x7f\0\0\2"


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"ID",
        b"ID\x81\x80\0\0\0\0\0\0\0\0",  # no question, no refusal
        b"ID\x01\x80\0\1\0\0\0\0\0\0QUESTION",  # a query
        b"ID\xa9\x80\0\1\0\0\0\0\0\0QUESTION",  # of another opcode
        b"ID\x81\x80\0\1\0\0\0\0\0\0\5other\7example\0\0\1\0\1",
        b"ID\x81\x80\0\1\0\1\0\0\0\0QUESTION\xc0\x0c\0\1",  # torn
    ],
)
async def test_what_is_no_answer_to_the_question_is_passed_over(clock, before):
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Forger(before, RIGHT), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    resolver = Resolver(config.Resolver(nameservers=(f"127.0.0.1:{port}",), timeout=config.Duration(2)), clock=clock)
    answer = await resolver.a("Example.com")
    assert isinstance(answer, Found)
    assert answer.records == ("127.0.0.2",)
    transport.close()


async def test_a_refusal_may_leave_the_question_out(clock):
    loop = asyncio.get_running_loop()
    refusal = b"ID\x81\x85\0\0\0\0\0\0\0\0"
    transport, _ = await loop.create_datagram_endpoint(lambda: Forger(refusal), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    resolver = Resolver(config.Resolver(nameservers=(f"127.0.0.1:{port}",), timeout=config.Duration(2)), clock=clock)
    answer = await resolver.a("example.com")
    assert isinstance(answer, Failed)
    assert answer.text.endswith("answered REFUSED")
    transport.close()


# -- whether DNSSEC is believed --


PROBE = "signed.example"


async def proving(dns, clock, **more):
    """A resolver whose name server validates, or says so."""
    dns.validates = True
    dns.add(PROBE, "SOA", "ns.example. host.example. 1 3600 600 86400 60")
    dns.add("example.com", "A", "127.0.0.2", ttl=3_600)
    return Resolver(settings(dns.address, timeout=0.4, dnssec_probe=PROBE, **more), clock=clock)


@pytest.mark.parametrize("mode", ["drop", "servfail"])
async def test_a_name_server_that_was_believed_stays_so_while_its_probe_fails(dns, clock, mode):
    resolver = await proving(dns, clock)
    assert (await resolver.a("example.com")).secure
    dns.misbehave(PROBE, mode)
    clock.now += 4_000
    assert (await resolver.a("example.com")).secure
    assert dns.asked(PROBE, "SOA") == 2
    await resolver.close()


async def test_a_name_server_that_no_longer_validates_is_not_believed(dns, clock):
    resolver = await proving(dns, clock)
    assert (await resolver.a("example.com")).secure
    dns.misbehave(PROBE, "nodata")
    clock.now += 4_000
    assert not (await resolver.a("example.com")).secure
    await resolver.close()


async def test_what_was_not_believed_is_asked_again_when_it_may_be(dns, clock):
    resolver = await proving(dns, clock)
    dns.misbehave(PROBE, "servfail")
    assert not (await resolver.a("example.com")).secure
    dns.behave(PROBE)
    clock.now += 31
    assert (await resolver.a("example.com")).secure
    await resolver.close()


async def test_where_dnssec_is_required_nothing_is_answered_that_may_have_been_forged(dns, clock):
    resolver = await proving(dns, clock, dnssec="require")
    dns.misbehave(PROBE, "servfail")
    answer = await resolver.a("example.com")
    assert (answer.kind, "required" in answer.text) == ("dns_servfail", True)
    dns.behave(PROBE)
    clock.now += 31
    assert (await resolver.a("example.com")).secure
    await resolver.close()


async def test_the_cache_is_bounded_in_bytes_too(dns, resolver, monkeypatch):
    monkeypatch.setattr("mailerd.delivery.resolver.MAX_CACHED", 100_000)
    text = " ".join(['"' + "x" * 250 + '"'] * 100)
    for n in range(10):
        dns.add(f"d{n}.example", "TXT", text)
        await resolver.txt(f"d{n}.example")
    await resolver.txt("d9.example")
    await resolver.txt("d0.example")
    asked = [dns.asked(name, "TXT") // 2 for name in ("d9.example", "d0.example")]  # by UDP, then by TCP
    assert asked == [1, 2]
