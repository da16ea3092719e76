"""Limits as the receiver sees them. `scripts/bench shaping` does the same longer, with 1, 2, 4 workers and 2 nodes."""

import asyncio
import time
from pathlib import Path

from benchmarks.shaping import CASES, Finding, Laboratory, judge

GROW = 2.0  # seconds in which new paths come to their connections
WATCHED = 8.0  # seconds
LEAST_USE = 0.85


def assert_held(findings: list[Finding]) -> None:
    above = [finding.as_dict() for finding in findings if not finding.held]
    assert not above, above


def assert_used(findings: list[Finding]) -> None:
    """Of what is allowed, all that mail was waiting for."""
    unused = [finding.as_dict() for finding in findings if finding.use is not None and finding.use < LEAST_USE]
    assert not unused, unused


async def test_no_limit_is_exceeded_at_the_receiver_and_all_are_made_use_of(tmp_path: Path) -> None:
    with Laboratory(tmp_path, CASES, workers=2) as laboratory:
        await laboratory.fill(GROW + WATCHED)
        start = time.monotonic() + GROW
        await asyncio.sleep(GROW + WATCHED)  # what is watched is time
        end = time.monotonic()
        waiting = laboratory.waiting()
        laboratory.stop()
        findings = judge(laboratory, start, end)

    assert all(waiting.values()), waiting
    assert_held(findings)
    assert_used(findings)
    assert max(laboratory.sink.arrived().values()) == 1
