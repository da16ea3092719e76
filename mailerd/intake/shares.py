"""How connections spread over the workers of one daemon.

All workers accept from the same sockets. Whoever is quick would take a whole burst, and one core would idle; so each
worker writes how many connections it has into a file that all have mapped, and one that is ahead of the others lets a
moment pass before it accepts again.
"""

import mmap
import struct
from pathlib import Path

COUNT = struct.Struct("<i")
SLACK = 1  # connections that one may be ahead
MOMENT = 0.001  # seconds: enough for an idle worker to wake up and accept


class Shares:
    """The counts of all workers; ours is in `slot`."""

    def __init__(self, path: Path, slot: int, slots: int) -> None:
        size = slots * COUNT.size
        with path.open("ab") as file:  # every worker may be the first
            if file.tell() != size:
                file.truncate(size)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._slot = slot
        self._count = 0
        self._write()

    def change(self, amount: int) -> None:
        """So many connections more, or less."""
        self._count += amount
        self._write()

    @property
    def ahead(self) -> bool:
        """Has another worker clearly fewer connections?"""
        least: int = min(count for (count,) in COUNT.iter_unpack(self._map))
        return least + SLACK < self._count

    def _write(self) -> None:
        COUNT.pack_into(self._map, self._slot * COUNT.size, self._count)
