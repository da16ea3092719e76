"""A log that cannot be written."""

import io
import json
import os
import subprocess
import sys
from typing import BinaryIO, cast

import pytest

from mailerd.logs import Lines

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
    lines = Lines(cast(BinaryIO, disk))
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
