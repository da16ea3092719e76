"""Is a source what receivers expect: bound here, named both ways in DNS, covered by SPF, on no block list?

Each check ends in a `Finding`; `settle` makes of it what counts: a source with a `failing` check is out of its pools.
What DNS does not tell changes nothing: a source that failed stays out, one that was fine goes on.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from mailerd.config import BlockList, Config
from mailerd.delivery.resolver import Answer, Failed, Found, Resolver
from mailerd.delivery.spf import Result, SpfAnswer, check_host
from mailerd.wire.address import domain_to_ascii

# The names of checks; those of block lists are their zones.
BOUND, HELD, PTR, EHLO, SPF = "bound", "held", "ptr", "ehlo", "spf"
MAX_NAMES = 10  # of one address that are followed
AT_ONCE = 8  # domains whose SPF is looked at
TOLD = 3  # domains named in a text
SINCE_THEN = "; not known any better since: "
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)  # of bind(): the host has no such address

Mode: TypeAlias = Literal["act", "warn", "off"]


class Verdict(StrEnum):
    """What one look found. `useless`: an answer, of which nothing about the source follows."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    USELESS = "useless"


class State(StrEnum):
    """What is believed, over all looks so far."""

    OK = "ok"
    WARNING = "warning"
    FAILING = "failing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` is that of the check; `text` is for people and says what to do."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """The state of one check of one source. `checked_at`: when it was last known, not merely asked."""

    source: str
    name: str
    state: State
    text: str
    since: datetime
    checked_at: datetime


def settle(source: str, finding: Finding, mode: Mode, previous: Check | None, now: datetime) -> Check:
    """The state that follows from a finding and from what was believed before. `mode` is `act` or `warn`."""
    worst = State.FAILING if mode == "act" else State.WARNING
    state, text, checked_at = _state(finding.verdict, worst), finding.text, now
    if previous is not None and _keeps(previous.state, finding.verdict):
        state = worst if previous.state is State.FAILING else previous.state
        text = previous.text.partition(SINCE_THEN)[0] + SINCE_THEN + text
        checked_at = previous.checked_at
    since = previous.since if previous is not None and previous.state is state else now
    return Check(source, finding.name, state, text, since, checked_at)


def _state(verdict: Verdict, worst: State) -> State:
    match verdict:
        case Verdict.GOOD:
            return State.OK
        case Verdict.BAD:
            return worst
        case Verdict.USELESS:
            return State.WARNING
        case Verdict.UNKNOWN:
            return State.UNKNOWN


def _keeps(before: State, verdict: Verdict) -> bool:
    """Does what was believed outlive this verdict? A list that listed us and now refuses us has not taken us off."""
    if before is State.FAILING:
        return verdict in (Verdict.UNKNOWN, Verdict.USELESS)
    return verdict is Verdict.UNKNOWN and before is not State.UNKNOWN


def is_public(address: str) -> bool:
    """Do receivers see this address? Others are behind NAT or in a laboratory: it only counts that they are bound."""
    return ipaddress.ip_address(address).is_global


class SourceChecker:
    """The checks of the sources of a configuration. Nothing is kept: every call looks again."""

    def __init__(self, config: Config, resolver: Resolver, *, public: Callable[[str], bool] = is_public) -> None:
        self._config = config
        self._settings = config.source_checks
        self._resolver = resolver
        self._public = public
        self._domains = _envelope_domains(config)

    def modes(self, source: str) -> dict[str, Mode]:
        """The checks that ask DNS and are due for a source, and what follows when they fail."""
        address, settings = self._config.sources[source].address, self._settings
        if address is None or not self._public(address):
            return {}
        modes: dict[str, Mode] = {PTR: settings.ptr, EHLO: settings.ehlo}
        if self._domains:
            modes[SPF] = settings.spf
        modes |= {each.zone: settings.block_lists for each in settings.lists}
        return {name: mode for name, mode in modes.items() if mode != "off"}

    def bound(self, source: str) -> Finding:
        """Can a socket be bound to the source's address on this host?"""
        address = self._config.sources[source].address
        if address is None:
            return Finding(BOUND, Verdict.GOOD, "the system chooses the address")
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError as error:
            if error.errno in NOT_HERE:
                text = f"this host has no address {address}: give it the address, or take the source out of its pools"
                return Finding(BOUND, Verdict.BAD, text)
            return Finding(BOUND, Verdict.UNKNOWN, f"{address} cannot be tried: {error.strerror}")
        return Finding(BOUND, Verdict.GOOD, f"{address} is bound here")

    async def identity(self, source: str) -> list[Finding]:
        """What DNS says of a source: one finding for each of `modes`, in that order."""
        address = self._config.sources[source].address
        lists: dict[str, BlockList] = {each.zone: each for each in self._settings.lists}
        looks = []
        for name in self.modes(source):
            assert address is not None
            if name in lists:
                looks.append(self._listed(address, lists[name]))
            elif name == PTR:
                looks.append(self._ptr(address))
            else:
                helo = self._config.sources[source].ehlo or self._config.hostname
                looks.append(self._ehlo(address, helo) if name == EHLO else self._spf(address, helo))
        return list(await asyncio.gather(*looks))

    async def _ptr(self, address: str) -> Finding:
        """Forward-confirmed reverse DNS: a name of the address has the address."""
        answer: Answer[str] = await self._resolver.lookup(ipaddress.ip_address(address).reverse_pointer, "PTR")
        if isinstance(answer, Failed):
            return Finding(PTR, Verdict.UNKNOWN, f"the PTR lookup failed: {answer.text}")
        if not isinstance(answer, Found):
            text = f"{address} has no PTR record: have one made by whoever owns the network, with the EHLO name"
            return Finding(PTR, Verdict.BAD, text)
        names = [name.rstrip(".").lower() for name in answer.records[:MAX_NAMES]]
        forward = await asyncio.gather(*(self._addresses(name, address) for name in names))
        for name, found in zip(names, forward, strict=True):
            if _has(found, address):
                return Finding(PTR, Verdict.GOOD, f"{address} is {name}, and {name} is {address}")
        told = " and ".join(names[:TOLD])
        for found in forward:
            if isinstance(found, Failed):
                return Finding(PTR, Verdict.UNKNOWN, f"{address} is {told}; the lookup of that failed: {found.text}")
        return Finding(PTR, Verdict.BAD, f"{address} is {told} by PTR, but no address record of that leads back to it")

    async def _ehlo(self, address: str, helo: str) -> Finding:
        found = await self._addresses(helo, address)
        if isinstance(found, Failed):
            return Finding(EHLO, Verdict.UNKNOWN, f"the lookup of {helo} failed: {found.text}")
        if _has(found, address):
            return Finding(EHLO, Verdict.GOOD, f"{helo} is {address}")
        kind = _kind(address)
        what = ", ".join(found.records[:TOLD]) if isinstance(found, Found) else f"without {kind} record"
        return Finding(EHLO, Verdict.BAD, f"{helo}, the EHLO name, is {what}: it needs an {kind} record {address}")

    async def _spf(self, address: str, helo: str) -> Finding:
        """Does every domain of an envelope sender name the address?"""
        room = asyncio.Semaphore(AT_ONCE)

        async def look(domain: str) -> SpfAnswer:
            async with room:
                sender = f"postmaster@{domain}"
                return await check_host(self._resolver, address, domain, sender=sender, helo=helo)

        answers = dict(zip(self._domains, await asyncio.gather(*map(look, self._domains)), strict=True))
        unknown = {domain: answer for domain, answer in answers.items() if answer.result is Result.TEMPERROR}
        bad = {d: answer for d, answer in answers.items() if d not in unknown and answer.result is not Result.PASS}
        if bad:
            return Finding(SPF, Verdict.BAD, f"{_told(bad)}: add {_term(address)} to the record")
        if unknown:
            return Finding(SPF, Verdict.UNKNOWN, _told(unknown))
        return Finding(SPF, Verdict.GOOD, f"{address} may send as {_names(list(answers))}")

    async def _listed(self, address: str, block_list: BlockList) -> Finding:
        """RFC 5782 section 2; a list that lists 127.0.0.1 as well is dead, and lists everybody (section 5)."""
        zone = block_list.zone
        answer = await self._resolver.a(f"{_reversed(address)}.{zone}")
        if isinstance(answer, Failed):
            return Finding(zone, Verdict.UNKNOWN, f"the lookup in {zone} failed: {answer.text}")
        if not isinstance(answer, Found):
            return Finding(zone, Verdict.GOOD, f"{address} is not listed by {zone}")
        codes = ", ".join(answer.records[:TOLD])
        if _within(answer.records, block_list.refused):
            asked = ", ".join(map(str, self._resolver.nameservers))
            text = f"{zone} answers {codes}: it refuses your name servers ({asked}); ask it by a resolver of your own"
            return Finding(zone, Verdict.USELESS, text)
        if not _within(answer.records, block_list.listed):
            return Finding(zone, Verdict.USELESS, f"{zone} answers {codes}, which is none of its codes for `listed`")
        never_listed = "127.0.0.1" if "." in address else "::ffff:127.0.0.1"
        if isinstance(await self._resolver.a(f"{_reversed(never_listed)}.{zone}"), Found):
            return Finding(zone, Verdict.USELESS, f"{zone} lists {never_listed} too, as a list that is given up does")
        why = await self._resolver.txt(f"{_reversed(address)}.{zone}")
        reason = f": {why.records[0][:200]}" if isinstance(why, Found) else ""
        return Finding(zone, Verdict.BAD, f"{address} is listed by {zone} ({codes}){reason}")

    async def _addresses(self, name: str, like: str) -> Answer[str]:
        """The addresses of a name, in the family of `like`."""
        return await self._resolver.lookup(name, _kind(like))


def _envelope_domains(config: Config) -> list[str]:
    """Whose SPF record receivers look at: the return paths, and the domains without one."""
    names = {each.return_path or domain_to_ascii(name) for name, each in config.domains.items()}
    names.update(each.return_path for each in config.tenants.values() if each.return_path)
    return sorted(names)


def _kind(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _has(answer: Answer[str], address: str) -> bool:
    return isinstance(answer, Found) and ipaddress.ip_address(address) in map(ipaddress.ip_address, answer.records)


def _within(codes: Sequence[str], networks: Sequence[str]) -> bool:
    return any(ipaddress.ip_address(code) in ipaddress.ip_network(network) for code in codes for network in networks)


def _reversed(address: str) -> str:
    """As block lists name an address: `4.3.2.1`, or the 32 digits of an IPv6 address from the last to the first."""
    return ipaddress.ip_address(address).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


def _term(address: str) -> str:
    return f"{'ip6' if ':' in address else 'ip4'}:{address}"


def _told(answers: dict[str, SpfAnswer]) -> str:
    told = [f"{domain}: {answer.result} ({answer.text})" for domain, answer in list(answers.items())[:TOLD]]
    more = f"; and {len(answers) - TOLD} more" if len(answers) > TOLD else ""
    return "; ".join(told) + more


def _names(domains: Sequence[str]) -> str:
    return ", ".join(domains[:TOLD]) + (f" and {len(domains) - TOLD} more" if len(domains) > TOLD else "")
