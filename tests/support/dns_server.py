"""A real small name server on 127.0.0.1, UDP and TCP on one ephemeral port, that answers from what a test puts in.

It behaves like a recursive one: CNAME chains come complete, unknown names are NXDOMAIN, known names without the type
are NODATA, both with an SOA.

    async with DnsServer() as dns:
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "127.0.0.2")
        resolver = Resolver(config.Resolver(nameservers=(dns.address,)))
"""

import asyncio
import contextlib
import socket
from collections import Counter
from types import TracebackType
from typing import Self, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

MODES = frozenset(
    {
        "servfail",
        "refused",
        "drop",
        "truncate",
        "malformed",
        "wrong_id",
        "bare_cname",
        "malformed_tcp",
        "nodata",
        "no_soa",
    }
)


class DnsServer:
    """`queries` counts questions by (name, type), `tcp_queries` those that came over TCP."""

    def __init__(self) -> None:
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries = 0
        self.soa_minimum = 60
        self.hold: asyncio.Event | None = None  # when set to an Event, answers wait for it
        self.validates = False  # says of all that it has that DNSSEC proved it
        self._records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._modes: dict[tuple[str, str], str] = {}
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def add(self, name: str, rdtype: str, *records: str, ttl: int = 300) -> None:
        """Set the records of a name and type; none: the name exists, without this type."""
        self._records[key(name, rdtype)] = (ttl, list(records))

    def remove(self, name: str, rdtype: str) -> None:
        del self._records[key(name, rdtype)]

    def misbehave(self, name: str, mode: str, rdtype: str = "*") -> None:
        """Answer questions for `name` (of one type, or all) in one of `MODES`."""
        assert mode in MODES, mode
        self._modes[key(name, rdtype)] = mode

    def behave(self, name: str, rdtype: str = "*") -> None:
        del self._modes[key(name, rdtype)]

    def asked(self, name: str, rdtype: str) -> int:
        return self.queries[key(name, rdtype)]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        while True:  # until a port is free for both protocols
            self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
            self._port = self._tcp.sockets[0].getsockname()[1]
            with contextlib.suppress(OSError):
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=("127.0.0.1", self._port)
                )
                self._udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
                return self
            self._tcp.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._udp.close()
        self._tcp.close()
        for task in self._tasks:
            task.cancel()

    def start(self, wire: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        task = asyncio.create_task(self._serve_udp(wire, peer, transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_udp(self, wire: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        answer = await self._answer(wire, udp=True)
        if answer is not None and not transport.is_closing():
            transport.sendto(answer, peer)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                answer = await self._answer(await reader.readexactly(length), udp=False)
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()

    async def _answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        asked = key(question.name.to_text(), dns.rdatatype.to_text(question.rdtype))
        self.queries[asked] += 1
        self.tcp_queries += not udp
        if self.hold is not None:
            await self.hold.wait()
        mode = self._modes.get(asked) or self._modes.get((asked[0], "*"), "")
        if mode == "drop":
            return None
        if mode == "malformed" or (mode == "malformed_tcp" and not udp):
            return wire[:2] + b"\xff" * 40
        response = dns.message.make_response(query, recursion_available=True)
        if mode in ("servfail", "refused"):
            response.set_rcode(dns.rcode.from_text(mode))
            return response.to_wire()
        if mode == "wrong_id":
            response.id ^= 0x5555
        if udp and mode in ("truncate", "malformed_tcp"):
            response.flags |= dns.flags.TC
            return response.to_wire()
        if self.validates:
            response.flags |= dns.flags.AD
        self._fill(response, *asked, mode)
        return self._to_wire(response, udp=udp)

    def _fill(self, response: dns.message.Message, name: str, rdtype: str, mode: str) -> None:
        """Put in the CNAME chain and the records, or the kind of "no" that its last name deserves."""
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            kind = rdtype if self._records.get((name, rdtype), (0, []))[1] else "CNAME"
            ttl, records = self._records.get((name, kind), (0, []))
            if not records or mode in ("nodata", "no_soa"):
                return self._deny(response, name, mode)
            response.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *records))
            if kind == rdtype or mode == "bare_cname":
                return None
            name = key(records[0], "")[0]
        return None  # a loop of CNAMEs, left as it is

    def _deny(self, response: dns.message.Message, name: str, mode: str) -> None:
        if not any(known == name for known, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if mode != "no_soa":
            soa = f"ns.test. host.test. 1 3600 600 86400 {self.soa_minimum}"
            response.authority.append(dns.rrset.from_text(dns.name.root, 3600, "IN", "SOA", soa))

    def _to_wire(self, response: dns.message.Message, *, udp: bool) -> bytes:
        wire = response.to_wire(max_size=65_535)
        if not udp or len(wire) <= 1232:
            return wire
        for section in (response.answer, response.authority, response.additional):
            section.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.start(data, addr, self._transport)


def key(name: str, rdtype: str) -> tuple[str, str]:
    return name.lower().rstrip("."), rdtype.upper()
