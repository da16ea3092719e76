"""A campaign on a daemon that is hurt, and the comparison of its ledger with what arrived and what was counted."""

import asyncio
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import asyncpg
import msgspec

from mailerd import db
from mailerd.campaigns.analytics.counts import COUNTS
from mailerd.campaigns.audience import Audience
from mailerd.campaigns.ledger import Status
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import Campaign, Options
from mailerd.db.embedded import running_url
from mailerd.queue.ids import CAMPAIGN, format_id
from tests.faults.laboratory import Laboratory

T = TypeVar("T")
TENANT = "default"
HTML = "<p>Dear {{ contact.first_name }}, <a href='{{ unsubscribe_url }}'>leave</a> {{ postal_address }}</p>"
SEED = """
    WITH made AS (
        INSERT INTO contacts (tenant, email, address, first_name)
        SELECT $1, $2 || i || '@d' || i % 20 || '.example', $2 || i || '@d' || i % 20 || '.example', 'Reader ' || i
          FROM generate_series(1, $3::int) AS i RETURNING id
    ), list AS (
        INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, 'readers', 'test') RETURNING id
    ), members AS (
        INSERT INTO list_contacts (list_id, contact_id, source) SELECT list.id, made.id, 'test' FROM list, made
    )
    SELECT id FROM list
"""
TEMPLATE = "INSERT INTO templates (tenant, name, created_by) VALUES ($1, 'news', 'test') RETURNING id"
VERSION = """
    INSERT INTO template_versions (template_id, version, subject, html_content, text_content, compiled, created_by)
    VALUES ($1, 1, $2, $3, '', $4, 'test')
"""
LEDGER = """
    SELECT c.address, l.status, l.waiting FROM campaign_contacts AS l JOIN contacts AS c ON c.id = l.contact_id
     WHERE l.campaign_id = $1
"""
TABLES = ("campaign_totals", "campaign_quarter_hours", "campaign_minutes", "campaign_domains")
SUMS = ", ".join(f"COALESCE(sum({name}), 0)::bigint AS {name}" for name in COUNTS)
# In one statement: other campaigns may go on meanwhile.
ROW = f"ROW({', '.join(f'sum({name})' for name in COUNTS)})"
TENANTS_AGREE = f"SELECT (SELECT {ROW} FROM tenant_quarter_hours) = (SELECT {ROW} FROM campaign_totals)"
FINISHED = """
    SELECT (SELECT status FROM campaigns WHERE id = $1) = 'sent'
       AND NOT EXISTS (SELECT FROM messages WHERE campaign = $2)
       AND NOT EXISTS (SELECT FROM campaign_contacts WHERE campaign_id = $1 AND status IN (0, 1))
"""


@dataclass
class Outcome:
    """What became of the contacts of a campaign; the lists name addresses."""

    contacts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # rows of the ledger
    in_doubt_arrived: int = 0
    lost: list[str] = field(default_factory=list)  # delivered, says the ledger, and never arrived
    twice: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)  # not delivered, and not in doubt
    strangers: list[str] = field(default_factory=list)  # arrived, and not in the ledger
    miscounted: list[str] = field(default_factory=list)  # where counts and ledger differ

    @property
    def exact(self) -> bool:
        """Everybody once, but for those who are in doubt and have it once or not at all; and counted so."""
        return not (self.lost or self.twice or self.unsent or self.strangers or self.miscounted)


class CampaignRun:
    """A campaign to `count` contacts, at `pace` a minute."""

    def __init__(self, lab: Laboratory, count: int, *, pace: int, prefix: str) -> None:
        self._lab = lab
        self._count = count
        self._pace = pace
        self.prefix = prefix
        self.id = 0

    async def start(self) -> None:
        """Make all that it needs, and begin."""
        pool = await self._pool()
        try:
            list_id = await pool.fetchval(SEED, TENANT, self.prefix, self._count)
            template = await pool.fetchval(TEMPLATE, TENANT)
            compiled = compile_template("News", HTML, "", "html", [])
            await pool.execute(VERSION, template, "News", HTML, msgspec.to_builtins(compiled))
            store, now = CampaignStore(pool), datetime.now(UTC)
            async with pool.acquire() as connection, connection.transaction():
                made = await store.create(self._campaign(template, list_id, now), connection)
                assert made is not None
                await store.begin(made.id, now, connection)
        finally:
            await pool.close()
        self.id = made.id

    def _campaign(self, template: int, list_id: int, now: datetime) -> Campaign:
        return Campaign(
            id=0,
            tenant=TENANT,
            name=self.prefix,
            subject="",
            template_id=template,
            sender_email="news@sender.example",
            sender_name="",
            reply_to="",
            status="scheduled",
            status_reason="",
            audience=msgspec.to_builtins(Audience(list_ids=[list_id])),
            schedule_time=now,
            timing=Timing(),
            recurrence=None,
            parent_id=None,
            options=Options(pace=self._pace),
            ab_test_config=None,
            revision=1,
            created_by="test",
            created_at=now,
            updated_at=now,
            started_at=None,
            finished_at=None,
        )

    async def _pool(self) -> db.Pool:
        connection = await self._lab.daemon.connection()
        await connection.close()
        url = running_url(self._lab.daemon.data_dir)
        assert url is not None
        return await db.connect_pool(url, min=1, max=1)

    async def order(self, word: str, seconds: float = 60.0) -> int:
        """`pause` or `resume` by the API, as soon as it answers; the status, 409 when it stands elsewhere."""
        async with asyncio.timeout(seconds):
            while True:
                with suppress(OSError):
                    return await asyncio.to_thread(self._post, word)
                await asyncio.sleep(0.1)

    def _post(self, word: str) -> int:
        daemon = self._lab.daemon
        request = urllib.request.Request(
            f"http://127.0.0.1:{daemon.http_port}/api/v1/campaigns/{format_id(CAMPAIGN, self.id)}/{word}",
            data=b"{}" if word == "pause" else b"",
            headers={"Authorization": f"Bearer {daemon.api_key}", "Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return error.code
            raise

    def arrived(self) -> Counter[str]:
        """How often each address got it."""
        return Counter(each.address for each in self._lab.mx.arrivals() if each.address.startswith(self.prefix))

    async def until_arrived(self, more: int, seconds: float = 60.0) -> bool:
        """Wait for so many more; False: the campaign is through."""
        wanted = min(self.arrived().total() + more, self._count)
        async with asyncio.timeout(seconds):
            while (arrived := self.arrived().total()) < wanted:
                await asyncio.sleep(0.05)
        return arrived < self._count

    async def finished(self, seconds: float) -> None:
        """Wait until everything is handed over, sent, and counted."""
        async with asyncio.timeout(seconds):
            while not await self._ask(self._is_finished):
                await asyncio.sleep(0.2)

    async def _ask(self, question: Callable[[db.Connection], Awaitable[T]]) -> T:
        connection = await self._lab.daemon.connection()
        try:
            return await question(connection)
        finally:
            await connection.close()

    async def _is_finished(self, connection: db.Connection) -> bool:
        return bool(await connection.fetchval(FINISHED, self.id, format_id(CAMPAIGN, self.id)))

    async def outcome(self) -> Outcome:
        """Ledger, sink and counts compared; to be asked when it is finished."""
        return await self._ask(self._compare)

    async def _compare(self, connection: db.Connection) -> Outcome:
        rows = {row["address"]: Status(row["status"]) for row in await connection.fetch(LEDGER, self.id)}
        arrived = self.arrived()
        outcome = Outcome(
            contacts=len(rows),
            statuses=Counter(status.word for status in rows.values()),
            in_doubt_arrived=sum(arrived[a] > 0 for a, status in rows.items() if status is Status.IN_DOUBT),
            lost=[a for a, status in rows.items() if status is Status.DELIVERED and not arrived[a]],
            twice=[address for address, times in arrived.items() if times > 1],
            unsent=[a for a, status in rows.items() if status not in (Status.DELIVERED, Status.IN_DOUBT)],
            strangers=sorted(arrived.keys() - rows.keys()),
        )
        if len(rows) != self._count:
            outcome.miscounted.append(f"{len(rows)} rows of {self._count}")
        wanted = {
            "queued": len(rows),
            "delivered": outcome.statuses["delivered"],
            "in_doubt": outcome.statuses["in_doubt"],
            "sent": outcome.statuses["delivered"] + outcome.statuses["in_doubt"],
        }
        for table in TABLES:
            row = await connection.fetchrow(f"SELECT {SUMS} FROM {table} WHERE campaign_id = $1", self.id)
            assert row is not None
            counted = {name: row[name] for name in COUNTS if row[name] and name != "deferred"}
            if counted != {name: count for name, count in wanted.items() if count}:
                outcome.miscounted.append(f"{table}: {counted}")
        if not await connection.fetchval(TENANTS_AGREE):
            outcome.miscounted.append("tenant_quarter_hours")
        return outcome


# Named steps, at which a daemon can be stopped from outside: whoever comes to one waits for the lock of a table.
STEPS = {
    "a range of the ledger is being written, or rows are being marked": "campaign_contacts",
    "mail is being stored by a hand-over": "messages",
    "a hand-over is about to commit": "campaign_totals",
    "the turn of a campaign is being moved on": "campaign_runs",
}


async def at_step(lab: Laboratory, table: str, seconds: float = 60.0) -> bool:
    """Wait until somebody waits at the step, and kill the daemon there; False: nobody came, and nothing was done."""
    connection = await lab.daemon.connection()
    try:
        await connection.execute(f"BEGIN; LOCK TABLE {table} IN SHARE MODE")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass", table
            ):
                await lab.daemon.kill()
                return True
            await asyncio.sleep(0.01)
        return False
    finally:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=2)
