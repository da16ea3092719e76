"""To whom requests are posted that tenants ask for, and what the operator may allow."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mailerd import config
from mailerd.delivery.https import Poster
from mailerd.delivery.resolver import Resolver

LIST = "[localhost, 127.0.0.1, '0:0::1', app.internal]"
ALLOWED = "webhooks.allow_private"
ANSWER = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def poster() -> AsyncIterator[Poster]:
    resolver = Resolver(config.Resolver())
    poster = Poster(resolver, private_hosts=config.parse(f"webhooks: {{allow_private: {LIST}}}").webhooks.allow_private)
    yield poster
    await poster.close()
    await resolver.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/hooks",
        "http://localhost:80/",
        "http://LOCALHOST/",
        "http://[::1]:8080/",
        "http://[0:0:0::1]:8080/",
        "https://app.internal/",
        "https://app.example.com/",
        "https://192.0.80.1:8443/",
    ],
)
async def test_what_is_public_or_allowed_is_posted_to(poster: Poster, url: str) -> None:
    assert poster.check(url).host


@pytest.mark.parametrize(
    "url",
    [
        "http://app.example.com/",
        "http://127.0.0.2/",
        "https://127.0.0.2/",
        "https://[::ffff:127.0.0.1]/",
        "https://10.0.0.1/",
        "https://app.example.com:25/",
    ],
)
async def test_what_is_refused_says_what_could_allow_it(poster: Poster, url: str) -> None:
    with pytest.raises(ValueError, match=ALLOWED):
        poster.check(url)


async def test_an_address_that_is_allowed_is_posted_to_without_tls(poster: Poster) -> None:
    asked = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/hooks"
        await poster.check_host(url)
        answered = await poster.post(url, b"{}", headers={}, timeout=20)

    assert answered.status == 204
    assert asked.startswith(b"POST /hooks HTTP/1.1")
