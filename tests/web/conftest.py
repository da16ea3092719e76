"""An API under test: a real server on a socket of its own, and a client that holds it to its OpenAPI document.

The fixture `relay` is what stands behind the API. To run the tests on the real queue, build `Services` of real parts in
`services` and give `KEYS` to its credential store.
"""

import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import msgspec
import pytest

from mailerd.config import Rate
from mailerd.intake.credentials import Credential
from mailerd.web.app import OPERATIONS, build_app
from mailerd.web.openapi import statuses
from mailerd.web.operations import JSON, Operation
from mailerd.web.problems import MEDIA_TYPE, Problem
from mailerd.web.server import HttpServer
from mailerd.web.services import Limits, Services
from tests.web.relay import NOW, MemoryRelay

ALL = frozenset({"send", "read", "manage"})
KEYS = {
    "all": Credential(name="all", scopes=ALL),
    "sender": Credential(name="sender", scopes=frozenset({"send"})),
    "reader": Credential(name="reader", scopes=frozenset({"read"})),
    "shop": Credential(name="shop", scopes=ALL, sender_domains=("shop.example",)),
    "slow": Credential(name="slow", scopes=ALL, message_rate=Rate(3, 3600)),
    "stranger": Credential(name="stranger", scopes=ALL, tenant="other"),
}
EMAIL = {"from": "Shop <shop@example.com>", "to": ["ann@example.net"], "subject": "Hello", "text": "Hello, Ann"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def problem(self) -> Problem:
        assert self.headers["Content-Type"] == MEDIA_TYPE
        return msgspec.json.decode(self.body, type=Problem, strict=True)


@dataclass
class Api:
    """Sends requests; every answer must be in the document, and of the type that it says."""

    relay: MemoryRelay
    session: aiohttp.ClientSession
    port: int
    key: str = "all"
    seen: set[tuple[str, str, int]] = field(default_factory=set)

    async def ask(self, method: str, path: str, *, key: str | None = None, **rest: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key or self.key}"} | rest.pop("headers", {})
        if headers["Authorization"] == "Bearer none":
            del headers["Authorization"]
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=headers, **rest) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert "X-Request-Id" in answer.headers
        self._hold_to_document(method, path.partition("?")[0], answer)
        return answer

    async def send(self, body: object = None, **rest: Any) -> Answer:
        return await self.ask("POST", "/api/v1/emails", json=EMAIL if body is None else body, **rest)

    def _hold_to_document(self, method: str, path: str, answer: Answer) -> None:
        operation = operation_of(method, path)
        if operation is None:
            assert answer.problem.status in (404, 405)
            return
        assert answer.status in statuses(operation), f"{operation.id} does not document {answer.status}"
        self.seen.add((operation.method, operation.path, answer.status))
        if answer.status not in operation.answers:
            assert answer.problem.status == answer.status
            return
        media, type_ = operation.answers[answer.status]
        assert answer.headers["Content-Type"].partition(";")[0] == media
        if media == JSON:
            msgspec.json.decode(answer.body, type=type_, strict=True)


def operation_of(method: str, path: str) -> Operation | None:
    for operation in OPERATIONS:
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation.path))
        if operation.method == method and re.fullmatch(pattern, path):
            return operation
    return None


@pytest.fixture
def relay() -> MemoryRelay:
    return MemoryRelay(keys=dict(KEYS))


@pytest.fixture
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Limits that a test wants to be others: parametrize it, indirectly."""
    return getattr(request, "param", {})


@pytest.fixture
def limits(changes: dict[str, Any]) -> Limits:
    small = Limits(
        max_body=200_000,
        max_recipients=100,
        memory=1_000_000,
        idle_read=0.3,
        total_read=2.0,
        keep_alive=0.5,
        linger=0.2,
    )
    return replace(small, **changes)


@pytest.fixture
def stopping() -> list[bool]:
    """Holds True when the daemon is being stopped."""
    return []


@pytest.fixture
def services(relay: MemoryRelay, limits: Limits, stopping: list[bool]) -> Services:
    return Services(
        submitter=relay,
        authenticator=relay,
        mail=relay,
        control=relay,
        ping=relay.ping,
        stopping=lambda: any(stopping),
        cursor_key=b"secret of the installation",
        now=lambda: NOW,
        limits=limits,
    )


@pytest.fixture
async def server(services: Services) -> AsyncIterator[tuple[HttpServer, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(build_app(services), listening, services.limits)
    await server.start()
    yield server, listening.getsockname()[1]
    await server.stop()


@pytest.fixture
async def api(relay: MemoryRelay, server: tuple[HttpServer, int]) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(relay=relay, session=session, port=server[1])
