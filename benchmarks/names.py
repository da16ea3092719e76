"""A name server for any number of domains, each with a mail exchanger and addresses of its own.

`DOMAIN MX` is answered with `mx.DOMAIN`, `mx.DOMAIN A` with 127.0.0.1, all else with "no such data" or "no such name".
It is a floor to measure on, not a server: it looks at no more than the name and the type. `python -m benchmarks.names`
is the process; `Names` is the driver's end of it.
"""

import asyncio
import socket
import struct
import subprocess
import sys
from typing import cast

A, SOA, MX, AAAA = 1, 6, 15, 28
TTL = 300  # seconds
POINTER = b"\xc0\x0c"  # to the name that was asked for
RECORD = struct.Struct(">HHIH")
HEAD = struct.Struct(">2sHHHHH")
ANSWER, NO_NAME = 0x8580, 0x8583  # authoritative, recursion available; NXDOMAIN
ADDRESS = POINTER + RECORD.pack(A, 1, TTL, 4) + socket.inet_aton("127.0.0.1")
EXCHANGER = POINTER + RECORD.pack(MX, 1, TTL, 7) + b"\0\x0a" + b"\x02mx" + POINTER
NOTHING = b"\0" + RECORD.pack(SOA, 1, TTL, 22) + b"\0\0" + struct.pack(">IIIII", 1, TTL, TTL, TTL, TTL)


def answer(query: bytes) -> bytes:
    """To a query of one question."""
    end = query.index(b"\0", 12) + 5
    (wanted,) = struct.unpack_from(">H", query, end - 4)
    first = query[13 : 13 + query[12]].lower()
    question = query[12:end]
    if first.startswith(b"_"):
        return HEAD.pack(query[:2], NO_NAME, 1, 0, 1, 0) + question + NOTHING
    record = {A: ADDRESS if first == b"mx" else None, MX: None if first == b"mx" else EXCHANGER}.get(wanted)
    if record is None:
        return HEAD.pack(query[:2], ANSWER, 1, 0, 1, 0) + question + NOTHING
    return HEAD.pack(query[:2], ANSWER, 1, 1, 0, 0) + question + record


class _Server(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self._transport.sendto(answer(data), addr)


async def serve() -> None:
    """Serve until standard input ends; prints the port first."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Server, local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
    print(transport.get_extra_info("sockname")[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Names:
    """The driver's end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.names"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())
