"""Restarts and stops that somebody wanted, under load."""

import asyncio
import signal

import pytest

from tests.faults.laboratory import Laboratory, Mailerd, kill
from tests.faults.test_kills import assert_kept

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_while_the_database_restarts_clients_see_451_at_worst_and_then_it_goes_on(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    postmaster = lab.daemon.postmaster()
    assert postmaster is not None
    workers = lab.daemon.workers()
    kill(postmaster, signal.SIGINT)
    await load.until_promised(200)
    await load.stop()

    assert_kept(await lab.verdict(load))
    assert {answer[:3] for answer in load.promises.refused.values()} <= {"451", "503"}
    assert not load.promises.unanswered
    assert lab.daemon.workers() == workers


async def test_sigterm_under_load_ends_within_30_s_and_everybody_hears_what_became_of_their_mail(
    lab: Laboratory,
) -> None:
    load = lab.load(smtp=40, http=0, pause=0.01)
    load.start()
    await load.until_promised(400)
    status, seconds = await lab.daemon.stop()
    assert (status, lab.daemon.leftovers()) == (0, [])
    assert seconds < 30

    await lab.daemon.start()
    await load.stop()
    comparison = await lab.verdict(load)
    assert_kept(comparison)
    assert comparison.duplicates == 0
    assert not load.promises.unanswered
    assert {answer[:3] for answer in load.promises.refused.values()} <= {"421", "451"}


async def test_sigterm_while_the_exchanger_is_slow_marks_what_was_cut_off_as_in_doubt(lab: Laboratory) -> None:
    await lab.mx.tell("slow 60")
    load = lab.load(smtp=4, http=0)
    load.start()
    await load.until_promised(100)
    await load.stop()
    while not lab.arrivals(load):
        await asyncio.sleep(0.05)
    status, seconds = await lab.daemon.stop()
    assert status == 0
    assert seconds < 30

    await lab.mx.tell("normal")
    await lab.daemon.start()
    comparison = await lab.verdict(load)
    assert comparison.kept, comparison
    assert comparison.duplicates > 0


async def test_a_second_daemon_on_the_same_data_directory_is_refused_and_the_first_goes_on(lab: Laboratory) -> None:
    load = lab.load(smtp=4, http=1)
    load.start()
    await load.until_promised(20)
    (lab.directory / "second").mkdir()
    second = Mailerd(lab.directory / "second", lab.mx.port, data_dir=lab.daemon.data_dir)
    status, error = await second.refusal()
    await load.until_promised(100)
    await load.stop()

    assert status != 0
    assert f"mailerd runs already on {lab.daemon.data_dir}, as process {lab.daemon.process.pid}" in error
    assert_kept(await lab.verdict(load))
