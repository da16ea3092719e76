"""Sessions of a destination: whatever hosts do, every connection is given back and no job is forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from mailerd.config import Duration
from mailerd.config.shaping import parse_shaping
from mailerd.delivery.attempt import Job, Where
from mailerd.delivery.destination import CRASHED
from mailerd.delivery.paths import Path as PathOf
from mailerd.delivery.session import Session
from mailerd.delivery.transaction import Result
from mailerd.queue.control import Selection
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, EXTENSIONS, RESET, Pause, ScriptedMx, Step

RULES = parse_shaping({"shaping.yaml": "default: {per_path: {connections: 2, message_rate: 50/s}}"})


def held(relay: RunningRelay) -> int:
    return sum(record.held for record in relay.relay.ledger.records())


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("CONNECT", "421 4.3.2 busy"),
        ("CONNECT", RESET),
        ("EHLO", CLOSE),
        ("MAIL", "421 4.7.0 later"),
        ("RCPT", RESET),
        ("DATA", "554 5.5.1 no"),
        ("CONTENT", CLOSE),
        ("DOT", RESET),
        ("DOT", "not an SMTP reply"),
        ("QUIT", RESET),
        ("RCPT", "250 ok"),
    ],
)
async def test_no_connection_stays_counted_and_no_job_in_hand(
    database: str, tmp_path: Path, moment: str, step: Step
) -> None:
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        mx.on(moment, step)
        config = relay_config(tmp_path, dns, mx.port)
        async with running_relay(config, database, rules=RULES) as relay:
            for number in range(12):
                await relay.submit(f"u{number}@example.net")
            await relay.settled()
            async with asyncio.timeout(60):
                while held(relay) or mx.open:
                    await asyncio.sleep(0.02)
            assert relay.relay.dispatcher.recipients_in_hand == 0
            assert mx.most_open <= 2
        left = {delivery.recipient for delivery in mx.delivered}
        if (moment, step) in (("RCPT", "250 ok"), ("QUIT", RESET)):
            assert len(left) == len(mx.delivered) == 12


async def test_mail_recalled_while_its_connections_wait_leaves_nothing_behind(database: str, tmp_path: Path) -> None:
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        mx.on("DOT", [Pause(0.2), "250 ok"])
        async with running_relay(relay_config(tmp_path, dns, mx.port), database, rules=RULES) as relay:
            for number in range(20):
                await relay.submit(f"u{number}@example.net")
            await asyncio.sleep(0.1)
            relay.relay.dispatcher.recall(Selection(domain="example.net"))
            await relay.settled()
            async with asyncio.timeout(60):
                while held(relay):
                    await asyncio.sleep(0.02)
            assert len(mx.delivered) == 20  # recalled mail is due again
            assert len({delivery.recipient for delivery in mx.delivered}) == 20


async def test_mail_to_many_sites_does_not_leave_a_connection_open_to_each(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.delivery.destination.MOST_IDLE", 5)
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        config = relay_config(tmp_path, dns, mx.port)
        kept = msgspec.structs.replace(config.delivery, idle=Duration(60))
        async with running_relay(msgspec.structs.replace(config, delivery=kept), database) as relay:
            for number in range(30):
                dns.add(f"mx.d{number}.example", "A", "127.0.0.2")
                dns.add(f"d{number}.example", "MX", f"10 mx.d{number}.example.")
                await relay.submit(f"ann@d{number}.example")
            await relay.settled()
            assert len(mx.delivered) == 30
            async with asyncio.timeout(5):
                while mx.open > 5:
                    await asyncio.sleep(0.02)
            await relay.submit("bob@d29.example")  # by the connection that was used last, if it is open
            await relay.settled()
            assert len(mx.delivered) == 31


async def test_of_a_job_that_a_host_takes_in_parts_only_the_part_that_failed_is_put_back(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        DnsServer() as dns,
        ScriptedMx("127.0.0.2", name="mx.example.net", extensions=(*EXTENSIONS, "LIMITS RCPTMAX=1")) as mx,
    ):
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        clock = Clock()
        async with running_relay(relay_config(tmp_path, dns, mx.port), database, clock=clock) as relay:
            attempts = relay.relay._attempts
            run, failed = attempts.run, list[str]()

            async def fail_once(session: Session, job: Job, where: Where) -> Sequence[Result] | None:
                if not failed:
                    failed.extend(recipient.address for recipient in job.recipients)
                    raise RuntimeError("a fault of ours")
                return await run(session, job, where)

            monkeypatch.setattr(attempts, "run", fail_once)
            receipt = await relay.submit("a@example.net", "b@example.net", "c@example.net")
            await relay.settled()
            assert failed == ["a@example.net"]
            assert await relay.states(receipt) == ["queued", "delivered", "delivered"]
            assert relay.relay.dispatcher.recipients_in_hand == 0

            clock.advance(minutes=6)
            await relay.run_once()
            assert await relay.states(receipt) == ["delivered"] * 3
            assert relay.relay.dispatcher.recipients_in_hand == 0
        assert sorted(delivery.recipient for delivery in mx.delivered) == [f"{who}@example.net" for who in "abc"]


async def test_mail_that_was_held_while_it_was_under_way_is_not_tried_on_the_next_connection(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever held it has waited for it in vain by then: it was being sent."""
    monkeypatch.setattr("mailerd.delivery.destination.RECALL_FOR", 0.2)
    one = parse_shaping({"shaping.yaml": "default: {per_path: {connections: 1}}"})
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        mx.on("MAIL", "250 ok", [Pause(1.0), "421 4.4.2 idle for too long"], then="250 ok")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database, rules=one) as relay:
            receipts = [await relay.submit(f"{who}@example.net") for who in "ab"]
            async with asyncio.timeout(30):
                while len([line for line in mx.commands if line.startswith("MAIL")]) < 2:
                    await asyncio.sleep(0.01)
            await relay.pool.execute("UPDATE recipients SET held = true")
            await relay.settled()
            assert len(mx.delivered) == 1
            assert sorted([(await relay.states(receipt))[0] for receipt in receipts]) == ["delivered", "held"]


async def test_a_job_for_which_no_path_is_found_keeps_no_other_from_its_way(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        async with running_relay(relay_config(tmp_path, dns, mx.port), database) as relay:
            traffic, found = relay.relay.traffic, relay.relay.traffic.path

            def broken_once(source: str, site: str, provider: str) -> PathOf:
                monkeypatch.setattr(traffic, "path", found)
                raise ZeroDivisionError

            monkeypatch.setattr(traffic, "path", broken_once)
            later = relay.clock.now + timedelta(hours=1)
            for number in range(3):
                await relay.submit(f"u{number}@example.net", not_before=later)
            relay.clock.advance(hours=1)
            relay.relay.dispatcher.claims.wake()
            async with asyncio.timeout(10):
                while len(mx.delivered) < 2:
                    await asyncio.sleep(0.02)
            await relay.settled()
            assert relay.relay.dispatcher.recipients_in_hand == 0
            assert await relay.pool.fetchval("SELECT reason FROM recipients") == CRASHED
