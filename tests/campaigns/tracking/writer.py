"""A process that writes hits and stores them, until it is killed. It says how many it has written.

Arguments: URL of the database, directory, first number, whether it may store: 1 or 0.
"""

import asyncio
import sys
import time
from pathlib import Path

from mailerd.campaigns.tracking import storing
from mailerd.campaigns.tracking.files import HitLog
from mailerd.campaigns.tracking.records import Hit, encode
from mailerd.campaigns.tracking.store import HitStore
from mailerd.db import connect_pool


async def main(url: str, directory: str, first: int, stores: bool) -> None:
    pool = await connect_pool(url)
    log = HitLog(Path(directory), "node", milliseconds=lambda: time.time_ns() // 1_000_000)
    storing.DONE = 20_000  # so that files are left, too
    storing.PIECE = 4_000
    work = storing.Storing(log, HitStore(pool), Path(directory), "node")
    if stores:
        keep = asyncio.create_task(_store(work))
        keep.add_done_callback(lambda task: task.result())
    for number in range(first, first + 1_000_000):
        hit = Hit(
            at=1_800_000_000_000_000 + number,
            kind="opened",
            message_id=1,
            campaign_id=2,
            contact_id=number,
            url="x" * 50,
        )
        log.write([encode(hit)])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        await asyncio.sleep(0)


async def _store(work: storing.Storing) -> None:
    while True:
        await work.turn()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"))
