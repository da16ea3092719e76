"""What the main process and a worker say to each other.

The worker reads its `Assignment`, one JSON object, from standard input. Then it speaks over the control socket, one
line each: `ready` once it serves, `ping` every `PING` seconds from the very start. The end of the control socket means
that the main process is gone; then the worker must be gone at once too, since nobody watches it any more.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

log = structlog.get_logger()

PING = 2.0  # seconds
SILENCE = 30.0  # seconds without a ping: the worker hangs, and is killed


class Assignment(msgspec.Struct, frozen=True):
    config_path: str
    data_dir: str
    node: str  # this installation among those that share the database
    database_url: str
    listeners: list[tuple[int, int]]  # file descriptor, index into config.listeners; several where a name had several
    http: list[int]  # file descriptors
    control: int  # file descriptor
    slot: int = 0  # which of the daemon's workers this is, from 0


def read_assignment() -> Assignment:
    return msgspec.json.decode(sys.stdin.buffer.read(), type=Assignment)


class Control:
    """The worker's end of the control socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)

    def ready(self) -> None:
        """Say that this worker serves."""
        self._say(b"ready\n")

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Ping while the block runs, and die with the main process."""
        tasks = [
            asyncio.create_task(self._ping(), name="ping"),
            asyncio.create_task(self._watch(), name="main process"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._socket.close()

    async def _ping(self) -> None:
        while True:
            self._say(b"ping\n")
            await asyncio.sleep(PING)

    async def _watch(self) -> None:
        with suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(self._socket, 64):
                pass
        log.error("main_process.lost")
        os.kill(os.getpid(), signal.SIGKILL)

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # `_watch` sees a lost main process
            self._socket.send(line)
