"""kill -9 under load: what was promised arrives, and what arrives twice says so.

`scripts/bench faults` does it a hundred times.
"""

import os
import random

import pytest

from mailerd.db.embedded import SOCKET
from tests.faults.laboratory import Comparison, Laboratory, kill

pytestmark = pytest.mark.asyncio(loop_scope="package")


def assert_kept(comparison: Comparison) -> None:
    assert comparison.kept, comparison
    assert comparison.promised > 100, comparison


async def test_kill_9_of_a_worker_under_load_loses_nothing(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    kill(random.choice(lab.daemon.workers()))
    await load.until_promised(200)
    await load.stop()

    assert_kept(await lab.verdict(load))


async def test_kill_9_of_the_daemon_under_load_loses_nothing(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    await lab.daemon.kill()
    await lab.daemon.start()
    await load.until_promised(200)
    await load.stop()

    assert_kept(await lab.verdict(load))


async def test_kill_9_of_the_postmaster_under_load_loses_nothing(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    postmaster = lab.daemon.postmaster()
    assert postmaster is not None
    kill(postmaster)
    await load.until_promised(200)
    await load.stop()

    assert_kept(await lab.verdict(load))
    assert lab.daemon.postmaster() != postmaster


async def test_kill_9_of_a_database_session_under_load_loses_nothing(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    kill(random.choice(lab.daemon.backends()))
    await load.until_promised(200)
    await load.stop()

    assert_kept(await lab.verdict(load))


async def test_a_daemon_starts_among_the_remains_of_one_that_was_killed_with_its_database(lab: Laboratory) -> None:
    load = lab.load()
    load.start()
    await load.until_promised(200)
    postmaster = lab.daemon.postmaster()
    assert postmaster is not None
    kill(postmaster)
    await lab.daemon.kill()
    # The machine went down and came up: the old process ids are other processes' now.
    file = lab.daemon.data_dir / "postgres" / "postmaster.pid"
    lines = file.read_text().splitlines() if file.exists() else [str(postmaster)]
    file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    (lab.daemon.data_dir / "run" / SOCKET).touch()
    (lab.daemon.data_dir / "run" / f"{SOCKET}.lock").write_text(f"{os.getpid()}\n")
    (lab.daemon.data_dir / "lock").write_text(f"{os.getpid()}\n")
    await lab.daemon.start()
    await load.stop()

    assert_kept(await lab.verdict(load))
