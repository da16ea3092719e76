"""kill -9 while a campaign is sent: each contact has it once, the ledger knows, and the counts agree.

`scripts/bench campaign --crash` does it with 100,000 contacts and 50 kills.
"""

import random

import pytest

from tests.faults.laboratory import Laboratory, kill
from tests.faults.steps import OF_CAMPAIGNS
from tests.support.campaign_run import CampaignRun, at_step

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_campaign_reaches_each_contact_once_whatever_is_killed(lab: Laboratory) -> None:
    run = CampaignRun(lab, 2_000, pace=12_000, prefix="crash-")
    await run.start()

    assert await at_step(lab, "campaign_contacts")
    await lab.daemon.start()
    for hurt in (*OF_CAMPAIGNS, "worker", "pause", "daemon at step", "worker"):  # while there are rows to hand over
        await run.until_arrived(150)
        if hurt == "worker":
            kill(random.choice(lab.daemon.workers()))
        elif hurt == "pause":
            assert await run.order("pause") == 200
            kill(random.choice(lab.daemon.workers()))
            assert await run.order("resume") == 200
        elif hurt in OF_CAMPAIGNS:
            lab.daemon.arm(f"{hurt}=kill")
            await lab.daemon.fired()
        else:
            assert await at_step(lab, "campaign_totals")
            await lab.daemon.start()
    await run.until_arrived(150)
    await lab.mx.tell("slow 0.3")
    await run.until_arrived(5)
    for pid in lab.daemon.workers():
        kill(pid)  # with mail that the host has, and has not answered
    await lab.mx.tell("normal")
    await run.finished(90)

    outcome = await run.outcome()
    assert outcome.exact, outcome
    assert outcome.statuses["delivered"] > 1_900, outcome
