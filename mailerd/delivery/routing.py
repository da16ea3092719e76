"""Where mail for a domain goes, and what is asked of TLS there: the configured routes, else its mail exchangers.

Mail exchangers are found as RFC 5321 section 5.1 says. What domains publish about TLS (DANE, MTA-STS: `tls_policy`) is
looked up with them, unless the route says what is wanted.

Every answer, also a "no", is kept as long as the DNS answers behind it live, so that the next message of the domain is
routed without waiting.
"""

import asyncio
import hashlib
import ipaddress
import itertools
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from mailerd.config import Config, Endpoint, RouteAuth, RouteRule
from mailerd.delivery import tls_policy
from mailerd.delivery.dane import Dane
from mailerd.delivery.mta_sts import Known, StsPolicies
from mailerd.delivery.resolver import (
    FAILED_TTL,
    Answer,
    Failed,
    Found,
    Mx,
    NoData,
    NoDomain,
    Resolver,
    SingleFlight,
    is_private,
)
from mailerd.delivery.tls_policy import Mode, TlsOutcome, TlsPolicy
from mailerd.delivery.verdict import Blame, Kind, Verdict, local_verdict, network_verdict
from mailerd.wire.address import domain_to_ascii

MAX_PLANS = 10_000  # kept: each is some KB
MAX_ADDRESSES = 64  # in a plan, shared out among its hosts and the two families; DNS may hold hundreds
LEAST_ADDRESSES = 4  # of a host and a family
MAX_CHOICES = 24  # orders kept of one plan; divisible by 2, 3, 4, 6, 8, so that no host is preferred
MAX_SITE = 200  # characters
HOSTS_AT_ONCE = 4  # looked up at once for one domain, each by two lookups
HOSTS_WITHIN = 2  # times the timeout of the resolver: what is not known of the hosts of a domain by then is left out
FOREVER = float("inf")
DIRECT = RouteRule()
NOTHING_PUBLISHED = Known(None, FOREVER)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Host:
    """One address to connect to. `name` is what its certificate should say, the address itself when it has no name.

    `dane`: what signed zones say about its certificate, where the policy of the route follows them.
    """

    name: str
    address: str
    port: int
    dane: Dane | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The hosts of one destination in the order to try, and how to speak to them.

    `site` names the destination: equal for all domains with the same set of hosts. Connections may be shared within a
    site only where `tls` and `auth` are equal too.
    """

    site: str
    hosts: tuple[Host, ...]
    tls: TlsPolicy
    auth: RouteAuth | None
    upstream: str = ""  # the service that it leads to, if that reports


@dataclass(frozen=True, slots=True)
class NoRoute:
    verdict: Verdict


class Router:
    """Routes domains (lower-case A-labels, or address literals in brackets).

    `own` are the endpoints that we listen on: mail must not be sent to ourselves. `rng` orders hosts among equals.
    `sts`: the MTA-STS policies; without them only DANE is followed. `note` is told what went wrong about the TLS policy
    of a domain before there was a session, for the report to it.
    """

    def __init__(
        self,
        config: Config,
        resolver: Resolver,
        *,
        own: Iterable[Endpoint] | None = None,
        rng: random.Random | None = None,
        sts: StsPolicies | None = None,
        note: Callable[[TlsOutcome], None] = lambda outcome: None,
    ) -> None:
        self._config = config
        self._sts = sts
        self._note = note
        self._resolver = resolver
        self._clock = resolver.clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._fixed_own = None if own is None else _Own.of(own)
        self._rules: tuple[_Rule, ...] = ()
        self._rule_of: dict[tuple[str, str, str, str], int] = {}
        self._plans: dict[_Key, _Plan] = {}
        self._flights: SingleFlight[_Key, _Plan] = SingleFlight()
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Route by another configuration from now on; what was found by the old one is forgotten."""
        self._config = config
        self._own = self._fixed_own or _Own.of([listener.bind for listener in config.listeners])
        self._rules = tuple(_Rule.of(rule) for rule in config.routes)
        self._rule_of = {}
        self._plans = {}
        self._flights.renew()

    async def route(
        self, domain: str, *, sender: str, stream: str, pool: str, ignore_policy: bool = False
    ) -> Route | NoRoute:
        """Where mail for `domain` goes, or the verdict that it cannot go anywhere (for now, or at all).

        `ignore_policy`: whatever the domain publishes about TLS, as the sender wishes ("TLS-Required: No" of RFC 8689).
        """
        key = self._key(domain, sender, stream, pool, ignore_policy)
        plan = self._plans.get(key)
        if plan is None or plan.expires <= self._clock():
            plan = await self._flights.run(key, lambda: self._renew(key, self._rules, self._plans))
        return plan.pick()

    def cached(
        self, domain: str, *, sender: str, stream: str, pool: str, ignore_policy: bool = False
    ) -> Route | NoRoute | None:
        """The same from memory, at once; None when DNS has to be asked."""
        plan = self._plans.get(self._key(domain, sender, stream, pool, ignore_policy))
        return None if plan is None or plan.expires <= self._clock() else plan.pick()

    def rule(self, domain: str, *, sender: str, stream: str, pool: str) -> int | None:
        """Which of the configured routes decides, counted from 0; None: none of them."""
        n = self._key(domain, sender, stream, pool, False)[1]
        return n if n >= 0 else None

    def depends_on_sender(self, domain: str, *, stream: str, pool: str) -> bool:
        """May mail of one sender go another way than that of others?"""
        fitting = (rule for rule in self._rules if rule.fits(domain, stream, pool))
        rule = next(fitting, None)
        return rule is not None and rule.sender != "*"

    async def close(self) -> None:
        await self._flights.close()

    def _key(self, domain: str, sender: str, stream: str, pool: str, ignore_policy: bool) -> "_Key":
        """What the route depends on: a rule with fixed hosts serves all its domains with one plan."""
        if not self._rules:
            return (domain, -1, ignore_policy)
        facts = (domain, sender.rpartition("@")[2].lower(), stream, pool)
        n = self._rule_of.get(facts)
        if n is None:
            n = next((n for n, rule in enumerate(self._rules) if rule.matches(*facts)), -1)
            if len(self._rule_of) >= MAX_PLANS:
                self._rule_of.clear()
            self._rule_of[facts] = n
        return ("" if n >= 0 and self._rules[n].rule.hosts else domain, n, ignore_policy)

    async def _renew(self, key: "_Key", rules: Sequence["_Rule"], plans: dict["_Key", "_Plan"]) -> "_Plan":
        """Make the plan for `key`, which counts `rules`, and keep it: not for those who reconfigured meanwhile."""
        domain, n, ignore_policy = key
        rule = rules[n].rule if n >= 0 else DIRECT
        asked = _Asked(domain, rule, ignore_policy or rule.tls != "opportunistic")
        plan = await (self._fixed(asked) if rule.hosts else self._direct(asked))
        plans.pop(key, None)
        if len(plans) >= MAX_PLANS:
            del plans[next(iter(plans))]  # the one renewed longest ago
        plans[key] = plan
        return plan

    async def _fixed(self, asked: "_Asked") -> "_Plan":
        """The hosts of a route, in the order written; what is wrong with them is our configuration, so mail waits."""
        rule = asked.rule
        site = ",".join(_endpoint_name(endpoint) for endpoint in rule.hosts)
        if rule.auth is not None:
            site = f"{rule.auth.username}@{site}"
        dane = self._config.delivery.dane and not asked.ignore_policy
        hosts = [(Mx(n, host.host), host.port) for n, host in enumerate(rule.hosts)]
        sites = [await self._addresses(mx, port=port, dane=dane) for mx, port in hosts]
        expires = min(exchanger.expires for exchanger in sites)
        if any(exchanger.own for exchanger in sites):
            return self._refusal(_loop(site), expires)
        usable = [exchanger for exchanger in sites if exchanger.addresses]
        if usable:
            return self._plan(
                Route(site, (), self._tls(asked, usable), rule.auth, rule.upstream or ""), usable, expires
            )
        failure = _failed_lookup(sites)
        if failure is not None:
            return self._refusal(failure, expires)
        text = f"no host of the route to {site} has an address"
        return self._refusal(local_verdict(Kind.ROUTING, 451, "4.4.4", text, blame=Blame.SOURCE), expires)

    async def _direct(self, asked: "_Asked") -> "_Plan":
        domain = asked.domain
        if domain.startswith("["):
            return await self._literal(asked)
        answer = await self._resolver.mx(domain)
        match answer:
            case NoDomain():
                verdict = local_verdict(Kind.BAD_DOMAIN, 550, "5.1.2", f"domain {domain} does not exist")
                return self._refusal(verdict, answer.expires)
            case Failed():
                verdict = network_verdict(answer.kind, f"MX lookup of {domain} failed: {answer.text}")
                return self._refusal(verdict, answer.expires)
            case NoData():
                records: Sequence[Mx] = (Mx(0, domain),)  # the implicit MX
            case Found():
                records = [mx for mx in answer.records if mx.name]
                if not records:
                    text = f"domain {domain} does not accept mail (null MX)"
                    return self._refusal(local_verdict(Kind.BAD_DOMAIN, 556, "5.1.10", text), answer.expires)
        # Without a signed answer anybody could have named the hosts: nothing would be proved (RFC 7672 section 2.2.1).
        dane = answer.secure and self._config.delivery.dane and not asked.ignore_policy
        exchangers, sts = await asyncio.gather(self._exchangers(records, dane=dane), self._sts_of(asked))
        expires = min([answer.expires, sts.expires, *(exchanger.expires for exchanger in exchangers)])
        best_own = min((exchanger.preference for exchanger in exchangers if exchanger.own), default=1 << 16)
        kept = [exchanger for exchanger in exchangers if exchanger.preference < best_own]
        self._note_failures(domain, kept)
        usable = [exchanger for exchanger in kept if exchanger.addresses]
        if usable:
            if sts.unread:  # where DNS itself says what the hosts have to show, no policy is missed
                usable = [host for host in usable if host.dane]
            if not usable:
                text = f"the database does not tell whether an MTA-STS policy of {domain} is in force"
                return self._refusal(local_verdict(Kind.ROUTING, 451, "4.3.0", text, blame=Blame.SOURCE), expires)
            tls = self._tls(asked, usable, sts)
            allowed = usable if tls.testing else [host for host in usable if host.dane or tls.allows_host(host.name)]
            if not allowed:
                return self._refusal(self._unlisted(tls, usable), expires)
            site = site_name(mx.name for mx in records)
            return self._plan(Route(site, (), tls, asked.rule.auth), allowed, expires)
        return self._refusal(_no_address(domain, kept, implicit=isinstance(answer, NoData)), expires)

    async def _literal(self, asked: "_Asked") -> "_Plan":
        domain = asked.domain
        try:
            address = str(ipaddress.ip_address(domain[1:-1].lower().removeprefix("ipv6:")))
        except ValueError:
            verdict = local_verdict(Kind.BAD_DOMAIN, 553, "5.1.3", f"{domain} is not an address literal")
            return self._refusal(verdict, FOREVER)
        exchanger = await self._exchanger(Mx(0, address), dane=False)
        if exchanger.own:
            return self._refusal(_loop(domain), FOREVER)
        if exchanger.addresses:
            return self._plan(Route(domain, (), self._tls(asked, ()), asked.rule.auth), [exchanger], FOREVER)
        return self._refusal(_no_address(domain, [exchanger], implicit=False), FOREVER)

    def _tls(self, asked: "_Asked", exchangers: Sequence["_Exchanger"], sts: Known = NOTHING_PUBLISHED) -> TlsPolicy:
        """The policy of a route: what the operator wrote, else DANE, MTA-STS, whatever the hosts offer."""
        minimum = asked.rule.tls_minimum or self._config.delivery.tls_minimum
        if asked.rule.tls != "opportunistic":
            return TlsPolicy(asked.rule.tls, minimum, named=bool(asked.rule.hosts))
        domain = "" if asked.domain.startswith("[") else asked.domain
        dane = any(exchanger.dane is not None for exchanger in exchangers)
        if sts.policy is None or sts.policy.mode == "none":
            mode: Mode = "dane" if dane else "opportunistic"
            return TlsPolicy(mode, minimum, domain=domain)
        mode, testing = ("dane" if dane else "sts"), sts.policy.mode == "testing"
        return TlsPolicy(mode, minimum, sts.policy.mx, testing, domain=domain, lines=sts.policy.lines)

    async def _sts_of(self, asked: "_Asked") -> Known:
        if self._sts is None or asked.ignore_policy or not self._config.delivery.mta_sts:
            return NOTHING_PUBLISHED
        return await self._sts.policy(asked.domain)

    def _unlisted(self, tls: TlsPolicy, exchangers: Sequence["_Exchanger"]) -> Verdict:
        """The verdict when MTA-STS allows none of the hosts (RFC 8461 section 4.1)."""
        name = exchangers[0].name
        text = f"the MTA-STS policy of {tls.domain} lists none of its mail hosts, such as {name}"
        result = tls_policy.VALIDATION_FAILURE
        self._note(TlsOutcome(tls.domain, "sts", tls.lines, name, exchangers[0].addresses[0], result, text))
        return network_verdict("tls_failed", text)

    def _note_failures(self, domain: str, exchangers: Iterable["_Exchanger"]) -> None:
        """Hosts that are not used because nobody can say whether they have TLSA records."""
        for exchanger in exchangers:
            if exchanger.tlsa_failure:
                result = tls_policy.DNSSEC_INVALID
                self._note(TlsOutcome(domain, "tlsa", (), exchanger.name, "", result, exchanger.tlsa_failure))

    async def _exchangers(self, records: Sequence[Mx], *, dane: bool) -> list["_Exchanger"]:
        """The best hosts with their addresses; asks for more only while there are too few addresses to try.

        Whoever publishes fifty hosts whose name servers keep silent must not hold up the lookups of others.
        """
        wanted = self._config.delivery.max_hosts
        deadline = asyncio.get_running_loop().time() + HOSTS_WITHIN * self._resolver.timeout
        room = asyncio.Semaphore(HOSTS_AT_ONCE)

        async def look_up(mx: Mx) -> _Exchanger:
            try:
                async with asyncio.timeout_at(deadline), room:
                    return await self._exchanger(mx, dane=dane)
            except TimeoutError:
                failed = Failed("dns_timeout", "no time left for it", self._clock() + FAILED_TTL)
                port = self._config.delivery.port
                return _Exchanger(mx.preference, mx.name, port, failed=failed, expires=failed.expires)

        waiting = sorted(records, key=lambda mx: (mx.preference, self._rng.random()))
        known: list[_Exchanger] = []
        while waiting and sum(len(exchanger.addresses) for exchanger in known) < wanted:
            batch, waiting = waiting[:wanted], waiting[wanted:]
            known += await asyncio.gather(*map(look_up, batch))
        return known

    async def _exchanger(self, mx: Mx, *, dane: bool) -> "_Exchanger":
        """A host with the addresses that somebody else's DNS may send us to: none of private networks."""
        if mx.name == self._config.hostname.lower():
            return _Exchanger(mx.preference, mx.name, self._config.delivery.port, own=True)
        found = await self._addresses(mx, port=self._config.delivery.port, dane=dane)
        if not self._config.delivery.allow_private:
            found.skipped = [address for address in found.addresses if is_private(address)]
            found.addresses = [address for address in found.addresses if address not in found.skipped]
        return found

    async def _addresses(self, mx: Mx, *, port: int, dane: bool) -> "_Exchanger":
        """A host with all its addresses, whatever they are; an address in the place of a name is taken as one."""
        found = _Exchanger(mx.preference, mx.name, port)
        if (fixed := _without_dns(mx.name)) is not None:
            found.addresses = fixed
        else:
            for answer in await asyncio.gather(self._resolver.a(mx.name), self._resolver.aaaa(mx.name)):
                found.note(answer)
            if dane and found.addresses:
                await self._find_tlsa(found)
        found.own = any(self._own(address, port) for address in found.addresses)
        return found

    async def _find_tlsa(self, found: "_Exchanger") -> None:
        """Note the TLSA records of a host; a host for which they cannot be looked up is not used (RFC 7672 2.1.1).

        They stand under the name that aliases lead to, else under the name itself (section 2.2.3).
        """
        if not found.secure and await self._alias_is_unsigned(found):
            return  # there are no signed records then, and some such name servers fail when asked for them
        for base in [found.alias, found.name] if found.secure and found.alias else [found.name]:
            answer = await self._resolver.tlsa(base, found.port)
            found.expires = min(found.expires, answer.expires)
            if isinstance(answer, Failed):
                found.addresses = []
                found.failed = answer
                found.tlsa_failure = f"TLSA lookup of _{found.port}._tcp.{base} failed: {answer.text}"
                return
            if isinstance(answer, Found) and answer.secure:
                found.dane = Dane(base, answer.records)
                return

    async def _alias_is_unsigned(self, found: "_Exchanger") -> bool:
        """A signed alias for an unsigned host may have TLSA records under its own name (RFC 7672 section 2.2.2)."""
        if not found.alias:
            return True
        answer = await self._resolver.lookup(found.name, "CNAME")
        return not isinstance(answer, Failed) and not answer.secure  # Failed: who knows, so ask and see

    def _plan(self, route: Route, exchangers: Sequence["_Exchanger"], expires: float) -> "_Plan":
        each = max(LEAST_ADDRESSES, MAX_ADDRESSES // (2 * max(1, len(exchangers))))
        groups = [
            [exchanger.hosts(each) for exchanger in group]
            for _, group in itertools.groupby(exchangers, key=lambda exchanger: exchanger.preference)
        ]
        return _Plan(expires, route, groups, self._config.delivery.max_hosts, self._rng)

    def _refusal(self, verdict: Verdict, expires: float) -> "_Plan":
        return _Plan(expires, NoRoute(verdict), [], 0, self._rng)


_Key: TypeAlias = tuple[str, int, bool]  # domain, route, whether policies are ignored


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a plan is for; `domain` is "" where a route has hosts of its own."""

    domain: str
    rule: RouteRule
    ignore_policy: bool


@dataclass(slots=True)
class _Exchanger:
    """What is known of one mail exchanger, or of one host of a fixed route."""

    preference: int
    name: str
    port: int
    addresses: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # private ones
    failed: Failed | None = None
    own: bool = False
    expires: float = FOREVER
    secure: bool = True  # all of the addresses
    alias: str = ""
    dane: Dane | None = None
    tlsa_failure: str = ""

    def note(self, answer: Answer[str]) -> None:
        self.expires = min(self.expires, answer.expires)
        if isinstance(answer, Found):
            self.addresses += answer.records
            self.secure = self.secure and answer.secure
            self.alias = answer.alias
        elif isinstance(answer, Failed):
            self.failed = answer

    def hosts(self, most: int) -> "_Families":
        """Those of IPv4 and those of IPv6, at most so many each."""
        hosts = [Host(self.name, address, self.port, self.dane) for address in self.addresses]
        ipv4 = [host for host in hosts if ":" not in host.address]
        ipv6 = [host for host in hosts if ":" in host.address]
        return ipv4[:most], ipv6[:most]


_Families = tuple[list[Host], list[Host]]  # one exchanger: its IPv4 and its IPv6 addresses


class _Plan:
    """One routing decision until `expires`, and the orders in which its hosts may be tried.

    Orders are made as they are asked for, up to `MAX_CHOICES`, then reused at random: a popular site costs a list
    access, a domain that is mailed once keeps one order. They are made so that each equal comes first equally often.
    """

    __slots__ = ("_choices", "_groups", "_limit", "_offset", "_rng", "_route", "_wanted", "expires")

    def __init__(
        self,
        expires: float,
        route: Route | NoRoute,
        groups: list[list[_Families]],
        limit: int,
        rng: random.Random,
    ) -> None:
        self.expires = expires
        self._route = route
        self._groups = groups
        self._limit = limit
        self._rng = rng
        self._offset = int(rng.random() * MAX_CHOICES)
        equals = any(len(group) > 1 or any(len(f) > 1 for host in group for f in host) for group in groups)
        self._wanted = MAX_CHOICES if equals else 1
        self._choices: list[Route | NoRoute] = []

    def pick(self) -> Route | NoRoute:
        made = len(self._choices)
        if made == self._wanted:
            return self._choices[int(self._rng.random() * made)] if made > 1 else self._choices[0]
        choice = self._route
        if isinstance(choice, Route):
            choice = replace(choice, hosts=self._order(made + self._offset))
        self._choices.append(choice)
        return choice

    def _order(self, turn: int) -> tuple[Host, ...]:
        hosts = [
            _interleaved(*(self._turned(family, turn // len(group)) for family in host))
            for group in self._groups
            for host in self._turned(group, turn)
        ]
        return tuple(_fair_share(hosts, self._limit))

    def _turned(self, items: list[Item], turn: int) -> list[Item]:
        if len(items) < 2:
            return items
        first = turn % len(items)
        rest = items[:first] + items[first + 1 :]
        self._rng.shuffle(rest)
        return [items[first], *rest]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A route of the configuration with its patterns made ready."""

    rule: RouteRule
    domain: str
    sender: str

    @classmethod
    def of(cls, rule: RouteRule) -> "_Rule":
        return cls(rule, _pattern(rule.match.domain), _pattern(rule.match.sender))

    def matches(self, domain: str, sender: str, stream: str, pool: str) -> bool:
        return self.fits(domain, stream, pool) and _fits(sender, self.sender)

    def fits(self, domain: str, stream: str, pool: str) -> bool:
        """Does it match, if the sender is the right one?"""
        match = self.rule.match
        return match.stream in (None, stream) and match.pool in (None, pool) and _fits(domain, self.domain)


def site_name(names: Iterable[str]) -> str:
    """One readable name for a set of hosts, the same in whatever order they come.

    `(alt1|alt2)?.gmail-smtp-in.l.google.com` stands for the host without and the hosts with these labels in front;
    names with less than two labels in common are listed in full. A long name ends in a hash of the whole.
    """
    unique = sorted(set(names))
    if len(unique) == 1:
        return unique[0]
    labels = [name.split(".") for name in unique]
    common = 0
    while all(len(parts) > common and parts[-1 - common] == labels[0][-1 - common] for parts in labels):
        common += 1
    if common < 2:
        return _shortened(f"({'|'.join(unique)})")
    heads = [".".join(parts[:-common]) for parts in labels]
    optional = "?" if "" in heads else ""
    return _shortened(f"({'|'.join(head for head in heads if head)}){optional}.{'.'.join(labels[0][-common:])}")


def _shortened(name: str) -> str:
    if len(name) <= MAX_SITE:
        return name
    return f"{name[: MAX_SITE - 17]}~{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def _failed_lookup(exchangers: Sequence[_Exchanger]) -> Verdict | None:
    """Of the first host whose addresses DNS could not tell; None when it told of all."""
    for exchanger in exchangers:
        if (failed := exchanger.failed) is not None:
            if exchanger.tlsa_failure:
                return network_verdict(failed.kind, exchanger.tlsa_failure)
            return network_verdict(failed.kind, f"address lookup of {exchanger.name} failed: {failed.text}")
    return None


def _no_address(domain: str, kept: Sequence[_Exchanger], *, implicit: bool) -> Verdict:
    """Why none of the hosts that are left has an address to try."""
    if not kept:
        return _loop(domain)
    failure = _failed_lookup(kept)
    if failure is not None:
        return failure
    skipped = [address for exchanger in kept for address in exchanger.skipped]
    if skipped:
        text = f"the hosts of {domain} have only addresses of private networks ({', '.join(skipped[:3])})"
        return local_verdict(Kind.BAD_DOMAIN, 550, "5.4.4", text)
    what = (
        f"domain {domain} has neither MX nor address records"
        if implicit
        else f"no mail host of {domain} has an address"
    )
    return local_verdict(Kind.BAD_DOMAIN, 550, "5.4.4", what)


def _loop(destination: str) -> Verdict:
    return local_verdict(Kind.ROUTING, 554, "5.4.6", f"mail for {destination} loops back to myself")


def _interleaved(ipv4: Sequence[Host], ipv6: Sequence[Host]) -> list[Host]:
    """IPv4 first: what senders are known for, and asked for (PTR, SPF), is mostly set up there; then by turns."""
    return [host for pair in itertools.zip_longest(ipv4, ipv6) for host in pair if host is not None]


def _fair_share(hosts: Sequence[Sequence[Host]], limit: int) -> Iterator[Host]:
    """At most `limit` addresses in order; a host with many of them leaves room for one of every other."""
    taken = [0] * len(hosts)
    while limit > 0 and any(taken[n] < len(host) for n, host in enumerate(hosts)):
        for n, host in enumerate(hosts):
            if taken[n] < len(host) and limit > 0:
                taken[n] += 1
                limit -= 1
    return itertools.chain.from_iterable(host[: taken[n]] for n, host in enumerate(hosts))


@dataclass(frozen=True, slots=True)
class _Own:
    """Whether connecting to an address and port would be talking to ourselves."""

    endpoints: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, endpoints: Iterable[Endpoint]) -> "_Own":
        return cls(frozenset((endpoint.host, endpoint.port) for endpoint in endpoints))

    def __call__(self, address: str, port: int) -> bool:
        if (address, port) in self.endpoints:
            return True
        wildcard = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - compared, not bound
        return any((host, port) in self.endpoints for host in (wildcard, "")) and _of_this_machine(address)


def _of_this_machine(address: str) -> bool:
    """Only an address of ours can be bound; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return not ipaddress.ip_address(address).is_multicast


def _without_dns(name: str) -> list[str] | None:
    """The addresses of a name that needs no lookup: an address itself, and localhost (RFC 6761 section 6.3)."""
    if name == "localhost" or name.endswith(".localhost"):
        return ["127.0.0.1", "::1"]
    try:
        return [str(ipaddress.ip_address(name.strip("[]")))]
    except ValueError:
        return None


def _endpoint_name(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return host if endpoint.port == 25 else f"{host}:{endpoint.port}"


def _pattern(text: str | None) -> str:
    """A domain pattern with its name in A-labels; "*" for any."""
    if text is None or text == "*":
        return "*"
    if text.startswith("["):
        return text.lower()
    wild = "*." if text.startswith("*.") else ""
    return wild + domain_to_ascii(text.removeprefix("*."))


def _fits(domain: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    return domain.endswith(pattern[1:]) if pattern.startswith("*.") else domain == pattern
