"""Tells who made the hits: some seconds after they came they leave their table and become events, exactly once."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import asyncpg
import structlog

from mailerd import metrics
from mailerd.campaigns.contacts.erasure import is_erased
from mailerd.campaigns.tracking.actors import RULES, SETTLED, Actor, Judged, Network, folded, groups, judge
from mailerd.campaigns.tracking.records import Hit
from mailerd.campaigns.tracking.store import HitStore, Mail, Mailing, Person, Stored, microseconds, moment
from mailerd.config import Config
from mailerd.db import Pool
from mailerd.errors import DatabaseError
from mailerd.events import Event, EventStore
from mailerd.queue.commit import LOST
from mailerd.queue.ids import CAMPAIGN, format_id

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    PooledConnection = PoolConnectionProxy[asyncpg.Record]

log = structlog.get_logger()

EVERY = 1.0  # seconds
AGAIN = 2.0  # after a failure
AT_ONCE = 400  # hits looked at in one transaction
BREATH = 50  # messages, or hits: then whoever asks for a pixel in this worker is answered
TROUBLE = (*LOST, DatabaseError, asyncpg.PostgresError)
TYPES = {"opened": "recipient.opened", "clicked": "recipient.clicked"}
STREAM = "marketing"  # of campaigns that say none
T = TypeVar("T")


class Told(NamedTuple):
    """A hit, the rows of the table that it stands in, and who made it."""

    ids: list[int]
    hit: Hit
    judged: Judged


class Classifier:
    """`run()` it on any number of nodes: one at a time is at work."""

    def __init__(self, pool: Pool, config: Config, clock: Callable[[], datetime]) -> None:
        self._pool = pool
        self._clock = clock
        self._store = HitStore(pool)
        self._events = EventStore(pool)
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        self._scanners: list[Network] = [ip_network(str(network)) for network in config.campaigns.scanners]

    async def run(self) -> None:
        """Until cancelled. While the database is away, hits wait."""
        while True:
            wait = EVERY
            try:
                while await self.turn():
                    pass
            except TROUBLE as error:
                log.warning("hits.not_told", error=str(error) or type(error).__name__)
                wait = AGAIN
            except Exception:
                log.exception("hits.not_told")
                wait = AGAIN
            await asyncio.sleep(wait)

    async def turn(self) -> bool:
        """Tell some of the hits that can be told now; whether there may be more."""
        now = microseconds(self._clock())
        async with self._pool.acquire() as connection, connection.transaction():
            if not await self._store.alone(connection):
                return False
            before = moment(now) - timedelta(microseconds=SETTLED)
            messages = await self._store.settled(connection, before, AT_ONCE)
            if not messages:
                return False
            return await self._tell(connection, messages, now)

    async def _tell(self, connection: "PooledConnection", messages: Sequence[int], now: int) -> bool:
        by_message: dict[int, list[Stored]] = defaultdict(list)
        for stored in await self._store.of_messages(connection, messages):
            by_message[stored.hit.message_id].append(stored)
        mailings = await self._store.mailings(
            connection, {stored[0].hit.campaign_id for stored in by_message.values()} - {0}
        )
        told: list[Told] = []
        async for hits in _calmly(list(by_message.values())):
            told += self._judged(hits, mailings, now)
        people = await self._store.people(connection, {each.hit.contact_id for each in told} - {0})
        mails = await self._store.mails(
            connection, {each.hit.message_id for each in told if not (each.hit.campaign_id or each.hit.contact_id)}
        )
        removed = await self._store.remove(connection, {id_ for each in told for id_ in each.ids})
        told = [each for each in told if removed.issuperset(each.ids)]
        told.sort(key=lambda each: each.hit.at)
        events = [event async for each in _calmly(told) if (event := _event(each, people, mailings, mails)) is not None]
        await self._events.append(connection, events)
        return bool(told)

    def _judged(self, stored: Sequence[Stored], mailings: Mapping[int, Mailing], now: int) -> list[Told]:
        """Of the hits of one message those whose group has ended."""
        told: list[Told] = []
        for group in groups([each.hit.at for each in stored], now, cut=self._store.is_cut(stored)):
            members = stored[group]
            mailing = mailings.get(members[0].hit.campaign_id)
            folds = folded([each.hit for each in members])
            judged = judge([fold.hit for fold in folds], links=mailing.links if mailing else 0, scanners=self._scanners)
            told += [
                Told([members[index].id for index in fold.places], fold.hit, who)
                for fold, who in zip(folds, judged, strict=True)
            ]
        return told


async def _calmly(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, with a pause for others after some of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % BREATH == 0:
            await asyncio.sleep(0)


def _event(
    told: Told, people: Mapping[int, Person], mailings: Mapping[int, Mailing], mails: Mapping[int, Mail]
) -> Event | None:
    """None for a person who wants nothing kept, and where nobody is left whose event it were.

    Of a contact that is no more nothing personal is said: no address, and not the link, which may have one in it.
    """
    hit, (actor, reasons) = told.hit, told.judged
    person, mailing = people.get(hit.contact_id), mailings.get(hit.campaign_id)
    mail = None if hit.campaign_id or hit.contact_id else mails.get(hit.message_id)
    if mail is not None:
        person = mail.person
    tenant = mailing.tenant if mailing else person.tenant if person else ""
    if person is not None and person.tenant != tenant:
        person = None
    if not tenant or (person is not None and not person.tracking):
        metrics.hits_told(hit.kind, "unwanted", hit.times)
        return None
    metrics.hits_told(hit.kind, actor, hit.times)
    return Event(
        at=moment(hit.at),
        type=TYPES[hit.kind],
        message_id=hit.message_id,
        n=1,
        address=person.address if person else "",
        tenant=tenant,
        data=_data(hit, actor, reasons, known=person is not None and not is_erased(person.address)),
        stream=(mail.stream if mail else mailing.stream if mailing else "") or STREAM,
        campaign=mail.campaign if mail else format_id(CAMPAIGN, hit.campaign_id) if hit.campaign_id else "",
    )


def _data(hit: Hit, actor: Actor, reasons: Sequence[str], *, known: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"actor": actor.value, "reasons": list(reasons), "rules": RULES}
    if hit.kind == "clicked":
        data["link"] = hit.link
    if hit.times > 1:
        data["times"] = hit.times
    if known:
        personal = {"url": hit.url, "ip": hit.ip, "user_agent": hit.user_agent}
        data |= {name: value for name, value in personal.items() if value}
    return data
