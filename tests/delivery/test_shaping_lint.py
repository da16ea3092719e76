"""What the lint of shaping rules finds; that it finds nothing in good ones stands in tests/test_shaping_file.py."""

import pytest

from mailerd.config import Delivery
from mailerd.config.shaping import parse_shaping
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.shaping_lint import lint

A = "match: {mx: [a.example]}, source: me, date: 2026-11-01"


def findings(text: str) -> list[str]:
    rules = parse_shaping({"f.yaml": text})
    return [f"{each.severity} {each.place} {each.text}" for each in lint(rules, RuleBook(rules, Delivery()))]


def rules_of_a(*rules: str, more: str = "") -> str:
    lines = "".join(f"\n      - {{{rule}}}" for rule in rules)
    head = "providers:\n  a:\n    match: {mx: [a.example]}\n    source: me\n    date: 2026-11-01"
    return f"{head}{more}\n    rules:{lines}\n"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (("id: x, match: go, effect: pause, for: 1h",), "warning f.yaml:7 has no samples"),
        (
            ("id: x, match: go, effect: pause, for: 1h, samples: [421 stop]",),
            "error f.yaml:7 sample '421 stop' does not match its pattern",
        ),
        (
            ("id: x, match: go, effect: pause, for: 1h, samples: [go away]",),
            "error f.yaml:7 sample 'go away' is no reply that rules are asked about",
        ),
        (
            ("id: x, match: go, effect: pause, for: 1h, samples: [250 go on]",),
            "error f.yaml:7 sample '250 go on' is no reply",
        ),
        (
            (
                "id: wide, match: go, effect: pause, for: 1h, samples: [421 go]",
                "id: narrow, match: go away, effect: pause, for: 2h, samples: [421 go away]",
            ),
            "error f.yaml:8 can never match its own samples: wide catches all of them first",
        ),
        (
            (
                "id: wide, match: go, effect: pause, for: 1h, samples: [421 go]",
                "id: other, match: go away|leave, effect: pause, for: 2h, samples: [421 go away, 421 leave]",
            ),
            "error f.yaml:8 sample '421 go away' is caught by wide first",
        ),
        (
            (
                "id: one, match: go, effect: pause, for: 1h, samples: [421 go]",
                "id: two, match: go, stage: rcpt, effect: pause, for: 2h, samples: [421 go]",
            ),
            "error f.yaml:8 can never match: one has the same pattern and comes first",
        ),
        (
            ("id: x, match: mailbox full, effect: pause, for: 1h, samples: [452 4.2.2 mailbox full]",),
            "error f.yaml:7 sample '452 4.2.2 mailbox full' is about one recipient (mailbox_full)",
        ),
        (
            ("id: x, match: full, effect: connections, connections: 30, for: 1h, scope: path, samples: [421 full]",),
            "warning f.yaml:7 brakes nothing: connections is limited to as little already",
        ),
    ],
)
def test_doubtful_rules_are_found(rules: tuple[str, ...], expected: str) -> None:
    found = findings(rules_of_a(*rules))
    assert any(each.startswith(expected) for each in found), found


def test_a_rule_for_a_later_stage_is_no_twin() -> None:
    one = "id: one, match: go, stage: mail, effect: pause, for: 1h, samples: [421 go]"
    two = "id: two, match: go, stage: rcpt, effect: pause, for: 2h, samples: [421 go]"
    assert findings(rules_of_a(one, two)) == []


def test_a_clean_sample_that_is_caught_is_found_also_when_it_is_everybodys() -> None:
    rule = "id: x, match: go, effect: pause, for: 1h, samples: [421 go]"
    assert findings(rules_of_a(rule, more="\n    clean: [450 go slowly]")) == [
        "error f.yaml:8 catches '450 go slowly', which is listed as clean"
    ]
    assert findings(rules_of_a(rule) + "default: {clean: [450 go slowly]}") == [
        "error f.yaml:7 catches '450 go slowly', which is listed as clean"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"providers:\n  a: {{{A}, per_path: {{connections: 1}}}}\n  b: {{{A}, per_path: {{connections: 1}}}}",
            ["error f.yaml:3 match: mx suffix a.example is also that of a, which comes first and gets all its sites"],
        ),
        (
            f"providers:\n  a: {{{A}, per_path: {{connections: 1}}}}\n"
            f"  b: {{{A.replace('[a.', '[eu.a.')}, per_path: {{connections: 1}}}}",
            ["warning f.yaml:3 match: mx suffix eu.a.example overlaps a.example of a; the longer one wins"],
        ),
        (
            f"providers:\n  a: {{{A.replace('[a.example', '[a.example, b.a.example')}, per_path: {{connections: 1}}}}",
            ["warning f.yaml:2 match: b.a.example says nothing beside a.example"],
        ),
        (
            f"providers:\n  a: {{{A}, per_path: {{connections: 9}}, per_source: {{connections: 5}}}}",
            ["warning f.yaml:2 per_path.connections never binds: per_source.connections is lower (f.yaml:2)"],
        ),
        (
            f"providers:\n  a: {{{A}, per_path: {{message_rate: 100/min}}, total: {{message_rate: 1/s}}}}",
            ["warning f.yaml:2 per_path.message_rate never binds: total.message_rate is lower (f.yaml:2)"],
        ),
        (
            f"providers:\n  a: {{{A}, per_path: {{byte_rate: 1MB/s}}, total: {{byte_rate: 1MB/s}}}}",
            [],
        ),
        ("tenants:\n  acme: {}", ["warning f.yaml:2 tenant acme has no limit"]),
        (f"providers:\n  a: {{{A}}}", ["warning f.yaml:2 has neither limits nor rules"]),
        (
            "providers:\n  a: {match: {mx: [a.example]}, per_path: {connections: 1}}",
            ["warning f.yaml:2 says not where its numbers come from, and of when they are: source, date"],
        ),
    ],
)
def test_overlaps_and_limits_that_do_nothing_are_found(text: str, expected: list[str]) -> None:
    assert findings(text) == expected


def test_the_dead_rules_that_others_ship_are_found() -> None:
    """As in research 2.7: a provider of another name, a suffix that ends in a dot, a pattern escaped twice."""
    escaped = r"id: hcm1, match: '\\[HCM1\\] deferred', effect: pause, for: 15m, samples: ['421 [HCM1] deferred']"
    found = findings(rules_of_a(escaped))
    assert [each.partition(" ")[0] for each in found] == ["error"]
    assert "does not match its pattern" in found[0]


def test_a_suffix_that_customers_hosts_have_is_doubtful() -> None:
    found = findings(
        "providers: {c: {match: {mx: [comcast.net]}, source: me, date: 2026-11-01, total: {connections: 1}}}"
    )
    assert found == ["warning f.yaml:1 match: customers' own hosts are in comcast.net too: name the mail exchangers"]
