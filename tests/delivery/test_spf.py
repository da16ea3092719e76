"""SPF asked of a real name server: results, the limits of RFC 7208, and failures of DNS."""

import pytest

from mailerd import config
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.spf import Result, check_host
from tests.support.dns_server import DnsServer


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def check(dns):
    resolver = Resolver(config.Resolver(nameservers=(dns.address,), timeout=config.values.Duration(2)))

    async def check(domain, address="192.0.2.3"):
        return await check_host(resolver, address, domain, sender=f"postmaster@{domain}", helo="mail.example.com")

    yield check
    await resolver.close()


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", Result.PASS),
        ("v=spf1 ip4:198.51.100.0/24 -all", Result.FAIL),
        ("v=spf1 ~all", Result.SOFTFAIL),
        ("v=spf1 ?all", Result.NEUTRAL),
        ("v=spf1", Result.NEUTRAL),
        ("v=spf1 a -all", Result.PASS),
        ("v=spf1 a:other.example/24 -all", Result.PASS),
        ("v=spf1 a:other.example -all", Result.FAIL),
        ("v=spf1 mx -all", Result.PASS),
        ("v=spf1 ptr:example.com -all", Result.PASS),
        ("v=spf1 include:included.example -all", Result.PASS),
        ("v=spf1 include:fails.example ~all", Result.SOFTFAIL),
        ("v=spf1 redirect=included.example", Result.PASS),
        ("v=spf1 exists:%{ir}.known.example -all", Result.PASS),
        ("v=spf1 include:missing.example -all", Result.PERMERROR),
        ("v=spf1 redirect=missing.example", Result.PERMERROR),
        ("v=spf1 include:itself.example -all", Result.PERMERROR),
        ("v=spf1 nonsense -all", Result.PERMERROR),
        ("v=spf1 a:broken.example -all", Result.TEMPERROR),
        ("v=spf1 ip4:192.0.2.3 a:broken.example -all", Result.PASS),
        ("google-site-verification=1", Result.NONE),
    ],
)
async def test_the_record_decides(dns, check, record, result):
    dns.add("example.com", "TXT", f'"{record}"')
    dns.add("example.com", "A", "192.0.2.3")
    dns.add("example.com", "MX", "10 mx.example.com.", "20 other.example.")
    dns.add("mx.example.com", "A", "192.0.2.3")
    dns.add("3.2.0.192.in-addr.arpa", "PTR", "mx.example.com.")
    dns.add("other.example", "A", "192.0.2.9")
    dns.add("included.example", "TXT", '"v=spf1 ip4:192.0.2.3 -all"')
    dns.add("fails.example", "TXT", '"v=spf1 -all"')
    dns.add("itself.example", "TXT", '"v=spf1 include:itself.example -all"')
    dns.add("3.2.0.192.known.example", "A", "127.0.0.2")
    dns.misbehave("broken.example", "servfail")

    assert (await check("example.com")).result is result


async def test_ipv6_addresses_are_compared_with_what_is_of_their_family(dns, check):
    dns.add("example.com", "TXT", '"v=spf1 ip4:0.0.0.0/0 a//64 -all"')
    dns.add("example.com", "AAAA", "2001:db8::1")

    assert (await check("example.com", "2001:db8::2")).result is Result.PASS
    assert (await check("example.com", "2001:db8:1::2")).result is Result.FAIL
    assert (await check("example.com", "::ffff:192.0.2.3")).result is Result.PASS


async def test_two_records_are_one_too_many(dns, check):
    dns.add("example.com", "TXT", '"v=spf1 ip4:192.0.2.3 -all"', '"v=spf1 mx -all"', '"something else"')

    answer = await check("example.com")
    assert answer.result is Result.PERMERROR
    assert "2 SPF records" in answer.text


async def test_the_eleventh_lookup_is_one_too_many(dns, check):
    names = [f"a{n}.example" for n in range(11)]
    for name in names:
        dns.add(name, "A", "198.51.100.1")
    dns.add("ten.example", "TXT", f'"v=spf1 {" ".join(f"a:{name}" for name in names[:10])} ip4:192.0.2.3 -all"')
    dns.add("eleven.example", "TXT", f'"v=spf1 {" ".join(f"a:{name}" for name in names)} ip4:192.0.2.3 -all"')

    assert (await check("ten.example")).result is Result.PASS
    answer = await check("eleven.example")
    assert answer.result is Result.PERMERROR
    assert "more than 10 lookups" in answer.text


async def test_the_third_name_that_does_not_exist_is_one_too_many(dns, check):
    dns.add("two.example", "TXT", '"v=spf1 a:no1.example a:no2.example ip4:192.0.2.3 -all"')
    dns.add("three.example", "TXT", '"v=spf1 a:no1.example a:no2.example a:no3.example ip4:192.0.2.3 -all"')

    assert (await check("two.example")).result is Result.PASS
    assert (await check("three.example")).result is Result.PERMERROR


async def test_a_domain_without_answer_is_not_judged(dns, check):
    dns.misbehave("example.com", "servfail")

    assert (await check("example.com")).result is Result.TEMPERROR
