"""What this worker holds in memory: counted, bounded by recipients and bytes, with room kept for what goes first.

Mail that was just accepted, mail that was claimed, and mail that goes first (the lanes of precedence 0) each find room
that the others cannot take, so that a backlog of bulk mail delays nobody's password reset.
"""

from collections import Counter
from collections.abc import Sequence

from mailerd.config import Delivery
from mailerd.queue.mail import Message, Recipient

FIRST_LANES = 3  # lanes below go first: precedence 0, any priority
ACCEPTED = 0.5  # of the memory, for accepted bulk mail,
CLAIMED = 0.75  # claimed bulk mail,
ACCEPTED_FIRST = 0.9  # accepted mail that goes first; when it is claimed, it may have all
QUEUE_SHARE = 0.5  # of the memory may be taken by one queue
ROOMY = 0.75  # of that share: when less is taken it may have more


class Memory:
    """Counts recipients and bytes in hand."""

    def __init__(self, limits: Delivery) -> None:
        self._limits = limits
        self.recipients = 0
        self.bytes = 0
        self.of_queue: Counter[str] = Counter()
        self.of_flow: Counter[str] = Counter()
        self.in_hand: Counter[tuple[int, int]] = Counter()  # twice, for a moment, what is claimed as it is put back

    def reconfigure(self, limits: Delivery) -> None:
        self._limits = limits

    def has_room_for(self, message: Message) -> bool:
        """Does a message fit that is about to be accepted?"""
        share = ACCEPTED_FIRST if message.lane < FIRST_LANES else ACCEPTED
        limits = self._limits
        return (
            self.recipients + len(message.recipients) <= limits.memory_messages * share
            and self.bytes + message.weight <= limits.memory_bytes * share
        )

    def room_to_accept(self, weight: int) -> int:
        """How many more accepted bulk messages of this weight and one recipient fit."""
        limits = self._limits
        recipients = limits.memory_messages * ACCEPTED - self.recipients
        return max(0, int(min(recipients, (limits.memory_bytes * ACCEPTED - self.bytes) / weight)))

    def room_of_campaign(self, flow: str, weight: int) -> int:
        """How many more of one campaign are accepted: with them it holds half as much as is free then, at most.

        So however many campaigns are stuck, there is room for one that is not.
        """
        return self._share_left(flow, self.room_to_accept(weight))

    def room_to_claim_of_campaign(self, flow: str) -> int:
        """The same of what may be claimed."""
        return self._share_left(flow, self.room_to_claim(first=False))

    def _share_left(self, flow: str, room: int) -> int:
        return max(0, -(-(room - 2 * self.of_flow[flow]) // 3))

    def room_to_claim(self, *, first: bool) -> int:
        """Recipients that may be claimed; `first`: of the lanes that go first."""
        limits = self._limits
        share = 1.0 if first else CLAIMED
        if self.bytes >= limits.memory_bytes * share:
            return 0
        return max(0, int(limits.memory_messages * share) - self.recipients)

    @property
    def bytes_left(self) -> int:
        return max(0, self._limits.memory_bytes - self.bytes)

    @property
    def nearly_full(self) -> bool:
        """Is there little room left for bulk mail that is claimed?"""
        return self.room_to_claim(first=False) < self._limits.memory_messages / 8

    @property
    def half_empty(self) -> bool:
        return self.recipients < self._limits.memory_messages * ACCEPTED

    def crowded(self, queue: str) -> bool:
        return self.of_queue[queue] >= self._limits.memory_messages * QUEUE_SHARE

    def roomy(self, queue: str) -> bool:
        """Is a good part free again of what one queue may have?"""
        return self.of_queue[queue] < self._limits.memory_messages * QUEUE_SHARE * ROOMY

    def take(self, message: Message) -> None:
        """It is in our hands now."""
        message.in_hand = len(message.recipients)
        self.recipients += message.in_hand
        self.bytes += message.weight
        self.of_flow[message.flow] += message.in_hand
        for recipient in message.recipients:
            self.of_queue[recipient.queue] += 1
            self.in_hand[message.id, recipient.n] += 1

    def release(self, recipients: Sequence[Recipient]) -> None:
        """These are settled."""
        for recipient in recipients:
            message = recipient.message
            self.recipients -= 1
            message.in_hand -= 1
            if not message.in_hand:
                self.bytes -= message.weight
                # Message and recipients refer to each other: what is large must not wait for the garbage collector.
                message.content = message.signature = None
            self.of_flow[message.flow] -= 1
            if not self.of_flow[message.flow]:
                del self.of_flow[message.flow]
            queue = recipient.queue
            self.of_queue[queue] -= 1
            if not self.of_queue[queue]:
                del self.of_queue[queue]
            key = message.id, recipient.n
            self.in_hand[key] -= 1
            if not self.in_hand[key]:
                del self.in_hand[key]
