"""The desk: everything that those who look after campaigns need, put together."""

from collections.abc import Callable
from datetime import datetime, timedelta

from mailerd.campaigns.audience_store import AudienceStore
from mailerd.campaigns.checking import Checker
from mailerd.campaigns.forecast import Forecast, Progress, forecast
from mailerd.campaigns.lifecycle import Lifecycle, UnknownCampaignError, WrongStatusError
from mailerd.campaigns.recipients import RecipientStore
from mailerd.campaigns.scheduler import Scheduler
from mailerd.campaigns.steering import Queue, Steerer, SteeringStore
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.rendering import PreparedCache
from mailerd.campaigns.timing import open_at
from mailerd.campaigns.trial import Trial
from mailerd.campaigns.values import Campaign, Standing
from mailerd.config import Config
from mailerd.db import Pool
from mailerd.intake.credentials import CredentialStore

MEASURED = timedelta(minutes=5)


class CampaignDesk:
    """`config` gives what is in force now. The scheduler runs where somebody runs it; see `Scheduler.run`."""

    def __init__(
        self,
        config: Callable[[], Config],
        pool: Pool,
        *,
        queue: Queue,
        clock: Callable[[], datetime],
        prepared: PreparedCache | None = None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._clock = clock
        self.store = CampaignStore(pool)
        self.audiences = AudienceStore(pool)
        self.recipients = RecipientStore(pool)
        steering = SteeringStore(pool)
        self.lifecycle = Lifecycle(self.store, steering)
        self.steerer = Steerer(steering, queue, clock)
        trial = Trial(pool, self.audiences, clock, prepared or PreparedCache())
        self.checker = Checker(config, trial, self.audiences, CredentialStore(pool), clock)
        self.scheduler = Scheduler(
            pool=pool,
            store=self.store,
            steerer=self.steerer,
            checks=self.checker.at_schedule,
            clock=clock,
            late_start=lambda: float(config().campaigns.late_start),
        )

    async def pause(self, campaign_id: int, tenant: str, reason: str, *, actor: str = "campaigns") -> bool:
        """Pause a campaign because of something that we found out ourselves; False: it is not being sent."""
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await self.lifecycle.pause(
                    campaign_id, tenant, actor=actor, reason=reason, now=self._clock(), connection=connection
                )
        except (UnknownCampaignError, WrongStatusError):
            return False
        await self.steerer.steer(campaign_id, actor=actor, patience=0.0)
        return True

    def pace(self, campaign: Campaign) -> float:
        """Contacts a minute."""
        rate = self._config().campaigns.pace
        return campaign.options.pace or rate.count / rate.period * 60

    async def forecast(self, standing: Standing) -> Forecast | None:
        """When it will have been handed over, and what it waits for."""
        campaign, run, now = standing.campaign, standing.run, self._clock()
        next_due, last_due, measured = None, None, None
        if campaign.status == "sending":
            next_due, last_due = await self.store.dues(campaign.id)
            measured = await self._measured(standing, now)
        progress = Progress(
            status=campaign.status,
            timing=campaign.timing,
            pace=self.pace(campaign),
            schedule_time=campaign.schedule_time,
            waiting=None if run is None else standing.waiting,
            next_due=next_due,
            last_due=last_due,
            written=run is not None and run.written,
            measured=measured,
        )
        return forecast(progress, now)

    async def _measured(self, standing: Standing, now: datetime) -> float | None:
        """Contacts a minute of late, if the pace alone could have held them back."""
        campaign, since = standing.campaign, now.replace(second=0, microsecond=0) - MEASURED
        began = campaign.started_at
        steady = began is not None and max(began, campaign.updated_at) < since and not campaign.timing.local_time
        if not steady or open_at(campaign.timing, since, "") != since:
            return None
        return await self.store.handed_over_since(campaign.id, since) / ((now - since) / timedelta(minutes=1))
