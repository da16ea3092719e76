"""Webhooks in a worker: the desk for its API, and in one worker of a node the telling."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from mailerd.config import Config
from mailerd.db import Pool
from mailerd.delivery.https import Poster
from mailerd.delivery.resolver import Resolver
from mailerd.feedback.webhooks.desk import WebhookDesk
from mailerd.feedback.webhooks.teller import Teller


class Webhooks:
    """`pool` is for the desk. `start_telling` in one worker of a node; `stop` at the end in any case."""

    def __init__(self, config: Config, pool: Pool, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._clock = clock
        self._resolver = Resolver(config.resolver)
        self._poster = self._new_poster()
        self._old_posters: list[Poster] = []
        self._teller: Teller | None = None
        self._telling: asyncio.Task[None] | None = None
        self.desk = WebhookDesk(
            pool, lambda: self._poster, clock=clock, timeout=lambda: float(self._config.webhooks.timeout)
        )

    def start_telling(self, url: str, pool: Pool) -> None:
        """Tell endpoints, whenever nobody else does. `url` of the database is for a connection of its own."""
        self._teller = Teller(url, pool, self._config.webhooks, self._poster, clock=self._clock)
        self._telling = asyncio.create_task(self._teller.run(), name="webhooks")

    def heard(self, webhook_id: str) -> None:
        """Somebody changed an endpoint (`store.CHANNEL`)."""
        if self._teller is not None:
            self._teller.heard(webhook_id)

    def reconfigure(self, config: Config) -> None:
        """Work by this from now on; what is under way ends as it began."""
        old, self._config = self._config, config
        if old.webhooks.allow_private != config.webhooks.allow_private:
            self._old_posters.append(self._poster)
            self._poster = self._new_poster()
        if self._teller is not None:
            self._teller.reconfigure(config.webhooks, self._poster)

    async def stop(self) -> None:
        """Let the requests under way end, for a few seconds, and record them."""
        try:
            if self._teller is not None:
                await self._teller.stop()
        finally:  # also when the caller has no time left
            if self._telling is not None:
                self._telling.cancel()
                await asyncio.gather(self._telling, return_exceptions=True)
            for poster in (*self._old_posters, self._poster):
                await poster.close()
            await self._resolver.close()

    def _new_poster(self) -> Poster:
        return Poster(self._resolver, private_hosts=self._config.webhooks.allow_private)
