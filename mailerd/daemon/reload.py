"""Taking on another configuration while running: by SIGHUP or `mailerd reload`, whole or not at all."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from mailerd import failpoints
from mailerd.clock import utc_now
from mailerd.config import Config
from mailerd.config.changes import changed
from mailerd.config.documents import Documents, InForce, parse_reloaded, read_documents
from mailerd.daemon.files import check_files
from mailerd.daemon.service import Service
from mailerd.errors import ConfigError, ConfigProblem

log = structlog.get_logger()

ASKING = 10.0  # seconds that a client has for its request, and to take the answer
ANSWERING = 180.0  # seconds until the client gives up; a worker that hangs is killed long before
SOCKET = "control"  # in the data directory, whose owner alone may ask


class Request(msgspec.Struct, frozen=True):
    """What a client sends, as one line of JSON: reload, if this is the file that the daemon runs; "": whichever."""

    reload: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of a reload. With `problems` it was refused, and nothing has changed."""

    file: str
    problems: list[ConfigProblem] = []
    changed: list[str] = []  # keys with new values and files with other contents, now in force
    restart: list[str] = []  # keys whose values in the file need a restart; the old ones stay in force
    workers: list[str] = []  # what those say that could not take it on: they go on with what they had
    other_file: bool = False  # another file was asked for than `file`: nothing was done


class Reloader:
    """Reads the files again, checks all of it, and only then tells the workers; one reload after the other.

    `config` is what is in force. `tell` has the workers work by the documents and returns what is wrong with it.
    """

    def __init__(
        self,
        started: Documents,
        config: Config,
        *,
        environ: Mapping[str, str],
        service: Service,
        tell: Callable[[Documents], Awaitable[list[str]]],
    ) -> None:
        self.config = config
        self.refused = ""  # of the last reload: when, and its first problem; empty when it went well
        self._started = started
        self._documents = started
        self._environ = environ
        self._service = service
        self._tell = tell
        self._one = asyncio.Lock()

    async def reload(self) -> Outcome:
        """Never raises for what is wrong with the files: that is in the outcome, in the log, and in `refused`."""
        async with self._one:
            self._service.reloading()
            try:
                return await self._reload()
            except Exception as error:  # such as no memory: the daemon goes on with what it has
                log.exception("reload.failed")
                problem = ConfigProblem(self._started.path, 0, "reload", f"failed: {type(error).__name__}, see the log")
                return self._refuse([problem])
            finally:
                self._service.ready()

    async def _reload(self) -> Outcome:
        try:
            documents, new = await asyncio.to_thread(self._read)
            if failpoints.ON:
                failpoints.reached("reload.read")
        except ConfigError as error:
            return self._refuse(error.problems)
        differences = changed(self.config, new.config) + _changed_files(self._documents, documents)
        self._documents, self.config, self.refused = documents, new.config, ""
        problems = await self._tell(documents)
        outcome = Outcome(documents.path, [], differences, new.postponed, problems)
        log.info("configuration.reloaded", changed=differences, restart=outcome.restart, workers=problems)
        if problems:
            self.refused = f"{_now()}: {problems[0]}"
        return outcome

    def _read(self) -> tuple[Documents, InForce]:
        """Everything that a worker will do with it, so that no worker meets a surprise."""
        documents = read_documents(self._started.path, self._environ)
        new = parse_reloaded(self._started, documents, self._environ)
        check_files(new.config, documents)
        return documents, new

    def _refuse(self, problems: list[ConfigProblem]) -> Outcome:
        log.error("reload.refused", problems=list(map(str, problems)))
        self.refused = f"{_now()}: {problems[0]}"
        return Outcome(self._started.path, problems)


def _changed_files(old: Documents, new: Documents) -> list[str]:
    """The names of the files with other contents, besides the configuration itself."""
    before, after = old.shaping | old.verdicts | old.keys, new.shaping | new.verdicts | new.keys
    return [name for name in before | after if before.get(name) != after.get(name)]


def _now() -> str:
    return utc_now().isoformat(timespec="seconds")


# -- the way from the command to the daemon


async def serve_requests(data_dir: Path, file: str, reload: Callable[[], Awaitable[Outcome]]) -> asyncio.Server:
    """Answer those who may use the data directory, until the server is closed. `file` is what the daemon runs."""

    async def carry_out(line: bytes) -> Outcome:
        running = _resolved(file)  # a link may lead elsewhere by now, for the client too
        asked = msgspec.json.decode(line, type=Request).reload
        return Outcome(running, other_file=True) if asked not in ("", running) else await reload()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ASKING):
                line = await reader.readline()
            if line:
                writer.write(msgspec.json.encode(await carry_out(line)))
                async with asyncio.timeout(ASKING):
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):
            log.warning("request.broken_off")
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, sock=_bound(data_dir))


def _resolved(file: Path | str) -> str:
    return str(Path(file).resolve())


def request_reload(data_dir: Path, file: Path | None = None) -> Outcome | None:
    """Ask the daemon that runs on `data_dir`; None when none is there, or it is still starting.

    With `file` only when it runs that one; else the outcome says `other_file`.

    Raises `PermissionError` when the caller may not ask, and `OSError` when the daemon ended before it answered.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ANSWERING)
        try:
            with _reachable(data_dir) as path:
                asking.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        asking.sendall(msgspec.json.encode(Request("" if file is None else _resolved(file))) + b"\n")
        answer = b""
        while data := asking.recv(65_536):
            answer += data
    if not answer:
        raise ConnectionResetError("mailerd ended before it answered")
    return msgspec.json.decode(answer, type=Outcome)


def _bound(data_dir: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    with _reachable(data_dir) as path:
        Path(path).unlink(missing_ok=True)  # of a main process that was killed: the lock of the directory is ours
        bound.bind(path)
    return bound


@contextmanager
def _reachable(data_dir: Path) -> Iterator[str]:
    """The name of the socket; not by its path, which may be longer than the 107 bytes that a socket's name may have."""
    directory = os.open(data_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)
