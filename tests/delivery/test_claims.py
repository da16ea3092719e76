"""What is claimed is in one hand only, and nothing is ours that is in no hand."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mailerd.delivery import settler as settling
from tests.support.dns_server import DnsServer
from tests.support.relay import relay_config, running_relay
from tests.support.scripted_mx import Pause, ScriptedMx


async def test_a_look_at_the_queues_from_before_claims_nothing_while_results_may_be_recorded_unheard(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that takes long, over a good connection, while the answer of a settlement is lost on another one."""
    monkeypatch.setattr(settling, "RETRY_AFTER", 0.05)
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        mx.on("RCPT", "451 4.2.0 not now", then="250 ok")
        mx.on("DOT", [Pause(1.0), "250 ok"])
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            store, dispatcher, tried = relay.relay.store, relay.relay.dispatcher, []
            settle, due_queues = store.settle, store.due_queues
            put_back, looked, again = asyncio.Event(), asyncio.Event(), asyncio.Event()

            async def slow(*arguments: Any, **named: Any) -> Any:
                found = await due_queues(*arguments, **named)
                if put_back.is_set() and not looked.is_set():
                    looked.set()
                    await again.wait()
                return found

            async def unheard(*arguments: Any, **named: Any) -> None:
                tried.append(arguments)
                if len(tried) == 2:
                    again.set()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            while dispatcher.recipients_in_hand < 2:
                                await asyncio.sleep(0.01)
                await settle(*arguments, **named)
                if len(tried) == 1:
                    relay.clock.advance(hours=2)
                    put_back.set()
                    while not looked.is_set():
                        dispatcher.claims.wake()
                        await asyncio.sleep(0.01)
                    raise ConnectionResetError("the answer was lost")

            monkeypatch.setattr(store, "settle", unheard)
            monkeypatch.setattr(store, "due_queues", slow)
            receipt = await relay.submit("ann@example.net")
            async with asyncio.timeout(30):
                while await relay.states(receipt) != ["delivered"]:
                    relay.clock.advance(seconds=1)
                    dispatcher.claims.wake()
                    await asyncio.sleep(0.05)
            await relay.settled()
            assert looked.is_set()
        assert len(mx.delivered) == 1


async def test_a_stray_that_was_claimed_as_it_was_put_back_is_freed(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the answer of the settlement and that of the claim were long under way, and the second one was lost."""
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        mx.on("RCPT", "451 4.2.0 not now", then="250 ok")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            store = relay.relay.store
            settle, claim = store.settle, store.claim
            claimed = asyncio.Event()

            async def late(*arguments: Any, **named: Any) -> None:
                await settle(*arguments, **named)
                if not claimed.is_set():
                    relay.clock.advance(hours=2)
                    relay.relay.dispatcher.claims.wake()
                    await claimed.wait()
                    await asyncio.sleep(0.2)

            async def unheard(*arguments: Any, **named: Any) -> Any:
                messages = await claim(*arguments, **named)
                if messages and not claimed.is_set():
                    claimed.set()
                    raise ConnectionResetError("the answer was lost")
                return messages

            monkeypatch.setattr(store, "settle", late)
            monkeypatch.setattr(store, "claim", unheard)
            receipt = await relay.submit("ann@example.net")
            async with asyncio.timeout(30):
                while await relay.states(receipt) != ["delivered"]:
                    relay.clock.advance(seconds=1)
                    relay.relay.dispatcher.claims.wake()
                    await asyncio.sleep(0.05)
        assert len(mx.delivered) == 1


async def test_what_goes_astray_while_strays_are_freed_is_looked_for_once_more(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several commits may be lost at once: one is found out about while another's rows have just been looked for."""
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        mx.on("RCPT", "451 4.2.0 not now", then="250 ok")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            dispatcher, freed = relay.relay.dispatcher, []
            leases = dispatcher.claims._leases
            free_strays = leases.free_strays

            async def another(worker: int, *arguments: Any) -> int:
                freed.append(await free_strays(worker, *arguments))
                if len(freed) == 1:
                    await relay.pool.execute("UPDATE recipients SET owner = $1", worker)
                    dispatcher.strayed()
                return freed[-1]

            receipt = await relay.submit("ann@example.net")
            await relay.settled()
            monkeypatch.setattr(leases, "free_strays", another)
            dispatcher.strayed()
            async with asyncio.timeout(30):
                while await relay.states(receipt) != ["delivered"]:
                    relay.clock.advance(minutes=10)
                    dispatcher.claims.wake()
                    await asyncio.sleep(0.05)
            assert freed == [0, 1]
        assert len(mx.delivered) == 1
