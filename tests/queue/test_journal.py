"""The journal of recipients whose final reply is not recorded."""

import multiprocessing
import os
import signal
from pathlib import Path

from mailerd.queue import journal
from mailerd.queue.journal import HEADER, Journal


def test_what_was_opened_and_not_closed_is_read_back(tmp_path: Path) -> None:
    book = Journal(tmp_path / "j" / "1")
    book.open(10, 1)
    book.open(10, 2)
    book.open(11, 1)
    book.close(10, 2)
    book.close(99, 1)
    assert sorted(journal.read(tmp_path / "j" / "1") or []) == [(10, 1), (11, 1)]
    book.remove()
    assert journal.read(tmp_path / "j" / "1") is None


def test_a_full_journal_tells_nothing(tmp_path: Path) -> None:
    book = Journal(tmp_path / "1", slots=2)
    for n in range(3):
        book.open(1, n)
    assert book.read() is None
    book.close(1, 0)
    assert book.read() == [(1, 1)]


def test_a_journal_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    book = Journal(tmp_path / "1")
    book.open(1, 1)
    content = bytearray((tmp_path / "1").read_bytes())
    content[:HEADER] = b"another boot".ljust(HEADER, b"\0")
    (tmp_path / "1").write_bytes(content)
    assert journal.read(tmp_path / "1") is None


def test_a_cut_off_file_is_not_believed(tmp_path: Path) -> None:
    Journal(tmp_path / "1").open(1, 1)
    (tmp_path / "1").write_bytes((tmp_path / "1").read_bytes()[:-5])
    assert journal.read(tmp_path / "1") is None


def _open_and_wait(path: Path) -> None:
    Journal(path).open(5, 6)
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_survives_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_open_and_wait, args=(tmp_path / "1",))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert journal.read(tmp_path / "1") == [(5, 6)]
