"""A mail exchanger that fails at every step of the conversation."""

import pytest

from tests.faults.laboratory import Laboratory

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_mail_whose_final_dot_got_no_answer_is_sent_again_and_marked(lab: Laboratory) -> None:
    await lab.mx.tell("close dot 5")
    load = lab.load(smtp=4, http=0)
    load.start()
    await load.until_promised(100)
    await load.stop()

    comparison = await lab.verdict(load)
    assert comparison.kept, comparison
    silent = {arrival.address for arrival in lab.arrivals(load) if not arrival.answered}
    assert len(silent) >= 5
    assert comparison.duplicates == len(silent)
    assert await lab.doubtful(load) == silent


async def test_mail_reset_before_its_final_dot_arrives_once(lab: Laboratory) -> None:
    load = lab.load(smtp=4, http=0)
    load.start()
    for step in ("mail", "rcpt", "data", "content"):
        await load.until_promised(20)
        await lab.mx.tell(f"reset {step} 3")
    await load.until_promised(50)
    await load.stop()

    comparison = await lab.verdict(load)
    assert comparison.kept, comparison
    assert comparison.duplicates == 0
    assert comparison.refused == comparison.unanswered == 0
