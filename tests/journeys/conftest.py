"""A DNS server, a mail exchanger for every domain, and a relay between a submission and them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def mx(dns: DnsServer) -> AsyncIterator[ScriptedMx]:
    """The mail exchanger of example.net and example.org."""
    async with ScriptedMx("127.0.0.2", name="mx.example.net") as server:
        dns.add("mx.example.net", "A", "127.0.0.2")
        for domain in ("example.net", "example.org"):
            dns.add(domain, "MX", "10 mx.example.net.")
        yield server


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
async def relay(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> AsyncIterator[RunningRelay]:
    async with running_relay(relay_config(tmp_path, dns, mx.port), database, clock=now) as running:
        yield running
