"""The disk fills up, and is emptied again."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.laboratory import Laboratory, Mailerd, kill, laboratory
from tests.faults.test_kills import assert_kept
from tests.support.ledger_mx import LedgerMx

SIZE = "192m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "mailerd-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_full_disk_is_451_to_clients_and_all_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    async with laboratory(tmp_path, data_dir=small_disk / "data") as lab:
        load = lab.load(smtp=8, http=2)
        load.start()
        await load.until_promised(100)
        workers = lab.daemon.workers()
        filler = small_disk / "filler"
        fill(filler)
        await refused(lab, load.promises.refused, 20)
        assert lab.daemon.process.returncode is None
        assert lab.daemon.workers() == workers

        filler.unlink()
        await load.until_promised(200)
        await load.stop()
        assert lab.daemon.workers() == workers
        assert {answer[:3] for answer in load.promises.refused.values()} <= {"451", "503"}
        assert_kept(await lab.verdict(load))


async def test_a_log_that_cannot_be_written_stops_no_mail_and_says_again_what_happens_when_it_can(
    tmp_path: Path, small_disk: Path
) -> None:
    async with LedgerMx(tmp_path) as mx:
        daemon = Mailerd(tmp_path, mx.port)
        daemon.log = small_disk / "daemon.log"
        await daemon.start()
        try:
            lab = Laboratory(tmp_path, mx, daemon)
            fill(small_disk / "filler")
            load = lab.load(smtp=4, http=1)
            load.start()
            await load.until_promised(100)
            size = daemon.log.stat().st_size
            kill(daemon.workers()[0])
            await load.until_promised(100)
            assert daemon.log.stat().st_size - size < 8_192  # it was full indeed
            (small_disk / "filler").unlink()
            await load.until_promised(100)
            await load.stop()
            comparison = await lab.verdict(load)
            assert_kept(comparison)
            assert not load.promises.refused
            assert daemon.process.returncode is None
            assert daemon.log.stat().st_size > size + 8_192
        finally:
            await daemon.end()


def fill(file: Path) -> None:
    """Take all the room there is."""
    with file.open("wb", buffering=0) as taken:
        for size in (1_000_000, 4_096):
            try:
                while taken.write(b"\0" * size):
                    pass
            except OSError:
                continue


async def refused(lab: Laboratory, answers: dict[str, str], count: int) -> None:
    """Wait until that many more recipients were refused; the room that was given up meanwhile is taken again."""
    wanted = len(answers) + count
    async with asyncio.timeout(60):
        while len(answers) < wanted:
            await asyncio.sleep(0.1)
            with (lab.daemon.data_dir.parent / "filler").open("ab", buffering=0) as taken:
                try:
                    while taken.write(b"\0" * 65_536):
                        pass
                except OSError:
                    continue
