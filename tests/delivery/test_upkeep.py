"""What goes on beside the mail: brakes of other workers are heard of, also when nobody was told."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from mailerd.delivery import upkeep
from mailerd.delivery.effects import Effect, EffectStore
from tests.support.dns_server import DnsServer
from tests.support.relay import relay_config, running_relay


async def test_brakes_are_read_again_though_the_notification_was_lost(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY", 0.05)
    monkeypatch.setattr(upkeep, "READ_AGAIN", 0.1)
    async with DnsServer() as dns, running_relay(relay_config(tmp_path, dns), database) as relay:
        now = relay.clock.now
        until = now + timedelta(hours=1)
        made = await EffectStore(relay.pool).add(
            Effect(0, "pause", "", "default", "", "", "", 0.0, "enough", "me", now, until)
        )
        async with asyncio.timeout(60):
            while relay.relay.effects.of_path("", "default", "x") != [made]:
                await asyncio.sleep(0.02)


async def test_the_same_brake_asked_for_by_many_replies_at_once_is_written_once(database: str, tmp_path: Path) -> None:
    async with DnsServer() as dns, running_relay(relay_config(tmp_path, dns), database) as relay:
        now = relay.clock.now
        for number in range(100):
            relay.relay.upkeep.brake(
                Effect(0, "pause", "a", "big", "", "", "", 0.0, f"reply {number}", "f:1", now, now + timedelta(hours=1))
            )
        async with asyncio.timeout(60):
            while not relay.relay.effects.of_path("a", "big", "x"):
                await asyncio.sleep(0.02)
        assert await relay.pool.fetchval("SELECT count(*) FROM effects") == 1


async def test_what_was_being_done_is_ended_by_the_stop(database: str, tmp_path: Path) -> None:
    before = set(asyncio.all_tasks())
    async with DnsServer() as dns:
        async with running_relay(relay_config(tmp_path, dns), database):
            await asyncio.sleep(0.05)
        names = {"traffic", "warm-ups", "TLS reports", "sources", "MTA-STS", "brake"}
        assert not [task for task in asyncio.all_tasks() - before if task.get_name() in names]


async def test_what_is_let_go_widely_is_so_though_the_database_was_away_the_first_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reload also what waits for an effect that holds: by the new configuration it may go elsewhere."""
    monkeypatch.setattr(upkeep, "EVERY", 0.05)
    async with DnsServer() as dns, running_relay(relay_config(tmp_path, dns), database) as relay:
        now = relay.clock.now
        await EffectStore(relay.pool).add(
            Effect(0, "pause", "", "default", "", "", "", 0.0, "enough", "me", now, now + timedelta(hours=1))
        )
        await asyncio.sleep(0.3)  # what is done at the start
        store, asked = relay.relay.store, []
        unblock = store.unblock

        async def away(*, but_for: Sequence[int]) -> None:
            asked.append(list(but_for))
            if len(asked) == 1:
                raise ConnectionResetError("the database was restarted")
            await unblock(but_for=but_for)

        monkeypatch.setattr(store, "unblock", away)
        relay.relay.upkeep.reconfigured()
        async with asyncio.timeout(60):
            while len(asked) < 2:
                await asyncio.sleep(0.02)
        assert asked[:2] == [[], []]
