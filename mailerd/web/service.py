"""The HTTP side of a worker put together: what the API and the public pages need, and the servers in front of them.

A worker without `http` does not import it.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from mailerd.campaigns.analytics.desk import AnalyticsDesk
from mailerd.campaigns.analytics.reading import CONNECTIONS, Reading
from mailerd.campaigns.contacts.book import build_contacts
from mailerd.campaigns.contacts.exporting import ExportStore
from mailerd.campaigns.contacts.files import ContactFiles
from mailerd.campaigns.contacts.imports.store import ImportStore
from mailerd.campaigns.contacts.preferences import PreferenceStore
from mailerd.campaigns.contacts.subscriptions import SubscriptionStore
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.segments.store import SegmentStore
from mailerd.campaigns.templates.desk import TemplateDesk
from mailerd.campaigns.tracking.service import Tracker
from mailerd.clock import utc_now
from mailerd.config import Config, Tenant
from mailerd.db import Pool, connect_pool
from mailerd.delivery.effects import EffectStore
from mailerd.delivery.explain import ConfigText
from mailerd.feedback.event_search import EventSearchStore
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.feedback.upstreams.receiving import Upstreams
from mailerd.feedback.webhooks.desk import WebhookDesk
from mailerd.intake.authenticator import Authenticator
from mailerd.queue.control import ControlStore, MessageControl
from mailerd.queue.suppression_files import SuppressionFileStore
from mailerd.queue.trace import TraceStore
from mailerd.relay import Relay
from mailerd.web.app import build_app
from mailerd.web.server import HttpServer
from mailerd.web.services import Limits, Services

STOP = 10.0  # seconds for requests under way
STOP_TRACKING = 3.0


class HttpService:
    """`start` it with the sockets; at the end `stop_taking`, and `stop` when nothing is asked any more.

    `config` and `text` tell what is in force, `url` is that of the database, `secret` that of the installation
    (CredentialStore.secret); `ping` raises when the database does not answer.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        relay: Relay,
        pool: Pool,
        *,
        url: str,
        node: str,
        secret: bytes,
        authenticator: Authenticator,
        upstreams: Upstreams,
        webhooks: WebhookDesk,
        campaigns: CampaignDesk,
        control: ControlStore,
        text: Callable[[], ConfigText],
        ping: Callable[[], Awaitable[None]],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._relay = relay
        self._pool = pool
        self._url = url
        self._secret = secret
        self._authenticator = authenticator
        self._upstreams = upstreams
        self._webhooks = webhooks
        self._campaigns = campaigns
        self._control = control
        self._text = text
        self._ping = ping
        self._stopping = stopping
        self._suppression_files = SuppressionFileStore(pool)
        self._tracker = Tracker(pool, secret, config().data_dir, node, utc_now)
        self._limits = Limits(stop=STOP)
        self._servers: list[HttpServer] = []
        self.reconfigure(config())

    async def start(self, descriptors: Sequence[int]) -> None:
        """Serve on these sockets, which become ours."""
        self._tracker.start()
        self._reports = await connect_pool(
            self._url, min=0, max=CONNECTIONS, idle=60.0, application_name="mailerd reports"
        )
        reading = Reading(self._reports, self._config().database.reports_url)
        self._analytics = AnalyticsDesk(reading, self._relay.traffic.provider_of)
        app = build_app(self._services())
        self._servers = [HttpServer(app, socket.socket(fileno=each), self._limits) for each in descriptors]
        for server in self._servers:
            await server.start()

    def reconfigure(self, config: Config) -> None:
        """Requests from now on are bounded as `config` says."""
        if config.http is not None:
            self._limits.max_body = config.http.max_body
        self._limits.max_message = config.smtp.max_size
        self._limits.max_recipients = config.smtp.max_recipients
        self._limits.memory = config.smtp.data_memory

    async def stop_taking(self) -> None:
        """Answer what was asked, and nothing more."""
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def stop(self) -> None:
        """End what goes on behind requests."""
        await self._suppression_files.stop()
        await self._analytics.close()
        self._reports.terminate()
        await self._tracker.stop(STOP_TRACKING)

    def _services(self) -> Services:
        pool, secret = self._pool, self._secret
        suppressions = self._relay.suppressions
        return Services(
            submitter=self._relay.submitter,
            authenticator=self._authenticator,
            mail=TraceStore(pool),
            control=MessageControl(self._control, utc_now),
            explainer=lambda: self._relay.explainer(self._text()),
            effects=EffectStore(pool),
            events=EventSearchStore(pool),
            suppressions=suppressions,
            suppression_files=self._suppression_files,
            streams=lambda: self._config().streams,
            unsubscribes=UnsubscribeStore(pool, suppressions, secret, utc_now),
            upstreams=self._upstreams,
            webhooks=self._webhooks,
            templates=TemplateDesk(pool),
            tracker=self._tracker,
            idempotency=self._relay.idempotency,
            preferences=PreferenceStore(pool, SubscriptionStore(pool, suppressions, utc_now), secret, utc_now),
            analytics=self._analytics,
            segments=SegmentStore(pool),
            contacts=build_contacts(pool, suppressions, secret, utc_now),
            contact_files=ContactFiles(
                ImportStore(pool), ExportStore(pool), lambda: self._config().campaigns.max_import
            ),
            campaigns=self._campaigns,
            ping=self._ping,
            stopping=self._stopping,
            cursor_key=secret,
            sender=lambda tenant: self._config().tenants.get(tenant, Tenant()).name,
            limits=self._limits,
        )
