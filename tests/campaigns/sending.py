"""Campaigns that have begun, for tests of what lets them go on: real database and queue, from which nothing is sent."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mailerd.campaigns.audience import Audience
from mailerd.campaigns.edition import Editions
from mailerd.campaigns.runner.handing import Handing
from mailerd.campaigns.runner.writing import Writing
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.rendering import PreparedCache
from mailerd.campaigns.templates.store import TemplateStore
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import Campaign, Options
from mailerd.config import Config
from mailerd.db import Pool, connect_pool
from mailerd.intake.hand_over import HandOver
from mailerd.queue.ids import IdMaker
from mailerd.queue.mail import Message
from mailerd.queue.store import QueueStore
from mailerd.queue.suppression import SuppressionStore
from mailerd.queue.workers import WorkerStore
from tests.support.relay import Clock

TENANT = "acme"
HTML = (
    "<html><body><p>Dear {{ contact.first_name | default('friend') }}, "
    '<a href="https://shop.example/sale?a=1&amp;b=2">shop</a> '
    '<a href="{{ unsubscribe_url }}">leave</a> {{ postal_address }}</p></body></html>'
)
LEDGER = "SELECT contact_id, status, waiting, reason, message_id, due_at FROM campaign_contacts WHERE campaign_id = $1"


class Shelf:
    """Where mail is handed over to, and stays: a worker that keeps as much in memory as it has room for."""

    def __init__(self, pool: Pool, config: Config, worker: int, clock: Clock, *, room: int = 10_000) -> None:
        self.kept: list[Message] = []
        self._config = config
        self._worker = worker
        self._store = QueueStore(pool)
        self._ids = IdMaker(worker, lambda: int(time.time() * 1000))
        self._clock = clock
        self.capacity = room
        self.full: set[str] = set()  # campaigns whose paths are

    def hand_over(self) -> HandOver:
        return HandOver(
            self._config,
            worker=self._worker,
            store=self._store,
            memory=self,
            ids=self._ids,
            clock=self._clock,
        )

    def room(self, tenant: str = "", campaign: str = "") -> int:
        return 0 if campaign in self.full else self.capacity - len(self.kept)

    def held(self, tenant: str = "", campaign: str = "") -> int:
        return len(self.kept)

    def keep(self, message: Message) -> bool:
        if self.room(message.tenant, message.campaign) <= 0:
            return False
        self.kept.append(message)
        return True

    def offer(self, messages: list[Message]) -> None: ...

    def left(self, messages: list[Message]) -> None: ...

    def drop(self, message: Message) -> None:
        self.kept.remove(message)

    def strayed(self) -> None: ...

    def room_of_campaign(self, flow: str, weight: int) -> int:
        return self.room()

    def held_of_campaign(self, flow: str) -> int:
        return len(self.kept)


class Sending:
    """What tests do with campaigns; `clock` is the date."""

    def __init__(self, pool: Pool, shelf: Shelf, config: Config, clock: Clock) -> None:
        self.pool = pool
        self.shelf = shelf
        self.config = config
        self.clock = clock
        self.campaigns = CampaignStore(pool)
        self.editions = Editions(self.campaigns, TemplateStore(pool), PreparedCache())
        self.suppressions = SuppressionStore(pool)
        self.writing = self.new_writing()
        self.handing = self.new_handing()

    def new_writing(self, *, first: int = 5_000, size: int = 50_000) -> Writing:
        return Writing(self.pool, self.clock, first=first, size=size)

    def new_handing(self, config: Config | None = None) -> Handing:
        return Handing(
            config or self.config,
            self.pool,
            queue=self.shelf,
            editions=self.editions,
            suppressions=self.suppressions,
            clock=self.clock,
        )

    async def contacts(
        self, count: int, *, tenant: str = TENANT, zone: str = "", prefix: str = "reader", **columns: Any
    ) -> list[int]:
        """`reader1@example.org` and so on; their ids."""
        more = "".join(f", {name}" for name in columns)
        values = "".join(f", ${n}" for n in range(5, 5 + len(columns)))
        rows = await self.pool.fetch(
            f"INSERT INTO contacts (tenant, email, address, time_zone{more})"
            f" SELECT $1, $2 || i || '@Example.org', $2 || i || '@example.org', $3{values}"
            " FROM generate_series(1, $4::int) AS i RETURNING id",
            tenant,
            prefix,
            zone,
            count,
            *columns.values(),
        )
        return [row["id"] for row in rows]

    async def list_of(self, contacts: Sequence[int], *, tenant: str = TENANT) -> int:
        id_: int = await self.pool.fetchval(
            "INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, 'list', 'test') RETURNING id", tenant
        )
        await self.pool.execute(
            "INSERT INTO list_contacts (list_id, contact_id, source) SELECT $1, unnest($2::bigint[]), 'test'",
            id_,
            contacts,
        )
        return id_

    async def template(self, html: str = HTML, subject: str = "Hello {{ contact.first_name }}", text: str = "") -> int:
        compiled = compile_template(subject, html, text, "html", [])
        id_: int = await self.pool.fetchval(
            "INSERT INTO templates (tenant, name, created_by) VALUES ($1, 'template', 'test') RETURNING id", TENANT
        )
        await self.pool.execute(
            "INSERT INTO template_versions (template_id, version, subject, html_content, text_content, compiled,"
            " created_by) VALUES ($1, 1, $2, $3, $4, $5, 'test')",
            id_,
            subject,
            html,
            text,
            msgspec.to_builtins(compiled),
        )
        return id_

    async def begin(
        self,
        audience: Audience | None = None,
        *,
        template: int | None = None,
        options: Options = Options(),  # noqa: B008 frozen
        timing: Timing = Timing(),  # noqa: B008 frozen
        schedule_time: datetime | None = None,
        subject: str = "",
    ) -> int:
        """A campaign that has begun just now; its number."""
        now = self.clock.now
        campaign = Campaign(
            id=0,
            tenant=TENANT,
            name="Summer sale",
            subject=subject,
            template_id=template or await self.template(),
            sender_email="news@sender.example",
            sender_name="Ann & Co.",
            reply_to="",
            status="scheduled",
            status_reason="",
            audience=msgspec.to_builtins(audience or Audience(everyone=True)),
            schedule_time=schedule_time,
            timing=timing,
            recurrence=None,
            parent_id=None,
            options=options,
            ab_test_config=None,
            revision=1,
            created_by="test",
            created_at=now,
            updated_at=now,
            started_at=None,
            finished_at=None,
        )
        async with self.pool.acquire() as connection, connection.transaction():
            made = await self.campaigns.create(campaign, connection)
            assert made is not None
            await self.campaigns.begin(made.id, now, connection)
        return made.id

    async def written(self, audience: Audience | None = None, **how: Any) -> int:
        """The same, with its ledger."""
        id_ = await self.begin(audience, **how)
        await self.write()
        return id_

    async def write(self) -> None:
        while await self.writing.round():
            pass

    async def hand_over(self) -> None:
        """All whose turn it is at this moment."""
        while await self.handing.step():
            pass

    async def ledger(self, campaign_id: int) -> dict[int, Any]:
        """Its rows by contact."""
        return {row["contact_id"]: row for row in await self.pool.fetch(LEDGER, campaign_id)}

    async def reasons(self, campaign_id: int) -> dict[int, str]:
        """Of the contacts that were not sent to."""
        return {id_: row["reason"] for id_, row in (await self.ledger(campaign_id)).items() if row["status"] == 5}

    async def handed(self, campaign_id: int) -> int:
        return sum(row["message_id"] is not None for row in (await self.ledger(campaign_id)).values())

    async def campaign(self, campaign_id: int) -> Campaign:
        campaign = await self.campaigns.get(campaign_id, TENANT)
        assert campaign is not None
        return campaign

    async def totals(self, campaign_id: int) -> dict[str, int]:
        row = await self.pool.fetchrow("SELECT * FROM campaign_totals WHERE campaign_id = $1", campaign_id)
        return {} if row is None else {name: row[name] for name in ("queued", "suppressed", "cancelled") if row[name]}


def on(day: int, hour: int, minute: int = 0) -> datetime:
    """In June 2027; the 7th is a Monday."""
    return datetime(2027, 6, day, hour, minute, tzinfo=UTC)


@asynccontextmanager
async def sending_on(database: str, directory: Path, config: Config | None = None) -> AsyncIterator[Sending]:
    config = msgspec.structs.replace(config or Config(), data_dir=str(directory), hostname="mail.sender.example")
    pool = await connect_pool(database, min=1, max=6)
    clock = Clock()
    try:
        number = await WorkerStore(pool).register("test", 1)
        yield Sending(pool, Shelf(pool, config, number, clock), config, clock)
    finally:
        await pool.close()
