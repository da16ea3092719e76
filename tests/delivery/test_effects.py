"""Brakes: rows that all workers obey, the same brake only once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.delivery.effects import Effect, Effects, EffectStore

NOW = datetime(2026, 11, 1, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
PAUSE = Effect(0, "pause", "a", "big", "", "", "", 0.0, "421 slow down", "shaping.yaml:7", NOW, NOW + HOUR)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=5)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> EffectStore:
    return EffectStore(pool)


async def test_the_same_brake_again_holds_longer_and_does_not_stand_beside_itself(store: EffectStore) -> None:
    first = await store.add(PAUSE)
    again = await store.add(replace(PAUSE, until=NOW + 2 * HOUR, since=NOW + HOUR / 2, reason="421 again"))
    assert again.id == first.id
    assert (again.since, again.until, again.reason) == (NOW, NOW + 2 * HOUR, "421 again")
    shorter = await store.add(replace(PAUSE, until=NOW + HOUR))
    assert shorter.until == NOW + 2 * HOUR
    await store.add(replace(PAUSE, source="b"))
    assert len(await store.active(NOW)) == 2


async def test_workers_that_make_the_same_brake_at_the_same_time_make_one(store: EffectStore) -> None:
    made = await asyncio.gather(*(store.add(PAUSE) for _ in range(20)))
    assert len({effect.id for effect in made}) == 1
    assert len(await store.active(NOW)) == 1


async def test_a_brake_that_is_over_or_cancelled_holds_no_more_and_a_new_one_begins(store: EffectStore) -> None:
    first = await store.add(PAUSE)
    assert await store.active(NOW + HOUR) == []
    cancelled = await store.cancel(first.id, actor="me", now=NOW + HOUR / 2)
    assert cancelled is not None
    assert cancelled.until == NOW + HOUR / 2
    assert await store.cancel(first.id, actor="me", now=NOW + HOUR / 2) is None
    second = await store.add(replace(PAUSE, since=NOW + HOUR / 2))
    assert second.id != first.id
    assert [effect.id for effect in await store.active(NOW + HOUR / 2)] == [second.id]


async def test_only_what_ends_early_lets_mail_go(store: EffectStore) -> None:
    """Else each further reply would have all mail looked at again, and hosts that are away asked again."""
    now = NOW
    effects = Effects(store, lambda: now)
    assert not await effects.refresh()
    made = await store.add(PAUSE)
    assert not await effects.refresh()
    await store.add(replace(PAUSE, until=NOW + 3 * HOUR, reason="421 again"))
    assert not await effects.refresh()
    assert effects.of_path("a", "big", "x")[0].until == NOW + 3 * HOUR

    await store.cancel(made.id, actor="me", now=NOW + HOUR)
    now = NOW + HOUR
    assert await effects.refresh()
    assert not await effects.refresh()
    await store.add(replace(PAUSE, since=now, until=now + HOUR))
    await effects.refresh()
    now += HOUR  # it ends by itself: what waits for it is due by then
    assert not await effects.refresh()


async def test_the_generation_changes_with_every_change_and_not_without_one(store: EffectStore) -> None:
    effects = Effects(store, lambda: NOW)
    await effects.refresh()
    before = effects.generation
    await effects.add(PAUSE)
    assert effects.generation == before + 1
    await effects.refresh()
    assert effects.generation == before + 1


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"source": "a"}, True),
        ({"source": "b"}, False),
        ({"provider": "big"}, True),
        ({"provider": "other"}, False),
        ({"site": "mx.big.example"}, True),
        ({"site": "mx.other.example"}, False),
    ],
)
def test_a_brake_fits_the_paths_that_it_names(fields: dict[str, str], fits: bool) -> None:
    anything = replace(PAUSE, source="", provider="")
    effect = replace(anything, **fields)  # type: ignore[arg-type]
    assert effect.fits_path("a", "big", "mx.big.example") is fits
    assert effect.fits_mail("a", "big", "mx.big.example", "acme", "spring") is False
    of_tenant = replace(effect, tenant="acme")
    assert of_tenant.fits_path("a", "big", "mx.big.example") is False
    assert of_tenant.fits_mail("a", "big", "mx.big.example", "acme", "spring") is fits
    assert of_tenant.fits_mail("a", "big", "mx.big.example", "other", "spring") is False
    both = replace(of_tenant, campaign="spring")
    assert both.fits_mail("a", "big", "mx.big.example", "acme", "autumn") is False
