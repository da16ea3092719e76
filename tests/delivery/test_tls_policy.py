"""Policies as values."""

import pytest

from mailerd.delivery.tls_policy import TlsPolicy, matches_mx


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("mx.example.com", "mx.example.com", True),
        ("MX.Example.com.", "mx.example.com", True),
        ("mx.example.com", "*.example.com", True),
        ("a.mx.example.com", "*.example.com", False),
        ("example.com", "*.example.com", False),
        (".example.com", "*.example.com", False),
        ("mx.example.com", "example.com", False),
        ("mxexample.com", "*.example.com", False),
        ("mx.example.com", "mx.*.com", False),
        ("mx.example.com", "*", False),
    ],
)
def test_a_star_stands_for_exactly_one_label(name, pattern, fits):
    assert matches_mx(name, pattern) == fits


def test_policies_are_equal_when_they_ask_for_the_same_whoever_published_them():
    one, other = (TlsPolicy("sts", mx=("mx.example.com",), domain=name, lines=(name,)) for name in ("a.example", "b"))
    assert {one: 1}[other] == 1
    assert len({one, TlsPolicy("sts", mx=("mx.example.com",), testing=True), TlsPolicy(), TlsPolicy("dane")}) == 4


def test_only_mta_sts_names_hosts():
    assert TlsPolicy("sts", mx=("*.example.com",)).allows_host("mx.example.com")
    assert not TlsPolicy("sts", mx=("*.example.com",)).allows_host("mx.evil.example")
    assert TlsPolicy("dane").allows_host("mx.evil.example")


def test_a_policy_says_what_it_is():
    mx = ("mx.example.com",)
    policies = [TlsPolicy(), TlsPolicy("verify"), TlsPolicy("sts", mx=mx), TlsPolicy("dane", mx=mx, testing=True)]
    assert [str(policy) for policy in policies] == ["opportunistic", "verify", "MTA-STS", "DANE, MTA-STS, testing"]
