"""Limits shared out among nodes: what every worker of a node obeys, and when."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailerd.config.shaping import parse_shaping
from mailerd.db import Pool, connect_pool
from mailerd.delivery.grants import JOIN, OBEYED, Grants, GrantStore
from mailerd.delivery.ledger import Ledger
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx

ANN, BOB = "node ann", "node bob"
LONG_AGO = -2 * JOIN
DOMAIN = "domain example.net"


class Time:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """The workers of one node, on one ledger."""

    def __init__(self, name: str, directory: Path, pool: Pool, time: Time, *, workers: int = 2) -> None:
        directory.mkdir()
        self.workers = [
            Grants(
                GrantStore(pool),
                Ledger(directory / "ledger", slot, workers, clock=time),
                name,
                monotonic=time,
            )
            for slot in range(workers)
        ]
        self.first = self.workers[0]

    def see(self, *nodes: str) -> None:
        for worker in self.workers:
            worker.seen(nodes)

    async def exchange(self) -> None:
        """What the first worker does every second."""
        for worker in self.workers:
            worker.look()
        await self.first.exchange([ANN, BOB], joined=LONG_AGO)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with await connect_pool(database, min=1, max=2) as made:
        yield made


def granted(table: list[dict[str, object]]) -> dict[object, object]:
    return {row["node"]: row["granted"] for row in table}


async def test_every_worker_notices_that_the_node_is_not_alone_any_more(pool: Pool, tmp_path: Path) -> None:
    node = Node(ANN, tmp_path / "ann", pool, Time())
    generations = [worker.generation for worker in node.workers]
    assert [worker.share(DOMAIN) for worker in node.workers] == [1.0, 1.0]

    node.see(ANN, BOB)
    for worker in node.workers:
        worker.look()

    assert all(worker.generation > before for worker, before in zip(node.workers, generations, strict=True))
    assert [worker.share(DOMAIN) for worker in node.workers] == [0.0, 0.0]


async def test_what_a_node_gives_up_is_others_only_when_all_its_workers_obey(pool: Pool, tmp_path: Path) -> None:
    time = Time()
    ann, bob = (Node(name, tmp_path / name, pool, time) for name in (ANN, BOB))
    for node in (ann, bob):
        node.see(ANN, BOB)
    ann.first.share(DOMAIN)
    await ann.exchange()
    assert ann.first.share(DOMAIN) == 1.0

    bob.first.share(DOMAIN)
    await bob.exchange()
    await ann.exchange()
    assert ann.first.share(DOMAIN) == 0.5
    await bob.exchange()
    assert bob.first.share(DOMAIN) == 0.0

    time.now += OBEYED
    await ann.exchange()
    await bob.exchange()
    assert (ann.first.share(DOMAIN), bob.first.share(DOMAIN)) == (0.5, 0.5)


async def test_a_node_that_was_away_does_not_use_what_others_were_given_meanwhile(pool: Pool, tmp_path: Path) -> None:
    time = Time()
    ann = Node(ANN, tmp_path / "ann", pool, time)
    ann.see(ANN, BOB)
    ann.first.share(DOMAIN)
    await ann.exchange()
    assert ann.first.share(DOMAIN) == 1.0

    await pool.execute("DELETE FROM grants")  # by the others, while it was dead
    again = Grants(GrantStore(pool), Ledger(tmp_path / "ann" / "ledger", 0, 2, clock=time), ANN, monotonic=time)
    await again.begin()

    assert again.share(DOMAIN) == 0.0


async def test_mail_that_waits_for_a_part_of_a_shared_limit_leaves_when_there_is_one(
    database: str, tmp_path: Path
) -> None:
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        config = relay_config(tmp_path, dns, mx.port)
        clock = Clock()
        async with running_relay(config, database, clock=clock) as relay:
            rules = parse_shaping({"limits.yaml": "domains: {example.net: {message_rate: 50/s}}"})
            relay.relay.reconfigure(config, relay.relay.identity, rules)
            relay.relay.upkeep.seen(["other", "test"])
            receipts = [await relay.submit(f"{name}@example.net") for name in ("ann", "bob")]
            await relay.relay.drained()
            due = await relay.pool.fetchval("SELECT max(due_at) FROM recipients")
            assert (due - clock.now).total_seconds() < 60

            relay.relay.upkeep.seen(["test"])
            clock.advance(seconds=2)
            await relay.run_once()
            assert [await relay.states(receipt) for receipt in receipts] == [["delivered"], ["delivered"]]


async def test_a_rate_leaves_room_for_what_is_held_up_on_its_way(database: str, tmp_path: Path) -> None:
    async with DnsServer() as dns:
        config = relay_config(tmp_path, dns)
        async with running_relay(config, database) as relay:
            rules = parse_shaping({"limits.yaml": "default: {per_path: {message_rate: 50/5s}}"})
            relay.relay.reconfigure(config, relay.relay.identity, rules)
            path = relay.relay.traffic.path("", "mx.example.net", "default")

            assert 5.2 < 50 * relay.relay.traffic.interval(path) < 5.5
