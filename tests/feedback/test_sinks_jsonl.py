"""JSONL files: every line whole and there, whatever happens to process, disk and clock."""

import asyncio
import gzip
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailerd.config import Duration, FilePath, Sink, Size
from mailerd.feedback.sinks import SinkError
from mailerd.feedback.sinks.base import encoded
from mailerd.feedback.sinks.jsonl import JsonlSink
from tests.feedback.outside_events import events_of, told

TOP = Path(__file__).parents[2]
WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from mailerd.config import FilePath, Sink
from mailerd.feedback.sinks.jsonl import JsonlSink
from tests.feedback.outside_events import told
async def main():
    sink = JsonlSink("log", Sink(kind="jsonl", directory=FilePath(sys.argv[1])), clock=lambda: datetime.now(UTC))
    for number in range(1, 1 << 40):
        page = [told(number, n, padding=500) for n in range(50)]
        await sink.write(page)
        print(page[-1].id, flush=True)
asyncio.run(main())
"""


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 8, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[..., JsonlSink]]:
    made: list[JsonlSink] = []

    def make(**changes: Any) -> JsonlSink:
        directory = FilePath(str(tmp_path / "sink"))
        made.append(JsonlSink("log", Sink(kind="jsonl", **({"directory": directory} | changes)), clock=clock))
        return made[-1]

    yield make
    for sink in made:
        await sink.close()


def ids(path: Path) -> list[str]:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    assert not data or data.endswith(b"\n")
    return [msgspec.json.decode(line)["id"] for line in data.splitlines()]


def all_ids(directory: Path) -> list[str]:
    """Of all files, the full ones first."""
    full = sorted(path for path in directory.iterdir() if path.name != "log.jsonl")
    return [id_ for path in (*full, directory / "log.jsonl") for id_ in ids(path)]


async def test_each_event_is_a_line(make, tmp_path):
    events = events_of(3)
    await make().write(events)
    assert (tmp_path / "sink" / "log.jsonl").read_bytes() == b"".join(encoded(event) + b"\n" for event in events)
    assert (tmp_path / "sink" / "log.jsonl").stat().st_mode & 0o007 == 0


async def test_a_large_file_is_turned_over_and_compressed(make, tmp_path):
    sink = make(rotate_size=Size(2_000))
    events = [told(number) for number in range(40)]
    for event in events:
        await sink.write([event])
        await sink.tidied()
    names = sorted(path.name for path in (tmp_path / "sink").iterdir())
    assert names[-1] == "log.jsonl"
    assert len(names) > 3
    assert all(name.startswith("log-20261122T08") and name.endswith(".jsonl.gz") for name in names[:-1])
    assert all_ids(tmp_path / "sink") == [event.id for event in events]


async def test_an_old_file_is_turned_over_also_after_a_restart_and_forgotten_in_time(make, tmp_path, clock):
    sink = make(keep=Duration(10 * 86_400))
    await sink.write([told(1)])
    await sink.close()
    clock.now += timedelta(days=1, minutes=1)
    sink = make(keep=Duration(10 * 86_400))
    await sink.write([told(2)])
    await sink.tidied()
    assert len(list((tmp_path / "sink").iterdir())) == 2
    clock.now += timedelta(days=9)
    await sink.write([told(3)])
    await sink.tidied()
    assert len(list((tmp_path / "sink").iterdir())) == 3
    clock.now += timedelta(days=2)
    await sink.write([told(4)])
    await sink.tidied()
    assert next(path.name[:12] for path in sorted((tmp_path / "sink").iterdir())) == "log-20261202"


async def test_files_of_others_in_the_directory_are_left_alone(make, tmp_path, clock):
    directory = tmp_path / "sink"
    directory.mkdir()
    others = ["log-other-20200101T000000000000Z.jsonl", "logs.jsonl", "log-x.jsonl.gz", "other.part"]
    for name in others:
        (directory / name).write_text("mine")
    await make(keep=Duration(1)).write([told(1)])
    assert sorted(path.name for path in directory.iterdir()) == sorted([*others, "log.jsonl"])


@pytest.mark.parametrize("rest", [b'{"id":"evt_', b"x" * 100, b"\0" * 4096, b'{"id":1}'])
async def test_a_line_that_was_cut_off_is_taken_away(make, tmp_path, rest):
    first, second = told(1), told(2)
    sink = make()
    await sink.write([first])
    await sink.close()
    with (tmp_path / "sink" / "log.jsonl").open("ab") as file:
        file.write(rest)
    await make().write([second])
    assert all_ids(tmp_path / "sink") == [first.id, second.id]


async def test_what_was_written_but_not_noted_is_not_written_twice(make, tmp_path):
    page = events_of(5)
    sink = make()
    await sink.write(page[:10])
    await sink.close()
    sink = make()
    await sink.write(page)
    await sink.write([told(99)])
    assert all_ids(tmp_path / "sink")[:-1] == [event.id for event in page]


async def test_after_kill_9_all_that_was_confirmed_is_there_and_every_line_is_whole(make, tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "sink")], cwd=TOP, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    confirmed = [writer.stdout.readline().strip() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    confirmed += writer.communicate()[0].split()
    last = told(1)
    await make().write([last])
    found = all_ids(tmp_path / "sink")
    assert found[-1] == last.id
    assert set(confirmed) <= set(found)
    assert found[:-1] == sorted(set(found[:-1]))


async def test_a_full_disk_is_waited_out_and_leaves_no_half_line(make, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    first, page = told(1), [told(number, padding=300) for number in range(2, 30)]
    sink = make()
    await sink.write([first])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))  # what ENOSPC is on a disk, EFBIG is here
        for _ in range(2):
            with pytest.raises(SinkError, match=r"sinks\.log: .*log\.jsonl: File too large"):
                await sink.write(page)
        assert ids(tmp_path / "sink" / "log.jsonl") == [first.id]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    await sink.write(page)
    assert all_ids(tmp_path / "sink") == [first.id, *(event.id for event in page)]


async def test_a_compression_that_was_cut_off_is_done_again(make, tmp_path):
    directory = tmp_path / "sink"
    sink = make()
    await sink.write([told(1)])
    await sink.close()
    full = directory / "log-20261121T000000000000Z.jsonl"
    (directory / "log.jsonl").rename(full)
    (directory / (full.name + ".gz.part")).write_bytes(b"half of it")
    again = make()
    await again.write([told(2)])
    await again.tidied()
    assert sorted(path.name for path in directory.iterdir()) == [full.name + ".gz", "log.jsonl"]
    assert len(all_ids(directory)) == 2


async def test_two_processes_do_not_write_into_one_file(make):
    first = make()
    await first.write([told(1)])
    with pytest.raises(SinkError, match="another process writes to"):
        await make().write([told(2)])
    await first.close()


async def test_a_directory_that_cannot_be_is_named(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"sinks\.log: .*file"):
        await make(directory=FilePath(str(tmp_path / "file"))).write([told(1)])


async def test_closing_while_a_page_is_written_leaves_it_whole(make, tmp_path):
    sink = make()
    page = [told(number, padding=2_000) for number in range(2_000)]
    writing = asyncio.create_task(sink.write(page))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await sink.close()
    found = all_ids(tmp_path / "sink")
    assert found == [event.id for event in page]
    assert os.path.getsize(tmp_path / "sink" / "log.jsonl") > 4_000_000


@pytest.mark.parametrize("away", ["file", "directory"])
async def test_what_is_taken_away_under_the_sink_is_made_anew(make, tmp_path, away):
    directory = tmp_path / "sink"
    sink = make(rotate_size=Size(2_000))
    await sink.write([told(1)])
    if away == "file":
        (directory / "log.jsonl").unlink()
    else:
        directory.rename(tmp_path / "moved")
    events = events_of(20)
    for event in events:
        await sink.write([event])
    await sink.tidied()
    assert all_ids(directory) == [event.id for event in events]


async def test_zeros_that_a_crash_left_are_taken_away_however_many(make, tmp_path):
    first, (one, two) = make(), events_of(2)[:2]
    await first.write([one])
    await first.close()
    with (tmp_path / "sink" / "log.jsonl").open("ab") as file:
        file.write(bytes(9 << 20))
    await make().write([two])
    assert ids(tmp_path / "sink" / "log.jsonl") == [one.id, two.id]


async def test_closing_does_not_wait_for_a_large_file_to_be_compressed(make, tmp_path):
    directory = tmp_path / "sink"
    directory.mkdir()
    full = directory / "log-20261121T000000000000Z.jsonl"
    full.write_bytes(os.urandom(1 << 20) * 400)
    sink = make()
    await sink.write([told(1)])
    async with asyncio.timeout(60):
        await sink.close()
    assert sorted(path.name for path in directory.iterdir()) == [full.name, "log.jsonl"]
