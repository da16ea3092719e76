"""SMTP smuggling: nothing but CRLF.CRLF ends a message, whatever the bytes and however they are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.errors import Refused
from mailerd.intake.smtp_content import Incoming, Memory, finished, read_chunk, read_data
from tests.support.smtp_intake import Intake

SMUGGLED = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n"

# What some server somewhere has taken for the end of DATA.
NOT_THE_END = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r.\n",
    b"\n.\r",
    b"\r\n.\r",
    b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n",
    b"\r\n.\0\r\n",
    b"\r\n\0.\r\n",
    b"\0\r\n.\0\r\n",
    b"\r\0\n.\r\n",
    b"\r\n.\r\0\n",
    b"\r\n\n.\n",
    b"\n\n.\r\n",
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n..\r\n",
    b"\r\n.\x0b\r\n",
    b"\r\n.\x0c\r\n",
    b"\r\n.\xc2\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
]


def stream(form: bytes) -> bytes:
    return b"Subject: good\r\n\r\nhello" + form + SMUGGLED


async def receive(data: bytes, cuts: list[int]) -> tuple[bytes | Refused, bytes | None]:
    """Receive a DATA that arrives in pieces; what became of it, and what was left for the command loop."""
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    pieces = [piece for piece in pieces if piece]

    async def read() -> bytes:
        return pieces.pop(0) if pieces else b""

    memory = Memory(1_000_000)
    incoming = Incoming(memory, 1_000_000)
    rest = await read_data(b"", read, incoming)
    try:
        outcome: bytes | Refused = finished(incoming, stuffed=True, long_lines=True)
    except Refused as refused:
        outcome = refused
    incoming.close()
    assert memory.used == 0
    return outcome, None if rest is None else rest + b"".join(pieces)


@pytest.mark.parametrize("form", NOT_THE_END, ids=repr)
async def test_no_other_form_ends_a_message_wherever_the_stream_is_cut(form):
    data = stream(form)
    outcome, rest = await receive(data + b".\r\nQUIT\r\n", [])
    assert rest == b"QUIT\r\n", "everything up to the real end is content"
    if isinstance(outcome, Refused):
        assert (outcome.code, outcome.enhanced) == (554, "5.6.0")
    else:
        assert outcome == data.replace(b"\r\n.", b"\r\n")
    for cut in range(len(data) + 10):
        again, left = await receive(data + b".\r\nQUIT\r\n", [cut])
        assert left == b"QUIT\r\n"
        assert str(again) == str(outcome)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
@pytest.mark.parametrize("form", NOT_THE_END, ids=repr)
async def test_no_other_form_ends_a_message_in_pieces_of_one_size(form, size):
    data = stream(form) + b".\r\nQUIT\r\n"
    outcome, rest = await receive(data, list(range(size, len(data), size)))
    assert rest == b"QUIT\r\n"
    assert isinstance(outcome, Refused) or b"evil" in outcome


@settings(max_examples=300, deadline=None)
@given(data=st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"a", b"\r\n"])).map(b"".join), cuts=st.data())
async def test_any_bytes_in_any_pieces_end_where_the_first_crlf_dot_crlf_is(data, cuts):
    data += b"\r\n.\r\nNOOP\r\n"
    places = cuts.draw(st.lists(st.integers(0, len(data)), max_size=8).map(sorted))
    end = (b"\r\n" + data).find(b"\r\n.\r\n")
    outcome, rest = await receive(data, places)
    assert rest == data[end + 3 :]
    if isinstance(outcome, bytes):
        lines = data[:end].split(b"\r\n")
        assert outcome == b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)
        assert not set(b"\0\r\n") & set(outcome.replace(b"\r\n", b""))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=40), behind=st.binary(max_size=10), cuts=st.data())
async def test_a_bdat_takes_exactly_its_bytes(content, behind, cuts):
    data = content + behind
    places = cuts.draw(st.lists(st.integers(0, len(data)), max_size=5).map(sorted))
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    pieces = [piece for piece in pieces if piece]

    async def read() -> bytes:
        return pieces.pop(0) if pieces else b""

    incoming = Incoming(Memory(1000), 1000)
    rest = await read_chunk(b"", len(content), read, incoming)
    assert rest is not None
    assert rest + b"".join(pieces) == behind
    assert incoming.take() == content


@pytest.mark.parametrize("form", NOT_THE_END, ids=repr)
async def test_smuggled_commands_are_never_executed(form, outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await client.say("EHLO evil.example")
        client.write(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
        assert [reply[:3] for reply in await client.replies(3)] == ["250", "250", "354"]
        client.write(stream(form) + b".\r\nQUIT\r\n")
        replies = (await client.rest()).splitlines()
        assert len(replies) == 2, "one for the message, one for QUIT"
        assert replies[0].startswith(("250 2.0.0", "554 5.6.0"))
        assert replies[1].startswith("221")
    assert all(message.recipients == ["b@example.net"] for message in outbox.messages)
    assert len(outbox.messages) == replies[0].startswith("250")


@pytest.mark.parametrize("form", NOT_THE_END, ids=repr)
async def test_smuggled_commands_are_never_executed_in_a_bdat(form, outbox, lonely):
    data = stream(form)
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await client.say("EHLO evil.example")
        client.write(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nBDAT %d LAST\r\n" % len(data))
        client.write(data + b"QUIT\r\n")
        replies = (await client.rest()).splitlines()
    assert [reply[:3] for reply in replies[:2]] == ["250", "250"]
    assert len(replies) == 4
    assert all(message.recipients == ["b@example.net"] for message in outbox.messages)
    for content in outbox.contents:
        assert content == data


ENDS = (b"\r\n", b"\n", b"\r", b"\0", b"\r\0\n", b"\n\r")
WHY = {
    b"\0": "a NUL byte",
    b"\n": "a bare LF",
    b"\r": "a bare CR",
}  # each form of end but CRLF is refused for one of these


def every_form() -> list[bytes]:
    """An end of line, a dot, an end of line, in every mixture but the one that ends a message."""
    return [before + b"." + after for before in ENDS for after in ENDS if before + after != b"\r\n\r\n"]


@pytest.mark.parametrize("how", ["DATA", "BDAT", "BDAT in two, cut at the dot"])
async def test_every_mixture_of_ends_is_refused_and_the_next_message_is_the_next(how, outbox, lonely):
    """The client goes on in one breath: its next message is taken, what the first one holds is not."""
    begin = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n"
    following = begin + b"DATA\r\nSubject: next\r\n\r\nnext\r\n.\r\n"
    for form in every_form():
        outbox.messages.clear()
        data = stream(form)
        cut = data.index(form) + form.index(b".")
        sent = {
            "DATA": b"DATA\r\n" + data + b".\r\n",
            "BDAT": b"BDAT %d LAST\r\n" % len(data) + data,
            "BDAT in two, cut at the dot": b"BDAT %d\r\n" % cut
            + data[:cut]
            + b"BDAT %d LAST\r\n" % (len(data) - cut)
            + data[cut:],
        }[how]
        async with Intake(outbox, lonely) as intake:
            client = await intake.connect()
            await client.say("EHLO evil.example")
            client.write(begin + sent + following + b"QUIT\r\n")
            replies = (await client.rest()).splitlines()
        (refusal,) = [reply for reply in replies if reply.startswith("554")]
        assert refusal.startswith("554 5.6.0 message refused: "), form
        assert any(why in refusal for byte, why in WHY.items() if byte in form), refusal
        assert refusal.endswith("lines must end in CRLF")
        assert outbox.contents == [b"Subject: next\r\n\r\nnext\r\n"], form
        assert replies[-1].startswith("221")


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\n",
        b"NOOP\rNOOP\r\n",
        b"NOOP\0\r\n",
        b"NOOP\r\r\n",
        b"MAIL FROM:<a@example.com>\nRCPT TO:<b@c.example>\r\n",
    ],
    ids=repr,
)
async def test_a_command_line_with_other_line_ends_is_not_executed(line, outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        await client.say("EHLO evil.example")
        client.write(line + b"QUIT\r\n")
        first, *_, last = (await client.rest()).splitlines()
        assert first.startswith("500 5.5.2")
        assert last.startswith("221")
