"""Hits become events: once, with who made them, and with nothing about those who want nothing kept."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.campaigns.tracking import classifier, store
from mailerd.campaigns.tracking.classifier import Classifier
from mailerd.campaigns.tracking.records import Hit
from mailerd.campaigns.tracking.store import HitStore, microseconds
from mailerd.config import Campaigns, Config, Network
from mailerd.db import Pool
from mailerd.events import START, Event, EventStore
from mailerd.queue.ids import first_id_at

START_TIME = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
SECOND = timedelta(seconds=1)


class Desk:
    """Hits in the table, a classifier, and a clock."""

    def __init__(self, pool: Pool, **campaigns: Any) -> None:
        self.pool = pool
        self.now = START_TIME
        self.store = HitStore(pool)
        self.classifier = Classifier(pool, Config(campaigns=Campaigns(**campaigns)), lambda: self.now)
        self._stored = 0

    async def contact(self, email: str, *, tenant: str = "acme", tracking: bool = True) -> int:
        statement = (
            "INSERT INTO contacts (tenant, email, address, tracking) VALUES ($1, $2, lower($2), $3) RETURNING id"
        )
        return int(await self.pool.fetchval(statement, tenant, email, tracking))

    async def campaign(self, *, tenant: str = "acme", options: dict[str, Any] | None = None, links: int = 0) -> int:
        """Running, with a template of so many links."""
        id_ = await self.pool.fetchval(
            "INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by, options)"
            " VALUES ($1, 'news', 1, 'a@b.example', 'test', $2) RETURNING id",
            tenant,
            options or {},
        )
        version = await self.pool.fetchval(
            "INSERT INTO template_versions (template_id, version, subject, html_content, text_content, compiled,"
            " created_by) VALUES ($1, 1, '', '', '', $2, 'test') RETURNING id",
            id_,
            {"links": [{"link": n, "url": "x"} for n in range(links)]},
        )
        await self.pool.execute(
            "INSERT INTO campaign_runs (campaign_id, tenant, version_id, next_at, started_at)"
            " VALUES ($1, $2, $3, now(), now())",
            id_,
            tenant,
            version,
        )
        return int(id_)

    async def take(self, *hits: Hit) -> None:
        self._stored += 1
        assert await self.store.add(f"file {self._stored}", 0, 1, hits)

    async def tell(self, after: timedelta = 30 * SECOND) -> list[Event]:
        """All events so far, when everything is told that can be."""
        self.now += after
        while await self.classifier.turn():
            pass
        return [event for _, event in (await EventStore(self.pool).after(START)).events]

    async def left(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM hits"))


@pytest.fixture
async def desk(pool: Pool) -> Desk:
    return Desk(pool, scanners=(Network("198.51.100.0/24"),))


def hit(contact: int = 0, campaign: int = 0, at: float = 0.0, link: int = 0, **fields: Any) -> Hit:
    made: dict[str, Any] = {"message_id": 1, "ip": "192.0.2.1", "user_agent": FIREFOX} | fields
    return Hit(
        at=microseconds(START_TIME + at * SECOND),
        kind="clicked" if link else "opened",
        campaign_id=campaign,
        contact_id=contact,
        link=link,
        url=f"https://shop.example/{link}" if link else "",
        **made,
    )


async def test_opens_and_clicks_become_events_in_the_order_of_their_time(desk: Desk) -> None:
    ann, campaign = await desk.contact("Ann@example.net"), await desk.campaign(options={"stream": "news"})
    await desk.take(hit(ann, campaign, 3, link=4, times=2), hit(ann, campaign))

    opened, clicked = await desk.tell()

    assert opened == Event(
        at=START_TIME,
        type="recipient.opened",
        message_id=1,
        n=1,
        address="ann@example.net",
        tenant="acme",
        data={"actor": "human", "reasons": [], "rules": 1, "ip": "192.0.2.1", "user_agent": FIREFOX},
        stream="news",
        campaign=f"cmp_{campaign}",
    )
    assert (clicked.type, clicked.at, clicked.data) == (
        "recipient.clicked",
        START_TIME + 3 * SECOND,
        {
            "actor": "human",
            "reasons": [],
            "rules": 1,
            "link": 4,
            "times": 2,
            "url": "https://shop.example/4",
            "ip": "192.0.2.1",
            "user_agent": FIREFOX,
        },
    )
    assert await desk.left() == 0
    assert await desk.tell() == [opened, clicked]


async def test_nothing_is_told_before_five_seconds_have_passed(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(hit(ann, campaign))

    assert await desk.tell(4.9 * SECOND) == []
    assert len(await desk.tell(0.2 * SECOND)) == 1


async def test_a_burst_is_one_though_its_first_hit_came_alone(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(hit(ann, campaign, 0, link=1))
    assert await desk.tell(1 * SECOND) == []
    await desk.take(hit(ann, campaign, 0.9, link=2), hit(ann, campaign, 1.8, link=3))

    events = await desk.tell(4 * SECOND)

    assert [(event.data or {})["actor"] for event in events] == ["scanner"] * 3
    assert [(event.data or {})["reasons"] for event in events] == [["burst"]] * 3


async def test_what_the_campaign_and_the_configuration_know_counts(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign(links=2)
    await desk.take(hit(ann, campaign, 0, link=1), hit(ann, campaign, 1, link=2))
    await desk.take(hit(ann, campaign, 20, link=1, ip="198.51.100.7"), hit(ann, campaign, 40, link=1))

    events = await desk.tell(60 * SECOND)

    assert [(event.data or {})["reasons"] for event in events] == [
        ["all_links"],
        ["all_links"],
        ["scanner_network"],
        [],
    ]
    desk.classifier.reconfigure(Config())
    await desk.take(hit(ann, campaign, 50, link=1, ip="198.51.100.7"))
    assert ((await desk.tell())[-1].data or {})["actor"] == "human"


async def test_the_same_hit_taken_by_two_workers_is_one_event(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(hit(ann, campaign, times=3))
    await desk.take(hit(ann, campaign, 0.4, times=2))

    (event,) = await desk.tell()

    assert (event.data or {})["times"] == 5
    assert await desk.left() == 0


async def test_of_who_wants_no_tracking_nothing_is_kept(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net", tracking=False), await desk.campaign()
    await desk.take(hit(ann, campaign), hit(ann, campaign, 1, link=1))

    assert await desk.tell() == []
    assert await desk.left() == 0


async def test_of_who_was_erased_meanwhile_only_what_is_not_personal_is_told(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(hit(ann, campaign, link=1))
    await desk.pool.execute("DELETE FROM contacts")

    (event,) = await desk.tell()

    assert (event.address, event.tenant, event.campaign) == ("", "acme", f"cmp_{campaign}")
    assert event.data == {"actor": "human", "reasons": [], "rules": 1, "link": 1}


async def test_an_address_of_another_tenant_is_never_told(desk: Desk) -> None:
    ann, campaign = await desk.contact("ann@example.net", tenant="other"), await desk.campaign()
    await desk.take(hit(ann, campaign))

    (event,) = await desk.tell()

    assert (event.address, event.tenant) == ("", "acme")


async def test_what_belongs_to_nobody_any_more_goes(desk: Desk) -> None:
    await desk.take(hit(77, 88), hit(0, 0, message_id=2))

    assert await desk.tell() == []
    assert await desk.left() == 0


async def test_a_contact_who_is_mailed_without_a_campaign_is_told_too(desk: Desk) -> None:
    ann = await desk.contact("ann@example.net")
    await desk.take(hit(ann))

    (event,) = await desk.tell()

    assert (event.address, event.campaign, event.stream) == ("ann@example.net", "", "marketing")


async def accepted(pool: Pool, address: str = "ann@example.net") -> int:
    """A message of no campaign of ours."""
    id_ = first_id_at(int(START_TIME.timestamp() * 1000))
    event = Event(START_TIME, "message.accepted", id_, 1, address, "acme", {}, "transactional", "orders")
    async with pool.acquire() as connection:
        await EventStore(pool).append(connection, [event])
    return id_


async def told_of(desk: Desk, message: int) -> list[Event]:
    await desk.take(hit(message_id=message, link=1))
    return [event for event in await desk.tell() if event.type != "message.accepted"]


async def test_mail_of_no_campaign_is_told_by_its_message(desk: Desk, pool: Pool) -> None:
    message = await accepted(pool)

    (event,) = await told_of(desk, message)

    assert (event.type, event.message_id, event.n, event.tenant) == ("recipient.clicked", message, 1, "acme")
    assert (event.address, event.stream, event.campaign) == ("ann@example.net", "transactional", "orders")
    assert event.data is not None
    assert event.data["url"] == "https://shop.example/1"


async def test_a_contact_who_wants_no_tracking_wants_none_of_other_mail(desk: Desk, pool: Pool) -> None:
    await desk.contact("Ann@example.net", tracking=False)

    assert await told_of(desk, await accepted(pool)) == []


async def test_of_other_mail_of_who_was_erased_nothing_personal_is_told(desk: Desk, pool: Pool) -> None:
    (event,) = await told_of(desk, await accepted(pool, "con_17@erased.invalid"))

    assert event.data is not None
    assert not {"url", "ip", "user_agent"} & event.data.keys()


async def test_many_are_told_a_part_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "AT_ONCE", 10)
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(*(hit(ann, campaign, message_id=n) for n in range(1, 96)))

    assert {event.message_id for event in await desk.tell()} == set(range(1, 96))


async def test_a_mail_that_is_hit_without_end_is_told_all_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OF_ONE", 5)
    monkeypatch.setattr(store, "OF_MESSAGES", store.OF_MESSAGES.replace("LIMIT 500", "LIMIT 5"))
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(*(hit(ann, campaign, n / 10, user_agent=f"agent {n}") for n in range(23)))

    assert len(await desk.tell()) == 23


async def test_several_at_once_tell_each_hit_once(desk: Desk, pool: Pool) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(*(hit(ann, campaign, message_id=n) for n in range(1, 200)))
    others = [Classifier(pool, Config(), lambda: START_TIME + 60 * SECOND) for _ in range(3)]
    await asyncio.gather(*(other.turn() for other in others for _ in range(3)))

    assert sorted(event.message_id for event in await desk.tell()) == list(range(1, 200))


async def test_a_failure_leaves_hits_and_events_as_they_were(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, campaign = await desk.contact("ann@example.net"), await desk.campaign()
    await desk.take(hit(ann, campaign))

    async def fail(*_: object) -> None:
        raise OSError("the connection is lost")

    with monkeypatch.context() as broken:
        broken.setattr(EventStore, "append", fail)
        with pytest.raises(OSError, match="lost"):
            await desk.tell()
    assert await desk.left() == 1
    assert len(await desk.tell()) == 1
