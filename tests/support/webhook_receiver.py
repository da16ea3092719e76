"""An application's endpoint on 127.0.0.1, by HTTPS: it checks each request with the published verifier.

`answer` says what it does: a status, or a function of the request that gives one (or raises). What was good is in
`taken`, in the order it came; `requests` counts all.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from standardwebhooks import Webhook

Answer = int | Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Taken:
    """One request: its webhook-id, header fields and JSON."""

    key: str
    headers: dict[str, str]
    json: Any
    body: bytes
    path: str


class Receiver:
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.answer: Answer = 200
        self.headers: dict[str, str] = {}
        self.secrets: dict[str, str] = {}  # by path; a path without one is not verified
        self.requests: list[Taken] = []
        self.taken: list[Taken] = []
        self.open = 0
        self.most_open = 0
        self.connections = 0
        self.port = 0
        self._context = context
        self._changed = asyncio.Event()

    def url(self, path: str = "/", *, host: str = "hooks.example") -> str:
        return f"{'https' if self._context else 'http'}://{host}:{self.port}{path}"

    @property
    def events(self) -> list[Any]:
        """The bodies of what was taken, arrays taken apart."""
        return [event for one in self.taken for event in (one.json if isinstance(one.json, list) else [one.json])]

    async def until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until that is so, looking whenever something came."""
        async with asyncio.timeout(seconds):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await self._listen(0)
        return self

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._context)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def go_down(self) -> None:
        """Refuse connections, and end those there are."""
        await self._site.stop()
        if self._runner.server is not None:
            await self._runner.server.shutdown(0)

    async def come_back(self) -> None:
        await self._listen(self.port)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        taken = Taken(headers.get("webhook-id", ""), headers, json.loads(body), body, request.path)
        self.requests.append(taken)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if secret := self.secrets.get(request.path):
                Webhook(secret).verify(body, headers)
            if not isinstance(self.answer, int):
                response = await self.answer(request)
            else:
                response = web.Response(status=self.answer, text="as you say", headers=self.headers)
            if 200 <= response.status < 300:
                self.taken.append(taken)
            return response
        finally:
            self.open -= 1
            self._changed.set()
