"""The rule book: which provider a site belongs to, which limits bind there, and what a reply brings about.

Pure: it is asked with facts and answers with values; who keeps the limits and carries out the effects is elsewhere.
Operators' patterns are matched by google-re2, all of a provider at once, in time linear in the length of the reply.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import re2

from mailerd.config import Delivery
from mailerd.config.shaping import DEFAULT, Limits, Provider, ReplyRule, ShapingRules, options, pattern_set

MAX_SITES = 10_000  # sets of MX hosts whose provider is remembered
MAX_REPLY = 1_000  # characters looked at: the longest that providers write, and a hostile one must stay cheap
FLOWS = {"domain": "domains", "tenant": "tenants", "campaign": "campaigns", "credential": "credentials"}
FALLBACKS = {
    ("per_path", "messages_per_connection"): "messages_per_connection",
    ("per_path", "recipients_per_transaction"): "recipients_per_transaction",
    ("per_path", "connections"): "connections_per_path",
}  # by scope and key: the key of `delivery` that goes for every provider that says nothing


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """What binds at a provider, defaults filled in: None in a limit means not limited."""

    per_path: Limits  # one source at one site
    per_source: Limits  # one source at all sites of the provider
    per_site: Limits  # all sources at one site
    total: Limits  # all sources at all sites


@dataclass(frozen=True, slots=True)
class Learnt:
    """A limit that a reply has shown. `limit` is the number that it states, None where it states none.

    None then means: what we had reached when it came was too much.
    """

    key: Literal["messages_per_connection", "recipients_per_transaction", "connections"]
    limit: int | None


class RuleBook:
    """The shaping rules made ready to be asked, on top of the defaults of `delivery`.

    Immutable as seen from outside; a reload makes a new one. Names of providers, `default` included, are its keys.
    """

    def __init__(self, rules: ShapingRules, delivery: Delivery) -> None:
        self._rules = rules
        self._domains = _suffixes((name, provider.match.domain) for name, provider in rules.providers.items())
        self._mx = _suffixes((name, provider.match.mx) for name, provider in rules.providers.items())
        self._sites: dict[tuple[str, ...], str] = {}
        self._default = _limits(Provider(), rules.default, delivery)
        self._limits = {name: _limits(each, rules.default, delivery) for name, each in rules.providers.items()}
        self._replies: dict[str, _ReplyRules] = {}

    @property
    def providers(self) -> Mapping[str, Provider]:
        """What the files say of each, without the defaults."""
        return self._rules.providers

    def provider_of(self, domain: str, mx: Sequence[str]) -> str:
        """The provider that mail for `domain` goes to, which has these MX hosts (all of them, lower case, no dot last).

        A provider fits when the domain ends in one of its `domain` suffixes, or else when every host ends in one of
        its `mx` suffixes. The longest suffix wins, then the earlier provider. `default` when none fits.
        """
        if self._domains:
            found = _longest(self._domains, domain)
            if found:
                return max(found, key=lambda name: found[name])
        hosts = tuple(mx)
        provider = self._sites.get(hosts)
        if provider is None:
            if len(self._sites) >= MAX_SITES:
                self._sites.clear()
            provider = self._sites[hosts] = self._provider_of_hosts(hosts)
        return provider

    def _provider_of_hosts(self, hosts: tuple[str, ...]) -> str:
        found = [_longest(self._mx, host) for host in hosts]
        if not found:
            return DEFAULT
        common = {name: min(each[name] for each in found) for name in found[0] if all(name in each for each in found)}
        return max(common, key=lambda name: common[name], default=DEFAULT)

    def limits(self, provider: str) -> ProviderLimits:
        """The limits at a provider; those of `default` for a name that no file has."""
        return self._limits.get(provider, self._default)

    def place(self, name: str, scope: str, key: str) -> str:
        """Where a limit or rule stands: `file:line`, or the key of `delivery` that it comes from, else "".

        `scope` is per_path, per_source, per_site or total with a provider's name and a key of Limits; `rules` with a
        provider's name and the id of a rule; `match` with a provider's name; or domain, tenant, campaign or credential
        with its name and a key.
        """
        places = self._rules.places
        if scope in FLOWS:
            return places.get((FLOWS[scope], name, key) if key else (FLOWS[scope], name), "")
        if scope == "match":
            return places.get(("providers", name), "")
        own = "" if self._unset(name, scope, key) else places.get(("providers", name, scope, key), "")
        if own:
            return own
        if scope == "rules" or getattr(getattr(self._rules.default, scope), key) is not None:
            return places.get((DEFAULT, scope, key), "")
        fallback = FALLBACKS.get((scope, key))
        return f"delivery.{fallback}" if fallback else ""

    def _unset(self, name: str, scope: str, key: str) -> bool:
        """Whether a provider's limit was taken away again by a `null`."""
        provider = self._rules.providers.get(name)
        return provider is None or (scope != "rules" and getattr(getattr(provider, scope), key) is None)

    def of_domain(self, domain: str) -> Limits | None:
        """The limits of a recipient domain over all sources; None, the usual case: none."""
        return self._rules.domains.get(domain)

    def of_tenant(self, tenant: str) -> Limits | None:
        return self._rules.tenants.get(tenant)

    def of_campaign(self, campaign: str) -> Limits | None:
        return self._rules.campaigns.get(campaign)

    def of_credential(self, credential: str) -> Limits | None:
        return self._rules.credentials.get(credential)

    def react(self, provider: str, stage: str, reply: str) -> tuple[ReplyRule, str] | None:
        """The rule that a 4yz or 5yz reply (`421 4.7.0 text`) sets off at this provider and stage, and its place.

        None: no rule, or one whose effect is `none`.
        """
        found = self.rule_for(provider, stage, reply)
        return None if found is None or found[0].effect == "none" else found

    def rule_for(self, provider: str, stage: str, reply: str) -> tuple[ReplyRule, str] | None:
        """The first rule that matches, in the order of `rules_of`, whatever its effect."""
        rules = self._replies.get(provider)
        if rules is None:
            # Compiled when first needed: most workers never hear from most providers, and each takes memory.
            rules = self._replies[provider] = _ReplyRules(self.rules_of(provider))
        return rules.first(stage, reply)

    def rules_of(self, provider: str) -> list[tuple[ReplyRule, str]]:
        """The rules that replies of a provider are held against, in this order, with their places: its own first.

        At `default` every rule is for the path alone: its sites have nothing in common but that nobody knows them.
        """
        places = self._rules.places
        everybodys = [(rule, places[(DEFAULT, "rules", rule.id)]) for rule in self._rules.default.rules]
        block = self._rules.providers.get(provider)
        if block is None:
            return [(msgspec.structs.replace(rule, scope="path"), place) for rule, place in everybodys]
        return [(rule, places[("providers", provider, "rules", rule.id)]) for rule in block.rules] + everybodys

    @staticmethod
    def learn(reply: str) -> Learnt | None:
        """The limit of the host that a reply shows, whoever the provider is; None: it shows none."""
        text = reply[:MAX_REPLY]
        found = TEACHING.Match(text)
        if found is None or 0 in found:
            return None
        stated = STATED.search(text)
        return Learnt(LESSONS[min(found) - 1][0], int(stated.group(1) or stated.group(2)) if stated else None)


class _ReplyRules:
    """The patterns of one provider, matched in one pass."""

    __slots__ = ("_rules", "_set")

    def __init__(self, rules: Sequence[tuple[ReplyRule, str]]) -> None:
        self._rules = rules
        self._set = pattern_set(rule.match for rule, _ in rules)

    def first(self, stage: str, reply: str) -> tuple[ReplyRule, str] | None:
        found: list[int] | None = self._set.Match(reply[:MAX_REPLY])  # in no order
        matching = (self._rules[index] for index in sorted(found or ()))
        return next((rule for rule in matching if rule[0].stage in (None, stage)), None)


# What replies say about limits. First: words that make it a matter of time, which the control loop answers.
OF_TIME = r"\b(?:per|this|an?|last|each) (?:second|minute|hour|day)\b|short (?:period|time)|\brate\b|frequen"
LESSONS: tuple[tuple[Literal["messages_per_connection", "recipients_per_transaction", "connections"], str], ...] = (
    (
        "messages_per_connection",
        r"too many (?:messages|e?-?mails) (?:\w+ ){0,3}(?:connection|session)"
        r"|\bmax(?:imum)? (?:number of )?(?:messages?|e?-?mails?) (?:\w+ ){0,2}(?:connection|session)"
        r"|message limit (?:\w+ ){0,2}(?:connection|session)"
        r"|\bMI:DMC\b",
    ),
    (
        "recipients_per_transaction",
        r"too many recipients|\bmax(?:imum)? (?:number of )?recipients|recipients? (?:limit|count) (?:reached|exceeded)"
        r"|recipient in a separate transaction|\bRP:DRC\b|^[45]52 [45]\.5\.3 ",
    ),
    (
        "connections",
        r"too many (?:\w+ ){0,3}(?:connections|sessions)"
        r"|\bmax(?:imum)? (?:number of )?(?:\w+ ){0,2}(?:connections|sessions)"
        r"|connection limit (?:reached|exceeded)|concurrency limit|trop de connexions|\bHL:ICC\b",
    ),
)
STATED_AS = r"\b(?:limit|max(?:imum)?|only|allowed)(?: is| of|:| =|=)? ?\(?([1-9][0-9]{0,4})\b(?:[^.0-9]|$)"
STATED_BEFORE = r"(?:^|[^.0-9:])([1-9][0-9]{0,4}) (?:messages|e?-?mails|recipients|(?:\w+ )?connections|sessions)\b"


TEACHING = pattern_set((OF_TIME, *(pattern for _, pattern in LESSONS)))
STATED = re2.compile(f"{STATED_AS}|{STATED_BEFORE}", options())


def _suffixes(matches: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Which providers have each suffix."""
    found: dict[str, list[str]] = {}
    for name, suffixes in matches:
        for suffix in suffixes:
            found.setdefault(suffix, []).append(name)
    return found


def _longest(suffixes: Mapping[str, Sequence[str]], name: str) -> dict[str, int]:
    """The providers that a name fits, with the length of the longest suffix by which it does."""
    found: dict[str, int] = {}
    while name:
        for provider in suffixes.get(name, ()):
            found.setdefault(provider, len(name))
        name = name.partition(".")[2]
    return found


def _limits(provider: Provider, default: Provider, delivery: Delivery) -> ProviderLimits:
    fallbacks = {place: getattr(delivery, key) for place, key in FALLBACKS.items()}
    return ProviderLimits(
        *(
            _filled(scope, getattr(provider, scope), getattr(default, scope), fallbacks)
            for scope in ("per_path", "per_source", "per_site", "total")
        )
    )


def _filled(scope: str, limits: Limits, default: Limits, fallbacks: Mapping[tuple[str, str], int]) -> Limits:
    values = {}
    for key in Limits.__struct_fields__:
        options_of_key = (getattr(limits, key), getattr(default, key), fallbacks.get((scope, key)))
        values[key] = next((value for value in options_of_key if value is not None), None)
    return msgspec.structs.replace(limits, **values)
