"""The files that hits are in until they are stored: `data_dir/hits/`, one under way for each worker.

Whoever writes or stores a file holds its lock (flock), and the lock ends with the process: a file without one is left
behind, by a worker that died or went on to another file, and any worker of the node may take it. What was written
before an answer is in the page cache, so kill -9 loses nothing; a crash of the machine may lose the last half minute.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from mailerd import metrics

log = structlog.get_logger()

DIRECTORY = "hits"  # under data_dir
ENDING = ".hits"
BEGINNING = ".new"  # a file that is not locked yet
ROTATE = 8_000_000  # bytes of one file
MOST = 256_000_000  # of all: then the oldest are dropped
MOST_UNWRITTEN = 4_000_000  # held in memory while the disk takes nothing
COMPLAIN_EVERY = 60.0  # seconds
MODE = 0o600


class HitFile(NamedTuple):
    """A file that is ours, open for as long as it is."""

    name: str
    path: Path
    descriptor: int

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size


class HitLog:
    """What one worker writes. `write` never fails: what the disk does not take is held, up to a bound, for `retry`."""

    def __init__(self, directory: Path, node: str, *, milliseconds: Callable[[], int]) -> None:
        self._directory = directory
        self._node = node
        self._milliseconds = milliseconds
        self._file: HitFile | None = None
        self._size = 0
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._complain_at = 0.0  # of the monotonic clock

    @property
    def file(self) -> HitFile | None:
        """The one under way."""
        return self._file

    def write(self, records: Sequence[bytes]) -> None:
        """One record for each hit, in one piece, so that a reader sees all of it or none."""
        if self._unwritten or not self._append(b"".join(records)):
            for record in records:
                self._hold(record)

    def retry(self) -> None:
        """Try again what the disk did not take."""
        if self._unwritten and self._append(b"".join(self._unwritten)):
            log.info("hits.written_again", hits=len(self._unwritten))
            self._unwritten.clear()
            self._unwritten_bytes = 0

    def rotate(self) -> None:
        """Leave the file, to whoever finds it, and begin another with the next hit."""
        if self._file is not None:
            os.close(self._file.descriptor)
            self._file = None

    def _append(self, data: bytes) -> bool:
        try:
            if self._file is None or self._size + len(data) > ROTATE:
                self.rotate()
                self._file, self._size = self._begin(), 0
            written = os.write(self._file.descriptor, data)
            if written == len(data):
                self._size += written
                return True
            raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError as error:
            self._complain(error)
            self._take_back()
            return False

    def _take_back(self) -> None:
        """No part of a record may stand before whole ones."""
        if self._file is not None:
            try:
                os.ftruncate(self._file.descriptor, self._size)
            except OSError:
                self.rotate()

    def _begin(self) -> HitFile:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        name = f"{self._node}.{self._milliseconds():013d}.{uuid.uuid4().hex[:12]}"
        path, new = self._directory / f"{name}{ENDING}", self._directory / f"{name}{BEGINNING}"
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(path)  # fails when somebody has found it before it was locked
        except OSError:
            os.close(descriptor)
            raise
        return HitFile(name, path, descriptor)

    def _hold(self, record: bytes) -> None:
        if self._unwritten_bytes + len(record) > MOST_UNWRITTEN:
            metrics.hits_lost("disk", 1)
            return
        self._unwritten.append(record)
        self._unwritten_bytes += len(record)

    def _complain(self, error: OSError) -> None:
        if time.monotonic() >= self._complain_at:
            log.error("hits.not_written", directory=str(self._directory), error=str(error))
            self._complain_at = time.monotonic() + COMPLAIN_EVERY


@contextmanager
def taken(path: Path) -> Iterator[HitFile | None]:
    """Hold a file that nobody holds; None when somebody does, or it is no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield HitFile(path.stem, path, descriptor) if _lock(descriptor, path) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Whether it is ours, and still the file of this name: it may have been stored and removed a moment ago."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def left_behind(directory: Path) -> list[Path]:
    """Files that may be, the oldest first. Those that were never begun are removed."""
    for path in directory.glob(f"*{BEGINNING}"):
        with taken(path) as file:
            if file is not None:
                path.unlink(missing_ok=True)
    return sorted(directory.glob(f"*{ENDING}"), key=_begun)


def milliseconds_of(name: str) -> int:
    """When a file of this name was begun, since 1970; 0 where it does not say."""
    digits = name.split(".")[-2:][0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def too_many(directory: Path, most: int = MOST) -> list[Path]:
    """The oldest files, without which the others keep to `most` bytes."""
    sizes: list[tuple[Path, int]] = []
    for path in left_behind(directory):
        with suppress(OSError):
            sizes.append((path, path.stat().st_size))
    total, found = sum(size for _, size in sizes), []
    for path, size in sizes:
        if total <= most:
            break
        found.append(path)
        total -= size
    return found


def _begun(path: Path) -> tuple[int, str]:
    return milliseconds_of(path.stem), path.name
