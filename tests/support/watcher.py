"""A process that watches one worker which never falls silent, as the main process does.

It says `started`, then `watching` a while after every line that it is given; in between `died` if the worker does.
"""

import asyncio
import sys

from mailerd import logs
from mailerd.assignment import Assignment
from mailerd.config import Log
from mailerd.config.documents import Documents
from mailerd.daemon.workers import Workers

EMPTY = Documents("", "", {})
CHATTY = """
import json, os, sys, time
control = json.load(sys.stdin)["control"]
word = "ready"
while True:
    os.write(control, f"{word}\\n".encode())
    word = "ping"
    time.sleep(0.05)
"""


async def watch(silence: float) -> None:
    async def on_death(pid: int) -> None:
        print(f"died {pid}", flush=True)

    assignment = Assignment(EMPTY, EMPTY, "", "", "", [], [], -1)
    workers = Workers(1, (sys.executable, "-c", CHATTY), assignment, [], on_death, silence=silence)
    await workers.start()
    print("started", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        await asyncio.sleep(2 * silence)  # what it believes to have missed would have its effect by now
        print("watching", flush=True)
    await workers.stop(0.1, asyncio.Event())


if __name__ == "__main__":
    logs.set_up(Log())  # to standard error
    asyncio.run(watch(float(sys.argv[1])))
