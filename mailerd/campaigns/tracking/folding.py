"""The same hit again and again is counted, not written each time: replayed tokens cost memory of one record. Pure.

The first hit of a moment is written at once. Others like it (same message, link, method, network and agent) within
`WINDOW` are added up, and written as one record when the window ends. Where more different ones come of one message
than `PER_MESSAGE` in `PERIOD`, they are taken as alike whatever their network and agent: whoever has a token can vary
these at will. Nothing is lost but at kill -9, when a repetition of the last second may be.
"""

from ipaddress import IPv6Address

from msgspec.structs import replace

from mailerd.campaigns.tracking.records import Hit

WINDOW = 1_000_000  # microseconds
PERIOD = 60_000_000
PER_MESSAGE = 30  # records
MANY = 10_000  # of either; then the window or the period ends early

Key = tuple[str, int, int, str, str, str]


def network_of(ip: str) -> str:
    """The /24 of an IPv4 address, the /64 of an IPv6 address; what is no address stands for itself."""
    if ":" not in ip:
        return ip.rpartition(".")[0] or ip
    try:
        address = IPv6Address(ip.partition("%")[0])
    except ValueError:
        return ip
    return network_of(str(address.ipv4_mapped)) if address.ipv4_mapped else address.exploded[:19]


class Folding:
    """`take` each hit, `end` the window from time to time: both return what is to be written now."""

    def __init__(self) -> None:
        self._open: dict[Key, Hit] = {}  # written once already; `times` counts those that were not
        self._began = 0
        self._records: dict[int, int] = {}  # of each message in this period
        self._period = 0

    def take(self, hit: Hit) -> list[Hit]:
        """The records to write now: those of a window that has ended, then this one unless it repeats another."""
        due = self.end(hit.at)
        key = self._key(hit)
        known = self._open.get(key)
        if known is not None:
            self._open[key] = replace(known, times=known.times + hit.times)
            return due
        if not self._open:
            self._began = hit.at
        self._open[key] = replace(hit, times=0)
        self._records[hit.message_id] = self._records.get(hit.message_id, 0) + 1
        due.append(hit)
        return due

    def end(self, now: int) -> list[Hit]:
        """The repetitions of a window that has ended by `now` (microseconds), or by their number."""
        if not 0 <= now - self._period < PERIOD or len(self._records) >= MANY:
            self._records.clear()
            self._period = now
        if not self._open or (0 <= now - self._began < WINDOW and len(self._open) < MANY):
            return []
        return self.all()

    def all(self) -> list[Hit]:
        """The repetitions so far."""
        repeated = [hit for hit in self._open.values() if hit.times]
        self._open.clear()
        return repeated

    def _key(self, hit: Hit) -> Key:
        exact = (hit.kind, hit.message_id, hit.link, hit.method, network_of(hit.ip), hit.user_agent)
        if exact in self._open or self._records.get(hit.message_id, 0) < PER_MESSAGE:
            return exact
        return (hit.kind, hit.message_id, hit.link, hit.method, "", "")
