"""The hand-over: rows of the ledger that are due become mail in the queue, in one transaction.

Order of locks: the campaigns' rows in `campaign_runs` (skipping those that others have), then rows of the ledger, which
nobody else takes without that, then queues, then roll-ups.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from mailerd.campaigns.analytics.counts import Delta
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.campaigns.edition import Edition, Editions, NoEditionError
from mailerd.campaigns.ledger import Done, DueRow, LedgerStore, Status
from mailerd.campaigns.ledger import Turn as Ask
from mailerd.campaigns.runner.runs import Moved, RunStore, Turn
from mailerd.campaigns.runner.turns import MOST_CAMPAIGNS, next_turn, share
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.timing import open_at
from mailerd.config import Config
from mailerd.db import Connection, Pool
from mailerd.errors import Refused
from mailerd.intake.hand_over import Deferred, HandOver
from mailerd.queue.ids import CAMPAIGN, format_id
from mailerd.queue.suppression import CAMPAIGNS, Reason, SuppressionStore, Wanted

log = structlog.get_logger()

SPILL = 100  # rows of a turn for which there is no room in memory, so that the queue has mail of the campaign
SLOWLY = 0.25  # seconds between such turns, and small ones: those of others come in between
AGAIN = timedelta(seconds=30)  # until the next turn of a campaign whose turn failed
REASONS = {
    Reason.UNSUBSCRIBE: "unsubscribed",
    Reason.BOUNCE: "bounced",
    Reason.SOFT_BOUNCE: "bounced",
    Reason.COMPLAINT: "complained",
    Reason.MANUAL: "suppressed",
}


class Queue(Protocol):
    """Where mail is handed over to: the worker's `Submitter`."""

    def hand_over(self) -> HandOver: ...
    def room(self, tenant: str, campaign: str) -> int: ...
    def held(self, tenant: str, campaign: str) -> int: ...


@dataclass(slots=True)
class _Batch:
    """What becomes of the rows of one transaction."""

    now: datetime
    editions: dict[int, Edition] = field(default_factory=dict)
    spare: dict[int, int] = field(default_factory=dict)  # rows that each campaign may have
    done: list[Done] = field(default_factory=list)
    put_off: list[tuple[int, int, datetime]] = field(default_factory=list)
    counts: Counter[tuple[int, str, str]] = field(default_factory=Counter)  # campaign, domain, count
    handed: Counter[int] = field(default_factory=Counter)
    taken: Counter[int] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)  # campaigns that cannot be sent, and why

    def leave_out(self, row: DueRow, reason: str) -> None:
        self.done.append(Done(row.campaign_id, row.contact_id, Status.SUPPRESSED, None, reason))
        self.counts[row.campaign_id, _domain(row.address), "suppressed"] += 1

    def hand(self, row: DueRow, message_id: int) -> None:
        self.done.append(Done(row.campaign_id, row.contact_id, Status.QUEUED, message_id))
        self.counts[row.campaign_id, _domain(row.address), "queued"] += 1
        self.handed[row.campaign_id] += 1

    def deltas(self) -> Iterable[Delta]:
        for (campaign_id, domain, name), count in sorted(self.counts.items()):
            yield Delta(campaign_id, self.editions[campaign_id].campaign.tenant, self.now, domain, {name: count})


class Handing:
    """Hands over as much at a time as the worker's memory has room for, and slowly when it has none.

    A campaign whose mail does not leave fills the part of the memory that one campaign may have, and its paths; what
    comes then waits in the database, where it is claimed when its turn is. It has fewer turns, the others as before.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        *,
        queue: Queue,
        editions: Editions,
        suppressions: SuppressionStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._queue = queue
        self._editions = editions
        self._suppressions = suppressions
        self._clock = clock
        self._runs = RunStore(pool)
        self._ledger = LedgerStore()
        self._campaigns = CampaignStore(pool)
        self._roll_ups = RollUpStore()
        self._slow: dict[int, float] = {}  # campaigns without room: no turn before that, of the monotonic clock
        self._last: list[int] = []  # whose turn it was
        self._unknown: list[Turn] = []  # whose turn it was, and we did not know what they say
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What is handed over from now on follows `config`."""
        self._pace = config.campaigns.pace.count / config.campaigns.pace.period
        self._batch = config.campaigns.batch
        self._consent = {name for name, tenant in config.tenants.items() if tenant.consent == "required"}

    def pace(self, edition: Edition) -> float:
        """Contacts a second."""
        asked = edition.campaign.options.pace
        return self._pace if asked is None else asked / 60

    async def step(self, only: int | None = None) -> bool:
        """One transaction with the campaigns whose turn it is; False: there is none with room.

        What it raises has changed nothing. `only`: that campaign and no other.
        """
        hand = self._queue.hand_over()
        self._last, self._unknown = [], []
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                batch = await self._hand_over(connection, hand, only)
        except BaseException:
            hand.failed()
            raise
        hand.done()
        self._slow_down(hand, batch)
        for turn in self._unknown:
            await self._read(turn)
        return bool(self._last)

    async def alone(self) -> None:
        """After a step that failed: each of its campaigns by itself, so that one does not stop the others.

        The one whose fault it was has no turn for a while. Raises what taking a turn from it raises.
        """
        for campaign_id in self._last:
            try:
                await self.step(campaign_id)
            except Exception:
                log.exception("campaign.turn_failed", campaign=campaign_id)
                await self._runs.put_off(campaign_id, self._clock(), AGAIN)

    @property
    def slow_for(self) -> float:
        """Seconds until one has a turn that is passed over for a moment; 0: there is none."""
        now = time.monotonic()
        return min((until - now for until in self._slow.values() if until > now), default=0.0)

    def _slow_down(self, hand: HandOver, batch: _Batch) -> None:
        """Fewer turns to those of whose mail this worker did not keep half: it would only wait in the database."""
        kept = Counter(each.campaign_id for each in batch.done if each.message_id and hand.kept(each.message_id))
        for campaign_id, handed in batch.handed.items():
            if 2 * kept[campaign_id] < handed:
                self._slow[campaign_id] = time.monotonic() + SLOWLY

    def _spare(self, turn: Turn) -> int:
        """How many rows this campaign may have now; 0: it is passed over for a moment, and then may have some."""
        campaign = format_id(CAMPAIGN, turn.campaign_id)
        room = self._queue.room(turn.tenant, campaign)
        # A turn costs the same for a row as for a batch: one with plenty in memory waits until there is room for many.
        if room >= self._batch // 2 or room > self._queue.held(turn.tenant, campaign):
            self._slow.pop(turn.campaign_id, None)
        elif self._slow.pop(turn.campaign_id, 0.0):
            room = room or SPILL
        else:
            self._slow[turn.campaign_id] = time.monotonic() + SLOWLY
            room = 0
        return room

    async def _hand_over(self, connection: Connection, hand: HandOver, only: int | None) -> _Batch:
        batch = _Batch(self._clock())
        monotonic = time.monotonic()
        self._slow = {id_: until for id_, until in self._slow.items() if until > monotonic - 10 * SLOWLY}
        passed = [id_ for id_, until in self._slow.items() if until > monotonic and id_ != only]
        turns = await self._runs.turns(connection, batch.now, most=MOST_CAMPAIGNS, only=only, but=passed)
        self._last = [turn.campaign_id for turn in turns]
        batch.spare = {turn.campaign_id: self._spare(turn) for turn in turns}
        turns = [turn for turn in turns if batch.spare[turn.campaign_id] > 0]
        for turn in turns:
            edition = self._editions.known(turn.campaign_id, turn.version_id, turn.revision)
            if edition is None:
                self._unknown.append(turn)
            else:
                batch.editions[turn.campaign_id] = edition
        turns = [turn for turn in turns if turn.campaign_id in batch.editions]
        moved = [closed for turn in turns if (closed := self._closed(turn, batch))]
        shut = {each.campaign_id for each in moved}
        going = [turn for turn in turns if turn.campaign_id not in shut]
        if going:
            moved += await self._go_on(connection, hand, going, batch)
        if moved:
            await self._runs.move(connection, moved, batch.now)
        await self._roll_ups.add(connection, batch.deltas())
        return batch

    def _closed(self, turn: Turn, batch: _Batch) -> Moved | None:
        """When it opens, if now no mail of it may go out to anybody."""
        timing = batch.editions[turn.campaign_id].campaign.timing
        if timing.window is None or timing.window.time_zone is None:
            return None
        opens = open_at(timing, batch.now, "")
        return Moved(turn.campaign_id, opens) if opens > batch.now else None

    async def _go_on(self, connection: Connection, hand: HandOver, turns: Sequence[Turn], batch: _Batch) -> list[Moved]:
        asked = []
        for turn in turns:
            edition = batch.editions[turn.campaign_id]
            room = batch.spare[turn.campaign_id]
            most = share(self.pace(edition), batch=self._batch, room=room, campaigns=len(turns))
            consent = turn.tenant in self._consent
            asked.append(Ask(turn.campaign_id, turn.tenant, most, consent, edition.lists, edition.alone))
        rows = await self._ledger.take(connection, asked, batch.now)
        await self._decide(connection, hand, rows, batch)
        await hand.store(connection)
        await self._ledger.mark(connection, batch.done, batch.now)
        await self._ledger.put_off(connection, batch.put_off)
        return await self._move_on(connection, turns, asked, batch)

    async def _decide(self, connection: Connection, hand: HandOver, rows: Sequence[DueRow], batch: _Batch) -> None:
        """Who of these is sent to, who is not, and who later."""
        wanted: list[tuple[DueRow, Wanted]] = []
        for row in rows:
            batch.taken[row.campaign_id] += 1
            edition = batch.editions[row.campaign_id]
            options, timing = edition.campaign.options, edition.campaign.timing
            if row.address is None:
                batch.leave_out(row, "erased")
            elif reason := row.reason or ("left_list" if row.has_left else "no_consent" if row.lacks_consent else ""):
                batch.leave_out(row, reason)
            elif timing.window and (opens := open_at(timing, batch.now, row.time_zone or "")) > batch.now:
                batch.put_off.append((row.campaign_id, row.contact_id, opens))
            else:
                tenant = edition.campaign.tenant
                wanted.append((row, Wanted(row.address, tenant, options.stream, options.topic, CAMPAIGNS)))
        if not wanted:
            return
        found = await self._suppressions.check([each for _, each in wanted], batch.now, connection)
        for (row, _), suppression in zip(wanted, found, strict=True):
            if suppression is not None:
                batch.leave_out(row, REASONS[suppression.reason])
            elif row.campaign_id not in batch.broken:
                self._hand(hand, row, batch)

    def _hand(self, hand: HandOver, row: DueRow, batch: _Batch) -> None:
        edition = batch.editions[row.campaign_id]
        try:
            batch.hand(row, hand.add(_deferred(edition, row)))
        except Refused as refusal:
            if refusal.name == "invalid_address":
                batch.leave_out(row, "invalid_address")
            else:  # such as a stream that was taken out of the configuration
                batch.broken[row.campaign_id] = refusal.text

    async def _move_on(
        self, connection: Connection, turns: Sequence[Turn], asked: Sequence[Ask], batch: _Batch
    ) -> list[Moved]:
        """When each has its next turn; those end of which nothing is left."""
        short = [ask.campaign_id for ask in asked if batch.taken[ask.campaign_id] < ask.most]
        due = await self._ledger.next_due(connection, short)
        moved = []
        for turn in turns:
            id_ = turn.campaign_id
            next_at = next_turn(turn.next_at, batch.now, batch.handed[id_], self.pace(batch.editions[id_]))
            waits = True
            if id_ in batch.broken:
                await self._end(connection, id_, "failed", batch.broken[id_], batch.now)
            elif id_ in due:
                first = due[id_]
                if not turn.written:
                    waits = first is not None and first <= batch.now  # else the next range lets it go on
                elif first is None:
                    waits = False
                    await self._end(connection, id_, "sent", "", batch.now)
                else:
                    next_at = max(next_at, first)
            moved.append(Moved(id_, next_at, waits))
        return moved

    async def _read(self, turn: Turn) -> None:
        """Learn what a campaign says whose turn it was."""
        try:
            await self._editions.load(turn.campaign_id, turn.version_id)
        except NoEditionError as error:
            async with self._pool.acquire() as connection, connection.transaction():
                now = self._clock()
                if await self._runs.turns(connection, now, most=1, only=turn.campaign_id):
                    await self._end(connection, turn.campaign_id, "failed", str(error), now)

    async def _end(self, connection: Connection, id_: int, status: str, reason: str, now: datetime) -> None:
        assert status in ("sent", "failed")
        if await self._campaigns.ended(id_, "sent" if status == "sent" else "failed", reason, now, connection):
            log.info("campaign.ended", campaign=id_, status=status, reason=reason)


def _deferred(edition: Edition, row: DueRow) -> Deferred:
    campaign = edition.campaign
    options = campaign.options
    assert row.email is not None
    return Deferred(
        sender=campaign.sender_email,
        address=row.email,
        render=f"{campaign.id}:{edition.version_id}:{row.contact_id}",
        tenant=campaign.tenant,
        campaign=edition.name,
        credential=campaign.created_by,
        stream=options.stream,
        pool=options.pool,
        topic=options.topic,
        size=edition.size,
        subject=campaign.subject or edition.prepared.compiled.subject,
    )


def _domain(address: str | None) -> str:
    return "" if address is None else address.rpartition("@")[2]
