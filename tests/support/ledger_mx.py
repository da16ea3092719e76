"""A mail exchanger that keeps a ledger: what it took is in its file before the sender hears of it.

It is a process of its own, so that no fault of a test reaches it. It takes everything at once, until it is told to be
`slow SECONDS` (before the reply to the final dot), to `reset STEP [COUNT]` or `close STEP [COUNT]` the next connections
that get there (steps: greeting, ehlo, mail, rcpt, data, content, dot), or to be `normal` again.
"""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TOP = Path(__file__).parents[2]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: send RST instead of FIN


@dataclass(frozen=True, slots=True)
class Arrival:
    """One recipient of one transaction whose final dot came. `answered`: the sender was sent a 250."""

    at: float
    address: str
    intact: bool  # the body is the one that was submitted
    answered: bool


class LedgerMx:
    """`async with LedgerMx(directory) as mx`: listens on `mx.port` of 127.0.0.1, `mx.arrivals()` reads the ledger."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "ledger"
        self._read = 0  # bytes of it
        self._arrivals: list[Arrival] = []
        self.port = 0
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.ledger_mx",
            str(self._file),
            cwd=TOP,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.port = int(await self._line())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # its end
        await self._process.wait()

    async def tell(self, order: str) -> None:
        """Returns when the order is in force."""
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode() + b"\n")
        answer = await self._line()
        assert answer == order, answer

    def arrivals(self) -> list[Arrival]:
        """All so far."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        for line in whole.decode().splitlines():
            at, address, intact, answered = line.split(" ")
            self._arrivals.append(Arrival(float(at), address, intact == "intact", answered == "answered"))
        return self._arrivals.copy()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()


@dataclass
class Manner:
    """How the exchanger behaves now."""

    slow: float = 0.0
    step: str = ""
    count: int = 0
    reset: bool = False

    def hear(self, order: str) -> None:
        match order.split():
            case ["normal"]:
                self.slow, self.step, self.count = 0.0, "", 0
            case ["slow", seconds]:
                self.slow = float(seconds)
            case ["reset" | "close" as how, step, *count]:
                self.step, self.count, self.reset = step, int(count[0]) if count else sys.maxsize, how == "reset"
            case _:
                raise ValueError(order)

    def strikes(self, step: str) -> bool:
        """Whether the connection ends here."""
        if step != self.step or not self.count:
            return False
        self.count -= 1
        return True


class Exchange(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, manner: Manner, ledger: int) -> None:
        self._manner = manner
        self._ledger = ledger
        self._rest = b""
        self._in_content = False
        self._recipients: list[str] = []
        self._replies: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._struck("greeting"):
            transport.write(b"220 ledger.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while self._take():
            pass
        if self._replies:
            self.transport.write(b"".join(self._replies))
            self._replies.clear()

    def _take(self) -> bool:
        """Handle one command or one whole content; False when more has to come first."""
        if self.transport.is_closing():
            return False
        if self._in_content:
            if self._rest and self._struck("content"):
                return False
            # The CRLF before the dot may be the one that ended the header.
            content, dot, rest = self._rest.partition(b"\r\n.\r\n")
            if not dot:
                return False
            self._in_content, self._rest = False, rest
            self._finish(content + b"\r\n")
            return True
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            return False
        self._rest = rest
        self._command(line.decode("utf-8", "replace"))
        return True

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        step = {"HELO": "ehlo"}.get(verb, verb.lower())
        if self._struck(step):
            return
        if verb == "EHLO":
            self._replies.append(b"250-ledger.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n")
        elif verb == "RCPT":
            self._recipients.append(line.partition("<")[2].partition(">")[0])
            self._replies.append(b"250 2.1.5 ok\r\n")
        elif verb == "DATA":
            self._in_content = True
            self._replies.append(b"354 go ahead\r\n")
        elif verb == "QUIT":
            self.transport.close()
        else:
            self._recipients = []
            self._replies.append(b"250 2.0.0 ok\r\n")

    def _finish(self, content: bytes) -> None:
        header, _, body = content.replace(b"\r\n..", b"\r\n.").partition(b"\r\n\r\n")
        name, _, value = header.rpartition(b"\r\nX-Checksum: ")
        intact = bool(name) and int(value.split(b"\r\n")[0]) == zlib.crc32(body)
        struck = self._manner.strikes("dot")
        words = f"{'intact' if intact else 'broken'} {'silent' if struck else 'answered'}"
        lines = "".join(f"{time.time():.6f} {address} {words}\n" for address in self._recipients)
        os.write(self._ledger, lines.encode())
        self._recipients = []
        if struck:
            self._hang_up()
        elif self._manner.slow:
            asyncio.get_running_loop().call_later(self._manner.slow, self.transport.write, b"250 2.0.0 taken\r\n")
        else:
            self._replies.append(b"250 2.0.0 taken\r\n")

    def _struck(self, step: str) -> bool:
        if self._manner.strikes(step):
            self._hang_up()
            return True
        return False

    def _hang_up(self) -> None:
        if self._manner.reset:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._replies.clear()
        self.transport.abort()


async def serve(file: str) -> None:
    """Serve until standard input ends; each of its lines is an order."""
    loop = asyncio.get_running_loop()
    manner = Manner()
    ledger = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    server = await loop.create_server(lambda: Exchange(manner, ledger), "127.0.0.1", 0, backlog=1_024)
    print(server.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        manner.hear(line.decode().strip())
        print(line.decode().strip(), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
