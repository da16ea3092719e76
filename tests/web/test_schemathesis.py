"""What schemathesis makes of the document: no answer is a crash, and each is one that the document tells.

A few requests of each kind, the same ones each time. By hand as many as there is time for, others with another seed:
`FUZZ_EXAMPLES=1000 FUZZ_SEED=7 FUZZ_ONLY="campaigns. templates." scripts/test -s tests/web/test_schemathesis.py`
"""

import asyncio
import os

import pytest

from tests.web.conftest import Api
from tests.web.fuzzing import World, fuzz

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ONLY = os.environ.get("FUZZ_ONLY", "").split()


@pytest.mark.timeout(60 * (1 + EXAMPLES))
async def test_every_answer_is_in_the_document(api: Api) -> None:
    def run() -> list[str]:
        world = World(f"http://127.0.0.1:{api.port}", api.tokens["all"])
        found = []
        for each in fuzz(world, examples=EXAMPLES, only=ONLY, start=SEED):
            print(each, flush=True)
            found.append(each)
        print(*(f"{id_} {status}: {n}" for (id_, status), n in sorted(world.seen.items())), sep="\n")
        return found

    assert await asyncio.to_thread(run) == []
