"""The shaping files: what they may say, how they are laid over one another, and the one that ships with mailerd."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.config import ByteRate, Delivery, Rate
from mailerd.config.shaping import (
    BUILTIN,
    BUILTIN_NAME,
    Limits,
    ShapingRules,
    builtin_shaping,
    parse_pattern,
    parse_shaping,
    parse_suffix,
    read_shaping,
)
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.shaping_lint import lint
from mailerd.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
SHIPPED = parse_shaping({BUILTIN_NAME: builtin_shaping()})
BOOK = RuleBook(SHIPPED, Delivery())
BLOCKS = {**SHIPPED.providers, "default": SHIPPED.default}


def problems(*texts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_shaping({f"{n}.yaml": text for n, text in enumerate(texts, 1)})
    return [str(problem) for problem in caught.value.problems]


# The file that ships


def test_the_shipped_file_is_the_one_in_config() -> None:
    assert (REPOSITORY / "config/shaping.yaml").read_text("utf-8") == builtin_shaping()


def test_nothing_is_doubtful_about_the_shipped_rules() -> None:
    assert lint(SHIPPED, BOOK) == []


@pytest.mark.parametrize(
    ("provider", "rule", "sample"),
    [(name, rule.id, sample) for name, block in BLOCKS.items() for rule in block.rules for sample in rule.samples],
)
def test_each_shipped_sample_sets_off_its_rule(provider: str, rule: str, sample: str) -> None:
    found = BOOK.react(provider, "dot", sample)

    assert found is not None
    assert found[0].id == rule


@pytest.mark.parametrize("provider", BLOCKS)
def test_no_shipped_rule_brakes_for_what_is_about_one_recipient(provider: str) -> None:
    for sample in (*BLOCKS[provider].clean, *SHIPPED.default.clean):
        assert BOOK.react(provider, "dot", sample) is None, sample


def test_every_shipped_rule_and_provider_can_be_checked() -> None:
    for name, block in BLOCKS.items():
        assert block.source, name
        assert block.date, name
        assert all(rule.samples for rule in block.rules), name


@pytest.mark.parametrize(
    ("mx", "provider"),
    [
        (["gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com"], "google"),
        (["aspmx.l.google.com", "aspmx2.googlemail.com"], "google"),
        (["hotmail-com.olc.protection.outlook.com"], "outlook"),
        (["example-com.mail.protection.outlook.com"], "office365"),
        (["example-com.a-v1.mx.microsoft"], "office365"),
        (["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"], "yahoo"),
        (["mx1.mail.yahoo.co.jp", "mx2.mail.yahoo.co.jp"], "yahoo-japan"),
        (["mx01.mail.icloud.com", "mx02.mail.icloud.com"], "apple"),
        (["mx1a1.comcast.net", "mx2h1.comcast.net"], "comcast"),
        (["mx00.emig.gmx.net", "mx01.emig.gmx.net"], "united-internet"),
        (["mx-ha02.web.de", "mx-ha03.web.de"], "united-internet"),
        (["c-192-0-2-7.hsd1.ca.comcast.net"], "default"),
        (["smtp-in.orange.fr"], "orange"),
        (["lfbn-par-1-2-3.w86-1.abo.wanadoo.fr"], "default"),
        (["mxs.mail.ru"], "mailru"),
        (["mx1.qq.com", "mx2.qq.com", "mx3.qq.com"], "qq"),
        (["163mx01.mxmail.netease.com", "163mx02.mxmail.netease.com"], "netease"),
        (["eu-smtp-inbound-1.mimecast.com", "eu-smtp-inbound-2.mimecast.com"], "mimecast"),
        (["mxa-001.gslb.pphosted.com", "mxb-001.gslb.pphosted.com"], "proofpoint"),
        (["d1.ess.barracudanetworks.com", "d2.ess.barracudanetworks.com"], "barracuda"),
        (["mx.example.net"], "default"),
        (["mx.notgoogle.com"], "default"),
        (["aspmx.l.google.com", "mx.example.net"], "default"),
        (["google.com.example.net"], "default"),
    ],
)
def test_the_large_providers_are_known_by_their_exchangers(mx: list[str], provider: str) -> None:
    assert BOOK.provider_of("example.com", mx) == provider


# What a file says


FILE = """\
default:
  per_path: {connections: 9, byte_rate: 10MB/s}
providers:
  big:
    match: {mx: [big.example], domain: [big.test]}
    source: a letter
    date: 2026-11-01
    per_path: {connections: 5, messages_per_connection: 50, recipients_per_transaction: 10}
    total: {message_rate: 100/s}
    rules:
      - {id: slow-down, match: 'slow\\s+', effect: slow, rate: 1/min, for: 30m, after: 3/h, stage: rcpt, scope: path}
      - {id: stop, match: stop it, effect: pause, for: 2h, samples: [421 stop it]}
    clean: [450 later]
domains: {corp.example: {message_rate: 10/s}}
tenants: {acme: {message_rate: 1000/h, byte_rate: 1GB/10min}}
campaigns: {spring: {message_rate: 10000/min}}
credentials: {shop: {byte_rate: 1MB/s}}
"""


def test_a_file_says_limits_rules_and_flows() -> None:
    rules = parse_shaping({"f.yaml": FILE})
    big = rules.providers["big"]

    assert rules.default.per_path == Limits(connections=9, byte_rate=ByteRate(10_000_000, 1.0))
    assert big.per_path == Limits(connections=5, messages_per_connection=50, recipients_per_transaction=10)
    assert big.total == Limits(message_rate=Rate(100, 1.0))
    assert (big.source, big.date, big.match.domain) == ("a letter", "2026-11-01", ("big.test",))
    slow, stop = big.rules
    assert (slow.effect, slow.rate, slow.lasts, slow.after) == ("slow", Rate(1, 60.0), 1800.0, Rate(3, 3600.0))
    assert (slow.stage, slow.scope, stop.stage, stop.scope) == ("rcpt", "path", None, "source")
    assert rules.domains["corp.example"] == Limits(message_rate=Rate(10, 1.0))
    assert rules.tenants["acme"].byte_rate == ByteRate(1_000_000_000, 600.0)


def test_an_empty_file_says_nothing() -> None:
    assert parse_shaping({"f.yaml": "# nothing\n"}) == parse_shaping({})
    assert parse_shaping({}) == ShapingRules(SHIPPED.default.__class__(), {}, {}, {}, {}, {}, {})


def test_every_limit_and_rule_keeps_its_line() -> None:
    places = parse_shaping({"f.yaml": FILE}).places

    assert places["providers", "big", "per_path", "connections"] == "f.yaml:8"
    assert places["providers", "big", "rules", "stop"] == "f.yaml:12"
    assert places["default", "per_path", "byte_rate"] == "f.yaml:2"
    assert places["credentials", "shop", "byte_rate"] == "f.yaml:17"


# Files laid over one another


def test_a_later_file_changes_single_keys_and_keeps_the_rest() -> None:
    mine = "providers: {big: {per_path: {connections: 2}}}\ntenants: {acme: {byte_rate: 5MB/s}}"
    rules = parse_shaping({"f.yaml": FILE, "mine.yaml": mine})

    assert rules.providers["big"].per_path == Limits(
        connections=2, messages_per_connection=50, recipients_per_transaction=10
    )
    assert rules.providers["big"].match.mx == ("big.example",)
    assert rules.places["providers", "big", "per_path", "connections"] == "mine.yaml:1"
    assert rules.places["providers", "big", "per_path", "messages_per_connection"] == "f.yaml:8"
    assert rules.tenants["acme"] == Limits(message_rate=Rate(1000, 3600.0), byte_rate=ByteRate(5_000_000, 1.0))


def test_null_takes_a_limit_away() -> None:
    rules = parse_shaping({"f.yaml": FILE, "mine.yaml": "providers: {big: {total: {message_rate: null}}}"})

    assert rules.providers["big"].total == Limits()


def test_later_rules_go_first_and_those_with_a_known_id_take_its_place() -> None:
    mine = """
providers:
  big:
    rules:
      - {id: mine, match: go away, effect: pause, for: 1h}
      - {id: stop, match: stop it, effect: none}
    clean: [451 mine]
"""
    big = parse_shaping({"f.yaml": FILE, "mine.yaml": mine}).providers["big"]

    assert [(rule.id, rule.effect) for rule in big.rules] == [
        ("mine", "pause"),
        ("slow-down", "slow"),
        ("stop", "none"),
    ]
    assert big.clean == ("450 later", "451 mine")


# Bad input


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("provider: {}", "1.yaml:1: provider: unknown key (did you mean providers?)"),
        ("providers:\n  a:\n    match: {mx: [a.example]}\n    per_path: {message_rate: 0/s}", "1.yaml:4: providers.a."),
        ("default: {per_path: {message_rate: -5/min}}", "per_path.message_rate: '-5/min': expected a rate"),
        ("default: {per_path: {connection_rate: fast}}", "per_path.connection_rate: 'fast': expected a rate"),
        ("default: {per_path: {byte_rate: 0/s}}", "per_path.byte_rate: '0/s': expected a size and a period"),
        ("default: {per_path: {byte_rate: 10/s}}", None),
        ("default: {per_path: {connections: 0}}", "per_path.connections: '0': expected a whole number from 1"),
        ("default: {per_path: {connections: -1}}", "per_path.connections: '-1': expected a whole number from 1"),
        ("default: {total: {connections: 5}}", "default.total: unknown key"),
        ("default: {per_site: {messages_per_connection: 5}}", "default.per_site.messages_per_connection: is about one"),
        ("tenants: {a: {connections: 5}}", "tenants.a.connections: unknown key"),
        ("domains: {Example.com: {message_rate: 1/s}}", "domains.Example.com: expected it in lower case"),
        ("domains: {'*.example.com': {message_rate: 1/s}}", "domains.*.example.com: '*.example.com': expected"),
        ("providers: {a: {per_path: {connections: 1}}}", "providers.a: no earlier file has this provider"),
        ("providers: {a: {match: {}}}", "providers.a: no earlier file has this provider, so it needs a match"),
        ("providers: {A b: {match: {mx: [a.example]}}}", "providers.A b: expected a name of a-z"),
        ("providers: {default: {match: {mx: [a.example]}}}", "providers.default: the limits and rules for all others"),
        ("providers: {a: {match: {mx: [a.example.]}}}", "match.mx[0]: 'a.example.': expected the end of a name"),
        ("providers: {a: {match: {mx: [.a.example]}}}", "(no dot at its ends, no *)"),
        ("providers: {a: {match: {mx: ['*.a.example']}}}", "(no dot at its ends, no *)"),
        (
            "providers: {a: {match: {mx: [a.example]}, date: 2026-02-30}}",
            "providers.a.date: '2026-02-30': expected a day",
        ),
    ],
)
def test_bad_input_is_refused_with_file_line_and_what_is_allowed(text: str, expected: str | None) -> None:
    if expected is None:
        parse_shaping({"1.yaml": text})
        return
    found = problems(text)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("id: a, match: x, effect: pause", "default.rules[0].for: is missing: expected how long"),
        ("id: a, match: x, effect: pause, for: 0", "rules[0].for: is missing"),
        ("id: a, match: x, effect: pause, for: 8d", "longer than 0 and at most 7d"),
        ("id: a, match: x, effect: slow, for: 1h", "rules[0].rate: is missing: effect slow needs it"),
        ("id: a, match: x, effect: slow, for: 1h, rate: 0/s", "rules[0].rate: '0/s': expected a rate"),
        ("id: a, match: x, effect: pause, for: 1h, rate: 1/s", "rules[0].rate: does nothing with effect pause"),
        ("id: a, match: x, effect: connections, for: 1h", "rules[0].connections: is missing"),
        ("id: a, match: x, effect: stop, for: 1h", "rules[0].effect: 'stop': expected avoid or connections"),
        (
            "id: a, match: x, effect: pause, for: 1h, stage: body",
            "rules[0].stage: 'body': expected auth or connect",
        ),
        ("id: 'a b', match: x, effect: none", "rules[0].id: 'a b': expected letters"),
        ("match: x, effect: none", "rules[0].id: is missing"),
        ("id: a, match: '', effect: none", "rules[0].match: '': expected a regular expression"),
        ("id: a, match: 'x*', effect: none", "rules[0].match: 'x*': it fits the empty text"),
        ("id: a, match: '(?=x)y', effect: none", "google-re2 refuses it: invalid perl operator: (?="),
        ("id: a, match: '(x)\\1', effect: none", "google-re2 refuses it: invalid escape sequence"),
        ("id: a, match: '(x', effect: none", "google-re2 refuses it: missing )"),
        ("id: a, match: '(x{900}){900}', effect: none", "google-re2 refuses it: "),
    ],
)
def test_a_bad_rule_is_refused(rule: str, expected: str) -> None:
    found = problems(f"default: {{rules: [{{{rule}}}]}}")
    assert any(expected in problem for problem in found), found


def test_two_rules_of_one_id_are_refused() -> None:
    found = problems("default:\n  rules:\n    - {id: a, match: x, effect: none}\n    - {id: a, match: y, effect: none}")
    assert found == ["1.yaml:4: default.rules[1].id: 'a' is here twice"]


def test_an_override_of_a_provider_that_nobody_has_is_refused_with_the_likely_one() -> None:
    found = problems(FILE, "providers: {bigg: {per_path: {connections: 1}}}")
    assert found == [
        "2.yaml:1: providers.bigg: no earlier file has this provider (did you mean big?), so it needs a match: "
        "{mx: […], domain: […]}"
    ]


def test_the_problems_of_all_files_are_told() -> None:
    assert [problem.partition(": ")[0] for problem in problems("x: 1", "\ny: 2")] == ["1.yaml:1", "2.yaml:2"]


def test_patterns_that_are_too_large_together_are_refused() -> None:
    rules = "".join(
        f"    - {{id: r{n}, match: '({n}x.{{300}}y){{3}}(a|b|.{{400}})', effect: none}}\n" for n in range(400)
    )
    found = problems(f"default:\n  rules:\n{rules}")
    assert found == ["1.yaml:1: default.rules: all patterns together are too large"]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError) as caught:
        read_shaping([BUILTIN, "absent.yaml", "latin1.yaml"], tmp_path)
    assert [problem.message for problem in caught.value.problems] == [
        "cannot be read: No such file or directory",
        "cannot be read: unexpected end of data",
    ]


def test_files_are_read_relative_to_the_directory_and_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tenants: {}")
    texts = read_shaping([BUILTIN, "mine.yaml"], tmp_path)
    assert list(texts) == [BUILTIN_NAME, str(tmp_path / "mine.yaml")]
    assert texts[BUILTIN_NAME] == builtin_shaping()


KEYS = st.sampled_from(["default", "providers", "tenants", "rules", "match", "per_path", "id", "for"]) | st.text(
    max_size=5
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(TREES.map(lambda tree: msgspec.json.encode(tree).decode()) | st.text())
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_shaping({"f.yaml": text})


@given(st.text(max_size=40))
def test_no_text_makes_a_parser_fail_in_another_way(text: str) -> None:
    for parser in (parse_pattern, parse_suffix):
        with contextlib.suppress(ValueError):
            assert parser(text)
