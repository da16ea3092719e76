"""A worker for tests of the main process: a real process that speaks the real control protocol and greets over SMTP.

What it does otherwise is the first word of the command line: `serve`, `die` (at once), `stubborn` (ignores SIGTERM),
`mute` (says nothing at all).
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from mailerd import db
from mailerd.assignment import Control, read_assignment
from mailerd.queue.workers import WorkerStore


async def serve(manner: str) -> None:
    assignment = read_assignment()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set if manner == "serve" else int)
    if manner == "mute":
        await stop.wait()
    control = Control(assignment.control)
    async with control.held():
        pool = await db.connect_pool(assignment.database_url, min=1, max=1)
        number = await WorkerStore(pool).register(assignment.node, os.getpid())
        for descriptor, index in assignment.listeners:
            await asyncio.start_server(greeter(index, number), sock=socket.socket(fileno=descriptor))
        control.ready()
        await stop.wait()
        await pool.close()
        (Path(assignment.data_dir) / f"ended-{os.getpid()}").touch()


def greeter(index: int, number: int):  # type: ignore[no-untyped-def]
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 pid={os.getpid()} listener={index} number={number}\r\n".encode())
        writer.close()

    return greet


if __name__ == "__main__":
    if sys.argv[1] == "die":
        sys.exit(3)
    asyncio.run(serve(sys.argv[1]))
