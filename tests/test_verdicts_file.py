"""The file of verdict rules: what it says, what is wrong with one, files laid over one another, and its lint."""

import pytest

from mailerd.config.documents import parse_reloaded, read_documents
from mailerd.config.verdicts import Action, Kind, builtin_verdicts, parse_verdicts, read_verdicts
from mailerd.delivery.verdict_book import VerdictBook, plain
from mailerd.delivery.verdict_lint import lint
from mailerd.errors import ConfigError


def laid_over(text):
    return parse_verdicts({"builtin": builtin_verdicts(), "mine.yaml": text})


def findings(text):
    return [f"{each.severity} {each.rule}: {each.text}" for each in lint(VerdictBook(laid_over(text)))]


def test_nothing_is_doubtful_about_the_rules_that_ship():
    assert lint(VerdictBook(parse_verdicts({}))) == []


def test_rules_of_a_later_file_come_first_and_one_of_the_same_id_takes_the_place():
    rules = laid_over(
        "rules:\n"
        "  - {id: mine, class: policy, match: [mine]}\n"
        "  - {id: greylisting, class: greylisted, match: [other words]}\n"
    )
    assert rules.rules[0].id == "mine"
    assert rules.places["mine"] == "mine.yaml:2"
    assert next(rule for rule in rules.rules if rule.id == "greylisting").match == ("other words",)
    assert len([rule for rule in rules.rules if rule.id == "greylisting"]) == 1


def test_a_later_file_changes_one_thing_about_a_class_and_one_code():
    rules = laid_over('classes: {spam_block: {action: tell}}\ncodes: {"550 rcpt": policy}\nenhanced: {"1.1": other}\n')
    assert rules.classes[Kind.SPAM_BLOCK].action is Action.TELL
    assert rules.classes[Kind.SPAM_BLOCK].blame == "source"
    assert rules.codes["550 rcpt"].kind == "policy"
    assert rules.enhanced["1.1"].kind == "other"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{id: a, class: spam, match: [x]}]", "mine.yaml:1: rules[0].class: 'spam': expected delivered"),
        ("rules: [{id: a, class: policy, match: ['(?!x)']}]", "rules[0].match[0]: '(?!x)': google-re2 refuses it"),
        ("rules: [{id: a, class: policy, match: ['x*']}]", "it fits the empty text"),
        ("rules: [{id: a, class: policy}]", "it would catch every reply: expected match, code or enhanced"),
        ("rules: [{id: a, class: policy, match: [x]}, {id: a, class: policy, match: [y]}]", "'a' is here twice"),
        ("rules: [{id: a, class: policy, match: [x], code: ['99']}]", "expected a reply code, such as 550"),
        (
            "rules: [{id: a, class: policy, match: [x], enhanced: [5.1.1.1]}]",
            "expected an enhanced code without its class",
        ),
        ("rules: [{id: a, class: policy, match: [x], stage: [report]}]", "expected auth or connect"),
        ("rules: [{id: a, class: policy, match: [x], action: drop}]", "expected suppress, count, retry"),
        ("classes: {spam: {action: tell}}", "there is no such class"),
        ("codes: {'99': policy}", "expected a reply code and perhaps a stage"),
        ("enhanced: {'5.1.1': policy}", "expected an enhanced code without its class"),
        ("codes: {'550': policy tell now}", "expected a class, or a class and what to do"),
        ("rulez: []", "unknown key (did you mean rules?)"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, problem):
    with pytest.raises(ConfigError) as raised:
        laid_over(text)
    assert any(problem in str(each) for each in raised.value.problems)


def test_files_without_the_built_in_ones_must_say_all_classes():
    with pytest.raises(ConfigError) as raised:
        parse_verdicts({"mine.yaml": "rules: []"})
    assert "classes.delivered: no file has it: expected builtin first" in str(raised.value.problems[0])


@pytest.mark.parametrize(
    ("rule", "finding"),
    [
        ("{id: a, class: policy, match: [wibble]}", "warning a: has no samples"),
        (
            "{id: a, class: policy, match: [wibble], samples: [550 wobble]}",
            "error a: sample '550 wobble' does not fit it",
        ),
        (
            "{id: a, class: policy, match: [wibble], samples: [550 wibble]}, "
            "{id: b, class: policy, match: [wibble], samples: [550 wibble]}",
            "error b: can never match its own samples: a catches all of them first",
        ),
        (
            "{id: a, class: policy, match: [wibble], samples: [550 wibble]}, "
            "{id: b, class: policy, match: [wobble], samples: [550 wobble, 550 wibble wobble]}",
            "error b: sample '550 wibble wobble' is caught by a first",
        ),
        (
            "{id: a, class: policy, match: [wibble], samples: [550 wibble]}, "
            "{id: b, class: policy, match: [wibble, wobble], samples: [550 wobble]}",
            "error b: 'wibble' says nothing: a has it and is first",
        ),
        (
            "{id: a, class: policy, code: ['5yz'], enhanced: ['9.1'], samples: [550 5.9.1 x]}, "
            "{id: b, class: policy, code: ['5yz'], enhanced: ['9.1'], samples: [550 5.9.1 x]}",
            "error b: can never speak: a has the same conditions and is first",
        ),
        (
            "{id: a, class: policy, action: suppress, match: [wibble], samples: [550 wibble]}",
            "error a: action suppress for class policy, which is not about the recipient",
        ),
    ],
)
def test_lint_finds_what_is_doubtful(rule, finding):
    assert any(found.startswith(finding) for found in findings(f"rules: [{rule}]"))


def test_lint_finds_that_a_rule_takes_the_samples_of_a_built_in_one():
    assert any("catches" in each or "is caught by a first" in each for each in findings(
        "rules: [{id: a, class: policy, match: [user], samples: [550 user]}]"
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see https://spam.example/full?x=1 ok", "see spam.example ok"),
        ("<full@spam.example> unknown", "<@> unknown"),
        ("https://support.google.com/mail/?p=NoSuchUser a", "support.google.com p=NoSuchUser a"),
        ("doesn\u2019t", "doesn't"),
    ],
)
def test_links_and_addresses_say_nothing_about_the_class(text, kept):
    assert plain(text) == kept


def test_files_are_found_beside_the_configuration_and_read_again_at_a_reload(tmp_path):
    file, mine = tmp_path / "mailerd.yaml", tmp_path / "mine.yaml"
    file.write_text("verdicts: {files: [builtin, mine.yaml]}\n")
    mine.write_text("rules: []\n")
    started = read_documents(file, {})
    assert list(started.verdicts) == ["mailerd/verdicts.yaml", str(mine)]
    mine.write_text("rules: [{id: mine, class: policy, match: [wibble]}]\n")
    again = read_documents(file, {})
    assert parse_reloaded(started, again, {}).verdicts.rules[0].id == "mine"
    mine.write_text("rules: [{id: mine}]\n")
    with pytest.raises(ConfigError):
        parse_reloaded(started, read_documents(file, {}), {})


def test_a_file_that_cannot_be_read_is_told_where_it_is_named(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text("verdicts:\n  files: [builtin, none.yaml]\n")
    with pytest.raises(ConfigError) as raised:
        read_documents(file, {})
    assert str(raised.value.problems[0]).startswith(f"{file}:2: verdicts.files[1]:")
    with pytest.raises(ConfigError):
        read_verdicts(["none.yaml"], tmp_path)
