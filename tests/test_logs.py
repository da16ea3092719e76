"""Log lines: JSON as README documents it, several in one write, none of them late; and a log that cannot be written."""

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from typing import BinaryIO, cast

import pytest

from mailerd.logs import AT_ONCE, HELD, Lines, Output


class Writes(io.BytesIO):
    """A file that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[bytes] = []

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.each.append(bytes(data))
        return super().write(data)


async def test_lines_wait_for_others_and_are_written_together_within_a_moment():
    file = Writes()
    lines = Lines(Output(file))
    lines.write(b"one")
    lines.write(b"two")
    assert file.each == []

    await asyncio.sleep(2 * HELD)
    assert file.each == [b"one\ntwo\n"]


async def test_what_is_urgent_is_written_at_once_behind_what_came_before():
    file = Writes()
    lines = Lines(Output(file))
    lines.write(b"one")
    lines.write(b"two", urgent=True)

    assert file.each == [b"one\ntwo\n"]


def test_without_a_loop_nothing_waits():
    file = Writes()
    lines = Lines(Output(file))
    lines.write(b"one")

    assert file.each == [b"one\n"]


async def test_a_loop_that_does_not_come_round_holds_no_line_up_for_long():
    file = Writes()
    lines = Lines(Output(file))
    lines.write(b"one")
    time.sleep(2 * HELD)  # the loop is kept from running
    lines.write(b"two")

    assert file.each == [b"one\ntwo\n"]


async def test_no_write_is_larger_than_a_pipe_takes_whole_but_for_a_single_line():
    file = Writes()
    lines = Lines(Output(file))
    for _ in range(100):
        lines.write(b"x" * 300)
    lines.write(b"y" * 2 * AT_ONCE)
    lines.flush()

    assert all(len(write) <= AT_ONCE for write in file.each[:-1])
    assert file.each[-1] == b"y" * 2 * AT_ONCE + b"\n"
    assert file.getvalue().count(b"\n") == 101


LOGGING = """
import asyncio, os, signal
import structlog
from mailerd import logs
from mailerd.config import Log

async def main():
    log = structlog.get_logger()
    logs.set_up(Log(format="json"))
    log.debug("not.said")
    log.info("recipient.delivered", to="zoë@example.com", ms=3)
    try:
        {}["key"]
    except KeyError:
        log.exception("second.crashed")
    log.info("message.accepted", error=OSError("x"), method="GET")
    log.info("odd.letters", path="a\\udcff\\"ü", error=OSError("\\udc80"), more={1: ["\\udc81"]})
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_killed_process_has_written_what_it_said_a_tenth_of_a_second_before():
    process = subprocess.run([sys.executable, "-c", LOGGING], stderr=subprocess.PIPE, timeout=60, check=False)
    first, second, third, fourth = map(json.loads, process.stderr.splitlines())

    assert list(first) == ["to", "ms", "event", "level", "timestamp"]
    assert (first["to"], first["event"], first["level"]) == ("zoë@example.com", "recipient.delivered", "info")
    assert (second["event"], second["level"]) == ("second.crashed", "error")
    assert second["exception"].endswith("KeyError: 'key'")
    assert (third["error"], third["method"]) == ("x", "GET")
    assert (fourth["path"], fourth["error"], fourth["more"]) == ('a\\udcff"ü', "\\udc80", {"1": ["\\udc81"]})
    assert list(fourth)[3:] == ["event", "level", "timestamp"]


PROGRAM = """
import sys, structlog
from mailerd import logs
from mailerd.config import Log
logs.set_up(Log(format=sys.argv[1]))
structlog.get_logger().info("mail.happened", to="ann@example.org")
print("goes on")
"""


class Disk(io.RawIOBase):
    """Takes `room` bytes."""

    def __init__(self) -> None:
        self.room = 1_000
        self.content = b""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        taken = data[: self.room]
        if not taken:
            raise OSError(28, "No space left on device")
        self.room -= len(taken)
        self.content += taken
        return len(taken)


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_line_that_finds_no_room_stops_nothing(format_: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM, format_], stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def test_a_line_that_nobody_reads_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", PROGRAM, "json"], stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def test_when_there_is_room_again_lines_are_whole_and_it_is_told_how_many_are_missing() -> None:
    disk = Disk()
    lines = Output(cast(BinaryIO, disk))
    lines.write(b'{"n":1}\n')
    disk.room = 3
    for number in (2, 3, 4):
        lines.write(b'{"n":%d}\n' % number)
    disk.room = 1_000
    for number in (5, 6):
        lines.write(b'{"n":%d}\n' % number)
    first, cut, told, *rest = disk.content.splitlines()
    assert (first, cut, rest) == (b'{"n":1}', b'{"n', [b'{"n":5}', b'{"n":6}'])
    assert (json.loads(told)["event"], json.loads(told)["lines"]) == ("log.lines_lost", 3)


def test_of_lines_written_together_those_that_found_no_room_are_counted() -> None:
    disk = Disk()
    output = Output(cast(BinaryIO, disk))
    disk.room = 12
    output.write(b'{"n":1}\n{"n":2}\n{"n":3}\n')
    disk.room = 1_000
    output.write(b'{"n":4}\n')
    first, cut, told, last = disk.content.splitlines()
    assert (first, cut, last) == (b'{"n":1}', b'{"n"', b'{"n":4}')
    assert json.loads(told)["lines"] == 2
