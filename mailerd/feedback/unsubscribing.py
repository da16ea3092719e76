"""What a reader's wish to unsubscribe leads to, whichever way it comes: by the link, the button, or by mail."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import asyncpg
import structlog

from mailerd import events
from mailerd.events import Event
from mailerd.queue.ids import format_message_id
from mailerd.queue.suppression import GRACE, Reason, Suppression, SuppressionStore
from mailerd.wire.tokens import Tokens
from mailerd.wire.unsubscribe import PURPOSE, Subscription, read_subscription

log = structlog.get_logger()

CAME_BACK = """
    SELECT count(*) FROM events
     WHERE message_id = $1 AND type = 'suppression.removed' AND address = $2 AND data->>'actor' = 'page'
"""


class UnsubscribeStore:
    """Reads the tokens of links, and carries the wishes out."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        suppressions: SuppressionStore,
        secret: bytes,
        clock: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._suppressions = suppressions
        self._tokens = Tokens(secret, PURPOSE)
        self._clock = clock

    def read(self, token: str) -> Subscription | None:
        """What the token of a link stands for; None when it is none of ours."""
        return read_subscription(self._tokens, token)

    async def leave(self, subscription: Subscription, *, source: str) -> bool:
        """No more of it from now on: it holds for all mail whose DATA has not begun when this returns.

        False when that was so already. `source` is one-click, page or mailto.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            new = await self.record(subscription, source, connection)
        await asyncio.sleep(GRACE)
        return new

    async def came_back(self, message_id: int, address: str) -> int:
        """How often this (normalised) recipient of a message let himself be subscribed again by its link."""
        return int(await self._pool.fetchval(CAME_BACK, message_id, address))

    async def record(
        self, subscription: Subscription, source: str, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
    ) -> bool:
        """The same in the caller's transaction; whoever tells somebody waits for GRACE after the commit."""
        now = self._clock()
        suppression = Suppression(
            subscription.address,
            tenant=subscription.tenant,
            stream=subscription.stream,
            topic=subscription.topic,
            reason=Reason.UNSUBSCRIBE,
            source=source,
            message_id=subscription.message_id,
            created_at=now,
        )
        if not await self._suppressions.add([suppression], connection):
            return False
        event = Event(
            now,
            "recipient.unsubscribed",
            subscription.message_id,
            subscription.n,
            subscription.address,
            subscription.tenant,
            {"source": source, "topic": subscription.topic},
            subscription.stream,
            subscription.campaign,
        )
        await connection.execute(events.APPEND, *events.parameters([event]))
        log.info(
            "recipient.unsubscribed",
            message=format_message_id(subscription.message_id),
            n=subscription.n,
            stream=subscription.stream,
            topic=subscription.topic,
            source=source,
        )
        return True
