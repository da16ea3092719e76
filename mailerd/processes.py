"""Waiting for processes and ending them, children of ours or not; and what this one holds of memory."""

import asyncio
import ctypes
import os
import signal
import subprocess
from contextlib import suppress


def give_back() -> None:
    """Return to the system the memory that was freed: glibc keeps it, in case it is needed again. Takes milliseconds.

    Does nothing with another libc.
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


async def ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait until a child of ours has ended; its exit status, negative for a signal."""
    if process.poll() is None:  # else its pid may be another's by now
        await _gone(process.pid)
    return process.wait()


async def end(pid: int, *steps: tuple[signal.Signals, float]) -> bool:
    """Send one signal after the other, each with its seconds to act, until the process is gone. False: it is not."""
    for number, seconds in steps:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _gone(pid)
                return True
    return False


async def _gone(pid: int) -> None:
    """Wait until no process runs under `pid`; a child of ours may still be there to be reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def readable() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
