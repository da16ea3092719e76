"""Files of hits: what is written is there, whatever the disk does; what nobody holds may be taken."""

import errno
import itertools
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mailerd import metrics
from mailerd.campaigns.tracking import files
from mailerd.campaigns.tracking.files import HitLog, left_behind, milliseconds_of, taken, too_many

RECORD = b"r" * 100


@pytest.fixture
def log(directory: Path) -> HitLog:
    numbers = itertools.count(1_800_000_000_000)
    return HitLog(directory, "node", milliseconds=lambda: next(numbers))


def content(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in left_behind(directory))


def test_what_was_written_is_there_at_once_and_only_for_us(log: HitLog, directory: Path) -> None:
    log.write([b"one", b"two"])
    log.write([b"three"])

    (path,) = left_behind(directory)
    assert path.read_bytes() == b"onetwothree"
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert milliseconds_of(path.stem) == 1_800_000_000_000
    assert log.file is not None
    assert log.file.name == path.stem


def test_a_file_is_held_until_another_is_begun(log: HitLog, directory: Path) -> None:
    log.write([RECORD])
    (path,) = left_behind(directory)
    with taken(path) as file:
        assert file is None
    log.rotate()
    with taken(path) as file, taken(path) as second:
        assert file is not None
        assert second is None
        assert file.read(0, 1_000) == RECORD
    log.write([RECORD])
    assert len(left_behind(directory)) == 2


def test_a_file_that_was_removed_before_it_was_locked_is_not_taken(log: HitLog, directory: Path) -> None:
    log.write([RECORD])
    log.rotate()
    (path,) = left_behind(directory)
    with taken(path) as file:
        assert file is not None
        path.unlink()
        descriptor = os.dup(file.descriptor)
    assert not files._lock(descriptor, path)
    os.close(descriptor)


def test_another_file_follows_when_one_is_full(log: HitLog, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROTATE", 250)
    for _ in range(5):
        log.write([RECORD])

    assert [path.stat().st_size for path in left_behind(directory)] == [200, 200, 100]
    assert [path.name for path in too_many(directory, 300)] == [left_behind(directory)[0].name]
    assert too_many(directory, 500) == []


def test_what_was_never_begun_is_removed(log: HitLog, directory: Path) -> None:
    directory.mkdir()
    (directory / "node.1.x.new").touch()

    assert left_behind(directory) == []
    assert list(directory.iterdir()) == []


def test_a_full_disk_holds_nobody_up_and_no_part_of_a_record_remains(
    log: HitLog, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write([RECORD])
    real, room = os.write, [30]

    def write(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: room.pop()])

    with monkeypatch.context() as full, capture_logs() as logs:
        full.setattr(os, "write", write)
        log.write([b"a" * 50])
        log.write([b"b" * 50])
        log.retry()
    assert [entry["event"] for entry in logs] == ["hits.not_written"]
    assert content(directory) == RECORD
    log.retry()
    log.write([b"c"])
    assert content(directory) == RECORD + b"a" * 50 + b"b" * 50 + b"c"


def test_what_waits_for_the_disk_is_bounded_and_what_is_lost_is_counted(
    log: HitLog, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_UNWRITTEN", 250)
    before = lost("disk")
    directory.parent.joinpath(files.DIRECTORY).write_text("a file where the directory should be")
    log.write([RECORD] * 5)
    directory.unlink()
    log.retry()

    assert content(directory) == RECORD * 2
    assert lost("disk") - before == 3


def lost(why: str) -> float:
    line = f'mailerd_hits_lost_total{{why="{why}"}} '.encode()
    return sum(float(each.rpartition(b" ")[2]) for each in metrics.render().splitlines() if each.startswith(line))
