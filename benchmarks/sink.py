"""A mail exchanger that takes everything, keeps nothing, and counts by recipient. `python -m benchmarks.sink` is the
process; `Sink` is the driver's end of it.

It is a floor to measure on, not a server: it answers at once, in one write for all commands that came together, and
looks at the content only for its end and for a signature. It has a second port where it offers STARTTLS, when it is
given a certificate; what comes there without TLS is taken, and not counted as `tls`.
"""

import asyncio
import json
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.channel import Channel, server_context

EHLO = b"250-sink.localhost\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n"
EHLO_TLS = EHLO.replace(b"250-PIPELINING", b"250-STARTTLS\r\n250-PIPELINING")
DONE = b"250 2.0.0 taken\r\n"
END = b"\r\n.\r\n"
HEADER = 4096  # bytes searched for a signature


class Tally:
    """What came since `begin`."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, run: str) -> None:
        """Count afresh; recipients of other runs are strays."""
        self.run = run.encode()
        self.seen: set[bytes] = set()
        self.duplicates = self.strays = self.signed = self.messages = self.tls = 0
        self.last = 0.0  # time.monotonic() of the last new recipient
        self.sample = b""
        self.wanted = 0

    def count(self, recipients: list[bytes], head: bytes, *, tls: bool) -> None:
        self.messages += 1
        self.tls += tls
        self.signed += b"DKIM-Signature:" in head
        for recipient in recipients:
            if self.run not in recipient:
                self.strays += 1
            elif recipient in self.seen:
                self.duplicates += 1
            else:
                self.seen.add(recipient)
                self.last = time.monotonic()
        if self.wanted and len(self.seen) >= self.wanted:
            self.report()
            self.wanted = 0

    def report(self) -> None:
        fields = ("duplicates", "strays", "signed", "tls", "messages", "last")
        report = {name: getattr(self, name) for name in fields} | {"unique": len(self.seen)}
        print(json.dumps(report), flush=True)


class Conversation(asyncio.Protocol):
    """One connection."""

    def __init__(self, tally: Tally, keep: Path | None, tls: ssl.SSLContext | None = None) -> None:
        self._tally = tally
        self._keep = keep  # where the first message of each run is written
        self._context = tls  # of STARTTLS, where it is offered
        self._channel: Channel | None = None
        self._content = False  # between DATA and the dot
        self._rest = b""
        self._recipients: list[bytes] = []
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it
        self._socket = transport.get_extra_info("socket")
        self._write: Callable[[bytes], None] = transport.write
        transport.write(b"220 sink.localhost ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self._channel is not None:
            try:
                data = self._channel.take(data)
            except ssl.SSLError:
                return self._transport.abort()
        if self._content:
            self._take_content(data)
        else:
            self._take_commands(self._rest + data if self._rest else data)
        return None

    def _take_commands(self, data: bytes) -> None:
        replies = []
        while True:
            line, newline, rest = data.partition(b"\r\n")
            if not newline:
                break
            data = rest
            verb = line[:4].upper()
            if verb == b"RCPT":
                self._recipients.append(line[line.find(b"<") + 1 : line.find(b">")])
                replies.append(b"250 2.1.5 ok\r\n")
            elif verb == b"DATA":
                replies.append(b"354 go on\r\n")
                self._content, self._head, self._parts = True, b"", []
                break
            elif verb == b"EHLO":
                replies.append(EHLO if self._context is None or self._channel is not None else EHLO_TLS)
            elif verb == b"QUIT":
                self._write(b"".join(replies) + b"221 2.0.0 bye\r\n")
                return self._transport.close()
            elif verb == b"STAR" and self._context is not None and self._channel is None:
                self._rest = b""  # what came in clear is not part of it
                self._transport.write(b"".join(replies) + b"220 2.0.0 go on\r\n")
                self._channel = Channel(self._context, self._transport, server_side=True)
                self._write = self._channel.write
                return None
            else:
                if verb in (b"MAIL", b"RSET"):
                    self._recipients = []
                replies.append(b"250 2.0.0 ok\r\n")
        if replies:
            self._write(b"".join(replies))
        self._rest = data
        if self._content:
            self._tail = b"\r\n"  # of the DATA line: a dot may come first
            self._rest = b""
            if data:
                return self._take_content(data)
            self._acknowledge()
        return None

    def _take_content(self, data: bytes) -> None:
        """Look for the end in `data`, and in what goes over from the piece before."""
        if len(self._head) < HEADER:
            self._head += data[: HEADER - len(self._head)]
        if self._keep is not None and not self._tally.sample:
            self._parts.append(data)
        seam = len(self._tail)
        end = (self._tail + data[:4]).find(END)
        if end < 0:
            end = data.find(END)
            end = end + seam if end >= 0 else -1
        if end < 0:
            self._tail = (self._tail + data[-4:])[-4:]
            return self._acknowledge()
        self._content = False
        after = data[end + len(END) - seam :]
        self._keep_sample()
        self._tally.count(self._recipients, self._head, tls=self._channel is not None)
        self._recipients = []
        self._write(DONE)
        if after:
            self._take_commands(after)
        return None

    def _acknowledge(self) -> None:
        """Now, not with the next data: a sender whose segment is not full (64 KB on loopback) waits for it."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _keep_sample(self) -> None:
        if self._keep is not None and not self._tally.sample:
            self._tally.sample = b"".join(self._parts)
            self._keep.write_bytes(self._tally.sample)


async def serve(port: int, keep: Path | None, tls: ssl.SSLContext | None = None) -> None:
    """Serve until standard input ends; orders come there, a line each: `begin RUN`, `wait COUNT`, `report`.

    The first line that it prints has its ports: in clear, and with STARTTLS (0: there is none).
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    server = await loop.create_server(lambda: Conversation(tally, keep), "127.0.0.1", port, backlog=1000)
    ports = [server.sockets[0].getsockname()[1], 0]
    if tls is not None:
        offering = await loop.create_server(lambda: Conversation(tally, keep, tls), "127.0.0.1", 0, backlog=1000)
        ports[1] = offering.sockets[0].getsockname()[1]
    print(*ports, flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        order, _, argument = line.decode().strip().partition(" ")
        if order == "begin":
            tally.begin(argument)
            tally.report()
        elif order == "wait" and len(tally.seen) < int(argument):
            tally.wanted = int(argument)
        else:
            tally.report()


class Sink:
    """The driver's end."""

    def __init__(
        self, command: list[str], work: Path, port: int = 0, certificate: tuple[Path, Path] | None = None
    ) -> None:
        """`certificate` and its key: PEM files for the port `tls_port`, which offers STARTTLS."""
        self.sample = work / "sample.eml"
        own = [str(port), str(self.sample), *map(str, certificate or ())]
        self._process = subprocess.Popen(
            [*command, sys.executable, "-m", "benchmarks.sink", *own], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.port, self.tls_port = map(int, self._read(10.0).split())

    def begin(self, run: str) -> None:
        """Count afresh: recipients named `<number>run@...`."""
        while self._said(0.0):  # the answer to a wait() that was given up
            self._read(0.0)
        self._order(f"begin {run}")
        self._read(30.0)

    def wait(self, count: int, seconds: float) -> dict[str, Any]:
        """The report when `count` different recipients have come, or after `seconds`."""
        self._order(f"wait {count}")
        try:
            return json.loads(self._read(seconds))  # type: ignore[no-any-return]
        except TimeoutError:
            return self.report()

    def report(self) -> dict[str, Any]:
        self._order("report")
        return json.loads(self._read(30.0))  # type: ignore[no-any-return]

    def close(self) -> None:
        self._pipe.close()
        self._process.wait(10)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _order(self, text: str) -> None:
        self._pipe.write(text.encode() + b"\n")
        self._pipe.flush()

    def _read(self, seconds: float) -> bytes:
        """One line. The process writes whole lines and one at a time, so none is ever left in the buffer."""
        if not self._said(seconds):
            raise TimeoutError(f"the sink said nothing for {seconds:g} s")
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _said(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]), server_context(*sys.argv[3:5]) if sys.argv[3:] else None))
