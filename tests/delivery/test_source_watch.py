"""Sources over time: who holds an address, who may send, what the workers are told."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from mailerd.config import parse
from mailerd.db import connect_pool
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.source_watch import CHANNEL, SourceStates, SourceStore, SourceWatch
from mailerd.queue.workers import WorkerStore
from tests.support.dns_server import DnsServer

START = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
REVERSE = "5.0.0.127.in-addr.arpa"
CONFIG = """
hostname: mail.test
sources:
  mta1: {{address: {address}, ehlo: mta1.example.com}}
  nowhere: {{address: 203.0.113.77}}
  system: {{}}
resolver: {{nameservers: ["{dns}"], min_ttl: 0}}
source_checks: {{ptr: {ptr}, lists: [{{zone: zen.example}}]}}
"""


class Laboratory:
    """Nodes with one database and one name server; `told` is what was notified since it was last looked at."""

    def __init__(self, pool, dns):
        self.pool = pool
        self.dns = dns
        self.store = SourceStore(pool)
        self.workers = WorkerStore(pool)
        self.now = START
        self.payloads = asyncio.Queue()
        self.resolvers = []

    def config(self, address="127.0.0.5", ptr="act"):
        return parse(CONFIG.format(address=address, dns=self.dns.address, ptr=ptr))

    def watch(self, node="here", config=None):
        """One with a resolver that has not asked anything yet."""
        config = config or self.config()
        resolver = Resolver(config.resolver)
        self.resolvers.append(resolver)
        public = lambda address: address != "127.0.0.7"  # noqa: E731
        return SourceWatch(config, self.store, resolver, node, clock=lambda: self.now, public=public)

    async def look(self, node="here", config=None):
        """As a worker does at its start: both looks, no cache of DNS."""
        watch = self.watch(node, config)
        await watch.look_at_addresses()
        await watch.look_at_identity()
        return watch

    async def failing(self, node="here", config=None):
        states = SourceStates(config or self.config(), self.store, node)
        await states.refresh()
        return dict(states.failing)

    async def told(self):
        await self.pool.execute(f"SELECT pg_notify('{CHANNEL}', 'end')")
        said = []
        while (payload := await self.payloads.get()) != "end":
            said.append(payload)
        return said

    async def rows(self, node="here"):
        return {(check.source, check.name): check for check in await self.store.checks(node)}


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        server.add(REVERSE, "PTR", "mta1.example.com.", ttl=0)
        server.add("mta1.example.com", "A", "127.0.0.5", "127.0.0.6", ttl=0)
        yield server


@pytest.fixture
async def lab(database, dns):
    async with await connect_pool(database, min=1, max=3) as pool:
        laboratory = Laboratory(pool, dns)
        for node in ("here", "there"):
            await laboratory.workers.register(node, 1)
        listener = await asyncpg.connect(database)
        await listener.add_listener(CHANNEL, lambda *facts: laboratory.payloads.put_nowait(facts[-1]))
        yield laboratory
        await listener.close()
        for resolver in laboratory.resolvers:
            await resolver.close()


async def test_a_source_sends_once_its_address_is_held_and_nothing_is_wrong_with_it(lab):
    assert set(await lab.failing()) == {"mta1", "nowhere"}

    await lab.look()

    failing = await lab.failing()
    assert set(failing) == {"nowhere"}
    assert "no address 203.0.113.77" in failing["nowhere"]
    assert await lab.store.holders() == {"127.0.0.5": "here"}
    assert set(await lab.told()) == {"sources"}


async def test_an_address_sends_from_one_node_until_no_worker_of_it_is_left(lab):
    await lab.look("here")
    await lab.look("there")
    assert "node here" in (await lab.failing("there"))["mta1"]
    assert "mta1" not in await lab.failing("here")

    for worker in await lab.workers.all():
        if worker.node == "here":
            await lab.workers.release(worker.number, None)
    assert "node here" in (await lab.failing("there"))["mta1"]
    await lab.look("there")

    assert "mta1" not in await lab.failing("there")
    assert "node there" in (await lab.failing("here"))["mta1"]


async def test_two_nodes_that_take_the_same_addresses_at_once_share_them_out(lab):
    addresses = [f"127.0.1.{n}" for n in range(1, 100)]
    rounds = [lab.store.hold(node, order) for order in (addresses, addresses[::-1]) for node in ("here", "there")]
    await asyncio.gather(*rounds)

    assert set(await lab.store.holders()) == set(addresses)


async def test_an_address_that_is_no_longer_configured_is_free(lab):
    watch = await lab.look("here")
    watch.reconfigure(lab.config(address="127.0.0.6"))
    await watch.look_at_addresses()
    await lab.look("there")

    assert await lab.store.holders() == {"127.0.0.5": "there", "127.0.0.6": "here"}
    assert "mta1" not in await lab.failing("there")


async def test_a_source_without_its_name_leaves_and_comes_back(lab):
    await lab.look()
    await lab.told()

    lab.dns.remove(REVERSE, "PTR")
    await lab.look()
    assert "no PTR record" in (await lab.failing())["mta1"]
    assert "sources" in await lab.told()

    lab.dns.add(REVERSE, "PTR", "mta1.example.com.", ttl=0)
    await lab.look()
    assert "mta1" not in await lab.failing()
    assert "sources" in await lab.told()


async def test_a_listed_source_stays_out_while_the_list_cannot_be_asked_also_over_a_restart(lab):
    lab.dns.add("5.0.0.127.zen.example", "A", "127.0.0.4", ttl=0)
    await lab.look()
    assert "is listed by zen.example" in (await lab.failing())["mta1"]

    lab.now += timedelta(hours=1)
    lab.dns.misbehave("5.0.0.127.zen.example", "servfail")
    await lab.look()

    assert "is listed by zen.example" in (await lab.failing())["mta1"]
    check = (await lab.rows())["mta1", "zen.example"]
    assert (check.since, check.checked_at) == (START, START)


async def test_a_name_server_that_is_down_takes_no_source_away(lab):
    await lab.look()
    for name in (REVERSE, "mta1.example.com", "5.0.0.127.zen.example"):
        lab.dns.misbehave(name, "servfail")
    await lab.look()

    assert "mta1" not in await lab.failing()


async def test_what_stays_as_it_was_is_neither_told_nor_written_at_every_look(lab):
    watch = await lab.look()
    await lab.told()

    lab.now += timedelta(seconds=10)
    await watch.look_at_addresses()
    await watch.look_at_identity()
    assert await lab.told() == []
    assert {check.checked_at for check in (await lab.rows()).values()} == {START}

    lab.now += timedelta(seconds=60)
    await watch.look_at_addresses()
    assert (await lab.rows())["mta1", "bound"].checked_at == lab.now
    assert await lab.told() == []


async def test_checks_that_are_off_and_sources_that_are_gone_are_forgotten(lab):
    lab.dns.remove(REVERSE, "PTR")
    watch = await lab.look()
    assert "mta1" in await lab.failing()

    watch.reconfigure(lab.config(ptr="off"))
    await watch.look_at_identity()
    assert "mta1" not in await lab.failing()

    watch.reconfigure(parse("sources: {other: {address: 127.0.0.6}}"))
    await watch.look_at_addresses()
    await watch.look_at_identity()
    assert {source for source, _ in await lab.rows()} == {"other"}


async def test_what_is_known_of_an_address_does_not_stick_to_the_next_one_of_the_source(lab):
    lab.dns.remove(REVERSE, "PTR")
    watch = await lab.look()
    lab.dns.misbehave("6.0.0.127.in-addr.arpa", "servfail")
    moved = lab.config(address="127.0.0.6")
    watch.reconfigure(moved)
    await watch.look_at_addresses()
    await watch.look_at_identity()

    assert "mta1" not in await lab.failing(config=moved)
    assert (await lab.rows())["mta1", "ptr"].state == "unknown"


async def test_a_private_address_only_has_to_be_bound(lab):
    private = lab.config(address="127.0.0.7")
    await lab.look(config=private)

    assert {name for source, name in await lab.rows() if source == "mta1"} == {"bound", "held"}
    assert "mta1" not in await lab.failing(config=private)
    assert lab.dns.asked("7.0.0.127.in-addr.arpa", "PTR") == 0


async def test_a_worker_that_has_read_nothing_yet_sends_from_no_address(lab):
    await lab.look()
    states = SourceStates(lab.config(), lab.store, "here")
    assert set(states.failing) == {"mta1", "nowhere"}

    assert await states.refresh() is True
    assert set(states.failing) == {"nowhere"}
    assert await states.refresh() is False

    states.reconfigure(lab.config(address="127.0.0.6"))
    assert set(states.failing) == {"mta1", "nowhere"}


async def test_it_runs_by_itself_and_looks_at_once_at_a_new_configuration(lab):
    watch = lab.watch()
    running = asyncio.create_task(watch.run())
    states = SourceStates(lab.config(), lab.store, "here")
    while "mta1" in states.failing:
        await lab.payloads.get()
        await states.refresh()
    lab.dns.add("5.0.0.127.other.example", "A", "127.0.0.4")

    changed = parse(
        CONFIG.format(address="127.0.0.5", dns=lab.dns.address, ptr="act").replace("zen.example", "other.example")
    )
    watch.reconfigure(changed)
    while "other.example" not in states.failing.get("mta1", ""):
        await lab.payloads.get()
        await states.refresh()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
