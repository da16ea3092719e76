"""The whole of mailerd as a process: `python -m mailerd run`, its database, its workers, its sandbox, real ports.

    with LiveDaemon(tmp_path) as daemon:
        smtplib.SMTP(*daemon.smtp).sendmail("me@here.example", ["ann@there.example"], "Subject: hi\\r\\n\\r\\nhi\\r\\n")

All mail goes to the built-in sandbox, whose replies follow the address. Ports are the system's choice.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TOP = Path(__file__).parents[2]
STOP_PATIENCE = 40.0  # seconds

CONFIG = """
hostname: mail.test
data_dir: {data_dir}
workers: 1
database: {{shared_buffers: 32MiB, max_wal_size: 256MiB}}
listeners:
  - {{bind: "127.0.0.1:0", starttls: off, auth: optional, trusted: [127.0.0.0/8]}}
http: {{bind: "127.0.0.1:0"}}
routes:
  - {{match: {{domain: "*"}}, hosts: ["127.0.0.1:{sandbox}"], tls: none}}
sandbox: {{bind: "127.0.0.1:{sandbox}"}}
log: {{format: json}}
first_key: true
"""


@dataclass(frozen=True)
class Finished:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


class LiveDaemon:
    """`config` is a whole configuration; {data_dir} and {sandbox}, a free port, are filled in.

    `smtp`, `http` and `sandbox` are addresses, `key` the API key of the first start, `lines` what it said on standard
    output; what it logged is in `log`.
    """

    def __init__(self, directory: Path, *, config: str = CONFIG, environ: Mapping[str, str] | None = None) -> None:
        self.data_dir = directory / "data"
        self.file = directory / "mailerd.yaml"
        self.log_file = directory / "log"
        self.sandbox = ("127.0.0.1", free_port())
        self.file.write_text(config.format(data_dir=self.data_dir, sandbox=self.sandbox[1]))
        self.environ = dict(os.environ) | {"MAILERD_CONFIG": str(self.file)} | dict(environ or {})
        self.lines: list[str] = []
        self.process: subprocess.Popen[str]

    def start(self) -> None:
        """Launch it, and wait until it says that it is ready; an assertion error with its log when it ends instead."""
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailerd", "run"],
                cwd=TOP,
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("mailerd ready"):
                return
        self.stop()
        raise AssertionError(f"not ready: {self.lines} {self.log}")

    def stop(self) -> int:
        """End it in order; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def kill(self) -> None:
        """As a crash of the main process."""
        self.process.kill()
        self.process.communicate()

    @property
    def smtp(self) -> tuple[str, int]:
        return self._address("smtp")

    @property
    def http(self) -> tuple[str, int]:
        return self._address("http")

    @property
    def key(self) -> str:
        return (self.data_dir / "api-key").read_text().strip()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def command(self, *arguments: str, given: str = "") -> Finished:
        """Run another command of mailerd with the same configuration; `given` on its standard input."""
        return command(*arguments, environ=self.environ, given=given)

    def _address(self, name: str) -> tuple[str, int]:
        match = re.search(rf"{name}=([\d.]+):(\d+)", self.lines[-1])
        assert match is not None, self.lines
        return match[1], int(match[2])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def command(*arguments: str, environ: Mapping[str, str] | None = None, given: str = "", cwd: Path = TOP) -> Finished:
    """Run `python -m mailerd` with these arguments to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "mailerd", *arguments],
        cwd=cwd,
        env=dict(environ if environ is not None else os.environ),
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    """A port that nobody listened on a moment ago, for what must be known before the start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
