"""The listener for what comes back, over real sockets and real TLS: what it takes, and all that it does not."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from mailerd import config
from mailerd.config import Config, Endpoint, Hostname, Inbound, Listener, SendingDomain, Size, Smtp
from mailerd.errors import Refused, Unavailable
from mailerd.feedback.addresses import Addresses
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.smtp_service import limits_of
from mailerd.queue.ids import first_id_at
from mailerd.wire.srs import Srs
from mailerd.wire.tokens import Tokens
from tests.intake.test_smuggling import NOT_THE_END, stream
from tests.support.smtp_intake import Client, Intake, Outbox

SECRET = b"s" * 32
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
REPORT = b"From: <>\r\nSubject: Undelivered\r\n\r\nno such user\r\n"
CONFIG = Config(
    hostname="mail.example.com",
    domains={"example.com": SendingDomain(return_path=Hostname("bounce.example.com"))},
    inbound=Inbound(forward={"postmaster": "ops@example.org"}),
)


def token(purpose: str = "return-path", *, secret: bytes = SECRET, days: float = 0.0) -> str:
    """Of a message that was sent so many days ago."""
    then = NOW - timedelta(days=days)
    return Tokens(secret, purpose).make(first_id_at(int(then.timestamp() * 1000)), 3)


BOUNCE = f"b-{token()}@bounce.example.com"
SRS = Srs(SECRET).forward("ann@sender.example", "bounce.example.com", NOW)


@dataclass
class Arrived:
    sender: str
    recipients: list[str]
    content: bytes
    peer: str
    helo: str
    tls: str


@dataclass
class Letterbox:
    """Takes what is for `addresses`. It waits for `gate` if there is one, and raises `trouble` while that is set."""

    addresses: Addresses = field(default_factory=lambda: Addresses(CONFIG, SECRET, lambda: NOW))
    arrived: list[Arrived] = field(default_factory=list)
    trouble: Exception | None = None
    gate: asyncio.Event | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    def accepts(self, address: str) -> None:
        if self.addresses.read(address) is None:
            raise Refused(550, "5.1.1", "no such address here", name="no_such_address")

    async def receive(
        self, sender: str, recipients: Sequence[str], content: bytes, peer: str, helo: str, tls: str
    ) -> None:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.arrived.append(Arrived(sender, list(recipients), content, peer, helo, tls))


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Intake]]


@pytest.fixture
def box() -> Letterbox:
    return Letterbox()


@pytest.fixture
def inbound(box: Letterbox, outbox: Outbox, lonely: Authenticator) -> Serve:
    """`async with inbound(tls=…, listener={…}, limits={…}) as intake`; nothing is ever submitted to it."""

    @contextlib.asynccontextmanager
    async def serve(
        listener: dict[str, Any] | None = None, limits: dict[str, Any] | None = None, **more: Any
    ) -> AsyncIterator[Intake]:
        settings = {"kind": "inbound", **(listener or {})}
        small = {"max_recipients": 100, **(limits or {})}
        async with Intake(outbox, lonely, listener=settings, limits=small, inbound=box, **more) as intake:
            yield intake
        assert outbox.messages == []
        assert intake.memory.used == 0

    return serve


async def ready(intake: Intake, *recipients: str, sender: str = "") -> Client:
    """A client whose MAIL and RCPTs were taken."""
    client = await intake.connect()
    await client.say("EHLO mx.example.net")
    for line in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients)):
        assert (await client.say(line)).startswith("250 ")
    return client


# ---- what is offered and taken


async def test_it_promises_neither_dsn_nor_requiretls_nor_auth(inbound: Serve, tls: ssl.SSLContext, trust):
    async with inbound(tls=tls, listener={"starttls": "optional"}, limits={"max_size": Size(1234)}) as intake:
        client = await intake.connect()
        plain = (await client.say("EHLO x")).splitlines()
        await client.say("STARTTLS")
        await client.start_tls(trust)
        encrypted = (await client.say("EHLO x")).splitlines()
    offered = ["PIPELINING", "SIZE 1234", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"]
    offered.append("LIMITS RCPTMAX=100")
    assert [line[4:] for line in plain[1:]] == [*offered, "STARTTLS"]
    assert [line[4:] for line in encrypted[1:]] == offered


@pytest.mark.parametrize("sender", ["", "mailer-daemon@mx.example.net"])
async def test_a_report_is_handed_on_as_it_came(sender: str, box: Letterbox, inbound: Serve):
    async with inbound() as intake:
        client = await ready(intake, BOUNCE, sender=sender)
        assert (await client.say("DATA")).startswith("354")
        client.write(REPORT + b"..\r\n.\r\n")
        assert await client.reply() == "250 2.0.0 Ok"
    assert box.arrived == [Arrived(sender, [BOUNCE], REPORT + b".\r\n", "127.0.0.1", "mx.example.net", "")]


async def test_bdat_and_eight_bits_and_several_recipients_over_tls(box, inbound: Serve, tls, trust):
    content = "Subject: für dich\r\n\r\n".encode() + b"\xff\r\n"
    async with inbound(tls=tls, listener={"starttls": "required"}) as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        assert (await client.say("MAIL FROM:<>")).startswith("530 5.7.0")
        await client.say("STARTTLS")
        await client.start_tls(trust)
        await client.say("EHLO mx.example.net")
        lines = ["MAIL FROM:<jürgen@example.net> BODY=8BITMIME SMTPUTF8 SIZE=50", f"RCPT TO:<{BOUNCE}>"]
        for line in (*lines, "RCPT TO:<Postmaster>"):
            assert (await client.say(line)).startswith("250")
        client.write(b"BDAT %d LAST\r\n" % len(content) + content)
        assert await client.reply() == "250 2.0.0 Ok"
    (arrived,) = box.arrived
    assert (arrived.sender, arrived.recipients) == ("jürgen@example.net", [BOUNCE, "Postmaster"])
    assert arrived.content == content
    assert arrived.tls.startswith("TLSv1.3 ")


@pytest.mark.parametrize(
    "line",
    [
        "MAIL FROM:<> RET=HDRS",
        "MAIL FROM:<> ENVID=x",
        f"RCPT TO:<{BOUNCE}> NOTIFY=NEVER",
        f"RCPT TO:<{BOUNCE}> ORCPT=rfc822;a@b.example",
    ],
)
async def test_a_parameter_that_was_not_offered_is_refused(line: str, inbound: Serve):
    async with inbound() as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        if line.startswith("RCPT"):
            await client.say("MAIL FROM:<>")
        assert (await client.say(line)).startswith("555 5.5.4")


async def test_requiretls_is_not_promised(inbound: Serve, tls, trust):
    async with inbound(tls=tls, listener={"starttls": "optional"}) as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        assert (await client.say("MAIL FROM:<> REQUIRETLS")).startswith("530 5.7.10")
        await client.say("STARTTLS")
        await client.start_tls(trust)
        await client.say("EHLO x")
        assert (await client.say("MAIL FROM:<> REQUIRETLS")).startswith("555 5.5.4")


def test_its_limits_are_smaller_than_those_of_submission():
    listener = Listener(bind=Endpoint("0.0.0.0", 25), kind="inbound")
    smtp = Smtp(max_recipients=50_000, long_lines="refuse")
    settings = msgspec.structs.replace(CONFIG, smtp=smtp, inbound=Inbound(max_size=Size(777)))
    limits = limits_of(listener, settings)
    assert (limits.max_size, limits.max_recipients, limits.long_lines) == (777, 100, "accept")
    assert limits_of(msgspec.structs.replace(listener, kind="submission"), settings) is smtp


# ---- who is at home


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        (BOUNCE, "250 2.1.5"),
        (BOUNCE.upper(), "250 2.1.5"),
        (f'"b-{token()}"@bounce.example.com', "250 2.1.5"),
        (f"u-{token('unsubscribe')}@mail.example.com", "250 2.1.5"),
        ("fbl@mail.example.com", "250 2.1.5"),
        ("dmarc@bounce.example.com", "250 2.1.5"),
        ("tlsrpt@bounce.example.com", "250 2.1.5"),
        ("postmaster", "250 2.1.5"),
        ("POSTMASTER@bounce.example.com", "250 2.1.5"),
        (SRS, "250 2.1.5"),
        (f"b-{token()}@bounce.earlier.example", "250 2.1.5"),
        (f"@relay.example:{BOUNCE}", "250 2.1.5"),
        # forged, cut, of another purpose, expired, elsewhere
        (f"b-{token(secret=b't' * 32)}@bounce.example.com", "550 5.1.1"),
        (f"b-{token()[:-1]}@bounce.example.com", "550 5.1.1"),
        (f"b-{token('unsubscribe')}@bounce.example.com", "550 5.1.1"),
        (f"u-{token()}@bounce.example.com", "550 5.1.1"),
        (f"b-{token(days=366)}@bounce.example.com", "550 5.1.1"),
        (f"b-{token(secret=b't' * 32)}@example.com", "550 5.1.1"),
        ("SRS0=AAAAAA=AA=other.example=victim@bounce.example.com", "550 5.1.1"),
        ("abuse@mail.example.com", "550 5.1.1"),
        ("ann@example.com", "550 5.1.1"),
        ("root@mail.example.com", "550 5.1.1"),
        ("postmaster@example.com", "550 5.1.1"),
        # open relay probes
        ("victim@other.example", "550 5.1.1"),
        ("victim%other.example@mail.example.com", "550 5.1.1"),
        ("other.example!victim@mail.example.com", "550 5.1.1"),
        ('"victim@other.example"@mail.example.com', "550 5.1.1"),
        ('"victim%other.example"@mail.example.com', "550 5.1.1"),
        ("@mail.example.com:victim@other.example", "550 5.1.1"),
        ("@mail.example.com,@bounce.example.com:victim@other.example", "550 5.1.1"),
        ("victim@[127.0.0.1]", "550 5.1.1"),
        ("victim@other.example@mail.example.com", "501 5.1.3"),
        ('"victim@other.example"', "501 5.1.3"),
        ("victim", "501 5.1.3"),
        (f"{BOUNCE},victim@other.example", "501 5.1.3"),
        (f"{BOUNCE}> <victim@other.example", "555 5.5.4"),
        ("", "501 5.1.3"),
    ],
)
async def test_only_what_is_ours_is_taken(recipient: str, reply: str, inbound: Serve):
    async with inbound() as intake:
        client = await ready(intake)
        assert (await client.say(f"RCPT TO:<{recipient}>")).startswith(reply)
        assert (await client.say("DATA")).startswith("354" if reply.startswith("250") else "554 5.5.1")


async def test_no_byte_of_the_local_part_of_a_return_path_can_be_another(inbound: Serve):
    command = f"RCPT TO:<{BOUNCE}>".encode()
    async with inbound(limits={"max_errors": 1_000}) as intake:
        for at in range(len("RCPT TO:<"), command.index(b"@") + 1):
            variants = [command[:at] + bytes([byte]) + command[at + 1 :] for byte in range(256)]
            client = await ready(intake)
            client.write(b"\r\n".join([*variants, b"QUIT", b""]))
            taken = [line for line in (await client.rest()).splitlines() if line.startswith("250 2.1.5")]
            assert len(taken) == sum(variant.lower() == command.lower() for variant in variants)


async def test_no_part_of_a_return_path_is_one(inbound: Serve):
    local, domain = BOUNCE.split("@")
    cut = [f"{local[:end]}@{domain}" for end in range(len(local))]
    cut += [f"{local[start:]}@{domain}" for start in range(1, len(local) + 1)]
    async with inbound(limits={"max_errors": 1_000}) as intake:
        client = await ready(intake)
        client.write("".join(f"RCPT TO:<{each}>\r\n" for each in cut).encode())
        assert {reply[:3] for reply in await client.replies(len(cut))} <= {"550", "501"}


async def test_ten_thousand_guesses_end_five_hundred_connections(box, inbound: Serve):
    guesses = [b"RCPT TO:<b-%031d@bounce.example.com>\r\n" % n for n in range(10_000)]
    async with inbound() as intake:
        for start in range(0, len(guesses), 20):
            client = await ready(intake)
            client.write(b"".join(guesses[start : start + 20]) + guesses[0])
            replies = (await client.rest()).splitlines()
            assert [reply[:9] for reply in replies] == ["550 5.1.1"] * 20 + ["421 4.7.0"]
            client.close()
        await ready(intake, BOUNCE)
    assert box.arrived == []


async def test_ten_thousand_guesses_at_once_are_not_all_read(inbound: Serve):
    async with inbound() as intake:
        client = await ready(intake)
        client.write(b"".join(b"RCPT TO:<b-%031d@bounce.example.com>\r\n" % n for n in range(10_000)))
        assert len((await client.rest()).splitlines()) == 21
        client.close()
        async with asyncio.timeout(60):
            while len(intake.listener):
                await asyncio.sleep(0)


async def test_the_recipients_beyond_a_hundred_come_in_the_next_transaction(box, inbound: Serve):
    async with inbound() as intake:
        client = await ready(intake, *[BOUNCE] * 100)
        assert (await client.say(f"RCPT TO:<{BOUNCE}>")).startswith("452 4.5.3")
        await client.say("DATA")
        assert (await client.say("x: y\r\n\r\n.")).startswith("250")
    assert box.arrived[0].recipients == [BOUNCE] * 100


async def test_other_addresses_are_ours_after_a_reload_also_on_open_connections(box, inbound: Serve):
    async with inbound() as intake:
        client = await ready(intake, "fbl@mail.example.com")
        box.addresses.reconfigure(msgspec.structs.replace(CONFIG, domains={}, inbound=Inbound(complaints=("loop",))))
        assert (await client.say("RCPT TO:<fbl@mail.example.com>")).startswith("550 5.1.1")
        assert (await client.say(f"RCPT TO:<{BOUNCE}>")).startswith("250 2.1.5")  # of mail that is under way
        assert (await client.say("RCPT TO:<loop@bounce.example.com>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<loop@mail.example.com>")).startswith("250")
        small = config.Smtp(max_size=Size(10), max_recipients=100)
        listener = Listener(bind=Endpoint("127.0.0.1", intake.port), kind="inbound")
        intake.listener.reconfigure(listener, limits=small, hostname="new.example.com", tls=None)
        await client.say("RSET")
        assert (await client.say("MAIL FROM:<> SIZE=11")).startswith("552 5.3.4")


# ---- what is no message


async def test_more_than_it_takes_is_refused_before_and_after_it_came(box, inbound: Serve):
    async with inbound(limits={"max_size": Size(1_000)}) as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        assert (await client.say("MAIL FROM:<> SIZE=1001")).startswith("552 5.3.4")
        for bdat in (False, True):
            for line in ("MAIL FROM:<>", f"RCPT TO:<{BOUNCE}>"):
                assert (await client.say(line)).startswith("250")
            if bdat:
                client.write(b"BDAT 1001 LAST\r\n" + b"x" * 1001)
            else:
                await client.say("DATA")
                client.write(b"x" * 1001 + b"\r\n.\r\n")
            assert (await client.reply()).startswith("552 5.3.4")
        client = await ready(intake, BOUNCE)
        await client.say("DATA")
        client.write(b"x" * 8_000_000)  # so much more than that: nobody waits for the end, and most of it is never read
        assert (await client.rest()).startswith("552 5.3.4")
    assert box.arrived == []


@pytest.mark.parametrize("limit", ["command_timeout", "data_timeout"])
async def test_who_is_too_slow_is_sent_away(limit: str, box, inbound: Serve):
    async with inbound(limits={limit: config.Duration(0.3)}) as intake:
        client = await ready(intake, BOUNCE)
        if limit == "data_timeout":
            await client.say("DATA")
            client.write(b"x: y\r\n")
        assert (await client.rest()).startswith("421 4.4.2")


async def test_who_drips_is_sent_away_too(box, inbound: Serve):
    async with inbound(limits={"data_timeout": config.Duration(0.3)}) as intake:
        client = await ready(intake, BOUNCE)
        await client.say("DATA")
        await client.drip(b"x: y\r\n")
    assert box.arrived == []


async def test_one_address_has_so_many_connections_and_no_more(inbound: Serve):
    async with inbound(limits={"max_connections_per_ip": 2}) as intake:
        await intake.connect()
        await intake.connect()
        third = await intake.open()
        assert (await third.rest()).startswith("421 4.7.0")


@pytest.mark.parametrize(
    ("trouble", "reply"),
    [
        (Refused(554, "5.7.1", "not from there", name="no"), "554 5.7.1 not from there"),
        (Unavailable("no database"), "451 4.3.0"),
        (RuntimeError("a bug"), "451 4.3.0 Internal error, incident "),
    ],
)
async def test_250_is_said_only_when_it_was_kept(trouble: Exception, reply: str, box, inbound: Serve):
    box.trouble = trouble
    async with inbound() as intake:
        client = await ready(intake, BOUNCE)
        await client.say("DATA")
        answer = await client.say("x: y\r\n\r\n.")
        assert answer.startswith(reply)
        assert "bug" not in answer
        box.trouble = None
        for line in ("MAIL FROM:<>", f"RCPT TO:<{BOUNCE}>", "DATA", "x: y\r\n\r\n."):
            last = await client.say(line)
    assert last == "250 2.0.0 Ok"
    assert len(box.arrived) == 1


async def test_what_was_begun_is_carried_out_though_the_peer_left(box, inbound: Serve):
    box.gate = asyncio.Event()
    async with inbound() as intake:
        client = await ready(intake, BOUNCE)
        await client.say("DATA")
        client.write(b"x: y\r\n\r\n.\r\n")
        await box.entered.wait()
        client.close()
        await client.writer.wait_closed()
        box.gate.set()
        async with asyncio.timeout(60):
            while len(intake.listener):
                await asyncio.sleep(0)
    assert len(box.arrived) == 1


@pytest.mark.parametrize("form", NOT_THE_END, ids=repr)
@pytest.mark.parametrize("bdat", [False, True], ids=["data", "bdat"])
async def test_smuggled_commands_are_never_executed(form: bytes, bdat: bool, box, inbound: Serve):
    data = stream(form).replace(b"victim@example.net", BOUNCE.encode())
    async with inbound() as intake:
        client = await ready(intake, BOUNCE, sender="a@example.net")
        if bdat:
            client.write(b"BDAT %d LAST\r\n" % len(data) + data + b"QUIT\r\n")
        else:
            await client.say("DATA")
            client.write(data + b".\r\nQUIT\r\n")
        replies = (await client.rest()).splitlines()
    assert len(replies) == 2
    assert replies[0].startswith(("250 2.0.0", "554 5.6.0"))
    assert replies[1].startswith("221")
    assert [arrived.sender for arrived in box.arrived] == ["a@example.net"] * replies[0].startswith("250")
