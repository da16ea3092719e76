"""A fault of ours in the middle of an attempt: nobody is lost, and who may have the mail already is marked."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailerd import metrics
from mailerd.delivery.session import Session
from tests.support.dns_server import DnsServer
from tests.support.relay import RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx


def failing_once(does: Callable[..., Any]) -> Callable[..., Any]:
    """As it was, but for the first call."""
    calls: list[tuple[Any, ...]] = []

    def fails(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyError("a fault of ours")
        return does(*arguments, **named)

    return fails


async def delivered(relay: RunningRelay, address: str) -> dict[str, Any]:
    """Send a mail, until it is recorded as delivered; the facts of that."""
    receipt = await relay.submit(address)
    async with asyncio.timeout(30):
        while await relay.states(receipt) != ["delivered"]:
            relay.clock.advance(minutes=1)
            relay.relay.dispatcher.claims.wake()
            await asyncio.sleep(0.05)
    await relay.settled()
    assert relay.relay.dispatcher.recipients_in_hand == 0
    assert relay.relay.journal.taken() == []
    facts = "SELECT data FROM events WHERE type = 'recipient.delivered' AND message_id = $1"
    return dict(await relay.pool.fetchval(facts, receipt.message_id))


async def test_who_may_have_the_mail_already_is_in_doubt(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "transacted", failing_once(metrics.transacted))
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            facts = await delivered(relay, "ann@example.net")
        assert len(mx.delivered) == 2
        assert facts["in_doubt"] is True


async def test_who_cannot_have_it_yet_is_not(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "transact", failing_once(Session.transact))
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            facts = await delivered(relay, "ann@example.net")
        assert len(mx.delivered) == 1
        assert "in_doubt" not in facts


async def test_who_was_settled_is_not_put_back(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with DnsServer() as dns, ScriptedMx() as mx:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            lessons = relay.relay.dispatcher._traffic.lessons
            monkeypatch.setattr(lessons, "note", failing_once(lessons.note))
            await delivered(relay, "ann@example.net")
            await delivered(relay, "ann@example.net")
        assert len(mx.delivered) == 2
