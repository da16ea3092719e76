"""The worker processes: started, watched, restarted, ended."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import structlog

from mailerd.assignment import SILENCE, Assignment
from mailerd.daemon.data_dir import StartError
from mailerd.processes import ended

log = structlog.get_logger()

RESTARTS = (0.1, 5.0)  # seconds before a dead worker is started again: first, longest
LONG_ENOUGH = 60.0  # seconds of life after which the next death counts as the first
GIVE_UP = 5  # deaths of a worker before the first `ready` of all: then the fault is not a passing one


class Worker:
    """One worker process, from start to death."""

    def __init__(
        self, command: Sequence[str], assignment: Assignment, descriptors: Sequence[int], *, silence: float
    ) -> None:
        self.control, theirs = socket.socketpair()
        self.control.setblocking(False)
        with theirs:
            assignment = msgspec.structs.replace(assignment, control=theirs.fileno())
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                pass_fds=[*descriptors, theirs.fileno()],
                process_group=0,  # a terminal's Ctrl-C is for the main process, which ends workers in order
            )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(msgspec.json.encode(assignment))
        self.ready = False
        self._silence = silence

    @property
    def pid(self) -> int:
        return self.process.pid

    async def died(self, on_ready: Callable[[], None]) -> int:
        """Wait for its death, and bring it about when it falls silent; its exit status, negative for a signal."""
        try:
            await self._listen(on_ready)
        except TimeoutError:
            log.error("worker.hung", pid=self.pid, silent_for=self._silence)
            self.kill()
        finally:
            self.control.close()
        try:
            async with asyncio.timeout(self._silence):  # it closed the control socket: it is ending, or out of its mind
                return await ended(self.process)
        except TimeoutError:
            self.kill()
            return await ended(self.process)

    def kill(self) -> None:
        self.process.kill()

    async def _listen(self, on_ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        while True:
            async with asyncio.timeout(self._silence):
                data = await loop.sock_recv(self.control, 4_096)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            if b"ready" in lines:
                self.ready = True
                on_ready()


class Workers:
    """`count` workers, kept alive until `stop`.

    `on_death` is called with the pid of each that died, before another takes its place, until it succeeds.
    """

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        assignment: Assignment,
        descriptors: Sequence[int],
        on_death: Callable[[int], Awaitable[None]],
        *,
        silence: float = SILENCE,
    ) -> None:
        self._count = count
        self._command = command
        self._assignment = assignment
        self._descriptors = descriptors
        self._on_death = on_death
        self._silence = silence
        self._living: set[Worker] = set()
        self.tasks: list[asyncio.Task[None]] = []  # one for each worker; they end only by a failure of the watching
        self._stopping = False
        self._all_ready = asyncio.Event()
        self.restarts = 0

    @property
    def ready_count(self) -> int:
        return sum(worker.ready for worker in self._living)

    async def start(self) -> None:
        """Start all and wait until all are ready; `StartError` when one keeps dying instead."""
        self.tasks = [asyncio.create_task(self._keep(n), name=f"worker {n}") for n in range(self._count)]
        ready = asyncio.create_task(self._all_ready.wait())
        try:
            await asyncio.wait([ready, *self.tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        for task in self.tasks:
            if task.done():
                task.result()

    async def stop(self, patience: float, hasten: asyncio.Event) -> None:
        """SIGTERM to all; SIGKILL to those left after `patience` seconds or when `hasten` is set."""
        self._stopping = True
        for worker in self._living:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        waiter = asyncio.create_task(hasten.wait())
        pending = {asyncio.create_task(ended(worker.process)) for worker in self._living}
        deadline = asyncio.get_running_loop().time() + patience
        while pending and not hasten.is_set():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            _, rest = await asyncio.wait({waiter, *pending}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            pending = rest - {waiter}
        for worker in self._living:
            if worker.process.poll() is None:
                log.warning("worker.killed", pid=worker.pid)
                worker.kill()
        waiter.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _keep(self, slot: int) -> None:
        wait, longest = RESTARTS
        deaths = 0
        assignment = msgspec.structs.replace(self._assignment, slot=slot)
        loop = asyncio.get_running_loop()
        while not self._stopping:
            born = loop.time()
            worker = Worker(self._command, assignment, self._descriptors, silence=self._silence)
            self._living.add(worker)
            log.info("worker.started", pid=worker.pid)
            try:
                status = await worker.died(self._one_more_ready)
            finally:
                if worker.process.returncode is not None:
                    self._living.discard(worker)
            if self._stopping:
                return
            log.error("worker.died", pid=worker.pid, status=status)
            self.restarts += 1
            deaths += 1
            if not self._all_ready.is_set() and deaths >= GIVE_UP:
                raise StartError("a worker died again and again while starting: the log above says why")
            await self._tell_of(worker.pid)
            wait = RESTARTS[0] if loop.time() - born >= LONG_ENOUGH else wait
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    async def _tell_of(self, pid: int) -> None:
        wait, longest = RESTARTS
        while True:
            try:
                await self._on_death(pid)
                return
            except Exception:  # the database may be away for the same reason
                log.exception("worker.release_failed", pid=pid, again_in=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    def _one_more_ready(self) -> None:
        if self.ready_count == self._count:
            self._all_ready.set()
