"""SPF records: what is a record, which terms it has, what is wrong with it, and what macros stand for."""

import ipaddress
import time

import pytest

from mailerd.wire.spf import Macros, is_spf, parse_record

MACROS = Macros(ipaddress.ip_address("192.0.2.3"), "strong-bad@email.example.com", "mail.example.com")
MACROS_6 = Macros(ipaddress.ip_address("2001:db8::cb01"), "strong-bad@email.example.com", "mail.example.com")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("v=spf1", True), ("V=SPF1 -all", True), ("v=spf10", False), ("v=spf1mx -all", False), (" v=spf1 -all", False)],
)
def test_a_record_begins_with_its_version_and_nothing_else(text, is_one):
    assert is_spf(text) is is_one


def test_terms_have_qualifiers_domains_and_lengths():
    record = parse_record("v=spf1  A mx/24//64 ?a:foo.example/28 ip4:192.0.2.128/25 ~ip6:2001:db8::/32 -all")

    terms = [(term.qualifier, term.name, term.domain, term.lengths) for term in record.mechanisms]
    assert terms == [
        ("+", "a", "", (32, 128)),
        ("+", "mx", "", (24, 64)),
        ("?", "a", "foo.example", (28, 128)),
        ("+", "ip4", "", (32, 128)),
        ("~", "ip6", "", (32, 128)),
        ("-", "all", "", (32, 128)),
    ]
    assert [str(term.network) for term in record.mechanisms if term.network] == ["192.0.2.128/25", "2001:db8::/32"]


def test_modifiers_are_told_apart_from_mechanisms_and_unknown_ones_are_left():
    record = parse_record("v=spf1 redirect=_spf.example.com exp=why.example.com moo.cow-far_out=man:dog/cat")

    assert record.mechanisms == ()
    assert record.redirect == "_spf.example.com"


@pytest.mark.parametrize(
    "term",
    [
        "moo",
        "all.",
        "all:example.com",
        "all/8",
        "include",
        "include:",
        "exists:",
        "ip4",
        "ip4:192.0.2.0/33",
        "ip4:192.0.2.0/08",
        "ip4:192.0.2.0/",
        "ip4:192.0.2",
        "ip4:2001:db8::1",
        "ip6:192.0.2.1",
        "a:foo-bar",
        "a:example.123",
        "a:example.com:8080",
        "a/33",
        "a//129",
        "a/024",
        "a:%{x}.example.com",
        "a:%{d0}.example.com",
        "a:%{c}.example.com",
        "a:%.example.com",
        "a:\\xef.example.com",
        "redirect=",
        "redirect=a.example redirect=b.example",
        "exp=a.example exp=b.example",
        "redirect:example.com",
    ],
)
def test_any_mistake_spoils_the_whole_record(term):
    with pytest.raises(ValueError, match=r"\S"):
        parse_record(f"v=spf1 ip4:192.0.2.1 {term} -all")


@pytest.mark.parametrize(
    ("text", "name"),
    [  # RFC 7208 section 7.4
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l-}", "strong.bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
        ("%{p}.%{d}", "unknown.email.example.com"),
        ("%{h}.%%%_%-", "mail.example.com.% %20"),
        ("%{S}", "strong-bad%40email.example.com"),
    ],
)
def test_macros_expand_as_in_the_examples_of_the_rfc(text, name):
    assert MACROS.expand(text, "email.example.com") == name


def test_an_ipv6_address_expands_to_its_digits():
    expected = "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com"
    assert MACROS_6.expand("%{ir}.%{v}._spf.%{d2}", "email.example.com") == expected


def test_a_name_too_long_for_dns_loses_its_left_labels():
    name = MACROS.expand("%{d}." * 20 + "example.com", "a-rather-long-name.example.com")

    assert len(name) <= 253
    assert name.endswith("a-rather-long-name.example.com.example.com")


def test_a_record_made_to_be_slow_is_not() -> None:
    start = time.process_time()
    for label in ("a" * 60_000 + "_", "1" * 60_000, "-" * 60_000, "a." * 30_000 + "_"):
        with pytest.raises(ValueError, match="names no domain"):
            parse_record(f"v=spf1 include:{label}")
    assert time.process_time() - start < 2.0
