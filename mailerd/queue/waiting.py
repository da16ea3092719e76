"""Looking at what waits: the recipients that fit a selection, and why each of them waits, until when."""

from datetime import datetime

from mailerd.db import Pool
from mailerd.queue.control import MATCH, Selection
from mailerd.queue.trace import WAITS_FOR, WAITS_UNTIL
from mailerd.queue.views import RecipientState, View

WAITING = f"""
    SELECT r.message_id, r.n, r.address, r.domain, m.sender, m.stream, m.pool, m.tenant,
           m.campaign, m.topic, m.credential, m.require_tls, r.queue, m.accepted_at, r.attempts, r.expires_at,
           r.last_reply,
           CASE WHEN r.held THEN 'held' WHEN r.attempts > 0 THEN 'deferred' ELSE 'queued' END AS state,
           r.owner IS NOT NULL AS in_memory,
           {WAITS_UNTIL} AS due_at, {WAITS_FOR} AS reason
      FROM messages AS m, recipients AS r LEFT JOIN queues AS q ON q.name = r.queue
     WHERE {MATCH} AND ($10::text IS NULL OR r.queue = $10)
     ORDER BY r.due_at, r.message_id, r.n LIMIT $11
"""


class WaitingView(View, frozen=True, kw_only=True):
    """One recipient that waits, as `RecipientView`, with its message. `in_memory`: a worker has it, about to send."""

    message_id: int
    n: int
    address: str
    domain: str
    sender: str
    stream: str
    pool: str
    tenant: str
    campaign: str
    topic: str
    credential: str
    require_tls: bool | None
    queue: str
    state: RecipientState
    accepted_at: datetime
    attempts: int
    due_at: datetime
    expires_at: datetime
    in_memory: bool
    reason: str
    last_reply: str


class WaitingStore:
    """Reads recipients without a final state."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list(self, selection: Selection, *, queue: str | None, limit: int) -> list[WaitingView]:
        """Up to `limit` recipients that fit, of one queue if it is named; those due first come first."""
        rows = await self._pool.fetch(WAITING, *selection.parameters(), queue, limit)
        return [WaitingView(**row) for row in rows]
