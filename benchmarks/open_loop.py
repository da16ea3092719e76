"""A source of mail that does not wait: every message is due by the clock, whatever became of those before it.

A closed loop (smtp-source) sends less while the system is slow, and so misses the very moments that a percentile is
about (coordinated omission). Here a message that finds no free connection waits, and its time counts from when it was
due. `python -m benchmarks.open_loop ORDER` is the process, `OpenLoop` the driver's end of it.
"""

import asyncio
import json
import math
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self, cast

from benchmarks import mix

LINE = b"x" * 70 + b"\r\n"
RECORD = struct.Struct("<Qddd")
GONE = 60.0  # seconds after the last message was due: what has no answer by then gets none
REFUSED = -1.0
EARLY = 0.5  # seconds before the first message: connections are made


@dataclass(frozen=True)
class Order:
    """What is sent. `run` stands in the recipients, or is empty: then they are those of `benchmarks.mix`."""

    port: int
    rate: float  # messages a second, evenly
    count: int
    file: str  # where a record of each message is written, as soon as it is answered
    run: str = ""
    size: int = 10_240  # bytes of the body
    connections: int = 100
    sender: str = "bench@plain.example"

    def letter(self, number: int) -> tuple[str, str]:
        """Sender and recipient."""
        if not self.run:
            return mix.sender(number), mix.recipient(number)
        return self.sender, f"{number}{self.run}@sink.example"


class Sent(NamedTuple):
    """Seconds of the monotonic clock: when message `number` was due, its final dot written, its reply there.

    `replied` is negative when it was refused.
    """

    number: int
    due: float
    dot: float
    replied: float

    @property
    def accepted(self) -> bool:
        return self.replied >= 0


def read(file: Path, start: int = 0) -> Iterator[Sent]:
    """The records from byte `start` on; one that is being written is left out."""
    with file.open("rb") as records:
        records.seek(start)
        while len(record := records.read(RECORD.size)) == RECORD.size:
            yield Sent(*RECORD.unpack(record))


class Source:
    """Sends by the clock, over connections that are kept."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._loop = asyncio.get_running_loop()
        self._free: list[Conversation] = []
        self._waiting: deque[tuple[int, float]] = deque()
        self._open = 0
        self._next = 0
        self._answered = 0
        self.most_open = self.most_waiting = self.refused = self.broken = 0
        self._over = asyncio.Event()
        self._records = Path(order.file).open("wb", buffering=RECORD.size * 64)  # noqa: SIM115 closed in run()
        self.body = LINE * math.ceil(order.size / len(LINE))

    async def run(self) -> None:
        """Until all is answered."""
        self._begin = time.monotonic() + EARLY
        clock = threading.Thread(target=self._tick, name="clock", daemon=True)
        clock.start()
        seconds = self._order.count / self._order.rate
        try:
            async with asyncio.timeout(EARLY + seconds + GONE):
                await self._over.wait()
        except TimeoutError:
            pass
        self._records.close()

    def _tick(self) -> None:
        """A thread, as timers of the event loop are of whole milliseconds."""
        for number in range(self._order.count):
            if (wait := self._due(number) - time.monotonic()) > 0:
                time.sleep(wait)
                self._loop.call_soon_threadsafe(self._send_due)

    def _due(self, number: int) -> float:
        return self._begin + number / self._order.rate

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._next < self._order.count and self._due(self._next) <= now:
            self._waiting.append((self._next, self._due(self._next)))
            self._next += 1
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._free:
            self._free.pop().send(*self._waiting.popleft())
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        for _ in range(min(len(self._waiting), self._order.connections - self._open)):
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: Conversation(self, self._order), "127.0.0.1", self._order.port)
        except OSError:
            self.broken += 1
            self._open -= 1

    # what a conversation says

    def free(self, conversation: "Conversation") -> None:
        self._free.append(conversation)
        self._go_on()

    def answered(self, sent: Sent) -> None:
        self._records.write(RECORD.pack(*sent))
        self.refused += not sent.accepted
        self._answered += 1
        if self._answered == self._order.count:
            self._over.set()

    def lost(self, conversation: "Conversation", under_way: tuple[int, float] | None) -> None:
        """It is closed; what it was sending is sent again, as nobody has taken it."""
        self._open -= 1
        if conversation in self._free:
            self._free.remove(conversation)
        if under_way is not None:
            self.broken += 1
            self._waiting.appendleft(under_way)
            self._go_on()


class Conversation(asyncio.Protocol):
    """One connection. The envelope goes in one write, the content after the 354."""

    def __init__(self, source: Source, order: Order) -> None:
        self._source = source
        self._order = order
        self._rest = b""
        self._greeted = 2  # replies until it is: greeting, EHLO
        self._replies = 0  # to the message under way
        self._refused = False
        self._under_way: tuple[int, float] | None = None
        self._dot = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._source.lost(self, self._under_way)

    def send(self, number: int, due: float) -> None:
        self._under_way, self._replies, self._refused = (number, due), 0, False
        sender, recipient = self._order.letter(number)
        self._transport.write(f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode())

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            if line[3:4] != b"-":
                self._reply(line)

    def _reply(self, line: bytes) -> None:
        if self._greeted:
            self._greeted -= 1
            if self._greeted:
                self._transport.write(b"EHLO client.localhost\r\n")
            else:
                self._source.free(self)
            return
        if self._under_way is None:  # a farewell: the end follows
            return
        self._replies += 1
        self._refused = self._refused or line[:1] not in (b"2", b"3")
        if self._replies == 3 and line[:1] == b"3":
            sender, recipient = self._order.letter(self._under_way[0])
            head = f"From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: bench\r\n\r\n"
            self._dot = time.monotonic()
            self._transport.write(head.encode() + self._source.body + b".\r\n")
        elif self._replies >= 3:
            (number, due), self._under_way = self._under_way, None
            self._source.answered(Sent(number, due, self._dot, REFUSED if self._refused else time.monotonic()))
            self._source.free(self)


class OpenLoop:
    """The driver's end: starts at once; `wait` until it is over."""

    def __init__(self, order: Order, command: Callable[[Sequence[str]], list[str]] = list) -> None:
        self.order = order
        words = [sys.executable, "-m", "benchmarks.open_loop", json.dumps(asdict(order))]
        self._process = subprocess.Popen(command(words), stdout=subprocess.PIPE)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> dict[str, int]:
        """How many it refused, broken connections, most connections, most messages that waited for one."""
        output, _ = self._process.communicate(timeout=self.order.count / self.order.rate + GONE + 60)
        if self._process.returncode:
            raise RuntimeError(f"the source ended with status {self._process.returncode}")
        said: dict[str, int] = json.loads(output)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self._process.terminate()
            self._process.wait(10)


async def main(order: Order) -> None:
    source = Source(order)
    await source.run()
    said = {name: getattr(source, name) for name in ("refused", "broken", "most_open", "most_waiting")}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(Order(**json.loads(sys.argv[1]))))
