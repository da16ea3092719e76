"""The verdict rules made ready to be asked: the first rule that fits a text, else what its codes say.

Pure. All patterns are matched at once by google-re2, in time linear in the length of the text.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mailerd.config.verdicts import Action, Guess, Kind, VerdictRule, VerdictRules, pattern_filter

MAX_TEXT = 1_000  # characters looked at: replies of many lines repeat themselves, and a hostile one must stay cheap
REPORT = "report"  # the stage of what a report says when it does not say more
REPORTED = frozenset({"mail", "rcpt", "data", "dot"})  # the stages that it may well be: rules of these fit a report

URL = re.compile(r"(?:https?://|\bwww\.)([^\s/<>\"'()\[\],;]{1,255})([^\s<>\"']*)", re.IGNORECASE)
# What of a link says more than its host: Google's names of errors, Spamhaus' lists.
URL_SAYS = re.compile(r"\bp=\w+|/query/\w+|/(?:dbl|zen|sbl|xbl|pbl|css)\b", re.IGNORECASE)
ADDRESS = re.compile(r"[\w.+=~!#$%&*/?^`{|}-]{1,64}@[\w.-]+")


class Told(NamedTuple):
    """What a text or a code says. `action` None: that of the class; `rule` "": no rule, only codes."""

    kind: Kind
    action: Action | None
    rule: str


class VerdictBook:
    """Immutable; a reload makes a new one."""

    def __init__(self, rules: VerdictRules) -> None:
        self.classes = rules.classes
        self._rules = rules
        self._told = [Told(rule.kind, rule.action, rule.id) for rule in rules.rules]
        self._conditions = [_Conditions.of(rule) for rule in rules.rules]
        patterns = [(number, pattern) for number, rule in enumerate(rules.rules) for pattern in rule.match]
        self._owners = [number for number, _ in patterns]
        self._patterns = pattern_filter(pattern for _, pattern in patterns) if patterns else None
        self._textless = frozenset(number for number, rule in enumerate(rules.rules) if not rule.match)

    @property
    def rules(self) -> tuple[VerdictRule, ...]:
        """In the order in which they are asked."""
        return self._rules.rules

    def place(self, rule: str) -> str:
        """Where a rule stands: `file:line`."""
        return self._rules.places.get(rule, "")

    def fitting(self, code: int, enhanced: str, text: str, stage: str) -> Iterator[Told]:
        """The rules that fit, in their order. `enhanced` is as in a reply (`5.1.1`) or "", `code` 0 when unknown."""
        matching = self._patterns.Match(plain(text)) if text and self._patterns is not None else None
        found = {self._owners[index] for index in matching or ()}
        detail = enhanced[2:]
        for number in sorted(found | self._textless):
            conditions = self._conditions[number]
            if conditions is None or conditions.hold(code, detail, stage):
                yield self._told[number]

    def told(self, code: int, enhanced: str, text: str, stage: str) -> Told:
        """What the text says, else the codes; `Kind.OTHER` when nothing is known about either."""
        fitting = next(self.fitting(code, enhanced, text, stage), None)
        if fitting is not None:
            return fitting
        by_code = self.by_code(code, stage)
        detail = enhanced[2:]
        if by_code is not None and (not detail or detail in self._rules.vague):
            return by_code
        return self.by_detail(detail) or by_code or Told(Kind.OTHER, None, "")

    def by_detail(self, detail: str, *, exact: bool = False) -> Told | None:
        """What `1.1` says by itself; None for a vague or unknown one. Not `exact`: its subject may speak for it."""
        if not detail or detail in self._rules.vague:
            return None
        guess = self._rules.enhanced.get(detail)
        if guess is None and not exact:
            guess = self._rules.enhanced.get(detail.partition(".")[0])
        return _told(guess)

    def by_code(self, code: int, stage: str) -> Told | None:
        codes = self._rules.codes
        return _told(codes.get(f"{code} {stage}") or codes.get(str(code)))


class _Conditions(NamedTuple):
    """What must hold besides the text; None: anything."""

    codes: frozenset[int] | None
    details: frozenset[str] | None  # and subjects
    stages: frozenset[str] | None

    @classmethod
    def of(cls, rule: VerdictRule) -> "_Conditions | None":
        if not (rule.code or rule.enhanced or rule.stage):
            return None
        return cls(
            frozenset(number for code in rule.code for number in code.codes()) if rule.code else None,
            frozenset(each for detail in rule.enhanced for each in detail.details()) if rule.enhanced else None,
            frozenset(rule.stage) if rule.stage else None,
        )

    def hold(self, code: int, detail: str, stage: str) -> bool:
        if self.codes is not None and code not in self.codes:
            return False
        if self.stages is not None and self.stages.isdisjoint(REPORTED if stage == REPORT else {stage}):
            return False
        return self.details is None or detail in self.details or (detail[:1] in self.details and detail != "")


def plain(text: str) -> str:
    """The words of a reply that patterns are held against.

    Of a link only the host stays and what large providers say in it, of an address nothing: `see https://x.example/spam`
    in a reply about an unknown user makes it no spam, nor does a user who is named full.
    """
    text = text[:MAX_TEXT]
    if "://" in text or "www." in text:
        text = URL.sub(_url, text)
    if "@" in text:
        text = ADDRESS.sub("@", text)
    if not text.isascii():
        text = text.translate(TYPOGRAPHY)
    return MBOX.sub("mailbox", text)


MBOX = re.compile(r"(?<![\w./-])mbox\b(?! (?:format|file))", re.IGNORECASE)  # a mailbox; not a file or its name
TYPOGRAPHY = str.maketrans({"\u2019": "'", "\u2018": "'", "\u00a0": " ", "\u202f": " ", "\u2010": "-", "\u2011": "-"})


def _url(match: re.Match[str]) -> str:
    says = URL_SAYS.search(match[2])
    return f"{match[1]} {says[0]}" if says else match[1]


def _told(guess: Guess | None) -> Told | None:
    return None if guess is None else Told(guess.kind, guess.action, "")
