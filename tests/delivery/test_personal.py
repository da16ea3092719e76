"""What each recipient's mail has of its own."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from mailerd.config import Config, Hostname, Http, SendingDomain, Tenant
from mailerd.delivery.personal import Personal
from mailerd.queue.mail import Message, Recipient
from mailerd.wire.message import header_problem, header_values
from mailerd.wire.tokens import RecipientToken, Tokens
from mailerd.wire.unsubscribe import Subscription, read_subscription

SECRET = b"s" * 32
NOW = datetime(2026, 11, 22, tzinfo=UTC)
ID = 3_765_119_326_617_600_000
BOUNCES, LEAVES = Tokens(SECRET, "return-path"), Tokens(SECRET, "unsubscribe")

CONFIG = Config(
    domains={
        "a.example": SendingDomain(return_path=Hostname("bounce.a.example")),
        "own.a.example": SendingDomain(return_path=Hostname("bounce.own.example")),
        "plain.example": SendingDomain(),
    },
    tenants={"acme": Tenant(return_path=Hostname("bounce.acme.example"))},
    http=Http(public_url="https://mail.a.example/"),
)
NO_URL = Config(domains=CONFIG.domains)


def message(sender: str = "ann@a.example", tenant: str = "default", **more: Any) -> Message:
    return Message(ID, sender, "marketing", "default", "trusted", tenant, 100, NOW, **more)


def recipients(of: Message, *addresses: str) -> list[Recipient]:
    return [
        Recipient(of, n, address, address.rpartition("@")[2], NOW, NOW)
        for n, address in enumerate(addresses or ("bob@example.net",), 1)
    ]


def header(of: Message, config: Config = CONFIG, address: str = "bob@example.net") -> bytes:
    return Personal(config, SECRET).header(of, recipients(of, address))


@pytest.mark.parametrize(
    ("sender", "tenant", "domain"),
    [
        ("ann@a.example", "default", "bounce.a.example"),
        ("ann@sub.a.example", "default", "bounce.a.example"),
        ("ann@own.a.example", "default", "bounce.own.example"),
        ("ann@a.example", "acme", "bounce.a.example"),
        ("ann@plain.example", "acme", "bounce.acme.example"),
        ("ann@unknown.example", "acme", "bounce.acme.example"),
        ("jürgen@a.example", "default", "bounce.a.example"),
        ('"a@b"@a.example', "default", "bounce.a.example"),
        ("ann@plain.example", "default", None),
        ("ann@unknown.example", "default", None),
        ("ann@[127.0.0.1]", "default", None),
        ("", "default", None),
        ("", "acme", None),
        ("SRS0=AAAAAA=JL=example.com=ann@bounce.a.example", "acme", None),
    ],
)
def test_the_sender_s_domain_or_the_tenant_says_where_bounces_come_back_to(sender, tenant, domain):
    personal, mail = Personal(CONFIG, SECRET), message(sender, tenant)
    for _ in range(2):  # remembered, it is the same
        assert personal.domain(mail) == domain
        assert personal.alone(mail) == (domain is not None)
        path = personal.path(mail, recipients(mail))
        assert (path == sender) == (domain is None)
        assert domain is None or path.endswith(f"@{domain}")


def test_a_return_path_names_the_recipient_in_ascii_and_is_short():
    mail = message("jürgen@a.example")
    ann, bob = recipients(mail, "ann@example.net", "böb@example.net")
    personal = Personal(CONFIG, SECRET)
    paths = [personal.path(mail, [each]) for each in (ann, bob)]
    for n, path in enumerate(paths, 1):
        local, _, domain = path.partition("@")
        assert domain == "bounce.a.example"
        assert path.isascii()
        assert len(local) <= 64
        assert local[:2] == "b-"
        assert BOUNCES.read(local[2:]) == RecipientToken(ID, n)


def test_a_job_put_together_before_there_was_a_return_path_names_the_message_and_nobody():
    mail = message(unsubscribe=True)
    both = recipients(mail, "ann@example.net", "bob@example.net")
    personal = Personal(CONFIG, SECRET)
    assert BOUNCES.read(personal.path(mail, both)[2:].partition("@")[0]) == RecipientToken(ID, 0)
    assert personal.header(mail, both) == b""


def test_marketing_mail_has_a_link_and_an_address_to_unsubscribe_by():
    mail = message(unsubscribe=True, topic="Angebote für März", campaign="spring")
    fields = header(mail, address="jürgen@example.net")
    assert header_problem(fields) is None
    assert header_values(fields, b"list-unsubscribe-post") == [b"List-Unsubscribe=One-Click"]
    (value,) = header_values(fields, b"list-unsubscribe")
    link, mailto = [each.strip().strip("<>") for each in value.decode().split(",")]
    start = "https://mail.a.example/u/"
    assert link.startswith(start)
    assert read_subscription(LEAVES, link.removeprefix(start)) == Subscription(
        "default", "marketing", "Angebote für März", "spring", "jürgen@example.net", ID, 1
    )
    assert mailto.startswith("mailto:u-")
    assert mailto.endswith("@bounce.a.example?subject=unsubscribe")
    assert LEAVES.read(mailto[9:40]) == RecipientToken(ID, 1)


def test_without_a_public_url_there_is_the_address_only_and_no_promise_of_one_click():
    fields = header(message(unsubscribe=True), NO_URL)
    assert fields.startswith(b"List-Unsubscribe: <mailto:u-")
    assert fields.count(b"\r\n") == 1
    assert Personal(NO_URL, SECRET).alone(message(unsubscribe=True))


def test_without_a_return_path_there_is_the_link_only():
    mail = message("ann@plain.example", unsubscribe=True)
    fields = header(mail)
    assert b"mailto" not in fields
    assert b"List-Unsubscribe-Post" in fields
    assert Personal(CONFIG, SECRET).alone(mail)


@pytest.mark.parametrize("mail", [message(), message("ann@plain.example", unsubscribe=True)])
def test_nothing_is_added_where_it_is_not_asked_for_or_nobody_would_hear_it(mail):
    assert header(mail, NO_URL) == b""


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_no_line_is_longer_than_mail_allows_whatever_the_names(letter):
    names = {"topic": letter * 100, "campaign": letter * 100}
    address = f"{'x' * 64}@{'d' * 60}.{'d' * 60}.{'d' * 60}.example"
    for url in ("https://m.example", f"https://{'w' * 60}.{'w' * 60}.example/{'p' * 60}"):
        config = Config(domains=CONFIG.domains, http=Http(public_url=url))
        fields = header(message(unsubscribe=True, tenant="t" * 64, **names), config, address)
        lines = fields.split(b"\r\n")
        assert max(map(len, lines)) <= 998
        assert all(line.strip() for line in lines[:-1])
        assert header_problem(fields) is None
        assert b"<mailto:u-" in fields


def test_a_long_name_of_a_campaign_is_left_out_rather_than_the_link():
    names = {"topic": "é" * 100, "campaign": "😀" * 100}
    fields = header(message(unsubscribe=True, tenant="t" * 64, **names), address=f"{'x' * 64}@{'d' * 60}.example")
    (value,) = header_values(fields, b"list-unsubscribe")
    token = value.decode().partition("/u/")[2].partition(">")[0]
    subscription = read_subscription(LEAVES, token)
    assert subscription is not None
    assert (subscription.topic, subscription.campaign) == ("é" * 100, "")


def test_another_configuration_is_followed_at_once():
    personal, mail = Personal(CONFIG, SECRET), message()
    assert personal.alone(mail)
    personal.reconfigure(Config())
    assert not personal.alone(mail)
    assert personal.path(mail, recipients(mail)) == "ann@a.example"


def test_ten_thousands_of_sender_domains_are_not_all_remembered():
    personal = Personal(CONFIG, SECRET)
    for n in range(25_000):
        personal.domain(message(f"ann@d{n}.example"))
    assert len(personal._known) <= 10_000


def test_asking_whether_mail_goes_alone_costs_next_to_nothing():
    personal, mail = Personal(CONFIG, SECRET), message("ann@deep.down.under.unknown.example")
    begun = time.process_time()
    for _ in range(20_000):
        personal.alone(mail)
    assert (time.process_time() - begun) / 20_000 < 20e-6  # 0.5 µs, on a machine that has nothing else to do


def test_the_link_of_a_campaign_is_from_campaigns_whichever_stream_it_goes_out_on():
    mail = message(unsubscribe=True, campaign="cmp_1", render="1:2:3")
    mail.stream = "promo"
    link = Personal(CONFIG, SECRET).link(mail, recipients(mail)[0])

    assert read_subscription(LEAVES, link.rpartition("/")[2]).stream == "marketing"
