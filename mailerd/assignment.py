"""What the main process and a worker say to each other.

The worker reads its `Assignment`, one JSON object, from standard input. (Where there are several, a line each, the
process that reads them loads the program once and forks into as many workers: see `read_assignment`.) Then it speaks
over the control socket, one line each: `ready` once it serves, `ping` every `PING` seconds from the very start, and an
`Answer` to every `Order` that the main process sends there; both are JSON objects. The end of the control socket means
that the main process is gone; then the worker must be gone at once too, since nobody watches it any more.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from mailerd.config.documents import Documents
from mailerd.errors import ConfigError
from mailerd.processes import give_back

log = structlog.get_logger()

PING = 2.0  # seconds
SILENCE = 30.0  # seconds without a ping: the worker hangs, and is killed
MAX_PROBLEM = 2_000  # characters


class Assignment(msgspec.Struct, frozen=True):
    started: Documents  # what the daemon was started with: it decides what cannot change before a restart
    documents: Documents  # what is in force now
    data_dir: str
    node: str  # this installation among those that share the database
    database_url: str
    listeners: list[tuple[int, int]]  # file descriptor, index into config.listeners; several where a name had several
    http: list[int]  # file descriptors
    control: int  # file descriptor
    ledger: int = -1  # file descriptor; -1: to be found, or made, in the data directory
    slot: int = 0  # which of the daemon's workers this is, from 0


class Order(msgspec.Struct, frozen=True):
    """Work by these documents from now on."""

    number: int
    documents: Documents


class Answer(msgspec.Struct, frozen=True):
    """It is done; or the problem, and everything stays as it was."""

    number: int
    problem: str = ""


def read_assignment() -> Assignment:
    """The assignment of this process. Call it when all is imported, and nothing runs yet: no thread, no event loop.

    Of several assignments each gets a process, forked here, that shares with the others the pages of the program that
    none of them writes to: half of what it takes. This process says on its standard input, a file, behind the
    assignments, which ones they are, a line each, and ends: so they become children of its parent, which is ready for
    that.
    """
    given = [msgspec.json.decode(line, type=Assignment) for line in sys.stdin.buffer.read().splitlines()]
    return given[0] if len(given) == 1 else _forked(given)


def _forked(assignments: Sequence[Assignment]) -> Assignment:
    gc.collect()
    gc.freeze()  # a look for garbage writes to every object
    give_back()  # the pages that are free now would be copied when they are used
    for one in assignments:
        if (pid := os.fork()) == 0:
            os.setpgid(0, 0)  # a terminal's Ctrl-C is for the main process, which ends workers in order
            for other in assignments:
                if other is not one:
                    os.close(other.control)
            return one
        os.write(sys.stdin.fileno(), f"{pid}\n".encode())
    os._exit(os.EX_OK)


class Control:
    """The worker's end of the control socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._orders: asyncio.Queue[bytes] = asyncio.Queue()

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

    async def follow(self, reload: Callable[[Documents], Awaitable[None]]) -> None:
        """Carry out the orders that come, also those that came before, one after the other."""
        while True:
            order = msgspec.json.decode(await self._orders.get(), type=Order)
            problem = ""
            try:
                await reload(order.documents)
            except ConfigError as error:
                problem = str(error)
                log.error("reload.refused", problems=list(map(str, error.problems)))
            except Exception as error:
                problem = f"{type(error).__name__}, see the log"
                log.exception("reload.failed")
            answer = Answer(order.number, problem[:MAX_PROBLEM])
            await asyncio.get_running_loop().sock_sendall(self._socket, msgspec.json.encode(answer) + b"\n")

    async def _ping(self) -> None:
        while True:
            self._say(b"ping\n")
            await asyncio.sleep(PING)

    async def _watch(self) -> None:
        rest = b""
        with suppress(OSError):
            while data := await asyncio.get_running_loop().sock_recv(self._socket, 65_536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._orders.put_nowait(line)
        log.error("main_process.lost")
        os.kill(os.getpid(), signal.SIGKILL)

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # `_watch` sees a lost main process
            self._socket.send(line)
