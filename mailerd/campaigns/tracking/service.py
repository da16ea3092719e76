"""Tracking in one worker: takes hits while they are answered, and stores them in the background."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from mailerd import metrics
from mailerd.campaigns.tracking.files import DIRECTORY, HitLog
from mailerd.campaigns.tracking.folding import Folding
from mailerd.campaigns.tracking.records import MAX_AGENT, MAX_IP, Hit, encode, plain
from mailerd.campaigns.tracking.store import HitStore, microseconds
from mailerd.campaigns.tracking.storing import Storing
from mailerd.db import Pool
from mailerd.wire.tracking import Click, Open, Tracking

FOLD_EVERY = 0.5  # seconds


class Tracker:
    """`opened` and `clicked` answer by the token alone, and have written the hit when they return. They never fail."""

    def __init__(self, pool: Pool, secret: bytes, data_dir: str, node: str, clock: Callable[[], datetime]) -> None:
        directory = Path(data_dir) / DIRECTORY
        self._tokens = Tracking(secret)
        self._clock = clock
        self._folding = Folding()
        self._log = HitLog(directory, node, milliseconds=lambda: microseconds(clock()) // 1000)
        self._storing = Storing(self._log, HitStore(pool), directory, node)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._storing.run(), name="hits"),
            asyncio.create_task(self._fold(), name="repeated hits"),
        ]

    async def stop(self, patience: float) -> None:
        """Store what there is, within so many seconds; what is left is in a file, for the next worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._write(self._folding.all())
        try:
            async with asyncio.timeout(patience):
                await self._storing.finish()
        except TimeoutError:
            pass

    def opened(self, token: str, *, method: str, ip: str, user_agent: str) -> bool:
        """A pixel was asked for; False when the token is none of ours."""
        mail = self._tokens.read_open(token)
        self._take("opened", mail, method, ip, user_agent)
        return mail is not None

    def clicked(self, token: str, *, method: str, ip: str, user_agent: str) -> str | None:
        """A link was followed: where it leads; None when the token is none of ours."""
        click = self._tokens.read_click(token)
        self._take("clicked", click, method, ip, user_agent)
        return None if click is None else click.url

    def _take(self, kind: str, mail: Open | Click | None, method: str, ip: str, user_agent: str) -> None:
        if mail is None:
            metrics.hit(kind, "forged")
            return
        hit = Hit(
            at=microseconds(self._clock()),
            kind="clicked" if kind == "clicked" else "opened",
            message_id=mail.message_id,
            campaign_id=mail.campaign_id,
            contact_id=mail.contact_id,
            link=mail.link if isinstance(mail, Click) else 0,
            url=mail.url if isinstance(mail, Click) else "",
            method="HEAD" if method == "HEAD" else "GET",
            ip=plain(ip, MAX_IP),
            user_agent=plain(user_agent, MAX_AGENT),
        )
        new = self._folding.take(hit)
        metrics.hit(kind, "taken" if new and new[-1] is hit else "repeated")
        self._write(new)

    def _write(self, hits: Sequence[Hit]) -> None:
        if hits:
            self._log.write([encode(hit) for hit in hits])

    async def _fold(self) -> None:
        """Write repetitions also when nothing follows them."""
        while True:
            await asyncio.sleep(FOLD_EVERY)
            self._write(self._folding.end(microseconds(self._clock())))
