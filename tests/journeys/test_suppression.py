"""Addresses that must not be mailed: refused at submission, left out before DATA, found out by bounces."""

import asyncio
import random
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress as suppress_error
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace
from structlog.testing import capture_logs

from mailerd.config import Suppression as Rules
from mailerd.delivery.routing import Host
from mailerd.delivery.session import Session
from mailerd.delivery.transaction import WITH_DATA
from mailerd.errors import Refused, Unavailable
from mailerd.intake.credentials import TRUSTED, Credential
from mailerd.intake.envelope import Receipt
from mailerd.queue import screening
from mailerd.queue.suppression import GRACE, Reason, Suppression
from tests.support.clocked_mx import ClockedMx
from tests.support.database_proxy import DatabaseProxy
from tests.support.dns_server import DnsServer
from tests.support.relay import CONTENT, Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import EXTENSIONS, Pause, ScriptedMx, certificate
from tests.support.suppressor import suppress_all

UNPIPELINED = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")
LONG = f"rfc822;{'x' * 200}@example.com"
NEWS = Credential(name="news", tenant="acme")


async def suppress(relay: RunningRelay, *addresses: str, **changes: Any) -> None:
    """As an API does it: when this returns, the caller may rely on it."""
    facts: dict[str, Any] = {
        "tenant": "default",
        "reason": Reason.MANUAL,
        "source": "api",
        "created_at": relay.clock.now,
    }
    await relay.relay.suppressions.add([Suppression(address, **facts | changes) for address in addresses])
    await asyncio.sleep(GRACE)


async def refusal(relay: RunningRelay, *to: str, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await relay.submit(*to, **options)
    return caught.value


async def told(relay: RunningRelay, type_: str = "recipient.suppressed") -> list[tuple[int, str]]:
    rows = await relay.pool.fetch("SELECT message_id, address FROM events WHERE type = $1 ORDER BY n", type_)
    return [(row["message_id"], row["address"]) for row in rows]


async def suppressed(relay: RunningRelay) -> list[tuple[str, str, str]]:
    rows = await relay.pool.fetch("SELECT address, tenant, reason FROM suppressions ORDER BY id")
    return [(row["address"], row["tenant"], row["reason"]) for row in rows]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


# at submission


async def test_mail_to_a_suppressed_address_is_refused_with_the_reason_and_told(
    relay: RunningRelay, mx: ScriptedMx
) -> None:
    await suppress(relay, "bob@example.net", reason=Reason.BOUNCE, detail="550 5.1.1 no such user")

    refused = await refusal(relay, "Bob@EXAMPLE.net")
    await relay.settled()

    assert (refused.code, refused.enhanced, refused.name, refused.http) == (550, "5.7.1", "suppressed", 422)
    for words in ("bob@example.net", "bounced", "no such user", "remove suppression", f"{relay.clock.now:%Y-%m-%d}"):
        assert words in refused.text
    assert mx.commands == []
    assert await told(relay) == [(0, "Bob@example.net")]
    data = await relay.pool.fetchval("SELECT data FROM events WHERE type = 'recipient.suppressed'")
    assert (data["reason"], data["source"], data["at"], data["sender"]) == (
        "bounce",
        "api",
        "submission",
        "ann@sender.example",
    )
    assert data["scope"] == {"tenant": "default", "stream": "", "topic": ""}
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_of_several_recipients_the_others_get_the_mail_and_the_sender_is_told(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    await suppress(relay, "no@example.net", "silent@example.net")

    receipt = await relay.submit("no@example.net", "yes@example.net", "silent@example.net NOTIFY=NEVER")
    await relay.settled()

    assert [address for _, address in receipt.recipients] == ["yes@example.net"]
    assert [(n, address) for n, address, _ in receipt.suppressed] == [(1, "no@example.net"), (3, "silent@example.net")]
    assert await relay.states(receipt) == ["suppressed", "delivered", "suppressed"]
    assert sorted(delivery.recipient for delivery in mx.delivered) == ["ann@sender.example", "yes@example.net"]
    report = next(delivery.content for delivery in mx.delivered if delivery.sender == "")
    assert b"Final-Recipient: rfc822; no@example.net" in report
    assert b"Status: 5.7.1" in report
    assert b"silent@example.net" not in report
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    assert (await relay.view(receipt)).recipients[0].last_reply.startswith("550 5.7.1 no@example.net is suppressed")


@pytest.mark.parametrize(
    ("scope", "credential", "envelope", "refused"),
    [
        ({"tenant": "default"}, NEWS, {}, False),
        ({"tenant": "acme"}, NEWS, {}, True),
        ({"tenant": ""}, NEWS, {}, True),
        ({"stream": "marketing"}, TRUSTED, {"stream": "marketing"}, True),
        ({"stream": "marketing"}, TRUSTED, {"stream": "transactional"}, False),
        ({"stream": "marketing", "topic": "offers"}, TRUSTED, {"stream": "marketing", "topic": "offers"}, True),
        ({"stream": "marketing", "topic": "offers"}, TRUSTED, {"stream": "marketing", "topic": "news"}, False),
        ({"address": "@example.net"}, TRUSTED, {}, True),
        ({"address": "@example.org"}, TRUSTED, {}, False),
    ],
)
async def test_the_scope_decides(
    relay: RunningRelay, scope: dict[str, str], credential: Credential, envelope: dict[str, Any], refused: bool
) -> None:
    await suppress(relay, scope.get("address", "bob@example.net"), **{k: v for k, v in scope.items() if k != "address"})
    if refused:
        assert (await refusal(relay, "bob@example.net", credential=credential, **envelope)).name == "suppressed"
    else:
        assert (await relay.submit("bob@example.net", credential=credential, **envelope)).suppressed == []


async def test_who_is_not_the_owner_of_an_entry_learns_nothing_of_the_mail_behind_it(relay: RunningRelay) -> None:
    await suppress(relay, "bob@example.net", tenant="", detail="550 rejected: invoice 7 of default")
    text = (await refusal(relay, "bob@example.net", credential=NEWS)).text
    assert "invoice" not in text
    assert "only the operator can lift this" in text


async def test_an_entry_that_is_over_stops_nothing(relay: RunningRelay, mx: ScriptedMx) -> None:
    await suppress(relay, "bob@example.net", expires_at=relay.clock.now + timedelta(hours=1))
    await refusal(relay, "bob@example.net")
    relay.clock.advance(hours=2)
    await relay.submit("bob@example.net")
    await relay.settled()
    assert len(mx.delivered) == 1


async def test_of_a_large_message_those_that_must_not_get_it_are_left_out(relay: RunningRelay, mx: ScriptedMx) -> None:
    everyone = [f"user{n}@example.net" for n in range(20_000)]
    await suppress(relay, *everyone[::100])
    later = relay.clock.now + timedelta(hours=1)  # what this is about is over before it leaves

    receipt = await relay.submit(*(f"{address} NOTIFY=NEVER" for address in everyone), not_before=later)

    assert len(receipt.suppressed) == 200
    assert await relay.pool.fetchval("SELECT count(*) FROM recipients") == 19_800
    assert await relay.pool.fetchval("SELECT pending FROM messages") == 19_800


# right before DATA


async def test_mail_that_waits_is_not_sent_to_an_address_suppressed_meanwhile(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    later = relay.clock.now + timedelta(hours=1)
    receipt = await relay.submit("no@example.net", "yes@example.net", not_before=later)
    await suppress(relay, "no@example.net")

    relay.clock.advance(hours=1)
    await relay.run_once()

    assert await relay.states(receipt) == ["suppressed", "delivered"]
    assert "RCPT TO:<no@example.net>" not in "\n".join(mx.commands)
    assert sorted(delivery.recipient for delivery in mx.delivered) == ["ann@sender.example", "yes@example.net"]
    assert await told(relay) == [(receipt.message_id, "no@example.net")]


async def test_a_report_to_a_suppressed_sender_is_not_sent_and_makes_no_report(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    await suppress(relay, "ann@sender.example")
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    await relay.submit("no@example.net")
    await relay.settled()
    assert mx.delivered == []
    assert [address for _, address in await told(relay)] == ["ann@sender.example"]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_one_who_only_unsubscribed_still_gets_reports(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    await suppress(relay, "ann@sender.example", stream="marketing", reason=Reason.UNSUBSCRIBE)
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    await relay.submit("no@example.net")
    await relay.settled()
    assert [delivery.recipient for delivery in mx.delivered] == ["ann@sender.example"]


async def test_a_host_without_pipelining_is_left_before_data(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.extensions = UNPIPELINED
    mx.on("RCPT TO:<yes@example.net>", [Pause(0.5), "250 2.1.5 ok"], then="250 2.1.5 ok")
    receipt = await relay.submit("no@example.net NOTIFY=NEVER", "yes@example.net")
    await until(lambda: "RCPT TO:<yes@example.net>" in mx.commands)

    await suppress(relay, "no@example.net")
    await relay.settled()

    assert [delivery.recipient for delivery in mx.delivered] == ["yes@example.net"]
    assert await relay.states(receipt) == ["suppressed", "delivered"]
    assert [command.partition(" ")[0] for command in mx.commands[1:5]] == ["MAIL", "RCPT", "RCPT", "RSET"]
    assert mx.commands.count("DATA") == 1
    assert mx.connections == 1


async def test_a_slow_host_without_pipelining_gets_its_mail(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.extensions = UNPIPELINED
    mx.on("MAIL", [Pause(2 * GRACE), "250 2.1.0 ok"])
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    receipt = await relay.submit("no@example.net NOTIFY=NEVER", "yes@example.net")
    await relay.settled()
    assert await relay.states(receipt) == ["bounced", "delivered"]
    assert "RSET" not in mx.commands


# what bounces lead to


async def test_a_hard_bounce_suppresses_at_once_and_for_its_tenant_only(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    receipt = await relay.submit("No@example.net NOTIFY=NEVER")
    mx.on("RCPT TO:<No@example.net>", "550 5.1.1 no such user")
    await relay.settled()

    assert await suppressed(relay) == [("no@example.net", "default", "bounce")]
    assert await told(relay, "suppression.added") == [(receipt.message_id, "no@example.net")]
    assert len((await relay.view(receipt)).recipients) == 1
    assert (await refusal(relay, "no@example.net")).name == "suppressed"
    assert await relay.submit("no@example.net NOTIFY=NEVER", credential=NEWS)


@pytest.mark.parametrize(
    ("pattern", "reply"),
    [
        ("MAIL", "550 5.1.1 no such user"),
        ("RCPT", "550 5.7.1 relaying denied"),
        ("RCPT", "550 5.7.1 your address is on our block list"),
        ("RCPT", "452 4.2.2 mailbox full"),
        ("RCPT", "552 5.2.2 mailbox full"),  # counts, but does not suppress by itself
        ("DOT", "554 5.7.1 message looks like spam"),
        ("CONNECT", "554 5.1.1 no such user"),
        ("EHLO", "550 5.1.1 no such user"),
    ],
)
async def test_what_is_not_about_the_recipient_suppresses_nobody(
    relay: RunningRelay, mx: ScriptedMx, pattern: str, reply: str
) -> None:
    mx.on(pattern, reply)
    await relay.submit("bob@example.net NOTIFY=NEVER")
    await relay.settled()
    assert await suppressed(relay) == []


async def test_a_null_mx_is_no_word_of_a_host(relay: RunningRelay, dns: DnsServer) -> None:
    dns.add("nomail.example", "MX", "0 .")
    await relay.submit("bob@nomail.example NOTIFY=NEVER")
    await relay.settled()
    assert await suppressed(relay) == []


async def test_the_third_full_mailbox_over_a_day_suppresses(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<bob@example.net>", "552 5.2.2 mailbox full")
    for hours in (0, 13, 13):
        relay.clock.advance(hours=hours)
        assert await suppressed(relay) == []
        await relay.submit("bob@example.net NOTIFY=NEVER")
        await relay.settled()
    assert await suppressed(relay) == [("bob@example.net", "default", "soft_bounce")]


async def test_mail_that_expires_because_of_a_full_mailbox_counts(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<bob@example.net>", "452 4.2.2 mailbox full")
    receipt = await relay.submit("bob@example.net NOTIFY=NEVER", expires_at=relay.clock.now + timedelta(minutes=30))
    await relay.settled()
    relay.clock.advance(hours=1)
    await relay.run_once()
    assert (await relay.states(receipt)) == ["expired"]
    assert await relay.pool.fetchval("SELECT bounces FROM soft_bounces WHERE address = 'bob@example.net'") == 1


async def test_a_global_scope_binds_all_tenants(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> None:
    config = relay_config(tmp_path, dns, mx.port, suppression=Rules(scope="global"))
    async with running_relay(config, database) as relay:
        mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
        await relay.submit("no@example.net NOTIFY=NEVER")
        await relay.settled()
        assert (await refusal(relay, "no@example.net", credential=NEWS)).name == "suppressed"


# consistency


@pytest.mark.parametrize("manner", ["pipelined", "one by one", "many recipients"])
async def test_no_data_for_an_address_after_its_suppression_was_acknowledged(
    database: str, dns: DnsServer, tmp_path: Path, manner: str
) -> None:
    """Many send, others suppress, and the relay's own process does not always come to run: whatever the luck, no DATA
    comes for an address that is known to be suppressed."""
    addresses = [f"user{n}@example.com" for n in range(300)]
    dice = random.Random(7)
    over = False
    # Jobs wait in line after they were asked about, or the host takes its time before DATA.
    pauses = {"envelope": GRACE} if manner == "one by one" else {"dot": GRACE}
    senders, sizes = (2, (50, 100)) if manner == "many recipients" else (10, (1, 1, 1, 5))
    dns.add("mx.example.com", "A", "127.0.0.3")
    dns.add("example.com", "MX", "10 mx.example.com.")

    async with ClockedMx(tmp_path, host="127.0.0.3", pipelining=manner != "one by one", **pauses) as exchanger:
        delivery = replace(
            relay_config(tmp_path, dns, exchanger.port).delivery,
            recipients_per_transaction=1_000,
            connections_per_path=8,
        )
        async with running_relay(relay_config(tmp_path, dns, delivery=delivery), database) as relay:

            async def send() -> None:
                while not over:
                    with suppress_error(Refused):
                        several = dice.sample(addresses, dice.choice(sizes))
                        await relay.submit(*(f"{address} NOTIFY=NEVER ORCPT={LONG}" for address in several))
                    await asyncio.sleep(dice.random() * 0.1)

            async def stall() -> None:
                while not over:
                    await asyncio.sleep(dice.random() * 0.1)
                    time.sleep(dice.random() * GRACE / 2)  # on purpose in the loop

            async with asyncio.TaskGroup() as group:
                for work in (*[send] * senders, stall):
                    group.create_task(work())
                acknowledged = await suppress_all(database, addresses, seed=7, pause=0.3)
                over = True
            await relay.settled()
        seen = exchanger.sightings()

    waits = [(round(each.at - acknowledged[each.address], 4), each.address) for each in seen]
    assert len(waits) > 40
    print("latest", *max(waits))  # how near it came
    assert [wait for wait in waits if wait[0] > 0] == []


class Word:
    """A permit whose answers are known."""

    def __init__(self, *, good: bool, was_good: bool) -> None:
        self._good, self._was_good = good, was_good

    def good(self) -> bool:
        return self._good

    def was_good(self) -> bool:
        return self._was_good

    async def renew(self) -> bool:
        return True


@pytest.mark.parametrize("extensions", [EXTENSIONS, UNPIPELINED], ids=["pipelined", "one by one"])
async def test_who_was_frozen_between_the_last_look_at_the_clock_and_data_sends_no_content(
    mx: ScriptedMx, extensions: tuple[str, ...]
) -> None:
    mx.extensions = extensions
    session = await Session.open(Host("mx.example.net", mx.address, port=mx.port), ehlo="mail.sender.example")

    called_off = await session.transact(
        "ann@x.example", ["bob@y.example"], CONTENT, permit=Word(good=False, was_good=True)
    )
    assert (called_off.called_off, called_off.usable, mx.commands.count("DATA")) == (True, True, 0)

    late = await session.transact("ann@x.example", ["bob@y.example"], CONTENT, permit=Word(good=True, was_good=False))
    assert (late.called_off, late.usable, session.alive) == (True, False, False)
    assert mx.delivered == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_what_is_written_has_left_when_the_write_returns(loop: str, tls: bool) -> None:
    """What the promise of mailerd.queue.screening rests on: no event loop keeps it until its next turn."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(_writes(tls=tls))


async def _writes(*, tls: bool) -> None:
    made = certificate("mx.example.net")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(made.pem, made.key)
    context = ssl.create_default_context(cafile=made.pem)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        options: dict[str, Any] = {"ssl": context, "server_hostname": "mx.example.net"} if tls else {}
        opening = asyncio.open_connection(*listening.getsockname(), **options)
        accepting = asyncio.to_thread(_accept, listening, server_context if tls else None)
        (_, writer), accepted = await asyncio.gather(opening, accepting)
        with accepted:
            for n in range(10):
                writer.transport.write(b"%d" % n * WITH_DATA)
                assert select.select([accepted], [], [], 1.0)[0]  # the loop does not run meanwhile
                left = WITH_DATA
                while left:
                    left -= len(accepted.recv(left))
            writer.transport.abort()


def _accept(listening: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
    accepted, _ = listening.accept()
    return accepted if context is None else context.wrap_socket(accepted, server_side=True)


class SlowLink(DatabaseProxy):
    """A database whose answers take `seconds`."""

    seconds = 0.0

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: Any) -> None:
        if muted is None:
            return await super()._forward(reader, writer, muted)
        late = asyncio.StreamReader()
        forwarding = asyncio.create_task(super()._forward(late, writer, muted))
        while data := await reader.read(65_536):
            await asyncio.sleep(self.seconds)
            late.feed_data(data)
        late.feed_eof()
        return await forwarding


@pytest.mark.parametrize("extensions", [EXTENSIONS, UNPIPELINED], ids=["pipelined", "one by one"])
async def test_mail_goes_back_with_a_reason_when_every_answer_comes_too_late_to_be_used(
    database: str,
    dns: DnsServer,
    tmp_path: Path,
    mx: ScriptedMx,
    monkeypatch: pytest.MonkeyPatch,
    extensions: tuple[str, ...],
) -> None:
    monkeypatch.setattr(screening, "ASK_FOR", 0.5)
    mx.extensions = extensions
    link = SlowLink(database, tmp_path)
    async with link, running_relay(relay_config(tmp_path, dns, mx.port), link.url) as relay:
        link.seconds = 1.2 * GRACE
        with capture_logs() as logs:
            receipt = await relay.submit("bob@example.net NOTIFY=NEVER")
            due = "SELECT due_at, reason FROM recipients WHERE owner IS NULL"
            async with asyncio.timeout(60):
                while (row := await relay.pool.fetchrow(due)) is None:
                    await asyncio.sleep(0.1)

        assert row["reason"] == screening.SLOW
        assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["suppressions.slow"]
        assert "DATA" not in mx.commands
        assert await relay.events(receipt) == ["message.accepted"]

        link.seconds = 0.0
        relay.clock.advance(minutes=1)
        await relay.run_once()
        assert await relay.states(receipt) == ["delivered"]


async def test_mail_accepted_before_a_crash_is_asked_about_by_whoever_takes_it_over(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    mx.on("RCPT", "451 4.3.0 later", then="250 2.1.5 ok")
    clock = Clock()
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=clock) as relay:
        receipt = await relay.submit("bob@example.net NOTIFY=NEVER")
        await relay.settled()
    async with running_relay(config, database, clock=clock) as relay:
        await suppress(relay, "bob@example.net")
        relay.clock.advance(hours=1)
        await relay.run_once()
        assert await relay.states(receipt) == ["suppressed"]
    assert mx.delivered == []


async def test_nothing_is_sent_unasked_while_the_database_is_away(
    database: str, dns: DnsServer, tmp_path: Path, mx: ScriptedMx
) -> None:
    mx.extensions = UNPIPELINED
    mx.on("RCPT TO:<bob@example.net>", [Pause(3 * GRACE), "250 2.1.5 ok"])
    async with (
        DatabaseProxy(database, tmp_path) as proxy,
        running_relay(relay_config(tmp_path, dns, mx.port), proxy.url) as relay,
    ):
        receipt: Receipt = await relay.submit("bob@example.net NOTIFY=NEVER")
        await until(lambda: any(command.startswith("RCPT") for command in mx.commands))
        proxy.stop()

        await until(lambda: "RSET" in mx.commands)
        assert "DATA" not in mx.commands
        with pytest.raises(Unavailable):
            await relay.submit("carl@example.net")

        await proxy.start()
        await relay.settled()
        assert [delivery.recipient for delivery in mx.delivered] == ["bob@example.net"]
        assert await relay.states(receipt) == ["delivered"]
