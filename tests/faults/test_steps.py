"""kill -9 at named steps under load: nothing is lost, what comes twice is marked, and events stay in order.

These are the steps at which most can go wrong; `scripts/bench faults` takes all of them, over and over. Those of
campaigns, webhooks and sinks are in modules of their own.
"""

import pytest

from mailerd import failpoints
from tests.faults import steps
from tests.faults.laboratory import Laboratory
from tests.faults.test_kills import assert_kept

pytestmark = pytest.mark.asyncio(loop_scope="package")
# Each begins with a new main process, which restarts workers without delay.
LIVES = {
    "taking in": ("start.released", "accepted.before_commit", "accepted.after_commit", "claim.before_commit"),
    "attempting": ("stop.intake", "journal.written", "attempt.after_dot", "attempt.after_reply"),
    "settling": ("release.after", "settle.before", "settle.after", "claim.after"),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
async def test_kill_9_at_each_step_of(lab: Laboratory, life: tuple[str, ...]) -> None:
    load = lab.load(smtp=8, http=2)
    load.start()
    for step in life:
        await load.until_promised(20)
        await steps.kill_at(lab, step)
    await load.until_promised(50)
    await load.stop()

    assert_kept(await lab.verdict(load))


async def test_the_laboratory_has_a_way_to_every_step() -> None:
    assert sorted([*steps.STEPS, *steps.ELSEWHERE]) == sorted(failpoints.STEPS)
