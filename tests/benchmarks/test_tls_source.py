"""The load over STARTTLS, and the sink that takes it."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.channel import Channel, client_context, server_context
from benchmarks.load import Load
from benchmarks.signing import make_certificate
from benchmarks.sink import Sink


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink([], tmp_path, certificate=make_certificate(tmp_path))
    yield sink
    sink.close()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("size", [1, 10_240, 300_000])
def test_every_message_comes_once_and_over_tls(sink: Sink, size: int, kept: bool) -> None:
    load = Load(size=size, clients=5, kept=kept, count=23, tls=True)
    sink.begin("r1x")

    subprocess.run(load.command(sink.tls_port, "r1x"), check=True, stdout=subprocess.DEVNULL, timeout=60)

    report = sink.report()
    assert {name: report[name] for name in ("messages", "unique", "duplicates", "strays", "tls")} == {
        "messages": 23,
        "unique": 23,
        "duplicates": 0,
        "strays": 0,
        "tls": 23,
    }
    assert sink.sample.stat().st_size > size


def test_a_server_without_starttls_fails_the_load(sink: Sink) -> None:
    command = Load(count=1, clients=1, tls=True).command(sink.port, "r1x")

    sink.begin("r1x")
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)

    assert done.returncode
    assert sink.report()["messages"] == 0


def test_what_comes_in_clear_to_the_port_for_tls_is_not_counted_as_encrypted(sink: Sink) -> None:
    sink.begin("r1x")
    with socket.create_connection(("127.0.0.1", sink.tls_port)) as client:
        client.sendall(b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<1r1x@tls.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
        answers = b"".join(iter(lambda: client.recv(65_536), b""))

    assert b"STARTTLS" in answers
    report = sink.report()
    assert (report["unique"], report["tls"]) == (1, 0)


class Wire:
    """A transport that leads nowhere but to the other end."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def emptied(self, step: int) -> Iterator[bytes]:
        sent, self.sent = self.sent, b""
        return (sent[start : start + step] for start in range(0, len(sent), step))


@pytest.mark.parametrize("step", [1, 3, 1000, 1_000_000])
def test_a_channel_does_not_depend_on_how_the_bytes_arrive(tmp_path: Path, step: int) -> None:
    wires = Wire(), Wire()
    client = Channel(client_context(), wires[0], server_side=False)  # type: ignore[arg-type]
    server = Channel(server_context(*map(str, make_certificate(tmp_path))), wires[1], server_side=True)  # type: ignore[arg-type]

    while not (client.ready and server.ready):
        for sender, receiver in ((0, server), (1, client)):
            for piece in wires[sender].emptied(step):
                assert receiver.take(piece) == b""
    said = bytes(range(256)) * 200
    client.write(said)

    assert b"".join(server.take(piece) for piece in wires[0].emptied(step)) == said
