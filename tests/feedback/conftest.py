"""A relay whose mail comes back."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.dns_server import DnsServer
from tests.support.relay import Clock
from tests.support.returned import ReturningWorld, returning_world
from tests.support.scripted_mx import ScriptedMx


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[ReturningWorld]:
    """The exchanger is that of example.net and example.org."""
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        for domain in ("example.net", "example.org"):
            dns.add(domain, "MX", "10 mx.example.net.")
        async with returning_world(database, dns, mx, tmp_path, Clock()) as world:
            yield world
