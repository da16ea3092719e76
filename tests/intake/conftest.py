"""Fixtures of the SMTP intake."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
import uvloop

from mailerd import config
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from mailerd.intake.smtp_listener import server_context
from tests.support.smtp_intake import Outbox, make_certificate, trusting

Loops = dict[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Loops:
    """What speaks SMTP is tested on both loops: their transports and TLS are different code."""
    if item.path.stem == "test_smtp_server":
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificate: tuple[str, str]) -> ssl.SSLContext:
    """What we serve."""
    context = server_context(config.Tls(certificate=certificate[0], key=certificate[1]))
    assert context is not None
    return context


@pytest.fixture
def trust(certificate: tuple[str, str]) -> ssl.SSLContext:
    """What a client believes in."""
    return trusting(certificate[0])


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
async def lonely() -> AsyncIterator[Authenticator]:
    """An authenticator without a database: for all that needs no AUTH."""
    async with asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0) as pool:
        yield Authenticator(CredentialStore(pool), failures=config.Rate(20, 600.0))
