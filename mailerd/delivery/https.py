"""HTTPS to hosts that strangers name: by our own resolver, to no private address, without redirects and proxies.

What they send is bounded in time and bytes, whatever it is: `MAX_RECEIVED` also ends endless headers, interim answers
and chunk extensions, which the body does not show.
"""

import asyncio
import ipaddress
import ssl
from errno import EHOSTUNREACH
from functools import partial
from socket import AF_INET, AF_INET6, AF_UNSPEC, AddressFamily

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from mailerd.delivery.resolver import Failed, Found, Resolver, is_private
from mailerd.delivery.tls_client import web_context

MAX_RECEIVED = 1024 * 1024  # bytes of one connection, TLS taken off


class Outside:
    """Opens sessions to the outside. `tls`: what is believed; None: the CAs of the system."""

    def __init__(self, resolver: Resolver, *, allow_private: bool, tls: ssl.SSLContext | None = None) -> None:
        self._names = _Names(resolver, allow_private=allow_private)
        self._allow_private = allow_private
        self._tls = tls or web_context()

    async def post(self, url: str, body: bytes, *, content_type: str, timeout: float) -> int:
        """The status of the answer, whose body nobody reads. Raises OSError or aiohttp.ClientError without one."""
        async with (
            self._session(timeout) as session,
            session.post(
                self._target(url), data=body, headers={"Content-Type": content_type}, allow_redirects=False
            ) as response,
        ):
            return response.status

    async def get(self, url: str, *, content_type: str, most: int, timeout: float) -> bytes:
        """The body, as it is stored there. Raises ValueError if it is of another type or has more than `most` bytes.

        OSError or aiohttp.ClientError: there is no answer, or one that is not 200.
        """
        async with (
            self._session(timeout) as session,
            session.get(self._target(url), allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise OSError(f"the web server answered {response.status}")
            if response.content_type != content_type:
                raise ValueError(f"not {content_type}, but {response.content_type[:80]}")
            body = b""
            while len(body) <= most and (more := await response.content.read(most + 1 - len(body))):
                body += more
        if len(body) > most:
            raise ValueError(f"more than {most} bytes")
        return body

    def _target(self, url: str) -> URL:
        target = URL(url)
        if target.scheme != "https" or not target.host:
            raise OSError(f"not an https URL: {url}")
        self._check_literal(target.host)
        return target

    def _session(self, timeout: float) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=self._names,
            use_dns_cache=False,
            force_close=True,
            ssl=self._tls,
        )
        # aiohttp has no public way to say this.
        connector._factory = partial(_Bounded, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "mailerd", "Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    def _check_literal(self, host: str) -> None:
        """An address in the URL is not resolved, so it is looked at here."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return
        if not self._allow_private and is_private(str(address)):
            raise OSError(f"{host} is an address of a private network")


class _Bounded(ResponseHandler):
    """A connection that ends when too much came over it."""

    _received = 0

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= MAX_RECEIVED:
            super().data_received(data)
        elif self.transport is not None:
            self.set_exception(aiohttp.ClientPayloadError(f"more than {MAX_RECEIVED} bytes"))
            self.transport.abort()


class _Names(AbstractResolver):
    """What aiohttp connects to: exactly the addresses that were looked at, so no second lookup can change them."""

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        self._resolver = resolver
        self._allow_private = allow_private

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        lookups = {AF_INET: self._resolver.a, AF_INET6: self._resolver.aaaa}
        asked = [kind for kind in lookups if family in (kind, AF_UNSPEC)]
        answers = await asyncio.gather(*(lookups[kind](host) for kind in asked))
        found = [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for kind, answer in zip(asked, answers, strict=True)
            if isinstance(answer, Found)
            for address in answer.records
        ]
        allowed = [result for result in found if self._allow_private or not is_private(result["host"])]
        if not allowed:
            failures = [answer.text for answer in answers if isinstance(answer, Failed)]
            why = "only addresses of private networks" if found else "; ".join(failures) or "no address"
            raise OSError(EHOSTUNREACH, f"{host}: {why}")  # aiohttp shows the second alone
        return allowed

    async def close(self) -> None:
        """The resolver is not ours to close."""
