"""The counts that the figures stand on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.signing import make_key, verify
from benchmarks.sink import Sink
from mailerd.wire.dkim import SigningKey, load_key, sign


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink([], tmp_path)
    yield sink
    sink.close()


def message(number: int, content: bytes, run: bytes = b"r1x") -> bytes:
    return b"MAIL FROM:<a@b.example>\r\nRCPT TO:<%d%s@sink.example>\r\nDATA\r\n%s.\r\n" % (number, run, content)


def talk(sink: Sink, stream: bytes, step: int = 10_000) -> bytes:
    """All that the sink answers when it gets the stream in pieces of `step` bytes."""
    with socket.create_connection(("127.0.0.1", sink.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(stream), step):
            client.sendall(stream[start : start + step])
        return b"".join(iter(lambda: client.recv(65_536), b""))


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_the_counts_do_not_depend_on_how_the_bytes_arrive(sink: Sink, step: int) -> None:
    sink.begin("r1x")
    contents = [b"DKIM-Signature: x\r\n\r\nhello\r\n", b"", b"..\r\n.x\r\nx\r\n\r\n", b"a.\r\n" * 500]
    stream = b"EHLO c\r\n" + b"".join(message(number, content) for number, content in enumerate(contents))

    answers = talk(sink, stream + b"QUIT\r\n", step)

    assert answers.count(b"taken") == 4
    report = sink.report()
    assert {name: report[name] for name in ("messages", "unique", "duplicates", "strays", "signed")} == {
        "messages": 4,
        "unique": 4,
        "duplicates": 0,
        "strays": 0,
        "signed": 1,
    }


def test_what_comes_twice_or_from_another_run_is_not_counted_as_new(sink: Sink) -> None:
    sink.begin("r2x")
    talk(sink, message(1, b"", b"r2x") + message(1, b"", b"r2x") + message(2, b"", b"r1x") + b"QUIT\r\n")

    report = sink.report()

    assert (report["unique"], report["duplicates"], report["strays"]) == (1, 1, 1)


def test_waiting_ends_with_the_last_message_or_with_the_time(sink: Sink) -> None:
    sink.begin("r1x")
    talk(sink, message(1, b"") + b"QUIT\r\n")

    assert sink.wait(1, 10.0)["unique"] == 1
    assert sink.wait(2, 0.01)["unique"] == 1

    talk(sink, message(2, b"") + b"QUIT\r\n")
    sink.begin("r2x")
    assert sink.report()["unique"] == 0


def test_the_sample_is_checked_with_the_key_of_the_run(sink: Sink, tmp_path: Path) -> None:
    file, record = make_key(tmp_path)
    content = b"From: a@signed.example\r\nSubject: x\r\n\r\n.hello\r\n"
    key = SigningKey("signed.example", "bench", load_key(file.read_bytes()))
    signed = sign(content, [key], now=1_000_000) + content

    for sent, good in ((signed, True), (signed.replace(b"hello", b"hallo"), False)):
        sink.begin("r1x")
        talk(sink, message(1, sent.replace(b"\r\n.", b"\r\n..")) + b"QUIT\r\n")
        assert verify(sink.sample, record) is good
