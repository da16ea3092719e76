"""Waiting for processes and ending them, children of ours or not; and what this one holds of memory."""

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MUCH = 8_000_000  # bytes
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Adopted:
    """A child of ours that somebody else has started, as far as we need it the same as `subprocess.Popen`.

    Raises ChildProcessError when it is not a child of ours.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.poll()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        status = self._reap(0)
        assert status is not None
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # else its pid may be another's by now
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


Process = subprocess.Popen[bytes] | Adopted


@contextmanager
def adopting() -> Iterator[None]:
    """While the block runs, children become ours when a child of ours ends that had started them.

    Raises OSError where that cannot be had.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def give_back() -> None:
    """Return to the system the memory that was freed: glibc keeps it, in case it is needed again. Takes milliseconds.

    Does nothing with another libc.
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class Ebb:
    """When it is worth to `give_back`: much was held, and most of it is not any more."""

    def __init__(self) -> None:
        self._highest = 0

    def seen(self, held: int) -> bool:
        """So many bytes are held now. Is it time? Then what is held from now on counts."""
        self._highest = max(self._highest, held)
        if self._highest < MUCH or held > self._highest / 4:
            return False
        self._highest = held
        return True


async def ended(process: Process) -> int:
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
