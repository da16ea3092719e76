"""Writing the ledger: the audience of a campaign that has begun, range by range of contact ids, each in a transaction.

Nothing is written twice and nobody is left out, however often it is interrupted: how far it has come is moved in the
transaction of the rows. Ranges are written by any worker, of one campaign by one at a time, while others hand over what
is there already. Ranges are as large as a second or so allows, so that conditions that are slow to judge hold up nobody
else; campaigns that have nothing yet come first, and tenants take turns. What a segment says of days is judged as of
the beginning for all ranges; who belongs to lists and segments, as of the range.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import structlog

from mailerd.campaigns.audience import AudienceError, read_audience
from mailerd.campaigns.audience_store import MANY_ROWS, AudienceStore
from mailerd.campaigns.audience_store import select as select_of
from mailerd.campaigns.ledger import LedgerStore
from mailerd.campaigns.runner.runs import Lacking, RunStore, Unwritten
from mailerd.campaigns.segments.parameters import Compiled
from mailerd.campaigns.statistics import StatisticsStore
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.timing import Timing, due
from mailerd.campaigns.values import Campaign
from mailerd.db import Connection, Pool
from mailerd.queue.commit import LOST

log = structlog.get_logger()

FIRST_RANGE = 5_000  # contacts: the first mail leaves soon
RANGE = 50_000  # at most
LEAST = 100
STEP_TIME = 1.0  # seconds that a range should take
ROUND = 1.0  # seconds until it is looked again who has nothing yet
# Seconds for a statement, then it is tried with fewer contacts; with the fewest.
PATIENCE, LAST_PATIENCE = 5.0, 20.0
AT_ONCE = 100  # campaigns of one look
TOGETHER = 4  # campaigns written at the same time, of those that have nothing yet
REFRESH = 1.0  # seconds between looks whether what the planner knows is true
AGAIN = 10.0  # seconds until the next try of a range that failed
TRIES = 10  # of a range of the fewest contacts, then the campaign fails
TOO_SLOW = "who belongs to its audience could not be found in time, not even of a few contacts"
SKIPPED = "skipped_time"


class _Ended(Exception):  # noqa: N818 - nothing went wrong
    """The campaign was ended while a range of it was written."""


class Writing:
    """Writes ledgers."""

    def __init__(
        self, pool: Pool, clock: Callable[[], datetime], *, first: int = FIRST_RANGE, size: int = RANGE
    ) -> None:
        self._pool = pool
        self._statistics = StatisticsStore(pool)
        self._clock = clock
        self._first = first
        self._size = size
        self._runs = RunStore(pool)
        self._ledger = LedgerStore()
        self._audiences = AudienceStore(pool)
        self._campaigns = CampaignStore(pool)
        self._not_before: dict[int, float] = {}  # campaigns that cannot be written, of the monotonic clock
        self._sizes: dict[int, int] = {}  # of the next range of campaigns that had one, or could not have it in time
        self._tries: Counter[int] = Counter()  # that failed in a row, of the fewest contacts
        self._refresh_at = 0.0
        self._served: dict[str, float] = {}  # when tenants had their last turn

    async def round(self) -> int:
        """A range of each campaign that lacks some, for about `ROUND`: of how many.

        Raises what tells of a lost database.
        """
        written, until = 0, time.monotonic() + ROUND
        lacking = [each for each in await self._runs.unwritten(AT_ONCE) if self._may(each)]
        self._sizes = {each.campaign_id: size for each in lacking if (size := self._sizes.get(each.campaign_id))}
        self._served = {each.tenant: self._served.get(each.tenant, 0.0) for each in lacking}
        random.shuffle(lacking)  # others look at the same ones
        while lacking:
            chosen = self._choose(lacking)
            written += sum(await _all([self._try(each.campaign_id) for each in chosen]))
            if time.monotonic() > until:
                break
        return written

    def _choose(self, lacking: list[Lacking]) -> list[Lacking]:
        """Take the next one out, or some of those that have nothing yet: of these most is waiting for the database."""
        chosen: list[Lacking] = []
        while lacking and len(chosen) < TOGETHER:
            first = min(lacking, key=self._turn)
            if chosen and not self._is_new(first):
                break
            lacking.remove(first)
            chosen.append(first)
            self._served[first.tenant] = time.monotonic()
            if not self._is_new(first):
                break
        return chosen

    def _is_new(self, lacking: Lacking) -> bool:
        return not lacking.begun and lacking.campaign_id not in self._sizes

    def _may(self, lacking: Lacking) -> bool:
        return self._not_before.get(lacking.campaign_id, 0.0) <= time.monotonic()

    def _turn(self, lacking: Lacking) -> tuple[bool, float, int]:
        """Whose is first: of those who have nothing, and of one tenant the one whose ranges are quicker."""
        size = self._sizes.get(lacking.campaign_id)
        return not self._is_new(lacking), self._served[lacking.tenant], -(size or 0)

    async def _try(self, campaign_id: int) -> bool:
        """Whether there may be more to do."""
        try:
            more = await self.step(campaign_id)
            self._tries.pop(campaign_id, None)
            return more
        except (TimeoutError, asyncpg.QueryCanceledError) as error:  # such as a segment that takes too long
            if (size := self._sizes.get(campaign_id, self._first)) > LEAST:
                self._sizes[campaign_id] = max(LEAST, size // 4)
                log.info("ledger.range_too_large", campaign=campaign_id, contacts=size)
                return True
            log.warning("ledger.not_written", campaign=campaign_id, error=str(error))
            if isinstance(error, asyncpg.QueryCanceledError):  # else the database may be away
                await self._give_up_after_some(campaign_id)
        except LOST:
            raise
        except Exception:  # the others go on
            log.exception("ledger.not_written", campaign=campaign_id)
        self._not_before[campaign_id] = time.monotonic() + AGAIN
        return False

    async def step(self, campaign_id: int) -> bool:
        """One range of this campaign; False: somebody else is at it, or there is nothing to write."""
        campaign = await self._campaigns.get(campaign_id, None)
        if campaign is None:
            return False
        try:
            return await self._range(campaign)
        except _Ended:
            return False
        except AudienceError as error:  # such as a list that was deleted
            return await self._fail(campaign, str(error))

    async def _range(self, campaign: Campaign) -> bool:
        resolved = (
            None
            if campaign.options.resend is not None
            else await self._audiences.resolve(campaign.tenant, read_audience(campaign.audience))
        )
        if (monotonic := time.monotonic()) >= self._refresh_at:
            self._refresh_at = monotonic + REFRESH
            await self._statistics.refresh()
        async with self._pool.acquire() as connection, connection.transaction():
            run = await self._runs.to_write(connection, campaign.id)
            if run is None:
                return False
            await connection.execute(MANY_ROWS)
            size, begun = self._sizes.get(campaign.id, self._first), time.monotonic()
            patience = PATIENCE if size > LEAST else LAST_PATIENCE
            await connection.execute(f"SET LOCAL statement_timeout = {int(patience * 1000)}")
            if resolved is not None:
                end = await self._audiences.next_end(resolved, run.written_to, size, connection)
                select = end and select_of(resolved, run.written_to, end, now=run.started_at)
                # Looked for at once: its next turn would wait for the hand-over, which has these rows in hand by then.
                last = end is None or await self._audiences.next_end(resolved, end, 1, connection) is None
            else:
                end, select = await self._of_ledger(connection, campaign, run, size)
                last = end is None
            rows = await self._write(connection, campaign, run, select) if select else 0
            if not await self._runs.wrote(connection, run, end or run.written_to, rows, all_=last):
                raise _Ended
        took = max(0.001, time.monotonic() - begun)
        least = min(LEAST, self._first)
        self._sizes[campaign.id] = min(self._size, max(least, int(size * min(10.0, STEP_TIME / took))))
        log.info("ledger.written", campaign=campaign.id, rows=rows, to=end, all=last)
        return True

    async def _of_ledger(
        self, connection: Connection, campaign: Campaign, run: Unwritten, size: int
    ) -> tuple[int | None, Compiled | None]:
        """The next range of those whom an earlier campaign did not reach."""
        resend = campaign.options.resend
        assert resend is not None
        end = await self._ledger.range_end(connection, resend.campaign, run.written_to, size)
        if end is None:
            return None, None
        return end, self._ledger.reached_so(resend, campaign.tenant, run.written_to, end)

    async def _write(self, connection: Connection, campaign: Campaign, run: Unwritten, select: Compiled) -> int:
        timing, began = campaign.timing, run.started_at
        if not _by_zone(timing):
            at = due(timing, campaign.schedule_time, "", began)
            return await self._ledger.write(connection, campaign.id, select, at or began)
        dues = {}
        for zone in await self._ledger.zones(connection, select):
            at = due(timing, campaign.schedule_time, zone, began)
            # Who is skipped is handed over to nobody, in turn, so that it is counted like all others.
            dues[zone] = (began, SKIPPED) if at is None else (at, "")
        return await self._ledger.write_by_zone(connection, campaign.id, select, dues)

    async def _give_up_after_some(self, campaign_id: int) -> None:
        """The fewest contacts took too long: after so many tries in a row it fails."""
        self._tries[campaign_id] += 1
        if self._tries[campaign_id] < TRIES:
            return
        campaign = await self._campaigns.get(campaign_id, None)
        if campaign is not None and await self._fail(campaign, TOO_SLOW):
            del self._tries[campaign_id]

    async def _fail(self, campaign: Campaign, reason: str) -> bool:
        """False: it is not being sent now, such as paused, and it is seen again when it is."""
        now = self._clock()
        async with self._pool.acquire() as connection, connection.transaction():
            if await self._campaigns.ended(campaign.id, "failed", reason, now, connection):
                log.warning("campaign.failed", campaign=campaign.id, reason=reason)
                return True
        self._not_before[campaign.id] = time.monotonic() + AGAIN
        return False


async def _all(tries: Sequence[Coroutine[Any, Any, bool]]) -> list[bool]:
    """What came of each, when all have ended; raises the first error."""
    found = await asyncio.gather(*tries, return_exceptions=True)
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return [result for result in found if result is True]


def _by_zone(timing: Timing) -> bool:
    """Does it matter where a contact is?"""
    return timing.local_time or (timing.window is not None and timing.window.time_zone is None)
