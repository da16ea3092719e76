"""Limits over all nodes: never more in force than the limit, whoever comes, dies or is slow; and nothing lies idle."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.delivery.grants import JOIN, WANTED, Grants, GrantStore
from mailerd.delivery.ledger import Hold, Ledger
from mailerd.queue.workers import LEASE

LIMIT = 7  # connections
RATE, SITE = "tenant acme", "site mx.example"


class Node:
    """A node with one worker that uses what it may. Time is handed in by the test."""

    def __init__(self, name: str, pool: Pool, directory: Path, clock: "Clock") -> None:
        self.name = name
        self._clock = clock
        self.joined = clock.now
        self.ledger = Ledger(directory / f"ledger {name}", 0, 1, clock=lambda: clock.now)
        self.grants = Grants(GrantStore(pool), self.ledger, name, monotonic=lambda: clock.now)
        self.holds = [Hold(self.ledger.meter(SITE), LIMIT)]
        self.open = 0

    @property
    def share(self) -> float:
        return self.grants.share(RATE)

    def use(self, wanted: int) -> None:
        """Open or close connections towards as many as are wanted and allowed, the way sessions come and go."""
        allowed = min(self.grants.connections(SITE, LIMIT), wanted)
        while self.open > allowed:
            self.ledger.release(self.holds)
            self.open -= 1
        while self.open < allowed and self.ledger.hold(self.holds, (), self._clock.now) is None:
            self.open += 1

    async def turn(self, nodes: list[str]) -> None:
        self.grants.seen(nodes)
        self.grants.look()
        await self.grants.exchange(nodes, joined=self.joined)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=3)
    yield pool
    await pool.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def run(clock: Clock, nodes: list[Node], seconds: float) -> None:
    """All want all they can get for so long, and exchange every second."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 1.0
        for node in nodes:
            node.use(LIMIT)
            assert node.share <= 1
            await node.turn([node.name for node in nodes])


async def test_a_node_that_is_alone_has_all(pool: Pool, tmp_path: Path, clock: Clock) -> None:
    node = Node("a", pool, tmp_path, clock)
    await node.turn(["a"])
    assert (node.share, node.grants.connections(SITE, LIMIT)) == (1.0, LIMIT)


async def test_nodes_share_equally_and_whole_connections(pool: Pool, tmp_path: Path, clock: Clock) -> None:
    nodes = [Node(name, pool, tmp_path, clock) for name in "abc"]
    await run(clock, nodes, JOIN + 15)
    assert [node.share for node in nodes] == [pytest.approx(1 / 3)] * 3
    assert sorted(node.open for node in nodes) == [2, 2, 3]


async def test_who_wants_nothing_any_more_leaves_its_part_to_the_others(
    pool: Pool, tmp_path: Path, clock: Clock
) -> None:
    a, b = (Node(name, pool, tmp_path, clock) for name in "ab")
    await run(clock, [a, b], JOIN + 15)
    b.use(0)
    for _ in range(int(WANTED + 15)):
        clock.now += 1
        a.use(LIMIT)
        assert a.share <= 1
        for node in (a, b):
            await node.turn(["a", "b"])
    assert (a.share, a.open) == (1.0, LIMIT)


async def test_a_node_whose_connections_are_all_busy_gives_up_some_to_one_that_comes(
    pool: Pool, tmp_path: Path, clock: Clock
) -> None:
    old = Node("a", pool, tmp_path, clock)
    await old.turn(["a"])
    old.use(LIMIT)
    assert old.open == LIMIT
    clock.now += 100
    new = Node("b", pool, tmp_path, clock)
    for _ in range(int(JOIN + 20)):
        clock.now += 1
        for node in (old, new):
            await node.turn(["a", "b"])
        for node in (old, new):
            node.use(LIMIT)
            assert node.share <= 1
        assert old.open + new.open <= LIMIT
    assert sorted((old.open, new.open)) == [3, 4]


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_granted_never_adds_up_to_more_than_the_limit(
    pool: Pool, tmp_path: Path, clock: Clock, seed: int
) -> None:
    """Three nodes want now this, now that, and are now and then too busy to exchange; one comes late, one dies."""
    chance = random.Random(seed)
    nodes = [Node("a", pool, tmp_path, clock), Node("b", pool, tmp_path, clock)]
    for node in nodes:
        await node.turn(["a", "b"])
    wishes = dict.fromkeys("abc", LIMIT)
    living = list(nodes)
    dead: list[Node] = []
    for step in range(240):
        clock.now += chance.uniform(0.5, 1.5)
        if step == 60:
            nodes.append(late := Node("c", pool, tmp_path, clock))
            living.append(late)
            late.grants.seen([node.name for node in living])
        if step == 130:
            dead.append(living.pop(0))  # holds what it held until its lease is over
            died = clock.now
        if dead and nodes[0] in dead and clock.now - died > LEASE:
            nodes.pop(0)
        names = [node.name for node in nodes]
        for node in chance.sample(living, len(living)):
            if chance.random() < 0.1:
                wishes[node.name] = chance.choice((0, 2, LIMIT))
            if wishes[node.name]:
                assert node.share <= 1
            node.use(wishes[node.name])
            if chance.random() < 0.8:
                await node.turn(names)
        shares = [node.ledger.meter(f"grant {RATE}").state()[0] for node in nodes]
        assert sum(shares) <= 1 + 1e-9, (step, shares)
        assert sum(node.open for node in nodes) <= LIMIT, (step, [node.open for node in nodes])
    await run(clock, living, 40)
    assert [node.share for node in living] == [pytest.approx(1 / 2)] * 2
    assert sorted(node.open for node in living) == [3, 4]
