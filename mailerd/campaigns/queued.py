"""Mail of a campaign that is in the queue, as the commands of operators reach it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from mailerd.queue.control import ControlStore, Selection


@dataclass(frozen=True, slots=True)
class QueuedMail:
    """Holds, releases and cancels it: a `campaigns.steering.Queue`."""

    control: ControlStore
    clock: Callable[[], datetime]

    async def hold(self, campaign: str, tenant: str, actor: str) -> None:
        await self.control.hold(Selection(campaign=campaign, tenant=tenant), actor=actor, now=self.clock())

    async def release(self, campaign: str, tenant: str, actor: str) -> None:
        await self.control.release(Selection(campaign=campaign, tenant=tenant), actor=actor, now=self.clock())

    async def cancel(self, campaign: str, tenant: str, actor: str) -> None:
        await self.control.cancel(Selection(campaign=campaign, tenant=tenant), actor=actor, now=self.clock())
