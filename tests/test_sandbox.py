"""The sandbox over real sockets: with smtplib as a client of another make, and byte by byte."""

import asyncio
import smtplib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailerd import config
from mailerd.sandbox import MAX_ERRORS, MAX_LINE, MAX_SIZE, Sandbox, list_messages, read_message

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
    monkeypatch.setattr("mailerd.sandbox.MAX_SIZE", 100_000)
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
