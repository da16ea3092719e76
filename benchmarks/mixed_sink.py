"""The receiver of the long run: takes, defers, refuses and dawdles as `benchmarks.mix` says, and counts every message.

`python -m benchmarks.mixed_sink FILE HOST…` is the process, `MixedSink` the driver's end of it. What it keeps is one
byte a message, so that an hour of mail does not become the largest thing on the machine.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import mix
from benchmarks.counting_sink import TOP
from benchmarks.counting_sink import Conversation as TakingConversation

SLOW = 0.5  # seconds that what is slow takes
TAKEN, TRIED, NOTICE = 0, 1, 2


class Tally:
    """How often each message was taken, tried, and its sender told of a bounce: a byte each, by number."""

    def __init__(self) -> None:
        self.counts = (bytearray(), bytearray(), bytearray())
        self.taken = self.deferred = self.refused = self.notices = self.strangers = 0

    def count(self, what: int, number: int) -> int:
        """One more; how many now."""
        counts = self.counts[what]
        if number >= len(counts):
            counts.extend(bytes(number + 10_000 - len(counts)))
        counts[number] = min(255, counts[number] + 1)
        return counts[number]

    def offered(self, address: str) -> bytes:
        """The reply to RCPT."""
        try:
            name, number = mix.parts(address)
        except ValueError:
            self.strangers += 1
            return b"550 5.1.1 no such user\r\n"
        if name == "deferred" and self.count(TRIED, number) == 1:
            self.deferred += 1
            return b"451 4.7.1 greylisted, come back later\r\n"
        if name == "bounced":
            self.refused += 1
            self.count(TRIED, number)
            return b"550 5.1.1 no such user\r\n"
        return b"250 2.1.5 ok\r\n"

    def took(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            name, number = mix.parts(address)
            if name == "b":
                self.notices += 1
                self.count(NOTICE, number)
            else:
                self.taken += 1
                self.count(TAKEN, number)

    def report(self) -> dict[str, int]:
        names = ("taken", "deferred", "refused", "notices", "strangers")
        return {name: getattr(self, name) for name in names}


class Conversation(TakingConversation):
    """One connection."""

    def __init__(self, tally: Tally, seconds: float) -> None:
        super().__init__(lambda _: None, 0, seconds)
        self._tally = tally

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT":
            address = line[line.find(b"<") + 1 : line.find(b">")].decode()
            reply = self._tally.offered(address)
            if reply.startswith(b"2"):
                self._recipients.append(address)
            self.transport.write(reply)
        elif verb == b"DATA" and not self._recipients:
            self.transport.write(b"503 5.5.1 nobody to take it for\r\n")
        else:
            super()._command(line)

    def _note(self, *words: str) -> None:
        if words[0] == "message":
            self._tally.took(self._recipients)


@dataclass(frozen=True)
class Ledger:
    """What was promised (accepted numbers) held against what came."""

    promised: int
    lost: int
    twice: int
    notices_lost: int
    notices_twice: int

    @property
    def exact(self) -> bool:
        return not (self.lost or self.twice or self.notices_lost or self.notices_twice)


def compare(accepted: bytes, taken: bytes, tried: bytes, notices: bytes) -> Ledger:
    """One byte a message in each. `lost`: never came, or was to bounce and was not even tried; `twice`: came again."""
    lost = twice = notices_lost = notices_twice = 0
    length = len(accepted)
    taken, tried, notices = (counts.ljust(length, b"\0") for counts in (taken, tried, notices))
    for number, promised in enumerate(accepted):
        if mix.fate(number) == "bounced":
            twice += taken[number] > 0
            lost += bool(promised) and not tried[number]
            notices_lost += bool(promised) and not notices[number]
            notices_twice += notices[number] > 1
        else:
            lost += bool(promised) and not taken[number]
            twice += taken[number] > 1
            notices_twice += notices[number] > 0
    return Ledger(sum(map(bool, accepted)), lost, twice, notices_lost, notices_twice)


class MixedSink:
    """`hosts`: addresses of 127.0.0.0/8, all on one port; the last one is the slow one."""

    def __init__(self, directory: Path, hosts: Sequence[str], command: Sequence[str] = ()) -> None:
        self._file = directory / "taken"
        self._words = [*command, sys.executable, "-m", "benchmarks.mixed_sink", str(self._file), *hosts]
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._words, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)

    def report(self) -> dict[str, int]:
        """How many were taken, deferred, refused; notices of bounces; recipients that nobody meant."""
        said: dict[str, int] = self._ask("report")
        return said

    def counts(self) -> tuple[bytes, bytes, bytes]:
        """How often each message was taken, tried, and its sender told, by number."""
        lengths = self._ask("write")
        data = self._file.read_bytes()
        taken, tried = lengths[0], lengths[0] + lengths[1]
        return data[:taken], data[taken:tried], data[tried:]

    def _ask(self, order: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


async def serve(file: Path, hosts: Sequence[str]) -> None:
    """Serve until standard input ends; orders come there, a line each: `report`, `write`."""
    loop = asyncio.get_running_loop()
    tally, port, servers = Tally(), 0, []
    for host in hosts:
        seconds = SLOW if host == hosts[-1] else 0.0
        server = await loop.create_server(
            lambda seconds=seconds: Conversation(tally, seconds),  # type: ignore[misc]
            host,
            port,
            family=socket.AF_INET,
            backlog=1_000,
        )
        port = server.sockets[0].getsockname()[1]
        servers.append(server)
    print(port, flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        if line.strip() == b"write":
            file.write_bytes(b"".join(tally.counts))
            print(json.dumps([len(counts) for counts in tally.counts]), flush=True)
        else:
            print(json.dumps(tally.report()), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Path(sys.argv[1]), sys.argv[2:]))
