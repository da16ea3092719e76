"""Events as lines of JSON in files: `NAME.jsonl` is written to, `NAME-20261122T140305Z.jsonl.gz` are full ones.

A line is there when `write` has returned, whatever happens to the machine. What was cut off by a crash is taken away at
the next start, and what had been written but not noted is not written again. A full disk changes nothing but the time.
"""

import asyncio
import fcntl
import gzip
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from errno import EINTR
from pathlib import Path

import msgspec
import structlog

from mailerd.config import Sink as SinkConfig
from mailerd.feedback.names import OutsideEvent
from mailerd.feedback.sinks.base import SinkError, encoded

log = structlog.get_logger()

TAIL = 4 << 20  # bytes at the end of a file in which the last page is looked for
FILE_MODE = 0o640
STAMP = "%Y%m%dT%H%M%S%fZ"


class JsonlSink:
    """One file that is written to, and the full ones beside it; by one process at a time."""

    def __init__(self, name: str, config: SinkConfig, *, clock: Callable[[], datetime]) -> None:
        assert config.directory is not None
        self._name = name
        self._config = config
        self._clock = clock
        self._directory = Path(config.directory)
        self._path = self._directory / f"{name}.jsonl"
        self._full = re.compile(rf"{re.escape(name)}-(?P<at>\d{{8}}T\d{{12}}Z)\.jsonl(?P<gz>\.gz)?(?P<part>\.part)?")
        self._file: int | None = None
        self._size = 0
        self._began: datetime | None = None  # None: the file is empty
        self._untidy = False  # there may be files to compress, or to forget
        self._written: frozenset[bytes] = frozenset()  # lines that a crash may have us write again
        self._tidying: asyncio.Task[None] | None = None
        self._closing = threading.Event()

    async def write(self, events: Sequence[OutsideEvent]) -> None:
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, events))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # nobody stops a thread, and `close` must not take its file away
            raise
        if self._untidy and (self._tidying is None or self._tidying.done()):
            self._untidy = False
            self._tidying = asyncio.create_task(asyncio.to_thread(self._tidy), name=f"compress {self._name}")

    async def tidied(self) -> None:
        """Wait until what was full is compressed."""
        if self._tidying is not None:
            await asyncio.wait({self._tidying})

    async def close(self) -> None:
        self._closing.set()
        await self.tidied()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, events: Sequence[OutsideEvent]) -> None:
        try:
            if self._file is not None and not _is_at(self._path, self._file):  # taken away, as log rotation does
                log.warning("sink.replaced", sink=self._name, file=str(self._path))
                os.close(self._file)
                self._file = None
            if self._file is None:
                self._open()
            lines = [line for event in events if (line := encoded(event) + b"\n") not in self._written]
            if lines:
                self._turn_over()
                self._append(b"".join(lines))
            self._written = frozenset()
        except OSError as error:
            raise SinkError(f"sinks.{self._name}: {error.filename or self._path}: {error.strerror}") from error

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fdatasync(self._file)
        except OSError:  # a full disk: leave no half of it
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            os.close(self._file)
            self._file = None  # what cannot be synced may be lost, whatever a second try says: look again
            raise
        self._size += len(data)
        self._began = self._began or self._clock()

    # opening

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SinkError(f"sinks.{self._name}: another process writes to {self._path}") from None
            if not _is_at(self._path, file):  # its last writer has turned it over at this very moment
                raise SinkError(f"sinks.{self._name}: {self._path} was replaced")
            self._repair(file)
            _sync_directory(self._directory)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._untidy = True

    def _repair(self, file: int) -> None:
        """Take away a last line that was not written to its end; remember those before it."""
        size = os.fstat(file).st_size
        start, tail = size, b""
        while start and b"\n" not in tail:  # mostly once; more where a crash has left zeros
            begin = max(0, start - TAIL)
            tail, start = os.pread(file, start - begin, begin), begin
        end = start + tail.rfind(b"\n") + 1
        if end < size:
            log.warning("sink.repaired", sink=self._name, file=str(self._path), bytes=size - end)
            os.ftruncate(file, end)
        os.fdatasync(file)
        self._size = end
        self._written = frozenset(tail[: end - start].splitlines(keepends=True)[-2_000:])
        self._began = _time_of(os.pread(file, 65_536, 0).partition(b"\n")[0]) if end else None
        if end and self._began is None:
            self._began = self._clock()

    # turning over

    def _turn_over(self) -> None:
        """Begin a new file when this one is large or old enough."""
        if self._began is None or self._file is None:
            return
        now = self._clock()
        age = now - self._began
        if self._size < self._config.rotate_size and age < timedelta(seconds=self._config.rotate_every):
            return
        full = self._directory / f"{self._name}-{now.astimezone(UTC):{STAMP}}.jsonl"
        try:
            self._path.rename(full)
        finally:
            os.close(self._file)
            self._file = None
        self._open()
        log.info("sink.turned_over", sink=self._name, file=str(full))

    def _tidy(self) -> None:
        """Compress what is full, take away what is old. What fails is tried again at the next turn-over."""
        for path in sorted(self._directory.iterdir()):
            match = self._full.fullmatch(path.name)
            if match is None:
                continue
            try:
                if match["part"]:
                    path.unlink()
                elif self._is_old(match["at"]):
                    path.unlink()
                    log.info("sink.forgot", sink=self._name, file=str(path))
                elif not match["gz"]:
                    _compress(path, self._closing)
            except OSError as error:
                log.warning("sink.untidy", sink=self._name, file=str(path), error=error.strerror)

    def _is_old(self, stamp: str) -> bool:
        keep = self._config.keep
        at = datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
        return keep > 0 and self._clock() - at > timedelta(seconds=keep)


def _is_at(path: Path, file: int) -> bool:
    """Is the open file still the one of that name?"""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _compress(path: Path, stop: threading.Event) -> None:
    """The file as `.gz`, whole or not at all; given up when told to stop, and done at the next start."""
    part = path.with_name(path.name + ".gz.part")
    try:
        with path.open("rb") as plain, part.open("wb") as raw:
            with gzip.GzipFile(filename=path.name, mode="wb", fileobj=raw, compresslevel=6) as packed:
                while data := plain.read(1 << 20):
                    if stop.is_set():
                        raise InterruptedError(EINTR, "stopped")
                    packed.write(data)
            raw.flush()
            os.fchmod(raw.fileno(), FILE_MODE)
            os.fsync(raw.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.rename(path.with_name(path.name + ".gz"))
    _sync_directory(path.parent)
    path.unlink()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Line(msgspec.Struct):
    created_at: datetime


def _time_of(line: bytes) -> datetime | None:
    try:
        return msgspec.json.decode(line, type=_Line).created_at
    except msgspec.DecodeError:
        return None
