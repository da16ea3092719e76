"""The one stand-in: a submitter that fails, or takes its time, as the real one cannot be made to."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailerd.intake.allowance import Allowance
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin
from mailerd.intake.idempotency import Conflict, Idempotency, Replayed
from mailerd.web.services import Respond, Result, Submitter


@dataclass
class StubbornSubmitter:
    """Raises `trouble` if there is some, waits for `gate` while `closed`, and then does what the real one does."""

    real: Submitter
    trouble: Exception | None = None
    closed: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)  # a submission has come to the gate

    async def submit_batch(
        self,
        items: Sequence[tuple[Envelope, bytes]],
        origin: Origin,
        idempotency: Idempotency | None,
        status: int,
        respond: Respond,
    ) -> tuple[Sequence[Result], bytes] | Replayed | Conflict:
        if self.trouble is not None:
            raise self.trouble
        if self.closed:
            self.entered.set()
            await self.gate.wait()
        return await self.real.submit_batch(items, origin, idempotency, status, respond)

    def allowances(self, credential: Credential) -> Sequence[Allowance]:
        return self.real.allowances(credential)
