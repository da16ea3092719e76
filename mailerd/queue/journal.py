"""The worker's journal: which recipients may have been delivered although no reply is recorded yet.

A small file mapped into memory. A slot is written right before the final dot of a transaction is sent, changed when the
host says that it has taken the mail, and cleared when the result is in the database. kill -9 leaves the page cache
intact, so whoever cleans up after the worker reads exactly what was open, and what was delivered. A crash of the whole
machine may not: the file carries the boot id, and one of another boot is not believed.
"""

import mmap
import os
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path

SLOT = struct.Struct("<qi")  # message id, n, or -n once the host has taken it; a free slot has message id 0
HEADER = 64  # bytes: the boot id
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    return BOOT_ID.read_bytes().strip().ljust(HEADER, b"\0")[:HEADER]


class Journal:
    """The slots of one worker. A journal with every slot taken tells nothing: `read()` then answers None."""

    def __init__(self, path: Path, slots: int = 16_384) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            # Not `truncate`: a page that finds no room on the disk when it is first written to would be our death.
            os.posix_fallocate(file.fileno(), 0, HEADER + slots * SLOT.size)
            self._map = mmap.mmap(file.fileno(), HEADER + slots * SLOT.size)
        self._map[:HEADER] = boot_id()
        self._path = path
        self._free = array("I", range(HEADER + (slots - 1) * SLOT.size, HEADER - 1, -SLOT.size))  # 4 bytes each, not 40
        self._taken: dict[tuple[int, int], int] = {}

    def open(self, message_id: int, n: int) -> None:
        """The final dot for this recipient is about to be sent."""
        if self._free and (message_id, n) not in self._taken:
            offset = self._taken[message_id, n] = self._free.pop()
            SLOT.pack_into(self._map, offset, message_id, n)

    def delivered(self, message_id: int, n: int) -> None:
        """The host has taken it, which is not in the database yet."""
        if (offset := self._taken.get((message_id, n))) is not None:
            SLOT.pack_into(self._map, offset, message_id, -n)

    def close(self, message_id: int, n: int) -> None:
        """The result for this recipient is in the database."""
        offset = self._taken.pop((message_id, n), None)
        if offset is not None:
            SLOT.pack_into(self._map, offset, 0, 0)
            self._free.append(offset)

    def has(self, message_id: int, n: int) -> bool:
        """Is this one open now?"""
        return (message_id, n) in self._taken

    def taken(self) -> list[tuple[int, int]]:
        """What is open now."""
        return list(self._taken)

    def read(self) -> list[tuple[int, int]] | None:
        """What `read(path)` would answer now."""
        return read(self._path)

    def remove(self) -> None:
        """An orderly end: nothing is open."""
        self._map.close()
        self._path.unlink(missing_ok=True)


def read(path: Path) -> list[tuple[int, int]] | None:
    """What a dead worker left open, (message id, n), or (message id, -n) if it was delivered; None: it cannot tell."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if data[:HEADER] != boot_id() or (len(data) - HEADER) % SLOT.size:
        return None
    slots: Iterable[tuple[int, int]] = SLOT.iter_unpack(data[HEADER:])
    taken = [slot for slot in slots if slot[0]]
    return None if len(taken) == (len(data) - HEADER) // SLOT.size else taken
