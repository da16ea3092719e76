"""What keeps a campaign from being sent."""

from dataclasses import replace
from typing import Any

import pytest

from mailerd.campaigns.compliance import Facts, Sample, errors, findings

URL = "https://mail.example/u/token?a=1&b=2"
ADDRESS = "Shop Ltd\n1 Main Street, Springfield"
SAMPLE = Sample(
    subject="News",
    html='<a href="https://mail.example/u/token?a=1&amp;b=2">out</a><p>Shop Ltd<br>1 Main Street<br>Springfield</p>',
    text=f"News\n{URL}\nShop Ltd, 1 Main Street, Springfield",
    unsubscribe_url=URL,
)
GOOD = Facts(
    sender_email="news@shop.example",
    reply_to="",
    stream="marketing",
    pool=None,
    postal_address=ADDRESS,
    sample=SAMPLE,
    failures=(),
    may_send_as=True,
    domains=True,
    configured=True,
    signed=True,
    public_url="https://mail.example",
    streams=("marketing", "transactional"),
    pools=("default",),
    audience=10,
)


def test_a_campaign_that_has_all_may_go() -> None:
    assert findings(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sender_email": "news at shop"}, "invalid_sender"),
        ({"sender_email": "postmaster"}, "invalid_sender"),
        ({"reply_to": "@"}, "invalid_reply_to"),
        ({"may_send_as": False}, "sender_not_allowed"),
        ({"configured": False, "signed": False}, "sender_domain_unknown"),
        ({"public_url": None}, "no_public_url"),
        ({"stream": "transactional"}, "transactional_stream"),
        ({"stream": "news"}, "unknown_stream"),
        ({"pool": "warm"}, "unknown_pool"),
        ({"postal_address": " "}, "no_postal_address"),
        ({"sample": replace(SAMPLE, subject=" ")}, "empty_subject"),
        ({"sample": replace(SAMPLE, html=SAMPLE.html.replace("/u/", "/x/"))}, "no_unsubscribe_link"),
        ({"sample": replace(SAMPLE, text="Shop Ltd, 1 Main Street, Springfield")}, "no_unsubscribe_link"),
        ({"sample": replace(SAMPLE, html=SAMPLE.html.replace("Main", "Other"))}, "postal_address_not_shown"),
        ({"audience": 0}, "empty_audience"),
        ({"audience_named": False}, "no_audience"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], code: str) -> None:
    assert [each.code for each in errors(findings(replace(GOOD, **changes)))] == [code]


@pytest.mark.parametrize("changes", [{"signed": False}, {"domains": False, "configured": False, "signed": False}])
def test_without_a_dkim_key_it_may_go_but_is_warned(changes: dict[str, Any]) -> None:
    found = findings(replace(GOOD, **changes))

    assert [(each.code, each.severity) for each in found] == [("no_dkim_key", "warning")]


def test_all_that_is_wrong_is_told_at_once_errors_first() -> None:
    found = findings(replace(GOOD, signed=False, postal_address="", public_url=None, audience=0))

    assert [each.severity for each in found] == ["error", "error", "error", "warning"]
