"""May an address send as a domain, says the domain's SPF record? RFC 7208 section 4, from the sender's side."""

import asyncio
import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mailerd.delivery.resolver import Answer, Failed, Found, NoData, NoDomain, Resolver
from mailerd.wire.spf import Address, Macros, Mechanism, Record, is_spf, parse_record

MAX_LOOKUPS = 10  # of terms that ask DNS, all included records together (RFC 7208 section 4.6.4)
MAX_VOID = 2  # of those with no answer
MAX_NAMES = 10  # of one mx or ptr term
TIME = 30.0  # seconds for all of it


class Result(StrEnum):
    """RFC 7208 section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class SpfAnswer:
    """The result and the words behind it: the term that decided, or what is wrong."""

    result: Result
    text: str


class SpfError(Exception):
    """Ends an evaluation, however deep it is."""

    def __init__(self, result: Result, text: str) -> None:
        super().__init__(text)
        self.answer = SpfAnswer(result, text)


BY_QUALIFIER = {"+": Result.PASS, "-": Result.FAIL, "~": Result.SOFTFAIL, "?": Result.NEUTRAL}


async def check_host(resolver: Resolver, address: str, domain: str, *, sender: str, helo: str) -> SpfAnswer:
    """check_host() of RFC 7208 section 4; `sender` and `helo` are for records with macros. Never raises for DNS."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    evaluation = _Evaluation(resolver, ip, Macros(ip, sender if "@" in sender[1:] else f"postmaster@{domain}", helo))
    try:
        async with asyncio.timeout(TIME):
            return await evaluation.check(domain)
    except SpfError as error:
        return error.answer
    except TimeoutError:
        return SpfAnswer(Result.TEMPERROR, f"name servers took more than {TIME:.0f} s for the record of {domain}")


class _Evaluation:
    """One evaluation: its limits hold for all records together."""

    def __init__(self, resolver: Resolver, ip: Address, macros: Macros) -> None:
        self._resolver = resolver
        self._ip = ip
        self._macros = macros
        self._lookups = 0
        self._void = 0

    async def check(self, domain: str) -> SpfAnswer:
        record = await self._record(domain)
        if record is None:
            return SpfAnswer(Result.NONE, f"{domain} has no SPF record")
        for mechanism in record.mechanisms:
            if await self._matches(mechanism, domain):
                return SpfAnswer(BY_QUALIFIER[mechanism.qualifier], f"{mechanism.text} of {domain}")
        if record.redirect is None:
            return SpfAnswer(Result.NEUTRAL, f"no term of {domain} matches")
        self._count()
        answer = await self.check(self._macros.expand(record.redirect, domain))
        if answer.result is Result.NONE:
            raise SpfError(Result.PERMERROR, f"redirect={record.redirect} of {domain} leads to no SPF record")
        return answer

    async def _record(self, domain: str) -> Record | None:
        if "." not in domain.strip(".") or domain.startswith("["):
            return None
        texts = [text for text in await self._ask(domain, "TXT") if is_spf(text)]
        if len(texts) > 1:
            raise SpfError(Result.PERMERROR, f"{domain} has {len(texts)} SPF records, allowed is one")
        try:
            return parse_record(texts[0]) if texts else None
        except ValueError as error:
            raise SpfError(Result.PERMERROR, f"the SPF record of {domain} is wrong: {error}") from None

    async def _matches(self, mechanism: Mechanism, domain: str) -> bool:
        if mechanism.network is not None:
            return self._ip in mechanism.network
        if mechanism.name == "all":
            return True
        self._count()
        target = self._macros.expand(mechanism.domain, domain) if mechanism.domain else domain
        match mechanism.name:
            case "include":
                return await self._include(target)
            case "exists":
                return bool(await self._ask(target, "A", void=True))
            case "a":
                return self._near(await self._addresses(target, void=True), mechanism)
            case "mx":
                return await self._is_mx(target, mechanism)
            case _:
                return await self._has_name(target)

    async def _include(self, target: str) -> bool:
        answer = await self.check(target)
        if answer.result is Result.NONE:
            raise SpfError(Result.PERMERROR, f"include:{target} leads to no SPF record")
        return answer.result is Result.PASS

    async def _is_mx(self, target: str, mechanism: Mechanism) -> bool:
        exchangers = [mx.name for mx in await self._ask(target, "MX", void=True)]
        if len(exchangers) > MAX_NAMES:
            raise SpfError(Result.PERMERROR, f"{target} has more than {MAX_NAMES} MX hosts: too many for SPF")
        for name in exchangers:
            if name and self._near(await self._addresses(name), mechanism):
                return True
        return False

    async def _has_name(self, target: str) -> bool:
        """The ptr mechanism (RFC 7208 section 5.5): what DNS does not tell is no match."""
        names = await self._resolver.lookup(self._ip.reverse_pointer, "PTR")
        if not isinstance(names, Found):
            self._note_void(names)
            return False
        kind = "A" if self._ip.version == 4 else "AAAA"
        for name in [str(name).rstrip(".").lower() for name in names.records[:MAX_NAMES]]:
            if name == target.lower() or name.endswith(f".{target.lower()}"):
                addresses = await self._resolver.lookup(name, kind)
                if isinstance(addresses, Found) and self._ip in map(ipaddress.ip_address, addresses.records):
                    return True
        return False

    def _near(self, addresses: list[Address], mechanism: Mechanism) -> bool:
        length = mechanism.lengths[0 if self._ip.version == 4 else 1]
        return any(self._ip in ipaddress.ip_network((address, length), strict=False) for address in addresses)

    async def _addresses(self, name: str, *, void: bool = False) -> list[Address]:
        found = await self._ask(name, "A" if self._ip.version == 4 else "AAAA", void=void)
        return [ipaddress.ip_address(address) for address in found]

    async def _ask(self, name: str, kind: str, *, void: bool = False) -> list[Any]:
        answer: Answer[Any] = await self._resolver.lookup(name, kind)
        if isinstance(answer, Failed):
            raise SpfError(Result.TEMPERROR, f"the {kind} lookup of {name} failed: {answer.text}")
        if void:
            self._note_void(answer)
        return list(answer.records) if isinstance(answer, Found) else []

    def _note_void(self, answer: Answer[Any]) -> None:
        self._void += isinstance(answer, NoData | NoDomain)
        if self._void > MAX_VOID:
            raise SpfError(Result.PERMERROR, f"more than {MAX_VOID} of the names that SPF asks for do not exist")

    def _count(self) -> None:
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            raise SpfError(Result.PERMERROR, f"the SPF record needs more than {MAX_LOOKUPS} lookups")
