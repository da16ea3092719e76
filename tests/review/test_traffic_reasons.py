"""Whatever mail waited for is gone: it leaves, whoever took the reason away, and whenever."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from mailerd.config import Pool, PoolSource, WarmUp, WarmUpPlan
from mailerd.config.shaping import parse_shaping
from mailerd.delivery.effects import EffectStore
from mailerd.queue.mail import Queue
from mailerd.queue.store import QueueStore
from mailerd.relay import Relay
from tests.journeys.conftest import dns, mx
from tests.journeys.test_traffic import Lab, brake, lab, two_sources, until, waiting
from tests.support.relay import RunningRelay

__all__ = ["dns", "lab", "mx"]  # fixtures

TINY = WarmUp(plans={"tiny": WarmUpPlan(stages=(7, 14))})
ONE = {"pools": {"default": Pool(sources=(PoolSource("a"),))}}
LONG = 15.0  # seconds


def reload(lab: Lab, relay: Relay, **changes: Any) -> None:
    relay.reconfigure(lab.config(**changes), relay.identity, parse_shaping({"shaping.yaml": ""}))


async def wait_for(lab: Lab, relay: RunningRelay, number: int) -> None:
    await until(lambda: len(lab.mx.delivered) >= number)
    await relay.settled()
    assert len(lab.mx.delivered) == number


@pytest.mark.parametrize("pools", [1, 2])
@pytest.mark.parametrize("how", ["reload", "restart"])
async def test_a_warm_up_that_is_taken_away_holds_no_mail_back(lab: Lab, how: str, pools: int) -> None:
    changes = ONE if pools == 1 else {"pools": {"default": Pool(sources=(PoolSource("a"), PoolSource("b")))}}
    plan: dict[str, Any] = {"plan": "tiny", "overflow": "wait"}
    lab.clock.now = lab.clock.now.replace(hour=1)
    warm = two_sources(**plan) | changes
    cold = two_sources() | changes
    async with lab.relay(warmup=TINY, **warm) as relay:
        await asyncio.gather(*(relay.submit(f"u{n}@example.net") for n in range(40)))
        await until(lambda: lab.mx.recipients_of["127.0.0.51"] >= 7)
        await relay.settled()
        assert all("warm-up" in row["reason"] for row in await waiting(relay))
        assert len(lab.mx.delivered) < 40
        if how == "reload":
            reload(lab, relay.relay, warmup=TINY, **cold)
            await until(lambda: len(lab.mx.delivered) == 40, LONG)
    if how == "restart":
        async with lab.relay(warmup=TINY, **cold):
            await until(lambda: len(lab.mx.delivered) == 40, LONG)


@pytest.mark.parametrize("sources", [0, 2])
async def test_a_limit_that_is_lifted_by_a_reload_holds_no_mail_back(lab: Lab, sources: int) -> None:
    changes = two_sources() if sources else {}
    async with lab.relay("domains: {example.net: {message_rate: 3/d}}", **changes) as relay:
        for number in range(9):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert len(lab.mx.delivered) < 9
        reload(lab, relay.relay, **changes)
        await until(lambda: len(lab.mx.delivered) == 9, LONG)


@pytest.mark.parametrize("sources", [0, 2])
async def test_a_path_limit_that_is_lifted_by_a_reload_holds_no_mail_back(lab: Lab, sources: int) -> None:
    changes = two_sources() if sources else {}
    async with lab.relay("default: {per_path: {message_rate: 2/d}}", **changes) as relay:
        for number in range(9):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert len(lab.mx.delivered) < 9
        reload(lab, relay.relay, **changes)
        await until(lambda: len(lab.mx.delivered) == 9, LONG)


async def test_a_reload_does_not_hasten_what_a_reply_put_off(lab: Lab) -> None:
    lab.mx.on("RCPT TO:<later", "451 4.3.0 mx to you: message rate (f:1)")
    async with lab.relay() as relay:
        await relay.submit("later@example.net")
        await relay.settled()
        before = (await waiting(relay))[0]["due_at"]
        assert before > lab.clock.now
        reload(lab, relay.relay)
        await until(lambda: not relay.relay.upkeep._anew)
        await relay.settled()
        assert (await waiting(relay))[0]["due_at"] == before


@pytest.mark.parametrize("sources", [0, 2])
async def test_an_effect_that_was_cancelled_while_we_were_down_holds_no_mail_back(lab: Lab, sources: int) -> None:
    changes = two_sources() if sources else {}
    async with lab.relay(**changes) as relay:
        stays = await EffectStore(relay.pool).add(brake(lab, site="mx.elsewhere.example", minutes=600))
        made = await EffectStore(relay.pool).add(brake(lab, provider="default", minutes=600))
        await until(lambda: len(relay.relay.effects.active) == 2)
        for number in range(5):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert not lab.mx.delivered
    connection = await asyncpg.connect(lab.database)
    await connection.execute("UPDATE effects SET until = $1 WHERE id = $2", lab.clock.now, made.id)
    await connection.close()
    async with lab.relay(**changes) as relay:
        await until(lambda: len(lab.mx.delivered) == 5, LONG)
        assert [effect.id for effect in relay.relay.effects.active] == [stays.id]


async def test_mail_that_is_put_off_while_its_effect_is_cancelled_leaves_soon(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is a little slow: what is put off is written after all was let go."""
    cancelled = asyncio.Event()
    put_off = QueueStore.put_off

    async def late(self: QueueStore, queues: Mapping[Queue, tuple[datetime, str]], *, now: datetime) -> None:
        if not cancelled.is_set():
            await cancelled.wait()
            await asyncio.sleep(0.5)
        await put_off(self, queues, now=now)

    async with lab.relay() as relay:
        await relay.submit("first@example.net")
        await relay.settled()
        made = await EffectStore(relay.pool).add(brake(lab, provider="default"))
        await until(lambda: bool(relay.relay.effects.active))
        monkeypatch.setattr(QueueStore, "put_off", late)
        await relay.submit("u@example.net", not_before=lab.clock.now + timedelta(seconds=1))
        lab.clock.advance(seconds=2)
        relay.relay.dispatcher.claims.wake()
        await asyncio.sleep(0.2)
        await EffectStore(relay.pool).cancel(made.id, actor="me", now=lab.clock.now)
        await until(lambda: not relay.relay.effects.active)
        cancelled.set()
        await until(lambda: len(lab.mx.delivered) == 2, LONG)
