"""The follower: events of campaigns move the ledger and are counted, in one transaction, each once."""

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns.analytics.counts import Delta
from mailerd.campaigns.analytics.follower import CampaignFollower
from mailerd.campaigns.analytics.progress import TYPES
from mailerd.campaigns.analytics.retention import RetentionStore
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.db import Pool
from mailerd.events import START, EventStore, Position, Recorded
from mailerd.feedback.following import Following
from tests.campaigns.analytics.conftest import (
    FIRST,
    NOW,
    Follower,
    assert_in_step,
    assert_tenants_in_step,
    begun,
    happened,
    shown,
)

PERSON, SCANNER = {"actor": "human"}, {"actor": "scanner"}
CLICK = {"actor": "human", "link": 2, "url": "https://shop.example/sale"}


async def test_everything_that_happens_is_counted_and_stands_in_the_ledger(pool: Pool, follower: Follower) -> None:
    campaign = await begun(pool)
    event = campaign.event
    await happened(
        pool,
        *(event(n, "delivered", site="mx.d.example") for n in range(1, 6)),
        event(6, "deferred", kind="greylisted"),
        event(6, "bounced", kind="invalid_recipient"),
        event(7, "expired"),
        event(8, "withheld", reason="left_list"),
        event(9, "cancelled"),
        event(10, "in_doubt"),
        event(1, "opened", **SCANNER),
        event(1, "opened", after=60, **PERSON),
        event(1, "opened", after=61, **PERSON),
        event(2, "opened", **SCANNER),
        event(1, "clicked", after=70, **CLICK),
        event(1, "clicked", after=71, **CLICK),
        event(3, "clicked", after=71, actor="scanner", link=2, url="https://shop.example/other"),
        event(4, "unsubscribed"),
        event(4, "complained"),
        event(5, "bounced", after=3600, kind="mailbox_full", late=True),
    )

    await follower.read(limit=3)

    assert await campaign.totals() == {
        "queued": 10,
        "suppressed": 1,
        "cancelled": 1,
        "recalled": 2,
        "sent": 8,
        "delivered": 4,
        "bounced": 2,
        "hard_bounced": 1,
        "failed": 1,
        "in_doubt": 1,
        "deferred": 1,
        "complained": 1,
        "unsubscribed": 1,
        "opened": 1,
        "clicked": 1,
        "opens": 2,
        "clicks": 2,
        "machine_opened": 1,
        "machine_clicked": 1,
        "machine_opens": 2,
        "machine_clicks": 1,
    }
    assert await campaign.differences() == []
    rows = await pool.fetch("SELECT * FROM campaign_contacts ORDER BY contact_id")
    assert shown(rows, "status", "reason") == [
        *[(2, "")] * 4, (3, "mailbox_full"), (3, "invalid_recipient"), (4, "expired"), (5, "left_list"),
        (6, "cancelled"), (7, "in_doubt"),
    ]  # fmt: skip
    assert rows[4]["changed_at"] == NOW + timedelta(hours=1)
    assert rows[0]["changed_at"] == NOW  # opens do not change the status


async def test_links_count_clicks_and_people_over_many_pages(pool: Pool, follower: Follower) -> None:
    campaign = await begun(pool)
    for after in range(3):
        await happened(
            pool,
            *(campaign.event(n, "clicked", after=after, **CLICK) for n in (1, 2, 1)),
            campaign.event(1, "clicked", after=after, **CLICK | {"link": 3, "url": "u" * 5000}),
            campaign.event(2, "clicked", after=after, actor="unknown", link=3),
        )
        await follower.read()

    rows = await pool.fetch("SELECT * FROM campaign_links ORDER BY link")
    assert shown(rows, "link", "clicks", "clicked", "machine_clicks") == [(2, 9, 2, 0), (3, 3, 1, 3)]
    assert shown(rows, "url") == [("https://shop.example/sale",), ("u" * 2048,)]
    assert await pool.fetchval("SELECT count(*) FROM engagements WHERE kind = 2 AND contact_id = 1") == 9
    assert await campaign.differences() == []


async def test_what_is_no_mail_of_the_campaign_is_not_counted_whatever_it_says(pool: Pool, follower: Follower) -> None:
    campaign = await begun(pool)
    theirs = await begun(pool, tenant="other", first=FIRST + 1000)
    named = campaign.event(1, "delivered")
    for name in ("cmp_", "cmp_x", "cmp_01", "cmp_99999999999999999999", "cmp_4711", f"cmp_{theirs.id}", "news", ""):
        named.campaign = name
        await happened(pool, named)
    await happened(pool, campaign.event(999, "delivered"), theirs.event(1, "opened", **PERSON))

    await follower.read()

    assert await campaign.totals() == {"queued": 10}
    assert await theirs.totals() == {"queued": 10, "opened": 1, "opens": 1}


async def test_each_event_counts_once_though_the_follower_is_killed_and_another_begins(
    pool: Pool, follower: Follower
) -> None:
    campaign = await begun(pool, 300)
    for first in range(1, 301, 50):
        await happened(pool, *(campaign.event(n, "delivered") for n in range(first, first + 50)))
        await happened(pool, *(campaign.event(n, "opened", **PERSON) for n in range(first, first + 50)))
    for pause in (0.0, 0.01, 0.02, 0.04):
        following = Following(follower.url, pool, poll=0.01)
        CampaignFollower(following, limit=7).start()
        await asyncio.sleep(pause)
        await following.stop(patience=0.0)  # cut off within a page
        assert await campaign.differences() == []

    await follower.read()

    totals = await campaign.totals()
    assert totals == {"queued": 300, "sent": 300, "delivered": 300, "opened": 300, "opens": 300}
    assert await campaign.differences() == []


async def test_mail_of_others_is_looked_at_and_not_read(pool: Pool) -> None:
    campaign = await begun(pool)
    other = campaign.event(1, "delivered")
    other.campaign = "newsletter"
    await happened(pool, *[other] * 5, campaign.event(1, "held"), campaign.event(2, "delivered"), *[other] * 5)

    page = await EventStore(pool).after(START, limit=100, types=TYPES, campaigns="cmp_")
    half = await EventStore(pool).after(START, limit=6, types=TYPES, campaigns="cmp_")

    assert [recorded.event.message_id for recorded in page.events] == [FIRST + 2]
    assert (half.events, half.more) == ([], True)
    assert half.position < page.events[0].position < page.position


async def test_hand_overs_and_the_follower_add_at_the_same_time(pool: Pool, follower: Follower) -> None:
    """Neither waits in a circle, and nothing is lost: rows are locked in one order."""
    campaigns = [await begun(pool, 60, first=FIRST + 1000 * n) for n in range(3)]
    told = [campaign.event(n, "delivered") for n in range(1, 61) for campaign in campaigns]
    for first in range(0, len(told), 10):
        await happened(pool, *told[first : first + 10])

    async def hand_over(order: int) -> None:
        for n in range(40):
            deltas = [
                Delta(each.id, each.tenant, NOW + timedelta(minutes=n % 5), f"d{n % 7}.example", {"suppressed": 1})
                for each in campaigns[::order]
            ]
            async with pool.acquire() as connection, connection.transaction():
                await RollUpStore().add(connection, deltas)

    await asyncio.gather(hand_over(1), hand_over(-1), follower.read(limit=9))

    for campaign in campaigns:
        assert await campaign.totals() == {"queued": 60, "suppressed": 80, "sent": 60, "delivered": 60}
        found = [each for each in await campaign.differences() if each.counted != "suppressed"]
        assert found == []  # nobody wrote the suppressed ones into the ledger here
    assert await pool.fetchval("SELECT sum(suppressed) FROM tenant_quarter_hours") == 240


async def test_roll_ups_have_the_minute_the_quarter_hour_and_the_domain_of_what_happened(
    pool: Pool, follower: Follower
) -> None:
    campaign = await begun(pool)
    await happened(
        pool,
        campaign.event(1, "delivered", site="mx.d1.example"),
        campaign.event(4, "delivered", after=45),
        campaign.event(2, "delivered", after=1800, site="mx.d2.example"),
    )

    await follower.read()

    minutes = await pool.fetch("SELECT * FROM campaign_minutes ORDER BY minute")
    assert shown(minutes, "minute", "delivered") == [
        (datetime(2026, 11, 22, 12, 30, tzinfo=UTC), 1),
        (datetime(2026, 11, 22, 12, 31, tzinfo=UTC), 1),
        (datetime(2026, 11, 22, 13, 0, tzinfo=UTC), 1),
    ]
    quarter_hours = await pool.fetch("SELECT * FROM campaign_quarter_hours ORDER BY quarter_hour")
    assert shown(quarter_hours, "quarter_hour", "queued", "delivered") == [
        (datetime(2026, 11, 22, 12, 30, tzinfo=UTC), 10, 2),
        (datetime(2026, 11, 22, 13, 0, tzinfo=UTC), 0, 1),
    ]
    domains = await pool.fetch("SELECT * FROM campaign_domains ORDER BY domain")
    assert shown(domains, "domain", "site", "queued", "delivered") == [
        ("d0.example", "", 3, 0),
        ("d1.example", "mx.d1.example", 4, 2),
        ("d2.example", "mx.d2.example", 3, 1),
    ]
    tenants = await pool.fetch("SELECT * FROM tenant_quarter_hours ORDER BY quarter_hour")
    assert shown(tenants, "tenant", "quarter_hour", "queued", "delivered") == [
        ("default", datetime(2026, 11, 22, 12, 30, tzinfo=UTC), 10, 2),
        ("default", datetime(2026, 11, 22, 13, 0, tzinfo=UTC), 0, 1),
    ]


async def test_differences_are_found_wherever_they_are(pool: Pool, follower: Follower) -> None:
    campaign = await begun(pool)
    await happened(pool, campaign.event(1, "delivered"), campaign.event(1, "clicked", **CLICK))
    await follower.read()
    assert await campaign.differences() == []

    await pool.execute("UPDATE campaign_contacts SET status = 3 WHERE contact_id = 1")
    await pool.execute("UPDATE campaign_minutes SET opens = opens + 1")
    await pool.execute("UPDATE campaign_quarter_hours SET failed = failed + 1")
    await pool.execute("UPDATE campaign_domains SET deferred = 7 WHERE domain = 'd1.example'")
    await pool.execute("UPDATE campaign_links SET clicks = 5")

    assert {each[:2] for each in await campaign.differences()} == {
        ("totals", "delivered"), ("totals", "bounced"), ("quarter hours", "failed"), ("minutes", "opens"),
        ("domains", "deferred"), ("links", "clicks"),
    }  # fmt: skip


async def test_what_is_old_is_forgotten_in_steps_and_totals_stay(pool: Pool, follower: Follower) -> None:
    campaign = await begun(pool)
    await happened(
        pool,
        *(campaign.event(n, "opened", **PERSON) for n in range(1, 9)),
        campaign.event(9, "opened", after=7200, **PERSON),
    )
    await follower.read()
    await pool.execute("UPDATE campaigns SET created_at = $1", NOW)

    for _ in range(4):
        await RetentionStore(pool).forget(NOW + timedelta(hours=1), step=3)

    assert await pool.fetchval("SELECT count(*) FROM engagements") == 1
    assert shown(await pool.fetch("SELECT * FROM campaign_minutes"), "opens") == [(1,)]
    assert (await campaign.totals())["opens"] == 9


words = st.sampled_from([type_.removeprefix("recipient.") for type_ in TYPES])
story = st.lists(
    st.tuples(
        st.integers(1, 4), words, st.sampled_from([{}, PERSON, SCANNER, CLICK, {"kind": "bad_domain"}]),
        st.integers(-90_000, 90_000),
    ),
    max_size=25,
)  # fmt: skip


async def test_the_roll_ups_agree_with_the_ledger_after_any_story(pool: Pool) -> None:
    campaign = await begun(pool, 4)
    follower = CampaignFollower(Following("", pool))

    async def told(events: list[Recorded]) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await follower.read(events, connection)

    loop = asyncio.get_running_loop()

    @given(story, st.integers(1, 9))
    @settings(max_examples=40, deadline=None)
    def check(events: list[tuple[int, str, dict[str, str], int]], size: int) -> None:
        recorded = [
            Recorded(Position(1, n), campaign.event(contact, word, after=after, **data))
            for n, (contact, word, data, after) in enumerate(events)
        ]
        for first in range(0, len(recorded), size):
            asyncio.run_coroutine_threadsafe(told(recorded[first : first + size]), loop).result(20)
        assert asyncio.run_coroutine_threadsafe(campaign.differences(), loop).result(20) == []

    await asyncio.to_thread(check)
    await assert_in_step(pool)
    await assert_tenants_in_step(pool)
    kept = await pool.fetchrow("SELECT count(*) FILTER (WHERE kind = 1 AND NOT machine) AS opens FROM engagements")
    assert kept is not None
    assert kept["opens"] == (await campaign.totals()).get("opens", 0)
