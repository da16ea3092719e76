"""What DNS and this host say of a source, and what is believed in the end."""

from datetime import UTC, datetime, timedelta

import pytest

from mailerd.config import parse
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.source_checks import Finding, SourceChecker, State, Verdict, settle
from tests.support.dns_server import DnsServer

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1::9"
REVERSE = "34.216.184.93.in-addr.arpa"
LISTED = "34.216.184.93.zen.example"
REVERSE_6 = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.2.2.0.0.0.8.2.6.0.6.2"
CONFIG = f"""
hostname: mail.test
sources:
  mta1: {{address: {PUBLIC}, ehlo: mta1.example.com}}
  six: {{address: "{PUBLIC_6}", ehlo: mta1.example.com}}
  private: {{address: 127.0.0.5}}
  nowhere: {{address: 203.0.113.77}}
  system: {{}}
domains: {{example.com: {{}}, example.org: {{}}}}
source_checks: {{lists: [{{zone: zen.example}}]}}
"""


@pytest.fixture
async def dns():
    """A source as it should be."""
    async with DnsServer() as server:
        server.add(REVERSE, "PTR", "other.example.com.", "MTA1.example.com.")
        server.add(f"{REVERSE_6}.ip6.arpa", "PTR", "mta1.example.com.")
        server.add("mta1.example.com", "A", "198.51.100.1", PUBLIC)
        server.add("mta1.example.com", "AAAA", PUBLIC_6)
        for domain in ("example.com", "example.org"):
            server.add(domain, "TXT", '"v=spf1 a:mta1.example.com -all"')
        yield server


@pytest.fixture
async def look(dns):
    """The verdicts of one look, by name of the check."""
    config = parse(CONFIG)
    resolvers = []

    async def look(source="mta1"):
        resolver = Resolver(config.resolver.__class__(nameservers=(dns.address,)))
        resolvers.append(resolver)
        return {finding.name: finding for finding in await SourceChecker(config, resolver).identity(source)}

    yield look
    for resolver in resolvers:
        await resolver.close()


def verdicts(findings):
    return {name: str(finding.verdict) for name, finding in findings.items()}


GOOD = {"ptr": "good", "ehlo": "good", "spf": "good", "zen.example": "good"}


@pytest.mark.parametrize("source", ["mta1", "six"])
async def test_a_source_as_it_should_be_passes_every_check(look, source):
    assert verdicts(await look(source)) == GOOD


@pytest.mark.parametrize("source", ["private", "system"])
async def test_dns_is_not_asked_about_addresses_that_nobody_sees(look, source):
    assert await look(source) == {}


async def test_an_address_without_a_name_is_bad(dns, look):
    dns.remove(REVERSE, "PTR")
    found = (await look())["ptr"]
    assert found.verdict is Verdict.BAD
    assert "no PTR record" in found.text


async def test_a_name_that_does_not_lead_back_is_bad(dns, look):
    dns.add(REVERSE, "PTR", "liar.example.com.")
    dns.add("liar.example.com", "A", "198.51.100.1")
    found = (await look())["ptr"]
    assert found.verdict is Verdict.BAD
    assert "liar.example.com" in found.text


async def test_an_ehlo_name_that_leads_elsewhere_is_bad_and_told_with_the_record_to_make(dns, look):
    dns.add("mta1.example.com", "A", "198.51.100.1")
    found = (await look())["ehlo"]
    assert found.verdict is Verdict.BAD
    assert "198.51.100.1" in found.text
    assert PUBLIC in found.text


async def test_the_spf_of_return_paths_counts_and_no_longer_that_of_their_domains(dns):
    more = "domains: {example.com: {return_path: bounce.example.com}}\ntenants: {acme: {return_path: b.acme.example}}"
    more += "\ninbound: {elsewhere: true}"
    config = parse(CONFIG.replace("domains: {example.com: {}, example.org: {}}", more))
    dns.add("example.com", "TXT", '"v=spf1 -all"')
    dns.add("bounce.example.com", "TXT", '"v=spf1 a:mta1.example.com -all"')
    dns.add("b.acme.example", "TXT", '"v=spf1 -all"')
    resolver = Resolver(config.resolver.__class__(nameservers=(dns.address,)))
    found = {finding.name: finding for finding in await SourceChecker(config, resolver).identity("mta1")}["spf"]
    await resolver.close()
    assert found.verdict is Verdict.BAD
    assert found.text.startswith("b.acme.example: fail")
    assert ";" not in found.text


async def test_one_domain_whose_spf_does_not_cover_the_source_is_named(dns, look):
    dns.add("example.org", "TXT", '"v=spf1 mx -all"')
    found = (await look())["spf"]
    assert found.verdict is Verdict.BAD
    assert "example.org: fail" in found.text
    assert "example.com:" not in found.text
    assert f"ip4:{PUBLIC}" in found.text


async def test_a_listing_is_bad_and_told_with_its_code_and_reason(dns, look):
    dns.add(LISTED, "A", "127.0.0.4")
    dns.add(LISTED, "TXT", '"see https://lists.example/lookup"')
    found = (await look())["zen.example"]
    assert found.verdict is Verdict.BAD
    assert "127.0.0.4" in found.text
    assert "https://lists.example/lookup" in found.text


async def test_an_ipv6_address_is_looked_up_in_lists_by_its_digits(dns, look):
    dns.add(f"{REVERSE_6}.zen.example", "A", "127.0.0.4")
    assert (await look("six"))["zen.example"].verdict is Verdict.BAD


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        (LISTED, "127.255.255.254", "refuses your name servers"),
        (LISTED, "198.51.100.7", "none of its codes"),
        ("1.0.0.127.zen.example", "127.0.0.2", "given up"),
    ],
)
async def test_a_list_that_refuses_or_is_dead_lists_nobody(dns, look, name, code, word):
    dns.add(LISTED, "A", "127.0.0.2")
    dns.add(name, "A", code)
    found = (await look())["zen.example"]
    assert found.verdict is Verdict.USELESS
    assert word in found.text


async def test_without_dns_nothing_is_known(dns, look):
    for name in (REVERSE, "mta1.example.com", "example.com", LISTED):
        dns.misbehave(name, "servfail")
    assert set(verdicts(await look()).values()) == {"unknown"}


def test_only_an_address_of_this_host_is_bound(dns):
    config = parse(CONFIG)
    checker = SourceChecker(config, Resolver(config.resolver))
    assert checker.bound("private").verdict is Verdict.GOOD
    assert checker.bound("system").verdict is Verdict.GOOD
    assert checker.bound("nowhere").verdict is Verdict.BAD
    assert "203.0.113.77" in checker.bound("nowhere").text


def believed(*verdicts, mode="act"):
    """The state after each of these findings, an hour apart."""
    check = None
    states = []
    for hour, verdict in enumerate(verdicts):
        check = settle("mta1", Finding("ptr", verdict, f"{verdict} {hour}"), mode, check, NOW + timedelta(hours=hour))
        states.append(str(check.state))
    return states, check


@pytest.mark.parametrize(
    ("seen", "states"),
    [
        ("good bad good", ["ok", "failing", "ok"]),
        ("unknown unknown bad", ["unknown", "unknown", "failing"]),
        ("bad unknown useless good", ["failing", "failing", "failing", "ok"]),
        ("good unknown unknown", ["ok", "ok", "ok"]),
        ("good useless unknown bad", ["ok", "warning", "warning", "failing"]),
    ],
)
def test_what_dns_does_not_tell_changes_nothing(seen, states):
    assert believed(*map(Verdict, seen.split()))[0] == states


def test_a_check_that_only_warns_never_fails():
    assert believed(Verdict.BAD, Verdict.UNKNOWN, mode="warn")[0] == ["warning", "warning"]


def test_a_check_that_acts_no_longer_lets_its_source_go_even_without_news():
    _, failing = believed(Verdict.BAD)
    after = settle("mta1", Finding("ptr", Verdict.UNKNOWN, "no answer"), "warn", failing, NOW)
    assert after.state is State.WARNING


def test_a_state_that_stays_keeps_its_reason_its_beginning_and_when_it_was_known():
    _, check = believed(Verdict.GOOD, Verdict.BAD, Verdict.BAD, Verdict.UNKNOWN, Verdict.UNKNOWN)
    assert check.since == NOW + timedelta(hours=1)
    assert check.checked_at == NOW + timedelta(hours=2)
    assert check.text == "bad 2; not known any better since: unknown 4"
