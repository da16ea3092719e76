"""Somebody who suppresses addresses, in a process of its own, and notes from when on others may rely on each."""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mailerd.db import connect_pool
from mailerd.queue.suppression import GRACE, Reason, Suppression, SuppressionStore

TOP = Path(__file__).parents[2]
AT_A_TIME = 20


async def suppress_all(url: str, addresses: Sequence[str], *, seed: int, pause: float) -> dict[str, float]:
    """When each was acknowledged, by time.monotonic(): up to `pause` seconds lie between two of one of 20 hands."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.suppressor",
        url,
        str(seed),
        str(pause),
        cwd=TOP,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate("\n".join(addresses).encode())
    assert process.returncode == 0
    pairs = (line.split(" ") for line in out.decode().splitlines())
    return {address: float(at) for address, at in pairs}


async def run(url: str, seed: int, pause: float, addresses: list[str]) -> None:
    """Print when each was acknowledged: the earliest moment at which whoever waits GRACE may have said so."""
    dice = random.Random(seed)
    pool = await connect_pool(url, min=1, max=4)
    store = SuppressionStore(pool)

    async def work(part: list[str]) -> None:
        for address in part:
            await asyncio.sleep(dice.random() * pause)
            entry = Suppression(
                address, tenant="default", reason=Reason.MANUAL, source="api", created_at=datetime.now(UTC)
            )
            await store.add([entry])
            print(address, f"{time.monotonic() + GRACE:.6f}")

    async with asyncio.TaskGroup() as group:
        for n in range(AT_A_TIME):
            group.create_task(work(addresses[n::AT_A_TIME]))
    await pool.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.stdin.read().split()))
