"""What is doubtful about shaping rules that can be loaded: rules that never match, limits that never bind …

Pure. Each check is a function of the whole rule book that yields its findings.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import re2

from mailerd.config import ByteRate, Rate
from mailerd.config.shaping import DEFAULT, SCOPES, SHARED, Provider, ReplyRule, ShapingRules, options
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.verdict import Blame, classify
from mailerd.wire.smtp import Reply

REPLY = re.compile(r"[45][0-9][0-9](?: .*)?", re.ASCII)
WIDER = (
    ("per_path", "per_source"),
    ("per_path", "per_site"),
    ("per_path", "total"),
    ("per_source", "total"),
    ("per_site", "total"),
)  # what is within a limit of the left is within one of the right too
# Where customers' hosts are named, by their address for the most part: whoever has one could pass for the provider.
ACCESS = frozenset(
    {
        "comcast.net",
        "cox.net",
        "free.fr",
        "orange.fr",
        "proxad.net",
        "rr.com",
        "verizon.net",
        "wanadoo.fr",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt. An error is a mistake, a warning may be meant. `place` is `file:line`, "" when there is none."""

    severity: str  # error or warning
    place: str
    provider: str
    rule: str
    text: str


Findings = Iterator[Finding]


def lint(rules: ShapingRules, book: RuleBook) -> list[Finding]:
    """Everything doubtful about `rules`; `book` was made of them."""
    return [finding for check in CHECKS for finding in check(rules, book)]


def blocks(rules: ShapingRules) -> list[tuple[str, Provider]]:
    return [*rules.providers.items(), (DEFAULT, rules.default)]


# Rules and their samples


def check_rules(rules: ShapingRules, book: RuleBook) -> Findings:
    for name, block in blocks(rules):
        for rule in block.rules:
            place = book.place(name, "rules", rule.id)
            for severity, text in _doubts(book, name, rule):
                yield Finding(severity, place, name, rule.id, text)


def _doubts(book: RuleBook, provider: str, rule: ReplyRule) -> Iterator[tuple[str, str]]:
    if not rule.samples:
        yield "warning", "has no samples: nothing shows that it matches what it should"
    if twin := _twin(book, provider, rule):
        yield "error", f"can never match: {twin} has the same pattern and comes first"
        return
    caught_by = [_caught_by(book, provider, rule, sample) for sample in rule.samples]
    others = [other for other in caught_by if other is not None and other != rule.id]
    if others and len(others) == len(caught_by) and all(_has(rule, sample) for sample in rule.samples):
        yield "error", f"can never match its own samples: {_names(others)} catches all of them first"
        return
    for sample, other in zip(rule.samples, caught_by, strict=True):
        yield from _sample_doubts(rule, sample, other)
    yield from _effect_doubts(book, provider, rule)


def _sample_doubts(rule: ReplyRule, sample: str, caught_by: str | None) -> Iterator[tuple[str, str]]:
    if not REPLY.fullmatch(sample):
        yield "error", f"sample {sample!r} is no reply that rules are asked about: expected 4yz or 5yz and a text"
        return
    if not _has(rule, sample):
        yield "error", f"sample {sample!r} does not match its pattern"
    elif caught_by != rule.id:
        yield "error", f"sample {sample!r} is caught by {caught_by} first"
    verdict = classify(Reply(int(sample[:3]), (sample[4:],)), rule.stage or "dot")
    if verdict.blame == Blame.RECIPIENT and rule.effect != "none":
        yield "error", f"sample {sample!r} is about one recipient ({verdict.kind}), which should brake nobody else"


def _effect_doubts(book: RuleBook, provider: str, rule: ReplyRule) -> Iterator[tuple[str, str]]:
    limits = book.limits(provider)
    scopes = (limits.per_path, limits.per_site) if rule.scope == "path" else (limits.per_path, limits.per_source)
    for key, wanted in (("connections", rule.connections), ("message_rate", rule.rate)):
        set_already = [value for scope in scopes if (value := getattr(scope, key)) is not None]
        if wanted is not None and any(_amount(value) <= _amount(wanted) for value in set_already):
            yield "warning", f"brakes nothing: {key} is limited to as little already"


def _twin(book: RuleBook, provider: str, rule: ReplyRule) -> str:
    for earlier, _ in book.rules_of(provider):
        if earlier.id == rule.id:  # unique in a block, and a provider's own come first
            return ""
        if earlier.match == rule.match and earlier.stage in (None, rule.stage):
            return earlier.id
    return ""


def _caught_by(book: RuleBook, provider: str, rule: ReplyRule, sample: str) -> str | None:
    found = book.rule_for(provider, rule.stage or "dot", sample)
    return found[0].id if found else None


def _has(rule: ReplyRule, sample: str) -> bool:
    return re2.compile(rule.match, options()).search(sample) is not None


def _names(ids: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(ids))


def check_clean(rules: ShapingRules, book: RuleBook) -> Findings:
    """What no rule may catch: the samples of `default` at every provider, the others at their own."""
    for name, block in blocks(rules):
        for sample in (*rules.default.clean, *(block.clean if name != DEFAULT else ())):
            found = book.react(name, "dot", sample)
            if found is not None:
                text = f"catches {sample!r}, which is listed as clean"
                yield Finding("error", found[1], name, found[0].id, text)


# Matches


def check_overlaps(rules: ShapingRules, book: RuleBook) -> Findings:
    for (one, first), (other, second) in combinations(rules.providers.items(), 2):
        for kind in ("mx", "domain"):
            for a, b in product(getattr(first.match, kind), getattr(second.match, kind)):
                if text := _overlap(kind, a, one, b):
                    yield Finding("error" if a == b else "warning", book.place(other, "match", kind), other, "", text)
    for name, provider in rules.providers.items():
        for suffixes in (provider.match.mx, provider.match.domain):
            for a, b in combinations(suffixes, 2):
                if a == b or a.endswith(f".{b}") or b.endswith(f".{a}"):
                    text = f"match: {max(a, b, key=len)} says nothing beside {min(a, b, key=len)}"
                    yield Finding("warning", book.place(name, "match", ""), name, "", text)


def check_access(rules: ShapingRules, book: RuleBook) -> Findings:
    """Suffixes that the hosts of an access provider's customers have too."""
    for name, provider in rules.providers.items():
        for suffix in ACCESS & set(provider.match.mx):
            text = f"match: customers' own hosts are in {suffix} too: name the mail exchangers"
            yield Finding("warning", book.place(name, "match", ""), name, "", text)


def _overlap(kind: str, theirs: str, owner: str, ours: str) -> str:
    if theirs == ours:
        return f"match: {kind} suffix {ours} is also that of {owner}, which comes first and gets all its sites"
    if theirs.endswith(f".{ours}") or ours.endswith(f".{theirs}"):
        return f"match: {kind} suffix {ours} overlaps {theirs} of {owner}; the longer one wins"
    return ""


# Limits


def check_limits(rules: ShapingRules, book: RuleBook) -> Findings:
    """Limits that another one reaches first, always."""
    for name, provider in rules.providers.items():
        effective = book.limits(name)
        for key, (narrow, wide) in product(SHARED, WIDER):
            ours, theirs = getattr(getattr(provider, narrow), key), getattr(getattr(effective, wide), key)
            if ours is not None and theirs is not None and _amount(theirs) < _amount(ours):
                text = f"{narrow}.{key} never binds: {wide}.{key} is lower ({book.place(name, wide, key)})"
                yield Finding("warning", book.place(name, narrow, key), name, "", text)


def _amount(limit: int | Rate | ByteRate) -> float:
    if isinstance(limit, int):
        return limit
    return (limit.count if isinstance(limit, Rate) else limit.size) / limit.period


def check_empty(rules: ShapingRules, book: RuleBook) -> Findings:
    for flow in ("domain", "tenant", "campaign", "credential"):
        for name, limits in getattr(rules, f"{flow}s").items():
            if limits.message_rate is None and limits.byte_rate is None:
                yield Finding("warning", book.place(name, flow, ""), "", "", f"{flow} {name} has no limit")
    for name, provider in rules.providers.items():
        if not provider.rules and all(getattr(provider, scope) == type(provider.per_path)() for scope in SCOPES):
            yield Finding("warning", book.place(name, "match", ""), name, "", "has neither limits nor rules")
        if not provider.source or provider.date is None:
            text = "says not where its numbers come from, and of when they are: source, date"
            yield Finding("warning", book.place(name, "match", ""), name, "", text)


CHECKS: tuple[Callable[[ShapingRules, RuleBook], Findings], ...] = (
    check_rules,
    check_clean,
    check_overlaps,
    check_access,
    check_limits,
    check_empty,
)
