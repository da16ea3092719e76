"""A relay in this process: real database, real DNS server, real mail exchangers; only the date is ours."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from mailerd.config import Config, Delivery, Duration, Resolver
from mailerd.config.shaping import ShapingRules
from mailerd.db import Pool, connect_pool
from mailerd.delivery.rendering import Renderer
from mailerd.intake.credentials import TRUSTED, Credential, CredentialStore
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.queue.trace import TraceStore
from mailerd.queue.views import MessageView
from mailerd.queue.workers import WorkerStore
from mailerd.relay import Relay
from mailerd.wire.smtp import RcptCommand, parse_rcpt
from tests.support.dns_server import DnsServer

CONTENT = b"From: Ann <ann@sender.example>\r\nTo: you\r\nSubject: hello\r\n\r\nbody\r\n"


class Clock:
    """The date, moved by assignment."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


def relay_config(data_dir: Path, dns: DnsServer, port: int = 25, **changes: Any) -> Config:
    """A configuration that asks `dns` and sends to `port` on loopback addresses."""
    delivery = Delivery(port=port, allow_private=True, idle=Duration(0.2), connect_timeout=Duration(2))
    config = Config(
        hostname="mail.sender.example",
        data_dir=str(data_dir),
        resolver=Resolver(nameservers=(dns.address,), timeout=Duration(2), min_ttl=Duration(0)),
        delivery=changes.pop("delivery", delivery),
        listeners=(),
    )
    return msgspec.structs.replace(config, **changes)


class RunningRelay:
    """What a journey needs: submit, let it run, look."""

    def __init__(self, relay: Relay, pool: Pool, clock: Clock, number: int) -> None:
        self.relay = relay
        self.pool = pool
        self.clock = clock
        self.number = number
        self._trace = TraceStore(pool)

    async def submit(
        self,
        *to: str,
        sender: str = "ann@sender.example",
        content: bytes = CONTENT,
        credential: Credential = TRUSTED,
        **envelope: Any,
    ) -> Receipt:
        """Submit a message; recipients may carry RCPT parameters: `a@b NOTIFY=NEVER`."""
        origin = Origin("smtp", "127.0.0.1", "client.example", "", credential)
        commands = [_recipient(text) for text in to]
        return await self.relay.submitter.submit(Envelope(sender, commands, len(content), **envelope), content, origin)

    async def run_once(self) -> None:
        """Claim what is due, and wait until everything in memory is settled."""
        self.relay.dispatcher.claims.wake()
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is owned by this worker: each recipient is finished or put back."""
        # One statement: what is put back between two of them is seen by neither.
        unsettled = """
            SELECT count(*) FROM recipients AS r LEFT JOIN queues AS q ON q.name = r.queue
            WHERE r.owner IS NOT NULL
               OR NOT r.held AND r.due_at <= $1 AND (q.blocked_until IS NULL OR q.blocked_until <= $1)
        """
        async with asyncio.timeout(60):
            while True:
                await self.relay.drained()
                if not await self.pool.fetchval(unsettled, self.clock.now):
                    return
                self.relay.dispatcher.claims.wake()
                await asyncio.sleep(0.01)

    async def view(self, receipt: Receipt) -> MessageView:
        view = await self._trace.message(receipt.message_id, None)
        assert view is not None
        return view

    async def states(self, receipt: Receipt) -> list[str]:
        return [recipient.state for recipient in (await self.view(receipt)).recipients]

    async def events(self, receipt: Receipt) -> list[str]:
        rows = await self.pool.fetch("SELECT type FROM events WHERE message_id = $1 ORDER BY at", receipt.message_id)
        return [row["type"] for row in rows]


def _recipient(text: str) -> RcptCommand:
    address, _, parameters = text.partition(" ")
    return parse_rcpt(f"TO:<{address}> {parameters}".strip())


@asynccontextmanager
async def running_relay(
    config: Config,
    database: str,
    *,
    clock: Clock | None = None,
    silent_for: Callable[[], float] = lambda: 0.0,
    rules: ShapingRules | None = None,
    renderer: Renderer | None = None,
    secret: bytes | None = None,
) -> AsyncIterator[RunningRelay]:
    """A relay with a lease of its own and its claim loop running."""
    clock = clock or Clock()
    pool = await connect_pool(database, min=1, max=4)
    number = await WorkerStore(pool).register("test", 1)
    relay = Relay(
        config,
        pool,
        number,
        node="test",
        rules=rules,
        clock=clock,
        silent_for=silent_for,
        secret=secret or await CredentialStore(pool).secret(),
        renderer=renderer,
    )
    await relay.start()
    dispatching = asyncio.create_task(relay.dispatcher.claims.run())
    try:
        yield RunningRelay(relay, pool, clock, number)
    finally:
        await relay.stop(2.0)
        await dispatching
        relay.journal.remove()
        await pool.close()
