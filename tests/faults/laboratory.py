"""A daemon under load that may be hurt anywhere, and the comparison of what was promised with what arrived."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mailerd import db, failpoints
from mailerd.db.embedded import running_url
from tests.faults.history import disorder
from tests.support.ledger_mx import Arrival, LedgerMx
from tests.support.submitters import Promises, Submitters

TOP = Path(__file__).parents[2]
CONFIG = """
hostname: mail.sender.example
data_dir: {data_dir}
workers: {workers}
database: {{shared_buffers: 32MiB, max_wal_size: 256MiB}}
listeners: [{{bind: '127.0.0.1:{smtp}', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}}]
http: {{bind: '127.0.0.1:{http}'}}
routes: [{{match: {{domain: '*'}}, hosts: ['127.0.0.1:{mx}'], tls: none}}]
delivery: {{retry: [1s], connections_per_path: 10}}
log: {{format: json}}
first_key: true
"""
READY = 60.0  # seconds until a daemon serves; recovery of the database included
DRAIN = 120.0
FIRED = 60.0
DOUBTFUL = "SELECT DISTINCT address FROM events WHERE data->>'in_doubt' = 'true'"


class Mailerd:
    """A real daemon on a data directory of its own; the ports stay the same when it is started again."""

    def __init__(self, directory: Path, mx_port: int, *, workers: int = 2, data_dir: Path | None = None) -> None:
        self.data_dir = data_dir or directory / "data"
        self.file = directory / "mailerd.yaml"
        self.log = directory / "daemon.log"
        self.smtp_port, self.http_port = _free_port(), _free_port()
        self.api_key = ""
        self.environ: dict[str, str] = {}  # beside ours
        self._failpoints = directory / "failpoints"
        self.file.write_text(
            CONFIG.format(data_dir=self.data_dir, workers=workers, smtp=self.smtp_port, http=self.http_port, mx=mx_port)
        )
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Launch it and wait until it serves."""
        await self.launch()
        async with asyncio.timeout(READY):
            await self._ready()
        self.api_key = (self.data_dir / "api-key").read_text().strip()

    async def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mailerd",
                "run",
                "--config",
                str(self.file),
                cwd=TOP,
                env=os.environ | {failpoints.VARIABLE: f"@{self._failpoints}"} | self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    async def _ready(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith(b"mailerd ready"):
                return
        raise AssertionError(f"not ready, status {await self.process.wait()}: {self.log_lines()[-5:]}")

    async def kill(self) -> None:
        """kill -9 of the main process only; what else must end has to end by itself."""
        self.process.kill()
        await self.process.wait()

    def arm(self, words: str) -> None:
        """Have these failpoints hold, for one passing of whichever process gets to one first."""
        new = self._failpoints.with_suffix(".new")
        new.write_text(words)
        new.rename(self._failpoints)

    def disarm(self) -> None:
        self._failpoints.unlink(missing_ok=True)

    async def fired(self, seconds: float = FIRED) -> None:
        """Wait until what was armed has happened."""
        try:
            async with asyncio.timeout(seconds):
                while self._failpoints.exists():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"nobody came to {self._failpoints.read_text()}: {self.log_lines()[-5:]}") from None

    async def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit status, and how many seconds it took."""
        begun = time.monotonic()
        self.process.terminate()
        status = await self.process.wait()
        return status, time.monotonic() - begun

    async def refusal(self) -> tuple[int, str]:
        """Start it where it cannot start; the exit status, and what it says of that on standard error."""
        command = [sys.executable, "-m", "mailerd", "run", "--config", str(self.file)]
        process = await asyncio.create_subprocess_exec(*command, cwd=TOP, stderr=subprocess.PIPE)
        _, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, error.decode()

    def leftovers(self) -> list[int]:
        """Database processes that still work in the data directory."""
        cluster = (self.data_dir / "postgres").resolve()
        return [pid for pid in _processes() if _directory(pid) == cluster]

    async def end(self) -> None:
        """For the end of a test, whatever state it is in."""
        if hasattr(self, "process") and self.process.returncode is None:
            await self.stop()

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return [pid for pid in _children(self.process.pid) if b"mailerd\0worker" in _command(pid)]

    def postmaster(self) -> int | None:
        """The process id of its database server, once there is one that is its child."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
            return pid if pid in _children(self.process.pid) else None
        return None

    def backends(self) -> list[int]:
        """Process ids of the server's sessions and helpers."""
        postmaster = self.postmaster()
        return _children(postmaster) if postmaster is not None else []

    def log_lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    async def connection(self) -> db.Connection:
        """To its database, as soon as that is there."""
        url = self.environ.get("MAILERD_DATABASE_URL")
        async with asyncio.timeout(READY):
            while url is None and (url := running_url(self.data_dir)) is None:
                await asyncio.sleep(0.05)
        return await db.connect(url, patience=READY)

    async def drained(self, seconds: float = DRAIN) -> None:
        """Wait until no recipient is in the queue."""
        connection = await self.connection()
        try:
            async with asyncio.timeout(seconds):
                while await connection.fetchval("SELECT count(*) FROM recipients"):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            rows = await connection.fetch("SELECT * FROM recipients ORDER BY due_at LIMIT 5")
            workers = await connection.fetch("SELECT number, pid, beat FROM workers")
            raise AssertionError(f"still queued: {list(map(dict, rows))}; workers {list(map(dict, workers))}") from None
        finally:
            await connection.close()

    async def doubtful(self) -> set[str]:
        """Addresses that the events mark as perhaps sent more than once."""
        connection = await self.connection()
        try:
            return {row["address"] for row in await connection.fetch(DOUBTFUL)}
        finally:
            await connection.close()


@dataclass
class Comparison:
    """What became of the promises. All counts are of recipients."""

    promised: int = 0
    lost: list[str] = field(default_factory=list)  # promised, and never arrived
    broken: list[str] = field(default_factory=list)  # arrived otherwise than submitted
    duplicates: int = 0  # arrivals beyond the first
    unmarked: list[str] = field(default_factory=list)  # arrived again without an event that says "in doubt"
    marked: int = 0  # in doubt, whether they arrived again or not
    refused: int = 0
    refused_arrived: int = 0
    unanswered: int = 0
    unanswered_arrived: int = 0
    strangers: list[str] = field(default_factory=list)  # arrived, and never submitted
    disorder: list[str] = field(default_factory=list)  # whose events are not in order

    @property
    def kept(self) -> bool:
        """Nothing was lost, nothing came twice without saying so, and the events tell it in order."""
        return not (self.lost or self.broken or self.unmarked or self.strangers or self.disorder)


def compare(promises: Promises, arrivals: Iterable[Arrival], doubtful: set[str]) -> Comparison:
    arrivals = list(arrivals)
    times = Counter(arrival.address for arrival in arrivals)
    submitted = promises.promised | promises.refused.keys() | promises.unanswered
    return Comparison(
        promised=len(promises.promised),
        lost=sorted(promises.promised - times.keys()),
        broken=sorted({arrival.address for arrival in arrivals if not arrival.intact}),
        duplicates=sum(count - 1 for count in times.values()),
        unmarked=sorted(address for address, count in times.items() if count > 1 and address not in doubtful),
        marked=len(doubtful),
        refused=len(promises.refused),
        refused_arrived=len(promises.refused.keys() & times.keys()),
        unanswered=len(promises.unanswered),
        unanswered_arrived=len(promises.unanswered & times.keys()),
        strangers=sorted(times.keys() - submitted),
    )


@dataclass
class Laboratory:
    """A daemon, the exchanger that all its mail goes to, and clients: one load after the other."""

    directory: Path
    mx: LedgerMx
    daemon: Mailerd
    loads: int = 0

    def load(self, **how: float) -> Submitters:
        """Clients whose mail nobody takes for that of another load."""
        self.loads += 1
        return Submitters(self.daemon, prefix=f"load{self.loads}-", **how)  # type: ignore[arg-type]

    def arrivals(self, load: Submitters) -> list[Arrival]:
        return [arrival for arrival in self.mx.arrivals() if arrival.address.startswith(load.prefix)]

    async def doubtful(self, load: Submitters) -> set[str]:
        return {address for address in await self.daemon.doubtful() if address.startswith(load.prefix)}

    async def verdict(self, load: Submitters) -> Comparison:
        """After the load was stopped: wait for the queue to drain, and compare."""
        await self.daemon.drained()
        comparison = compare(load.promises, self.arrivals(load), await self.doubtful(load))
        connection = await self.daemon.connection()
        try:
            comparison.disorder = await disorder(connection, load.prefix)
        finally:
            await connection.close()
        return comparison


@asynccontextmanager
async def laboratory(
    directory: Path, *, workers: int = 2, data_dir: Path | None = None, database_url: str | None = None
) -> AsyncIterator[Laboratory]:
    """With the daemon started; `database_url` is that of a server of its own."""
    async with LedgerMx(directory) as mx:
        daemon = Mailerd(directory, mx.port, workers=workers, data_dir=data_dir)
        if database_url is not None:
            daemon.environ["MAILERD_DATABASE_URL"] = database_url
        try:
            await daemon.start()
            yield Laboratory(directory, mx, daemon)
        finally:
            await daemon.end()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Signal a process; False when it has just gone by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _directory(pid: int) -> Path | None:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink()
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
