"""The verdict rules: what replies and reports mean, which class each is of, and what follows from a class.

Read from one or more YAML files of the form of `mailerd/verdicts.yaml`, which ships with rules for the replies of many
mail systems. Files are laid over one another: the rules of a later one are asked first, one with the id of an earlier
rule takes its place, and what it says of a class or a code replaces the same of the earlier ones, key by key.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import re2
from msgspec import field

import mailerd
from mailerd.config.checks import Place
from mailerd.config.reader import INVALID, TreeReader
from mailerd.config.rule_files import read_rule_files
from mailerd.config.shaping import RULE_ID, Pattern, Stage, options, parse_pattern
from mailerd.config.tree import Node
from mailerd.config.values import PARSERS, FilePath
from mailerd.errors import ConfigError, ConfigProblem

BUILTIN_NAME = "mailerd/verdicts.yaml"  # what problems call the rules that ship with mailerd
SHIPPED = Path(mailerd.__file__).with_name("verdicts.yaml")


class Kind(StrEnum):
    """The class of a verdict; a stable word that logs, events, metrics and the retry schedule use."""

    DELIVERED = "delivered"
    INVALID_RECIPIENT = "invalid_recipient"
    INACTIVE = "inactive"
    MAILBOX_FULL = "mailbox_full"
    BAD_DOMAIN = "bad_domain"
    INVALID_SENDER = "invalid_sender"
    GREYLISTED = "greylisted"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_RECIPIENTS = "too_many_recipients"
    SPAM_BLOCK = "spam_block"  # who sends: our address and its reputation
    DOMAIN_BLOCK = "domain_block"  # our domain, or a link in the message, and its reputation
    CONTENT = "content"  # what is sent: spam score, virus, attachment
    POLICY = "policy"
    AUTH_FAILURE = "auth_failure"  # SPF, DKIM, DMARC, reverse DNS; SMTP AUTH
    RELAY_DENIED = "relay_denied"
    TOO_LARGE = "too_large"
    ROUTING = "routing"
    DNS = "dns"
    NETWORK = "network"
    TLS = "tls"
    PROTOCOL = "protocol"
    EXPIRED = "expired"
    OTHER = "other"
    COMPLAINT = "complaint"  # of a feedback report
    SUPPRESSED = "suppressed"  # by us: the address must not be mailed


class Blame(StrEnum):
    """Whose fault: a bounce may lead to a suppression only where it is the `recipient`'s."""

    RECIPIENT = "recipient"
    SENDER = "sender"
    CONTENT = "content"
    SOURCE = "source"  # our address, name, credentials or configuration
    NETWORK = "network"
    REMOTE = "remote"
    NOBODY = ""


class Action(StrEnum):
    """What to do after a verdict."""

    SUPPRESS = "suppress"  # it is permanently about the recipient: mail the address no more
    COUNT = "count"  # a soft bounce: three of them over a day suppress
    RETRY = "retry"
    OTHER_SOURCE = "other_source"
    SLOW = "slow"
    TELL = "tell"  # the sender has something to put right
    NOTHING = ""


class ReplyCode(str):
    """A reply code, or a range of them: `550`, `55z`, `5yz`."""

    __slots__ = ()

    def codes(self) -> range:
        first = int(self.translate({ord("y"): "0", ord("z"): "0"}))
        return range(first, first + 10 ** sum(letter in "yz" for letter in self))


class Detail(str):
    """What follows the class of an enhanced code: `1.1`, `7.606-649`, `7.*` (any of the subject), `none` (no code)."""

    __slots__ = ()

    def details(self) -> list[str]:
        """All it stands for; of `7.*` the subject, of `none` the empty text."""
        subject, _, detail = self.partition(".")
        first, _, last = detail.partition("-")
        if self == "none" or detail == "*":
            return ["" if self == "none" else subject]
        return [f"{subject}.{number}" for number in range(int(first), int(last or first) + 1)]


class Guess(NamedTuple):
    """What a code means when no rule fits: a class, and what to do if not what its class says."""

    kind: Kind
    action: Action | None


class VerdictClass(Node, frozen=True):
    """What follows from a class."""

    permanent: bool = True  # whether a 5yz reply of it is a bounce; else it is deferred like a 4yz
    blame: Blame = Blame.REMOTE
    action: Action = Action.TELL  # after a bounce; other_source and slow also after a deferral
    only_with: tuple[Detail, ...] = ()  # suppress: only with one of these enhanced codes, else count; empty: always
    note: str = ""


class VerdictRule(Node, frozen=True, kw_only=True):
    """What a reply or a report must say to be of a class. Every condition that is given must hold."""

    id: str
    kind: Kind = field(name="class")
    match: tuple[Pattern, ...] = ()  # one of them in the text without enhanced codes; empty: any text
    code: tuple[ReplyCode, ...] = ()
    enhanced: tuple[Detail, ...] = ()
    stage: tuple[Stage, ...] = ()
    action: Action | None = None  # None: that of the class
    source: str = ""  # where the replies are documented
    samples: tuple[str, ...] = ()  # replies that it is for


class _File(Node, frozen=True):
    classes: dict[str, VerdictClass] = field(default_factory=dict)
    rules: tuple[VerdictRule, ...] = ()
    vague: tuple[Detail, ...] = ()  # enhanced codes that say less than the reply code
    enhanced: dict[str, Guess] = field(default_factory=dict)
    codes: dict[str, Guess] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """All files together, rules in the order in which they are asked.

    `enhanced` is by `subject.detail` or `subject`, `codes` by `550` or `550 rcpt` (of that stage; `report`: of a report
    that does not say the stage). `places` says where a rule stands, `file:line` by its id.
    """

    classes: Mapping[Kind, VerdictClass]
    rules: tuple[VerdictRule, ...]
    vague: frozenset[str]
    enhanced: Mapping[str, Guess]
    codes: Mapping[str, Guess]
    places: Mapping[str, str]


def builtin_verdicts() -> str:
    """The text of the rules that ship with mailerd."""
    return SHIPPED.read_text("utf-8")


def read_verdicts(
    files: Sequence[FilePath | str], directory: Path, named_in: tuple[str, str] | None = None
) -> dict[str, str]:
    """The texts of `verdicts.files`, as `read_rule_files` gives them. Raises `ConfigError`."""
    return read_rule_files("verdicts.files", files, directory, (BUILTIN_NAME, SHIPPED), named_in)


def parse_verdicts(texts: Mapping[str, str]) -> VerdictRules:
    """Make the rules of these files (name to text, later ones win), or raise `ConfigError` with every problem.

    No file at all: the rules that ship with mailerd.
    """
    merged = _Merged()
    problems: list[ConfigProblem] = []
    shipped = builtin_verdicts()
    for name, text in (texts or {BUILTIN_NAME: shipped}).items():
        ours = text == shipped
        reader = TreeReader(name, {}, SHIPPED_PARSERS if ours else VERDICT_PARSERS)
        root = reader.compose(text, ours=ours)
        file = _File() if root is None else reader.read(root, FILE_TREE, ())
        if file is not INVALID:
            for place, message in _findings(file):
                reader.problem(place, message)
            merged.add(file, name, reader)
        problems += sorted(reader.problems, key=lambda problem: problem.line)
    if not problems:
        problems = list(merged.findings(list(texts)[-1] if texts else BUILTIN_NAME))
    if problems:
        raise ConfigError(problems)
    return merged.rules()


def pattern_filter(patterns: Iterable[str]) -> Any:
    """A compiled `re2.Filter`: tells in one pass which of the patterns a text has. `re2.error` when it cannot be made.

    It looks for the words that patterns cannot do without, and holds only those patterns against the text whose words
    are there. A `re2.Set` of so many patterns with gaps makes a new state at nearly every letter of a text that it has
    not seen yet: a millisecond for a reply, fifty times as long.
    """
    made = re2.Filter()
    for pattern in patterns:
        made.Add(pattern, options())
    made.Compile()
    return made


# Scalars


def _parse_word(words: type[StrEnum], nothing: str = "nothing") -> Any:
    """A parser of the words of an enum; `nothing` stands for the empty one."""
    allowed = {str(word) or nothing: word for word in words}

    def parse(text: str) -> StrEnum:
        if text not in allowed:
            raise ValueError(f"expected {', '.join(allowed)}")
        return allowed[text]

    return parse


parse_kind = _parse_word(Kind)
parse_action = _parse_word(Action)
REPLY_CODE = re.compile(r"[45](?:[0-9][0-9]|[0-9]z|yz)", re.ASCII)
DETAIL = re.compile(r"none|[0-9]\.\*|[0-9]\.[0-9]{1,3}(?:-[0-9]{1,3})?", re.ASCII)


def parse_reply_code(text: str) -> ReplyCode:
    if not REPLY_CODE.fullmatch(text):
        raise ValueError("expected a reply code, such as 550, 55z or 5yz")
    return ReplyCode(text)


def parse_detail(text: str) -> Detail:
    if not DETAIL.fullmatch(text):
        raise ValueError("expected an enhanced code without its class, such as 1.1, 7.606-649, 7.* or none")
    return Detail(text)


def parse_guess(text: str) -> Guess:
    kind, *action = text.split()
    if len(action) > 1:
        raise ValueError("expected a class, or a class and what to do, such as invalid_recipient count")
    return Guess(parse_kind(kind), parse_action(action[0]) if action else None)


VERDICT_PARSERS = {
    **PARSERS,
    Pattern: parse_pattern,
    ReplyCode: parse_reply_code,
    Detail: parse_detail,
    Guess: parse_guess,
    Kind: parse_kind,
    Action: parse_action,
    Blame: _parse_word(Blame, "nobody"),
}
# Every process reads the rules that ship, and a test compiles each of their patterns: there is no need to do it again.
SHIPPED_PARSERS = {**VERDICT_PARSERS, Pattern: Pattern}
FILE_TREE = msgspec.inspect.type_info(_File)
ENHANCED_KEY = re.compile(r"[0-9](?:\.[0-9]{1,3})?", re.ASCII)
CODE_KEY = re.compile(
    r"[45][0-9][0-9](?: (?:connect|greeting|ehlo|starttls|auth|mail|rcpt|data|dot|report))?", re.ASCII
)


# What must fit together


def _findings(file: _File) -> Iterator[tuple[Place, str]]:
    for name in file.classes:
        if name not in set(Kind):
            yield ("classes", name), f"there is no such class, only {', '.join(Kind)}"
    for key in file.enhanced:
        if not ENHANCED_KEY.fullmatch(key):
            yield (
                ("enhanced", key),
                "expected an enhanced code without its class, such as 1.1, or its subject, such as 7",
            )
    for key in file.codes:
        if not CODE_KEY.fullmatch(key):
            yield ("codes", key), "expected a reply code and perhaps a stage, such as 550 or 550 rcpt"
    ids: set[str] = set()
    for index, rule in enumerate(file.rules):
        at = ("rules", index)
        if not RULE_ID.fullmatch(rule.id):
            yield (*at, "id"), f"{rule.id!r}: expected letters, digits, - _ and ., at most 63"
        if rule.id in ids:
            yield (*at, "id"), f"{rule.id!r} is here twice"
        ids.add(rule.id)
        if not (rule.match or rule.code or rule.enhanced):
            yield at, "it would catch every reply: expected match, code or enhanced"


class _Merged:
    """Gathers the files in their order."""

    def __init__(self) -> None:
        self._classes: dict[Kind, VerdictClass] = {}
        self._rules: tuple[VerdictRule, ...] = ()
        self._vague: set[str] = set()
        self._enhanced: dict[str, Guess] = {}
        self._codes: dict[str, Guess] = {}
        self._places: dict[str, str] = {}

    def add(self, file: _File, name: str, reader: TreeReader) -> None:
        for word, later in file.classes.items():
            if word in set(Kind):
                given = {
                    key: getattr(later, key)
                    for key in VerdictClass.__struct_fields__
                    if ("classes", word, key) in reader.lines
                }
                earlier = self._classes.get(Kind(word), VerdictClass())
                self._classes[Kind(word)] = msgspec.structs.replace(earlier, **given)
        replacing = {rule.id: rule for rule in file.rules}
        kept = {rule.id for rule in self._rules}
        added = tuple(rule for rule in file.rules if rule.id not in kept)
        self._rules = added + tuple(replacing.get(rule.id, rule) for rule in self._rules)
        for index, rule in enumerate(file.rules):
            self._places[rule.id] = f"{name}:{reader.line_of(('rules', index))}"
        self._vague |= {each for detail in file.vague for each in detail.details()}
        self._enhanced |= file.enhanced
        self._codes |= file.codes

    def findings(self, last: str) -> Iterator[ConfigProblem]:
        """What is wrong with all files together; `last` is the name of the last."""
        for kind in Kind:
            if kind not in self._classes:
                yield ConfigProblem(
                    last, 1, f"classes.{kind}", "no file has it: expected builtin first in verdicts.files"
                )
        try:
            pattern_filter(pattern for rule in self._rules for pattern in rule.match)
        except re2.error:
            yield ConfigProblem(last, 1, "rules", "all patterns together are too large")

    def rules(self) -> VerdictRules:
        return VerdictRules(
            self._classes, self._rules, frozenset(self._vague), self._enhanced, self._codes, self._places
        )
