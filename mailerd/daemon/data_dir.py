"""The data directory: ours alone while we run, and the name of this node."""

import asyncio
import fcntl
import os
import uuid
from pathlib import Path

import structlog

from mailerd.errors import MailerdError

log = structlog.get_logger()

FORMER_WORKERS = 10.0  # seconds that the workers of a killed main process get to notice


class StartError(MailerdError):
    """mailerd cannot start; `status` is the exit status (sysexits.h)."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class DataDir:
    """Made with mode 0700, and locked.

    Workers inherit the lock. So a main process that follows a killed one waits until the last worker of that one has
    ended, and may then treat what the database says of them as left behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock = -1  # file descriptor, of those to pass on

    async def acquire(self) -> None:
        """Lock it, or raise `StartError` that names the holder."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"cannot use data_dir {self.path}: {error.strerror}", os.EX_CANTCREAT) from error
        deadline = asyncio.get_running_loop().time() + FORMER_WORKERS
        while not self._try_lock():
            holder = self._holder()
            if holder is not None and _alive(holder):
                text = f"mailerd runs already on {self.path}, as process {holder}: end that one first, or give this one"
                raise StartError(f"{text} a data_dir of its own", os.EX_TEMPFAIL)
            if asyncio.get_running_loop().time() > deadline:
                raise StartError(
                    f"mailerd was killed, but workers of it still run on {self.path}: end them and start again",
                    os.EX_TEMPFAIL,
                )
            log.info("former_workers.awaited", main_process=holder)
            await asyncio.sleep(0.1)
        os.truncate(self.lock, 0)
        os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def node(self) -> str:
        """The id of this installation, made at the first start."""
        file = self.path / "node"
        try:
            return str(uuid.UUID(file.read_text().strip()))
        except FileNotFoundError:
            pass
        except ValueError:
            raise StartError(f"{file} does not hold a UUID: remove it, and a new one is made", os.EX_DATAERR) from None
        new = file.with_suffix(".new")
        new.write_text(f"{uuid.uuid4()}\n")
        new.rename(file)
        return self.node()

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> int | None:
        text = os.pread(self.lock, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None


def _alive(pid: int) -> bool:
    """Whether it runs; one that was killed and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
