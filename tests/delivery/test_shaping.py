"""The rule book: providers, limits, what replies bring about, and what they teach."""

import time

import pytest

from mailerd.config import Delivery, Rate
from mailerd.config.shaping import Limits, parse_shaping
from mailerd.delivery.shaping import Learnt, RuleBook

FILE = """\
default:
  per_path: {connections: 9}
  rules:
    - {id: everywhere, match: too fast, effect: slow, rate: 1/s, for: 10m}
providers:
  big:
    match: {mx: [big.example, mx.other.example]}
    per_path: {messages_per_connection: 50}
    per_source: {connections: 4}
    per_site: {connections: 7}
    rules:
      - {id: at-rcpt, match: 'stop', stage: rcpt, effect: pause, for: 1h}
      - {id: anywhere, match: 'stop (?:it|now)', effect: pause, for: 2h}
      - {id: harmless, match: 'too fast for this mailbox', effect: none}
  part:
    match: {mx: [eu.big.example], domain: [part.test]}
  named:
    match: {domain: [part.test, named.test]}
domains: {corp.example: {message_rate: 10/s}}
tenants: {acme: {message_rate: 1000/h}}
campaigns: {spring: {byte_rate: 1MB/s}}
credentials: {shop: {message_rate: 1/s}}
"""
FEWER_MESSAGES = Learnt("messages_per_connection", None)
FEWER_RECIPIENTS = Learnt("recipients_per_transaction", None)
FEWER_CONNECTIONS = Learnt("connections", None)
DELIVERY = Delivery(connections_per_path=33, messages_per_connection=700, recipients_per_transaction=44)


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return RuleBook(parse_shaping({"f.yaml": FILE}), DELIVERY)


@pytest.mark.parametrize(
    ("domain", "mx", "provider"),
    [
        ("a.test", ["mx1.big.example", "mx2.big.example"], "big"),
        ("a.test", ["big.example"], "big"),
        ("a.test", ["mx1.big.example", "mx.other.example"], "big"),
        ("a.test", ["mx1.big.example", "mx.elsewhere.example"], "default"),
        ("a.test", ["mx.notbig.example"], "default"),
        ("a.test", ["other.example"], "default"),
        ("a.test", [], "default"),
        ("a.test", ["mx1.eu.big.example", "mx2.eu.big.example"], "part"),  # the longer suffix
        ("a.test", ["mx1.eu.big.example", "mx.big.example"], "big"),  # the one that has all hosts
        ("named.test", ["mx1.big.example"], "named"),  # the domain goes before the hosts
        ("sub.named.test", ["mx1.big.example"], "named"),
        ("part.test", [], "part"),  # of two equal ones the first
        ("notnamed.test", [], "default"),
        ("[192.0.2.1]", ["192.0.2.1"], "default"),
    ],
)
def test_a_provider_is_known_by_all_its_exchangers_or_by_the_domain(
    book: RuleBook, domain: str, mx: list[str], provider: str
) -> None:
    assert book.provider_of(domain, mx) == provider
    assert book.provider_of(domain, tuple(mx)) == provider  # from memory


def test_limits_have_the_defaults_of_the_file_and_of_the_configuration_filled_in(book: RuleBook) -> None:
    big, other = book.limits("big"), book.limits("default")

    assert big.per_path == Limits(connections=9, messages_per_connection=50, recipients_per_transaction=44)
    assert (big.per_source.connections, big.per_site.connections, big.total) == (4, 7, Limits())
    assert other.per_path == Limits(connections=9, messages_per_connection=700, recipients_per_transaction=44)
    assert other.per_site == Limits()
    assert other.per_source == Limits()
    assert book.limits("nobody") == other


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        (("big", "per_path", "messages_per_connection"), "f.yaml:8"),
        (("big", "per_path", "connections"), "f.yaml:2"),
        (("big", "per_path", "recipients_per_transaction"), "delivery.recipients_per_transaction"),
        (("big", "per_site", "connections"), "f.yaml:10"),
        (("default", "per_site", "connections"), ""),
        (("default", "per_path", "connections"), "f.yaml:2"),
        (("big", "per_path", "message_rate"), ""),
        (("nobody", "per_path", "connections"), "f.yaml:2"),
        (("big", "rules", "anywhere"), "f.yaml:13"),
        (("big", "rules", "everywhere"), "f.yaml:4"),
        (("big", "match", ""), "f.yaml:6"),
        (("acme", "tenant", "message_rate"), "f.yaml:20"),
        (("nobody", "tenant", "message_rate"), ""),
    ],
)
def test_every_limit_and_rule_can_name_its_place(book: RuleBook, asked: tuple[str, str, str], place: str) -> None:
    assert book.place(*asked) == place


def test_a_limit_taken_away_names_the_place_of_what_binds_instead() -> None:
    text = "providers: {big: {match: {mx: [big.example]}, per_path: {connections: 3}}}"
    mine = "providers: {big: {per_path: {connections: null}}}"
    book = RuleBook(parse_shaping({"f.yaml": text, "mine.yaml": mine}), DELIVERY)

    assert book.limits("big").per_path.connections == 33
    assert book.place("big", "per_path", "connections") == "delivery.connections_per_path"


def test_flows_have_limits_only_when_a_file_gives_them(book: RuleBook) -> None:
    assert book.of_domain("corp.example") == Limits(message_rate=Rate(10, 1.0))
    assert book.of_tenant("acme") == Limits(message_rate=Rate(1000, 3600.0))
    assert book.of_campaign("spring") is not None
    assert book.of_credential("shop") is not None
    others = (book.of_domain("sub.corp.example"), book.of_tenant(""), book.of_campaign("x"), book.of_credential("x"))
    assert others == (None, None, None, None)


@pytest.mark.parametrize(
    ("provider", "stage", "reply", "rule"),
    [
        ("big", "rcpt", "421 stop it", "at-rcpt"),  # the first in the file, not the longest
        ("big", "dot", "421 stop it", "anywhere"),
        ("big", "dot", "421 STOP NOW", "anywhere"),
        ("big", "dot", "421 stop", None),
        ("big", "dot", "421 you are too fast", "everywhere"),  # a rule of default, after its own
        ("big", "dot", "450 too fast for this mailbox", None),  # exempted
        ("default", "dot", "450 too fast for this mailbox", "everywhere"),
        ("default", "dot", "421 stop it", None),
        ("nobody", "dot", "421 too fast", "everywhere"),
        ("big", "dot", "550 5.1.1 user unknown", None),
        ("big", "dot", "", None),
    ],
)
def test_the_first_rule_that_matches_decides(
    book: RuleBook, provider: str, stage: str, reply: str, rule: str | None
) -> None:
    found = book.react(provider, stage, reply)

    assert (found[0].id if found else None) == rule
    if found:
        assert found[1] == book.place(provider, "rules", found[0].id)


def test_a_small_site_never_brakes_a_source_at_all_other_small_sites(book: RuleBook) -> None:
    at_small, at_big = book.react("default", "dot", "421 too fast"), book.react("big", "dot", "421 too fast")

    assert at_small is not None
    assert at_big is not None
    assert (at_small[0].scope, at_big[0].scope) == ("path", "source")


def test_a_book_without_rules_reacts_to_nothing() -> None:
    assert RuleBook(parse_shaping({}), Delivery()).react("default", "dot", "421 too fast") is None


def test_a_pattern_that_backtracks_elsewhere_takes_no_time() -> None:
    evil = "default: {rules: [{id: evil, match: '(a|aa)+(b|a+)*c$', effect: pause, for: 1h}]}"
    book = RuleBook(parse_shaping({"f.yaml": evil}), Delivery())

    started = time.perf_counter()
    assert book.react("default", "dot", "421 " + "a" * 100_000 + "!") is None
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("reply", "learnt"),
    [
        ("421 4.7.0 Too many messages in this connection, max 20", Learnt("messages_per_connection", 20)),
        ("421 Max message per connection reached, closing transmission channel", FEWER_MESSAGES),
        ("451 4.7.652 192.0.2.1 has exceeded maximum number of messages per connection.", FEWER_MESSAGES),
        ("452 Too many messages for this session", FEWER_MESSAGES),
        ("450 MI:DMC 163 mx1", FEWER_MESSAGES),
        ("452 4.5.3 Too many recipients", FEWER_RECIPIENTS),
        ("452 4.5.3 Error: too many recipients (limit 25)", Learnt("recipients_per_transaction", 25)),
        ("552 too many recipients, only 10 recipients per message allowed", Learnt("recipients_per_transaction", 10)),
        (
            "452 4.5.3 Domain policy size exceeded, please try this recipient in a separate transaction.",
            FEWER_RECIPIENTS,
        ),
        ("421 4.7.0 mx.example.net Error: too many connections from 192.0.2.1", FEWER_CONNECTIONS),
        ("421 Too many concurrent SMTP connections; limit is 5", Learnt("connections", 5)),
        ("421 Trop de connexions, veuillez verifier votre configuration OFR004_104", FEWER_CONNECTIONS),
        ("421 HL:ICC 163 mx9", FEWER_CONNECTIONS),
        ("450 Too many recipients this hour", None),
        ("421 Too many connections per minute", None),
        ("450 4.7.1 Too many messages, slow down", None),
        ("550 5.1.1 user unknown", None),
        ("552 5.2.2 mailbox full, limit 5", None),
        ("", None),
    ],
)
def test_replies_teach_limits(book: RuleBook, reply: str, learnt: Learnt | None) -> None:
    assert book.learn(reply) == learnt
