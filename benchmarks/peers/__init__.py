"""The systems under test: each started and stopped by the driver, and nothing of it outside the work directory."""

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cgroup import Accounting, accounting

START = 60.0  # seconds
LAST_LINES = 3  # of a log, where it is told why something did not start


class UnavailableError(Exception):
    """A peer that cannot be had on this machine; its text says why."""


@dataclass(frozen=True)
class Tls:
    """For STARTTLS on both sides: PEM files of a certificate and its key, and the port of the sink that offers it.

    What is for tls.example goes to that port, and all else to the other one.
    """

    certificate: Path
    key: Path
    sink_port: int


class Peer:
    """One system: `directory` holds all of it, `group` counts it, all but what only signed mail needs."""

    name: str
    no_signature = ""  # why not, where it does not sign by DKIM
    no_tls = ""  # why not, where it cannot be measured with STARTTLS
    at_250 = ""  # what of a message is on disk when it is accepted, in words: what is counted stands beside them

    @classmethod
    def prepare(cls) -> None:
        """Install what is not there yet, or raise UnavailableError."""

    def version(self) -> str:
        """Of the programs that are measured."""
        return ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.group: Accounting = accounting(self.name)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []  # of what was started

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        """Take mail on `port()` and relay all of it to the sink; sign it when asked, with this RSA key.

        With `tls` the port offers STARTTLS. No certificate is verified.
        """
        raise NotImplementedError

    def port(self, *, signed: bool) -> int:
        """Where to send what is to be signed, or not."""
        raise NotImplementedError

    def parts(self, *, signed: bool) -> list[Accounting]:
        """What takes part in mail that is to be signed, or not."""
        return [self.group]

    def stop(self) -> None:
        """End it in order, then whatever is left: also when only a part of it was started."""
        try:
            for process in reversed(self._processes):
                process.terminate()
                process.wait(60)
        finally:
            self._processes.clear()
            self.group.close()

    def _run(self, words: Sequence[str | Path], log: str, group: Accounting | None = None) -> "subprocess.Popen[bytes]":
        """Start a process of the system; what it says goes to the file `log`."""
        group = group or self.group
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(
                group.command([str(word) for word in words]), stdout=output, stderr=output, process_group=0
            )
        group.adopt(process.pid)
        self._processes.append(process)
        self._logs.append(self.directory / log)
        return process

    def _wait_for_port(self, port: int) -> None:
        """Raises RuntimeError, with what the system said, when nobody listens there in time, or its process ended."""
        deadline = time.monotonic() + START
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError as error:
                if any(process.poll() for process in self._processes):
                    raise RuntimeError(f"it ended at once{self._said()}") from error
                if time.monotonic() > deadline:
                    raise RuntimeError(f"nothing listens on port {port} after {START:g} s{self._said()}") from error
                time.sleep(0.05)

    def _said(self) -> str:
        """The last lines of its logs, behind a colon; empty: it said nothing."""
        logs = [log.read_text(errors="replace").split("\n") for log in self._logs if log.exists()]
        lines = [line.strip() for log in logs for line in [line for line in log if line.strip()][-LAST_LINES:]]
        return f": {'; '.join(lines)}" if lines else ""

    def _own(self, file: Path, user: str | None = None, mode: int = 0o600) -> Path:
        """A copy of a key below `directory`, for programs that want it to be theirs alone."""
        copy = self.directory / file.name
        shutil.copy(file, copy)
        copy.chmod(mode)
        if user is not None:
            shutil.chown(copy, user)
        return copy


def enterable(directory: Path) -> bool:
    return _closed(directory) is None


def check_open(directory: Path) -> None:
    """Raise RuntimeError when others than its owner cannot get there: for systems that run as users of their own."""
    if closed := _closed(directory):
        text = f"its users cannot enter {closed}: `chmod o+x` it, or give a --work that everybody can enter"
        raise RuntimeError(text)


def _closed(directory: Path) -> Path | None:
    whole = directory.resolve()
    return next((each for each in (whole, *whole.parents) if not each.stat().st_mode & 0o001), None)


def free_port() -> int:
    """A port that nobody has now; for programs that cannot choose their own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port
