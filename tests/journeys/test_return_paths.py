"""From a submission to the return path that the mail exchanger sees, and back to the recipient that it names."""

import asyncio
import smtplib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest

from mailerd import config
from mailerd.config import (
    Config,
    DkimKey,
    Endpoint,
    Hostname,
    Http,
    Listener,
    RouteAuth,
    RouteMatch,
    RouteRule,
    SendingDomain,
    Tenant,
    Upstream,
)
from mailerd.delivery import identity
from mailerd.delivery.identity import Identity
from mailerd.feedback.addresses import Addresses, Bounce, Unsubscribe
from mailerd.feedback.inbound import build_inbound
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import Credential, CredentialStore
from mailerd.intake.envelope import Receipt
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_listener import SmtpListener
from mailerd.intake.smtp_service import limits_of
from mailerd.relay import builtin_rules
from mailerd.wire import dkim
from mailerd.wire.message import header_values, split
from mailerd.wire.tokens import Tokens
from tests.support.dns_server import DnsServer
from tests.support.live import LiveDaemon
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx
from tests.support.smtp_intake import Client

BOUNCE = "bounce.sender.example"
SENDING = {"sender.example": SendingDomain(return_path=Hostname(BOUNCE))}


def settings(tmp_path: Path, dns: DnsServer, mx: ScriptedMx, **changes: Any) -> Config:
    return relay_config(tmp_path, dns, mx.port, **{"domains": SENDING, **changes})


async def reader(relay: RunningRelay, config: Config) -> Addresses:
    return Addresses(config, await CredentialStore(relay.pool).secret(), relay.clock)


def named(addresses: Addresses, path: str, receipt: Receipt) -> str:
    """The recipient that a return path is about."""
    meaning = addresses.read(path)
    assert isinstance(meaning, Bounce)
    assert meaning.token.message_id == receipt.message_id
    return dict(receipt.recipients)[meaning.token.n]


async def test_each_recipient_has_a_transaction_and_a_return_path_that_names_it(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    configuration = settings(tmp_path, dns, mx)
    async with running_relay(configuration, database) as relay:
        receipt = await relay.submit(
            "a@example.net NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;A@example.net",
            "b@example.net NOTIFY=NEVER",
            "c@example.org",
            "d@example.net",
            envid="order 7",
            ret="HDRS",
        )
        await relay.settled()
        assert await relay.states(receipt) == ["delivered"] * 4
        addresses = await reader(relay, configuration)
        assert mx.transactions == 4
        assert len({delivery.sender for delivery in mx.delivered}) == 4
        for delivery in mx.delivered:
            assert named(addresses, delivery.sender, receipt) == delivery.recipient
            assert named(addresses, delivery.sender.upper(), receipt) == delivery.recipient

    mails = [command for command in mx.commands if command.startswith("MAIL")]
    assert all(" RET=HDRS ENVID=order+20" in command for command in mails)
    rcpts = sorted(command for command in mx.commands if command.startswith("RCPT"))
    assert rcpts == [
        "RCPT TO:<a@example.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;A@example.net",
        "RCPT TO:<b@example.net> NOTIFY=NEVER",
        "RCPT TO:<c@example.org>",
        "RCPT TO:<d@example.net>",
    ]


async def test_an_attempt_again_has_the_same_return_path(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    mx.on("RCPT TO:<b@example.net>", "451 4.7.1 later", then="250 ok")
    async with running_relay(settings(tmp_path, dns, mx), database, clock=now) as relay:
        await relay.submit("b@example.net")
        await relay.settled()
        now.advance(hours=1)
        await relay.run_once()
    mails = [command.partition(" SIZE")[0] for command in mx.commands if command.startswith("MAIL")]
    assert len(mx.delivered) == 1
    assert len(mails) == 2
    assert mails[0] == mails[1] == f"MAIL FROM:<{mx.delivered[0].sender}>"


async def test_the_tenant_has_a_return_path_for_domains_without_one(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    tenants = {"acme": Tenant(return_path=Hostname("bounce.acme.example"))}
    configuration = settings(tmp_path, dns, mx, domains={}, tenants=tenants)
    async with running_relay(configuration, database) as relay:
        receipt = await relay.submit("a@example.net", credential=Credential("app", tenant="acme"))
        await relay.submit("b@example.net")
        await relay.settled()
        addresses = await reader(relay, configuration)
    senders = {delivery.recipient: delivery.sender for delivery in mx.delivered}
    assert named(addresses, senders["a@example.net"], receipt) == "a@example.net"
    assert senders["a@example.net"].endswith("@bounce.acme.example")
    assert senders["b@example.net"] == "ann@sender.example"


async def test_what_has_the_null_sender_keeps_it(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    async with running_relay(settings(tmp_path, dns, mx), database) as relay:
        await relay.submit("no@example.net")
        await relay.settled()
    assert [(delivery.sender, delivery.recipient) for delivery in mx.delivered] == [("", "ann@sender.example")]
    assert b"To: ann@sender.example" in mx.delivered[0].content or b"<ann@sender.example>" in mx.delivered[0].content


async def test_a_smart_host_is_told_the_return_path_too(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    async with ScriptedMx("127.0.0.3", users={"app": "secret"}, extensions=("AUTH PLAIN",)) as smart:
        rule = RouteRule(
            match=RouteMatch(domain="*.corp.example"),
            hosts=(Endpoint("127.0.0.3", smart.port),),
            tls="none",
            auth=RouteAuth(username="app", password="secret"),
        )
        async with running_relay(settings(tmp_path, dns, mx, routes=(rule,)), database) as relay:
            await relay.submit("bob@eu.corp.example")
            await relay.settled()
        assert [delivery.sender.partition("@")[2] for delivery in smart.delivered] == [BOUNCE]


async def test_a_sender_of_another_script_needs_no_smtputf8_any_more(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    mx.extensions = ("PIPELINING", "8BITMIME")
    async with running_relay(settings(tmp_path, dns, mx), database) as relay:
        receipt = await relay.submit("bob@example.net", sender="jürgen@sender.example", smtputf8=True)
        await relay.settled()
        assert await relay.states(receipt) == ["delivered"]
    assert mx.delivered[0].sender.isascii()


async def test_each_recipient_has_fields_to_unsubscribe_by_and_they_are_signed(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    key = identity.generate(tmp_path / "r1.pem", "rsa")
    entry = DkimKey(selector="r1", key_file="r1.pem")
    domains = {"sender.example": SendingDomain(dkim=(entry,), return_path=Hostname(BOUNCE))}
    configuration = settings(tmp_path, dns, mx, domains=domains, http=Http(public_url="https://mail.sender.example"))
    async with running_relay(configuration, database) as relay:
        receipt = await relay.submit("a@example.net", "b@example.net", stream="marketing")
        await relay.settled()
        addresses = await reader(relay, configuration)

    assert len(mx.delivered) == 2
    record = dkim.dns_record(key).encode()
    links = set()
    for delivery in mx.delivered:
        header = split(delivery.content)[0]
        (value,) = header_values(header, b"list-unsubscribe")
        links.add(value)
        for added in (b"List-Unsubscribe: <https://evil.example>\r\n", b"List-Unsubscribe-Post: x\r\n"):
            assert not verified(added + delivery.content, record)
        assert verified(delivery.content, record)
        assert not verified(delivery.content.replace(b"/u/", b"/v/"), record)
        mailto = value.decode().partition("<mailto:")[2].partition("?")[0]
        meaning = addresses.read(mailto)
        assert isinstance(meaning, Unsubscribe)
        assert dict(receipt.recipients)[meaning.token.n] == delivery.recipient
    assert len(links) == 2


async def test_a_return_path_that_is_configured_while_mail_waits_is_used_from_then_on(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    mx.on("RCPT TO:<", "451 4.7.1 later")
    without = settings(tmp_path, dns, mx, domains={})
    async with running_relay(without, database, clock=now) as relay:
        receipt = await relay.submit("a@example.net", "b@example.net")
        await relay.settled()
        mx.on("RCPT TO:<", "250 ok")
        configuration = settings(tmp_path, dns, mx)
        relay.relay.reconfigure(configuration, Identity(configuration), builtin_rules())
        now.advance(hours=1)
        await relay.run_once()
        addresses = await reader(relay, configuration)
    assert mx.commands[1].startswith("MAIL FROM:<ann@sender.example>")
    assert len(mx.delivered) == 2
    assert {named(addresses, each.sender, receipt) == each.recipient for each in mx.delivered} == {True}


REPORT = """From: MAILER-DAEMON@mx.example.net
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: text/plain

The mailbox does not exist.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; somebody.else@example.net
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--b--
.
"""


async def test_what_comes_back_to_the_return_path_is_about_its_recipient(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    configuration = settings(tmp_path, dns, mx)
    async with running_relay(configuration, database) as relay:
        receipt = await relay.submit("a@example.net", "b@example.net")
        await relay.settled()
        path = next(delivery.sender for delivery in mx.delivered if delivery.recipient == "b@example.net")
        async with listening(relay, configuration) as client:
            other = "y" if path[-30] == "x" else "x"  # one time in 32 it is x already
            forged = path[:-30] + other + path[-29:]
            for line, reply in (
                ("EHLO mx.example.net", "250"),
                ("MAIL FROM:<>", "250"),
                ("RCPT TO:<ann@sender.example>", "550 5.1.1"),
                (f"RCPT TO:<{forged}>", "550 5.1.1"),
                (f"RCPT TO:<{path}>", "250 2.1.5"),
                ("DATA", "354"),
                (REPORT.replace("\n", "\r\n").removesuffix("\r\n"), "250 2.0.0"),
            ):
                assert (await client.say(line)).splitlines()[-1].startswith(reply)
        await relay.settled()  # the report goes on to the sender
        events = "SELECT type, n, address FROM events WHERE message_id = $1"
        rows = [tuple(row) for row in await relay.pool.fetch(events, receipt.message_id)]
    late = {row for row in rows if row[0] not in ("message.accepted", "recipient.delivered")}
    n = next(n for n, address in receipt.recipients if address == "b@example.net")
    assert {row[1] for row in late} <= {0, n}
    assert {row[2] for row in late} == {"b@example.net"}


@asynccontextmanager
async def listening(relay: RunningRelay, configuration: Config) -> AsyncIterator[Client]:
    """A client of an inbound listener beside the relay."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = Endpoint("127.0.0.1", sock.getsockname()[1])
    listener = Listener(bind=address, kind="inbound", starttls="off")
    credentials = CredentialStore(relay.pool)
    serving = SmtpListener(
        listener,
        sock,
        limits=limits_of(listener, configuration),
        hostname=configuration.hostname,
        submitter=relay.relay.submitter,
        authenticator=Authenticator(credentials, failures=config.Rate(20, 600.0)),
        memory=Memory(1_000_000),
        inbound=build_inbound(
            configuration,
            relay.pool,
            submitter=relay.relay.submitter,
            suppressions=relay.relay.suppressions,
            provider_of=relay.relay.traffic.provider_of,
            secret=await credentials.secret(),
            clock=relay.clock,
        ),
    )
    serving.start()
    client = Client(*await asyncio.open_connection(address.host, address.port))
    assert (await client.reply()).startswith("220")
    yield client
    client.close()
    await serving.stop(1.0)


LIVE = """
hostname: mail.test
data_dir: {data_dir}
workers: 2
database: {{shared_buffers: 32MiB, max_wal_size: 256MiB}}
listeners:
  - {{bind: "127.0.0.1:0", kind: inbound, starttls: off}}
http: null
sandbox: {{bind: "127.0.0.1:{sandbox}"}}
log: {{format: json}}
"""


def test_the_daemon_takes_other_addresses_after_a_reload_on_open_connections_too(tmp_path: Path) -> None:
    with LiveDaemon(tmp_path, config=LIVE) as daemon, smtplib.SMTP(*daemon.smtp) as client:
        client.ehlo("mx.example.net")
        assert client.esmtp_features["size"] == "10000000"
        assert "auth" not in client.esmtp_features
        client.mail("")
        assert [client.rcpt(each)[0] for each in ("fbl@mail.test", "loop@mail.test", "postmaster")] == [250, 550, 550]

        more = "inbound: {complaints: [loop], forward: {postmaster: ops@far.example}, max_size: 2MB}\n"
        daemon.file.write_text(daemon.file.read_text() + more)
        reloaded = daemon.command("reload")
        assert reloaded.status == 0, reloaded
        assert [client.rcpt(each)[0] for each in ("fbl@mail.test", "loop@mail.test", "postmaster")] == [550, 250, 250]
        client.ehlo("mx.example.net")
        assert client.esmtp_features["size"] == "2000000"


def verified(content: bytes, record: bytes) -> bool:
    return bool(dkimpy.verify(content, dnsfunc=lambda name, timeout=5: record))


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("ses", b"X-SES-MESSAGE-TAGS: mailerd="),
        ("sendgrid", b'X-SMTPAPI: {"unique_args": {"mailerd": "'),
        ("mailgun", b'X-Mailgun-Variables: {"mailerd": "'),
        ("postmark", b"X-PM-Metadata-mailerd: "),
    ],
)
async def test_a_service_that_relays_gets_a_token_for_each_recipient(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path, kind: Any, field: bytes
) -> None:
    upstreams = {"service": Upstream(kind=kind, key="key")}
    rule = RouteRule(hosts=(Endpoint("127.0.0.2", mx.port),), tls="none", upstream="service")
    async with running_relay(
        settings(tmp_path, dns, mx, routes=(rule,), upstreams=upstreams, domains={}), database
    ) as relay:
        receipt = await relay.submit("a@example.net", "b@example.net")
        await relay.settled()
        tokens = Tokens(await CredentialStore(relay.pool).secret(), "return-path")
    named = {}
    for delivery in mx.delivered:
        first, _, rest = delivery.content.partition(b"\r\n")
        assert first.startswith(field)
        assert field not in rest
        token = tokens.read(first[len(field) :][:31].decode())
        assert token is not None
        assert token.message_id == receipt.message_id
        named[delivery.recipient] = token.n
    assert named == {"a@example.net": 1, "b@example.net": 2}
