"""One listening SMTP socket of one worker: accepts, counts, watches deadlines, and stops in order."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network

import structlog

from mailerd import config, metrics
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.inbound import TakesInbound
from mailerd.intake.shares import MOMENT, Shares
from mailerd.intake.smtp_connection import HANDSHAKE, LINGER, Connection
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_inbound import InboundConnection
from mailerd.intake.smtp_server import SmtpConnection
from mailerd.intake.smtp_service import Accepts, Service
from mailerd.intake.smtp_submission import SubmissionConnection

log = structlog.get_logger()

BUSY = b"421 4.7.0 Too many connections, try again later\r\n"
OUT_OF_FILES = 0.1  # seconds to wait when no file can be opened: connections that end give theirs back
MOST_BETWEEN_SWEEPS = 5.0  # seconds; a deadline is kept with this much delay, at most


def server_context(tls: config.Tls, files: Mapping[str, bytes] | None = None) -> ssl.SSLContext | None:
    """The TLS that we serve, None without a certificate; certificate and key from `files` (by path) if they are there.

    Raises OSError or ssl.SSLError for files that are no good.
    """
    if tls.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.minimum == "TLSv1.3" else ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    files = files or {}
    with _readable(tls.certificate, files) as certificate, _readable(tls.key or tls.certificate, files) as key:
        context.load_cert_chain(certificate, key)
    return context


@contextlib.contextmanager
def _readable(path: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """A path that the file can be read by: OpenSSL wants one, also of what is in memory."""
    if path not in files:
        yield path
        return
    with os.fdopen(os.memfd_create("key"), "w+b") as file:
        file.write(files[path])
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


class SmtpListener:
    """Serves SMTP on a bound and listening socket, which other processes may be accepting from too.

    Connections are accepted one at a time by whoever has nothing else to do, so that they spread over the workers.
    `memory` is one for all listeners of a worker. The limits of connections are those of this listener in this worker;
    `limits` are those of `smtp_service.limits_of`. A listener of kind inbound gives what it takes to `inbound`, and
    without one takes nothing; the others give it to `submitter`.
    """

    def __init__(
        self,
        listener: config.Listener,
        sock: socket.socket,
        *,
        limits: config.Smtp,
        hostname: str,
        submitter: Accepts,
        authenticator: Authenticator,
        memory: Memory,
        inbound: TakesInbound | None = None,
        tls: ssl.SSLContext | None = None,
        shares: Shares | None = None,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._shares = shares
        self._service = Service(
            listener=listener,
            limits=limits,
            hostname=hostname,
            submitter=submitter,
            inbound=inbound,
            authenticator=authenticator,
            memory=memory,
            tls=tls,
            trusts=_membership(listener.trusted),
        )
        self._connections: set[SmtpConnection] = set()
        self._peers: Counter[str] = Counter()
        self._opening: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        """Connections open now."""
        return len(self._connections)

    @property
    def _tls(self) -> ssl.SSLContext | None:
        """For the whole of each connection."""
        return self._service.tls if self._service.listener.kind == "submissions" else None

    def reconfigure(
        self, listener: config.Listener, *, limits: config.Smtp, hostname: str, tls: ssl.SSLContext | None
    ) -> None:
        """Serve by these from now on, also the connections that are open; the socket and the kind stay."""
        self._service = replace(
            self._service,
            listener=listener,
            limits=limits,
            hostname=hostname,
            tls=tls,
            trusts=_membership(listener.trusted),
        )
        for connection in self._connections:
            connection.reconfigure(self._service)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._accept(), name="smtp accept"),
            asyncio.create_task(self._sweep(), name="smtp deadlines"),
        ]

    async def stop(self, deadline: float) -> None:
        """Accept no more; idle clients get 421 now, the others after their transaction or after `deadline` seconds.

        What is being committed then gets `LINGER` seconds more: its client should hear of it.
        """
        accepting, sweeping = self._tasks
        accepting.cancel()
        await asyncio.wait([accepting])
        self._socket.close()
        for opening in self._opening:
            opening.cancel()
        for connection in list(self._connections):
            connection.stop()
        if not await self._emptied(deadline):
            for connection in list(self._connections):
                connection.abandon()
            if not await self._emptied(LINGER):
                for connection in list(self._connections):
                    connection.cut()
        sweeping.cancel()

    async def _emptied(self, seconds: float) -> bool:
        self._empty.clear()
        if not self._connections:
            return True
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._shares is not None and self._shares.ahead:
                await asyncio.sleep(MOMENT)
            try:
                sock, address = await loop.sock_accept(self._socket)
            except ConnectionError:
                continue  # gone before we looked
            except OSError as error:
                log.error("smtp.accept_failed", reason=str(error))
                await asyncio.sleep(OUT_OF_FILES)
                continue
            self._take(sock, _peer(address[0]))

    def _take(self, sock: socket.socket, peer: str) -> None:
        if not self._has_room(peer):
            self._turn_away(sock, peer)
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serve = InboundConnection if self._service.listener.kind == "inbound" else SubmissionConnection
        connection: SmtpConnection = serve(self._service, peer, self._forget, asyncio.get_running_loop())
        self._connections.add(connection)
        metrics.sessions("in", 1)
        if self._shares is not None:
            self._shares.change(1)
        self._peers[peer] += 1
        # A task, because with TLS it takes the handshake.
        opening = asyncio.create_task(self._open(connection, sock), name=f"smtp {peer}")
        self._opening.add(opening)
        opening.add_done_callback(partial(self._opened, connection))

    def _has_room(self, peer: str) -> bool:
        limits = self._service.limits
        return len(self._connections) < limits.max_connections and self._peers[peer] < limits.max_connections_per_ip

    def _turn_away(self, sock: socket.socket, peer: str) -> None:
        log.warning("connection.turned_away", peer=peer, open=len(self._connections))
        with contextlib.suppress(OSError):
            if self._tls is None:
                sock.send(BUSY)
        sock.close()

    async def _open(self, connection: SmtpConnection, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE if self._tls is not None else None,
            )
        except (OSError, TimeoutError) as error:
            log.info("connection.failed", peer=connection.peer, reason=type(error).__name__)
            sock.close()
            self._forget(connection)

    def _opened(self, connection: SmtpConnection, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if opening.cancelled():
            self._forget(connection)
        elif opening.exception() is not None:
            log.error("connection.crashed", peer=connection.peer, exc_info=opening.exception())
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        metrics.sessions("in", -1)
        if self._shares is not None:
            self._shares.change(-1)
        self._peers[connection.peer] -= 1
        if not self._peers[connection.peer]:
            del self._peers[connection.peer]
        if not self._connections:
            self._empty.set()

    async def _sweep(self) -> None:
        """Hold the deadlines of all connections with one timer."""
        loop = asyncio.get_running_loop()
        while True:
            limits = self._service.limits
            await asyncio.sleep(min(MOST_BETWEEN_SWEEPS, limits.command_timeout / 4, limits.data_timeout / 4))
            now = loop.time()
            for connection in [each for each in self._connections if each.deadline <= now]:
                connection.expire(now)


@lru_cache(maxsize=1_024)
def _peer(host: str) -> str:
    """The address without its zone; an IPv4 client of an IPv6 socket is an IPv4 client."""
    address = ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def _membership(networks: tuple[str, ...]) -> Callable[[str], bool]:
    members = [ip_network(network, strict=False) for network in networks]
    return lru_cache(maxsize=1_024)(lambda peer: any(ip_address(peer) in network for network in members))
