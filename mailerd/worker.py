"""A worker: one process, one event loop, the whole way of a message."""

import asyncio
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import structlog
import uvloop

from mailerd import logs
from mailerd.assignment import Assignment, Control, read_assignment
from mailerd.config import Config, load
from mailerd.db import connect_pool
from mailerd.delivery.attempt import Attempts
from mailerd.delivery.dispatcher import Dispatcher
from mailerd.delivery.identity import Identity
from mailerd.delivery.notices import Notices
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.routing import Router
from mailerd.delivery.settler import Settler
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from mailerd.intake.idempotency import IdempotencyStore
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_listener import SmtpListener, server_context
from mailerd.intake.submission import Submitter
from mailerd.queue import journal
from mailerd.queue.commit import LOST, GroupCommit
from mailerd.queue.control import CHANNEL, ControlStore, MessageControl, Selection
from mailerd.queue.ids import IdMaker, first_id_at
from mailerd.queue.store import QueueStore
from mailerd.queue.trace import TraceStore
from mailerd.queue.workers import BEAT_EVERY, Watch, WorkerStore
from mailerd.web.app import build_app
from mailerd.web.server import HttpServer
from mailerd.web.services import Limits, Services

log = structlog.get_logger()

SWEEP_EVERY = 15.0  # seconds between looks for expired and forgotten mail
LISTEN_AGAIN = 1.0
STOP_INTAKE = 10.0  # seconds for SMTP transactions under way
STOP_HTTP = 10.0
STOP_DELIVERY = 12.0  # seconds for attempts under way; those cut off are in doubt


def main() -> None:
    """Run the worker that standard input describes, until SIGTERM."""
    assignment = read_assignment()
    config = load(assignment.config_path, environ=os.environ)
    config = msgspec.structs.replace(config, hostname=config.hostname or socket.getfqdn(), data_dir=assignment.data_dir)
    logs.set_up(config.log)
    uvloop.run(Worker(config, assignment).run())


def utc_now() -> datetime:
    return datetime.now(UTC)


class Worker:
    """Builds everything from the configuration, runs it, and takes it down in order."""

    def __init__(self, config: Config, assignment: Assignment) -> None:
        self._config = config
        self._assignment = assignment
        self._workers = len(os.sched_getaffinity(0)) if config.workers == "auto" else config.workers
        self._stopping = asyncio.Event()
        self._last_beat = time.monotonic()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        control = Control(self._assignment.control)
        async with control.held():
            await self._start()
            control.ready()
            await self._stopping.wait()
            await self._stop()

    async def _start(self) -> None:
        config = self._config
        self._pool = await connect_pool(self._assignment.database_url, min=1, max=config.database.connections)
        self._workers_store = WorkerStore(self._pool)
        self._number = await self._workers_store.register(self._assignment.node, os.getpid())
        self._journal = journal.Journal(Path(config.data_dir) / "journal" / str(self._number))
        keep_bodies = config.retention.bodies > 0
        self._store = QueueStore(self._pool, keep_bodies=keep_bodies)
        ids = IdMaker(self._number, lambda: int(time.time() * 1000))
        self._settler = Settler(
            self._store,
            self._journal,
            worker=self._number,
            settled=lambda recipients: self._dispatcher.release(recipients),
        )
        self._resolver = Resolver(config.resolver)
        self._router = Router(config, self._resolver)
        transactional = config.streams.get("transactional")
        self._signers = ThreadPoolExecutor(1, "dkim") if self._workers < len(os.sched_getaffinity(0)) else None
        attempts = Attempts(
            config,
            store=self._store,
            identity=Identity(config),
            settler=self._settler,
            notices=Notices(
                hostname=config.hostname, pool=transactional.pool if transactional else "default", next_id=ids.next
            ),
            journal=self._journal,
            clock=utc_now,
            signers=self._signers,
        )
        self._dispatcher = Dispatcher(
            config,
            router=self._router,
            store=self._store,
            attempts=attempts,
            settler=self._settler,
            worker=self._number,
            workers=self._workers,
            clock=utc_now,
            silent_for=lambda: time.monotonic() - self._last_beat,
        )
        self._commit = GroupCommit(
            self._store,
            worker=self._number,
            keep=self._dispatcher.keep,
            kept=self._dispatcher.offer,
            dropped=self._dispatcher.drop,
            clock=utc_now,
        )
        self._idempotency = IdempotencyStore(self._pool)
        self._submitter = Submitter(
            config,
            commit=self._commit,
            store=self._store,
            wake=self._dispatcher.wake,
            idempotency=self._idempotency,
            ids=ids,
            clock=utc_now,
            workers=self._workers,
        )
        self._steering = MessageControl(ControlStore(self._pool, keep_bodies=keep_bodies), utc_now)
        self._background = [
            asyncio.create_task(work, name=name)
            for work, name in (
                (self._beat(), "beat"),
                (self._sweep(), "sweep"),
                (self._listen(), "recall"),
                (self._dispatcher.run(), "dispatcher"),
            )
        ]
        await self._open_listeners()

    async def _open_listeners(self) -> None:
        config = self._config
        credentials = CredentialStore(self._pool)
        authenticator = Authenticator(credentials, failures=config.smtp.auth_failures)
        memory = Memory(config.smtp.data_memory)
        tls = server_context(config.tls)
        self._listeners = [
            SmtpListener(
                config.listeners[index],
                socket.socket(fileno=descriptor),
                limits=config.smtp,
                hostname=config.hostname,
                submitter=self._submitter,
                authenticator=authenticator,
                memory=memory,
                tls=tls,
            )
            for descriptor, index in self._assignment.listeners
        ]
        for listener in self._listeners:
            listener.start()
        self._http: list[HttpServer] = []
        if config.http is None:
            return
        limits = Limits(
            max_body=config.http.max_body,
            max_message=config.smtp.max_size,
            max_recipients=config.smtp.max_recipients,
            memory=config.smtp.data_memory,
            stop=STOP_HTTP,
        )
        services = Services(
            submitter=self._submitter,
            authenticator=authenticator,
            mail=TraceStore(self._pool),
            control=self._steering,
            ping=self._ping,
            stopping=self._stopping.is_set,
            cursor_key=await credentials.secret(),
            limits=limits,
        )
        app = build_app(services)
        self._http = [HttpServer(app, socket.socket(fileno=descriptor), limits) for descriptor in self._assignment.http]
        for server in self._http:
            await server.start()

    async def _ping(self) -> None:
        await self._pool.fetchval("SELECT 1")

    # in the background

    async def _beat(self) -> None:
        """Hold our lease, and take over from workers that no longer hold theirs."""
        watch = Watch()
        while True:
            await asyncio.sleep(BEAT_EVERY)
            begun = time.monotonic()
            try:
                if not await self._workers_store.beat(self._number):
                    log.error("worker.declared_dead", number=self._number)
                    os.kill(os.getpid(), signal.SIGKILL)  # others have our mail: send nothing more, settle nothing more
                self._last_beat = begun
                for dead in watch.dead(await self._workers_store.all(), begun):
                    freed = await self._workers_store.release(dead.number, None)
                    log.warning("worker.taken_over", number=dead.number, node=dead.node, recipients=freed)
                    self._dispatcher.wake()
            except LOST as error:
                watch.blind()
                log.warning("beat.missed", error=str(error))

    async def _sweep(self) -> None:
        """Expire, and mend and forget what accumulates."""
        retention = self._config.retention
        while True:
            try:
                await self._dispatcher.expire()
                self._dispatcher.forget_unblocked()
                now = utc_now()
                bodies_before = now - timedelta(seconds=retention.bodies)
                await self._store.mend_queues()
                await self._store.forget(
                    now=now,
                    bodies_before=first_id_at(int(bodies_before.timestamp() * 1000)) if retention.bodies else None,
                )
                await self._idempotency.forget(now - timedelta(seconds=retention.idempotency_keys))
            except LOST as error:
                log.warning("sweep.interrupted", error=str(error))
            except Exception:
                log.exception("sweep.failed")
            await asyncio.sleep(SWEEP_EVERY)

    async def _listen(self) -> None:
        """Follow what operators tell all workers."""
        while True:
            lost = asyncio.Event()
            try:
                connection = await asyncpg.connect(self._assignment.database_url)
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(CHANNEL, self._on_recall)
                await lost.wait()
            except LOST as error:
                log.warning("recall.interrupted", error=str(error))
            await asyncio.sleep(LISTEN_AGAIN)

    def _on_recall(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        selection = msgspec.json.decode(str(payload), type=Selection)
        count = self._dispatcher.recall(selection)
        if count:
            log.info("mail.recalled", recipients=count)
        self._dispatcher.wake()

    # the end

    async def _stop(self) -> None:
        """Take nothing more in, finish what is under way, put back the rest, give up the lease."""
        log.info("worker.stopping", number=self._number)
        await asyncio.gather(
            *(listener.stop(STOP_INTAKE) for listener in self._listeners), *(server.stop() for server in self._http)
        )
        await self._commit.drained()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_DELIVERY):
                await self._dispatcher.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._resolver.close()
        # What was cut off is still ours, and the journal says which of it may have been sent.
        path = Path(self._config.data_dir) / "journal" / str(self._number)
        freed = await self._workers_store.release(self._number, journal.read(path))
        self._journal.remove()
        await self._pool.close()
        log.info("worker.stopped", number=self._number, released=freed)
