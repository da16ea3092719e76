"""The campaigns of the database, their beginning and their end."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec

from mailerd import events
from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import CHANNEL, Campaign, Options, Run, Standing, Status
from mailerd.db import Connection, Pool
from mailerd.events import Event

FIELDS = Campaign.__dataclass_fields__
COLUMNS = ", ".join(FIELDS)
OF_C = ", ".join(f"c.{name}" for name in FIELDS)
MADE = ("id", "revision", "created_at", "updated_at", "started_at", "finished_at", "status_reason")  # not given
GIVEN = tuple(name for name in FIELDS if name not in MADE)
CREATE = f"""
    INSERT INTO campaigns ({", ".join(GIVEN)}, created_at, updated_at)
    VALUES ({", ".join(f"${n}" for n in range(1, len(GIVEN) + 1))}, ${len(GIVEN) + 1}, ${len(GIVEN) + 1})
    {{conflict}} RETURNING {COLUMNS}
"""
OCCURRENCE = "ON CONFLICT (parent_id, schedule_time) WHERE parent_id IS NOT NULL DO NOTHING"
GET = f"SELECT {COLUMNS} FROM campaigns WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)"
LOCK = f"{GET} FOR UPDATE"
CHANGEABLE = ("name", "subject", "template_id", "sender_email", "sender_name", "reply_to", "status", "status_reason",
              "audience", "schedule_time", "timing", "recurrence", "options", "ab_test_config")  # fmt: skip
CHANGE = f"""
    UPDATE campaigns SET {", ".join(f"{name} = ${n}" for n, name in enumerate(CHANGEABLE, 3))},
           revision = revision + 1, updated_at = $2
     WHERE id = $1 RETURNING {COLUMNS}
"""
BEGIN = f"""
    UPDATE campaigns SET status = 'sending', status_reason = '', started_at = $2, updated_at = $2,
           revision = revision + 1, schedule_time = CASE WHEN $3 THEN NULL ELSE schedule_time END
     WHERE id = ANY ($1::bigint[]) AND status IN ('draft', 'scheduled') AND recurrence IS NULL RETURNING {COLUMNS}
"""
RUN = f"""
    INSERT INTO campaign_runs (campaign_id, tenant, version_id, next_at, moved_at, started_at)
    SELECT c.id, t.tenant, v.id, $2, $2, $2 FROM campaigns AS c
      JOIN templates AS t ON t.id = c.template_id AND t.tenant = c.tenant
      JOIN template_versions AS v ON v.template_id = t.id AND v.version = t.version
     WHERE c.id = ANY ($1::bigint[]) RETURNING {", ".join(Run.__dataclass_fields__)}
"""
# `waits` of one that is over: rows of its ledger may do so still, though none had a turn before more was written.
SET_RUN = "UPDATE campaign_runs SET state = $2, waits = waits OR $2 <> 'paused' WHERE campaign_id = $1"
IN_QUEUE = "SELECT queued > sent + recalled FROM campaign_totals WHERE campaign_id = $1"
REOPEN = "UPDATE campaigns SET finished_at = NULL WHERE id = $1"
LOCK_RUN_OF = "SELECT FROM campaign_runs WHERE campaign_id = $1 FOR UPDATE"
LOCK_RUN = "SELECT FROM campaign_runs WHERE campaign_id = $1 AND tenant = $2 FOR UPDATE"
END_RUN = "UPDATE campaign_runs SET state = 'ended', waits = true WHERE campaign_id = $1 AND state <> 'ended'"
END = f"""
    UPDATE campaigns SET status = $2, status_reason = $3, finished_at = $4, updated_at = $4, revision = revision + 1
     WHERE id = $1 AND status = ANY ($5::text[]) RETURNING {COLUMNS}
"""
STANDING = f"""
    SELECT {OF_C}, to_jsonb(r) - 'steering' - 'steering_until' AS run, to_jsonb(t) - 'campaign_id' AS counts
      FROM campaigns AS c LEFT JOIN campaign_runs AS r ON r.campaign_id = c.id
      LEFT JOIN campaign_totals AS t ON t.campaign_id = c.id
     WHERE c.tenant = $1 AND
"""
SHOW = f"{STANDING} c.id = $2"
LIST = f"{STANDING} c.id < $2 AND ($3::text[] IS NULL OR c.status = ANY ($3)) ORDER BY c.id DESC LIMIT $4"
DELETE = """
    DELETE FROM campaigns WHERE id = $1 AND tenant = $2 AND status NOT IN ('sending', 'paused')
"""
FORGET_RUN = """
    UPDATE campaign_runs SET steering = 'forget', wishes = wishes + 1, steering_until = NULL WHERE campaign_id = $1
"""
# Those with local time begin up to 26 hours earlier; the exact moment is told by `timing.begin_at`.
DUE = f"""
    SELECT {COLUMNS} FROM campaigns
     WHERE status = 'scheduled' AND schedule_time <= $1::timestamptz + interval '27 hours'
       AND (schedule_time <= $1 OR (timing ->> 'local_time')::boolean)
     ORDER BY schedule_time LIMIT $2 OFFSET $3
"""
LOCK_DUE = f"""
    SELECT {COLUMNS} FROM campaigns WHERE id = ANY ($1::bigint[]) AND status = 'scheduled' ORDER BY id
       FOR UPDATE SKIP LOCKED
"""
ARE_DUE = "SELECT id, revision FROM campaigns WHERE id = ANY ($1::bigint[]) AND status = 'scheduled'"
DUES = """
    SELECT (SELECT due_at FROM campaign_contacts WHERE campaign_id = $1 AND waiting
             ORDER BY due_at, contact_id LIMIT 1) AS next,
           (SELECT due_at FROM campaign_contacts WHERE campaign_id = $1 AND waiting
             ORDER BY due_at DESC, contact_id DESC LIMIT 1) AS last
"""
RECENT = "SELECT COALESCE(sum(queued), 0)::bigint FROM campaign_minutes WHERE campaign_id = $1 AND minute >= $2"
TEMPLATE = "SELECT EXISTS (SELECT FROM templates WHERE id = $1 AND tenant = $2 AND is_active)"
NOTIFY = "SELECT pg_notify($1, told.id::text) FROM unnest($2::bigint[]) AS told (id)"
AUDIT = "INSERT INTO audit (actor, action, data) VALUES ($1, $2, $3)"


class NoTemplateError(LookupError):
    """The template of a campaign is not there any more."""


class CampaignStore:
    """The tables `campaigns` and `campaign_runs`. None of its methods shows or changes what another tenant has.

    Who needs both rows locks that of `campaign_runs` first.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, campaign: Campaign, connection: Connection) -> Campaign | None:
        """Store a new campaign and return it with its id; None: this time of a recurring one is there already."""
        values = [_stored(getattr(campaign, name)) for name in GIVEN]
        statement = CREATE.format(conflict="" if campaign.parent_id is None else OCCURRENCE)
        row = await connection.fetchrow(statement, *values, campaign.created_at)
        return None if row is None else _campaign(row)

    async def get(self, id_: int, tenant: str | None) -> Campaign | None:
        """The campaign, if it is this tenant's (None: anybody's)."""
        row = await self._pool.fetchrow(GET, id_, tenant)
        return None if row is None else _campaign(row)

    async def locked(self, id_: int, tenant: str, connection: Connection) -> Campaign | None:
        """The same, and nobody else changes it until the end of the transaction."""
        row = await connection.fetchrow(LOCK, id_, tenant)
        return None if row is None else _campaign(row)

    async def change(self, campaign: Campaign, now: datetime, connection: Connection) -> Campaign:
        """Store all that may change of a campaign that the caller has locked."""
        values = [_stored(getattr(campaign, name)) for name in CHANGEABLE]
        row = await connection.fetchrow(CHANGE, campaign.id, now, *values)
        assert row is not None
        return _campaign(row)

    async def delete(self, id_: int, tenant: str, connection: Connection) -> bool:
        """Drop a campaign that is not being sent; what belongs to it goes with it, in the background."""
        if await connection.execute(DELETE, id_, tenant) == "DELETE 0":
            return False
        await connection.execute(FORGET_RUN, id_)
        await notify(connection, id_)
        return True

    async def begin(
        self, campaign_id: int, now: datetime, connection: Connection, *, at_once: bool = False
    ) -> Run | None:
        """Let a draft or scheduled campaign begin: it is `sending`, with the version its template has now.

        None: it stands elsewhere, so that of two who begin it only one does. `at_once`: whatever its schedule says.
        Raises `NoTemplateError`, and the caller's transaction must not be committed then.
        """
        runs = await self.begin_all([campaign_id], now, connection, at_once=at_once)
        return runs[0] if runs else None

    async def begin_all(
        self, ids: Sequence[int], now: datetime, connection: Connection, *, at_once: bool = False
    ) -> list[Run]:
        """The same for some: the runs of those that began."""
        begun = [_campaign(row) for row in await connection.fetch(BEGIN, ids, now, at_once)]
        if not begun:
            return []
        began = [campaign.id for campaign in begun]
        runs = [Run(**row) for row in await connection.fetch(RUN, began, now)]
        if without := set(began) - {run.campaign_id for run in runs}:
            raise NoTemplateError(f"campaign {min(without)} has no template")
        started = [_event(campaign, "campaign.started", now, {}) for campaign in begun]
        await connection.execute(events.APPEND, *events.parameters(started))
        await connection.execute(NOTIFY, CHANNEL, began)
        return runs

    async def ended(
        self, campaign_id: int, status: Literal["sent", "failed"], reason: str, now: datetime, connection: Connection
    ) -> bool:
        """All of a campaign that was being sent is handed over, or it cannot go on. False: it stands elsewhere."""
        await connection.execute(LOCK_RUN_OF, campaign_id)
        row = await connection.fetchrow(END, campaign_id, status, reason, now, ["sending"])
        if row is None:
            return False
        await connection.execute(END_RUN, campaign_id)
        type_ = "campaign.completed" if status == "sent" else "campaign.failed"
        await append(connection, _campaign(row), type_, now, reason=reason)
        await notify(connection, campaign_id)
        return True

    async def failed(self, campaign_id: int, reason: str, now: datetime, connection: Connection) -> bool:
        """A scheduled campaign cannot begin."""
        row = await connection.fetchrow(END, campaign_id, "failed", reason, now, ["scheduled"])
        if row is None:
            return False
        await append(connection, _campaign(row), "campaign.failed", now, reason=reason)
        return True

    async def lock_run(self, id_: int, tenant: str, connection: Connection) -> None:
        """Wait for a hand-over that is under way, and let none begin until the end of the transaction."""
        await connection.execute(LOCK_RUN, id_, tenant)

    async def set_run(self, id_: int, state: str, connection: Connection) -> None:
        """What the hand-over sees; nothing happens when the campaign has not begun."""
        await connection.execute(SET_RUN, id_, state)

    async def has_mail(self, id_: int, connection: Connection) -> bool:
        """Is mail of it in the queue, as far as is counted yet?"""
        return bool(await connection.fetchval(IN_QUEUE, id_))

    async def reopen(self, id_: int, connection: Connection) -> None:
        """A campaign that the caller has locked had its end, and has it no more."""
        await connection.execute(REOPEN, id_)

    async def finish(
        self, campaign: Campaign, status: Status, reason: str, now: datetime, connection: Connection
    ) -> Campaign:
        """Put a campaign that the caller has locked into a state that is its last."""
        row = await connection.fetchrow(END, campaign.id, status, reason, now, [campaign.status])
        assert row is not None
        return _campaign(row)

    async def standing(self, id_: int, tenant: str) -> Standing | None:
        """A campaign with its run and its counts."""
        row = await self._pool.fetchrow(SHOW, tenant, id_)
        return None if row is None else _standing(row)

    async def dues(self, id_: int) -> tuple[datetime | None, datetime | None]:
        """When the first and the last of those contacts are due that wait to be handed over; None: nobody waits."""
        row = await self._pool.fetchrow(DUES, id_)
        assert row is not None
        return row["next"], row["last"]

    async def handed_over_since(self, id_: int, since: datetime) -> int:
        """Contacts handed over in the minutes from that one on."""
        return int(await self._pool.fetchval(RECENT, id_, since))

    async def has_template(self, template_id: int, tenant: str) -> bool:
        """Is there such a template, not deleted?"""
        return bool(await self._pool.fetchval(TEMPLATE, template_id, tenant))

    async def due(self, now: datetime, limit: int, offset: int = 0) -> list[Campaign]:
        """Scheduled campaigns of all tenants whose time has come, or may have come somewhere, the earliest first."""
        return [_campaign(row) for row in await self._pool.fetch(DUE, now, limit, offset)]

    async def still_due(self, campaigns: Sequence[Campaign]) -> list[Campaign]:
        """Those that are scheduled still, as they were read. Asked before work that would be in vain."""
        rows = await self._pool.fetch(ARE_DUE, [campaign.id for campaign in campaigns])
        due = {(row["id"], row["revision"]) for row in rows}
        return [campaign for campaign in campaigns if (campaign.id, campaign.revision) in due]

    async def locked_due(self, ids: Sequence[int], connection: Connection) -> list[Campaign]:
        """Of these campaigns those that are still scheduled and that nobody else has in hand, locked."""
        return [_campaign(row) for row in await connection.fetch(LOCK_DUE, ids)]

    async def list(
        self, tenant: str, *, statuses: Sequence[str] | None, limit: int, before: int | None
    ) -> list[Standing]:
        """Up to `limit`, newest first, ids below `before`, of these statuses (None: any)."""
        highest = (1 << 63) - 1 if before is None else before
        rows = await self._pool.fetch(LIST, tenant, highest, statuses, limit)
        return [_standing(row) for row in rows]


async def append(connection: Connection, campaign: Campaign, type_: str, now: datetime, **facts: str) -> None:
    """Append an event about a campaign; facts without a value are left out."""
    await connection.execute(events.APPEND, *events.parameters([_event(campaign, type_, now, facts)]))


def _event(campaign: Campaign, type_: str, now: datetime, facts: Mapping[str, str]) -> Event:
    data = {"campaign_id": campaign.name_outside, "name": campaign.name}
    data |= {name: value for name, value in facts.items() if value}
    return Event(now, type_, 0, 0, "", campaign.tenant, data, campaign.options.stream, campaign.name_outside)


async def notify(connection: Connection, campaign_id: int) -> None:
    """Wake those who hand over and those who steer, at the commit."""
    await connection.execute(NOTIFY, CHANNEL, [campaign_id])


async def audit(connection: Connection, actor: str, action: str, campaign: Campaign, **facts: Any) -> None:
    """Write down who did what, as the commands of operators do."""
    data = {"campaign": campaign.name_outside, "tenant": campaign.tenant} | facts
    await connection.execute(AUDIT, actor, action, data)


def _stored(value: object) -> object:
    """Structs as plain values: what is left out by default stays out."""
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value


def _campaign(row: asyncpg.Record) -> Campaign:
    fields = {name: row[name] for name in FIELDS}
    fields["timing"] = msgspec.convert(row["timing"], Timing)
    fields["options"] = msgspec.convert(row["options"], Options)
    if row["recurrence"] is not None:
        fields["recurrence"] = msgspec.convert(row["recurrence"], Recurrence)
    return Campaign(**fields)


def _standing(row: asyncpg.Record) -> Standing:
    run = None if row["run"] is None else msgspec.convert(row["run"], Run)
    return Standing(_campaign(row), run, row["counts"] or {})
