"""A worker for tests of the main process: a real process that speaks the real control protocol and greets over SMTP.

What it does otherwise is the first word of the command line: `serve`, `die` (at once), `stubborn` (ignores SIGTERM),
`mute` (says nothing at all), `unwilling` (refuses every reload).
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from mailerd import db
from mailerd.assignment import Assignment, Control, read_assignment
from mailerd.config.documents import Documents, parse_reloaded
from mailerd.errors import ConfigError, ConfigProblem
from mailerd.queue.workers import WorkerStore


async def serve(manner: str, assignment: Assignment) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, int if manner == "stubborn" else stop.set)
    if manner == "mute":
        await stop.wait()
    control = Control(assignment.control)
    current = Current(assignment, manner)
    async with control.held():
        pool = await db.connect_pool(assignment.database_url, min=1, max=1)
        number = await WorkerStore(pool).register(assignment.node, os.getpid())
        for descriptor, index in assignment.listeners:
            await asyncio.start_server(greeter(index, number, current), sock=socket.socket(fileno=descriptor))
        control.ready()
        orders = asyncio.create_task(control.follow(current.reload))
        await stop.wait()
        orders.cancel()
        await pool.close()
        (Path(assignment.data_dir) / f"ended-{os.getpid()}").touch()


class Current:
    """What is in force; `port` shows it."""

    def __init__(self, assignment: Assignment, manner: str) -> None:
        self._started = assignment.started
        self._manner = manner
        self._take(assignment.documents)

    async def reload(self, documents: Documents) -> None:
        if self._manner == "unwilling":
            raise ConfigError([ConfigProblem(documents.path, 1, "delivery.port", "does not please this worker")])
        self._take(documents)

    def _take(self, documents: Documents) -> None:
        self.port = parse_reloaded(self._started, documents, {}).config.delivery.port


def greeter(index: int, number: int, current: Current):  # type: ignore[no-untyped-def]
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 pid={os.getpid()} listener={index} number={number} port={current.port}\r\n".encode())
        writer.close()

    return greet


if __name__ == "__main__":
    if sys.argv[1] == "die":
        sys.exit(3)
    asyncio.run(serve(sys.argv[1], read_assignment()))
