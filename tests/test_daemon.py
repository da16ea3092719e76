"""The main process, as a process of its own, with a real database and stand-in workers."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mailerd import db
from mailerd.assignment import Assignment
from mailerd.config.documents import Documents
from mailerd.daemon.data_dir import StartError
from mailerd.daemon.service import Service
from mailerd.daemon.workers import Workers
from mailerd.db.embedded import running_url
from mailerd.queue.workers import WorkerStore
from tests.support.daemon import RunningDaemon

Make = Callable[..., RunningDaemon]

EMPTY = Documents("", "", {})
NOTHING = Assignment(EMPTY, EMPTY, "", "", "", [], [], -1)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make main processes on one data directory; all are ended at the end of the test."""
    made: list[RunningDaemon] = []

    def make(**options: object) -> RunningDaemon:
        made.append(RunningDaemon(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for daemon in made:
        if hasattr(daemon, "process") and daemon.process.returncode is None:
            await daemon.stop()


async def other_greeting(daemon: RunningDaemon, pid: int) -> dict[str, int]:
    """The first greeting that is not from `pid`."""
    while (greeting := await daemon.greeting())["pid"] == pid:
        await asyncio.sleep(0.02)
    return greeting


async def test_it_serves_when_it_says_so_and_stops_in_order_when_told(make):
    daemon = make()
    await daemon.start()
    assert await daemon.ready() == daemon.lines[-1]

    assert (await daemon.greeting())["listener"] == 0
    assert running_url(daemon.data_dir) is not None
    assert (daemon.data_dir.stat().st_mode & 0o777) == 0o700

    status, _ = await daemon.stop()
    assert status == 0
    assert len(list(daemon.data_dir.glob("ended-*"))) == 2  # both workers came to their own end
    assert running_url(daemon.data_dir) is None
    assert not (daemon.data_dir / "postgres" / "postmaster.pid").exists()


async def test_a_second_start_on_a_data_directory_is_refused_with_the_pid_of_the_first(make):
    first, second = make(), make()
    await first.start()
    await first.ready()
    await second.start()
    status, error = await second.ended()

    assert status == os.EX_TEMPFAIL
    assert f"runs already on {first.data_dir}, as process {first.process.pid}" in error
    assert (await first.greeting())["pid"]


async def test_a_killed_worker_is_released_and_replaced(make):
    daemon = make(workers=1)
    await daemon.start()
    await daemon.ready()
    before = await daemon.greeting()

    os.kill(before["pid"], signal.SIGKILL)
    after = await other_greeting(daemon, before["pid"])

    url = running_url(daemon.data_dir)
    assert url is not None
    async with db.connected(url) as connection:
        rows = await connection.fetch("SELECT number, pid FROM workers")
    assert [(row["number"], row["pid"]) for row in rows] == [(after["number"], after["pid"])]


async def test_a_killed_worker_is_replaced_where_the_parent_of_the_daemon_ignores_its_children(make):
    daemon = make(workers=2)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what it starts with, as it survives exec
    try:
        await daemon.start()
    finally:
        signal.signal(signal.SIGCHLD, before)
    await daemon.ready()
    known = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()

    os.kill((await daemon.greeting())["pid"], signal.SIGKILL)
    async with asyncio.timeout(20):
        while str((await daemon.greeting())["pid"]) in known:
            await asyncio.sleep(0.02)


async def test_after_kill_9_of_the_main_process_the_next_start_finds_a_clean_table(make):
    first, second = make(), make()
    await first.start()
    await first.ready()
    first.process.kill()
    await first.ended()

    await second.start()
    await second.ready()

    url = running_url(second.data_dir)
    assert url is not None
    pool = await db.connect_pool(url)
    workers = await WorkerStore(pool).all()
    await pool.close()
    assert len(workers) == 2
    assert all(Path(f"/proc/{worker.pid}").exists() for worker in workers)


async def test_postgresql_killed_under_the_daemon_comes_back_at_the_same_place(make):
    daemon = make()
    await daemon.start()
    await daemon.ready()
    url = running_url(daemon.data_dir)
    assert url is not None
    file = daemon.data_dir / "postgres" / "postmaster.pid"
    pid = file.read_text().split()[0]

    os.kill(int(pid), signal.SIGKILL)
    while not file.exists() or file.read_text().split()[:1] in ([], [pid]):
        await asyncio.sleep(0.02)

    async with db.connected(url, patience=10) as connection:
        assert await connection.fetchval("SELECT count(*) FROM schema_migrations") >= 2


async def test_workers_that_cannot_start_end_the_start(make):
    daemon = make(manner="die")
    await daemon.start()
    status, error = await daemon.ended()
    assert status == 1
    assert "a worker died again and again while starting" in error
    assert running_url(daemon.data_dir) is None


async def test_a_second_interrupt_does_not_wait_for_stubborn_workers(make):
    daemon = make(manner="stubborn")
    await daemon.start()
    await daemon.ready()

    daemon.process.send_signal(signal.SIGINT)
    with pytest.raises(TimeoutError):  # it waits for them
        async with asyncio.timeout(0.5):
            await daemon.process.wait()
    daemon.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        status, _ = await daemon.ended()
    assert status == 0


async def test_an_address_in_use_is_named(make):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = make(
            more=f"listeners: [{{bind: '127.0.0.1:{port}', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}}]\n"
        )
        await daemon.start()
        status, error = await daemon.ended()
    assert status == os.EX_UNAVAILABLE
    assert f": listeners[0].bind: cannot listen on 127.0.0.1:{port}: Address already in use; `ss -ltnp`" in error
    assert re.search(r"mailerd\.yaml:[1-9]\d*: listeners", error)


@pytest.mark.parametrize("name", ["mailerd-smtp", "unknown"])
async def test_a_socket_from_systemd_is_used_by_its_name_or_its_address(make, name):
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        bind = port if name == "unknown" else 1  # port 1 is only in the configuration: the name decides
        daemon = make(
            more=f"listeners: [{{bind: '127.0.0.1:{bind}', name: mailerd-smtp, starttls: off, auth: trusted, "
            "trusted: [127.0.0.0/8]}]\n"
        )
        await daemon.start(environ={"LISTEN_FDS": "1", "LISTEN_FDNAMES": name}, handed_over=ours)
        assert await daemon.ready() == f"mailerd ready smtp=127.0.0.1:{port}"
        assert (await daemon.greeting())["listener"] == 0


async def test_systemd_hears_of_readiness_of_life_and_of_the_end(make, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        systemd.setblocking(False)
        daemon = make()
        await daemon.start(environ={"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "100000"})
        await daemon.ready()
        heard = []
        while heard.count("WATCHDOG=1") < 3:
            heard.append((await asyncio.get_running_loop().sock_recv(systemd, 4096)).decode())
        await daemon.stop()
        while not heard[-1].startswith("STOPPING=1"):
            heard.append((await asyncio.get_running_loop().sock_recv(systemd, 4096)).decode())
    assert heard.index("READY=1") < heard.index("WATCHDOG=1")


def test_a_service_manager_that_does_not_listen_holds_nobody_up(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        service = Service({"NOTIFY_SOCKET": str(tmp_path / "n")})
        for _ in range(1_000):
            service.watchdog()
        service.stopping()
        assert systemd.recv(4096) == b"WATCHDOG=1"


def test_the_service_takes_its_variables_away_from_children():
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "2000000", "LISTEN_FDS": "2", "HOME": "/"}
    assert Service(environ).watchdog_every == 1.0
    assert environ == {"HOME": "/"}


async def test_a_worker_that_falls_silent_is_killed_and_replaced():
    deaths: asyncio.Queue[int] = asyncio.Queue()
    command = (sys.executable, "-m", "tests.support.stand_in", "mute")
    workers = Workers(1, command, NOTHING, [], deaths.put, silence=1.0)
    starting = asyncio.create_task(workers.start())

    first, second = await deaths.get(), await deaths.get()
    assert first != second

    starting.cancel()
    await workers.stop(1.0, asyncio.Event())


async def test_workers_that_die_before_they_were_ready_are_not_tried_for_ever():
    async def on_death(_: int) -> None:
        pass

    workers = Workers(1, ("/bin/false",), NOTHING, [], on_death)
    with pytest.raises(StartError):
        await workers.start()
    await workers.stop(1.0, asyncio.Event())
