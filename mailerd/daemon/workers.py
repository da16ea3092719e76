"""The worker processes: started, watched, restarted, ended."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress

import msgspec
import structlog

from mailerd.assignment import SILENCE, Answer, Assignment, Order
from mailerd.config.documents import Documents
from mailerd.daemon.data_dir import StartError
from mailerd.processes import Adopted, Process, adopting, ended

log = structlog.get_logger()

RESTARTS = (0.1, 5.0)  # seconds before a dead worker is started again: first, longest
PATIENCE = 60.0  # seconds for an order; one that hangs is killed before that
LONG_ENOUGH = 60.0  # seconds of life after which the next death counts as the first
STEPS = 10  # in which the silence of a worker is counted
GIVE_UP = 5  # deaths of a worker before the first `ready` of all: then the fault is not a passing one


class Worker:
    """One worker process, from start to death."""

    def __init__(self, process: Process, control: socket.socket, *, silence: float) -> None:
        self.process = process
        self.control = control
        self.control.setblocking(False)
        self.ready = False
        self._silence = silence
        self._quiet = 0  # steps in a row without a word
        self._answers: dict[int, asyncio.Future[str]] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    async def died(self, on_ready: Callable[[], None]) -> int:
        """Wait for its death, and bring it about when it falls silent; its exit status, negative for a signal."""
        listening = asyncio.create_task(self._listen(on_ready), name=f"worker process {self.pid}")
        try:
            if await self._falls_silent(listening):
                log.error("worker.hung", pid=self.pid, silent_for=self._silence)
                self.kill()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self.control.close()
            for number in list(self._answers):
                self._hear(Answer(number))
        try:
            async with asyncio.timeout(self._silence):  # it closed the control socket: it is ending, or out of its mind
                return await ended(self.process)
        except TimeoutError:
            self.kill()
            return await ended(self.process)

    def kill(self) -> None:
        self.process.kill()

    async def obey(self, number: int, order: bytes) -> str:
        """Give it the order of that number; the problem that it has with it, "" when it is done, or the worker dies.

        One that is still starting gets to it when it serves; so it may have to be left to itself.
        """
        if self.control.fileno() < 0:  # it has died
            return ""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        self._answers[number] = answer
        sending = asyncio.create_task(loop.sock_sendall(self.control, order))
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            return f"has not answered within {PATIENCE:g} s"
        finally:
            del self._answers[number]
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _falls_silent(self, listening: "asyncio.Task[None]") -> bool:
        """Wait until it says nothing for too long; False when it closes its socket before that.

        Counted in steps, not by the clock: when this process was stopped for a while, the silence was ours, and what
        the worker said in the meantime is read at the next step.
        """
        while self._quiet < STEPS:
            self._quiet += 1
            await asyncio.wait({listening}, timeout=self._silence / STEPS)
            if listening.done():
                listening.result()
                return False
        return True

    async def _listen(self, on_ready: Callable[[], None]) -> None:
        """Hear what it says until it closes its socket. Never broken off by a time limit: a word might get lost."""
        loop = asyncio.get_running_loop()
        rest = b""
        with suppress(ConnectionError):  # it died with an order unread
            while data := await loop.sock_recv(self.control, 4_096):
                self._quiet = 0
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line == b"ready":
                        self.ready = True
                        on_ready()
                    elif line.startswith(b"{"):
                        self._hear(msgspec.json.decode(line, type=Answer))

    def _hear(self, answer: Answer) -> None:
        waiting = self._answers.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.problem)


class Birth:
    """The process that becomes a worker, or forks into several, and our ends of their control sockets."""

    def __init__(self, command: Sequence[str], assignments: Sequence[Assignment], descriptors: Sequence[int]) -> None:
        self.controls: list[socket.socket] = []
        with ExitStack() as theirs, ExitStack() as ours:
            # No pipe: more than it holds would keep us waiting until the worker reads. One that forks answers there.
            self._given = ours.enter_context(os.fdopen(os.memfd_create("assignment"), "w+b"))
            passed = list(descriptors)
            for assignment in assignments:
                control, end = socket.socketpair()
                self.controls.append(ours.enter_context(control))
                passed.append(theirs.enter_context(end).fileno())
                assigned = msgspec.structs.replace(assignment, control=passed[-1])
                self._given.write(msgspec.json.encode(assigned) + b"\n")
            self._size = self._given.tell()
            self._given.seek(0)
            self.process = subprocess.Popen(
                list(command),
                stdin=self._given,
                pass_fds=passed,
                process_group=0,  # a terminal's Ctrl-C is for the main process, which ends workers in order
            )
            ours.pop_all()  # they stay open

    def forked(self) -> list[Adopted]:
        """The workers, once the process has ended that forked into them. Raises OSError when it did not."""
        pids = self._told()
        if self.process.poll() != os.EX_OK or len(pids) != len(self.controls):
            raise ChildProcessError(f"ended with status {self.process.returncode}")
        return [Adopted(pid) for pid in pids]

    def close(self) -> None:
        self._given.close()

    def fail(self) -> None:
        """End it, and what it has forked into so far."""
        self.process.kill()
        self.process.wait()
        for pid in self._told():
            with suppress(ChildProcessError):
                worker = Adopted(pid)
                worker.kill()
                worker.wait()
        for control in self.controls:  # one that it could not tell us of ends by this
            control.close()

    def _told(self) -> list[int]:
        return [int(pid) for pid in os.pread(self._given.fileno(), 65_536, self._size).splitlines()]


class Workers:
    """`count` workers, kept alive until `stop`.

    The first ones are forked from one process and share its memory; who dies is replaced by a process of its own.

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
        self._born: dict[int, Worker] = {}  # by slot: of the start
        self._living: set[Worker] = set()
        self.tasks: list[asyncio.Task[None]] = []  # one for each worker; they end only by a failure of the watching
        self._stopping = False
        self._all_ready = asyncio.Event()
        self.restarts = 0
        self._orders = 0

    @property
    def ready_count(self) -> int:
        return sum(worker.ready for worker in self._living)

    async def start(self) -> None:
        """Start all and wait until all are ready; `StartError` when one keeps dying instead."""
        if self._count > 1:
            self._born = dict(enumerate(await self._fork()))
        self.tasks = [asyncio.create_task(self._keep(n), name=f"worker {n}") for n in range(self._count)]
        ready = asyncio.create_task(self._all_ready.wait())
        try:
            await asyncio.wait([ready, *self.tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        for task in self.tasks:
            if task.done():
                task.result()

    async def reload(self, documents: Documents) -> list[str]:
        """Have all work by these documents, also those that start later; the problems of those that do not."""
        self._orders += 1
        order = msgspec.json.encode(Order(self._orders, documents)) + b"\n"
        self._assignment = msgspec.structs.replace(self._assignment, documents=documents)
        workers = list(self._living)
        problems = await asyncio.gather(*(worker.obey(self._orders, order) for worker in workers))
        return [f"worker {each.pid}: {problem}" for each, problem in zip(workers, problems, strict=True) if problem]

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

    def _assigned(self, slot: int) -> Assignment:
        return msgspec.structs.replace(self._assignment, slot=slot)

    def _alone(self, slot: int) -> Worker:
        birth = Birth(self._command, [self._assigned(slot)], self._descriptors)
        birth.close()
        return Worker(birth.process, birth.controls[0], silence=self._silence)

    async def _fork(self) -> list[Worker]:
        """All workers at once; none when that does not work, and then each is to be started alone."""
        try:
            with adopting():
                birth = Birth(self._command, [self._assigned(n) for n in range(self._count)], self._descriptors)
                try:
                    async with asyncio.timeout(self._silence):
                        await ended(birth.process)
                    processes = birth.forked()
                except BaseException:
                    birth.fail()
                    raise
                finally:
                    birth.close()
        except OSError as error:  # a TimeoutError, too
            log.warning("workers.not_forked", reason=str(error) or type(error).__name__)
            return []
        return [
            Worker(process, control, silence=self._silence)
            for process, control in zip(processes, birth.controls, strict=True)
        ]

    async def _keep(self, slot: int) -> None:
        wait, longest = RESTARTS
        deaths = 0
        loop = asyncio.get_running_loop()
        while not self._stopping:
            born = loop.time()
            died = await self._live(slot)
            if self._stopping:
                return
            deaths += 1
            if not self._all_ready.is_set() and deaths >= GIVE_UP:
                raise StartError("a worker died again and again while starting: the log above says why")
            if died is not None:
                await self._tell_of(died)
            wait = RESTARTS[0] if loop.time() - born >= LONG_ENOUGH else wait
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    async def _live(self, slot: int) -> int | None:
        """The life of one worker; the pid of the one that died, None when none could be started."""
        try:
            worker = self._born.pop(slot, None) or self._alone(slot)
        except OSError as error:  # no process, memory or descriptor is left for it: the others go on
            log.error("worker.not_started", error=str(error))
            return None
        self._living.add(worker)
        log.info("worker.started", pid=worker.pid)
        try:
            status = await worker.died(self._one_more_ready)
        finally:
            if worker.process.returncode is not None:
                self._living.discard(worker)
        if not self._stopping:
            log.error("worker.died", pid=worker.pid, status=status)
            self.restarts += 1
        return worker.pid

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
