"""Two nodes on one database: what they share stays within its limits, and the mail of a dead one is taken over."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.shaping import CASES, Laboratory, Node, judge
from mailerd.delivery.grants import JOIN
from mailerd.queue.workers import LEASE

SHARED = [
    case for case in CASES if case.name in {"site-connections", "site-messages", "total-messages", "domain", "campaign"}
]
TAKEN_OVER = 30.0  # seconds
WATCHED = 5.0  # seconds
DRAINED = LEASE + 60.0  # seconds
BACKLOG = 35.0  # seconds of mail at the pace of the limits: more than one node takes into memory


def delivers(laboratory: Laboratory, node: Node, since: float) -> bool:
    """Has the node sent mail of every case?"""
    seen = laboratory.sink.seen().only(lambda connection: connection.source in node.sources)
    cases = {each.recipients[0].partition(".")[0] for each in seen.messages() if each.at > since}
    return cases == {case.name for case in laboratory.cases}


def of_its_own(laboratory: Laboratory, node: Node, since: float) -> bool:
    """Does the node make use of the whole limits by itself?"""
    start = max(since, time.monotonic() - WATCHED)
    if time.monotonic() - start < WATCHED:
        return False
    findings = judge(laboratory, start, time.monotonic())
    return all(finding.use is not None and finding.use > 0.75 for finding in findings)


async def until(done: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.2)


@pytest.mark.timeout(240)
async def test_limits_over_two_nodes_hold_while_workers_and_a_node_are_killed(database: str, tmp_path: Path) -> None:
    with Laboratory(tmp_path, SHARED, nodes=2, workers=2, database=database) as laboratory:
        first, second = laboratory.nodes
        await laboratory.fill(BACKLOG)
        await until(lambda: all(delivers(laboratory, node, 0.0) for node in (first, second)), JOIN + 40)

        for node in (first, second):
            os.kill(node.workers()[0], signal.SIGKILL)
        again = time.monotonic() + 5.0
        await until(lambda: all(delivers(laboratory, node, again) for node in (first, second)), JOIN + 40)

        second.kill()
        killed = time.monotonic()
        await until(lambda: of_its_own(laboratory, first, killed), LEASE + TAKEN_OVER + 15)  # the machine may be busy
        await until(lambda: not any(laboratory.waiting().values()), DRAINED)

        findings = judge(laboratory, 0.0, time.monotonic())
    assert all(finding.held for finding in findings), [each.as_dict() for each in findings if not each.held]
