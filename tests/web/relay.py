"""A relay that keeps everything in memory: what `Services` asks for, by the words of its promises."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mailerd.errors import Refused, Unavailable
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.idempotency import Conflict, Idempotency, Replayed
from mailerd.queue.views import FINAL_STATES, MailFilters, MessageSummary, MessageView, RecipientView, Steered
from mailerd.web.services import Respond, Result

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FIRST_ID = 1 << 60


@dataclass
class Stored:
    envelope: Envelope
    content: bytes
    origin: Origin
    states: list[str]


@dataclass
class MemoryRelay:
    """Submitter, authenticator, mail store and control in one."""

    keys: dict[str, Credential] = field(default_factory=dict)
    messages: dict[int, Stored] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], tuple[bytes, int, bytes]] = field(default_factory=dict)
    busy_keys: set[str] = field(default_factory=set)
    audit: list[tuple[str, str, int]] = field(default_factory=list)
    away: bool = False  # the database
    trouble: Exception | None = None  # of the next submission
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # submissions wait for it while `closed`
    closed: bool = False
    entered: asyncio.Event = field(default_factory=asyncio.Event)  # a submission has come to the gate

    @property
    def last(self) -> Stored:
        return self.messages[max(self.messages)]

    async def token(self, token: str, peer: str) -> Credential | None:
        self._ask()
        return self.keys.get(token)

    async def submit_batch(
        self,
        items: Sequence[tuple[Envelope, bytes]],
        origin: Origin,
        idempotency: Idempotency | None,
        status: int,
        respond: Respond,
    ) -> tuple[Sequence[Result], bytes] | Replayed | Conflict:
        self._ask()
        if self.trouble is not None:
            raise self.trouble
        if self.closed:
            self.entered.set()
            await self.gate.wait()
        name = (idempotency.owner, idempotency.path, idempotency.key) if idempotency else None
        if idempotency and name and idempotency.key in self.busy_keys:
            return Conflict.IN_PROGRESS
        if idempotency and name in self.answers:
            fingerprint, stored_status, stored = self.answers[name]
            if fingerprint != idempotency.fingerprint:
                return Conflict.OTHER_REQUEST
            return Replayed(stored_status, stored)
        taken: dict[int, Stored] = {}
        results: list[Result] = []
        for envelope, content in items:
            domain = envelope.sender.rpartition("@")[2]
            if not origin.credential.may_send_as(domain):
                text = f"this credential may not send as {domain}"
                results.append(Refused(550, "5.7.1", text, name="sender_not_allowed", field="from", http=403))
                continue
            message_id = FIRST_ID + len(self.messages) + len(taken)
            taken[message_id] = Stored(envelope, content, origin, ["queued"] * len(envelope.recipients))
            recipients = [(n, command.address.address) for n, command in enumerate(envelope.recipients, 1)]
            results.append(Receipt(message_id, recipients))
        if not taken:
            return results, b""
        response = respond(results)
        self.messages.update(taken)
        if idempotency and name:
            self.answers[name] = (idempotency.fingerprint, status, response)
        return results, response

    async def message(self, message_id: int, tenant: str) -> MessageView | None:
        self._ask()
        stored = self._of(message_id, tenant)
        if stored is None:
            return None
        return MessageView(
            id=message_id,
            sender=stored.envelope.sender,
            stream="transactional",
            pool="default",
            credential=stored.origin.credential.name,
            size=len(stored.content),
            accepted_at=NOW,
            labels=stored.envelope.labels,
            recipients=tuple(
                RecipientView(n=n, address=command.address.address, state=state, due_at=NOW, reason="greylisted")  # type: ignore[arg-type]
                for n, (command, state) in enumerate(zip(stored.envelope.recipients, stored.states, strict=True), 1)
            ),
        )

    async def search(self, filters: MailFilters, limit: int, before: int | None) -> Sequence[MessageSummary]:
        self._ask()
        found = [
            MessageSummary(
                id=message_id,
                sender=stored.envelope.sender,
                stream="transactional",
                pool="default",
                accepted_at=NOW,
                total=len(stored.states),
                states={state: stored.states.count(state) for state in stored.states},
                labels=stored.envelope.labels,
            )
            for message_id, stored in sorted(self.messages.items(), reverse=True)
            if stored.origin.credential.tenant == filters.tenant
            and (before is None or message_id < before)
            and filters.sender in (None, stored.envelope.sender)
            and (filters.tag is None or filters.tag in stored.envelope.labels)
            and (
                filters.recipient is None
                or filters.recipient in [command.address.address for command in stored.envelope.recipients]
            )
        ]
        return found[:limit]

    async def cancel(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return self._steer("cancel", "cancelled", message_id, tenant, actor)

    async def hold(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return self._steer("hold", "held", message_id, tenant, actor)

    async def release(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return self._steer("release", "queued", message_id, tenant, actor)

    async def retry(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return self._steer("retry", "queued", message_id, tenant, actor)

    async def bounce(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return self._steer("bounce", "bounced", message_id, tenant, actor)

    async def reschedule(self, message_id: int, due_at: datetime, *, tenant: str, actor: str) -> Steered | None:
        return self._steer(f"reschedule {due_at:%Y}", "queued", message_id, tenant, actor)

    async def ping(self) -> None:
        self._ask()

    def _ask(self) -> None:
        if self.away:
            raise Unavailable("connection to 10.1.2.3 refused for user mailerd")

    def _of(self, message_id: int, tenant: str) -> Stored | None:
        stored = self.messages.get(message_id)
        return stored if stored and stored.origin.credential.tenant == tenant else None

    def _steer(self, action: str, state: str, message_id: int, tenant: str, actor: str) -> Steered | None:
        stored = self._of(message_id, tenant)
        if stored is None:
            return None
        changed = [n for n, was in enumerate(stored.states) if was not in FINAL_STATES]
        for n in changed:
            stored.states[n] = state
        self.audit.append((actor, action, message_id))
        return Steered(changed=len(changed), waiting=sum(was not in FINAL_STATES for was in stored.states))
