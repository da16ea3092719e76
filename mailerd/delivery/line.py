"""The jobs that wait for one destination, and whose turn it is.

A lower precedence goes first. Within it tenants take turns, and within a tenant first the priorities have their order
and then the campaigns take turns: nobody gets more of a path by naming more campaigns, or by calling all mail urgent.
Turns are deficit round robin (Shreedhar and Varghese, 1995), counted in recipients: a tenant with a million
recipients and one with ten get the same share until the ten are done. Who takes more than a turn's worth at once sits
out as many turns.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from mailerd.delivery.attempt import Job
from mailerd.queue.mail import PRIORITIES

QUANTUM = 10  # recipients of a turn
LEVELS = len(PRIORITIES)  # lanes of a precedence

Content = TypeVar("Content")


@dataclass(slots=True, eq=False)
class _Member(Generic[Content]):
    name: str
    content: Content
    credit: int = QUANTUM  # recipients that it may still take in this round


class _Round(Generic[Content]):
    """Who takes turns: those with credit left in this round, in the order of their turns, and the others."""

    __slots__ = ("_turns", "_waits")

    def __init__(self) -> None:
        self._turns: dict[str, _Member[Content]] = {}
        self._waits: dict[str, _Member[Content]] = {}

    def __bool__(self) -> bool:
        return bool(self._turns or self._waits)

    def members(self) -> Iterator[_Member[Content]]:
        yield from self._turns.values()
        yield from self._waits.values()

    def find(self, name: str) -> _Member[Content] | None:
        return self._turns.get(name) or self._waits.get(name)

    def of(self, name: str, make: Callable[[], Content]) -> _Member[Content]:
        """The member of that name; a new one has its turn last."""
        member = self.find(name)
        if member is None:
            member = self._turns[name] = _Member(name, make())
        return member

    def charge(self, member: _Member[Content], recipients: int) -> None:
        """It took so many (below 0: gave back). One that has nothing left is forgotten."""
        member.credit = min(member.credit - recipients, QUANTUM)
        if member.content and member.credit > 0:
            if member.name not in self._turns:
                self._turns[member.name] = self._waits.pop(member.name)
            return
        self._turns.pop(member.name, None)
        self._waits.pop(member.name, None)
        if member.content:
            self._waits[member.name] = member
        if not self._turns and self._waits:
            self._next_round()

    def _next_round(self) -> None:
        """Nobody has credit left: begin as many rounds as it takes until somebody has."""
        rounds = 1 + min(-member.credit for member in self._waits.values()) // QUANTUM
        waits, self._waits = self._waits, {}
        for member in waits.values():
            member.credit += rounds * QUANTUM
            (self._turns if member.credit > 0 else self._waits)[member.name] = member


_Flow = _Member[deque[Job]]
_Tenant = _Member[dict[int, _Round[deque[Job]]]]  # by priority


class Line:
    """First come first served within a flow, turns among flows and among tenants, precedences in order."""

    __slots__ = ("_length", "_rounds")

    def __init__(self) -> None:
        self._rounds: dict[int, _Round[dict[int, _Round[deque[Job]]]]] = {}  # by precedence
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def lane(self) -> int | None:
        """The first lane of the precedence of the most urgent job."""
        return min(self._rounds) * LEVELS if self._rounds else None

    def push(self, job: Job) -> None:
        """Let `job` wait behind those of its flow."""
        _, flow = self._place(job)
        flow.content.append(job)
        self._length += 1

    def push_back(self, job: Job) -> None:
        """Return a job that was taken and not sent, to the head of its flow."""
        tenant, flow = self._place(job)
        flow.content.appendleft(job)
        self._length += 1
        self._charge(job, tenant, flow, -len(job.recipients))

    def last_of(self, job: Job) -> Job | None:
        """The job behind which `job` would wait."""
        flow = self._find(job)
        return flow.content[-1] if flow is not None else None

    def heads(self) -> Iterator[Job]:
        """The first job of each flow, in the order in which they may be taken. Take one at most, then ask again."""
        for flow in self._flows():
            yield flow.content[0]

    def upcoming(self, most: int) -> list[Job]:
        """About those that are taken next."""
        found: list[Job] = []
        for flow in self._flows():
            turn = most if len(flow.content) == self._length else QUANTUM
            found += islice(flow.content, min(turn, most - len(found)))
            if len(found) == most:
                break
        return found

    def take(self, job: Job) -> Job:
        """Take one of `heads()` out of the line."""
        tenant, flow = self._place(job)
        flow.content.popleft()
        self._length -= 1
        self._charge(job, tenant, flow, len(job.recipients))
        return job

    def filter(self, keep: Callable[[Job], bool]) -> None:
        """Let the jobs leave that `keep` refuses; it may change them."""
        for flow in list(self._flows()):
            jobs = list(flow.content)
            kept = [job for job in jobs if keep(job)]
            flow.content.clear()
            flow.content.extend(kept)
            self._length += len(kept) - len(jobs)
            if not kept:
                self._charge(jobs[0], self._place(jobs[0])[0], flow, 0)

    def clear(self) -> list[Job]:
        """Empty the line; what was in it, most urgent first."""
        jobs = [job for flow in self._flows() for job in flow.content]
        self._rounds.clear()
        self._length = 0
        return jobs

    def _flows(self) -> Iterator[_Flow]:
        for precedence in sorted(self._rounds) if len(self._rounds) > 1 else self._rounds:
            for tenant in self._rounds[precedence].members():
                for priority in sorted(tenant.content) if len(tenant.content) > 1 else tenant.content:
                    yield from tenant.content[priority].members()

    def _find(self, job: Job) -> _Flow | None:
        message = job.message
        precedence, priority = divmod(message.lane, LEVELS)
        tenants = self._rounds.get(precedence)
        tenant = tenants.find(message.tenant) if tenants is not None else None
        flows = tenant.content.get(priority) if tenant is not None else None
        return flows.find(message.flow) if flows is not None else None

    def _place(self, job: Job) -> tuple[_Tenant, _Flow]:
        message = job.message
        precedence, priority = divmod(message.lane, LEVELS)
        tenants = self._rounds.get(precedence)
        if tenants is None:
            tenants = self._rounds[precedence] = _Round()
        tenant = tenants.of(message.tenant, dict)
        flows = tenant.content.get(priority)
        if flows is None:
            flows = tenant.content[priority] = _Round()
        return tenant, flows.of(message.flow, deque)

    def _charge(self, job: Job, tenant: _Tenant, flow: _Flow, recipients: int) -> None:
        """The job's flow and tenant took so many, or gave them back; what is empty is forgotten."""
        precedence, priority = divmod(job.message.lane, LEVELS)
        flows = tenant.content[priority]
        flows.charge(flow, recipients)
        if not flows:
            del tenant.content[priority]
        tenants = self._rounds[precedence]
        tenants.charge(tenant, recipients)
        if not tenants:
            del self._rounds[precedence]
