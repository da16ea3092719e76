"""A mail exchanger that notes when each DATA command reached this machine's kernel, by the clock of all its processes.

It is a process of its own, and the kernel stamps what it receives: neither a busy event loop of the test nor an
exchanger that waits for a core makes a DATA seem later than it was.
"""

import asyncio
import os
import socket
import socketserver
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TOP = Path(__file__).parents[2]
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python has no name for it
STAMP = struct.Struct("qq")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One recipient of one transaction. `at`: when its DATA came, by time.monotonic(); `taken`: so did all content."""

    at: float
    address: str
    taken: bool


class ClockedMx:
    """`async with ClockedMx(directory) as mx`: listens on `mx.port` of `host`.

    Seconds before it answers: `envelope` MAIL and each RCPT, `data` DATA, `dot` the content.
    """

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", pipelining: bool = True, **pauses: float) -> None:
        self._file = directory / "sightings"
        self._words = [str(self._file), host, str(int(pipelining)), self._order(pauses)]
        self.port = 0
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.clocked_mx", *self._words]
        self._process = await asyncio.create_subprocess_exec(
            *command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.port = int(await self._line())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # its end
        await self._process.wait()

    async def pause(self, **pauses: float) -> None:
        """Answer so from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(self._order(pauses).encode() + b"\n")
        assert await self._line() == self._order(pauses)

    def sightings(self) -> list[Sighting]:
        """All so far: one for each DATA, one more when the content was taken."""
        lines = (line.split(" ") for line in self._file.read_text().splitlines())
        return [Sighting(float(at), address, word == "taken") for at, address, word in lines]

    @staticmethod
    def _order(pauses: dict[str, float]) -> str:
        return " ".join(str(pauses.get(name, 0.0)) for name in ("envelope", "data", "dot"))

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()


class Exchanger(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, file: str, host: str, *, pipelining: bool, pauses: list[float]) -> None:
        super().__init__((host, 0), Exchange)
        self.ledger = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.pipelining = pipelining
        self.pauses = pauses
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # connections inherit it


class Exchange(socketserver.BaseRequestHandler):
    """One connection."""

    request: socket.socket
    server: Exchanger

    def handle(self) -> None:
        self._rest, self._at = b"", 0.0
        self._recipients: list[str] = []
        try:
            self._converse()
        except (ConnectionError, EOFError):
            return

    def _converse(self) -> None:
        self._answer("220 clocked.example ESMTP")
        while True:
            line = self._until(b"\r\n").decode("utf-8", "replace")
            envelope, data, dot = self.server.pauses
            match line[:4].upper():
                case "EHLO":
                    offers = ["PIPELINING"] if self.server.pipelining else []
                    names = ["clocked.example", *offers, "8BITMIME", "SIZE", "DSN"]
                    self._answer("\r\n".join(f"250{' ' if name == names[-1] else '-'}{name}" for name in names))
                case "RCPT":
                    self._recipients.append(line.partition("<")[2].partition(">")[0])
                    self._answer("250 2.1.5 ok", envelope)
                case "MAIL":
                    self._recipients.clear()
                    self._answer("250 2.1.0 ok", envelope)
                case "DATA":
                    at = self._at
                    self._note(at, "data")
                    self._answer("354 go ahead", data)
                    self._until(b"\r\n.\r\n")
                    self._note(at, "taken")
                    self._answer("250 2.0.0 taken", dot)
                case "QUIT":
                    return
                case _:
                    self._recipients.clear()
                    self._answer("250 2.0.0 ok")

    def _answer(self, line: str, pause: float = 0.0) -> None:
        if pause and not self._rest:  # once for a group
            time.sleep(pause)
        self.request.sendall(line.encode() + b"\r\n")

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            data, ancillary, _, _ = self.request.recvmsg(1 << 16, 64)
            if not data:
                raise EOFError
            self._rest += data
            self._at = time.monotonic()
            for _, _, stamp in ancillary:
                seconds, nanoseconds = STAMP.unpack(stamp)
                self._at -= max(0.0, time.time() - (seconds + nanoseconds / 1e9))
        line, _, self._rest = self._rest.partition(end)
        return line

    def _note(self, at: float, word: str) -> None:
        lines = "".join(f"{at:.6f} {address} {word}\n" for address in self._recipients)
        os.write(self.server.ledger, lines.encode())


async def serve(file: str, host: str, pipelining: str, pauses: str) -> None:
    """Serve until standard input ends; each of its lines is an order."""
    exchanger = Exchanger(file, host, pipelining=pipelining == "1", pauses=[float(each) for each in pauses.split()])
    asyncio.get_running_loop().run_in_executor(None, exchanger.serve_forever, 0.1)
    print(exchanger.server_address[1], flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        exchanger.pauses = [float(each) for each in line.split()]
        print(line.decode().strip(), flush=True)
    exchanger.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
