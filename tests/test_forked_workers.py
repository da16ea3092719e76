"""Workers that are forked from one process: real processes of ours, each with what must be its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, multiprocess
from structlog.testing import capture_logs

from mailerd.assignment import Assignment
from mailerd.config.documents import Documents
from mailerd.daemon.workers import Birth, Workers
from mailerd.processes import Adopted, adopting, ended

EMPTY = Documents("", "", {})
NOTHING = Assignment(EMPTY, EMPTY, "", "", "", [], [], -1)

# A worker as it is when all is imported and nothing runs yet; what it says of itself goes to a file for each slot.
TELLING = """
import json, os, random, secrets, ssl, sys
import mailerd.worker
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from mailerd import metrics
from mailerd.assignment import read_assignment
threads = len(os.listdir("/proc/self/task"))
links = []
for fd in range(3, 100):
    if os.path.lexists(f"/proc/self/fd/{fd}"):
        links.append(os.readlink(f"/proc/self/fd/{fd}"))
before = os.getpid()
assignment = read_assignment()
for _ in range(assignment.slot + 1):
    metrics.committed(1, 0.1)
    metrics.refused("smtp", "busy")
metrics.flush()
said = {
    "pid": os.getpid(), "before": before, "parent": os.getppid(), "group": os.getpgid(0), "threads": threads,
    "sockets": sum(link.startswith("socket:") for link in links),
    "random": [random.random(), secrets.token_hex(), ssl.RAND_bytes(16).hex(), AESGCM.generate_key(128).hex()],
    "controls": sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in range(3, 100)
                    if os.path.lexists(f"/proc/self/fd/{fd}")),
}
with open(os.path.join(assignment.data_dir, str(assignment.slot)), "w") as file:
    json.dump(said, file)
sys.exit(assignment.slot)
"""
# One that says that it is ready, and cannot be several.
LONELY = """
import json, os, sys, time
control = json.load(sys.stdin)["control"]
while os.write(control, b"ready\\n"):
    time.sleep(0.05)
"""
# One that can, as the stand-in of the tests of the main process does, without a database.
READY = """
import os, time
from mailerd.assignment import read_assignment
control = read_assignment().control
while os.write(control, b"ready\\n"):
    time.sleep(0.05)
"""


async def test_each_has_a_pid_a_group_a_control_socket_and_randomness_of_its_own(tmp_path):
    statuses = await born(tmp_path, 3)

    said = [json.loads((tmp_path / str(slot)).read_text()) for slot in range(3)]
    assert statuses == [0, 1, 2]
    assert len({each["pid"] for each in said}) == 3
    assert all(each["group"] == each["pid"] != each["before"] for each in said)
    assert [each["controls"] for each in said] == [1, 1, 1]
    for kind in range(4):
        assert len({each["random"][kind] for each in said}) == 3


async def test_the_program_has_one_thread_and_no_socket_but_its_controls_when_it_forks(tmp_path):
    await born(tmp_path, 2)

    said = json.loads((tmp_path / "0").read_text())
    assert said["threads"] == 1
    assert said["sockets"] == 2


async def test_what_each_counts_is_in_the_sum(tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    await born(tmp_path, 3)

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    assert registry.get_sample_value("mailerd_commit_messages_count") == 1 + 2 + 3
    labels = {"protocol": "smtp", "name": "busy"}
    assert registry.get_sample_value("mailerd_submissions_refused_total", labels) == 1 + 2 + 3


async def test_workers_are_children_of_the_process_that_watches_them_and_one_that_is_killed_is_replaced(watched):
    workers, deaths = watched(READY)
    await workers.start()
    first, second = pids_of(workers)
    assert parent_of(first) == parent_of(second) == os.getpid()

    os.kill(first, signal.SIGKILL)
    assert await death(workers, deaths) == first
    async with asyncio.timeout(20):
        while workers.ready_count < 2:
            await asyncio.sleep(0.02)
    assert second in pids_of(workers)
    assert first not in pids_of(workers)
    assert all(parent_of(pid) == os.getpid() for pid in pids_of(workers))


async def test_a_worker_that_cannot_be_started_is_tried_again_and_the_others_go_on(watched, tmp_path):
    own, away = tmp_path / "python", tmp_path / "away"
    own.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    workers, deaths = watched(READY, python=str(own))
    await workers.start()
    first, second = pids_of(workers)
    own.rename(away)
    files = len(os.listdir("/proc/self/fd"))

    with capture_logs() as logs:
        os.kill(first, signal.SIGKILL)
        assert await death(workers, deaths) == first
        async with asyncio.timeout(20):
            while [each["event"] for each in logs].count("worker.not_started") < 2:
                assert not any(task.done() for task in workers.tasks)
                await asyncio.sleep(0.02)
    assert pids_of(workers) == [second]
    assert workers.ready_count == 1
    assert len(os.listdir("/proc/self/fd")) < files  # without the control socket of the one that died

    away.rename(own)
    async with asyncio.timeout(20):
        while workers.ready_count < 2:
            await asyncio.sleep(0.02)
    assert second in pids_of(workers)


async def test_a_program_that_cannot_be_forked_is_started_for_each(watched):
    workers, deaths = watched(LONELY)
    await workers.start()

    assert len(set(pids_of(workers))) == 2
    assert deaths.empty()


async def test_a_program_that_hangs_before_it_forks_is_ended_and_started_for_each(watched, tmp_path):
    hangs = f"import os, time\nonce = {str(tmp_path / 'once')!r}\n"
    hangs += "if not os.path.exists(once):\n    open(once, 'w')\n    time.sleep(600)\n"
    workers, _ = watched(hangs + LONELY, silence=1.0)
    await workers.start()

    assert len(set(pids_of(workers))) == 2


async def test_nothing_is_left_of_those_that_were_forked_before_forking_failed(watched, tmp_path):
    fails = f"import os\nreal, log = os.fork, {str(tmp_path / 'forked')!r}\n"
    fails += "def fork():\n    if os.path.exists(log):\n        raise BlockingIOError(11, 'no more')\n"
    fails += "    pid = real()\n    open(log, 'a').write(f'{pid}\\n')\n    return pid\nos.fork = fork\n"
    workers, _ = watched(fails + READY)
    await workers.start()

    assert len(set(pids_of(workers))) == 2
    forked = {int(pid) for pid in (tmp_path / "forked").read_text().split()} - {0}
    assert len(forked) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in forked)


async def test_who_is_no_child_of_ours_is_not_adopted():
    with pytest.raises(ChildProcessError):
        Adopted(1)


async def born(directory: Path, count: int) -> list[int]:
    """Have `count` processes tell of themselves in files of the directory; their exit statuses."""
    given = [msgspec.structs.replace(NOTHING, data_dir=str(directory), slot=slot) for slot in range(count)]
    with adopting():
        birth = Birth([sys.executable, "-c", TELLING], given, [])
        assert await ended(birth.process) == 0
        processes = birth.forked()
    birth.close()
    statuses = [await ended(process) for process in processes]
    for control in birth.controls:
        control.close()
    return statuses


@pytest.fixture
async def watched() -> AsyncIterator[object]:
    """Make two workers of a program, and the queue of the pids of those that died."""
    made = []

    def make(
        program: str, *, python: str = sys.executable, silence: float = 30.0
    ) -> tuple[Workers, asyncio.Queue[int]]:
        deaths: asyncio.Queue[int] = asyncio.Queue()
        made.append(Workers(2, (python, "-c", program), NOTHING, [], deaths.put, silence=silence))
        return made[-1], deaths

    yield make
    for workers in made:
        await workers.stop(1.0, asyncio.Event())


async def death(workers: Workers, deaths: "asyncio.Queue[int]") -> int:
    """The pid of the next that dies; a failure of the watching is raised, since nobody would hear of a death then."""
    heard = asyncio.create_task(deaths.get())
    async with asyncio.timeout(60):
        await asyncio.wait([heard, *workers.tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in workers.tasks:
        if task.done():
            task.result()
    return heard.result()


def pids_of(workers: Workers) -> Sequence[int]:
    return sorted(worker.pid for worker in workers._living)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
