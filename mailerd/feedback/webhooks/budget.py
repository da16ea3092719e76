"""How much all endpoints together hold in memory of what they are to be told. Pure."""

from mailerd.feedback.webhooks.bodies import Item

MOST_ITEMS = 20_000
MOST_BYTES = 32 * 1024 * 1024
OVERHEAD = 700  # bytes of an item beside its body
LEAST = 4  # items that any endpoint may hold, whatever the others do
SHARE = 8  # one endpoint holds no more than this part of what is left, so there is always something left


class Budget:
    """`take` what is held and `give` it back. What several endpoints hold counts for each."""

    def __init__(self) -> None:
        self.items = 0
        self.bytes = 0

    def take(self, item: Item) -> None:
        self.items += 1
        self.bytes += OVERHEAD + len(item.alone)

    def give(self, item: Item) -> None:
        self.items -= 1
        self.bytes -= OVERHEAD + len(item.alone)

    def room(self, held: int) -> int:
        """How many more items somebody may take who holds so many."""
        each = max(OVERHEAD, self.bytes // self.items) if self.items else OVERHEAD
        left = min(MOST_ITEMS - self.items, (MOST_BYTES - self.bytes) // each)
        return max(left // SHARE - held, LEAST - held)
