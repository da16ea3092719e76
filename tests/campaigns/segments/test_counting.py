"""Sizes and pages of segments and audiences, on a real database."""

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from mailerd import db
from mailerd.campaigns.audience import Audience, AudienceBody, AudienceError, audience_body, parse_audience
from mailerd.campaigns.audience_store import MANY_ROWS, AudienceStore
from mailerd.campaigns.segments.compiling import SETS
from mailerd.campaigns.segments.conditions import ConditionError
from mailerd.campaigns.segments.counting import CountStore, Wanted, of_condition
from mailerd.campaigns.segments.references import ReferenceStore
from mailerd.campaigns.segments.store import InUseError, SegmentStore
from mailerd.db import Pool
from tests.campaigns.segments.world import NOW, TAGS, TENANT, World, build, holds

VIP = {"field": "tags", "operator": "contains", "value": "vip"}
ODD = {"field": "custom_fields.odd", "operator": "=", "value": True}
FILL = """
    INSERT INTO contacts (tenant, email, address, custom_fields)
    SELECT CASE WHEN n % 5 = 0 THEN 'other' ELSE $1 END, n || '@d.example', n || '@d.example',
           jsonb_build_object('odd', n % 2 = 1, 'rare', abs(hashint4(n)) % 100)
      FROM generate_series(1, $2::int) AS n
"""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await db.connect_pool(database, max=2)
    yield pool
    await pool.close()


async def filled(pool: Pool, count: int = 300) -> World:
    async with pool.acquire() as connection, connection.transaction():
        return await build(connection, random.Random(2), count)


async def wanted(pool: Pool, tree: dict[str, Any]) -> Wanted:
    return of_condition(TENANT, await ReferenceStore(pool).condition(TENANT, tree), NOW)


async def belonging(pool: Pool, audience: Audience, size: int = 50) -> list[int]:
    """The ids of an audience as the ledger is written: range by range."""
    store, after, found = AudienceStore(pool), 0, []
    while (end := await store.range_end(TENANT, audience, after, size)) is not None:
        assert end > after
        compiled = await store.select_sql(TENANT, audience, after, end, now=NOW)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(MANY_ROWS)
            rows = await connection.fetch(compiled.sql, *compiled.parameters)
        assert len(rows) <= size
        found += [row["contact_id"] for row in rows]
        after = end
    assert len(found) == len(set(found))
    return sorted(found)


async def test_the_size_of_a_small_tenant_is_told_exactly_and_counted_in_steps(pool: Pool) -> None:
    world = await filled(pool)
    store = CountStore(pool)
    for tree in (VIP, {"not": VIP}, {"field": "email", "operator": "in", "value": [world.people[0].columns["email"]]}):
        truth = sum(holds(tree, person, world) for person in world.people)
        found = await store.estimate(await wanted(pool, tree))
        assert (found.estimate, found.method) == (truth, "exact")
        progress = await store.count(await wanted(pool, tree), seconds=5)
        assert (progress.counted, progress.after, progress.part) == (truth, None, 1.0)


async def test_counting_stops_when_its_time_is_up_and_goes_on_where_it_was(pool: Pool) -> None:
    await pool.execute(FILL, TENANT, 10_000)
    store = CountStore(pool)
    asked = await wanted(pool, ODD)
    calls, after, counted = 0, 0, 0

    while True:
        progress = await store.count(asked, after=after, counted=counted, seconds=0)
        calls += 1
        if progress.after is None:
            break
        assert 0 < progress.part <= 1
        after, counted = progress.after, progress.counted

    assert (calls > 2, progress.counted) == (True, 4_000)


async def test_a_large_tenant_is_sampled_and_the_truth_lies_within_the_limits(pool: Pool) -> None:
    await pool.execute(FILL, TENANT, 100_000)
    await pool.execute("ANALYZE contacts")
    ticks = iter(range(10**6))
    store = CountStore(pool, clock=lambda: next(ticks) * 0.2)  # a machine that is slow: it draws a few times only
    rare = {"field": "rare", "operator": "=", "value": 7}
    truth = await pool.fetchval(
        "SELECT count(*) FROM contacts WHERE tenant = $1 AND custom_fields -> 'rare' = '7'", TENANT
    )

    half, few = await store.estimate(await wanted(pool, ODD)), await store.estimate(await wanted(pool, rare))

    assert (half.method, few.method) == ("sampled", "sampled")
    assert half.high - half.low < 20_000
    for estimate, right in ((half, 40_000), (few, truth)):
        spread = estimate.high - estimate.low  # holds the truth 19 times in 20: twice as much, all but once in 10,000
        assert estimate.low - spread / 2 < right < estimate.high + spread / 2


async def test_a_page_has_those_who_fit_in_order_and_the_next_goes_on(pool: Pool) -> None:
    world = await filled(pool)
    store = CountStore(pool)
    for tree in (VIP, {"not": VIP}):
        asked = await wanted(pool, tree)
        found, after = [], 0
        while True:
            page = await store.page(asked, after=after, limit=7, seconds=5)
            found += [person.id for person in page.people]
            if page.after is None:
                break
            after = page.after
        assert found == [person.id for person in world.people if holds(tree, person, world)]


async def test_an_audience_is_its_lists_and_segments_less_the_excluded(pool: Pool) -> None:
    world = await filled(pool)
    segment, other = world.segments
    first, second, third = world.lists
    got = {0, 1, 2, 7}
    audience = Audience(
        list_ids=[first, second],
        segment_ids=[segment],
        conditions={"field": "status", "operator": "=", "value": "bounced"},
        exclude_list_ids=[third],
        exclude_segment_ids=[other],
        exclude_campaign_ids=world.campaigns[:1],
    )

    expected = [
        person.id
        for person in world.people
        if (
            person.lists.get(first) == "subscribed"
            or person.lists.get(second) == "subscribed"
            or holds(world.segments[segment], person, world)
            or person.status == "bounced"
        )
        and person.lists.get(third) != "subscribed"
        and not holds(world.segments[other], person, world)
        and not any(campaign == world.campaigns[0] and status in got for campaign, status, _ in person.mails)
    ]

    assert 10 < len(expected) < 250
    assert await belonging(pool, audience) == expected
    now = NOW + timedelta(seconds=1)
    assert (await AudienceStore(pool).estimate(TENANT, audience, now)).estimate == len(expected)
    assert (await AudienceStore(pool).count(TENANT, audience, now)).counted == len(expected)


async def test_an_audience_of_lists_or_of_everyone_or_of_nobody(pool: Pool) -> None:
    world = await filled(pool, 120)
    subscribed = [
        person.id for person in world.people if "subscribed" in [person.lists.get(id_) for id_ in world.lists]
    ]

    assert await belonging(pool, Audience(list_ids=world.lists)) == subscribed
    assert await belonging(pool, Audience(list_ids=world.lists), size=3) == subscribed
    assert await belonging(pool, Audience(everyone=True)) == [person.id for person in world.people]
    assert await belonging(pool, Audience()) == []
    assert Audience().is_empty


async def test_contacts_of_another_tenant_are_never_in_it(pool: Pool) -> None:
    await pool.execute(FILL, TENANT, 100)
    their_list = await pool.fetchval(
        "INSERT INTO contact_lists (tenant, name, created_by) VALUES ('other', 'l', 'x') RETURNING id"
    )

    found = await belonging(pool, Audience(everyone=True), size=7)

    assert len(found) == 80
    with pytest.raises(AudienceError) as raised:
        await AudienceStore(pool).check(TENANT, Audience(list_ids=[their_list]))
    assert raised.value.problems[0][:2] == ("/list_ids/0", "unknown_list")


async def test_what_an_audience_names_and_is_not_there_is_told_with_pointers(pool: Pool) -> None:
    world = await filled(pool, 1)
    store = AudienceStore(pool)
    audience = Audience(
        list_ids=[world.lists[0], 998],
        segment_ids=[999],
        exclude_campaign_ids=[997],
        conditions={"field": "lists", "operator": "=", "value": "lst_996"},
    )

    with pytest.raises(AudienceError, match="There is no list lst_998 of yours") as raised:
        await store.resolve(TENANT, audience)

    assert [fault[:2] for fault in raised.value.problems] == [
        ("/exclude_campaign_ids/0", "unknown_campaign"),
        ("/list_ids/1", "unknown_list"),
        ("/segment_ids/0", "unknown_segment"),
        ("/conditions/value", "unknown_list"),
    ]


def test_an_audience_is_written_and_read_with_the_ids_of_clients() -> None:
    body = AudienceBody(list_ids=["lst_1", "seg_2", "lst_1"], exclude_campaign_ids=["cmp_3"])

    audience = parse_audience(body)

    assert audience == Audience(list_ids=[1, 2], exclude_campaign_ids=[3])
    assert audience_body(audience).exclude_campaign_ids == ["cmp_3"]
    with pytest.raises(AudienceError) as raised:
        parse_audience(AudienceBody(list_ids=["1"], everyone=True))
    assert [fault[:2] for fault in raised.value.problems] == [
        ("/list_ids/0", "invalid_id"),
        ("/everyone", "contradiction"),
    ]


async def kept(pool: Pool, tree: object) -> int:
    store = SegmentStore(pool)
    await store.check(TENANT, tree)
    async with pool.acquire() as connection:
        segment = await store.add(connection, TENANT, name="s", description="", conditions=tree, actor="x")
    assert segment is not None
    return segment.id


def naming(id_: int) -> dict[str, Any]:
    return {"not": {"field": "segment", "operator": "=", "value": f"seg_{id_}"}}


async def test_segments_within_segments_may_not_lead_back_or_go_deep(pool: Pool) -> None:
    store = SegmentStore(pool)
    ids = [await kept(pool, VIP)]
    for _ in range(5):
        ids.append(await kept(pool, naming(ids[-1])))

    with pytest.raises(ConditionError, match="nested more than 5 deep"):
        await kept(pool, naming(ids[-1]))
    for which in ids[:3]:
        with pytest.raises(ConditionError, match="made of itself"):
            await store.change(TENANT, which, conditions=naming(ids[2]))
    await pool.execute("UPDATE contact_lists SET segment_conditions = $2 WHERE id = $1", ids[0], naming(ids[1]))
    with pytest.raises(ConditionError, match=r"made of itself|nested"):
        await store.references.condition(TENANT, naming(ids[1]))


async def test_what_is_needed_cannot_be_deleted(pool: Pool) -> None:
    store = SegmentStore(pool)
    inner, free = await kept(pool, VIP), await kept(pool, VIP)
    outer = await kept(pool, naming(inner))
    campaign = await pool.fetchval(
        "INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by, status, audience)"
        " VALUES ($1, 'c', 1, 'a@b.example', 'x', 'scheduled', $2) RETURNING id",
        TENANT,
        {"exclude_segment_ids": [outer], "exclude_campaign_ids": [free], "conditions": naming(inner)},
    )

    assert await store.references.users(TENANT, inner) == [f"campaign cmp_{campaign}", f"segment seg_{outer}"]
    with pytest.raises(InUseError, match=f"campaign cmp_{campaign}"):
        await store.delete(TENANT, outer)
    assert await store.get(TENANT, outer) is not None
    assert await store.delete(TENANT, free)
    await pool.execute("UPDATE campaigns SET status = 'sent'")
    assert await store.delete(TENANT, outer)
    assert await store.delete(TENANT, inner)
    assert not await store.delete(TENANT, inner)


async def test_conditions_that_hold_no_longer_are_a_reason_and_no_crash(pool: Pool) -> None:
    id_ = await kept(pool, {"field": "level", "operator": ">", "value": 3})
    await pool.execute("INSERT INTO custom_field_definitions VALUES ($1, 'level', 'text')", TENANT)

    with pytest.raises(AudienceError, match=f"segment seg_{id_} makes no sense any more"):
        await AudienceStore(pool).resolve(TENANT, Audience(segment_ids=[id_]))


def tagged(name: str) -> dict[str, Any]:
    return {"field": "tags", "operator": "contains", "value": name}


def on_list(id_: int) -> dict[str, Any]:
    return {"field": "lists", "operator": "contains", "value": f"lst_{id_}"}


async def test_however_many_tags_and_lists_are_asked_for_those_of_a_range_are_the_same(pool: Pool) -> None:
    world = await filled(pool)
    first, second, third = world.lists
    asked: list[dict[str, Any]] = [
        {"and": [tagged(tag), on_list(list_)]} for tag in TAGS for list_ in (first, second)
    ]  # more than are read at once
    tree = {"or": [{"not": tagged("vip")}, *asked]}
    audience = Audience(conditions=tree, exclude_list_ids=[third])

    expected = [
        person.id for person in world.people if holds(tree, person, world) and person.lists.get(third) != "subscribed"
    ]

    assert 2 * len(asked) > SETS
    assert 10 < len(expected) < 290
    assert await belonging(pool, audience) == expected


async def test_who_has_a_tag_or_stands_in_a_list_is_read_once_for_a_range(pool: Pool) -> None:
    world = await filled(pool)
    audience = Audience(conditions=tagged("vip"), exclude_list_ids=world.lists[:1])
    compiled = await AudienceStore(pool).select_sql(TENANT, audience, 0, 10_000, now=NOW)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(MANY_ROWS)
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN {compiled.sql}", *compiled.parameters)]

    assert sum("hashed SubPlan" in line for line in plan) > 0
    assert sum("contact_id = c.id" in line for line in plan) == 0
