"""Serves an application on a listening socket, with the time limits and the orderly end that aiohttp leaves open."""

import asyncio
import socket

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from mailerd.web.app import new_request_id, sign
from mailerd.web.problems import ProblemError
from mailerd.web.services import Limits

log = structlog.get_logger()

BACKLOG = 1024
UNREAD = 60_000  # milliseconds that a client may leave our bytes unacknowledged or its window closed


class HttpServer:
    """`start()` takes connections from `sock`, `stop()` ends in order: no new ones, idle ones closed, the rest served.

    A connection has `limits.keep_alive` seconds for all header lines of a request, however they trickle; bodies have
    limits of their own in `BodyReader`, handlers in `Limits.handling`, unread answers in the kernel.
    """

    def __init__(self, app: web.Application, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        self._open = 0
        self._listener: asyncio.Server | None = None
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.stop)

    async def start(self) -> None:
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection, sock=self._sock, backlog=BACKLOG
        )

    async def stop(self) -> None:
        """Return when every request under way is answered, or after `limits.stop` seconds."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._open

    def _connection(self) -> "_Connection":
        return _Connection(self, self._runner, self._limits)

    def admit(self) -> bool:
        """Count a connection in; False when there are too many."""
        if self._open >= self._limits.connections:
            return False
        self._open += 1
        return True

    def leave(self) -> None:
        self._open -= 1


class _Connection(RequestHandler):
    """One connection; answers with a problem also when what came is not HTTP."""

    __slots__ = ("_admitted", "_http_server")

    def __init__(self, server: HttpServer, runner: web.AppRunner, limits: Limits) -> None:
        manager = runner.server
        if manager is None:
            raise RuntimeError("a connection before the server was started")
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.keep_alive,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp's own documentation says; ours is in the app
            auto_decompress=False,
            lingering_time=limits.linger,
        )
        self._http_server = server
        self._admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._admitted = self._http_server.admit()
        if not self._admitted:
            self.force_close()
            return
        sock = transport.get_extra_info("socket")
        if (
            sock is not None
            and sock.family in (socket.AF_INET, socket.AF_INET6)
            and hasattr(socket, "TCP_USER_TIMEOUT")
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._admitted:
            self._admitted = False
            self._http_server.leave()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):  # the client has gone
            raise exc
        request_id = new_request_id()
        if status < 500:
            log.info("http.unreadable", request_id=request_id, peer=request.remote, error=repr(exc)[:200])
            problem = ProblemError(
                status, "malformed_request", "What came is not HTTP, or not within limits.", close=True
            )
        else:
            log.error("http.crashed", request_id=request_id, exc_info=exc)
            problem = ProblemError(500, "internal_error", "This is our fault; our log has it.", close=True)
        if request.writer.output_size > 0:
            raise ConnectionError("a response had been started already")
        response = problem.answer(request_id)
        sign(response, request_id)
        return response
