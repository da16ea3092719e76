"""The sandbox over real sockets: with smtplib as a client of another make, and byte by byte."""

import asyncio
import json
import smtplib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailerd import config
from mailerd.config import Config, Endpoint, Listener
from mailerd.config.checks import check_sandbox
from mailerd.feedback.reading import ReportKind, read_report
from mailerd.sandbox import Sandbox, list_messages, read_message
from mailerd.sandbox.conversation import MAX_ERRORS, MAX_LINE, MAX_SIZE, _subject
from mailerd.sandbox.readers import find_links
from tests.support.live import TOP, LiveDaemon, free_port
from tests.support.scripted_mx import ScriptedMx

CONTENT = b"Subject: hello\r\n\r\nbody\r\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sandbox"


@pytest.fixture
async def sandbox(directory: Path) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(config.Sandbox(keep=5), directory, slow=0.05)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


async def talk(sandbox: Sandbox, data: bytes, *, chunk: int = 1_000_000) -> list[str]:
    """Send all of `data` at once or in chunks, end the sending side, and return the reply lines."""
    reader, writer = await asyncio.open_connection(sandbox.address.host, sandbox.address.port)
    try:
        for start in range(0, len(data), chunk):
            writer.write(data[start : start + chunk])
            await writer.drain()
        writer.write_eof()
        replies = (await reader.read()).decode().splitlines()
    except ConnectionError:
        replies = []
    finally:
        writer.close()
    return replies


def transaction(*recipients: str, sender: str = "app@example.com", content: bytes = CONTENT) -> bytes:
    rcpts = "".join(f"RCPT TO:<{recipient}>\r\n" for recipient in recipients)
    stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
    return f"EHLO client\r\nMAIL FROM:<{sender}>\r\n{rcpts}DATA\r\n".encode() + stuffed + b".\r\nQUIT\r\n"


async def in_thread(sandbox: Sandbox, work: Callable[[smtplib.SMTP], object]) -> object:
    def run() -> object:
        with smtplib.SMTP(sandbox.address.host, sandbox.address.port, timeout=10) as client:
            return work(client)

    return await asyncio.to_thread(run)


async def test_what_smtplib_sends_is_kept_with_its_envelope(sandbox: Sandbox, directory: Path) -> None:
    content = "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\n.dot\r\n..two\r\n"
    await in_thread(sandbox, lambda client: client.sendmail("a@example.com", ["b@x.example", "c@x.example"], content))

    (stored,) = list_messages(directory)
    assert (stored.sender, stored.recipients) == ("a@example.com", ("b@x.example", "c@x.example"))
    assert stored.subject == "grüße"
    assert stored.size == len(content)
    assert stored.peer == "127.0.0.1"
    assert read_message(directory, stored.id) == (stored, content.encode())


async def test_ehlo_names_the_extensions(sandbox: Sandbox) -> None:
    def features(client: smtplib.SMTP) -> set[str]:
        client.ehlo()
        return set(client.esmtp_features)

    expected = {"pipelining", "size", "8bitmime", "smtputf8", "dsn", "enhancedstatuscodes"}
    assert await in_thread(sandbox, features) == expected


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("ann@x.example", "250 2.1.5"),
        ("bounce@x.example", "550 5.1.1"),
        ("Bounce+17@x.example", "550 5.1.1"),
        ("unknown@x.example", "550 5.1.1"),
        ("full@x.example", "552 5.2.2"),
        ("defer@x.example", "451 4.7.1"),
        ("always-defer@x.example", "451 4.7.1"),
        ("421@x.example", "421 4.3.2"),
        ("bouncer@x.example", "250 2.1.5"),
    ],
)
async def test_the_reply_to_rcpt_follows_the_local_part(sandbox: Sandbox, recipient: str, reply: str) -> None:
    replies = await talk(sandbox, f"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<{recipient}>\r\n".encode())
    assert replies[3].startswith(reply)


@pytest.mark.parametrize(
    ("recipients", "after_content"),
    [
        (["ann@x.example"], ["250 2.0.0 taken as", "221 2.0.0 bye"]),
        (["spam@x.example"], ["554 5.7.1", "221 2.0.0 bye"]),
        (["ann@x.example", "spam@x.example"], ["554 5.7.1", "221 2.0.0 bye"]),
        (["slow@x.example"], ["250 2.0.0 taken as", "221 2.0.0 bye"]),
        (["drop+1@x.example", "spam@x.example"], []),
        (["bounce@x.example", "ann@x.example"], ["250 2.0.0 taken as", "221 2.0.0 bye"]),
        (["bounce@x.example"], None),
    ],
)
async def test_the_reply_to_the_content_follows_the_recipients(
    sandbox: Sandbox, recipients: list[str], after_content: list[str] | None
) -> None:
    replies = await talk(sandbox, transaction(*recipients))
    if after_content is None:
        assert "503 5.5.1 no recipients" in replies
        return
    rest = replies[replies.index("354 end with a dot on a line of its own") + 1 :]
    assert len(rest) == len(after_content)
    assert all(reply.startswith(expected) for reply, expected in zip(rest, after_content, strict=True))


async def test_a_greylisted_pair_is_taken_on_its_second_attempt(sandbox: Sandbox, directory: Path) -> None:
    await talk(sandbox, transaction("defer@x.example"))
    assert list_messages(directory) == []
    await talk(sandbox, transaction("defer@x.example", sender="other@example.com"))
    assert list_messages(directory) == []
    await talk(sandbox, transaction("defer@x.example"))
    assert [stored.recipients for stored in list_messages(directory)] == [("defer@x.example",)]


async def test_421_closes_the_connection(sandbox: Sandbox) -> None:
    replies = await talk(sandbox, transaction("421@x.example", "ann@x.example"))
    assert replies[-1].startswith("421 4.3.2")


async def test_slow_is_cut_short_by_the_end_of_the_sandbox(directory: Path) -> None:
    sandbox = Sandbox(config.Sandbox(), directory, slow=3_600)
    await sandbox.start()
    reader, writer = await asyncio.open_connection(sandbox.address.host, sandbox.address.port)
    writer.write(transaction("slow@x.example"))
    await reader.readuntil(b"354 ")
    await sandbox.stop()
    writer.close()


async def test_only_the_last_messages_are_kept_also_over_a_restart(sandbox: Sandbox, directory: Path) -> None:
    for number in range(7):
        await talk(sandbox, transaction("ann@x.example", content=b"Subject: %d\r\n\r\n" % number))
    assert [stored.subject for stored in list_messages(directory)] == ["2", "3", "4", "5", "6"]
    await sandbox.stop()
    (directory / "00000000000000.eml").write_bytes(b"left by a crash")
    (directory / "00000000000001.part").write_bytes(b"{")

    again = Sandbox(config.Sandbox(keep=3), directory)
    await again.start()
    await talk(again, transaction("ann@x.example", content=b"Subject: 7\r\n\r\n"))
    await again.stop()
    assert [stored.subject for stored in list_messages(directory)] == ["5", "6", "7"]
    assert len(list(directory.iterdir())) == 6


async def test_an_unknown_or_odd_id_reads_as_nothing(sandbox: Sandbox, directory: Path) -> None:
    for message_id in ("0" * 14, "../../etc/passwd", "", "x"):
        assert read_message(directory, message_id) is None


def test_a_directory_that_is_not_there_has_no_messages(tmp_path: Path) -> None:
    assert list_messages(tmp_path / "absent") == []


def test_a_garbled_envelope_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "00000000000001.json").write_bytes(b'{"id": 1')
    (tmp_path / "00000000000002.json").write_bytes(b'{"id": "\xff"}')
    assert list_messages(tmp_path) == []


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
async def test_chunks_do_not_matter(sandbox: Sandbox, directory: Path, chunk: int) -> None:
    content = b"Subject: x\r\n\r\n.\r\n..\r\n\r\n.end\r\n"
    replies = await talk(sandbox, transaction("ann@x.example", "bounce@x.example", content=content), chunk=chunk)
    codes = [reply[:4] for reply in replies]
    assert codes == ["220 ", *["250-"] * 6, "250 ", "250 ", "250 ", "550 ", "354 ", "250 ", "221 "]
    assert [read_message(directory, stored.id) for stored in list_messages(directory)] == [
        (list_messages(directory)[0], content)
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b".\r\n", b"no newline fits\r\n", b"bare\nlf\r\n.\n\r\n", b"\x00\xff\r\n"]
)
async def test_content_is_kept_byte_for_byte(sandbox: Sandbox, directory: Path, content: bytes) -> None:
    await talk(sandbox, transaction("ann@x.example", content=content))
    (stored,) = list_messages(directory)
    assert read_message(directory, stored.id) == (stored, content)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("MAIL FROM:<a@b> SIZE=5 BODY=8BITMIME RET=HDRS ENVID=q+2B", "250 2.1.0"),
        (f"MAIL FROM:<a@b> SIZE={MAX_SIZE + 1}", "552 5.3.4"),
        ("MAIL FROM:<a@b> FOO=1", "555 5.5.4"),
        ("MAIL FROM:<a@b> size=x", "555 5.5.4"),
        ("MAIL FROM:a@b", "501 5.5.2"),
        ("MAIL", "501 5.5.2"),
        ("MAIL FROM:<ü@b>", "553 5.6.7"),
        ("MAIL FROM:<ü@b> SMTPUTF8", "250 2.1.0"),
        ("mail from: <a@b>", "250 2.1.0"),
        ("RCPT TO:<a@b>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("STARTTLS", "500 5.5.1"),
        ("VRFY x", "252 2.1.5"),
        ("NOOP", "250 2.0.0"),
        ("", "500 5.5.1"),
        ("NO\0OP", "500 5.5.2"),
        ("EHLO", "501 5.5.4"),
    ],
)
async def test_commands_get_their_reply(sandbox: Sandbox, command: str, reply: str) -> None:
    assert (await talk(sandbox, f"HELO c\r\n{command}\r\n".encode()))[2].startswith(reply)


async def test_dsn_parameters_of_rcpt_are_taken(sandbox: Sandbox) -> None:
    commands = (
        b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c@d\r\nRCPT TO:<c@d> X=1\r\n"
    )
    assert [reply[:9] for reply in (await talk(sandbox, commands))[3:]] == ["250 2.1.5", "555 5.5.4"]


async def test_an_endless_line_is_cut_off(sandbox: Sandbox) -> None:
    replies = await talk(sandbox, b"x" * MAX_LINE)
    assert replies[1:] == ["500 5.5.2 line too long"]


async def test_too_many_errors_end_the_conversation(sandbox: Sandbox) -> None:
    replies = await talk(sandbox, b"FOO\r\n" * (MAX_ERRORS + 1))
    assert replies[-1] == "421 4.7.0 too many errors"


async def test_too_large_content_is_thrown_away_and_the_session_goes_on(
    sandbox: Sandbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.sandbox.conversation.MAX_SIZE", 100_000)
    replies = await talk(
        sandbox, transaction("ann@x.example", content=b"x" * 998 + b"\r\n" + b"y" * 2_000_000 + b"\r\n")
    )
    assert replies[-2:] == ["552 5.3.4 at most 100000 bytes", "221 2.0.0 bye"]
    assert list_messages(directory) == []


async def test_a_client_that_leaves_in_mid_content_leaves_nothing(sandbox: Sandbox, directory: Path) -> None:
    await talk(sandbox, transaction("ann@x.example")[:-12])
    assert list_messages(directory) == []
    assert (await talk(sandbox, b"NOOP\r\n"))[1] == "250 2.0.0 ok"


async def test_a_disk_that_refuses_is_a_temporary_failure(sandbox: Sandbox, directory: Path) -> None:
    directory.rmdir()
    replies = await talk(sandbox, transaction("ann@x.example"))
    assert replies[-2] == "452 4.3.1 the sandbox cannot write"


GARBAGE = st.lists(
    st.binary(max_size=30)
    | st.sampled_from([b"\r\n", b"EHLO c\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b".\r\n"]),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GARBAGE)
def test_garbage_gets_replies_and_harms_nobody(tmp_path: Path, pieces: list[bytes]) -> None:
    async def scenario() -> tuple[list[str], list[str]]:
        sandbox = Sandbox(config.Sandbox(keep=5), tmp_path)
        await sandbox.start()
        try:
            return await talk(sandbox, b"".join(pieces)), await talk(sandbox, b"NOOP\r\n")
        finally:
            await sandbox.stop()

    replies, after = asyncio.run(scenario())
    assert all(reply[:3].isdecimal() for reply in replies)
    assert after[1] == "250 2.0.0 ok"


# ---- what comes back


@pytest.fixture
async def listener() -> AsyncIterator[ScriptedMx]:
    """In the place of our inbound listener."""
    async with ScriptedMx() as mx:
        yield mx


@pytest.fixture
async def answering(directory: Path, listener: ScriptedMx) -> AsyncIterator[Sandbox]:
    settings = config.Sandbox(inbound=Endpoint(listener.address, listener.port))
    sandbox = Sandbox(settings, directory, feedback="fbl@mail.example.com")
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("recipient", "to", "kind", "status"),
    [
        ("late-bounce@x.example", "b-1@back.example", ReportKind.BOUNCE, "5.1.1"),
        ("Late-Full+7@x.example", "b-1@back.example", ReportKind.BOUNCE, "5.2.2"),
        ("complain@x.example", "fbl@mail.example.com", ReportKind.COMPLAINT, ""),
        ("vacation@x.example", "b-1@back.example", ReportKind.AUTO_REPLY, ""),
    ],
)
async def test_what_was_taken_is_answered(
    answering: Sandbox, listener: ScriptedMx, recipient: str, to: str, kind: ReportKind, status: str
) -> None:
    content = b"Message-ID: <1@here.example>\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\n\r\nbody \xe9\r\n.\r\n"
    replies = await talk(answering, transaction("ann@x.example", recipient, sender="b-1@back.example", content=content))
    assert replies[-2].startswith("250 2.0.0 taken as")
    await until(lambda: listener.delivered)

    (answer,) = listener.delivered
    assert (answer.sender, answer.recipient) == ("", to)
    report = read_report(answer.content)
    assert report.kind is kind
    if kind is ReportKind.AUTO_REPLY:
        assert b"\r\nIn-Reply-To: <1@here.example>\r\n" in answer.content
    else:
        (reported,) = report.recipients
        assert (reported.address, reported.status) == (recipient, status)
        assert report.returned.message_id == "<1@here.example>"
        assert b"Return-Path: <b-1@back.example>" in report.returned.header


async def test_a_complaint_goes_to_the_return_path_where_no_feedback_loop_is_registered(
    directory: Path, listener: ScriptedMx
) -> None:
    sandbox = Sandbox(config.Sandbox(inbound=Endpoint(listener.address, listener.port)), directory)
    await sandbox.start()
    await talk(sandbox, transaction("complain@x.example", sender="b-1@back.example"))
    await until(lambda: listener.delivered)
    await sandbox.stop()
    assert [each.recipient for each in listener.delivered] == ["b-1@back.example"]


async def test_every_recipient_answers_for_itself_and_nobody_a_bounce(answering: Sandbox, listener: ScriptedMx) -> None:
    await talk(answering, transaction("late-bounce@x.example", "vacation@x.example", sender=""))
    await talk(answering, transaction("late-bounce@x.example", "spam@x.example", sender="a@back.example"))
    await talk(answering, transaction("late-bounce@x.example", "late-bounce@y.example", sender="b@back.example"))
    await until(lambda: len(listener.delivered) == 2)
    assert {each.recipient for each in listener.delivered} == {"b@back.example"}
    addresses = [read_report(each.content).recipients[0].address for each in listener.delivered]
    assert addresses == ["late-bounce@x.example", "late-bounce@y.example"]


async def test_an_answer_that_is_put_off_is_sent_again_and_one_that_is_refused_is_not(
    answering: Sandbox, listener: ScriptedMx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.sandbox.sending.PAUSES", (0.01, 0.01))
    listener.on("RCPT TO:<off@back.example>", "451 4.3.0 later", then="250 2.1.5 ok")
    listener.on("RCPT TO:<no@back.example>", "550 5.1.1 no such address here")
    for sender in ("no@back.example", "off@back.example", "yes@back.example"):
        await talk(answering, transaction("late-bounce@x.example", sender=sender))
    await until(lambda: len(listener.delivered) == 2)
    assert [each.recipient for each in listener.delivered] == ["off@back.example", "yes@back.example"]
    assert sum(command == "RCPT TO:<no@back.example>" for command in listener.commands) == 1


INBOUND = Listener(bind=Endpoint("127.0.0.1", 2524), kind="inbound")


@pytest.mark.parametrize(
    ("listeners", "sandbox", "findings"),
    [
        ((INBOUND,), config.Sandbox(bind=Endpoint("127.0.0.1", 1), inbound=INBOUND.bind), []),
        ((), config.Sandbox(), []),
        ((INBOUND,), config.Sandbox(inbound=INBOUND.bind), ["does nothing without sandbox.bind"]),
        (
            (INBOUND, Listener(bind=Endpoint("127.0.0.1", 2525))),
            config.Sandbox(bind=Endpoint("127.0.0.1", 1), inbound=Endpoint("127.0.0.1", 2525)),
            ["expected an inbound listener of ours: there is 127.0.0.1:2524"],
        ),
        (
            (),
            config.Sandbox(bind=Endpoint("127.0.0.1", 1), inbound=Endpoint("192.0.2.1", 25)),
            ["expected an inbound listener of ours: there is none"],
        ),
    ],
)
def test_answers_go_nowhere_but_to_an_inbound_listener_of_ours(
    listeners: tuple[Listener, ...], sandbox: config.Sandbox, findings: list[str]
) -> None:
    assert [text for _, text in check_sandbox(Config(listeners=listeners, sandbox=sandbox))] == findings


def development(data_dir: str) -> str:
    """config/dev.yaml with free ports, to be filled in as LiveDaemon does it."""
    text = (TOP / "config" / "dev.yaml").read_text().replace("{", "{{").replace("}", "}}")
    for port in (2524, 2525, 8025):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    return text.replace("127.0.0.1:2526", "127.0.0.1:{sandbox}").replace("./var", data_dir)


def test_the_development_configuration_shows_a_newcomer_what_comes_back(tmp_path: Path) -> None:
    with LiveDaemon(tmp_path, config=development("{data_dir}")) as daemon:
        with smtplib.SMTP(*daemon.smtp, timeout=10) as client:
            names = ("late-bounce", "late-full", "complain", "vacation", "ann")
            client.sendmail("me@here.example", [f"{name}@box.example" for name in names], "Subject: hi\r\n\r\nhi\r\n")

        def suppressed() -> dict[str, str]:
            listed = daemon.command("suppressions", "list", "--json").out.splitlines()
            return {each["address"]: each["reason"] for each in map(json.loads, listed)}

        def sent_on() -> list[tuple[str, bytes]]:
            """What reached the sender, who is in the sandbox as everybody is."""
            kept = list_messages(daemon.data_dir / "sandbox")
            mine = [read_message(daemon.data_dir / "sandbox", one.id) for one in kept if one.recipients[0][:3] == "me@"]
            return [(stored.sender, content) for stored, content in filter(None, mine)]

        expected = {"late-bounce@box.example": "bounce", "complain@box.example": "complaint"}
        deadline = time.monotonic() + 30
        while (found := suppressed()) != expected or len(sent_on()) < 3:
            assert time.monotonic() < deadline, (found, daemon.log)
            time.sleep(0.1)
        kinds = sorted(read_report(content).kind for _, content in sent_on())
        assert kinds == [ReportKind.AUTO_REPLY, ReportKind.BOUNCE, ReportKind.BOUNCE]
        assert {sender for sender, _ in sent_on()} == {""}


def newsletter(base: str) -> bytes:
    text = f"""<p><a href="https://elsewhere.example/c/x">no</a> <a href="{base}/c/first?a=1&amp;b=2">yes</a>
        <a href="{base}/c/second">too</a><img src="{base}/o/pixel"></p>"""
    head = f"List-Unsubscribe: <{base}/u/token>, <mailto:u-x@b.example>\r\nContent-Type: text/html\r\n\r\n"
    return f"Subject: news\r\nMIME-Version: 1.0\r\n{head}{text}\r\n".encode()


def test_readers_find_the_links_of_our_own_daemon_and_no_others() -> None:
    base = "http://127.0.0.1:8025/"
    links = find_links(newsletter(base[:-1]), base)
    assert links == ([base + "o/pixel"], [base + "c/first?a=1&b=2", base + "c/second"], base + "u/token")
    assert find_links(b"\r\n\xff", base) == ([], [], "")


@pytest.mark.parametrize(
    ("reader", "asked"),
    [
        ("open", ["GET /o/pixel"]),
        ("click+7", ["GET /o/pixel", "GET /c/first?a=1&b=2"]),
        ("unsubscribe", ["GET /o/pixel", "POST /u/token"]),
    ],
)
async def test_readers_open_click_and_unsubscribe(directory: Path, reader: str, asked: list[str]) -> None:
    from aiohttp import web

    seen: asyncio.Queue[str] = asyncio.Queue()

    async def note(request: web.Request) -> web.Response:
        seen.put_nowait(f"{request.method} {request.path_qs}")
        return web.Response(status=302 if "/c/" in request.path else 200, headers={"Location": "http://192.0.2.1/"})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", note)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    base = f"http://127.0.0.1:{port}"
    sandbox = Sandbox(config.Sandbox(keep=5), directory, links=base)
    await sandbox.start()
    try:
        await talk(sandbox, transaction(f"{reader}@example.net", content=newsletter(base)))
        async with asyncio.timeout(60):
            assert [await seen.get() for _ in asked] == asked
    finally:
        await sandbox.stop()
        await runner.cleanup()


@pytest.mark.parametrize("word", ["=?ut\u00e4f-8?q?x?=", "=?x?q?=", "=?utf-8?b?a?=", "=?\udcff?q?x?="])
def test_a_subject_that_cannot_be_decoded_stays_as_it_is(word: str) -> None:
    subject = _subject(b"Subject: " + word.encode("utf-8", "surrogateescape") + b"\r\n\r\n")
    assert subject.isprintable()
