"""What is to be done with mail of a campaign that is in the queue already: hold, release or cancel it, or forget all.

The wish stands in the row of the run, written in the transaction that changes the campaign's status. Whoever carries it
out takes it for a while and renews that while it works; should it die, another takes over when the time is up. Every
command may be repeated. When another wish has come meanwhile, that one is carried out too, so that the last word counts
however often a campaign is paused and resumed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeAlias, cast

import structlog

from mailerd.db import Connection, Pool
from mailerd.queue.ids import CAMPAIGN, format_id

log = structlog.get_logger()

Wish: TypeAlias = Literal["hold", "release", "cancel", "forget"]
LEASE = timedelta(seconds=30)
LONGEST = LEASE + timedelta(minutes=1)  # what is taken for longer was taken by a clock that was ahead
RENEW = 10.0  # seconds
PATIENCE = 1.0  # seconds that a sweep waits for one of those left behind, before it goes on behind
AT_ONCE = 5  # of them
STEP = 2_000  # rows of the ledger in one transaction
ACTOR = "campaign"  # in the audit and on held mail, when it is done after a crash

WISH = "UPDATE campaign_runs SET steering = $2, wishes = wishes + 1 WHERE campaign_id = $1"
TAKE = """
    UPDATE campaign_runs SET steering_until = $2 WHERE campaign_id = $1 AND steering <> ''
       AND (steering_until IS NULL OR steering_until NOT BETWEEN $3 AND $3::timestamptz + $4::interval)
 RETURNING tenant, steering, wishes, steering_until
"""
# Only while it is ours: whoever took it over, or was done with it, has changed the time.
RENEWED = """
    UPDATE campaign_runs SET steering_until = $3 WHERE campaign_id = $1 AND steering_until = $2 RETURNING steering_until
"""
DONE = """
    UPDATE campaign_runs SET steering = CASE WHEN wishes = $2 THEN '' ELSE steering END,
           steering_until = CASE WHEN wishes = $2 THEN NULL ELSE steering_until END
     WHERE campaign_id = $1 AND steering_until = $3 RETURNING steering, wishes
"""
WISHED = "SELECT EXISTS (SELECT FROM campaign_runs WHERE campaign_id = $1 AND steering <> '')"
LEFT = """
    SELECT campaign_id FROM campaign_runs
     WHERE steering <> ''
       AND (steering_until IS NULL OR steering_until NOT BETWEEN $1 AND $1::timestamptz + $3::interval)
     ORDER BY campaign_id LIMIT $2
"""
FORGET_LEDGER = """
    DELETE FROM campaign_contacts WHERE campaign_id = $1 AND contact_id IN (
           SELECT contact_id FROM campaign_contacts WHERE campaign_id = $1 ORDER BY contact_id LIMIT $2)
"""
FORGET = tuple(
    f"DELETE FROM {table} WHERE campaign_id = $1"
    for table in (
        "campaign_totals",
        "campaign_quarter_hours",
        "campaign_minutes",
        "campaign_domains",
        "campaign_links",
        "campaign_runs",
    )
)


class Queue(Protocol):
    """Mail of a campaign that is in the queue; `campaign` is its name there, `cmp_17`."""

    async def hold(self, campaign: str, tenant: str, actor: str) -> None: ...

    async def release(self, campaign: str, tenant: str, actor: str) -> None: ...

    async def cancel(self, campaign: str, tenant: str, actor: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """A wish that is ours to carry out `until` then; `number` tells it from the same one that comes later."""

    campaign_id: int
    tenant: str
    wish: Wish
    number: int
    until: datetime


class SteeringStore:
    """The wishes, and what of them happens in the ledger."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def wish(self, campaign_id: int, wish: Wish, connection: Connection) -> None:
        """Say what is to be done, in the transaction of the change it follows from."""
        await connection.execute(WISH, campaign_id, wish)

    async def take(self, campaign_id: int, now: datetime) -> Taken | None:
        """Take what is to be done; None: nothing is, or somebody is at it."""
        row = await self._pool.fetchrow(TAKE, campaign_id, now + LEASE, now, LONGEST)
        return None if row is None else Taken(campaign_id, *row)

    async def renew(self, taken: Taken, now: datetime) -> Taken | None:
        """Keep it for longer; None: it is another's, or done."""
        until = await self._pool.fetchval(RENEWED, taken.campaign_id, taken.until, now + LEASE)
        return None if until is None else replace(taken, until=until)

    async def done(self, taken: Taken) -> Taken | None:
        """It is carried out; returns what was wished meanwhile, which is ours as well."""
        left = await self._pool.fetchrow(DONE, taken.campaign_id, taken.number, taken.until)
        if left is None or not left["steering"]:
            return None
        return replace(taken, wish=cast("Wish", left["steering"]), number=left["wishes"])

    async def wished(self, campaign_id: int) -> bool:
        """Is there something to be done, or under way?"""
        return bool(await self._pool.fetchval(WISHED, campaign_id))

    async def left(self, now: datetime, limit: int = 100) -> list[int]:
        """Campaigns with something to be done that nobody is at."""
        return [row["campaign_id"] for row in await self._pool.fetch(LEFT, now, limit, LONGEST)]

    async def forget(self, campaign_id: int) -> None:
        """Drop the ledger and the counts of a campaign that is deleted, in steps; the run last."""
        while await self._pool.execute(FORGET_LEDGER, campaign_id, STEP) != "DELETE 0":
            pass
        async with self._pool.acquire() as connection, connection.transaction():
            for statement in FORGET:  # who adds to them waits at the first, and holds none of the others
                await connection.execute(statement, campaign_id)


class Steerer:
    """Carries wishes out: at once when one is written here, and what others have left behind."""

    def __init__(self, store: SteeringStore, queue: Queue, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def steer(self, campaign_id: int, *, actor: str = ACTOR, patience: float | None = None) -> bool:
        """Carry out what is wished of a campaign now, unless another is at it; goes on behind after `patience`.

        False: it goes on, here or elsewhere, or has failed and is tried again.
        """
        task = self._tasks.get(campaign_id)
        if task is None:
            task = asyncio.create_task(self._carry_out(campaign_id, actor), name=f"steer campaign {campaign_id}")
            self._tasks[campaign_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(campaign_id, None))
        await asyncio.wait({task}, timeout=patience)
        return task.done() and not await self._store.wished(campaign_id)

    async def under_way(self, campaign_id: int) -> bool:
        """Is something wished of a campaign that is not carried out yet, here or elsewhere?"""
        return await self._store.wished(campaign_id)

    async def sweep(self) -> None:
        """Carry out what was left by whoever died over it, some at a time; what takes long goes on behind."""
        for campaign_id in await self._store.left(self._clock(), max(0, AT_ONCE - len(self._tasks))):
            await self.steer(campaign_id, patience=PATIENCE)

    async def stop(self) -> None:
        """Leave off; what is not done is left for the sweep of whoever runs next."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, campaign_id: int, actor: str) -> None:
        try:
            taken = await self._store.take(campaign_id, self._clock())
            while taken is not None:
                log.info("campaign.steered", campaign=format_id(CAMPAIGN, campaign_id), wish=taken.wish)
                kept = await self._renewing(taken, self._do(taken, actor))
                taken = None if kept is None or kept.wish == "forget" else await self._store.done(kept)
        except Exception:  # the wish stays, and is carried out by the next sweep
            log.exception("campaign.steering_failed", campaign=format_id(CAMPAIGN, campaign_id))

    async def _do(self, taken: Taken, actor: str) -> None:
        name, tenant = format_id(CAMPAIGN, taken.campaign_id), taken.tenant
        match taken.wish:
            case "hold":
                await self._queue.hold(name, tenant, actor)
            case "release":
                await self._queue.release(name, tenant, actor)
            case "cancel":
                await self._queue.cancel(name, tenant, actor)
            case "forget":
                await self._queue.cancel(name, tenant, actor)
                await self._store.forget(taken.campaign_id)

    async def _renewing(self, taken: Taken, work: Awaitable[None]) -> Taken | None:
        """Do the work and keep it ours; None: it was left off, since another took it over while we stood still."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=RENEW))[0]:
                renewed = await self._store.renew(taken, self._clock())
                if renewed is None:
                    log.warning("campaign.steering_lost", campaign=format_id(CAMPAIGN, taken.campaign_id))
                    return None
                taken = renewed
            await task
            return taken
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
