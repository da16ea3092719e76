"""The shaping rules: how fast each provider, domain, tenant, campaign and credential is mailed, and what replies do.

Read from one or more YAML files of the form of `mailerd/shaping.yaml`, which ships with limits for the large providers.
Files are laid over one another: what a later one says of a provider replaces the same keys of the earlier ones (`null`
takes a limit away), its rules go before theirs, and a rule with the id of an earlier one takes its place.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import re2
from msgspec import Meta, field

import mailerd
from mailerd.config.checks import NAME, Place
from mailerd.config.places import dotted
from mailerd.config.reader import INVALID, TreeReader
from mailerd.config.rule_files import BUILTIN as BUILTIN
from mailerd.config.rule_files import read_rule_files
from mailerd.config.tree import Node
from mailerd.config.values import PARSERS, ByteRate, Date, Duration, FilePath, Rate, parse_hostname
from mailerd.errors import ConfigError, ConfigProblem

BUILTIN_NAME = "mailerd/shaping.yaml"  # what problems and explanations call them
SHIPPED = Path(mailerd.__file__).with_name("shaping.yaml")
DEFAULT = "default"  # the provider of all sites that belong to no other
MAX_PATTERN = 1_000  # characters
MAX_EFFECT = 7 * 86_400  # seconds: a brake is no substitute for a limit
SHARED = ("connections", "connection_rate", "message_rate", "byte_rate")  # what a scope above a path can count


class Suffix(str):
    """The end of a name, label by label: `google.com` fits google.com and mx.google.com, never notgoogle.com."""

    __slots__ = ()


class Pattern(str):
    """A regular expression of google-re2, found anywhere in a reply, upper or lower case."""

    __slots__ = ()


class Limits(Node, frozen=True):
    """What is never exceeded; None: not limited."""

    connections: Annotated[int, Meta(ge=1, le=100_000)] | None = None  # at the same time
    connection_rate: Rate | None = None  # new connections
    message_rate: Rate | None = None
    byte_rate: ByteRate | None = None
    messages_per_connection: Annotated[int, Meta(ge=1)] | None = None
    recipients_per_transaction: Annotated[int, Meta(ge=1, le=1000)] | None = None


class FlowLimits(Node, frozen=True):
    """Limits of a domain, tenant, campaign or credential, over all sources and sites."""

    message_rate: Rate | None = None
    byte_rate: ByteRate | None = None


class Match(Node, frozen=True):
    """Which sites are a provider's: all MX hosts end in one of `mx`, or the recipient's domain in one of `domain`."""

    mx: tuple[Suffix, ...] = ()
    domain: tuple[Suffix, ...] = ()


Stage = Literal["connect", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot"]


class ReplyRule(Node, frozen=True, kw_only=True):
    """What a reply brings about. `lasts` (in the file: `for`) is how long, in seconds.

    pause: nothing is sent; slow: at most `rate`; connections: at most so many; avoid: other sources of the pool are
    preferred; none: nothing, also not what later rules say. `scope` source: this source at all sites of the provider;
    path: at this site. At sites that belong to no provider it is always path.
    """

    id: str
    match: Pattern  # in "code enhanced text"
    stage: Stage | None = None  # None: any
    effect: Literal["pause", "slow", "connections", "avoid", "none"]
    lasts: Duration = field(default=Duration(0), name="for")
    rate: Rate | None = None
    connections: Annotated[int, Meta(ge=1)] | None = None
    after: Rate | None = None  # only when so many such replies came within the period; None: at the first
    scope: Literal["path", "source"] = "source"
    samples: tuple[str, ...] = ()  # replies that it is for


class Provider(Node, frozen=True):
    """A large mailbox operator. `source` and `date` say where the numbers come from, and of when they are."""

    match: Match = Match()
    source: str = ""
    date: Date | None = None
    per_path: Limits = Limits()  # one source at one site
    per_source: Limits = Limits()  # one source at all sites of the provider
    per_site: Limits = Limits()  # all sources at one site
    total: Limits = Limits()  # all sources at all sites
    rules: tuple[ReplyRule, ...] = ()
    clean: tuple[str, ...] = ()  # replies that no rule may catch


class _Default(Node, frozen=True):
    """What goes for every provider that says nothing else. Without `per_source` and `total`: it is no one operator."""

    source: str = ""
    date: Date | None = None
    per_path: Limits = Limits()
    per_site: Limits = Limits()
    rules: tuple[ReplyRule, ...] = ()
    clean: tuple[str, ...] = ()


class _File(Node, frozen=True):
    default: _Default = _Default()
    providers: dict[str, Provider] = field(default_factory=dict)
    domains: dict[str, FlowLimits] = field(default_factory=dict)
    tenants: dict[str, FlowLimits] = field(default_factory=dict)
    campaigns: dict[str, FlowLimits] = field(default_factory=dict)
    credentials: dict[str, FlowLimits] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShapingRules:
    """All files together. `places` says where each limit and rule stands: `file:line` by the way to its key.

    The ways are `("default", "per_path", "connections")`, `("providers", NAME)`, `("providers", NAME, "per_path",
    "connections")`, `("providers", NAME, "rules", ID)`, `("tenants", NAME, "message_rate")` and so on.
    """

    default: Provider
    providers: Mapping[str, Provider]
    domains: Mapping[str, Limits]
    tenants: Mapping[str, Limits]
    campaigns: Mapping[str, Limits]
    credentials: Mapping[str, Limits]
    places: Mapping[Place, str]


def builtin_shaping() -> str:
    """The text of the rules that ship with mailerd."""
    return SHIPPED.read_text("utf-8")


def read_shaping(
    files: Sequence[FilePath | str], directory: Path, named_in: tuple[str, str] | None = None
) -> dict[str, str]:
    """The texts of `shaping.files` by the names that problems use; relative files are relative to `directory`.

    `named_in` is the name and the text of the configuration that lists them: problems point to its line.

    Raises `ConfigError` with every file that cannot be read.
    """
    return read_rule_files("shaping.files", files, directory, (BUILTIN_NAME, SHIPPED), named_in)


def parse_shaping(texts: Mapping[str, str]) -> ShapingRules:
    """Make the rules of these files (name to text, later ones win), or raise `ConfigError` with every problem."""
    merged = _Merged()
    problems: list[ConfigProblem] = []
    for name, text in texts.items():
        reader = TreeReader(name, {}, SHAPING_PARSERS)
        root = reader.compose(text)
        file = _File() if root is None else reader.read(root, FILE_TREE, ())
        if file is not INVALID:
            for place, message in _findings(file, merged.providers):
                reader.problem(place, message)
            merged.add(file, name, reader)
        problems += sorted(reader.problems, key=lambda problem: problem.line)
    if not problems:
        problems = list(merged.too_large())
    if problems:
        raise ConfigError(problems)
    return merged.rules()


def pattern_set(patterns: Iterable[str]) -> Any:
    """A compiled `re2.Set`: tells in one pass which of the patterns a text has. `re2.error` when they are too large."""
    made = re2.Set.SearchSet(options())
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


def options() -> Any:
    """How patterns are compiled: case makes no difference, and nothing is printed about bad ones."""
    chosen = re2.Options()
    chosen.case_sensitive = False
    chosen.log_errors = False
    return chosen


def parse_suffix(text: str) -> Suffix:
    try:
        return Suffix(parse_hostname(text))
    except ValueError:
        hint = " (no dot at its ends, no *)" if text.strip(".*") != text else ""
        raise ValueError(f"expected the end of a name, such as google.com{hint}") from None


def parse_pattern(text: str) -> Pattern:
    """Refuse what re2 does not know (look-around, back-references), and what would catch every reply."""
    if not 0 < len(text) <= MAX_PATTERN:
        raise ValueError(f"expected a regular expression of 1 to {MAX_PATTERN} characters")
    try:
        compiled = re2.compile(text, options())
    except re2.error as error:
        reason = error.args[0] if error.args else "not a regular expression"
        words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"google-re2 refuses it: {words}") from None
    if compiled.search("") is not None:
        raise ValueError("it fits the empty text, so it would catch every reply: expected something to look for")
    return Pattern(text)


SHAPING_PARSERS = {**PARSERS, Suffix: parse_suffix, Pattern: parse_pattern}
FILE_TREE = msgspec.inspect.type_info(_File)
SCOPES = ("per_path", "per_source", "per_site", "total")
FLOWS = ("domains", "tenants", "campaigns", "credentials")
RULE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)


# What must fit together in one file


def _findings(file: _File, known: Mapping[str, Provider]) -> Iterator[tuple[Place, str]]:
    yield from _block_findings(("default",), file.default)
    for name, provider in file.providers.items():
        place = ("providers", name)
        if not NAME.fullmatch(name):
            yield place, "expected a name of a-z, 0-9, - and _, at most 63 characters"
        if name == DEFAULT:
            yield place, "the limits and rules for all others stand in the block `default` of the file"
        if not provider.match.mx and not provider.match.domain and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            near = f" (did you mean {close[0]}?)" if close else ""
            yield place, f"no earlier file has this provider{near}, so it needs a match: {{mx: […], domain: […]}}"
        yield from _block_findings(place, provider)
    for domain in file.domains:
        yield from _domain_findings(domain)


def _domain_findings(domain: str) -> Iterator[tuple[Place, str]]:
    try:
        written = parse_hostname(domain)
    except ValueError as error:
        yield ("domains", domain), f"{domain!r}: {error}"
        return
    if written != domain:
        yield ("domains", domain), f"expected it in lower case and A-labels: {written}"


def _block_findings(place: Place, block: Provider | _Default) -> Iterator[tuple[Place, str]]:
    for scope in SCOPES:
        limits = getattr(block, scope, Limits())
        for key in Limits.__struct_fields__:
            if scope != "per_path" and key not in SHARED and getattr(limits, key) is not None:
                yield (*place, scope, key), "is about one connection: expected it in per_path"
    ids: set[str] = set()
    for index, rule in enumerate(block.rules):
        at = (*place, "rules", index)
        if not RULE_ID.fullmatch(rule.id):
            yield (*at, "id"), f"{rule.id!r}: expected letters, digits, - _ and ., at most 63"
        if rule.id in ids:
            yield (*at, "id"), f"{rule.id!r} is here twice"
        ids.add(rule.id)
        for key, message in _rule_findings(rule):
            yield (*at, key), message


def _rule_findings(rule: ReplyRule) -> Iterator[tuple[str, str]]:
    if rule.effect != "none" and not 0 < rule.lasts <= MAX_EFFECT:
        yield "for", "is missing: expected how long, longer than 0 and at most 7d"
    for key, effect in (("rate", "slow"), ("connections", "connections")):
        if rule.effect == effect and getattr(rule, key) is None:
            yield key, f"is missing: effect {effect} needs it"
        if rule.effect != effect and getattr(rule, key) is not None:
            yield key, f"does nothing with effect {rule.effect}"


# Files laid over one another


class _Merged:
    """Gathers the files in their order."""

    def __init__(self) -> None:
        self.providers: dict[str, Provider] = {}
        self._default = Provider()
        self._flows: dict[str, dict[str, Limits]] = {flow: {} for flow in FLOWS}
        self._places: dict[Place, str] = {}

    def add(self, file: _File, name: str, reader: TreeReader) -> None:
        given = _Given(name, reader.lines)
        default = Provider(**msgspec.structs.asdict(file.default))
        self._default = self._over(self._default, default, given, ("default",))
        for provider, block in file.providers.items():
            earlier = self.providers.get(provider, Provider())
            self.providers[provider] = self._over(earlier, block, given, ("providers", provider))
        for flow in FLOWS:
            for key, limits in getattr(file, flow).items():
                later = Limits(message_rate=limits.message_rate, byte_rate=limits.byte_rate)
                place = (flow, key)
                self._places[place] = given.where(place)
                self._flows[flow][key] = self._limits(self._flows[flow].get(key, Limits()), later, given, place)

    def too_large(self) -> Iterator[ConfigProblem]:
        """The providers whose patterns fit one by one, and together not into the memory that re2 allows."""
        blocks: list[tuple[Place, Provider]] = [(("providers", name), each) for name, each in self.providers.items()]
        for place, provider in [*blocks, ((DEFAULT,), Provider())]:
            try:
                pattern_set(rule.match for rule in provider.rules + self._default.rules)
            except re2.error:
                file, _, line = self._places[place].rpartition(":")
                yield ConfigProblem(file, int(line), dotted((*place, "rules")), "all patterns together are too large")

    def rules(self) -> ShapingRules:
        return ShapingRules(self._default, self.providers, **self._flows, places=self._places)

    def _over(self, earlier: Provider, later: Provider, given: "_Given", place: Place) -> Provider:
        if given.has(place):
            self._places[place] = given.where(place)
        values: dict[str, Any] = {
            key: getattr(later if given.has((*place, key)) else earlier, key) for key in ("match", "source", "date")
        }
        for scope in SCOPES:
            values[scope] = self._limits(getattr(earlier, scope), getattr(later, scope), given, (*place, scope))
        for index, rule in enumerate(later.rules):
            self._places[(*place, "rules", rule.id)] = given.where((*place, "rules", index))
        return Provider(**values, rules=_rules(earlier.rules, later.rules), clean=earlier.clean + later.clean)

    def _limits(self, earlier: Limits, later: Limits, given: "_Given", place: Place) -> Limits:
        keys = [key for key in Limits.__struct_fields__ if given.has((*place, key))]
        for key in keys:
            self._places[(*place, key)] = given.where((*place, key))
        return msgspec.structs.replace(earlier, **{key: getattr(later, key) for key in keys})


@dataclass(frozen=True, slots=True)
class _Given:
    """What one file says, and where."""

    file: str
    lines: Mapping[Place, int]

    def has(self, place: Place) -> bool:
        return place in self.lines

    def where(self, place: Place) -> str:
        return f"{self.file}:{self.lines[place]}"


def _rules(earlier: tuple[ReplyRule, ...], later: tuple[ReplyRule, ...]) -> tuple[ReplyRule, ...]:
    replacing = {rule.id: rule for rule in later}
    kept = {rule.id for rule in earlier}
    added = tuple(rule for rule in later if rule.id not in kept)
    return added + tuple(replacing.get(rule.id, rule) for rule in earlier)
