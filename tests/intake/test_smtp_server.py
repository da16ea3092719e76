"""The SMTP dialogue over real sockets and real TLS."""

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest
import structlog

from mailerd import config
from mailerd.errors import Refused, Unavailable
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_listener import server_context
from tests.support.smtp_intake import Client, Intake, Outbox

PASSWORD = "correct horse battery"
MESSAGE = b"Subject: hi\r\n\r\nhello\r\n"
SENDING = ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.net>", "DATA")


@pytest.fixture
async def store(database: str) -> AsyncIterator[CredentialStore]:
    async with asyncpg.create_pool(database, min_size=1, max_size=2) as pool:
        yield CredentialStore(pool)


@pytest.fixture
async def authenticator(store: CredentialStore) -> Authenticator:
    await store.create("ann", password=PASSWORD, sender_domains=["example.com"])
    return Authenticator(store, failures=config.Rate(20, 600.0))


async def open_data(client: Client) -> None:
    await client.say("EHLO client.example")
    for line in SENDING:
        assert (await client.say(line))[:1] in "23"


def plain(username: str, password: str) -> str:
    return base64.b64encode(f"\0{username}\0{password}".encode()).decode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# ---- the dialogue


async def test_a_message_is_taken_with_its_envelope_and_origin(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        replies = await intake.session(
            "MAIL FROM:<Ann@Example.com> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=QQ314159",
            "RCPT TO:<bob@Example.NET> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;bob@example.net",
            "RCPT TO:<eve@example.org>",
            "DATA",
            "Subject: hi\r\n\r\n..dot\r\n.",
            "QUIT",
        )
    assert replies == [
        "250 2.1.0 Ok",
        "250 2.1.5 Ok",
        "250 2.1.5 Ok",
        "354 End data with <CR><LF>.<CR><LF>",
        "250 2.0.0 Ok: queued as msg_0000000000001",
        "221 2.0.0 Bye",
    ]
    (message,) = outbox.messages
    assert message.content == b"Subject: hi\r\n\r\n.dot\r\n"
    assert message.envelope.sender == "Ann@example.com"
    assert message.recipients == ["bob@example.net", "eve@example.org"]
    assert message.envelope.recipients[0].notify == "SUCCESS,FAILURE"
    assert message.envelope.recipients[0].orcpt == "rfc822;bob@example.net"
    assert (message.envelope.ret, message.envelope.envid) == ("HDRS", "QQ314159")
    assert message.envelope.size == len(message.content)
    assert not message.envelope.eight_bit
    origin = message.origin
    assert (origin.protocol, origin.peer, origin.helo, origin.tls) == ("smtp", "127.0.0.1", "client.example", "")
    assert origin.credential.name == "trusted"


async def test_ehlo_offers_what_is_there(outbox, lonely, tls):
    settings = {"starttls": "optional"}
    async with Intake(outbox, lonely, tls=tls, listener=settings, limits={"max_size": config.Size(1234)}) as intake:
        client = await intake.connect()
        lines = (await client.say("EHLO client.example")).splitlines()
    assert [line[4:] for line in lines] == [
        "mail.example.com",
        "PIPELINING",
        "SIZE 1234",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "DSN",
        "CHUNKING",
        "LIMITS RCPTMAX=1000",
        "STARTTLS",
        "AUTH PLAIN LOGIN",
    ]


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (["MAIL FROM:<a@example.com>"], "503 5.5.1"),
        (["EHLO"], "501 5.5.4"),
        (["HELO"], "501 5.5.4"),
        (["EHLO a b"], "501 5.5.4"),
        (["EHLO caf\xe9"], "501 5.5.4"),
        (["EHLO " + "x" * 256], "501 5.5.4"),
        (["HELO x"], "250 mail.example.com"),
        (["EHLO x", "RCPT TO:<b@example.net>"], "503 5.5.1"),
        (["EHLO x", "DATA"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "MAIL FROM:<a@example.com>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "DATA"], "554 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "DATA now"], "501 5.5.4"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "RSET", "RCPT TO:<b@example.net>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "EHLO x", "RCPT TO:<b@example.net>"], "503 5.5.1"),
        (["EHLO x", "MAIL"], "501 5.5.2"),
        (["EHLO x", "MAIL FROM:a@example.com"], "501 5.5.2"),
        (["EHLO x", "MAIL FROM:<a@example.com> SIZE=51000000"], "552 5.3.4"),
        (["EHLO x", "MAIL FROM:<a@example.com> BODY=BINARYMIME"], "501 5.5.4"),
        (["EHLO x", "MAIL FROM:<a@example.com> FOO=bar"], "555 5.5.4"),
        (["EHLO x", "MAIL FROM:<bad>"], "501 5.1.7"),
        (["EHLO x", "MAIL FROM:<\xe9@example.com>"], "553 5.6.7"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "RCPT TO:<\xe9@example.net>"], "553 5.6.7"),
        (["EHLO x", "MAIL FROM:<\xe9@example.com> SMTPUTF8", "RCPT TO:<\xe9@example.net>"], "250 2.1.5"),
        (["EHLO x", "MAIL FROM:<a@example.com>", "RCPT TO:<bad>"], "501 5.1.3"),
        (["EHLO x", "MAIL FROM:<>"], "250 2.1.0"),
        (["mail from:<a@example.com>"], "503 5.5.1"),
        (["NOOP"], "250 2.0.0"),
        (["NOOP ignored"], "250 2.0.0"),
        (["RSET"], "250 2.0.0"),
        (["VRFY ann"], "252 2.0.0"),
        (["EXPN list"], "502 5.5.1"),
        (["HELP"], "214 2.0.0"),
        (["STARTTLS"], "502 5.5.1"),
        (["XYZZY"], "500 5.5.2"),
        ([""], "500 5.5.2"),
        ([" NOOP"], "500 5.5.2"),
        (["GET / HTTP/1.1"], "421 5.5.2"),
        (["NOOP " + "x" * 600], "500 5.5.6"),
        (["MAIL FROM:<" + "x" * 3000], "500 5.5.6"),
        (["X" * 100_000], "500 5.5.6"),
        (["QUIT"], "221 2.0.0"),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else None,
)
async def test_each_command_has_its_reply(lines, last, outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        replies = [await client.say(line) for line in lines]
    assert replies[-1].splitlines()[-1].startswith(last)


async def test_a_command_in_latin_1_gets_a_reply_and_the_session_goes_on(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        client.write(b"NOOP \xe9\r\nM\xc4IL\r\nNOOP\r\n")
        assert [reply[:9] for reply in await client.replies(3)] == ["501 5.5.2", "500 5.5.2", "250 2.0.0"]


async def test_pipelined_commands_are_answered_in_one_write(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await client.say("EHLO client.example")
        client.write("".join(f"{line}\r\n" for line in SENDING).encode())
        assert await client.reader.read(1000) == (
            b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
        )
        client.write(MESSAGE + b".\r\nMAIL FROM:<ann@example.com>\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n")
        assert [reply[:3] for reply in await client.replies(4)] == ["250", "250", "250", "354"]
        client.write(MESSAGE + b".\r\nQUIT\r\n")
        assert [reply[:3] for reply in await client.replies(2)] == ["250", "221"]
        assert await client.rest() == ""
    assert [message.recipients for message in outbox.messages] == [["bob@example.net"], ["eve@example.net"]]


WHOLE = (
    b"EHLO client.example\r\nMAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
    b".\r\nMAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
    b"..first\r\n.\r\nNOOP\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.net>\r\nBDAT 9\r\n"
    b".\r\nRSET\r\nBDAT 3 LAST\r\nX\r\nQUIT\r\n"
)
WHOLE_REPLIES = [
    "250",
    "250",
    "250",
    "354",
    "250",
    "250",
    "250",
    "354",
    "250",
    "250",
    "250",
    "250",
    "250",
    "250",
    "221",
]
WHOLE_CONTENTS = [b"", b".first\r\n", b".\r\nRSET\r\nX\r\n"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_session_is_the_same_however_it_is_cut(size, outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        for start in range(0, len(WHOLE), size):
            client.write(WHOLE[start : start + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        lines = (await client.rest()).splitlines()
    assert [line[:3] for line in lines if line[3] == " "] == WHOLE_REPLIES
    assert outbox.contents == WHOLE_CONTENTS


async def test_a_client_that_closes_its_half_still_gets_all_replies(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        client.write(WHOLE.removesuffix(b"QUIT\r\n"))
        client.writer.write_eof()
        lines = (await client.rest()).splitlines()
    assert [line[:3] for line in lines if line[3] == " "] == WHOLE_REPLIES[:-1]


async def test_content_in_eight_bits_is_taken_announced_or_not(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(b"Subject: caf\xe9\r\n\r\n\xff\r\n.\r\n")
        assert (await client.reply()).startswith("250")
    assert outbox.messages[0].envelope.eight_bit


@pytest.mark.parametrize(("policy", "reply"), [("accept", "250 2.0.0"), ("refuse", "554 5.6.0")])
async def test_long_lines_are_taken_or_not(policy, reply, outbox, lonely):
    async with Intake(outbox, lonely, limits={"long_lines": policy}) as intake:
        client = await intake.connect()
        for length, expected in ((998, "250 2.0.0"), (999, reply)):
            await open_data(client)
            assert (await client.say("Subject: x\r\n\r\n" + "x" * length + "\r\n.")).startswith(expected)


# ---- BDAT


async def bdat(intake: Intake, data: bytes) -> list[str]:
    client = await intake.connect()
    await client.say("EHLO client.example")
    client.write(data + b"QUIT\r\n")
    return (await client.rest()).splitlines()


ENVELOPE = b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.net>\r\n"


@pytest.mark.parametrize(
    ("data", "replies", "contents"),
    [
        (ENVELOPE + b"BDAT 4\r\nab\r\nBDAT 0 LAST\r\n", "250 250 250 250 221", [b"ab\r\n"]),
        (ENVELOPE + b"BDAT 4 last\r\n.\r\n.", "250 250 250 221", [b".\r\n.\r\n"]),
        (ENVELOPE + b"BDAT 0 LAST\r\n", "250 250 250 221", [b""]),
        (ENVELOPE + b"BDAT 3\r\na\r\nDATA\r\n", "250 250 250 503 221", []),
        (ENVELOPE + b"BDAT 6\r\nNOOP\r\nRSET\r\nBDAT 6 LAST\r\nQUIT\r\n", "250 250 250 250 503 221", []),
        (b"BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\n", "503 503 221", []),
        (b"MAIL FROM:<a@example.com>\r\nBDAT 6 LAST\r\nQUIT\r\n", "250 554 221", []),
        (ENVELOPE + b"BDAT 4 LAST\r\na\nb\n", "250 250 554 221", []),
        (ENVELOPE + b"BDAT 200\r\n" + b"x" * 200 + b"BDAT 2 LAST\r\n\r\nNOOP\r\n", "250 250 552 552 250 221", []),
        (ENVELOPE + b"BDAT\r\nQUIT\r\n", "250 250 501", []),
        (ENVELOPE + b"BDAT 6\nQUIT\r\n", "250 250 500", []),
        (ENVELOPE + b"BDAT 6 \xff\r\nQUIT\r\n", "250 250 501", []),
        (ENVELOPE + b"BDAT 6" + b" " * 600 + b"\r\nQUIT\r\n", "250 250 500", []),
        (ENVELOPE + b"BDAT -1\r\nQUIT\r\n", "250 250 501", []),
        (ENVELOPE + b"BDAT 5 FIRST\r\nQUIT\r\n", "250 250 501", []),
    ],
)
async def test_chunks(data, replies, contents, outbox, lonely):
    async with Intake(outbox, lonely, limits={"max_size": config.Size(150)}) as intake:
        assert [line[:3] for line in await bdat(intake, data)] == replies.split()
        assert intake.memory.used == 0
    assert outbox.contents == contents


# ---- limits


async def test_a_message_over_the_limit_is_read_to_its_end_and_refused(outbox, lonely):
    async with Intake(outbox, lonely, limits={"max_size": config.Size(1000)}) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(b"x" * 998 + b"\r\n.\r\n")
        assert (await client.reply()).startswith("250")
        await open_data(client)
        client.write((b"x" * 78 + b"\r\n") * 5000 + b".\r\nNOOP\r\n")
        assert [reply[:9] for reply in await client.replies(2)] == ["552 5.3.4", "250 2.0.0"]
        await open_data(client)
        client.write((b"x" * 78 + b"\r\n") * (1_002_160 // 80))
        assert (await client.rest()).startswith("552 5.3.4"), "so much too large that its end is not waited for"
        assert intake.memory.used == 0


async def test_a_large_message_comes_through_whole(outbox, lonely):
    content = b"Subject: big\r\n\r\n" + (b"." + b"y" * 75 + b"\r\n") * 200_000
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert (await client.reply()).startswith("250")
    assert outbox.contents == [content]


async def test_the_memory_of_messages_coming_in_is_bounded_over_all_connections(outbox, lonely):
    memory = Memory(10_000)
    async with Intake(outbox, lonely, memory=memory) as intake:
        first, second, third = [await intake.connect() for _ in range(3)]
        await open_data(first)
        first.write(b"x" * 8000)
        while memory.used < 7000:
            await asyncio.sleep(0)
        await open_data(second)
        second.write(b"x" * 5000 + b"\r\n.\r\n")
        assert (await second.reply()).startswith("452 4.3.1")
        await third.say("EHLO x")
        assert (await third.say("MAIL FROM:<a@example.com> SIZE=5000")).startswith("452 4.3.1")
        first.write(b"\r\n.\r\n")
        assert (await first.reply()).startswith("250")
        assert memory.used == 0
        assert (await third.say("MAIL FROM:<a@example.com> SIZE=5000")).startswith("250")


async def test_a_client_that_leaves_in_mid_data_gives_its_memory_back(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(b"x" * 8000)
        while not intake.memory.used:
            await asyncio.sleep(0)
        client.close()
        while len(intake.listener):
            await asyncio.sleep(0)
        assert intake.memory.used == 0
    assert outbox.messages == []


async def test_too_many_recipients_are_refused_one_by_one(outbox, lonely):
    async with Intake(outbox, lonely, limits={"max_recipients": 2}) as intake:
        replies = await intake.session(
            SENDING[0], *[f"RCPT TO:<r{n}@example.net>" for n in range(4)], "DATA", "Subject: x\r\n\r\n."
        )
    assert [reply[:9] for reply in replies[1:5]] == ["250 2.1.5", "250 2.1.5", "452 4.5.3", "452 4.5.3"]
    assert outbox.messages[0].recipients == ["r0@example.net", "r1@example.net"]


async def test_100_000_recipients_in_one_breath_are_answered(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        client.write(b"MAIL FROM:<a@example.com>\r\n" + b"RCPT TO:<b@example.net>\r\n" * 100_000 + b"QUIT\r\n")
        lines = (await client.rest()).splitlines()
    assert sum(line.startswith("250 2.1.5") for line in lines) == 1000
    assert sum(line.startswith("452 4.5.3") for line in lines) == 99_000
    assert lines[-1].startswith("221")


async def test_too_many_errors_end_the_connection(outbox, lonely):
    async with Intake(outbox, lonely, limits={"max_errors": 3}) as intake:
        client = await intake.connect()
        client.write(b"FOO\r\n" * 10)
        lines = (await client.rest()).splitlines()
    assert [line[:9] for line in lines] == ["500 5.5.2"] * 3 + ["421 4.7.0"]


async def test_a_silent_client_is_sent_away(outbox, lonely):
    async with Intake(outbox, lonely, limits={"command_timeout": config.Duration(0.05)}) as intake:
        client = await intake.connect()
        assert await client.rest() == "421 4.4.2 Timeout, closing connection\r\n"


async def test_a_command_in_drips_is_not_waited_for(outbox, lonely):
    async with Intake(outbox, lonely, limits={"command_timeout": config.Duration(0.1)}) as intake:
        client = await intake.connect()
        await client.drip(b"N")
        while len(intake.listener):
            await asyncio.sleep(0)


async def test_a_message_in_drips_is_not_waited_for(outbox, lonely):
    async with Intake(outbox, lonely, limits={"data_timeout": config.Duration(0.1)}) as intake:
        client = await intake.connect()
        await open_data(client)
        await client.drip(b"x\r\n")
        while len(intake.listener):
            await asyncio.sleep(0)
        assert intake.memory.used == 0
    assert outbox.messages == []


async def test_a_slow_commit_is_no_timeout(outbox, lonely):
    outbox.gate = asyncio.Event()
    limits = {"command_timeout": config.Duration(0.4), "data_timeout": config.Duration(0.4)}
    async with Intake(outbox, lonely, limits=limits) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(b".\r\n")
        await outbox.entered.wait()
        await asyncio.sleep(0.6)
        outbox.gate.set()
        assert (await client.reply()).startswith("250")


async def test_content_that_was_handed_in_is_held_by_who_took_it_alone(outbox, lonely):
    class Taker(Outbox):
        references = 0

        async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
            self.references = sys.getrefcount(content)
            return await super().submit(envelope, content, origin)

    async with Intake(taker := Taker(), lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        assert (await client.say("Subject: x\r\n\r\nbody\r\n.")).startswith("250")
    assert taker.references == 2  # the name there, and the argument of the one who counts


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_ip"])
async def test_too_many_connections_are_turned_away_until_one_leaves(limit, outbox, lonely):
    async with Intake(outbox, lonely, limits={limit: 2}) as intake:
        first = await intake.connect()
        await intake.connect()
        assert (await (await intake.open()).rest()).startswith("421 4.7.0")
        assert (await first.say("QUIT")).startswith("221")
        while len(intake.listener) == 2:
            await asyncio.sleep(0)
        assert (await (await intake.connect()).say("NOOP")).startswith("250")


# ---- after the dot


@pytest.mark.parametrize(
    ("trouble", "reply"),
    [
        (Refused(550, "5.7.1", "not\r\n250 you", name="x"), "550 5.7.1 not 250 you"),
        (Unavailable("disk is full"), "451 4.3.0 Cannot take mail now, try again later"),
    ],
)
async def test_what_submission_says_is_the_reply(trouble, reply, outbox, lonely):
    outbox.trouble = trouble
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        assert await client.say("Subject: x\r\n\r\n.") == reply
        outbox.trouble = None
        await open_data(client)
        assert (await client.say("Subject: x\r\n\r\n.")).startswith("250")


async def test_a_crash_in_submission_is_an_incident_and_not_a_reply_text(outbox, lonely):
    outbox.trouble = ZeroDivisionError("secret detail")
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        with structlog.testing.capture_logs() as logs:
            reply = await client.say("Subject: x\r\n\r\n.")
        assert reply.startswith("451 4.3.0 Internal error, incident ")
        assert (await client.say("NOOP")).startswith("250")
    (crash,) = [entry for entry in logs if entry["event"] == "submission.crashed"]
    assert crash["incident"] == reply.split()[-1]


async def test_a_client_that_leaves_does_not_interrupt_the_commit(outbox, lonely):
    outbox.gate = asyncio.Event()
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await open_data(client)
        client.write(MESSAGE + b".\r\n")
        await outbox.entered.wait()
        client.writer.transport.abort()
        await asyncio.sleep(0.05)
        outbox.gate.set()
        while len(intake.listener):
            await asyncio.sleep(0)
    assert outbox.contents == [MESSAGE]


# ---- the end


async def test_stop_sends_idle_clients_away_and_lets_transactions_finish(outbox, lonely):
    intake = Intake(outbox, lonely)
    intake.listener.start()
    idle, busy = await intake.connect(), await intake.connect()
    await open_data(busy)
    stopping = asyncio.create_task(intake.listener.stop(5))
    assert await idle.rest() == "421 4.3.2 Shutting down\r\n"
    with pytest.raises(OSError):
        await intake.connect()
    busy.write(MESSAGE + b".\r\n")
    lines = (await busy.rest()).splitlines()
    assert [line[:9] for line in lines] == ["250 2.0.0", "421 4.3.2"]
    await stopping
    idle.close()
    busy.close()
    assert outbox.contents == [MESSAGE]


async def test_stop_does_not_wait_longer_than_it_may(outbox, lonely):
    intake = Intake(outbox, lonely)
    intake.listener.start()
    busy = await intake.connect()
    await open_data(busy)
    busy.write(b"half a mess")
    async with asyncio.timeout(60):
        await intake.listener.stop(0.1)
    assert await busy.rest() == "421 4.3.2 Shutting down\r\n"
    busy.close()
    assert outbox.messages == []


# ---- TLS


async def test_starttls_starts_anew(outbox, lonely, tls, trust):
    async with Intake(outbox, lonely, tls=tls, listener={"starttls": "required"}) as intake:
        client = await intake.connect()
        assert "STARTTLS" in await client.say("EHLO spoofed.example")
        assert (await client.say(SENDING[0])).startswith("530 5.7.0")
        assert (await client.say("STARTTLS now")).startswith("501 5.5.4")
        assert (await client.say("STARTTLS")).startswith("220 2.0.0")
        await client.start_tls(trust)
        assert (await client.say(SENDING[0])).startswith("503 5.5.1"), "EHLO is forgotten"
        assert "STARTTLS" not in await client.say("EHLO client.example")
        assert (await client.say("STARTTLS")).startswith("503 5.5.1")
        for line in SENDING:
            await client.say(line)
        assert (await client.say("Subject: x\r\n\r\n.")).startswith("250")
        assert (await client.say("QUIT")).startswith("221")
        assert await client.rest() == ""
    assert outbox.messages[0].origin.tls.startswith("TLSv1.3 TLS_")
    assert outbox.messages[0].origin.helo == "client.example"


@pytest.mark.parametrize("injected", [b"NOOP\r\n", b"MAIL FROM:<evil@example.com>\r\n", b"x"])
async def test_what_is_injected_behind_starttls_is_never_executed(injected, outbox, lonely, tls):
    async with Intake(outbox, lonely, tls=tls, listener={"starttls": "optional"}) as intake:
        client = await intake.connect()
        await client.say("EHLO client.example")
        client.write(b"STARTTLS\r\n" + injected)
        assert (await client.rest()).startswith("501 5.5.2")


async def test_a_bad_handshake_ends_the_connection_and_nothing_else(outbox, lonely, tls):
    async with Intake(outbox, lonely, tls=tls, listener={"starttls": "optional"}) as intake:
        client = await intake.connect()
        await client.say("EHLO client.example")
        assert (await client.say("STARTTLS")).startswith("220")
        client.write(b"EHLO client.example\r\n" * 10)
        assert "250" not in await client.rest()
        while len(intake.listener):
            await asyncio.sleep(0)
        assert (await (await intake.connect()).say("NOOP")).startswith("250")


async def test_requiretls_is_offered_and_taken_over_tls_alone(outbox, lonely, tls, trust):
    async with Intake(outbox, lonely, tls=tls, listener={"starttls": "optional"}) as intake:
        client = await intake.connect()
        assert "REQUIRETLS" not in await client.say("EHLO client.example")
        assert (await client.say("MAIL FROM:<ann@example.com> REQUIRETLS")).startswith("530 5.7.10 ")
        await client.say("STARTTLS")
        await client.start_tls(trust)
        assert "250-REQUIRETLS" in (await client.say("EHLO client.example")).splitlines()
        for sender in ("MAIL FROM:<ann@example.com> REQUIRETLS", "MAIL FROM:<ann@example.com>"):
            for line in (sender, "RCPT TO:<bob@example.net>", "DATA"):
                assert (await client.say(line))[0] in "23"
            assert (await client.say("Subject: hi\r\n\r\nhello\r\n.")).startswith("250 ")
    assert [message.envelope.require_tls for message in outbox.messages] == [True, None]


async def test_submissions_speaks_tls_from_the_first_byte(outbox, lonely, tls, trust):
    async with Intake(outbox, lonely, tls=tls, listener={"kind": "submissions"}) as intake:
        await intake.open()  # and says nothing
        client = await intake.connect(trust)
        await open_data(client)
        assert (await client.say("Subject: x\r\n\r\n.")).startswith("250")
        garbage = await intake.open()
        garbage.write(b"EHLO client.example\r\n")
        assert b"220" not in await garbage.reader.read()
    assert outbox.messages[0].origin.tls.startswith("TLSv1.3")


def test_the_minimum_of_tls_is_obeyed(certificate):
    for minimum, version in (("TLSv1.2", ssl.TLSVersion.TLSv1_2), ("TLSv1.3", ssl.TLSVersion.TLSv1_3)):
        context = server_context(config.Tls(certificate=certificate[0], key=certificate[1], minimum=minimum))
        assert context is not None
        assert context.minimum_version == version
    assert server_context(config.Tls()) is None


# ---- AUTH


async def test_every_form_of_auth_lets_in(outbox, authenticator, store):
    token = await store.create("app")
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        for lines in (
            [f"AUTH PLAIN {plain('ann', PASSWORD)}"],
            ["AUTH PLAIN", plain("ann", PASSWORD)],
            ["auth login", b64("ann"), b64(PASSWORD)],
            [f"AUTH LOGIN {b64('ann')}", b64(PASSWORD)],
            [f"AUTH PLAIN {plain('apikey', token)}"],
        ):
            replies = await intake.session(*lines, "AUTH PLAIN", *SENDING, "Subject: x\r\n\r\n.")
            assert all(reply.startswith("334 ") for reply in replies[: len(lines) - 1])
            assert replies[len(lines) - 1] == "235 2.7.0 Authentication succeeded"
            assert replies[len(lines)].startswith("503 5.5.1")
            assert replies[-1].startswith("250")
    assert [message.origin.credential.name for message in outbox.messages] == ["ann"] * 4 + ["app"]


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["AUTH PLAIN ????"], "501 5.5.2"),
        (["AUTH PLAIN ="], "501 5.5.2"),
        (["AUTH PLAIN " + b64("ann")], "501 5.5.2"),
        (["AUTH PLAIN " + b64("other\0ann\0" + PASSWORD)], "501 5.5.2"),
        (["AUTH PLAIN " + base64.b64encode(b"\0ann\0\xff").decode()], "501 5.5.2"),
        (["AUTH PLAIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", b64("ann"), "*"], "501 5.7.0"),
        (["AUTH LOGIN", b64("a\0b")], "501 5.5.2"),
        (["AUTH CRAM-MD5"], "504 5.5.4"),
        (["AUTH"], "504 5.5.4"),
        (["AUTH PLAIN " + "A" * 13_000], "500 5.5.6"),
        (["AUTH PLAIN", "A" * 13_000], "501 5.5.2"),
        (["AUTH PLAIN " + plain("ann", "wrong")], "535 5.7.8"),
        (["AUTH PLAIN " + plain("nobody", PASSWORD)], "535 5.7.8"),
        (["AUTH PLAIN " + plain("x", "mlr_" + "0" * 43)], "535 5.7.8"),
        (["AUTH LOGIN", b64(""), b64("")], "535 5.7.8"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_wrong_with_auth_is_said(lines, reply, outbox, authenticator):
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        replies = await intake.session(*lines, SENDING[0])
    assert replies[-2].startswith(reply)
    assert replies[-1].startswith("530 5.7.0")


async def test_auth_needs_tls_unless_nobody_else_can_listen(outbox, authenticator, tls, trust):
    settings = {"auth": "required", "starttls": "optional", "bind": config.Endpoint("0.0.0.0", 587)}
    async with Intake(outbox, authenticator, tls=tls, listener=settings) as intake:
        client = await intake.connect()
        assert "AUTH" not in await client.say("EHLO client.example")
        assert (await client.say(f"AUTH PLAIN {plain('ann', PASSWORD)}")).startswith("538 5.7.11")
        await client.say("STARTTLS")
        await client.start_tls(trust)
        assert "AUTH PLAIN LOGIN" in await client.say("EHLO client.example")
        assert (await client.say(f"AUTH PLAIN {plain('ann', PASSWORD)}")).startswith("235")


@pytest.mark.parametrize("allowed", [False, True])
async def test_other_machines_may_log_in_in_clear_only_on_the_operators_word(outbox, authenticator, allowed):
    listener = {"bind": config.Endpoint("0.0.0.0", 587), "auth_without_tls": allowed}
    async with Intake(outbox, authenticator, listener=listener) as intake:
        client = await intake.connect()
        assert ("AUTH PLAIN LOGIN" in await client.say("EHLO client.example")) is allowed
        expected = "235" if allowed else "502 5.5.1"
        assert (await client.say(f"AUTH PLAIN {plain('ann', PASSWORD)}")).startswith(expected)


async def test_a_client_that_guesses_is_sent_away_and_its_guesses_are_not_logged(outbox, authenticator):
    async with Intake(outbox, authenticator, listener={"auth": "required"}, limits={"max_auth_failures": 2}) as intake:
        with structlog.testing.capture_logs() as logs:
            client = await intake.connect()
            await client.say("EHLO client.example")
            assert (await client.say(f"AUTH PLAIN {plain('ann', 'my guess')}")).startswith("535")
            assert (await client.say(f"AUTH PLAIN {plain('mlr_secret', 'my guess')}")).startswith("421 4.7.0")
            assert await client.rest() == ""
    assert [entry["username"] for entry in logs if entry["event"] == "auth.failed"] == ["ann", "?"]
    assert "guess" not in str(logs)
    assert "mlr_" not in str(logs)


async def test_guesses_over_many_connections_are_limited(outbox, store):
    token = await store.create("app")
    authenticator = Authenticator(store, failures=config.Rate(2, 600.0))
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        for _ in range(2):
            (reply,) = await intake.session(f"AUTH PLAIN {plain('x', 'wrong wrong')}")
            assert reply.startswith("535")
        (reply,) = await intake.session(f"AUTH PLAIN {plain('x', token)}")
        assert reply.startswith("454 4.7.0")


async def test_without_a_database_auth_fails_for_now(outbox, lonely):
    async with Intake(outbox, lonely, listener={"auth": "required"}) as intake:
        (reply,) = await intake.session(f"AUTH PLAIN {plain('ann', PASSWORD)}")
    assert reply == "454 4.7.0 Temporary authentication failure"


async def test_a_credential_sends_only_as_its_domains_and_only_if_it_may_send(outbox, authenticator, store):
    reader = await store.create("reader", scopes=frozenset({"read"}))
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        replies = await intake.session(
            f"AUTH PLAIN {plain('ann', PASSWORD)}", "MAIL FROM:<a@other.example>", "MAIL FROM:<>"
        )
        assert [reply[:9] for reply in replies] == ["235 2.7.0", "550 5.7.1", "250 2.1.0"]
        replies = await intake.session(f"AUTH PLAIN {plain('x', reader)}", SENDING[0])
        assert [reply[:9] for reply in replies] == ["535 5.7.8", "530 5.7.0"]


# ---- never an open relay

RELAYING = [
    "victim@example.net",
    "victim%example.net@mail.example.com",
    "@mail.example.com:victim@example.net",
    '"victim@example.net"@mail.example.com',
    "example.net!victim@mail.example.com",
    "victim@[192.0.2.1]",
    "postmaster",
    "postmaster@mail.example.com",
]


@pytest.mark.parametrize("recipient", RELAYING)
@pytest.mark.parametrize("sender", ["", "ann@example.com", "postmaster@mail.example.com", "victim@example.net"])
@pytest.mark.parametrize(
    ("settings", "mail"),
    [
        ({"auth": "required", "trusted": ("127.0.0.0/8",)}, "530 5.7.0"),
        ({"auth": "trusted", "trusted": ()}, "530 5.7.0"),
        ({"auth": "trusted", "trusted": ("127.0.0.2/32", "10.0.0.0/8", "::1/128")}, "530 5.7.0"),
        ({"auth": "optional", "trusted": ()}, "250 2.1.0"),
        ({"kind": "inbound", "auth": "trusted", "trusted": ("127.0.0.0/8",)}, "250 2.1.0"),
    ],
    ids=["required", "trusted-nobody", "trusted-others", "optional", "inbound"],
)
async def test_no_stranger_relays(settings, mail, sender, recipient, outbox, lonely):
    async with Intake(outbox, lonely, listener=settings) as intake:
        client = await intake.connect()
        await client.say("EHLO localhost")
        lines = [f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "BDAT 6 LAST\r\nQUIT", "DATA"]
        replies = [await client.say(line) for line in lines]
    assert replies[0].startswith(mail)
    assert replies[1].startswith("550 5.7.1" if mail.startswith("250") else "503 5.5.1")
    assert replies[2][:3] in ("503", "554")
    assert replies[3].startswith("503")
    assert outbox.messages == []


async def test_inbound_takes_no_auth(outbox, lonely, tls, trust):
    settings = {"kind": "inbound", "starttls": "optional"}
    async with Intake(outbox, lonely, tls=tls, listener=settings) as intake:
        client = await intake.connect()
        await client.say("EHLO x")
        await client.say("STARTTLS")
        await client.start_tls(trust)
        assert "AUTH" not in await client.say("EHLO x")
        assert (await client.say(f"AUTH PLAIN {plain('ann', PASSWORD)}")).startswith("502 5.5.1")


async def test_an_ipv6_client_is_known_by_its_address(outbox, lonely):
    async with Intake(outbox, lonely, host="::1") as intake:
        client = await intake.connect()
        await open_data(client)
        assert (await client.say("Subject: x\r\n\r\n.")).startswith("250")
    assert outbox.messages[0].origin.peer == "::1"


# ---- with a client of others


async def swaks(intake: Intake, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "swaks", "--server", intake.host, "--port", str(intake.port), "--from", "ann@example.com",
        "--to", "bob@example.net,eve@example.org", "--helo", "client.example", *arguments,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--pipeline"],
        ["--tls"],
        ["--tls", "--auth", "PLAIN", "--auth-user", "ann", "--auth-password", PASSWORD],
        ["--tls", "--auth", "LOGIN", "--auth-user", "ann", "--auth-password", PASSWORD],
        ["--pipeline", "--auth", "PLAIN", "--auth-user", "ann", "--auth-password", PASSWORD],
    ],
    ids=" ".join,
)
async def test_swaks_delivers(arguments, outbox, authenticator, tls):
    async with Intake(outbox, authenticator, tls=tls, listener={"starttls": "optional"}) as intake:
        code, output = await swaks(intake, *arguments)
    assert code == 0, output
    (message,) = outbox.messages
    assert message.recipients == ["bob@example.net", "eve@example.org"]
    assert message.origin.credential.name == ("ann" if "--auth" in arguments else "trusted")
    assert bool(message.origin.tls) == ("--tls" in arguments)


async def test_swaks_delivers_to_submissions(outbox, authenticator, tls):
    async with Intake(outbox, authenticator, tls=tls, listener={"kind": "submissions"}) as intake:
        code, output = await swaks(intake, "--tls-on-connect")
    assert code == 0, output
    assert len(outbox.messages) == 1


async def test_swaks_is_refused_without_the_right_password(outbox, authenticator, tls):
    async with Intake(outbox, authenticator, tls=tls, listener={"starttls": "optional", "auth": "required"}) as intake:
        code, output = await swaks(intake, "--tls", "--auth", "PLAIN", "--auth-user", "ann", "--auth-password", "no")
    assert code == 28, output
    assert "535 5.7.8" in output
