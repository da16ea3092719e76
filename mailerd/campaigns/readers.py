"""The contacts that mails are rendered for, as they stand at that moment: one query for all wanted at a time."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from mailerd.campaigns.templates.contexts import Person
from mailerd.db import Pool

AT_ONCE = 200  # contacts of one query
FEW = 16  # that are worth a query of their own
GATHER = 0.005  # seconds between queries with fewer
STALE = 0.06  # seconds: what was read ahead before that would be too old by the time it is sent (`queue.screening`)
KEPT = 1.0  # seconds that it is kept for
# As the hand-over asks it (`ledger.TAKE`), for contacts of many campaigns together.
# Arrays come through a SELECT: a planner that sees their length makes each time a plan of its own, which takes longer
# than to carry it out.
READ = """
    WITH asked AS MATERIALIZED (
        SELECT place, campaign_id, contact_id, tenant, consent, tags, lists::bigint[] AS lists,
               alone AND NOT EXISTS (
                   SELECT FROM unnest(lists::bigint[]) AS wanted (id)
                    WHERE NOT EXISTS (SELECT FROM contact_lists AS known
                                       WHERE known.id = wanted.id AND known.type = 'static')) AS bound
          FROM unnest(
               (SELECT $1::int[]), (SELECT $2::bigint[]), (SELECT $3::bigint[]), (SELECT $4::text[]),
               (SELECT $5::bool[]), (SELECT $6::text[]), (SELECT $7::bool[]), (SELECT $8::bool[]))
            AS asked (place, campaign_id, contact_id, tenant, consent, lists, alone, tags)
    )
    SELECT asked.place, c.id, c.email, c.first_name, c.last_name, c.phone,
           CASE WHEN asked.tags THEN ARRAY(
               SELECT tag.name FROM contact_tags AS has JOIN tags AS tag ON tag.id = has.tag_id
                WHERE has.contact_id = c.id ORDER BY tag.name) ELSE '{}' END AS tags,
           c.custom_fields, c.time_zone, c.created_at, c.tracking, asked.bound AND NOT EXISTS (
               SELECT FROM list_contacts AS member WHERE member.contact_id = c.id
                  AND member.list_id = ANY (asked.lists) AND member.status = 'subscribed') AS has_left,
           asked.consent AND NOT COALESCE((
               SELECT action = 'granted' FROM consents AS said
                WHERE said.tenant = c.tenant AND said.address = c.address
                  AND (said.list_id IS NULL OR said.list_id = ANY (asked.lists))
                ORDER BY at DESC, id DESC LIMIT 1), false) AS lacks_consent,
           NOT EXISTS (SELECT FROM campaigns AS sent
                        WHERE sent.id = asked.campaign_id AND sent.status <> 'cancelled') AS is_over
      FROM asked JOIN contacts AS c ON c.id = asked.contact_id AND c.tenant = asked.tenant
"""


class Wanted(NamedTuple):
    """Whom to read. `tags`: with the names of his tags. The others are those of `ledger.Turn`."""

    campaign_id: int
    contact_id: int
    tenant: str
    consent: bool
    lists: Sequence[int]
    alone: bool
    tags: bool


@dataclass(frozen=True, slots=True)
class Reader:
    """A contact, and whether the campaign may still reach it. `tracking`: it may be tracked."""

    person: Person
    tracking: bool
    has_left: bool
    lacks_consent: bool
    is_over: bool  # the campaign was cancelled or deleted


class Answer(NamedTuple):
    """None: the tenant has no contact of that id. `asked_at`: when the query was sent, of the monotonic clock."""

    reader: Reader | None
    asked_at: float


class ReaderStore:
    """Reads them. What gathers while one query runs makes up the next."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: list[tuple[Wanted, asyncio.Future[Answer]]] = []
        self._ahead: dict[Wanted, tuple[float, asyncio.Future[Answer]]] = {}  # with when that was, oldest first
        self._running: asyncio.Task[None] | None = None

    def ahead(self, wanted: Sequence[Wanted]) -> None:
        """Read these: they are asked for by `read_ahead` in a moment."""
        now = time.monotonic()
        while self._ahead and (oldest := next(iter(self._ahead.items())))[1][0] < now - KEPT:
            del self._ahead[oldest[0]]  # it was not sent after all
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = now, self._ask(each)

    async def read_ahead(self, wanted: Wanted) -> Answer:
        """That contact as it was a moment ago, if it has been read ahead, else as `read` does."""
        _, asked = self._ahead.pop(wanted, (0.0, None))
        if asked is not None:
            with suppress(Exception):  # the next one may have more luck
                answer = await asked
                if answer.asked_at > time.monotonic() - STALE:
                    return answer
        return await self.read(wanted)

    async def read(self, wanted: Wanted) -> Answer:
        """That contact as it is now. Raises what asking the database raises."""
        return await self._ask(wanted)

    def _ask(self, wanted: Wanted) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="read contacts")
        return answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                await self._answer([each for each in batch if not each[1].done()])
                # As `queue.screening` does it.
                if len(self._waiting) < FEW and (len(batch) > 1 or self._waiting):
                    await asyncio.sleep(GATHER)
        finally:
            self._running = None

    async def _answer(self, batch: Sequence[tuple[Wanted, "asyncio.Future[Answer]"]]) -> None:
        asked_at = time.monotonic()
        try:
            found = await self._read([wanted for wanted, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                    answer.exception()  # who asked ahead may not look
            if not isinstance(error, Exception):
                raise
            return
        for place, (_, answer) in enumerate(batch):
            if not answer.done():
                answer.set_result(Answer(found.get(place), asked_at))

    async def _read(self, wanted: Sequence[Wanted]) -> dict[int, Reader]:
        if not wanted:
            return {}
        campaigns, contacts, tenants, consents, lists, alone, tags = zip(*wanted, strict=True)
        rows = await self._pool.fetch(
            READ,
            range(len(wanted)),
            campaigns,
            contacts,
            tenants,
            consents,
            [array(each) for each in lists],
            alone,
            tags,
        )
        return {row[0]: Reader(Person(*row[1:10]), *row[10:]) for row in rows}


def array(numbers: Sequence[int]) -> str:
    """As text of a PostgreSQL array: arrays of arrays must all be of one length."""
    return "{" + ",".join(map(str, numbers)) + "}"
