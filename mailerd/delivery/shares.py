"""How much one claim takes of each queue, so that everybody has a part and what is claimed fits where it goes."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from mailerd.delivery.destination import PATIENCE, Destination, Key, Sessions, key_of
from mailerd.delivery.line import LEVELS
from mailerd.delivery.memory import FIRST_LANES, Memory
from mailerd.delivery.paths import Path, Scarce, Wait
from mailerd.delivery.promises import Promises
from mailerd.delivery.routing import NoRoute, Router
from mailerd.delivery.sources import Sources
from mailerd.delivery.traffic import Traffic
from mailerd.queue.mail import Queue, parts_of_flow

UNKNOWN_ROOM = 20  # recipients claimed of a queue whose route is not known yet
LEAST_ROOM = 100  # jobs of a destination in memory; from there on as many as leave in two seconds
LOOK_AGAIN = 1.0  # seconds at most, at a queue of which mail of some sender may go another way


class Shares:
    """What claims take. `cut` and `crowded` are of the last one: who got less than there is, for want of memory."""

    def __init__(
        self,
        *,
        memory: Memory,
        router: Router,
        sources: Sources,
        traffic: Traffic,
        sessions: Sessions,
        destinations: Mapping[Key, Destination],
        clock: Callable[[], datetime],
    ) -> None:
        self._memory = memory
        self._router = router
        self._sources = sources
        self._traffic = traffic
        self._sessions = sessions
        self._destinations = destinations
        self._clock = clock
        self._each = 1.0  # recipients that a claim finds in a queue
        self._starving: dict[tuple[str, bool], int] = {}  # what this claim promises to paths without connection
        self.cut: set[str] = set()  # campaigns that may have had more to claim than their share
        self.crowded: set[str] = set()  # queues that have all of the memory that one may have, and more to claim

    def learn_lengths(self, queues: int, recipients: int) -> None:
        """So many queues gave so many recipients: ten thousand domains may have one each."""
        self._each = min(UNKNOWN_ROOM, max(1.0, (self._each + recipients / queues) / 2))

    def sort_out(self, queues: Sequence[Queue], room: int, bulk: int) -> tuple[dict[str, int], dict[Queue, Wait]]:
        """How much to claim of each queue, and which of them wait for what.

        The precedences come one after the other; in each every tenant gets an equal part of the room, of that every
        flow of its first priority, and in a flow every queue. What one leaves is for the others at the next claim.
        """
        self.cut.clear()
        self.crowded.clear()
        self._starving.clear()
        wanted: dict[str, int] = {}
        put_off: dict[Queue, Wait] = {}
        fitting: dict[int, dict[str, dict[int, dict[str, list[tuple[Queue, int]]]]]] = {}
        promises = Promises(self._each)
        of_flows: dict[str, int] = {}
        fits: list[tuple[Queue, int]] = []
        for queue in queues:
            found = self._room(queue, promises)
            if isinstance(found, Wait):
                put_off[queue] = found
            elif (found := self._of_campaign(queue, found, of_flows)) > 0:
                fits.append((queue, found))
        for queue, found in fits:
            tenants = fitting.setdefault(queue.lane // LEVELS, {})
            flows = tenants.setdefault(parts_of_flow(queue.flow)[0], {}).setdefault(queue.lane, {})
            flows.setdefault(queue.flow, []).append((queue, min(found, promises.share(queue, found))))
        for precedence, tenants in fitting.items():
            left = min(room, bulk) if precedence else room
            share = max(1, left // len(tenants))
            for lanes in tenants.values():
                taken = _shared(lanes, min(share, left))
                wanted |= taken
                count = sum(taken.values())
                left -= count
                room -= count
                bulk -= count if precedence else 0
        return wanted, put_off

    def _room(self, queue: Queue, promises: Promises) -> int | Wait:
        """How many recipients of the queue could leave soon; a Wait: look again later; 0: that is for others."""
        if self._memory.crowded(queue.name):
            self.crowded.add(queue.name)
            return 0
        if (wait := self._traffic.wait_of_queue(queue)) is not None and wait.seconds > PATIENCE:
            return wait
        route = self._router.cached(queue.domain, sender="", stream=queue.stream, pool=queue.pool)
        if route is None:
            return UNKNOWN_ROOM
        if isinstance(route, NoRoute):
            return LEAST_ROOM
        provider = self._traffic.provider_of(queue.domain, [host.name for host in route.hosts])
        rooms: list[int] = []
        waits: list[Wait] = []
        before = 0.0
        for source in self._sources.of(queue.pool):
            path = self._traffic.path(source.name, route.site, provider)
            key = key_of(route, source, provider)
            destination = self._destinations.get(key)
            promised = promises.of(key)
            before += promised + (len(destination.line) if destination is not None else 0)
            found = self._room_of(destination, path, promised, first=queue.lane < FIRST_LANES)
            if isinstance(found, Wait):
                waits.append(found)
            else:
                rooms.append(found)
                promises.make(queue, key, found)
        if sum(rooms) > 0:
            return sum(rooms)
        if not waits or rooms:
            return 0
        soonest = min(waits, key=lambda wait: wait.seconds)
        if not self._router.depends_on_sender(queue.domain, stream=queue.stream, pool=queue.pool):
            return soonest
        # Mail of some sender may go another way: it is seen when it is claimed, and the other mail waits by itself.
        if soonest.full is None and before < UNKNOWN_ROOM:
            return math.ceil(UNKNOWN_ROOM - before)
        return soonest._replace(seconds=min(soonest.seconds, LOOK_AGAIN))

    def _of_campaign(self, queue: Queue, found: int, of_flows: dict[str, int]) -> int:
        """How much of what has room a campaign may have, so that there is some for others."""
        flow = queue.flow
        if found <= 0 or queue.lane < FIRST_LANES or not parts_of_flow(flow)[1]:
            return found
        left = self._memory.room_to_claim_of_campaign(flow) - of_flows.get(flow, 0)
        if left < found:
            self.cut.add(flow)
            found = max(0, left)
        of_flows[flow] = of_flows.get(flow, 0) + min(found, math.ceil(self._each))
        return found

    def _room_of(self, destination: Destination | None, path: Path, promised: float, *, first: bool) -> int | Wait:
        wait = self._traffic.wait_of(path)
        if destination is not None and (until := self._sessions.blocked(destination)) is not None:
            if destination.blocked_by_policy:
                return max(0, UNKNOWN_ROOM - math.ceil(promised))
            blocked = Wait((until - self._clock()).total_seconds(), destination.reason)
            if wait is None or wait.seconds < blocked.seconds:
                wait = blocked
        if wait is not None and wait.seconds > PATIENCE:
            return wait._replace(seconds=self._traffic.postpone(path, wait))
        interval = self._traffic.interval(path)
        most = math.ceil(2 / interval) if interval else LEAST_ROOM + int(2 * self._traffic.measure(path))
        waiting = math.ceil(promised) + (len(destination.line) if destination is not None else 0)
        if destination is None or not destination.sessions:
            if self._traffic.full(path):
                return 0  # other workers of this node have its connections, and claim for them
            if (scarce := self._traffic.scarcest(path)) is not None:
                return self._room_beside(scarce, path, most - waiting, first=first)
        if waiting < most:
            return most - waiting
        before = "1 message is" if waiting == 1 else f"{waiting} messages are"
        why = f"{before} before it on the path {path}"
        return Wait(self._traffic.postpone(path, Wait(0.0, why)), why)

    def _room_beside(self, scarce: Scarce, path: Path, most: int, *, first: bool) -> int | Wait:
        """As `_room`, of a path without connection: all those that share one with it have this room together."""
        key = scarce.hold.meter.name, first
        promised = self._starving.get(key, 0)
        room = min(most, self._sessions.room_beside(scarce, first=first) - promised)
        if room > 0:
            self._starving[key] = promised + min(room, math.ceil(self._each))
            return room
        # With a connection of another worker, that one claims.
        return 0 if path.meter.held else self._traffic.line_up(scarce, first=first)


def _shared(lanes: Mapping[int, Mapping[str, Sequence[tuple[Queue, int]]]], room: int) -> dict[str, int]:
    """How much to claim of the queues of one tenant, by name; what fits of each is given."""
    wanted: dict[str, int] = {}
    for lane in sorted(lanes):
        part = max(1, room // len(lanes[lane]))
        for members in lanes[lane].values():
            each = max(1, part // len(members))
            for queue, fits in members:
                if (take := min(each, fits, room)) > 0:
                    wanted[queue.name] = take
                    room -= take
    return wanted
