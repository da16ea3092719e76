"""The life of a campaign: what may be done with it where it stands, and what follows from that.

    draft -> scheduled -> sending -> sent           scheduled, sending, paused -> cancelled
    draft -> sending <-> paused                     scheduled, sending -> failed

While mail of it is in the queue, a sent campaign may be paused, and a sent or failed one cancelled.

A recurring one is never sent itself: it is scheduled, or paused (scheduled <-> paused), while the campaigns that come
of it are sent. Times that pass while it is paused are left out, and not made up for.

A status changes in one transaction, with its event, its line in the audit, and what is to be done in the queue, which
is done after that (`steering`). The row of the run is the fence: the hand-over locks it first, so that after a pause
has been committed nothing more is handed over.
"""

from dataclasses import replace
from datetime import datetime

import msgspec

from mailerd.campaigns.recurrence import Recurrence, following
from mailerd.campaigns.steering import SteeringStore
from mailerd.campaigns.store import CampaignStore, append, audit, notify
from mailerd.campaigns.timing import begin_at, last_due
from mailerd.campaigns.values import Campaign, Status
from mailerd.db import Connection

LAST_TIME = "its last time has come"


class UnknownCampaignError(LookupError):
    """This tenant has no such campaign."""


ADVICE: dict[Status, str] = {
    "draft": "send or schedule it first",
    "scheduled": "to stop it, cancel it, or put schedule_time to null to make a draft of it",
    "sending": "pause or cancel it first",
    "paused": "resume or cancel it first",
    "sent": "duplicate it and send the copy, or resend it to those it did not reach",
    "cancelled": "duplicate it and send the copy",
    "failed": "duplicate it and send the copy",
}
RECURRING = "the campaigns that come of it are sent: pause or cancel it, or duplicate it without recurrence"
NOT_OVER = "wait for its end, or cancel it first"


class WrongStatusError(Exception):
    """A campaign that stands there cannot be treated so; the text is public and says what may be done instead."""

    def __init__(self, campaign: Campaign, done: str, advice: str = "") -> None:
        live = campaign.recurrence is not None and campaign.status in ("draft", "scheduled", "paused")
        what = f"recurring and {campaign.status}" if live else campaign.status
        advice = advice or (RECURRING if live and done == "sent" else ADVICE[campaign.status])
        super().__init__(f"Campaign {campaign.name_outside} is {what} and cannot be {done}: {advice}.")
        self.status = campaign.status


class ChangedMeanwhileError(Exception):
    """Somebody changed the campaign after it was looked at; the text is public."""

    def __init__(self, campaign: Campaign) -> None:
        super().__init__(f"Campaign {campaign.name_outside} was changed at this moment. Read it again.")


class Lifecycle:
    """Each method is one step, in the caller's transaction; then `Steerer.steer` does what is to be done in the queue.

    Raises `UnknownCampaignError` and `WrongStatusError`.
    """

    def __init__(self, store: CampaignStore, steering: SteeringStore) -> None:
        self._store = store
        self._steering = steering

    async def send(self, seen: Campaign, *, actor: str, now: datetime, connection: Connection) -> Campaign:
        """Begin now, whatever its schedule says: with local time too everybody is due at once.

        `seen` is the campaign as it was checked; raises `ChangedMeanwhileError` when it is not that any more.
        """
        campaign = await self._locked(seen.id, seen.tenant, connection)
        if campaign.status not in ("draft", "scheduled") or campaign.recurrence is not None:
            raise WrongStatusError(campaign, "sent")
        if campaign.revision != seen.revision:
            raise ChangedMeanwhileError(campaign)
        await self._store.begin(seen.id, now, connection, at_once=True)
        await audit(connection, actor, "campaign.send", campaign)
        return await self._locked(seen.id, seen.tenant, connection)

    async def schedule(self, changed: Campaign, *, actor: str, now: datetime, connection: Connection) -> Campaign:
        """Store a draft or scheduled campaign that the caller has locked and changed, as scheduled for its time."""
        if changed.status not in ("draft", "scheduled"):
            raise WrongStatusError(changed, "scheduled")
        campaign = await self._store.change(replace(changed, status="scheduled", status_reason=""), now, connection)
        assert campaign.schedule_time is not None
        await audit(connection, actor, "campaign.schedule", campaign, at=campaign.schedule_time.isoformat())
        await notify(connection, campaign.id)
        return campaign

    async def pause(
        self, id_: int, tenant: str, *, actor: str, reason: str, now: datetime, connection: Connection
    ) -> Campaign:
        """Hand nothing more over and hold what is in the queue; of a recurring one no more campaigns come."""
        wanted: tuple[Status, ...] = ("sending", "scheduled", "sent")
        campaign = await self._fenced(id_, tenant, wanted, "paused", connection)
        if campaign.status == "scheduled" and campaign.recurrence is None:
            raise WrongStatusError(campaign, "paused")
        if campaign.status == "sent":
            await self._needs_mail(campaign, "paused", connection)
            await self._store.reopen(id_, connection)
        await self._store.set_run(id_, "paused", connection)
        await self._steering.wish(id_, "hold", connection)
        return await self._moved(
            campaign, "paused", reason, "campaign.paused", "campaign.pause", actor, now, connection
        )

    async def resume(self, id_: int, tenant: str, *, actor: str, now: datetime, connection: Connection) -> Campaign:
        """Go on where it was paused; a recurring one with the next time that has not begun anywhere."""
        campaign = await self._fenced(id_, tenant, ("paused",), "resumed", connection)
        if campaign.recurrence is not None:
            return await self._recur(campaign, campaign.recurrence, actor, now, connection)
        await self._store.set_run(id_, "running", connection)
        await self._steering.wish(id_, "release", connection)
        return await self._moved(campaign, "sending", "", "campaign.resumed", "campaign.resume", actor, now, connection)

    async def _recur(
        self, campaign: Campaign, rule: Recurrence, actor: str, now: datetime, connection: Connection
    ) -> Campaign:
        assert campaign.schedule_time is not None
        at: datetime | None = campaign.schedule_time
        if (begin := begin_at(campaign.timing, campaign.schedule_time)) <= now:
            at = following(rule, now + (campaign.schedule_time - begin))
        if at is None:
            await audit(connection, actor, "campaign.resume", campaign)
            return await self._store.finish(campaign, "sent", LAST_TIME, now, connection)
        again = replace(campaign, schedule_time=at)
        return await self._moved(again, "scheduled", "", "campaign.resumed", "campaign.resume", actor, now, connection)

    async def cancel(
        self, id_: int, tenant: str, *, actor: str, reason: str, now: datetime, connection: Connection
    ) -> Campaign:
        """Give up what is not handed over and take back what is still in the queue."""
        wanted: tuple[Status, ...] = ("scheduled", "sending", "paused", "sent", "failed")
        campaign = await self._fenced(id_, tenant, wanted, "cancelled", connection)
        if campaign.status in ("sent", "failed"):
            await self._needs_mail(campaign, "cancelled", connection)
        await self._store.set_run(id_, "ended", connection)
        await self._steering.wish(id_, "cancel", connection)
        stopped = await self._store.finish(campaign, "cancelled", reason, now, connection)
        await append(connection, stopped, "campaign.cancelled", now, by=actor, reason=reason)
        await audit(connection, actor, "campaign.cancel", stopped, reason=reason)
        await notify(connection, id_)
        return stopped

    async def delete(self, id_: int, tenant: str, *, actor: str, connection: Connection) -> None:
        """Forget a campaign that is not being sent, with its ledger and counts; its mail in the queue is cancelled."""
        campaign = await self._fenced(
            id_, tenant, ("draft", "scheduled", "sent", "cancelled", "failed"), "deleted", connection
        )
        await self._store.delete(id_, tenant, connection)
        await audit(connection, actor, "campaign.delete", campaign, name=campaign.name)

    async def _fenced(
        self, id_: int, tenant: str, wanted: tuple[Status, ...], done: str, connection: Connection
    ) -> Campaign:
        """The campaign, with its run and itself locked in that order."""
        await self._store.lock_run(id_, tenant, connection)
        campaign = await self._locked(id_, tenant, connection)
        if campaign.status not in wanted:
            raise WrongStatusError(campaign, done)
        return campaign

    async def _needs_mail(self, campaign: Campaign, done: str, connection: Connection) -> None:
        """All of it is handed over: there must be mail in the queue that can be stopped."""
        if not await self._store.has_mail(campaign.id, connection):
            raise WrongStatusError(campaign, done)

    async def _locked(self, id_: int, tenant: str, connection: Connection) -> Campaign:
        campaign = await self._store.locked(id_, tenant, connection)
        if campaign is None:
            raise UnknownCampaignError(id_)
        return campaign

    async def _moved(
        self,
        campaign: Campaign,
        status: Status,
        reason: str,
        event: str,
        action: str,
        actor: str,
        now: datetime,
        connection: Connection,
    ) -> Campaign:
        moved = await self._store.change(replace(campaign, status=status, status_reason=reason), now, connection)
        await append(connection, moved, event, now, by=actor, reason=reason)
        await audit(connection, actor, action, moved, **({"reason": reason} if reason else {}))
        await notify(connection, campaign.id)
        return moved


def copy_of(campaign: Campaign, *, name: str, created_by: str, now: datetime) -> Campaign:
    """A new draft that says the same."""
    rule = campaign.recurrence
    return replace(
        campaign,
        id=0,
        name=name,
        status="draft",
        status_reason="",
        schedule_time=None,
        recurrence=None if rule is None else msgspec.structs.replace(rule, made=0),
        parent_id=None,
        created_by=created_by,
        created_at=now,
    )


def is_late(campaign: Campaign, now: datetime, late_start: float) -> bool:
    """Whether the beginning of a scheduled campaign was missed by more than `late_start` seconds.

    With local time the first zones may have been past when it was scheduled: that is not late.
    """
    assert campaign.schedule_time is not None
    began = begin_at(campaign.timing, campaign.schedule_time)
    return (now - max(began, campaign.updated_at)).total_seconds() > late_start


def is_past(campaign: Campaign, now: datetime) -> bool:
    """Whether the schedule of a campaign is over everywhere."""
    assert campaign.schedule_time is not None
    return last_due(campaign.timing, campaign.schedule_time) < now
