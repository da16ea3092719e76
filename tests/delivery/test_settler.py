"""Results are recorded in order, and never once more when what they were about has been claimed since."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mailerd.delivery import settler as settling
from mailerd.delivery.settler import Settler
from mailerd.queue.store import Settled
from tests.support.dns_server import DnsServer
from tests.support.relay import relay_config, running_relay
from tests.support.scripted_mx import Pause, ScriptedMx


class Store:
    """Takes a moment for each batch."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []

    async def settle(self, batch: Sequence[Settled], **_: object) -> None:
        await asyncio.sleep(0.005)
        self.recorded += [settled.recipient.n for settled in batch]


async def claimed() -> None: ...


def result(n: int) -> Any:
    return SimpleNamespace(recipient=SimpleNamespace(message=SimpleNamespace(id=1), n=n))


async def test_who_waits_for_what_he_added_does_not_wait_for_what_comes_meanwhile() -> None:
    store: Any = Store()
    journal: Any = SimpleNamespace(close=lambda message_id, n: None)
    settler = Settler(
        store,
        journal,
        worker=1,
        settled=lambda recipients: None,
        claimed=claimed,
        taken_again=lambda recipient: False,
    )

    async def more() -> None:
        for n in range(100, 100_000):
            settler.add([result(n)])
            await asyncio.sleep(0.001)

    adding = asyncio.create_task(more())
    await asyncio.sleep(0.05)
    settler.add([result(1)])
    async with asyncio.timeout(2):
        await settler.recorded()
    assert 1 in store.recorded
    adding.cancel()


async def test_a_result_that_was_recorded_unheard_does_not_free_what_was_claimed_since(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets may be swallowed for a minute: long enough to claim, by another connection, what was put back by it."""
    monkeypatch.setattr(settling, "RETRY_AFTER", 0.05)
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        mx.on("RCPT", "451 4.2.0 not now", then="250 ok")
        mx.on("DOT", [Pause(1.0), "250 ok"])
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            store, lost = relay.relay.store, []
            settle = store.settle

            async def unheard(*arguments: Any, **named: Any) -> None:
                await settle(*arguments, **named)
                if lost:
                    return
                lost.append(arguments)
                relay.clock.advance(hours=2)
                while not relay.relay.dispatcher.recipients_in_hand > 1:
                    relay.relay.dispatcher.claims.wake()
                    await asyncio.sleep(0.01)
                raise ConnectionResetError("the answer was lost")

            monkeypatch.setattr(store, "settle", unheard)
            receipt = await relay.submit("ann@example.net")
            async with asyncio.timeout(30):
                while "DATA" not in mx.commands:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.5)  # the result was settled once more by now, and the new dot has no answer yet
                assert relay.relay.journal.taken() == [(receipt.message_id, 1)]
                while await relay.states(receipt) != ["delivered"]:
                    relay.clock.advance(seconds=1)
                    relay.relay.dispatcher.claims.wake()
                    await asyncio.sleep(0.05)
            await relay.settled()
            assert lost
            assert relay.relay.dispatcher.recipients_in_hand == 0
        assert len(mx.delivered) == 1
