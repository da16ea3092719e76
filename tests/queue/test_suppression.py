"""Whom not to mail: what the table answers, in which scope, until when, and what leads to an entry."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.config import Duration
from mailerd.config import Suppression as Rules
from mailerd.db import Pool, connect_pool
from mailerd.events import Event, EventStore
from mailerd.queue.ids import SUPPRESSION, parse_id
from mailerd.queue.mail import Recipient
from mailerd.queue.screening import FRESH, Suppressions
from mailerd.queue.suppression import KEPT, Reason, Suppression, SuppressionStore, Wanted, normalised
from tests.queue.test_commit import mail

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=5)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> SuppressionStore:
    return SuppressionStore(pool)


def entry(address: str = "ann@example.net", **changes: Any) -> Suppression:
    facts: dict[str, Any] = {"tenant": "acme", "reason": Reason.BOUNCE, "source": "smtp", "created_at": NOW}
    return Suppression(address, **facts | changes)


async def binds(
    store: SuppressionStore,
    address: str = "ann@example.net",
    tenant: str = "acme",
    stream: str = "marketing",
    topic: str = "",
    now: datetime = NOW,
) -> bool:
    (found,) = await store.check([Wanted(address, tenant, stream, topic)], now)
    return found is not None


async def added(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT address FROM events WHERE type = 'suppression.added' ORDER BY address")
    return [row["address"] for row in rows]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ann@Example.NET", "ann@example.net"),
        ("@Example.NET", "@example.net"),
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("@BÜCHER.example", "@xn--bcher-kva.example"),
        ("JU\u0308RGEN@example.net", "j\xfcrgen@example.net"),
        ("J\xdcRGEN@example.net", "j\xfcrgen@example.net"),
        ('"ann"@example.net', "ann@example.net"),
        ('"a\\nn.b"@example.net', "ann.b@example.net"),
        ('"ann b"@example.net', '"ann b"@example.net'),
        ('"a..b"@example.net', '"a..b"@example.net'),
        ("ann@[192.0.2.1]", "ann@[192.0.2.1]"),
        ("nonsense", "nonsense"),
        ("\xe4@..", "\xe4@.."),
        ("", ""),
    ],
)
def test_an_address_has_one_form(given: str, expected: str) -> None:
    assert normalised(given) == expected
    assert normalised(expected) == expected


@pytest.mark.parametrize(
    ("scope", "mail_of", "bound"),
    [
        ({}, {}, True),
        ({}, {"stream": "transactional"}, True),
        ({}, {"topic": "offers"}, True),
        ({}, {"tenant": "other"}, False),
        ({"tenant": ""}, {"tenant": "other"}, True),
        ({"stream": "marketing"}, {}, True),
        ({"stream": "marketing"}, {"topic": "offers"}, True),
        ({"stream": "marketing"}, {"stream": "transactional"}, False),
        ({"stream": "marketing", "topic": "offers"}, {"topic": "offers"}, True),
        ({"stream": "marketing", "topic": "offers"}, {"topic": "news"}, False),
        ({"stream": "marketing", "topic": "offers"}, {}, False),
        ({"topic": "offers"}, {"stream": "transactional", "topic": "offers"}, True),
        ({"address": "@example.net"}, {}, True),
        ({"address": "@EXAMPLE.net"}, {"address": "Bob@example.NET"}, True),
        ({"address": "@example.net"}, {"address": "ann@sub.example.net"}, False),
        ({"address": "@example.net"}, {"tenant": "other"}, False),
        ({"address": "@bücher.example"}, {"address": "ann@xn--bcher-kva.example"}, True),
        ({}, {"address": "ANN@example.net"}, True),
        ({}, {"address": '"ann"@example.net'}, True),
        ({}, {"address": "ann+tag@example.net"}, False),
    ],
)
async def test_an_entry_binds_the_mail_of_its_scope(
    store: SuppressionStore, scope: dict[str, str], mail_of: dict[str, Any], bound: bool
) -> None:
    await store.add([entry(**scope)])

    assert await binds(store, **mail_of) is bound


async def test_an_entry_ends_when_it_expires_and_may_come_again(store: SuppressionStore, pool: Pool) -> None:
    (first,) = await store.add([entry(expires_at=NOW + DAY)])
    assert await binds(store)
    assert not await binds(store, now=NOW + 2 * DAY)

    (again,) = await store.add([entry(created_at=NOW + 2 * DAY)])
    assert await binds(store, now=NOW + 400 * DAY)
    assert again.id != first.id
    assert again.expires_at is None
    assert len(await added(pool)) == 2


async def test_the_later_expiry_counts_and_makes_no_second_entry(store: SuppressionStore, pool: Pool) -> None:
    assert len(await store.add([entry(expires_at=NOW + DAY), entry(expires_at=NOW + 3 * DAY)])) == 1
    assert await store.add([entry(expires_at=NOW + 2 * DAY)]) == []
    assert await binds(store, now=NOW + 2.5 * DAY)
    assert await store.add([entry(source="api")]) == []
    (only,) = await store.list(tenant="acme", limit=10)
    assert (only.expires_at, only.source) == (None, "smtp")
    assert await store.add([entry(expires_at=NOW + DAY)]) == []
    assert await binds(store, now=NOW + 400 * DAY)
    assert await added(pool) == ["ann@example.net"]


async def test_of_several_reasons_the_one_that_lasts_is_named(store: SuppressionStore) -> None:
    await store.add([entry(reason=Reason.MANUAL, expires_at=NOW + DAY)])
    await store.add([entry("@example.net", reason=Reason.UNSUBSCRIBE), entry(reason=Reason.COMPLAINT)])

    (found,) = await store.check([Wanted("ann@example.net", "acme")], NOW)

    assert found is not None
    assert found.reason is Reason.UNSUBSCRIBE


async def test_entries_are_listed_by_pages_and_each_tenant_sees_its_own(store: SuppressionStore) -> None:
    await store.add([entry(f"user{n}@example.net", tenant="acme" if n % 2 else "other") for n in range(10)])

    page = await store.list(tenant="acme", limit=3)
    rest = await store.list(tenant="acme", limit=3, before=page[-1].id)

    assert [each.address[:5] for each in (*page, *rest)] == ["user9", "user7", "user5", "user3", "user1"]
    assert len(await store.list(tenant=None, limit=100)) == 10
    assert [each.tenant for each in await store.list(tenant=None, limit=9, address="USER4@example.net")] == ["other"]
    assert await store.get(page[0].id, "other") is None
    assert await store.get(page[0].id, "acme") == page[0]


async def test_what_is_removed_binds_no_more_and_is_told(store: SuppressionStore, pool: Pool) -> None:
    (one,) = await store.add([entry()])
    assert await store.remove(one.id, tenant="other", actor="eve", now=NOW) is None
    assert await binds(store)

    assert await store.remove(one.id, tenant="acme", actor="ann", now=NOW) == one
    assert not await binds(store)
    assert await store.remove(one.id, tenant="acme", actor="ann", now=NOW) is None
    told = await pool.fetch("SELECT data FROM events WHERE type = 'suppression.removed'")
    assert [row["data"]["actor"] for row in told] == ["ann"]

    await store.add([entry(), entry(stream="marketing", reason=Reason.UNSUBSCRIBE), entry(tenant="other")])
    lifted = await store.lift("ANN@example.net", tenant="acme", actor="ann", now=NOW)
    assert len(lifted) == 2
    assert not await binds(store)
    assert await binds(store, tenant="other")


async def test_an_addition_that_is_undone_leaves_nothing(store: SuppressionStore, pool: Pool) -> None:
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await store.add([entry()], connection)
        await transaction.rollback()

    assert not await binds(store)
    assert await added(pool) == []


async def test_many_who_add_the_same_make_one_entry(store: SuppressionStore, pool: Pool) -> None:
    several = [[entry(f"user{n}@example.net") for n in range(50)] for _ in range(5)]
    several[1].reverse()

    results = await asyncio.gather(*(store.add(each) for each in several))

    assert sum(map(len, results)) == 50
    assert len(await added(pool)) == 50


# soft bounces


async def softly(store: SuppressionStore, *days: float, **changes: Any) -> list[int]:
    """How many suppressions each of these soft bounces led to."""
    return [
        len(await store.soft_bounce([entry(reason=Reason.SOFT_BOUNCE, created_at=NOW + day * DAY, **changes)]))
        for day in days
    ]


@pytest.mark.parametrize(
    ("days", "suppressed_at"),
    [
        ((0, 0.5, 1), 2),
        ((0, 0.5, 0.9), None),
        ((0, 0.1, 0.2, 0.3, 1.1), 4),
        ((0, 2), None),
        ((0, 2, 3), 2),
        ((0, 1, 40), None),  # forgotten in between
        ((0, 1, 40, 41, 42), 4),
        ((0, 20, 40), 2),
    ],
)
async def test_three_soft_bounces_over_a_day_suppress(
    store: SuppressionStore, days: tuple[float, ...], suppressed_at: int | None
) -> None:
    results = await softly(store, *days)

    assert (results.index(1) if 1 in results else None) == suppressed_at
    assert await binds(store) is (suppressed_at is not None)


async def test_the_count_begins_again_once_it_has_suppressed(store: SuppressionStore) -> None:
    assert await softly(store, 0, 1, 2) == [0, 0, 1]
    (one,) = await store.list(tenant="acme", limit=1)
    assert one.detail == f"3 times since {NOW:%Y-%m-%d}"
    await store.remove(one.id, tenant="acme", actor="ann", now=NOW)
    assert await softly(store, 3, 4, 5) == [0, 0, 1]


async def test_soft_bounces_of_several_messages_at_once_all_count(store: SuppressionStore) -> None:
    soft = [entry(address, reason=Reason.SOFT_BOUNCE) for address in ("ann@example.net", "Ann@example.net")]
    assert await store.soft_bounce(soft) == []
    assert await softly(store, 1) == [1]


async def test_soft_bounces_count_by_tenant(store: SuppressionStore) -> None:
    assert await softly(store, 0, 1) == [0, 0]
    assert await softly(store, 2, tenant="other") == [0]
    assert await softly(store, 2) == [1]
    assert not await binds(store, tenant="other")


async def test_the_rules_are_those_of_the_configuration(store: SuppressionStore) -> None:
    store.reconfigure(Rules(soft_bounces=2, soft_span=Duration(60)))
    assert await softly(store, 0, 0.1) == [0, 1]


async def tell(pool: Pool, *facts: tuple[str, float], address: str = "ann@example.net") -> None:
    events = [Event(NOW + day * DAY, type_, 7, 1, address, "acme", {}) for type_, day in facts]
    async with pool.acquire() as connection:
        await EventStore(pool).append(connection, events)


@pytest.mark.parametrize("address", ["ann@example.net", "Ann@Example.net"])
async def test_a_delivery_in_between_begins_the_count_again(store: SuppressionStore, pool: Pool, address: str) -> None:
    await tell(pool, ("message.accepted", 0.4), ("recipient.delivered", 0.5), address=address)
    assert await softly(store, 0, 1, 2, address=address) == [0, 0, 0]
    assert await softly(store, 3, 4) == [0, 1]


async def test_a_delivery_before_the_first_or_one_that_came_back_does_not_count(
    store: SuppressionStore, pool: Pool
) -> None:
    await tell(pool, ("message.accepted", -0.5), ("recipient.delivered", -0.4))
    async with pool.acquire() as connection:
        for type_, day in (("message.accepted", 0.1), ("recipient.delivered", 0.2), ("recipient.bounced", 0.3)):
            event = Event(NOW + day * DAY, type_, 8, 1, "ann@example.net", "acme", {})
            await EventStore(pool).append(connection, [event])
    assert await softly(store, 0, 1, 2) == [0, 0, 1]


async def test_counts_are_forgotten_after_their_time(store: SuppressionStore, pool: Pool) -> None:
    await softly(store, 0)
    await store.forget(NOW + 29 * DAY)
    assert await pool.fetchval("SELECT count(*) FROM soft_bounces") == 1
    await store.forget(NOW + 31 * DAY)
    assert await pool.fetchval("SELECT count(*) FROM soft_bounces") == 0


async def test_what_is_over_is_listed_on_demand_and_swept_a_part_at_a_time(store: SuppressionStore, pool: Pool) -> None:
    await store.add([entry(f"user{n}@example.net", expires_at=NOW + DAY) for n in range(7)], quiet=True)
    await store.add([entry("last@example.net", expires_at=NOW + 90 * DAY), entry("ever@example.net")], quiet=True)

    async def left() -> int:
        return int(await pool.fetchval("SELECT count(*) FROM suppressions"))

    assert len(await store.list(tenant="acme", limit=100, holding_at=NOW + 2 * DAY)) == 2
    assert len(await store.list(tenant="acme", limit=100)) == 9
    await store.forget(NOW + DAY + KEPT - timedelta(seconds=1), part=4)
    await store.forget(NOW + DAY + KEPT - timedelta(seconds=1), part=4)
    await store.forget(NOW + DAY + KEPT - timedelta(seconds=1), part=4)
    assert await left() == 9
    counts = []
    for _ in range(4):
        await store.forget(NOW + DAY + KEPT, part=4)
        counts.append(await left())
    assert counts[0] >= 5
    assert counts[-1] == 2


async def test_entries_are_found_by_what_they_are(store: SuppressionStore) -> None:
    asked = [entry(), entry("bob@example.net", stream="marketing"), entry("cid@example.net")]
    await store.add(asked[1:])
    await store.add(asked[:2])

    assert [each.address for each in await store.entries(asked)] == [each.address for each in asked]
    assert await store.entries([entry(stream="marketing"), entry(tenant="")]) == []


async def test_topics_are_the_same_in_upper_and_lower_case(store: SuppressionStore) -> None:
    await store.add([entry(stream="marketing", topic="Offers")])

    assert await store.add([entry(stream="marketing", topic="OFFERS")]) == []
    assert await binds(store, topic="offers")
    assert [each.topic for each in await store.list(tenant="acme", limit=9, topic="oFFers")] == ["offers"]


def test_an_id_has_one_form_everywhere() -> None:
    one = entry(detail="550 5.1.1 no such user", message_id=1 << 40, id=17)

    assert one.facts()["suppression"] == "sup_17"
    assert "remove suppression sup_17 to mail it again" in one.told_to("acme")
    assert "sup_17" not in one.told_to("other")


@pytest.mark.parametrize("text", ["17", "sup_", "sup_x", "sup_-1", "sup_0", "sup_01", "sup_\u0661", f"sup_{10**18}"])
def test_what_is_no_id_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="sup_17"):
        parse_id(SUPPRESSION, text)


# asking for many at a time


class CountingStore(SuppressionStore):
    """The store, and how many each query asked for."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.sizes: list[int] = []

    async def check(self, wanted: Any, now: datetime) -> list[Suppression | None]:
        self.sizes.append(len(wanted))
        return await super().check(wanted, now)


async def test_what_gathers_while_one_query_runs_makes_up_the_next(pool: Pool) -> None:
    store = CountingStore(pool)
    await store.add([entry("user7@example.net")])
    asking = Suppressions(store, lambda: NOW)

    wanted = [Wanted(f"user{n}@example.net", "acme") for n in range(100)]
    first = asyncio.create_task(asking.check(wanted[:1]))
    await asyncio.sleep(0)
    answers = [*await asyncio.gather(*(asking.check([each]) for each in wanted[1:]))]

    assert await first == [None]
    assert [index + 1 for index, (each,) in enumerate(answers) if each is not None] == [7]
    assert len(store.sizes) <= 3


async def test_a_large_message_is_asked_for_in_parts_and_does_not_hold_up_others(pool: Pool) -> None:
    store = CountingStore(pool)
    await store.add([entry("user99999@example.net")])
    asking = Suppressions(store, lambda: NOW)
    message = mail(tenant="acme")
    message.recipients = [
        Recipient(message, n, f"user{n}@example.net", "example.net", NOW, NOW) for n in range(100_000)
    ]

    large = asyncio.create_task(asking.screen(message.recipients))
    await asyncio.sleep(0)
    assert await asking.check([Wanted("bob@example.net", "acme")]) == [None]
    assert not large.done()

    assert [recipient.address for recipient, _ in await large] == ["user99999@example.net"]
    assert max(store.sizes) <= 1_000


async def test_an_answer_is_fresh_for_less_than_whoever_suppresses_waits(pool: Pool) -> None:
    time = 100.0
    asking = Suppressions(SuppressionStore(pool), lambda: NOW, monotonic=lambda: time)
    recipients = mail().recipients
    assert not asking.cleared(recipients)

    assert await asking.screen(recipients) == []
    assert asking.cleared(recipients)
    time += FRESH + 0.001
    assert not asking.cleared(recipients)


async def test_all_who_wait_hear_that_the_database_is_away(database: str) -> None:
    pool = await connect_pool(database, min=1, max=1)
    asking = Suppressions(SuppressionStore(pool), lambda: NOW)
    await pool.close()

    results = await asyncio.gather(
        *(asking.check([Wanted("ann@example.net", "acme")]) for _ in range(3)), return_exceptions=True
    )

    assert all(isinstance(each, Exception) for each in results)


async def test_whoever_left_campaigns_is_asked_for_before_those_of_any_stream(pool: Pool) -> None:
    store = SuppressionStore(pool)
    await store.add([entry("ann@example.net", stream="marketing", reason=Reason.UNSUBSCRIBE)])
    asking = Suppressions(store, lambda: NOW)

    message = mail(tenant="acme", stream="promo")
    message.recipients = [Recipient(message, 1, "ann@example.net", "example.net", NOW, NOW)]
    assert await asking.screen(message.recipients) == []
    message.render = "1:2:3"
    assert [each.recipient for each in await asking.screen(message.recipients)] == message.recipients


async def test_who_is_asked_for_ahead_is_not_asked_for_again_unless_he_is_suppressed_or_it_is_long_ago(
    pool: Pool,
) -> None:
    time = 100.0
    store = CountingStore(pool)
    await store.add([entry("user1@example.net")])
    asking = Suppressions(store, lambda: NOW, monotonic=lambda: time)
    message = mail(tenant="acme")
    message.recipients = recipients = [
        Recipient(message, n, f"user{n}@example.net", "example.net", NOW, NOW) for n in range(3)
    ]

    asking.ahead(recipients)
    asking.ahead(recipients)
    found = await asyncio.gather(*(asking.clear([each]) for each in recipients))
    assert [[each.recipient for each in one] for one in found] == [[], [recipients[1]], []]
    assert store.sizes == [3, 1]

    assert await asking.clear([recipients[0]]) == []
    assert store.sizes == [3, 1]
    time += FRESH + 0.001
    assert await asking.clear([recipients[0]]) == []
    assert store.sizes == [3, 1, 1]
