"""Slow clients: each has its deadline, however it spends the time, and an ordinary one is served meanwhile."""

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from mailerd import config
from mailerd.intake import smtp_connection, smtp_listener
from mailerd.intake.authenticator import Authenticator
from tests.support.smtp_intake import Client, Intake, Outbox
from tests.web.conftest import Api
from tests.web.test_server import head

SHORT = config.Duration(0.8)  # seconds, instead of minutes; enough for an ordinary client on a busy machine
SLOW = 30  # clients at the same time
LIMITS = {"command_timeout": SHORT, "data_timeout": SHORT}


async def a_command(client: Client) -> None:
    await client.drip(b"N")


async def commands_that_never_end_the_message(client: Client) -> None:
    """Chunk after chunk, each in time."""
    await client.say("EHLO slow.example")
    await client.say("MAIL FROM:<a@example.com>")
    await client.say("RCPT TO:<b@example.net>")
    await client.drip(b"BDAT 1\r\nx")


async def recipients_between_chunks(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say("MAIL FROM:<a@example.com>")
    await client.say("RCPT TO:<b@example.net>")
    await client.say("BDAT 1\r\nx")
    await client.drip(b"RCPT TO:<b@example.net>\r\n")


async def a_chunk(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say("MAIL FROM:<a@example.com>")
    await client.say("RCPT TO:<b@example.net>")
    client.write(b"BDAT 1000000 LAST\r\n")
    await client.drip(b"x")


async def content(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say("MAIL FROM:<a@example.com>")
    await client.say("RCPT TO:<b@example.net>")
    await client.say("DATA")
    await client.drip(b"x")


async def a_password(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say(f"AUTH LOGIN {base64.b64encode(b'ann').decode()}")
    await client.drip(b"A")


async def a_handshake(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say("STARTTLS")
    await client.drip(b"\x16")


async def no_handshake(client: Client) -> None:
    await client.say("EHLO slow.example")
    await client.say("STARTTLS")
    await client.rest()


async def no_reading(client: Client) -> None:
    """The replies fill every buffer between us."""
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.drip(b"EHLO slow.example\r\n" * 2_000)


WAYS = (
    a_command, content, a_chunk, commands_that_never_end_the_message, recipients_between_chunks, a_password,
    a_handshake, no_handshake, no_reading,
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no setting is no less patient with slow clients than what has."""
    for module in (smtp_connection, smtp_listener):
        for name in ("HANDSHAKE", "LINGER"):
            monkeypatch.setattr(module, name, float(SHORT))


async def ordinary(intake: Intake, outbox: Outbox) -> None:
    """A client that is in a hurry sends a message."""
    while True:
        done = len(outbox.messages)
        client = await intake.connect()
        lines = ("EHLO quick.example", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "DATA", ".", "QUIT")
        replies = [await client.say(line) for line in lines]
        assert [reply[:3] for reply in replies] == ["250", "250", "250", "354", "250", "221"]
        assert len(outbox.messages) == done + 1
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_an_smtp_client_that_drips_is_sent_away_and_delays_nobody(
    way: Callable[[Client], Awaitable[None]], outbox: Outbox, lonely: Authenticator, tls: ssl.SSLContext
) -> None:
    async with Intake(outbox, lonely, tls=tls, listener={"starttls": "optional"}, limits=LIMITS) as intake:

        async def slow() -> None:
            with suppress(ConnectionError, ssl.SSLError):
                client = await intake.connect()
                await way(client)

        served = asyncio.create_task(ordinary(intake, outbox))
        async with asyncio.timeout(30):
            await asyncio.gather(*(slow() for _ in range(3 if way is no_reading else SLOW)))
            assert not served.done(), served
            served.cancel()
            while len(intake.listener) or intake.memory.used:
                await asyncio.sleep(0.01)
        assert outbox.messages


@pytest.mark.usefixtures("quick")
async def test_who_does_not_shake_hands_on_a_tls_port_is_sent_away(
    outbox: Outbox, lonely: Authenticator, tls: ssl.SSLContext
) -> None:
    async with Intake(outbox, lonely, tls=tls, listener={"kind": "submissions"}, limits=LIMITS) as intake:
        silent, slow = await intake.open(), await intake.open()
        async with asyncio.timeout(30):
            await slow.drip(b"\x16")
            assert await silent.reader.read() == b""
            while len(intake.listener):
                await asyncio.sleep(0.01)


async def test_one_who_never_stops_talking_lets_others_speak(outbox: Outbox, lonely: Authenticator) -> None:
    """The commands of one read are tens of thousands: others have their turns meanwhile, and replies do not pile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with Intake(outbox, lonely) as intake:
        talker = await intake.connect()
        await talker.say("EHLO talker.example")
        waiting = asyncio.create_task(others())
        talker.write(b"RSET\r\n" * 100_000 + b"QUIT\r\n")
        assert len((await talker.rest()).splitlines()) == 100_001
        waiting.cancel()
    assert turns > 100_000 / smtp_connection.MANY_REPLIES / 2


HEADER = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "changes", [{"total_read": 0.6, "idle_read": 0.3, "keep_alive": 0.5, "linger": 0.2}], indirect=True
)
@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"", b"\r\n"),
        (HEADER, b"a"),
        (HEADER + b"a\r\n", b"X: y\r\n"),
        (b"POST", b" "),
        (b"BODY Content-Length: 100000\r\n\r\n", b" "),
        (b"BODY Content-Length: 100000\r\n\r\n", b""),
        (b"BODY Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"BODY Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (b"BODY Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=repr,
)
async def test_an_http_client_that_drips_is_sent_away_and_delays_nobody(begin: bytes, drip: bytes, api: Api) -> None:
    async def slow() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        client = Client(reader, writer)
        client.write(begin.replace(b"BODY ", head(api.tokens)))
        with suppress(ConnectionError):
            dripping = asyncio.create_task(client.drip(drip) if drip else asyncio.sleep(60))
            try:
                answer = await client.reader.read()
                assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.0 400"))
            finally:
                dripping.cancel()
        writer.close()

    async with asyncio.timeout(30):
        slow_ones = asyncio.gather(*(slow() for _ in range(SLOW)))
        assert (await api.send()).status == 202
        assert not slow_ones.done()
        await slow_ones
