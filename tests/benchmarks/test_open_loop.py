"""The source that does not wait, and the sink of the long run."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import latency, mix
from benchmarks.mixed_sink import Ledger, MixedSink, Tally, compare
from benchmarks.open_loop import REFUSED, OpenLoop, Order, Sent, read
from benchmarks.report import percentile


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[MixedSink]:
    with MixedSink(tmp_path, ["127.0.0.1", "127.0.0.2"]) as sink:
        yield sink


def test_of_every_hundred_messages_each_fate_has_its_share() -> None:
    fates = [mix.fate(number) for number in range(300)]

    for start in (0, 100, 200):
        found = fates[start : start + 100]
        assert {fate: found.count(fate) for fate in set(found)} == mix.SHARES


def test_the_address_of_a_message_says_its_fate_and_its_number() -> None:
    for number in range(200):
        assert mix.parts(mix.recipient(number)) == (mix.fate(number), number)


def test_the_source_sends_at_its_rate_and_writes_down_what_was_answered(sink: MixedSink, tmp_path: Path) -> None:
    order = Order(sink.port, 200.0, 100, str(tmp_path / "sent"), size=1_000, connections=20)

    with OpenLoop(order) as source:
        said = source.wait()

    sent = sorted(read(tmp_path / "sent"))
    assert [each.number for each in sent] == list(range(100))
    assert sent[-1].due - sent[0].due == pytest.approx(99 / 200, abs=1e-6)
    assert all(each.due <= each.replied for each in sent if each.accepted)
    refused = {each.number for each in sent if not each.accepted}
    assert refused == {number for number in range(100) if mix.fate(number) in ("deferred", "bounced")}
    assert said["refused"] == len(refused)
    assert sink.report() == {"taken": 91, "deferred": 6, "refused": 3, "notices": 0, "strangers": 0}


def test_a_stalled_server_makes_the_messages_that_were_due_meanwhile_late(tmp_path: Path) -> None:
    """A closed loop would have sent one message and called the rest fast."""

    def stall(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines:
            client.sendall(b"220 hello\r\n")
            lines.readline()
            client.sendall(b"250 hello\r\n")
            for number in range(10):
                for _ in range(3):
                    lines.readline()
                client.sendall(b"250 ok\r\n250 ok\r\n354 go\r\n")
                while lines.readline() != b".\r\n":
                    pass
                if not number:
                    time.sleep(0.5)  # what is measured
                client.sendall(b"250 taken\r\n")

    async def both() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(asyncio.to_thread(stall, listener))
            order = Order(listener.getsockname()[1], 50.0, 10, str(tmp_path / "sent"), run="r", connections=1)
            with OpenLoop(order) as source:
                await asyncio.to_thread(source.wait)
            await serving

    asyncio.run(both())
    late = [each.replied - each.due for each in sorted(read(tmp_path / "sent"))]

    assert late[0] >= 0.5
    assert min(late[:9]) > 0.3  # all were due while it stalled


def test_what_was_promised_is_held_against_what_came() -> None:
    numbers = {fate: next(n for n in range(100) if mix.fate(n) == fate) for fate in mix.FATES}
    accepted = bytearray(100)
    for number in numbers.values():
        accepted[number] = 1
    tally = Tally()
    for name in ("taken", "slow"):
        tally.took([mix.recipient(numbers[name])])
    tally.offered(mix.recipient(numbers["bounced"]))
    tally.took([mix.sender(numbers["bounced"])])

    deferred = mix.recipient(numbers["deferred"])
    assert tally.offered(deferred).startswith(b"451")
    before = compare(bytes(accepted), *map(bytes, tally.counts))
    assert tally.offered(deferred).startswith(b"250")
    tally.took([deferred])
    after = compare(bytes(accepted), *map(bytes, tally.counts))
    tally.took([deferred])
    again = compare(bytes(accepted), *map(bytes, tally.counts))

    assert before == Ledger(4, lost=1, twice=0, notices_lost=0, notices_twice=0)
    assert after.exact
    assert again.twice == 1


def test_waits_count_from_when_a_message_was_due_and_leave_nothing_out() -> None:
    sent = [Sent(0, 10.0, 10.5, 10.6), Sent(1, 11.0, 11.0, REFUSED), Sent(2, 12.0, 12.0, 12.1)]

    found = latency.waits(sent, {0: [10.7, 10.8], 5: [1.0]}, 4)

    assert found.accept == pytest.approx([100, 600])
    assert found.dot == pytest.approx([100, 100])
    assert found.first == pytest.approx([200])
    assert (found.refused, found.missing, found.duplicates) == (2, 1, 1)


def test_a_percentile_is_one_of_the_values() -> None:
    assert [percentile([1, 2, 3, 4], share) for share in (0.0, 0.5, 0.51, 0.99, 1.0)] == [1, 2, 3, 4, 4]
