"""The jobs that wait for one destination, and whose turn it is.

A lower lane goes first. Within a lane the flows (tenant, campaign and priority) take turns by deficit round robin
(Shreedhar and Varghese, 1995), counted in recipients: a tenant with a million recipients and one with ten get the same
share until the ten are done. Who takes more than a turn's worth at once sits out as many turns.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailerd.delivery.attempt import Job

QUANTUM = 10  # recipients of a turn


@dataclass(slots=True, eq=False)
class _Flow:
    name: str
    jobs: deque[Job] = field(default_factory=deque)
    credit: int = QUANTUM  # recipients that it may still take in this round


class _Lane:
    """The flows of one lane: those with credit left in this round, in the order of their turns, and the others."""

    __slots__ = ("turns", "waits")

    def __init__(self) -> None:
        self.turns: dict[str, _Flow] = {}
        self.waits: dict[str, _Flow] = {}

    def flows(self) -> Iterator[_Flow]:
        yield from self.turns.values()
        yield from self.waits.values()

    def find(self, name: str) -> _Flow | None:
        return self.turns.get(name) or self.waits.get(name)

    def of(self, name: str) -> _Flow:
        """The flow of that name; a new one has its turn last."""
        flow = self.find(name)
        if flow is None:
            flow = self.turns[name] = _Flow(name)
        return flow

    def settle(self, flow: _Flow) -> None:
        """Its jobs or its credit have changed. A flow without jobs is forgotten."""
        if flow.jobs and flow.credit > 0:
            if flow.name not in self.turns:
                self.turns[flow.name] = self.waits.pop(flow.name)
            return
        self.turns.pop(flow.name, None)
        self.waits.pop(flow.name, None)
        if flow.jobs:
            self.waits[flow.name] = flow
        if not self.turns and self.waits:
            self._next_round()

    def _next_round(self) -> None:
        """Nobody has credit left: begin as many rounds as it takes until somebody has."""
        rounds = 1 + min(-flow.credit for flow in self.waits.values()) // QUANTUM
        waits, self.waits = self.waits, {}
        for flow in waits.values():
            flow.credit += rounds * QUANTUM
            (self.turns if flow.credit > 0 else self.waits)[flow.name] = flow


class Line:
    """First come first served within a flow, turns among flows, lanes in order."""

    __slots__ = ("_lanes", "_length")

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def lane(self) -> int | None:
        """The lane of the most urgent job."""
        return min(self._lanes) if self._lanes else None

    def push(self, job: Job) -> None:
        """Let `job` wait behind those of its flow."""
        self._lane(job).of(job.message.flow).jobs.append(job)
        self._length += 1

    def push_back(self, job: Job) -> None:
        """Return a job that was taken and not sent, to the head of its flow."""
        lane = self._lane(job)
        flow = lane.of(job.message.flow)
        flow.jobs.appendleft(job)
        flow.credit = min(flow.credit + len(job.recipients), QUANTUM)
        lane.settle(flow)
        self._length += 1

    def last_of(self, job: Job) -> Job | None:
        """The job behind which `job` would wait."""
        lane = self._lanes.get(job.message.lane)
        flow = lane.find(job.message.flow) if lane is not None else None
        return flow.jobs[-1] if flow is not None else None

    def heads(self) -> Iterator[Job]:
        """The first job of each flow, in the order in which they may be taken. Take one at most, then ask again."""
        for number in sorted(self._lanes) if len(self._lanes) > 1 else self._lanes:
            for flow in self._lanes[number].flows():
                yield flow.jobs[0]

    def take(self, job: Job) -> Job:
        """Take one of `heads()` out of the line."""
        lane = self._lanes[job.message.lane]
        flow = lane.of(job.message.flow)
        flow.jobs.popleft()
        flow.credit -= len(job.recipients)
        self._length -= 1
        self._settle(job.message.lane, flow)
        return job

    def filter(self, keep: Callable[[Job], bool]) -> None:
        """Let the jobs leave that `keep` refuses; it may change them."""
        for number, lane in list(self._lanes.items()):
            for flow in list(lane.flows()):
                flow.jobs = deque(job for job in flow.jobs if keep(job))
                if not flow.jobs:
                    self._settle(number, flow)
        self._length = sum(len(flow.jobs) for lane in self._lanes.values() for flow in lane.flows())

    def clear(self) -> list[Job]:
        """Empty the line; what was in it, most urgent first."""
        jobs = [job for number in sorted(self._lanes) for flow in self._lanes[number].flows() for job in flow.jobs]
        self._lanes.clear()
        self._length = 0
        return jobs

    def _lane(self, job: Job) -> _Lane:
        lane = self._lanes.get(job.message.lane)
        if lane is None:
            lane = self._lanes[job.message.lane] = _Lane()
        return lane

    def _settle(self, number: int, flow: _Flow) -> None:
        lane = self._lanes[number]
        lane.settle(flow)
        if not lane.turns and not lane.waits:
            del self._lanes[number]
