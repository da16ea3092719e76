"""A main process to test: the real one, as a process, with the stand-in worker of `stand_in`."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mailerd import daemon
from mailerd.config.documents import parse_documents, read_documents

TOP = Path(__file__).parents[2]


class RunningDaemon:
    """Started by `start`; `lines` is what it has said on standard output."""

    def __init__(self, directory: Path, *, workers: int = 2, manner: str = "serve", more: str = "") -> None:
        self.data_dir = directory / "data"
        self.file = directory / "mailerd.yaml"
        self.file.write_text(
            f"data_dir: {self.data_dir}\nworkers: {workers}\nhttp: null\n"
            "database: {shared_buffers: 32MiB, max_wal_size: 256MiB}\n"
            "log: {format: json}\n"
            + (more or "listeners: [{bind: '127.0.0.1:0', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}]\n")
        )
        self.manner = manner
        self.lines: list[str] = []
        self.process: asyncio.subprocess.Process

    async def start(
        self, *, environ: Mapping[str, str] | None = None, handed_over: socket.socket | None = None
    ) -> None:
        """Launch it; `handed_over` becomes descriptor 3, the way systemd does it."""
        command = [sys.executable, "-m", "tests.support.daemon", str(self.file), self.manner]
        if handed_over is not None:
            launch = (
                "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
                "os.execv(sys.argv[2], sys.argv[2:])"
            )
            command = [sys.executable, "-c", launch, str(handed_over.fileno()), *command]
        self.process = await asyncio.create_subprocess_exec(
            *command,
            cwd=TOP,
            env=dict(os.environ) | dict(environ or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[handed_over.fileno()] if handed_over else [],
        )

    async def ready(self) -> str:
        """The readiness line; an assertion error with all that was said when it ends instead."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())
            if self.lines[-1].startswith("mailerd ready"):
                return self.lines[-1]
        _, error = await self.process.communicate()
        raise AssertionError(f"not ready: {self.lines} {error.decode()}")

    async def greeting(self) -> dict[str, int]:
        """What a worker says to a connection: its pid, the index of the listener, its number, its `delivery.port`."""
        match = re.search(r"smtp=127\.0\.0\.1:(\d+)", self.lines[-1])
        assert match is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", int(match[1]))
        line = (await reader.readline()).decode()
        writer.close()
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}

    async def ended(self) -> tuple[int, str]:
        """Exit status and standard error."""
        _, error = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, error.decode()

    async def stop(self) -> tuple[int, str]:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()


if __name__ == "__main__":
    file, manner = sys.argv[1:]
    worker = (sys.executable, "-m", "tests.support.stand_in", manner)
    documents = read_documents(file, {})
    config, _ = parse_documents(documents, {})
    sys.exit(asyncio.run(daemon.run(config, documents, worker_command=worker)))
