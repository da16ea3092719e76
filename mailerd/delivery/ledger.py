"""What the workers of one node count together: open connections and rates.

The counts stand in a file that all workers have mapped. A change is made under a lock on that file, which the kernel
frees when its holder dies, and takes a few microseconds. A rate is kept as one date, the *theoretical arrival time* of
the generic cell rate algorithm (GCRA, ITU-T I.371): when the debt of what was taken will have run out.

The main process holds the file open and hands it to the workers, who so count in one whatever becomes of its name.

Layout: a header and a flag, then four tables with a row for every record: key, numbers, connections of every worker,
name. Rows are found by open addressing: a name stands within `WINDOW` rows of its home, before any row that was never
used.
"""

import fcntl
import math
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import structlog

from mailerd.queue.journal import boot_id

RECORDS = 16_384
WINDOW = 64  # rows in which a name may stand
NAME = 240  # bytes of a name that readers get to see
STATE = 8  # numbers of a record that belong to its users
SLACK = 1.01  # intervals are longer by this: between our clock and the receiver's lies a network
TOLERANCE = 1e-9  # seconds of waiting that are rounding, not debt
STALE = 3600.0  # seconds untouched after which a row is given away before a new one is used
FULL = 1.0  # seconds to wait when no row is free

MAGIC = b"mailerd ledger 1"
HEADER = struct.Struct("=16sII64s")  # magic, slots, records, boot id: a monotonic clock means nothing after a boot
ALONE = 1024  # byte with the flag: 0 when no other node shares our limits
PAGE = 4096  # bytes before the tables
TAT, INTERVAL, TOUCHED, OWN = 0, 1, 2, 3  # columns of the numbers; `OWN` begins the state
NUMBERS = 12  # columns, the last one unused
STATES = struct.Struct(f"={STATE}d")
BLANK = (0.0,) * STATE

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

State = tuple[float, ...]  # of length `STATE`
Wait = tuple[int, float]  # which of the charges or holds binds, and for how many seconds


class Charge(NamedTuple):
    """`amount` units at one unit every `interval` seconds (0: unbounded), `burst` seconds of which may be ahead."""

    meter: "Meter"
    interval: float
    amount: float = 1.0
    burst: float = 0.0


class Hold(NamedTuple):
    """One connection, of which all workers together may have `limit`."""

    meter: "Meter"
    limit: int


class Record(NamedTuple):
    """A meter as others see it. `tat` and `touched` are seconds of the monotonic clock; `tat` -inf: never charged."""

    name: str
    held: int
    holders: tuple[int, ...]  # connections of each worker
    tat: float
    interval: float  # seconds per unit when last charged, without slack
    touched: float
    state: State


class Meter:
    """A name that things are counted under, the same in all workers. Made by `Ledger.meter`."""

    __slots__ = ("_ledger", "key", "name", "row")

    def __init__(self, ledger: "Ledger", name: str, key: int) -> None:
        self._ledger = ledger
        self.name = name
        self.key = key
        self.row = 0  # where it stood last; another key there: the row was given to others

    @property
    def held(self) -> int:
        """Connections of all workers."""
        return self._ledger.held(self)

    @property
    def mine(self) -> int:
        """Connections of this worker."""
        return self._ledger.mine(self)

    def state(self) -> State:
        """What `Ledger.update` left; zeros when nothing."""
        return self._ledger.state(self)

    def __repr__(self) -> str:
        return f"Meter({self.name!r})"


class Ledger:
    """The counts of one node, used by the worker in `slot` of `slots`: by its process, in one thread.

    Opening frees what the slot held: its last owner is dead. Whoever comes first makes the file; one of another
    version, size or boot is replaced, so those who use it at one time must agree on `slots`. OSError when the disk has
    no room for all of it: it is taken at once, because a mapped hole on a full disk would kill the worker later.

    Rates: a span of `n * interval` seconds sees at most n units, and with a burst at most `burst / interval` more. A
    charge of many units is let through when there is no debt, and what comes after waits for it. When an interval
    changes, debts keep their units. `now` is read from `clock` by the caller; a clock that stands still or goes back
    lets nothing more through.

    A row without connections and debt may be given to another name, the one untouched longest first; only its state
    is lost. When none is free, whatever needs one is told to wait: no limit is ever exceeded.
    """

    def __init__(
        self,
        path: Path,
        slot: int,
        slots: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        records: int = RECORDS,
    ) -> None:
        if not 0 <= slot < slots:
            raise ValueError(f"slot {slot} of {slots}")
        self._use(open_ledger(path, slots, records), slot, slots, records, boot_id(), clock)
        self.forget(slot)

    def _use(self, file: FileIO, slot: int, slots: int, records: int, salt: bytes, clock: Callable[[], float]) -> None:
        self.slot, self._slots, self._rows = slot, slots, records
        self._clock = clock
        self._warned = False
        self._salt = salt
        self._file = file
        self._fd = file.fileno()
        self._map = mmap.mmap(self._fd, 0)
        self._tables = _Tables(memoryview(self._map), slots, records)
        self._keys, self._numbers, self._held = self._tables.keys, self._tables.numbers, self._tables.held

    @classmethod
    def look(cls, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> "Ledger":
        """A copy of what the workers count, for who only looks: its changes are seen by nobody. None: an empty one.

        Raises OSError or ValueError when there is no ledger, or one from before the last boot.
        """
        salt = boot_id()
        slots, records = 1, RECORDS
        if path is None:
            contents = HEADER.pack(MAGIC, slots, records, salt)
        else:
            contents = path.read_bytes()
            magic, slots, records, made_in = HEADER.unpack_from(contents.ljust(HEADER.size, b"\0"))
            if magic != MAGIC or len(contents) != _Tables.size(slots, records):
                raise ValueError(f"{path} is not a ledger of this version")
            if made_in != HEADER.unpack(HEADER.pack(MAGIC, slots, records, salt))[3]:
                raise ValueError(f"{path} is from before the last boot")
        ledger = cls.__new__(cls)
        file = FileIO(os.memfd_create("mailerd ledger"), "r+")
        file.truncate(_Tables.size(slots, records))
        file.write(contents)
        ledger._use(file, 0, slots, records, salt, clock)
        return ledger

    def close(self) -> None:
        """Give back what is held and unmap; the ledger cannot be used afterwards."""
        self.forget(self.slot)
        self._tables.release()
        self._map.close()
        self._file.close()

    @property
    def alone(self) -> bool:
        """Whether no other node shares our limits, as was last said. In no row, so that no name can push it out."""
        return not self._map[ALONE]

    @alone.setter
    def alone(self, alone: bool) -> None:
        self._map[ALONE] = not alone

    def meter(self, name: str) -> Meter:
        """The meter of that name. Cheap, and no row is used before the first charge, hold or update."""
        key = int.from_bytes(blake2b(_encoded(name), digest_size=8, key=self._salt).digest(), "little")
        return Meter(self, name, key or 1)

    def take(self, charges: Sequence[Charge], now: float) -> Wait | None:
        """Charge all and return None; or none, and return which makes us wait longest, and seconds.

        No two may be of the same meter. Raises ValueError, nothing being taken, for an interval that is no number.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            wait = self._wait((), charges, now)
            if wait is None:
                self._charge(charges, now)
            return wait
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def peek(self, charges: Sequence[Charge], now: float) -> Wait | None:
        """What `take` would return now."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            return self._wait((), charges, now)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def hold(self, holds: Sequence[Hold], charges: Sequence[Charge], now: float) -> Wait | None:
        """Take one connection of each and charge all; or nothing, and return (index into holds + charges, seconds).

        A hold without room comes before any charge, with 0.0 seconds: until somebody releases one, which nobody is
        told. No two holds may be of the same meter, and no two charges.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            wait = self._wait(holds, charges, now)
            if wait is None:
                self._charge(charges, now)
                for meter, _ in holds:
                    self._held[meter.row * self._slots + self.slot] += 1
                    self._numbers[meter.row * NUMBERS + TOUCHED] = now
            return wait
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def release(self, holds: Sequence[Hold]) -> None:
        """Give back one connection of each that `hold` took. What was freed by `forget` meanwhile is left alone."""
        for meter, _ in holds:  # without the lock: nobody else writes this column, and a held row stays where it is
            if self.mine(meter):
                self._held[meter.row * self._slots + self.slot] -= 1

    def update(self, meter: Meter, function: Callable[[State], State]) -> State:
        """Replace the meter's state by what the function makes of it, and return that.

        All workers wait meanwhile; the function must not use the ledger.
        """
        now = self._clock()
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if self._keys[meter.row] != meter.key and not self._place([meter], now):
                return function(BLANK)  # cannot be kept
            own = (meter.row * NUMBERS + OWN) * 8
            state = function(STATES.unpack_from(self._tables.packed, own))
            STATES.pack_into(self._tables.packed, own, *state)
            self._numbers[meter.row * NUMBERS + TOUCHED] = now
            return state
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def state(self, meter: Meter) -> State:
        """See `Meter.state`."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if not self._found(meter):
                return BLANK
            return STATES.unpack_from(self._tables.packed, (meter.row * NUMBERS + OWN) * 8)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def holders(self, meter: Meter) -> Sequence[int]:
        """Connections of each worker."""
        if not self._found(meter):
            return (0,) * self._slots
        return self._held[meter.row * self._slots : (meter.row + 1) * self._slots].tolist()

    def held(self, meter: Meter) -> int:
        """See `Meter.held`."""
        row, slots = meter.row, self._slots
        if self._keys[row] != meter.key:
            if not self._keys[meter.key % self._rows] or not self._found(meter):  # the first look is enough mostly
                return 0
            row = meter.row
        return sum(self._held[row * slots : row * slots + slots])

    def mine(self, meter: Meter) -> int:
        """See `Meter.mine`."""
        return self._held[meter.row * self._slots + self.slot] if self._found(meter) else 0

    def forget(self, slot: int) -> None:
        """Free all connections of a worker that is dead."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._held[slot :: self._slots] = memoryview(array("I", bytes(4 * self._rows)))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def records(self) -> list[Record]:
        """All records, read without stopping anybody: one may be a moment older than another."""
        return list(self._tables.records())

    def _wait(self, holds: Sequence[Hold], charges: Sequence[Charge], now: float) -> Wait | None:
        keys, numbers, slots = self._keys, self._numbers, self._slots
        for index, (meter, limit) in enumerate(holds):
            row = meter.row
            if keys[row] != meter.key:
                if not self._place(_meters(holds, charges), now):
                    return index, FULL
                row = meter.row
            if sum(self._held[row * slots : row * slots + slots]) >= limit:
                return index, 0.0
        binding, longest = -1, TOLERANCE
        for index, (meter, interval, _, burst) in enumerate(charges, len(holds)):
            if keys[meter.row] != meter.key and not self._place(_meters(holds, charges), now):
                return index, FULL
            if not 0.0 <= interval < math.inf:  # it would stay in the debt for ever
                raise ValueError(f"interval of {interval} seconds for {meter.name}")
            first = meter.row * NUMBERS
            debt = numbers[first] - now
            if debt > 0.0 and interval:
                if interval != numbers[first + INTERVAL]:  # also when refused: from now on it runs out at this rate
                    debt *= interval / numbers[first + INTERVAL]
                    numbers[first] = now + debt
                    numbers[first + INTERVAL] = interval
                if debt - burst > longest:
                    binding, longest = index, debt - burst
        return None if binding < 0 else (binding, longest)

    def _charge(self, charges: Sequence[Charge], now: float) -> None:
        numbers = self._numbers
        for meter, interval, amount, _ in charges:
            if interval:
                first = meter.row * NUMBERS
                numbers[first] = max(numbers[first], now) + amount * interval * SLACK
                numbers[first + INTERVAL] = interval
                numbers[first + TOUCHED] = now

    def _found(self, meter: Meter) -> bool:
        """Has the meter a row? If so, `meter.row` is it."""
        if self._keys[meter.row] == meter.key:
            return True
        for row in self._window(meter.key):
            if self._keys[row] == meter.key:
                meter.row = row
                return True
            if not self._keys[row]:
                break
        return False

    def _place(self, meters: Sequence[Meter], now: float) -> bool:
        """Find or make the rows of all; False when there is no room. Under the lock."""
        missing = []
        for meter in meters:
            if self._found(meter):
                self._numbers[meter.row * NUMBERS + TOUCHED] = now  # so that none is given to another of them
            else:
                missing.append(meter)
        for meter in missing:
            if self._found(meter):
                continue  # another object of the same name
            row = self._free_row(meter.key, now)
            if row is None:
                self._warn(meter)
                return False
            self._tables.begin(row, meter, now)
            meter.row = row
        return True

    def _free_row(self, key: int, now: float) -> int | None:
        """A row that may be given to the key: a stale one, else a new one, else the one untouched longest."""
        eldest: int | None = None
        since = now
        for row in self._window(key):
            if not self._keys[row]:
                return eldest if since < now - STALE else row
            touched = self._numbers[row * NUMBERS + TOUCHED]
            if touched < since and self._is_idle(row, now):
                eldest, since = row, touched
        return eldest

    def _is_idle(self, row: int, now: float) -> bool:
        return self._numbers[row * NUMBERS + TAT] <= now and not any(
            self._held[row * self._slots : (row + 1) * self._slots]
        )

    def _window(self, key: int) -> Iterator[int]:
        home = key % self._rows
        return (row % self._rows for row in range(home, home + min(WINDOW, self._rows)))

    def _warn(self, meter: Meter) -> None:
        if not self._warned:
            self._warned = True
            log.warning("ledger.full", meter=meter.name, records=self._rows)


class _Tables:
    """The tables of a mapped ledger, as arrays."""

    def __init__(self, view: memoryview, slots: int, records: int) -> None:
        self._slots, self._records = slots, records
        ends = [PAGE]
        for width in (8, 8 * NUMBERS, 4 * slots, 1 + NAME):
            ends.append(ends[-1] + width * records)
        parts = [view[start:end] for start, end in pairwise(ends)]
        self.packed = parts[1]
        self.keys: memoryview[int] = parts[0].cast("Q")
        self.numbers: memoryview[float] = parts[1].cast("d")
        self.held: memoryview[int] = parts[2].cast("I")
        self.names = parts[3]
        self._views: list[memoryview[int] | memoryview[float]] = [self.keys, self.numbers, self.held, *parts, view]

    @staticmethod
    def size(slots: int, records: int) -> int:
        return PAGE + records * (8 + 8 * NUMBERS + 4 * slots + 1 + NAME)

    def begin(self, row: int, meter: Meter, now: float) -> None:
        """Give the row to the meter. The key is last: who dies before it leaves the former owner there, unused."""
        self.numbers[row * NUMBERS + TAT] = -math.inf
        self.numbers[row * NUMBERS + INTERVAL] = 0.0
        self.numbers[row * NUMBERS + TOUCHED] = now
        for column in range(OWN, OWN + STATE):
            self.numbers[row * NUMBERS + column] = 0.0
        name = _encoded(meter.name)[:NAME]
        self.names[row * (1 + NAME) : row * (1 + NAME) + 1 + len(name)] = bytes([len(name)]) + name
        self.keys[row] = meter.key

    def records(self) -> Iterator[Record]:
        for row, key in enumerate(self.keys.tolist()):
            if key:
                yield self._record(row)

    def release(self) -> None:
        for view in self._views:
            view.release()

    def _record(self, row: int) -> Record:
        numbers = self.numbers[row * NUMBERS : row * NUMBERS + OWN + STATE].tolist()
        holders = tuple(self.held[row * self._slots : (row + 1) * self._slots])
        start = row * (1 + NAME) + 1
        name = bytes(self.names[start : start + self.names[start - 1]]).decode(errors="ignore")
        return Record(
            name, sum(holders), holders, numbers[TAT], numbers[INTERVAL], numbers[TOUCHED], tuple(numbers[OWN:])
        )


def _encoded(name: str) -> bytes:
    return name.encode(errors="backslashreplace")  # what came over a wire may be no Unicode


def _meters(holds: Sequence[Hold], charges: Sequence[Charge]) -> list[Meter]:
    return [hold.meter for hold in holds] + [charge.meter for charge in charges]


def handed_on(descriptor: int) -> Path:
    """The path of a ledger whose descriptor this process inherited, also when the file has no name any more.

    To be opened anew: with one open file for all, the lock would shut out nobody.
    """
    return Path(f"/proc/self/fd/{descriptor}")


def open_ledger(path: Path, slots: int, records: int = RECORDS) -> FileIO:
    """The file of a ledger; made, with all its disk space, when there is none that fits. Raises OSError."""
    return _open(path, HEADER.pack(MAGIC, slots, records, boot_id()), _Tables.size(slots, records))


def _open(path: Path, header: bytes, size: int) -> FileIO:
    """The file with that header and size. One that differs is replaced, never cut: others may have it mapped."""
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not replaced while we waited
                if os.fstat(file.fileno()).st_size == size and file.read(len(header)) == header:
                    fcntl.flock(file, fcntl.LOCK_UN)
                    return file
                _make(path, header, size)
        except BaseException:
            file.close()
            raise
        file.close()


def _make(path: Path, header: bytes, size: int) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        file.write(header)
    new.replace(path)
