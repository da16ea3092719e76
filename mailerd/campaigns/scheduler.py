"""Begins the campaigns whose time has come, makes the next one of those that recur, and repeats what was left undone.

It may run on several nodes: each campaign is locked by whoever begins it, and the others pass it over. A clock that is
put back begins nothing twice, since a status changes only once and each time of a recurring campaign is a row of its
own, unique by that time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias, TypeVar

import msgspec
import structlog

from mailerd.campaigns.compliance import Finding, errors
from mailerd.campaigns.lifecycle import LAST_TIME, is_late
from mailerd.campaigns.recurrence import Recurrence, following, last_until
from mailerd.campaigns.steering import Steerer
from mailerd.campaigns.store import CampaignStore, NoTemplateError
from mailerd.campaigns.timing import begin_at
from mailerd.campaigns.values import Campaign
from mailerd.campaigns.zones import wall_clock, zone_of
from mailerd.db import Connection, Pool
from mailerd.queue.commit import LOST
from mailerd.queue.ids import CAMPAIGN, format_id

log = structlog.get_logger()

POLL = 5.0  # seconds between looks
PAGE = 500
AT_ONCE = 10  # begun at the same time, in one transaction: most of it is waiting for the database
MAX_NAME = 244  # that leaves room for a day
T = TypeVar("T")
Done: TypeAlias = tuple[Campaign, T]
Wrong: TypeAlias = Mapping[int, Sequence[Finding]]  # by campaign
LATE = "its time was missed by {late}: later than campaigns.late_start allows"


class Checks(Protocol):
    async def __call__(self, campaign: Campaign) -> Sequence[Finding]:
        """What is found wrong with a campaign that is about to begin by its schedule."""
        ...


@dataclass(frozen=True, slots=True)
class Scheduler:
    """`late_start` in seconds, as it is now."""

    pool: Pool
    store: CampaignStore
    steerer: Steerer
    checks: Checks
    clock: Callable[[], datetime]
    late_start: Callable[[], float]

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every few seconds until `stopping`."""
        while not stopping.is_set():
            try:
                await self.tick()
                await self.steerer.sweep()
            except LOST as error:
                log.warning("scheduler.interrupted", error=str(error))
            except Exception:
                log.exception("scheduler.failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await stopping.wait()

    async def tick(self) -> None:
        """Begin all campaigns that are due."""
        offset = 0  # that stay where they are in the order
        tried: set[int] = set()
        while True:
            due = await self.store.due(self.clock(), PAGE, offset)
            new = [campaign for campaign in due if campaign.id not in tried and self._may_begin(campaign)]
            offset += len(due) - len(new)
            tried.update(campaign.id for campaign in new)
            random.shuffle(new)  # others look at the same ones at the same moment
            for first in range(0, len(new), AT_ONCE):
                await self._begin_all(new[first : first + AT_ONCE])
            if len(due) < PAGE:
                return

    def _may_begin(self, campaign: Campaign) -> bool:
        assert campaign.schedule_time is not None
        return begin_at(campaign.timing, campaign.schedule_time) <= self.clock()

    async def _begin_all(self, campaigns: Sequence[Campaign]) -> None:
        """One bad campaign does not stop the others: it is tried again. Raises what tells of a lost database."""
        due = await self.store.still_due(campaigns)
        made = await self._each(self._occurrence, [each for each in due if each.recurrence is not None])
        once = [each for each in due if each.recurrence is None] + [child for _, child in made if child is not None]
        checked = await self._each(self.checks, once)
        wrong = {campaign.id: errors(found) for campaign, found in checked}
        sound = [campaign for campaign, _ in checked]
        try:
            await self._begin_checked(sound, wrong)
        except LOST:
            raise
        except Exception:  # which of them it was is seen when each is alone
            await self._each(lambda campaign: self._begin_alone(campaign, wrong), sound)

    async def _each(self, step: Callable[[Campaign], Awaitable[T]], campaigns: Sequence[Campaign]) -> list[Done[T]]:
        """What came of each; what failed is told, and left out."""
        found = await asyncio.gather(*map(step, campaigns), return_exceptions=True)
        done: list[Done[T]] = []
        for campaign, result in zip(campaigns, found, strict=True):
            if isinstance(result, LOST):
                raise result
            if isinstance(result, BaseException):
                log.error("campaign.not_begun", campaign=campaign.name_outside, exc_info=result)
            else:
                done.append((campaign, result))
        return done

    async def _occurrence(self, campaign: Campaign) -> Campaign | None:
        async with self.pool.acquire() as connection, connection.transaction():
            return await self._occur(campaign, connection)

    async def _begin_alone(self, campaign: Campaign, wrong: Wrong) -> None:
        try:
            await self._begin_checked([campaign], wrong)
        except NoTemplateError:
            async with self.pool.acquire() as connection, connection.transaction():
                await self.store.failed(campaign.id, "its template is not there any more", self.clock(), connection)

    async def _begin_checked(self, campaigns: Sequence[Campaign], wrong: Wrong) -> None:
        """In one transaction. Who is in the hands of another, or was changed while it was checked, is left alone."""
        if not campaigns:
            return
        revisions = {campaign.id: campaign.revision for campaign in campaigns}
        async with self.pool.acquire() as connection, connection.transaction():
            locked = await self.store.locked_due(sorted(revisions), connection)
            now, good = self.clock(), []
            for campaign in locked:
                if campaign.revision != revisions[campaign.id]:
                    continue
                if reason := self._reason(campaign, wrong[campaign.id], now):
                    if await self.store.failed(campaign.id, reason[:1000], now, connection):
                        log.warning("campaign.failed", campaign=campaign.name_outside, reason=reason)
                else:
                    good.append(campaign.id)
            begun = await self.store.begin_all(good, now, connection)
        for run in begun:
            log.info("campaign.begun", campaign=format_id(CAMPAIGN, run.campaign_id))

    def _reason(self, campaign: Campaign, wrong: Sequence[Finding], now: datetime) -> str:
        """Why it cannot begin; "": it can."""
        assert campaign.schedule_time is not None
        if is_late(campaign, now, self.late_start()):
            return LATE.format(late=_span(now - begin_at(campaign.timing, campaign.schedule_time)))
        return " ".join(finding.detail for finding in wrong)

    async def _occur(self, campaign: Campaign, connection: Connection) -> Campaign | None:
        """Make the campaign of this time, and go on to the next; of several missed only the last, if not too late.

        Whom another has taken on to its next time meanwhile, or who was changed, is left alone: it may not be due yet.
        """
        made = None
        locked = await self.store.locked_due([campaign.id], connection)
        parent = locked[0] if locked else None
        if parent is None or parent.revision != campaign.revision or not self._may_begin(parent):
            return None
        if parent.recurrence is None or parent.schedule_time is None:
            return None
        now, rule = self.clock(), parent.recurrence
        # With local time each occurrence begins before its hour: what has begun somewhere is due.
        ahead = parent.schedule_time - begin_at(parent.timing, parent.schedule_time)
        at, missed = last_until(rule, parent.schedule_time, now + ahead)
        if is_late(replace(parent, schedule_time=at), now, self.late_start()):
            missed += 1
        else:
            child = replace(
                parent,
                parent_id=parent.id,
                name=_dated(parent.name, rule, at),
                schedule_time=at,
                recurrence=None,
                created_at=now,
            )
            made = await self.store.create(child, connection)
            if made is not None:
                rule = _one_more(rule)
        if missed:
            log.warning("campaign.occurrences_missed", campaign=parent.name_outside, missed=missed)
        later = following(rule, at)
        if later is None or (rule.count is not None and rule.made >= rule.count):
            changed = await self.store.change(replace(parent, recurrence=rule), now, connection)
            await self.store.finish(changed, "sent", LAST_TIME, now, connection)
        else:
            await self.store.change(replace(parent, recurrence=rule, schedule_time=later), now, connection)
        return made


def _dated(name: str, rule: Recurrence, at: datetime) -> str:
    """The name of one of them: with its day, as it is where the rule is at home."""
    return f"{name[:MAX_NAME]} {wall_clock(at, zone_of(rule.time_zone)).date().isoformat()}"


def _one_more(rule: Recurrence) -> Recurrence:
    return msgspec.structs.replace(rule, made=rule.made + 1)


def _span(late: timedelta) -> str:
    hours, rest = divmod(int(late.total_seconds()), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min"
