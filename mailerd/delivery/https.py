"""HTTPS to hosts that strangers name: by our own resolver, to no private address, without redirects and proxies.

What they send is bounded in time and bytes, whatever it is: `MAX_RECEIVED` also ends endless headers, interim answers
and chunk extensions, which the body does not show.

`Outside` opens a connection for each request; `Poster` keeps them, for those who post to the same hosts again and
again. A connection that is kept leads to the address that was looked at when it was opened.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import EHOSTUNREACH
from functools import partial
from socket import AF_INET, AF_INET6, AF_UNSPEC, AddressFamily
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from mailerd.delivery.resolver import Failed, Found, Resolver, is_private
from mailerd.delivery.tls_client import web_context

MAX_RECEIVED = 1024 * 1024  # bytes of one answer, TLS taken off
MAX_POSTED = 64 * 1024  # the same, of one answer to a `Poster`, who reads only its beginning
MAX_EXCERPT = 1024  # bytes
EXCERPT_WAIT = 2.0  # seconds for the beginning of a body, once the status is known
HALT = 0.2  # seconds from too many bytes to the end of the connection
KEPT = 20.0  # seconds that a connection of a `Poster` may be idle
MAX_URL = 2_000  # characters
LOCALHOST = {AF_INET: "127.0.0.1", AF_INET6: "::1"}  # RFC 6761 section 6.3
LOWEST_PORT = 1024  # but for 443: no mail server, no SSH
UNLESS = ", unless the operator names its host in webhooks.allow_private"


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

    async def get(self, url: str, *, content_type: str | None, most: int, timeout: float) -> bytes:
        """The body, as it is stored there. Raises ValueError if it has more than `most` bytes, or is of another type.

        OSError or aiohttp.ClientError: there is no answer, or one that is not 200.
        """
        async with (
            self._session(timeout) as session,
            session.get(self._target(url), allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise OSError(f"the web server answered {response.status}")
            if content_type is not None and response.content_type != content_type:
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
        if problem := _bad_literal(host, allow_private=self._allow_private):
            raise OSError(problem)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer. `retry_after` as it stands there, `excerpt` the beginning of the body."""

    status: int
    retry_after: str
    excerpt: bytes


class Poster:
    """Posts to URLs that tenants give, over connections that are kept.

    `private_hosts` (`webhooks.allow_private`) are the names that may have private addresses, and such addresses; they
    may be posted to without TLS: `host` at 80, 443 and from 1024 on, `host:port` at that port. What they answer is not
    shown. `tls`: what is believed; None: the CAs of the system.
    """

    def __init__(
        self, resolver: Resolver, *, private_hosts: Collection[str] = (), tls: ssl.SSLContext | None = None
    ) -> None:
        self._private = _Private(private_hosts)
        self._names = _Names(resolver, allow_private=False, private=self._private)
        self._tls = tls or web_context()
        self._opened: aiohttp.ClientSession | None = None

    def check(self, url: str) -> URL:
        """The URL, taken apart; raises ValueError, with a sentence, for one that is never posted to."""
        try:
            target = URL(url)
            host, port = (target.host or "").removesuffix("."), target.port
            if (target.host or "").endswith("."):  # the same host, in one spelling
                target = target.with_host(host)
        except ValueError:
            raise ValueError("this is not a URL") from None
        if not url.isprintable() or " " in url or len(url) > MAX_URL:
            raise ValueError(f"a URL has no spaces and control characters, and at most {MAX_URL} characters")
        if target.scheme not in ("https", "http") or not all(host.split(".")) or port is None:
            raise ValueError("expected a URL such as https://app.example.com/hooks")
        if target.user is not None or target.password is not None:
            raise ValueError("a URL with a user or password is not taken: requests are signed instead")
        if target.raw_fragment:
            raise ValueError("a URL to post to has no fragment (#)")
        if self._private.allows(host, port):
            return target
        if target.scheme != "https":
            raise ValueError(f"the URL has to begin with https://{UNLESS}")
        if problem := _bad_literal(host, allow_private=False):
            raise ValueError(problem + UNLESS)
        if port != 443 and port < LOWEST_PORT:
            raise ValueError(f"port {port} is not one for this: 443, or {LOWEST_PORT} and above{UNLESS}")
        return target

    async def check_host(self, url: str) -> None:
        """Look the host up. Raises ValueError as `check()` does, and when it has private addresses only, or none.

        A name server that does not answer is no reason to refuse.
        """
        target = self.check(url)
        host = target.host or ""
        with suppress(ValueError):
            ipaddress.ip_address(host)
            return
        await self._names.check(host, target.port or 0)

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout: float) -> Answered:
        """The answer, within `timeout` seconds. Raises ValueError for a URL that is not posted to, and OSError,
        aiohttp.ClientError or TimeoutError without an answer.

        A connection that the host closed while it was idle is opened again, so it may get the same request twice.
        """
        target = self.check(url)
        async with asyncio.timeout(timeout):
            try:
                return await self._post(target, body, headers)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                return await self._post(target, body, headers)

    async def _post(self, target: URL, body: bytes, headers: Mapping[str, str]) -> Answered:
        async with self._session().post(target, data=body, headers=headers, allow_redirects=False) as response:
            excerpt = await _beginning(response)
            if self._private.allows(target.host or "", target.port or 0):
                excerpt = b""  # what inside hosts say is not for tenants
            return Answered(response.status, response.headers.get("Retry-After", ""), excerpt)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            connector = aiohttp.TCPConnector(
                resolver=self._names, use_dns_cache=False, ssl=self._tls, limit=0, keepalive_timeout=KEPT
            )
            # aiohttp has no public way to say this.
            connector._factory = partial(_Halting, loop=asyncio.get_running_loop())  # type: ignore[assignment]
            self._opened = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "mailerd", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first `MAX_EXCERPT` bytes of the body, as far as they come soon; the connection ends if there are more."""
    body = b""
    try:
        async with asyncio.timeout(EXCERPT_WAIT):
            while len(body) <= MAX_EXCERPT and (more := await response.content.read(MAX_EXCERPT + 1 - len(body))):
                body += more
        ended = len(body) <= MAX_EXCERPT
    except (TimeoutError, aiohttp.ClientError, OSError):  # the status is known: that is what counts
        ended = False
    if not ended:
        response.close()
    return body[:MAX_EXCERPT]


def _bad_literal(host: str, *, allow_private: bool) -> str:
    """What is wrong with an address in a URL, "" for a public one and for names."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        if last.isdigit() or last[:2].lower() == "0x" or ":" in host:  # 127.1, 2130706433, 0x7f.1: resolvers read them
            return f"{host} is neither a name nor an address in its usual form"
        return ""
    return f"{host} is an address of a private network" if not allow_private and is_private(str(address)) else ""


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


class _Halting(ResponseHandler):
    """A connection that ends soon after too much came over it for one answer: the beginning can still be read."""

    _received = 0
    _halted = False

    def set_response_params(self, **params: Any) -> None:
        """Another request begins."""
        self._received = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._halted:
            return
        room = MAX_POSTED - self._received
        self._received += len(data)
        super().data_received(data[:room])
        if len(data) > room and self.transport is not None:
            self._halted = True
            asyncio.get_running_loop().call_later(HALT, self.transport.abort)


class _Private:
    """The hosts that may have private addresses: entries `host` and `host:port`, `[::1]:8080`."""

    def __init__(self, entries: Collection[str]) -> None:
        self._hosts = {entry for entry in entries if _port_of(entry) is None}
        self._ports = {
            (entry.rpartition(":")[0].strip("[]"), port) for entry in entries if (port := _port_of(entry)) is not None
        }

    def allows(self, host: str, port: int) -> bool:
        if (host, port) in self._ports:
            return True
        return host in self._hosts and (port in (80, 443) or port >= LOWEST_PORT)


def _port_of(entry: str) -> int | None:
    host, _, port = entry.rpartition(":")
    return int(port) if port.isdigit() and host and (":" not in host or host.endswith("]")) else None


class _Names(AbstractResolver):
    """What aiohttp connects to: exactly the addresses that were looked at, so no second lookup can change them."""

    def __init__(self, resolver: Resolver, *, allow_private: bool, private: _Private | None = None) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._private = private or _Private(())

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        may_be_private = self._allow_private or self._private.allows(host.removesuffix("."), port)
        if may_be_private and host == "localhost":
            kinds = [kind for kind in LOCALHOST if family in (kind, AF_UNSPEC)]
            return [_result(host, LOCALHOST[kind], port, kind) for kind in kinds]
        lookups = {AF_INET: self._resolver.a, AF_INET6: self._resolver.aaaa}
        asked = [kind for kind in lookups if family in (kind, AF_UNSPEC)]
        answers = await asyncio.gather(*(lookups[kind](host) for kind in asked))
        found = [
            _result(host, address, port, kind)
            for kind, answer in zip(asked, answers, strict=True)
            if isinstance(answer, Found)
            for address in answer.records
        ]
        allowed = [result for result in found if may_be_private or not is_private(result["host"])]
        if not allowed:
            failures = [answer.text for answer in answers if isinstance(answer, Failed)]
            why = "only addresses of private networks" if found else "; ".join(failures) or "no address"
            raise OSError(EHOSTUNREACH, f"{host}: {why}")  # aiohttp shows the second alone
        return allowed

    async def check(self, host: str, port: int) -> None:
        """Raises ValueError when the name has private addresses only, or certainly none."""
        private = self._private.allows(host, port)
        if host == "localhost" and private:
            return
        answers = await asyncio.gather(self._resolver.a(host), self._resolver.aaaa(host))
        found = [address for answer in answers if isinstance(answer, Found) for address in answer.records]
        if not found and not any(isinstance(answer, Failed) for answer in answers):
            raise ValueError(f"{host} has no address")
        if found and not private and all(map(is_private, found)):
            raise ValueError(f"{host} has only addresses of private networks{UNLESS}")

    async def close(self) -> None:
        """The resolver is not ours to close."""


def _result(host: str, address: str, port: int, kind: AddressFamily) -> ResolveResult:
    return ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
