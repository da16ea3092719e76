"""What the API and the command line do with endpoints: checked, within the limits, in the caller's tenant."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from mailerd.db import Pool
from mailerd.delivery.https import Poster
from mailerd.errors import Refused
from mailerd.events import START, Position
from mailerd.feedback.names import FAMILIES, NAMES, format_event_id, is_pattern
from mailerd.feedback.webhooks.records import RecordStore
from mailerd.feedback.webhooks.sending import send
from mailerd.feedback.webhooks.signing import BYTES
from mailerd.feedback.webhooks.store import WebhookStore
from mailerd.feedback.webhooks.teller import new_id
from mailerd.feedback.webhooks.values import TEST_TYPE, Attempt, Outcome, Replay, Webhook

MOST = 50  # endpoints of a tenant
MOST_EVENTS = 100  # patterns of an endpoint
MOST_BATCH = 500  # events
LONGEST_BATCH = 10_000  # milliseconds
ROTATION = timedelta(hours=24)  # both secrets sign
MOST_CHANGES = 60  # of the endpoints of a tenant, a minute
MOST_REPLAYS = 5  # of an endpoint, not finished
FIRST_YEAR, LAST_YEAR = 1970, 9000  # that one can reckon with, whatever the time zone
TEST_TIMEOUT = 15.0  # seconds, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody says of an endpoint; None: nothing of that."""

    url: str | None = None
    events: Sequence[str] | None = None
    streams: Sequence[str] | None = None
    description: str | None = None
    batch_events: int | None = None
    batch_wait: int | None = None
    enabled: bool | None = None


class WebhookDesk:
    """Raises `Refused` (HTTP 422, 409) for what is not possible; None: the tenant has none of that id."""

    def __init__(
        self,
        pool: Pool,
        poster: Callable[[], Poster],
        *,
        clock: Callable[[], datetime],
        timeout: Callable[[], float] = lambda: TEST_TIMEOUT,
    ) -> None:
        self._store = WebhookStore(pool)
        self._records = RecordStore(pool)
        self._poster = poster
        self._clock = clock
        self._timeout = timeout
        self._changes: dict[str, deque[datetime]] = {}  # of each tenant the last ones

    async def add(self, wanted: Wanted, *, tenant: str, actor: str) -> Webhook:
        """Told of events from now on."""
        await self._check(wanted)
        now = self._clock()
        webhook = Webhook(
            id=new_id(now),
            tenant=tenant,
            url=wanted.url or "",
            events=tuple(wanted.events or ()),
            streams=tuple(wanted.streams or ()),
            description=wanted.description or "",
            batch_events=wanted.batch_events or 1,
            batch_wait=wanted.batch_wait or 0,
            secret=os.urandom(BYTES),
            position=START,
            created_at=now,
        )
        added = await self._store.add(webhook, limit=MOST, actor=actor)
        if added is None:
            raise refused(f"There are {MOST} webhooks already: delete one first.", "too_many_webhooks", http=409)
        return added

    async def all(self, tenant: str | None) -> list[Webhook]:
        """Those of a tenant; None: of all."""
        return await self._store.all(tenant)

    async def get(self, id_: int, tenant: str | None) -> Webhook | None:
        return await self._store.get(id_, tenant)

    async def pending(self, id_: int) -> int:
        """How many requests it did not take yet."""
        return await self._store.pending(id_)

    async def change(self, id_: int, wanted: Wanted, *, tenant: str, actor: str) -> Webhook | None:
        self._count_change(tenant)
        await self._check(wanted)
        return await self._store.change(
            id_,
            tenant,
            url=wanted.url,
            events=wanted.events,
            streams=wanted.streams,
            description=wanted.description,
            batch_events=wanted.batch_events,
            batch_wait=wanted.batch_wait,
            enabled=wanted.enabled,
            now=self._clock(),
            actor=actor,
        )

    async def delete(self, id_: int, *, tenant: str, actor: str) -> Webhook | None:
        return await self._store.delete(id_, tenant, actor=actor)

    async def rotate(self, id_: int, *, tenant: str, actor: str) -> Webhook | None:
        """With a new secret; requests carry signatures by both for `ROTATION`."""
        self._count_change(tenant)
        return await self._store.rotate(id_, tenant, old_until=self._clock() + ROTATION, actor=actor)

    async def test(self, id_: int, tenant: str) -> Outcome | None:
        """Tell it of an event `webhook.test` now, once, and say what it answered. Also of a disabled one."""
        webhook = await self._store.get(id_, tenant)
        if webhook is None:
            return None
        now = self._clock()
        key = format_event_id(Position(0, new_id(now)))
        data = {"webhook": {"id": webhook.outside_id}}
        body = {"id": key, "type": TEST_TYPE, "timestamp": now, "created_at": now, "data": data}
        return await send(
            self._poster(),
            webhook,
            key,
            msgspec.json.encode(body),
            clock=self._clock,
            timeout=min(TEST_TIMEOUT, self._timeout()),
        )

    # the log

    async def log(self, webhook_id: int, *, before: int, outcome: str | None, limit: int) -> list[Attempt]:
        """Attempts, the newest first. The caller has made sure that the endpoint is its own."""
        return await self._records.log(webhook_id, before=before, outcome=outcome, limit=limit)

    async def retry(self, id_: int, delivery_id: int, *, tenant: str, actor: str) -> Attempt | None:
        """Tell it what that attempt was about once more, now; None when there is no such endpoint or attempt."""
        webhook = await self._store.get(id_, tenant)
        attempt = None if webhook is None else await self._records.logged(id_, delivery_id)
        if webhook is None or attempt is None:
            return None
        _must_be_enabled(webhook)
        now = self._clock()
        await self._store.retry(id_, new_id(now), attempt.told, now=now, actor=actor)
        return attempt

    # replays

    async def start_replay(
        self, id_: int, *, since: datetime, until: datetime | None, types: Sequence[str], tenant: str, actor: str
    ) -> Replay | None:
        """Tell it once more of the events of that time, beside the new ones."""
        webhook = await self._store.get(id_, tenant)
        if webhook is None:
            return None
        _must_be_enabled(webhook)
        _check_events(types, "types")
        for moment, field in ((since, "since"), (until, "until")):
            if moment is not None and not FIRST_YEAR <= moment.year <= LAST_YEAR:
                raise refused(f"There are no events of the year {moment.year}.", "invalid", field=field)
        now = self._clock()
        until = min(until or now, now)
        if since >= until:
            raise refused("The range of time is empty.", "invalid", field="since")
        replay = Replay(
            id=new_id(now),
            webhook_id=id_,
            since=since,
            until=until,
            types=tuple(types),
            position=START,
            created_at=now,
        )
        added = await self._store.add_replay(replay, limit=MOST_REPLAYS, actor=actor)
        if added is None:
            text = f"There are {MOST_REPLAYS} replays of it under way: wait for one to finish."
            raise refused(text, "too_many_replays", http=409)
        return added

    async def replays(self, webhook_id: int, limit: int) -> list[Replay]:
        return await self._store.replays(webhook_id, limit)

    async def replay(self, webhook_id: int, id_: int) -> Replay | None:
        return await self._store.replay(webhook_id, id_)

    def _count_change(self, tenant: str) -> None:
        """Each makes the teller read anew."""
        now = self._clock()
        lately = self._changes.setdefault(tenant, deque(maxlen=MOST_CHANGES))
        if len(lately) == MOST_CHANGES and now - lately[0] < timedelta(minutes=1):
            text = f"There were {MOST_CHANGES} changes of webhooks within a minute: wait a little."
            raise refused(text, "too_many_changes", http=429)
        lately.append(now)

    async def _check(self, wanted: Wanted) -> None:
        if wanted.events is not None:
            _check_events(wanted.events, "events")
        if wanted.url is not None:
            try:
                await self._poster().check_host(wanted.url)
            except ValueError as error:
                text = str(error)
                raise refused(f"{text[:1].upper()}{text[1:]}.", "invalid_url", field="url") from None


def _check_events(patterns: Sequence[str], field: str) -> None:
    if wrong := next((pattern for pattern in patterns if not is_pattern(pattern)), None):
        text = f"There are no events {wrong[:60]!r}, only {', '.join((*NAMES, *FAMILIES))} and *."
        raise refused(text, "unknown_event", field=field)


def _must_be_enabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise refused("It is disabled: enable it first.", "webhook_disabled", http=409)


def refused(text: str, name: str, *, field: str = "", http: int = 422) -> Refused:
    return Refused(550, "5.7.0", text, name=name, field=field, http=http)
