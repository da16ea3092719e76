"""A mail exchanger that writes down what a receiver sees: connections and messages, by source and by host, with times.

`python -m benchmarks.counting_sink` is the process, `CountingSink` the driver's end of it, `Seen` what it saw. It takes
everything. Its hosts are addresses of 127.0.0.0/8, all on one port, each with a time that a message takes there: the
way to make connections scarce.
"""

import asyncio
import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self, cast

TOP = Path(__file__).parents[1]
EHLO = b"250-sink.localhost\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME\r\n"
END = b"\r\n.\r\n"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message, taken at `at` (seconds of the monotonic clock), before the time that it took."""

    at: float
    size: int
    recipients: tuple[str, ...]


@dataclass(slots=True)
class Connection:
    """`closed` inf: it was open when we looked."""

    source: str
    host: str
    opened: float
    closed: float = float("inf")
    messages: list[Arrival] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What the sink saw; functions of sums and windows take it apart."""

    connections: tuple[Connection, ...]

    def only(self, wanted: Callable[[Connection], bool]) -> "Seen":
        return Seen(tuple(connection for connection in self.connections if wanted(connection)))

    def by(self, key: Callable[[Connection], str]) -> dict[str, "Seen"]:
        ordered = sorted(self.connections, key=key)
        return {name: Seen(tuple(group)) for name, group in groupby(ordered, key)}

    def messages(self) -> list[Arrival]:
        """In the order of their coming."""
        return sorted((arrival for each in self.connections for arrival in each.messages), key=lambda each: each.at)

    def most_open(self) -> int:
        """Connections at the same time; one that ends in the instant in which another begins is not there any more."""
        changes = [(each.opened, 1) for each in self.connections] + [(each.closed, -1) for each in self.connections]
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def mean_open(self, start: float, end: float) -> float:
        return sum(max(0.0, min(each.closed, end) - max(each.opened, start)) for each in self.connections) / (
            end - start
        )


def most_within(times: Iterable[float], period: float, amounts: Iterable[float] | None = None) -> float:
    """The largest number, or sum of amounts, in any window of `period` seconds."""
    dates = sorted(times) if amounts is None else list(times)
    sums = [0.0]
    for amount in amounts if amounts is not None else [1.0] * len(dates):
        sums.append(sums[-1] + amount)
    # The fullest window begins with an event, and does not hold what comes a whole period later.
    return max((sums[bisect_left(dates, at + period)] - sums[index] for index, at in enumerate(dates)), default=0.0)


class CountingSink:
    """`with CountingSink(directory, {"127.0.1.1": 0.1}) as sink`: hosts, and the seconds a message takes at each."""

    def __init__(self, directory: Path, hosts: Mapping[str, float]) -> None:
        self._file = directory / "seen"
        self._hosts = hosts
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.counting_sink", str(self._file), json.dumps(dict(self._hosts))],
            cwd=TOP,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=10)  # the end of its standard input is its own

    def seen(self) -> Seen:
        """All so far."""
        connections: dict[str, Connection] = {}
        for line in self._file.read_text().splitlines():
            at, what, number, *rest = line.split(" ")
            match what:
                case "opened":
                    connections[number] = Connection(rest[0], rest[1], float(at))
                case "closed":
                    connections[number].closed = float(at)
                case "message":
                    arrival = Arrival(float(at), int(rest[0]), tuple(rest[1:]))
                    connections[number].messages.append(arrival)
        return Seen(tuple(connections.values()))

    def until_quiet(self, quiet: float, patience: float) -> None:
        """Wait until nothing happened for `quiet` seconds, or `patience` is over."""
        deadline, size = time.monotonic() + patience, -1
        while size != (size := self._file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(quiet)

    def arrived(self) -> Counter[str]:
        """How often each recipient came."""
        return Counter(name for arrival in self.seen().messages() for name in arrival.recipients)


class Conversation(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, note: Callable[[str], None], number: int, seconds: float) -> None:
        self._note_line = note
        self._number = number
        self._seconds = seconds
        self._rest = b""
        self._in_content = False
        self._recipients: list[str] = []
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        (source, *_), (host, *_) = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._socket = transport.get_extra_info("socket")
        self._note("opened", source, host)
        self.transport.write(b"220 sink.localhost ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def eof_received(self) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while self._take():
            pass

    def _take(self) -> bool:
        """Handle one command or one content; False when more has to come first."""
        if self._in_content:
            content, dot, rest = self._rest.partition(END)
            if not dot:  # its sender may wait for an acknowledgement before the rest
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                return False
            self._in_content, self._rest = False, rest
            self._note("message", str(len(content)), *self._recipients)
            asyncio.get_running_loop().call_later(self._seconds, self._taken)
            return True
        line, newline, rest = self._rest.partition(b"\r\n")
        if not newline:
            return False
        self._rest = rest
        self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        match line[:4].upper():
            case b"EHLO":
                self.transport.write(EHLO)
            case b"MAIL":
                self._recipients = []
                self.transport.write(b"250 2.1.0 ok\r\n")
            case b"RCPT":
                self._recipients.append(line[line.find(b"<") + 1 : line.find(b">")].decode())
                self.transport.write(b"250 2.1.5 ok\r\n")
            case b"DATA":
                self._in_content = True
                self.transport.write(b"354 go on\r\n")
            case b"QUIT":
                self._end()
                self.transport.write(b"221 2.0.0 bye\r\n")
                self.transport.close()
            case _:
                self.transport.write(b"250 2.0.0 ok\r\n")

    def _taken(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"250 2.0.0 taken\r\n")

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._note("closed")

    def _note(self, *words: str) -> None:
        self._note_line(f"{time.monotonic():.6f} {words[0]} {self._number} {' '.join(words[1:])}".rstrip())


async def serve(file: Path, hosts: Mapping[str, float]) -> None:
    """Serve until standard input ends."""
    with suppress(PermissionError):
        os.nice(-10)  # a receiver has a machine of its own: what it counts late it did not see late
    loop = asyncio.get_running_loop()
    ledger = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    count = 0

    def note(line: str) -> None:
        os.write(ledger, line.encode() + b"\n")

    def conversation(seconds: float) -> Conversation:
        nonlocal count
        count += 1
        return Conversation(note, count, seconds)

    servers = []
    port = 0
    for host, seconds in sorted(hosts.items(), key=lambda each: ipaddress.ip_address(each[0])):
        server = await loop.create_server(lambda seconds=seconds: conversation(seconds), host, port, backlog=1_000)  # type: ignore[misc]
        port = server.sockets[0].getsockname()[1]
        servers.append(server)
    print(port, flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    await orders.read()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
