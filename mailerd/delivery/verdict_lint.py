"""What is doubtful about verdict rules that can be loaded: samples that other rules catch, rules that never speak …

Pure. Each check is a function of the rule book that yields its findings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mailerd.config.shaping import pattern_set
from mailerd.config.verdicts import Action, Blame, Kind, VerdictRule
from mailerd.delivery.diagnostic import read_diagnostic
from mailerd.delivery.verdict_book import REPORT, VerdictBook, plain


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt. An error is a mistake, a warning may be meant. `place` is `file:line`, "" when there is none."""

    severity: str  # error or warning
    place: str
    rule: str
    text: str


Findings = Iterator[Finding]


def lint(book: VerdictBook) -> list[Finding]:
    """Everything doubtful about the rules of `book`."""
    return [finding for check in CHECKS for finding in check(book)]


def check_samples(book: VerdictBook) -> Findings:
    for rule in book.rules:
        place = book.place(rule.id)
        if not rule.samples:
            yield Finding("warning", place, rule.id, "has no samples: nothing shows that it matches what it should")
        found = [_fitting(book, rule, sample) for sample in rule.samples]
        if found and all(rule.id in rules and rules[0] != rule.id for rules in found):
            first = " or ".join(dict.fromkeys(rules[0] for rules in found))
            yield Finding(
                "error", place, rule.id, f"can never match its own samples: {first} catches all of them first"
            )
            continue
        for sample, rules in zip(rule.samples, found, strict=True):
            if rule.id not in rules:
                yield Finding("error", place, rule.id, f"sample {sample!r} does not fit it")
            elif rules[0] != rule.id:
                yield Finding("error", place, rule.id, f"sample {sample!r} is caught by {rules[0]} first")


def _fitting(book: VerdictBook, rule: VerdictRule, sample: str) -> list[str]:
    said = read_diagnostic(sample)
    stage = rule.stage[0] if rule.stage else said.stage or REPORT
    return [told.rule for told in book.fitting(said.code, said.enhanced, said.text, stage)]


def check_patterns(book: VerdictBook) -> Findings:
    """Patterns and conditions that an earlier rule has already; rules whose patterns none of their samples has."""
    owners: dict[str, VerdictRule] = {}
    for rule in book.rules:
        place = book.place(rule.id)
        for pattern in rule.match:
            earlier = owners.setdefault(pattern, rule)
            if earlier is not rule and _as_wide(earlier, rule):
                yield Finding(
                    "error", place, rule.id, f"{pattern[:60]!r} says nothing: {earlier.id} has it and is first"
                )
        if rule.match and rule.samples:
            patterns = pattern_set(rule.match)
            texts = [plain(read_diagnostic(sample).text) for sample in rule.samples]
            if not any(patterns.Match(text) for text in texts):
                yield Finding("error", place, rule.id, "none of its patterns is in any of its samples")
        if not rule.match and (wider := _wider(book, rule)):
            yield Finding("error", place, rule.id, f"can never speak: {wider} has the same conditions and is first")


def _wider(book: VerdictBook, rule: VerdictRule) -> str:
    before = book.rules[: book.rules.index(rule)]
    return next((earlier.id for earlier in before if not earlier.match and _as_wide(earlier, rule)), "")


def _as_wide(earlier: VerdictRule, later: VerdictRule) -> bool:
    """Whether the conditions of the earlier hold wherever those of the later do, as far as their words show."""
    pairs = ((earlier.code, later.code), (earlier.enhanced, later.enhanced), (earlier.stage, later.stage))
    return all(not wide or (narrow and set(narrow) <= set(wide)) for wide, narrow in pairs)


def check_actions(book: VerdictBook) -> Findings:
    """Suppression and counting are for what is about the recipient, and for complaints."""
    for kind, of_class in book.classes.items():
        if of_class.blame is not Blame.RECIPIENT and of_class.action in HARD and kind is not Kind.COMPLAINT:
            yield Finding("error", "", "", f"class {kind}: {of_class.action} for what is not about the recipient")
        if of_class.only_with and of_class.action is not Action.SUPPRESS:
            yield Finding("warning", "", "", f"class {kind}: only_with says nothing without action suppress")
    for rule in book.rules:
        if rule.action in HARD and book.classes[rule.kind].blame is not Blame.RECIPIENT:
            text = f"action {rule.action} for class {rule.kind}, which is not about the recipient"
            yield Finding("error", book.place(rule.id), rule.id, text)


HARD = (Action.SUPPRESS, Action.COUNT)
CHECKS: tuple[Callable[[VerdictBook], Findings], ...] = (check_samples, check_patterns, check_actions)
