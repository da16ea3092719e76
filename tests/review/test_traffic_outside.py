"""What strangers publish must not hold up, or lay open, the mail for others (DNS, MTA-STS, web servers)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from mailerd import config
from mailerd.config import Config, Delivery, Duration
from mailerd.delivery.https import MAX_RECEIVED, Outside
from mailerd.delivery.mta_sts import StsPolicies, StsStore
from mailerd.delivery.resolver import MAX_QUERIES, Resolver
from mailerd.delivery.routing import NoRoute, Route, Router
from mailerd.delivery.tls_client import web_context
from tests.support.authority import Issued, issue, root
from tests.support.dns_server import DnsServer
from tests.support.policy_host import PolicyHost

ROOT = root()
POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.bank.example\r\nmax_age: 86400\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n1;"


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@asynccontextmanager
async def routing(dns: DnsServer, *, timeout: float = 0.5, sts: StsStore | None = None) -> AsyncIterator[Router]:
    settings = config.Resolver(nameservers=(dns.address,), timeout=Duration(timeout))
    delivery = Delivery(allow_private=True)
    resolver = Resolver(settings)
    policies = None if sts is None else StsPolicies(sts, resolver)
    router = Router(Config(hostname="h", delivery=delivery, resolver=settings, listeners=()), resolver, sts=policies)
    yield router
    await router.close()
    if policies is not None:
        await policies.close()
    await resolver.close()


async def to(router: Router, domain: str) -> Route | NoRoute:
    return await router.route(domain, sender="", stream="", pool="")


def silent_hosts(dns: DnsServer, domain: str, number: int) -> None:
    """A domain with that many hosts, whose name servers never answer."""
    dns.add(domain, "MX", *[f"10 h{n}.{domain}." for n in range(number)])
    for n in range(number):
        dns.misbehave(f"h{n}.{domain}", "drop")


async def test_domains_whose_hosts_have_silent_name_servers_do_not_hold_up_the_lookups_of_others(
    dns: DnsServer,
) -> None:
    for n in range(100):
        silent_hosts(dns, f"evil{n}.example", 50)
    dns.add("good.example", "MX", "10 mx.good.example.")
    dns.add("mx.good.example", "A", "127.0.0.2")
    async with routing(dns, timeout=3.0) as router:
        for n in range(100):
            await router._resolver.mx(f"evil{n}.example")
        evil = [asyncio.create_task(to(router, f"evil{n}.example")) for n in range(100)]
        while len(dns.queries) < 100 + MAX_QUERIES:  # no more may be under way, and more waits
            await asyncio.sleep(0.01)
        begun = time.monotonic()
        assert isinstance(await to(router, "good.example"), Route)
        assert time.monotonic() - begun < 15.0  # two lookups that each wait for one to time out, not for all
        found = await asyncio.gather(*evil)
    assert {route.verdict.kind for route in found if isinstance(route, NoRoute)} == {"dns"}


async def test_a_domain_with_many_silent_hosts_costs_few_lookups_and_waits(dns: DnsServer) -> None:
    silent_hosts(dns, "evil.example", 50)
    async with routing(dns, timeout=0.2) as router:
        found = await to(router, "evil.example")
    assert isinstance(found, NoRoute)
    assert (found.verdict.outcome, found.verdict.kind) == ("deferred", "dns")
    assert len({name for name, _ in dns.queries if name.startswith("h")}) <= 12


async def test_a_host_that_answers_is_used_beside_hosts_whose_name_servers_are_silent(dns: DnsServer) -> None:
    silent_hosts(dns, "mixed.example", 5)
    dns.add("mixed.example", "MX", *[f"{n} h{n}.mixed.example." for n in range(5)], "60 good.mixed.example.")
    dns.add("good.mixed.example", "A", "127.0.0.2")
    async with routing(dns, timeout=0.3) as router:
        found = await to(router, "mixed.example")
    assert isinstance(found, Route)
    assert [host.address for host in found.hosts] == ["127.0.0.2"]


@asynccontextmanager
async def silent_server(address: str, port: int) -> AsyncIterator[None]:
    """Takes connections and says nothing."""

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(keep, address, port)
    yield
    server.close()


async def test_slow_policy_hosts_do_not_turn_mta_sts_off_for_others(dns: DnsServer, tmp_path: Path) -> None:
    evil = [f"evil{n}.example" for n in range(100)]
    async with (
        PolicyHost(issue(ROOT, "mta-sts.bank.example").context()) as host,
        silent_server("127.0.0.2", host.port),
    ):
        for domain in ("bank.example", *evil):
            dns.add(f"_mta-sts.{domain}", "TXT", '"v=STSv1; id=1;"')
            dns.add(f"mta-sts.{domain}", "A", "127.0.0.2" if domain in evil else "127.0.0.1")
        host.text = POLICY
        resolver = Resolver(config.Resolver(nameservers=(dns.address,)))
        policies = StsPolicies(
            None, resolver, allow_private=True, port=host.port, trust=ROOT.save(tmp_path), patience=2.0
        )
        slow = [asyncio.create_task(policies.policy(domain)) for domain in evil]
        await asyncio.sleep(0)
        known = await policies.policy("bank.example")
        assert known.policy is not None
        assert known.policy.mode == "enforce"
        await asyncio.gather(*slow)
        await policies.close()
        await resolver.close()


async def test_mail_waits_while_the_database_cannot_tell_of_a_policy(dns: DnsServer, database: str) -> None:
    dns.add("_mta-sts.bank.example", "TXT", ttl=86_400)  # an attacker took the announcement away
    dns.add("bank.example", "MX", "10 mx.bank.example.")
    dns.add("mx.bank.example", "A", "127.0.0.2")
    pool = await asyncpg.create_pool(database, min_size=1, max_size=1)
    await pool.close()
    async with routing(dns, sts=StsStore(pool)) as router:
        found = await to(router, "bank.example")
        assert isinstance(found, NoRoute)
        assert (found.verdict.outcome, found.verdict.enhanced) == ("deferred", "4.3.0")
        ignoring = await router.route("bank.example", sender="", stream="", pool="", ignore_policy=True)
        assert isinstance(ignoring, Route)


@asynccontextmanager
async def web_server(certificate: Issued, head: bytes, more: bytes) -> AsyncIterator[int]:
    """Sends the head, then more, three times as much as is taken, and waits for the other side to go: its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(head)
            for _ in range(3 * MAX_RECEIVED // (1_000 * len(more))):
                writer.write(1_000 * more)
                await writer.drain()
            while await reader.read(4096):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate.context())
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize(("head", "more"), [(INTERIM, INTERIM), (CHUNKED, b"extension;")])
async def test_an_answer_without_end_is_cut_off(dns: DnsServer, tmp_path: Path, head: bytes, more: bytes) -> None:
    dns.add("web.example", "A", "127.0.0.1")
    resolver = Resolver(config.Resolver(nameservers=(dns.address,)))
    async with web_server(issue(ROOT, "web.example"), head, more) as port:
        web = Outside(resolver, allow_private=True, tls=web_context(ROOT.save(tmp_path)))
        with pytest.raises(aiohttp.ClientError):  # before the timeout, which is another error
            await web.get(f"https://web.example:{port}/", content_type="text/plain", most=1_000, timeout=15)
    await resolver.close()
