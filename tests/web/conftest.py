"""An API under test: a real server on a socket of its own, the real queue behind it, a mail exchanger behind that.

`Api` is a client that holds every answer to the OpenAPI document. Between the relay and its database stands a proxy,
so that a test can take the database away. What no real part can be brought to do, a `StubbornSubmitter` does.
"""

import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from mailerd import config
from mailerd.campaigns.analytics.desk import AnalyticsDesk
from mailerd.campaigns.analytics.reading import Reading
from mailerd.campaigns.contacts.book import build_contacts
from mailerd.campaigns.contacts.exporting import ExportStore
from mailerd.campaigns.contacts.files import ContactFiles
from mailerd.campaigns.contacts.imports.store import ImportStore
from mailerd.campaigns.contacts.preferences import PreferenceStore
from mailerd.campaigns.contacts.subscriptions import SubscriptionStore
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.queued import QueuedMail
from mailerd.campaigns.segments.store import SegmentStore
from mailerd.campaigns.templates.desk import TemplateDesk
from mailerd.campaigns.tracking.service import Tracker
from mailerd.config import Duration, Pool, PoolSource, Rate, Source, Stream
from mailerd.delivery.effects import EffectStore
from mailerd.delivery.explain import ConfigText
from mailerd.delivery.https import Outside, Poster
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.tls_client import web_context
from mailerd.feedback.event_search import EventSearchStore
from mailerd.feedback.inbound import build_inbound
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.feedback.upstreams.receiving import Upstreams
from mailerd.feedback.webhooks.desk import WebhookDesk
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from mailerd.queue.control import ControlStore, MessageControl
from mailerd.queue.suppression import SuppressionStore
from mailerd.queue.suppression_files import SuppressionFileStore
from mailerd.queue.trace import TraceStore
from mailerd.web.app import OPERATIONS, build_app
from mailerd.web.openapi import statuses
from mailerd.web.operations import JSON, Operation
from mailerd.web.problems import MEDIA_TYPE, Problem
from mailerd.web.server import HttpServer
from mailerd.web.services import Limits, Services
from tests.support import authority
from tests.support.database_proxy import DatabaseProxy
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx
from tests.web.stubborn import StubbornSubmitter

AUTHORITY = authority.root()
ALL = frozenset({"send", "read", "manage"})
SECRET = b"secret of the installation"
CAMPAIGNS = config.Config(
    http=config.Http(public_url="https://mail.example.com"),
    tenants={"default": config.Tenant(postal_address="1 Main Street, Springfield")},
)
KEYS: dict[str, dict[str, Any]] = {
    "all": {"scopes": ALL},
    "sender": {"scopes": frozenset({"send"})},
    "reader": {"scopes": frozenset({"read"})},
    "shop": {"scopes": ALL, "sender_domains": ("shop.example",), "stream": "marketing"},
    "slow": {"scopes": ALL, "message_rate": Rate(3, 3600), "recipient_rate": Rate(10, 60)},
    "stranger": {"scopes": ALL, "tenant": "other"},
}
EMAIL = {"from": "Shop <shop@example.com>", "to": ["ann@example.net"], "subject": "Hello", "text": "Hello, Ann"}
ACCEPTED = "SELECT count(DISTINCT message_id) FROM events WHERE type = 'message.accepted'"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def problem(self) -> Problem:
        assert self.headers["Content-Type"] == MEDIA_TYPE
        return msgspec.json.decode(self.body, type=Problem, strict=True)


@dataclass
class Api:
    """Sends requests; every answer must be in the document, and of the type that it says."""

    relay: RunningRelay
    mx: ScriptedMx
    session: aiohttp.ClientSession
    port: int
    tokens: dict[str, str]
    seen: set[tuple[str, str, int]] = field(default_factory=set)

    async def ask(self, method: str, path: str, *, key: str = "all", **rest: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.tokens.get(key, key)}"} | rest.pop("headers", {})
        if headers["Authorization"] == "Bearer none":
            del headers["Authorization"]
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=headers, **rest) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert "X-Request-Id" in answer.headers
        assert answer.headers["Server"] == "mailerd"
        assert answer.body.endswith(b"\n") or answer.status == 204
        self._hold_to_document(method, path.partition("?")[0], answer)
        return answer

    async def send(self, body: object = None, **rest: Any) -> Answer:
        return await self.ask("POST", "/api/v1/emails", json=EMAIL if body is None else body, **rest)

    async def later(self, **changes: Any) -> str:
        """The path of an email that waits for tomorrow."""
        tomorrow = (self.relay.clock.now + timedelta(days=1)).isoformat()
        answer = await self.send(EMAIL | {"scheduled_at": tomorrow} | changes)
        return f"/api/v1/emails/{answer.json['id']}"

    async def accepted(self) -> int:
        """How many messages were ever accepted."""
        return int(await self.relay.pool.fetchval(ACCEPTED))

    async def delivered(self) -> list[bytes]:
        """The contents that the mail exchanger has got, when all is quiet."""
        await self.relay.settled()
        return [delivery.content for delivery in self.mx.delivered]

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
        if answer.status == 204:
            assert answer.body == b""
            return
        media, type_ = operation.answers[answer.status]
        assert answer.headers["Content-Type"].partition(";")[0] in (media, *operation.also)
        if media == JSON:
            msgspec.json.decode(answer.body, type=type_, strict=True)


def operation_of(method: str, path: str) -> Operation | None:
    for operation in OPERATIONS:
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation.path))
        if operation.method == method and re.fullmatch(pattern, path):
            return operation
    return None


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def mx(dns: DnsServer) -> AsyncIterator[ScriptedMx]:
    """The mail exchanger of example.net and example.com."""
    async with ScriptedMx("127.0.0.2", name="mx.example.net") as server:
        dns.add("mx.example.net", "A", "127.0.0.2")
        for domain in ("example.net", "example.com"):
            dns.add(domain, "MX", "10 mx.example.net.")
        yield server


@pytest.fixture
async def proxy(database: str, tmp_path: Path) -> AsyncIterator[DatabaseProxy]:
    async with DatabaseProxy(database, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def sources(request: pytest.FixtureRequest) -> dict[str, Source]:
    """Our addresses, all of them in the pool `default`: parametrize it, indirectly."""
    return getattr(request, "param", {})


@pytest.fixture
async def relay(
    proxy: DatabaseProxy, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path, sources: dict[str, Source]
) -> AsyncIterator[RunningRelay]:
    settings = relay_config(
        tmp_path,
        dns,
        mx.port,
        sources=sources,
        pools={"default": Pool(sources=tuple(PoolSource(name=name) for name in sources)), "warm": Pool()},
        streams={"transactional": Stream(), "marketing": Stream(pool="warm")},
        domains={"shop.example": config.SendingDomain(tracking_url="https://click.shop.example")},
    )
    async with running_relay(settings, proxy.url, clock=now, secret=SECRET) as running:
        yield running


@pytest.fixture
async def tokens(relay: RunningRelay) -> dict[str, str]:
    """The API keys by their names."""
    store = CredentialStore(relay.pool)
    return {name: await store.create(name, **values) for name, values in KEYS.items()}


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
def failures(request: pytest.FixtureRequest) -> Rate:
    """How often a key may be wrong: parametrize it, indirectly."""
    return getattr(request, "param", Rate(1000, 60.0))


@pytest.fixture
def stopping() -> list[bool]:
    """Holds True when the daemon is being stopped."""
    return []


@pytest.fixture
def submitter(relay: RunningRelay) -> StubbornSubmitter:
    return StubbornSubmitter(relay.relay.submitter)


@pytest.fixture
async def poster(dns: DnsServer, tmp_path: Path) -> AsyncIterator[Poster]:
    """What reaches the endpoints of webhooks: believes `AUTHORITY`; hooks.example may be on loopback."""
    dns.add("hooks.example", "A", "127.0.0.1")
    resolver = Resolver(config.Resolver(nameservers=(dns.address,), timeout=Duration(2)))
    poster = Poster(resolver, private_hosts=("hooks.example",), tls=web_context(AUTHORITY.save(tmp_path)))
    yield poster
    await poster.close()
    await resolver.close()


@pytest.fixture
def services(
    relay: RunningRelay,
    submitter: StubbornSubmitter,
    limits: Limits,
    failures: Rate,
    stopping: list[bool],
    poster: Poster,
    tmp_path: Path,
) -> Services:
    async def ping() -> None:
        await relay.pool.fetchval("SELECT 1")

    suppressions = SuppressionStore(relay.pool)
    inbound = build_inbound(
        config.Config(),
        relay.pool,
        submitter=relay.relay.submitter,
        suppressions=suppressions,
        provider_of=lambda domain, hosts: "default",
        secret=SECRET,
        clock=relay.clock,
    )
    upstreams = Upstreams(
        config.Config(upstreams={"mailgun": config.Upstream(kind="mailgun", key="key")}),
        inbound.recorder,
        SECRET,
        Outside(relay.relay.resolver, allow_private=False),
    )
    return Services(
        submitter=submitter,
        authenticator=Authenticator(CredentialStore(relay.pool), failures=failures),
        mail=TraceStore(relay.pool),
        control=MessageControl(ControlStore(relay.pool), relay.clock),
        explainer=lambda: relay.relay.explainer(ConfigText("mailerd.yaml", "")),
        effects=EffectStore(relay.pool),
        events=EventSearchStore(relay.pool),
        suppressions=suppressions,
        suppression_files=SuppressionFileStore(relay.pool),
        streams=lambda: ("transactional", "marketing"),
        unsubscribes=UnsubscribeStore(relay.pool, suppressions, SECRET, relay.clock),
        upstreams=upstreams,
        webhooks=WebhookDesk(relay.pool, lambda: poster, clock=relay.clock),
        templates=TemplateDesk(relay.pool),
        tracker=Tracker(relay.pool, SECRET, str(tmp_path), "node", relay.clock),
        idempotency=relay.relay.idempotency,
        analytics=AnalyticsDesk(Reading(relay.pool), lambda domain, hosts: "google" if "g" in domain else "default"),
        preferences=PreferenceStore(
            relay.pool, SubscriptionStore(relay.pool, suppressions, relay.clock), SECRET, relay.clock
        ),
        segments=SegmentStore(relay.pool),
        contacts=build_contacts(relay.pool, suppressions, SECRET, relay.clock),
        contact_files=ContactFiles(ImportStore(relay.pool), ExportStore(relay.pool), lambda: 1_000_000),
        campaigns=CampaignDesk(
            lambda: CAMPAIGNS, relay.pool, queue=QueuedMail(ControlStore(relay.pool), relay.clock), clock=relay.clock
        ),
        ping=ping,
        stopping=lambda: any(stopping),
        cursor_key=SECRET,
        sender=lambda tenant: "Acme & Co" if tenant == "default" else "",
        now=relay.clock,
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
async def api(
    relay: RunningRelay, mx: ScriptedMx, tokens: dict[str, str], server: tuple[HttpServer, int]
) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(relay=relay, mx=mx, session=session, port=server[1], tokens=tokens)
