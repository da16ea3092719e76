"""DNS lookups: over our own list of name servers, answers as values, a bounded cache that honours TTLs.

The four kinds of "no" stay apart, because they mean different things to mail: `NoData` (the name exists, not this
type), `NoDomain` (NXDOMAIN), and `Failed` with `dns_servfail` or `dns_timeout` (nobody knows; ask again later).

Answers are `secure` when the name servers say that DNSSEC proves them, and only where they can be believed: all of them
named in the configuration, on this machine, and shown to validate (RFC 7672 section 2.2; configuration
`resolver.dnssec`). Bogus answers never reach us: a validating name server fails them.
"""

import asyncio
import ipaddress
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import dns.asyncquery
import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import structlog

from mailerd import config
from mailerd.delivery.dane import Tlsa
from mailerd.delivery.turns import Turns, party_of

log = structlog.get_logger()

MAX_RECORDS = 50  # kept of one answer; an MX answer keeps the most preferred
MAX_CNAMES = 8  # questions asked to follow one chain
MAX_NEGATIVE_TTL = 900.0  # seconds that a "no" is believed, whatever the SOA says (RFC 2308 section 5)
FAILED_TTL = 5.0  # seconds
FIRST_ROUND = 1 / 3  # of the time: one try at each name server; the second round has the rest
MAX_QUERIES = 256  # under way at once: each holds a socket
MAX_OF_PARTY = 64  # of them for the names of one registered domain
EDNS_PAYLOAD = 1232  # bytes: not fragmented on any path
MAX_DATAGRAM = 65_535
HEADER, KIND, IN = struct.Struct("!HHHHHH"), struct.Struct("!HH"), 1
EDNS = struct.pack("!BHHIH", 0, dns.rdatatype.OPT, EDNS_PAYLOAD, 0, 0)
ANSWER, NOT_AN_ANSWER, CUT = 0x80, 0xF8, 0x02  # bits of the third byte: an answer, of opcode 0; TC
WITHOUT_QUESTION = frozenset({dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED})
PROVEN_FOR = 300.0  # seconds until name servers have to show again that they validate
UNPROVEN_FOR = 30.0  # seconds until they may try again
MAX_CACHED = 64 * 1024 * 1024  # bytes of all answers in the cache, about: whoever runs a zone chooses how long they are
RECORD_SIZE = 150  # bytes, about, of a record, or of an answer, beside what it says

# What Python calls global, or not, depends on its version; these lead into private networks, or nowhere, with all.
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "64:ff9b:1::/48",  # NAT64 of a network's own (RFC 8215): only it knows where the IPv4 address stands
            "2001::/23",  # Teredo and others
            "3fff::/20",  # documentation (RFC 9637)
            "5f00::/16",  # segment routing (RFC 9602)
            "fec0::/10",  # site-local (RFC 3879)
        ),
    )
)
# What stands for an IPv4 address, and the bits that follow that address.
EMBEDDING = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped (RFC 4291 section 2.5.5.2)
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # translated (RFC 2765)
    (ipaddress.IPv6Network("::/96"), 0),  # compatible (RFC 4291 section 2.5.5.1)
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)

Record = TypeVar("Record")
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Mx:
    """One mail exchanger; `name` is lower-case without the final dot, "" for the root of a null MX (RFC 7505)."""

    preference: int
    name: str


@dataclass(frozen=True, slots=True)
class Found(Generic[Record]):
    """Records, never none. `expires` is a time of the resolver's clock, as in the other answers.

    `alias`: the name that a chain of CNAMEs led to, "" without one. `secure` covers the whole chain.
    """

    records: tuple[Record, ...]
    expires: float
    secure: bool = False
    alias: str = ""


@dataclass(frozen=True, slots=True)
class NoData:
    """The name exists and has no record of this type."""

    expires: float
    secure: bool = False


@dataclass(frozen=True, slots=True)
class NoDomain:
    """The name does not exist (NXDOMAIN), or could not: an empty or overlong label."""

    expires: float
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer to rely on. `kind` is `dns_servfail` or `dns_timeout`, `text` says who failed how, for people."""

    kind: str
    text: str
    expires: float


Answer: TypeAlias = Found[Record] | NoData | NoDomain | Failed


@dataclass(frozen=True, slots=True)
class NameServer:
    address: str
    port: int = 53

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def parse_nameserver(text: str) -> NameServer:
    """`9.9.9.9`, `127.0.0.1:5353`, `2620:fe::fe` or `[::1]:5353`. Raises ValueError with a text for people."""
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            host = text
        port = rest.removeprefix(":") if rest else "53"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(f"{text!r} is not a name server: an IP address, or ADDRESS:PORT, is allowed") from None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"{text!r} is not a name server: the port must be a number from 1 to 65535")
    return NameServer(address, int(port))


def system_nameservers() -> tuple[NameServer, ...]:
    """Those of /etc/resolv.conf; without one, a name server of this machine."""
    try:
        found = dns.resolver.Resolver(configure=True)
    except dns.resolver.NoResolverConfiguration:
        return (NameServer("127.0.0.1"),)
    return tuple(NameServer(server, found.port) for server in found.nameservers if isinstance(server, str))


def is_private(address: str) -> bool:
    """Whether an address is not of the public Internet: private, loopback, link-local, unspecified, multicast …"""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = next((_embedded(ip, behind) for network, behind in EMBEDDING if ip in network), ip)
    return ip.is_multicast or not ip.is_global or any(ip in network for network in PRIVATE)


def _embedded(ip: ipaddress.IPv6Address, behind: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address((int(ip) >> behind) & 0xFFFF_FFFF)


class SingleFlight(Generic[Key, Value]):
    """Callers that want the same thing at once share the work; one that gives up does not take it from the others."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Value]] = {}
        self._left: list[asyncio.Task[Value]] = []

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        return await asyncio.shield(self.start(key, work))

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> asyncio.Task[Value]:
        """The work for `key` that is under way, begun if there is none."""
        task = self._tasks.get(key)
        if task is None:
            tasks = self._tasks
            task = asyncio.create_task(work(), name=f"lookup {key}")
            tasks[key] = task
            task.add_done_callback(lambda _: tasks.pop(key, None))
        return task

    def renew(self) -> None:
        """Let what is under way end for those who wait for it; from here on it is done anew."""
        self._left = [task for task in (*self._left, *self._tasks.values()) if not task.done()]
        self._tasks = {}

    async def close(self) -> None:
        """Cancel what is under way and wait until it is gone."""
        tasks = [*self._tasks.values(), *self._left]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Resolver:
    """A stub resolver with a cache. Lookups never raise for what DNS does; identical ones under way share one query.

    `clock` is a monotonic clock in seconds, used for the ages of answers alone.
    """

    def __init__(self, settings: config.Resolver, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.nameservers = tuple(map(parse_nameserver, settings.nameservers)) or system_nameservers()
        self._settings = settings
        self._cache: OrderedDict[tuple[str, str], Answer[Any]] = OrderedDict()
        self._cached = 0  # bytes of them, about
        self._flights: SingleFlight[tuple[str, str], Answer[Any]] = SingleFlight()
        self._turns = Turns(MAX_QUERIES, each=MAX_OF_PARTY)
        self._doubt = _doubt(settings, self.nameservers)
        self._proof = _Proof("", float("-inf"))
        self._proofs: SingleFlight[str, None] = SingleFlight()

    @property
    def timeout(self) -> float:
        """Seconds that one lookup takes at most, once it has begun."""
        return self._settings.timeout

    async def mx(self, name: str) -> Answer[Mx]:
        """The mail exchangers, most preferred first, names of one preference in alphabetical order."""
        return await self.lookup(name, "MX")

    async def a(self, name: str) -> Answer[str]:
        return await self.lookup(name, "A")

    async def aaaa(self, name: str) -> Answer[str]:
        return await self.lookup(name, "AAAA")

    async def txt(self, name: str) -> Answer[str]:
        """The texts, each with its strings joined (RFC 7208 section 3.3), bytes beyond ASCII escaped."""
        return await self.lookup(name, "TXT")

    async def tlsa(self, name: str, port: int) -> Answer[Tlsa]:
        """The TLSA records of SMTP at the host `name` (RFC 7672 section 2.2.3)."""
        return await self.lookup(f"_{port}._tcp.{name}", "TLSA")

    async def dnssec_doubt(self) -> str:
        """Why no answer is `secure`, for people; "" when the name servers are believed. Asks them now."""
        if not self._doubt:
            await self._proofs.run("", self._prove)
        return self._doubt or self._proof.doubt

    async def lookup(self, name: str, rdtype: str) -> Answer[Any]:
        """The answer for `name` (A-labels or U-labels, any case, with or without final dot), following CNAMEs."""
        key = (name.lower().rstrip("."), rdtype)
        known = self._cache.get(key)
        if known is not None and known.expires > self.clock():
            self._cache.move_to_end(key)
            return known
        return await self._flights.run(key, lambda: self._fetch(key))

    async def close(self) -> None:
        await self._flights.close()
        await self._proofs.close()

    async def _fetch(self, key: tuple[str, str]) -> Answer[Any]:
        async with self._turns.slot(party_of(key[0])):
            answer = await self._resolve(*key)
        if not isinstance(answer, Failed) and answer.secure and not await self._proven():
            answer = self._disbelieved(answer)
        self._keep(key, answer)
        return answer

    def _keep(self, key: tuple[str, str], answer: Answer[Any]) -> None:
        known = self._cache.pop(key, None)
        self._cache[key] = answer
        self._cached += _size(answer) - (_size(known) if known is not None else 0)
        while len(self._cache) > self._settings.cache or self._cached > MAX_CACHED:
            _, forgotten = self._cache.popitem(last=False)
            self._cached -= _size(forgotten)

    def _disbelieved(self, answer: Found[Any] | NoData | NoDomain) -> Answer[Any]:
        """Without its "secure", and no longer than a doubt that may pass; where DNSSEC is required, mail waits."""
        if self._doubt:
            return replace(answer, secure=False)
        if self._settings.dnssec == "require":
            return self._failed("dns_servfail", f"DNSSEC is required, but not proved: {self._proof.doubt}")
        return replace(answer, secure=False, expires=min(answer.expires, self._proof.expires))

    async def _proven(self) -> bool:
        """Whether "secure" is to be believed. Asked only when a name server says it, so it costs others nothing."""
        if not self._doubt and self._proof.expires <= self.clock():
            await self._proofs.run("", self._prove)
        return not self._doubt and not self._proof.doubt

    async def _prove(self) -> None:
        """Find out whether every name server validates: then it says so of the SOA of a signed name.

        One that was believed stays so while it fails: silence refutes nothing, and can be brought about from outside.
        """
        name = dns.name.from_text(self._settings.dnssec_probe)
        patience = self._settings.timeout
        answers = await asyncio.gather(*(self._exchange(server, name, "SOA", patience) for server in self.nameservers))
        failed = [answer.text for answer in answers if isinstance(answer, Failed)]
        refuted = [
            f"{server} does not validate the SOA of {name}"
            for server, answer in zip(self.nameservers, answers, strict=True)
            if not isinstance(answer, Failed) and (not answer.flags & dns.flags.AD or not answer.answer)
        ]
        if failed and not refuted and self._proof.given:
            self._proof = _Proof("", self.clock() + UNPROVEN_FOR)
            return
        doubt = "; ".join(refuted + failed)
        if doubt != self._proof.doubt:
            log.info("dnssec.disbelieved", reason=doubt) if doubt else log.info("dnssec.believed")
        self._proof = _Proof(doubt, self.clock() + (UNPROVEN_FOR if doubt else PROVEN_FOR))

    async def _resolve(self, text: str, rdtype: str) -> Answer[Any]:
        """Ask, and ask again where a name server hands out a CNAME chain without its end."""
        try:
            name = dns.name.from_text(text, idna_codec=dns.name.IDNA_2008_UTS_46)
        except (dns.exception.DNSException, UnicodeError):
            return NoDomain(self._believed(MAX_NEGATIVE_TTL, negative=True))
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        asked: set[dns.name.Name] = set()
        ttl = float("inf")
        secure = True
        while name not in asked and len(asked) < MAX_CNAMES:
            asked.add(name)
            message = await self._ask(name, rdtype, deadline)
            if isinstance(message, Failed):
                return message
            try:
                chain = message.resolve_chaining()
            except dns.exception.DNSException as error:  # a loop, or records that contradict the code
                text = f"the records of {_host_name(name)} make no sense: {_reason(error)}"
                return self._failed("dns_servfail", text)
            ttl = min(ttl, chain.minimum_ttl)
            secure = secure and bool(message.flags & dns.flags.AD)
            if chain.answer is not None:
                alias = _host_name(chain.canonical_name) if chain.cnames or len(asked) > 1 else ""
                return Found(_records(chain.answer), self._believed(ttl), secure, alias)
            if message.rcode() == dns.rcode.NXDOMAIN:
                return NoDomain(self._believed(ttl, negative=True), secure)
            if not chain.cnames or message.authority:  # an authority section with an SOA says: here it ends
                return NoData(self._believed(ttl, negative=True), secure)
            name = chain.canonical_name
        return self._failed("dns_servfail", f"CNAMEs in a loop, or more than {MAX_CNAMES}, up to {_host_name(name)}")

    async def _ask(self, name: dns.name.Name, rdtype: str, deadline: float) -> dns.message.QueryMessage | Failed:
        """The first usable message of the name servers, in their order, in two rounds within the time.

        A server that refused or failed is not asked again in the second round, one that kept silent is.
        """
        loop = asyncio.get_running_loop()
        servers = list(self.nameservers)
        started = loop.time()
        failure = self._failed("dns_timeout", "no time left")
        for share in (FIRST_ROUND, 1.0):
            round_end = started + (deadline - started) * share
            silent: list[NameServer] = []
            for n, server in enumerate(servers):
                patience = (round_end - loop.time()) / (len(servers) - n)
                if patience <= 0:
                    break
                answer = await self._exchange(server, name, rdtype, patience)
                if not isinstance(answer, Failed):
                    return answer
                failure = answer
                if answer.kind == "dns_timeout":
                    silent.append(server)
            servers = silent
        log.info("dns.failed", name=str(name), type=rdtype, reason=failure.text)
        return failure

    async def _exchange(
        self, server: NameServer, name: dns.name.Name, rdtype: str, patience: float
    ) -> dns.message.QueryMessage | Failed:
        """One question to one server: UDP, then TCP when the answer was cut. Answers that do not fit are ignored."""
        flags = dns.flags.RD
        if not self._doubt:
            flags |= dns.flags.AD  # asks for AD in the answer without the signatures (RFC 6840 section 5.7)
        kind = dns.rdatatype.from_text(rdtype)
        try:
            async with asyncio.timeout(patience):
                message = await _by_udp(server, _query(name, kind, flags))
                if message is None:
                    query = dns.message.make_query(name, kind, use_edns=0, payload=EDNS_PAYLOAD)
                    query.flags |= flags
                    message = await dns.asyncquery.tcp(query, server.address, port=server.port)
        except TimeoutError:
            return self._failed("dns_timeout", f"no answer from {server}")
        except (OSError, EOFError) as error:
            return self._failed("dns_timeout", f"no answer from {server}: {_reason(error)}")
        except dns.exception.DNSException as error:
            return self._failed("dns_servfail", f"{server} answered something unreadable: {_reason(error)}")
        if not isinstance(message, dns.message.QueryMessage):
            return self._failed("dns_servfail", f"{server} answered something else than a query")
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return self._failed("dns_servfail", f"{server} answered {dns.rcode.to_text(message.rcode())}")
        return message

    def _failed(self, kind: str, text: str) -> Failed:
        return Failed(kind, text, self.clock() + FAILED_TTL)

    def _believed(self, ttl: float, *, negative: bool = False) -> float:
        """Until when an answer with this TTL is kept."""
        if negative:
            ttl = min(ttl, MAX_NEGATIVE_TTL)
        return self.clock() + min(max(ttl, self._settings.min_ttl), self._settings.max_ttl)


def _query(name: dns.name.Name, kind: dns.rdatatype.RdataType, flags: int) -> bytes:
    """A question as it goes over the wire: dnspython's own way takes ten times as long, for each new domain."""
    head = HEADER.pack(secrets.randbits(16), flags, 1, 0, 0, 1)
    asked: bytes = name.to_wire()  # type: ignore[assignment]  # None only where it is given a file to write to
    return head + asked + KIND.pack(kind, IN) + EDNS


async def _by_udp(server: NameServer, query: bytes) -> dns.message.Message | None:
    """The first answer that fits; None: it was cut. From a port of its own, which is harder to guess than the id."""
    loop = asyncio.get_running_loop()
    with socket.socket(dns.inet.af_for_address(server.address), socket.SOCK_DGRAM) as own:
        own.setblocking(False)
        # Connected, so that the kernel drops what others send and tells of a port where nobody listens.
        own.connect((server.address, server.port))
        own.send(query)
        while True:
            answer = await loop.sock_recv(own, MAX_DATAGRAM)
            if not _fits(query, answer):
                continue
            if answer[2] & CUT:
                return None
            with suppress(Exception):  # whatever dnspython makes of garbage: somebody may have forged it
                return dns.message.from_wire(answer)


def _fits(query: bytes, answer: bytes) -> bool:
    """Is it an answer to this question? Name servers that refuse may leave the question out."""
    if len(answer) < HEADER.size or answer[:2] != query[:2] or answer[2] & NOT_AN_ANSWER != ANSWER:
        return False
    asked = query[HEADER.size : -len(EDNS)]
    if answer[4:6] == b"\0\0":
        return answer[3] & 0x0F in WITHOUT_QUESTION
    return answer[4:6] == b"\0\1" and answer[HEADER.size : HEADER.size + len(asked)].lower() == asked.lower()


@dataclass(frozen=True, slots=True)
class _Proof:
    """Whether the name servers showed that they validate: `doubt` is "" if so."""

    doubt: str
    expires: float

    @property
    def given(self) -> bool:
        """They did once; before the first time, nobody doubts yet."""
        return not self.doubt and self.expires > float("-inf")


def _doubt(settings: config.Resolver, nameservers: tuple[NameServer, ...]) -> str:
    """Why what these name servers say of DNSSEC cannot be believed, whatever it is; "" when it can."""
    if settings.dnssec == "off":
        return "resolver.dnssec is off"
    if not settings.nameservers:
        return "resolver.nameservers names none"
    distant = [str(server) for server in nameservers if not ipaddress.ip_address(server.address).is_loopback]
    return f"not on this machine, so that anybody on the way could answer: {', '.join(distant)}" if distant else ""


def _reason(error: Exception) -> str:
    """An error in its own words, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or "the connection was closed"


def _records(rrset: dns.rrset.RRset) -> tuple[Mx, ...] | tuple[str, ...] | tuple[Tlsa, ...]:
    if rrset.rdtype == dns.rdatatype.MX:
        found = sorted((mx.preference, _host_name(mx.exchange)) for mx in rrset)
        return tuple(Mx(preference, name) for preference, name in found[:MAX_RECORDS])
    if rrset.rdtype == dns.rdatatype.TXT:
        return tuple(b"".join(txt.strings).decode("ascii", "backslashreplace") for txt in rrset)[:MAX_RECORDS]
    if rrset.rdtype == dns.rdatatype.TLSA:
        return tuple(Tlsa(tlsa.usage, tlsa.selector, tlsa.mtype, tlsa.cert) for tlsa in rrset)[:MAX_RECORDS]
    return tuple(record.to_text() for record in rrset)[:MAX_RECORDS]


def _size(answer: Answer[Any]) -> int:
    """Bytes that it takes in memory, about."""
    records = answer.records if isinstance(answer, Found) else ()
    return RECORD_SIZE * (1 + len(records)) + sum(map(_length, records))


def _length(record: str | Mx | Tlsa) -> int:
    match record:
        case Mx():
            return len(record.name)
        case Tlsa():
            return len(record.data)
    return len(record)


def _host_name(name: dns.name.Name) -> str:
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()
