"""What smtp-source does, over STARTTLS, which it has not: `python -m benchmarks.tls_source PORT --count 6000`.

Numbered recipients, a body of so many bytes, so many sessions at the same time that are kept or made new for each
message, commands not pipelined, as there. Two processes, as one of them could not load two cores. Every connection is a
full handshake: none is resumed.

It prints the moment of the monotonic clock at which the first connection is made: what Python needs to start is no
message's time.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import cast

import uvloop

from benchmarks.channel import Channel, client_context

LINE = 80  # bytes, its end included
CONTEXT = client_context()


@dataclass(frozen=True)
class Mail:
    """What all messages have in common."""

    sender: str
    recipient: str  # of message 7: 7RECIPIENT
    size: int  # bytes of the body

    def body(self) -> bytes:
        line = b"X" * (LINE - 2) + b"\r\n"
        full, rest = divmod(self.size, LINE)
        return line * full + (b"X" * max(0, rest - 2) + b"\r\n" if rest else b"")

    def head(self, number: int) -> bytes:
        return (
            f"From: <{self.sender}>\r\nTo: <{number}{self.recipient}>\r\nDate: {formatdate()}\r\n"
            f"Message-Id: <{number}.{os.getpid()}@client.localhost>\r\n\r\n"
        ).encode()


class Session(asyncio.Protocol):
    """One connection: `numbers` says which messages are left, for all sessions together."""

    def __init__(self, mail: Mail, body: bytes, numbers: Iterator[int], *, kept: bool) -> None:
        self._mail, self._body, self._numbers, self._kept = mail, body, numbers, kept
        self._channel: Channel | None = None
        self._rest = b""
        self._sent = 0
        self.done: asyncio.Future[bool] = (
            asyncio.get_running_loop().create_future()
        )  # whether there may be more to send

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._say: Callable[[bytes], None] = self._transport.write
        self._next: Callable[[], None] = self._greeted

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("it ended early"))

    def data_received(self, data: bytes) -> None:
        if self._channel is not None:
            shaken = self._channel.ready
            data = self._channel.take(data)
            if self._channel.ready and not shaken:
                self._ehlo(self._may_mail)
        self._rest += data
        # A reply is whole with its last line; nobody says a second one before we have spoken.
        if self._rest.endswith(b"\n") and self._rest[self._rest.rfind(b"\n", 0, -1) + 1 :][3:4] != b"-":
            self._reply, self._rest = self._rest, b""
            if self._reply[:1] not in b"23":
                self._fail(self._reply.decode("latin-1").strip())
            else:
                self._next()

    def _fail(self, why: str) -> None:
        self.done.set_exception(ConnectionError(why))
        self._transport.abort()

    def _ehlo(self, then: Callable[[], None]) -> None:
        self._say(b"EHLO client.localhost\r\n")
        self._next = then

    def _greeted(self) -> None:
        self._ehlo(self._may_start_tls)

    def _may_start_tls(self) -> None:
        if b"STARTTLS" not in self._reply:
            return self._fail("it does not offer STARTTLS")
        self._say(b"STARTTLS\r\n")
        self._next = self._start_tls
        return None

    def _start_tls(self) -> None:
        self._channel = Channel(CONTEXT, self._transport, server_side=False)
        self._say = self._channel.write

    def _may_mail(self) -> None:
        number = next(self._numbers, None) if self._kept or not self._sent else None
        if number is None:
            self._say(b"QUIT\r\n")
            self._next = self._over
            return
        self._sent += 1
        self._number = number
        self._say(f"MAIL FROM:<{self._mail.sender}>\r\n".encode())
        self._next = self._may_rcpt

    def _may_rcpt(self) -> None:
        self._say(f"RCPT TO:<{self._number}{self._mail.recipient}>\r\n".encode())
        self._next = self._may_data

    def _may_data(self) -> None:
        self._say(b"DATA\r\n")
        self._next = self._content

    def _content(self) -> None:
        self._say(self._mail.head(self._number) + self._body + b".\r\n")
        self._next = self._may_mail

    def _over(self) -> None:
        self.done.set_result(bool(self._sent))
        self._transport.close()


async def send(port: int, mail: Mail, numbers: Iterator[int], sessions: int, *, kept: bool) -> None:
    """Send them all, or raise what the first session to fail says."""
    loop, body = asyncio.get_running_loop(), mail.body()

    async def one() -> None:
        more = True
        while more:
            _, session = await loop.create_connection(
                lambda: Session(mail, body, numbers, kept=kept), "127.0.0.1", port
            )
            more = await session.done and not kept

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(one(), name="session")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    for name, default in (("--count", 6_000), ("--sessions", 20), ("--size", 10_240), ("--processes", 2)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--new", action="store_true", help="a connection for each message")
    parser.add_argument("--sender", default="bench@plain.example")
    parser.add_argument("--recipient", default="r0x@tls.example")
    given = parser.parse_args()
    processes = min(given.processes, given.sessions)
    mail = Mail(given.sender, given.recipient, given.size)
    print(time.monotonic(), flush=True)
    children = []
    for part in range(processes):
        if not (child := os.fork()):
            numbers = iter(range(part, given.count, processes))
            share = len(range(part, given.sessions, processes))
            uvloop.run(send(given.port, mail, numbers, share, kept=not given.new))
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
