"""What one claim may take of each queue, so that what is claimed of all of them fits where it goes."""

import math
from collections import Counter

from mailerd.delivery.destination import Key
from mailerd.queue.mail import Queue


class Promises:
    """What a claim promises the queues of one destination: to each what a queue gives on the average, or its share.

    So what is claimed of all of them fits, and the room is used when there are few of them.
    """

    def __init__(self, each: float) -> None:
        self._each = each
        self._rooms: dict[Key, int] = {}  # before anything was promised
        self._promised: Counter[Key] = Counter()  # to how many queues
        self._keys: dict[str, list[Key]] = {}  # of a queue

    def of(self, key: Key) -> float:
        """How many recipients are promised."""
        return self._promised[key] * self._each

    def make(self, queue: Queue, key: Key, room: int) -> None:
        if room > 0:
            self._rooms.setdefault(key, room)
            self._promised[key] += 1
            self._keys.setdefault(queue.name, []).append(key)

    def share(self, queue: Queue, found: int) -> int:
        """How many recipients may be claimed of the queue, which has found so much room."""
        keys = self._keys.get(queue.name)
        if keys is None:  # its way is not known yet
            return found
        return sum(math.ceil(max(self._each, self._rooms[key] / self._promised[key])) for key in keys)
