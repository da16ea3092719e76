"""Sending campaigns, put together for one worker: what renders their mail, and what lets them go on."""

from collections.abc import Callable
from datetime import datetime

from mailerd.campaigns.edition import Editions
from mailerd.campaigns.mailing import CampaignRenderer, Pause
from mailerd.campaigns.runner.handing import Handing, Queue
from mailerd.campaigns.runner.loop import Runner
from mailerd.campaigns.runner.writing import TOGETHER
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.rendering import PreparedCache
from mailerd.campaigns.templates.store import TemplateStore
from mailerd.config import Config
from mailerd.db import Pool, connect_pool
from mailerd.queue.suppression import SuppressionStore

CONNECTIONS = 1 + TOGETHER  # of the runner's own: one hands over, the others write ledgers


class CampaignSending:
    """Make it before the relay, which is to have its `renderer`; `start` it with the relay; `stop` it before.

    `prepared` is shared with the desk: what was checked there is sent here.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        *,
        secret: bytes,
        pause: Pause,
        clock: Callable[[], datetime],
        prepared: PreparedCache,
    ) -> None:
        self._config = config
        self._clock = clock
        self._editions = Editions(CampaignStore(pool), TemplateStore(pool), prepared)
        self.renderer = CampaignRenderer(config, pool, self._editions, secret=secret, pause=pause)
        self._pool: Pool | None = None
        self._handing: Handing | None = None
        self._runner: Runner | None = None

    async def start(self, url: str, queue: Queue, suppressions: SuppressionStore) -> None:
        """Hand over to `queue`, the worker's `Submitter`, from now on."""
        self._pool = await connect_pool(url, min=0, max=CONNECTIONS, idle=60.0)
        self._handing = Handing(
            self._config,
            self._pool,
            queue=queue,
            editions=self._editions,
            suppressions=suppressions,
            clock=self._clock,
        )
        self._runner = Runner(self._pool, self._handing, clock=self._clock)
        self._runner.start()

    def reconfigure(self, config: Config) -> None:
        """What is handed over and rendered from now on follows `config`."""
        self._config = config
        self.renderer.reconfigure(config)
        if self._handing is not None:
            self._handing.reconfigure(config)

    def wake(self) -> None:
        """A campaign began, went on or ended."""
        if self._runner is not None:
            self._runner.wake()

    async def stop(self) -> None:
        """Hand nothing more over; what was handed over is still rendered."""
        if self._runner is not None:
            await self._runner.stop()
        if self._pool is not None:
            self._pool.terminate()
