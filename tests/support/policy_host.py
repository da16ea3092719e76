"""A web server on 127.0.0.1 that serves MTA-STS policies by HTTPS, as the tests want them."""

import asyncio
import ssl
from types import TracebackType
from typing import Self

from aiohttp import web

GOOD = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmax_age: 86400\r\n"


class PolicyHost:
    """`text`, `status`, `headers` are what it answers; `asked` counts. `hold`: answers wait for the event."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.text: str | bytes = GOOD
        self.status = 200
        self.headers: dict[str, str] = {"Content-Type": "text/plain; charset=utf-8"}
        self.asked = 0
        self.hold: asyncio.Event | None = None
        self.port = 0
        self._context = context

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if request.path != "/.well-known/mta-sts.txt":
            return web.Response(status=404)
        body = self.text if isinstance(self.text, bytes) else self.text.encode()
        return web.Response(status=self.status, body=body, headers=self.headers)
