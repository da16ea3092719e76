"""The main process: holds the data directory and the sockets, runs the database, watches the workers.

It stays small and does no mail itself: kill -9 of a worker hurts one worker, kill -9 of this process ends all, and the
next start finds everything committed.
"""

import asyncio
import os
import resource
import shutil
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from asyncpg import LockNotAvailableError

from mailerd import db, failpoints
from mailerd.assignment import Assignment
from mailerd.clock import utc_now
from mailerd.config import Config
from mailerd.config.documents import Documents
from mailerd.daemon.data_dir import DataDir, StartError
from mailerd.daemon.node_lock import NodeLock
from mailerd.daemon.reload import Outcome, Reloader, serve_requests
from mailerd.daemon.service import Service
from mailerd.daemon.sockets import Sockets, open_sockets
from mailerd.daemon.workers import Workers
from mailerd.db.embedded import EmbeddedPostgres
from mailerd.db.migrate import continue_order, drop_event_partitions, ensure_event_partitions, migrate
from mailerd.errors import DatabaseError
from mailerd.processes import give_back

if TYPE_CHECKING:
    from mailerd.sandbox import Sandbox

log = structlog.get_logger()

WORKER_COMMAND = (sys.executable, "-m", "mailerd", "worker")
STOP_WORKERS = 25.0  # seconds; with the next one and a little for the rest less than 30
STOP_DATABASE = 3.0
TICK = 60.0  # seconds between looks at what grows and what is due
PARTITIONS_EVERY = 12 * 3_600.0  # seconds
SPARE_CONNECTIONS = 20  # of the database: the main process, commands, pools being replaced
FEW_FILES = 8_192  # fewer are used up by clients and deliveries of one busy worker


async def run(config: Config, documents: Documents, *, worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    """Run mailerd until SIGTERM or SIGINT; the exit status. What stops the start is told on standard error.

    `config` is what was made of the documents.
    """
    daemon = Daemon(config, documents, worker_command)
    try:
        await daemon.run()
    except StartError as error:
        return _fail(str(error), error.status)
    except DatabaseError as error:
        return _fail(str(error), os.EX_UNAVAILABLE)
    return os.EX_OK


def share_metrics(directory: Path) -> None:
    """Have the workers count into files of one directory, where each of them can add up all (see `mailerd.metrics`)."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def _allow_files() -> None:
    """Take as many open files as are allowed: the usual 1,024 are used up by so many idle clients."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # more than a kernel takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        log.warning("open_files.few", limit=most, advice="raise LimitNOFILE of the unit, or ulimit -Hn")


def _fail(text: str, status: int) -> int:
    print(f"mailerd: {text}", file=sys.stderr)
    return status


class Daemon:
    """One life of the main process."""

    def __init__(self, config: Config, documents: Documents, worker_command: Sequence[str]) -> None:
        self._config = config  # of the start
        self._documents = documents
        self._worker_command = worker_command
        self._environ = dict(os.environ)
        self._service = Service(os.environ)
        self._data_dir = DataDir(Path(config.data_dir))
        self._sockets = Sockets()
        self._postgres: EmbeddedPostgres | None = None
        self._url = ""  # of the database, once it runs
        self._pool: db.Pool | None = None
        self._node_lock: NodeLock | None = None
        self._ledger: FileIO | None = None
        self._sandbox: Sandbox | None = None
        self._workers: Workers | None = None
        self._reloader: Reloader | None = None
        self._reload_wanted = asyncio.Event()
        self._requests: asyncio.Server | None = None
        self._has_terminal = os.isatty(sys.stderr.fileno())
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._hasten = asyncio.Event()

    async def run(self) -> None:
        """Start, serve until told to stop, stop in order; raises what made it impossible to start or go on."""
        os.umask(0o077)
        _allow_files()
        self._catch_signals()
        await self._data_dir.acquire()
        if failpoints.ON:
            failpoints.reached("start.locked")
        try:
            self._sockets = open_sockets(self._config, self._environ, self._documents)
            await self._until_stopped(self._start())
            if not self._stop.is_set():
                await self._until_stopped(self._serve())
        finally:
            await self._end()

    # -- start

    async def _start(self) -> None:
        self._service.status("starting the database")
        self._url = url = await self._start_database()
        if failpoints.ON:
            failpoints.reached("start.database")
        await self._migrate(url)
        if failpoints.ON:
            failpoints.reached("start.migrated")
        await self._hold_node(url)
        self._pool = await db.connect_pool(url, min=0, max=1, idle=10.0)
        await self.on_worker_death(None)
        if failpoints.ON:
            failpoints.reached("start.released")
        await self._check_resolver()
        key = await self._first_key()
        await self._start_sandbox()
        self._service.status("starting the workers")
        self._ledger = self._open_ledger()
        share_metrics(self._data_dir.path / "metrics")
        await self._start_workers(url)
        if failpoints.ON:
            failpoints.reached("start.workers")
        await self._take_requests()
        if key is not None:
            print(f"mailerd api-key {key} (kept in {self._data_dir.path / 'api-key'})", flush=True)
        print(f"mailerd ready {self._sockets}", flush=True)

    async def _start_database(self) -> str:
        if self._config.database.url is not None:
            return self._config.database.url
        # Of a worker: its pool, what it listens by, those that hand campaigns over, and those of reports.
        connections = self._worker_count() * (self._config.database.connections + 9) + SPARE_CONNECTIONS
        self._postgres = EmbeddedPostgres(self._data_dir.path, self._config.database, connections=connections)
        await self._postgres.start()
        self._spawn(self._postgres.watch(), "database")
        return self._postgres.url

    async def _migrate(self, url: str) -> None:
        async with db.connected(url, patience=db.PATIENCE) as connection:
            await migrate(connection)
            await continue_order(connection)
            try:
                await ensure_event_partitions(connection, utc_now())
            except LockNotAvailableError as error:  # somebody reads for long; until they are made, `events_rest` does
                log.warning("events.partitions_awaited", error=str(error))

    async def _hold_node(self, url: str) -> None:
        self._node_lock = NodeLock(url, self._data_dir.node())
        await self._node_lock.take()
        self._spawn(self._keep_node(self._node_lock), "node")

    async def _keep_node(self, lock: NodeLock) -> None:
        try:
            await lock.keep()
        except StartError:
            self._hasten.set()  # the other has freed what our workers were sending: they must not go on with it
            raise

    async def _check_resolver(self) -> None:
        """Where DANE is relied on, name servers that do not validate must not go unseen."""
        if self._config.resolver.dnssec != "require":
            return
        from mailerd.delivery.resolver import Resolver  # not in the memory of those who do not ask

        resolver = Resolver(self._config.resolver)
        try:
            doubt = await resolver.dnssec_doubt()
        finally:
            await resolver.close()
        if doubt:
            raise StartError(f"resolver.dnssec is require, but {doubt}", os.EX_CONFIG)

    async def _first_key(self) -> str | None:
        if not self._config.first_key:
            return None
        from mailerd.intake.credentials import make_first_key  # not in the memory of those who need no first key

        assert self._pool is not None
        return await make_first_key(self._pool, self._data_dir.path)

    async def _start_sandbox(self) -> None:
        if self._config.sandbox.bind is None:
            return
        from mailerd.sandbox import Sandbox  # only who tries things out pays for it

        names = self._config.inbound.complaints
        feedback = f"{names[0]}@{self._config.hostname}" if names else ""
        links = (self._config.http.public_url or "") if self._config.http else ""
        self._sandbox = Sandbox(self._config.sandbox, self._data_dir.path / "sandbox", feedback=feedback, links=links)
        try:
            await self._sandbox.start()
        except OSError as error:
            raise StartError(f"cannot start the sandbox: {error}", os.EX_UNAVAILABLE) from error

    def _open_ledger(self) -> FileIO:
        """Held here and handed to the workers: without its name, a new one would count in a file of its own."""
        from mailerd.delivery.ledger import open_ledger

        try:
            return open_ledger(self._data_dir.path / "ledger", self._worker_count())
        except OSError as error:
            raise StartError(f"cannot make the ledger of the workers: {error}", os.EX_CANTCREAT) from error

    async def _start_workers(self, url: str) -> None:
        assert self._ledger is not None
        assignment = Assignment(
            started=self._documents,
            documents=self._documents,
            data_dir=str(self._data_dir.path),
            node=self._data_dir.node(),
            database_url=url,
            listeners=[(sock.fileno(), index) for sock, index in self._sockets.listeners],
            http=[sock.fileno() for sock in self._sockets.http],
            control=-1,
            ledger=self._ledger.fileno(),
        )
        descriptors = [self._data_dir.lock, self._ledger.fileno(), *(sock.fileno() for sock in self._sockets.all)]
        self._workers = Workers(
            self._worker_count(), self._worker_command, assignment, descriptors, self.on_worker_death
        )
        await self._workers.start()

    def _worker_count(self) -> int:
        return len(os.sched_getaffinity(0)) if self._config.workers == "auto" else self._config.workers

    async def _take_requests(self) -> None:
        assert self._workers is not None
        self._reloader = Reloader(
            self._documents, self._config, environ=self._environ, service=self._service, tell=self._workers.reload
        )
        self._requests = await serve_requests(self._data_dir.path, self._documents.path, self._reload)

    # -- serve

    async def _serve(self) -> None:
        assert self._workers is not None
        self._service.ready()
        give_back()  # what the configuration was made with
        self._spawn(self._reload_when_told(), "reload")
        self._spawn(self._keep_house(), "housekeeping")
        if self._service.watchdog_every is not None:
            self._spawn(self._feed_watchdog(self._service.watchdog_every), "watchdog")
        # Until one of them fails, which must not go unseen. Shielded: they go on while the workers stop in order.
        await asyncio.gather(*map(asyncio.shield, [*self._workers.tasks, *self._tasks]))

    async def _reload_when_told(self) -> None:
        """Follow SIGHUP. Several that come while one is carried out are one more."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self._reload()

    async def _reload(self) -> Outcome:
        assert self._reloader is not None
        outcome = await self._reloader.reload()
        give_back()
        self._service.status(self._status())
        return outcome

    async def on_worker_death(self, pid: int | None) -> None:
        """Free what the dead worker owned, so that others may take it; None: every worker of this node is dead."""
        from mailerd.queue import journal
        from mailerd.queue.workers import WorkerStore

        assert self._pool is not None
        keep_bodies = self._reloader is not None and self._reloader.config.retention.bodies > 0
        store, node = WorkerStore(self._pool, keep_bodies=keep_bodies), self._data_dir.node()
        for worker in await store.all():
            if worker.node == node and pid in (None, worker.pid):
                file = self._data_dir.path / "journal" / str(worker.number)
                if failpoints.ON:
                    failpoints.reached("release.before")
                freed = await store.release(worker.number, journal.read(file))
                if failpoints.ON:
                    failpoints.reached("release.after")
                file.unlink(missing_ok=True)
                from mailerd import metrics  # with an HTTP server: not in the memory of those whose workers live

                metrics.forget_process(worker.pid)
                log.info("worker.released", number=worker.number, pid=worker.pid, recipients=freed)

    async def _keep_house(self) -> None:
        """Partitions ahead of time, the database's log in bounds, the status line."""
        assert self._reloader is not None
        loop = asyncio.get_running_loop()
        partitions_at = loop.time() + PARTITIONS_EVERY
        while True:
            await asyncio.sleep(TICK)
            try:
                if self._postgres is not None:
                    await self._postgres.turn_log_over()
                if loop.time() >= partitions_at:
                    now, kept = utc_now(), timedelta(seconds=self._reloader.config.retention.events)
                    # Of its own: it may wait long for a lock, and nobody who needs the pool should.
                    async with db.connected(self._url) as connection:
                        await ensure_event_partitions(connection, now)
                        await drop_event_partitions(connection, now - kept)
                    partitions_at = loop.time() + PARTITIONS_EVERY
            except Exception:  # again at the next tick
                log.exception("housekeeping.failed")
            self._service.status(self._status())

    async def _feed_watchdog(self, every: float) -> None:
        """As long as this loop turns. A worker that hangs is ours to kill, and is killed long before systemd would."""
        while True:
            self._service.watchdog()
            await asyncio.sleep(every)

    def _status(self) -> str:
        assert self._workers is not None and self._reloader is not None  # noqa: PT018
        text = f"{self._workers.ready_count} of {self._worker_count()} workers, {self._workers.restarts} restarts"
        return text + (f"; reload failed at {self._reloader.refused}" if self._reloader.refused else "")

    # -- stop

    async def _end(self) -> None:
        """The reverse of the start; every step is taken, whatever became of the ones before."""
        self._service.stopping()
        log.info("daemon.stopping")
        for step in (self._end_requests, self._end_workers, self._end_sandbox, self._end_tasks, self._end_database):
            try:
                await step()
            except Exception:
                log.exception("stop.step_failed", step=step.__name__)
        if self._ledger is not None:
            self._ledger.close()
        self._sockets.close()
        self._data_dir.release()
        log.info("daemon.stopped")

    async def _end_requests(self) -> None:
        if self._requests is not None:
            self._requests.close()

    async def _end_workers(self) -> None:
        if self._workers is not None:
            await self._workers.stop(STOP_WORKERS, self._hasten)

    async def _end_sandbox(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.stop()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_database(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
        if self._node_lock is not None:
            self._node_lock.release()
        if self._postgres is not None:
            await self._postgres.stop(STOP_DATABASE)

    # -- both

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it leaves us so: nobody could be awaited
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP and not self._hung_up():
            self._reload_wanted.set()
            return
        if self._stop.is_set() and number == signal.SIGINT:  # somebody at a terminal does not want to wait
            self._hasten.set()
        self._stop.set()

    def _hung_up(self) -> bool:
        """Whether the terminal that this process was started on has been closed: that sends SIGHUP too."""
        return self._has_terminal and not os.isatty(sys.stderr.fileno())

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _until_stopped(self, work: Coroutine[object, object, None]) -> None:
        """Do `work`; when a signal comes first, give it up."""
        doing = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if doing.done():
            return doing.result()
        doing.cancel()
        with suppress(asyncio.CancelledError):
            await doing
        return None
