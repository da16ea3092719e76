"""From which of our addresses a message leaves: one of its pool's sources, by weight, as long as it may be used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mailerd.config import Config
from mailerd.delivery.routing import Host

MIX = 0x9E3779B97F4A7C15  # spreads consecutive ids evenly (Knuth's multiplicative hashing)


@dataclass(frozen=True, slots=True)
class Source:
    """One address of ours. `address` None: the system chooses; `ehlo` is what we call ourselves from there."""

    name: str
    address: str | None
    ehlo: str

    def reaches(self, address: str) -> bool:
        """Is the host's address of our family?"""
        return self.address is None or (":" in address) == (":" in self.address)


class Sources:
    """The sources of every pool. A pool without sources sends from whatever address the system chooses.

    `failing` says of each source that must not be used why not; it is read at every choice.
    """

    def __init__(self, config: Config, failing: Callable[[], Mapping[str, str]] = dict) -> None:
        self._failing = failing
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Other sources and pools."""
        self._system = [(Source("", None, config.hostname), 1)]
        self._pools = {
            name: [(_source(config, member.name), member.weight) for member in pool.sources if member.weight]
            for name, pool in config.pools.items()
        }

    def of(self, pool: str) -> list[Source]:
        """Those that may be used now."""
        members = self._members(pool)
        failing = self._failing()
        return [source for source, _ in members if source.name not in failing]

    def pools(self) -> list[str]:
        """The pools that can send from here now; the mail of others is left to other nodes, or waits."""
        return [name for name in self._pools if self.of(name)]

    def why_not(self, pool: str) -> str:
        """Why this node cannot send for the pool."""
        if pool not in self._pools:
            return f"there is no pool {pool} any more"
        failing = self._failing()
        names = [source.name for source, _ in self._pools[pool]]
        reasons = [f"{name}: {failing[name]}" for name in names if name in failing]
        return f"no source of pool {pool} may be used here: {'; '.join(reasons)}"

    def _members(self, pool: str) -> list[tuple[Source, int]]:
        """Source and weight; of a pool that a reload took away none: its mail waits."""
        members = self._pools.get(pool)
        return self._system if members == [] else members or []

    def choose(
        self, pool: str, message_id: int, hosts: Sequence[Host], avoided: Callable[[Source], bool] = lambda _: False
    ) -> list[Source]:
        """The sources to send this message from, best first; empty: none may be used.

        Each source is first for its weight's share of the messages, and always for the same ones, so that a host that
        remembers who asked (greylisting) sees the same address again. Sources that reach no host come last.
        """
        members = self._members(pool)
        if len(members) == 1 and not self._failing():
            return [members[0][0]]
        failing = self._failing()
        usable = [(source, weight) for source, weight in members if source.name not in failing]
        spot = (message_id * MIX & 0xFFFFFFFF) / 0x100000000
        ordered = []
        while usable:
            index = _at(usable, spot)
            ordered.append(usable.pop(index)[0])
        return sorted(
            ordered,
            key=lambda source: (avoided(source), bool(hosts) and not any(source.reaches(h.address) for h in hosts)),
        )


def _at(members: Sequence[tuple[Source, int]], spot: float) -> int:
    """Which member the fraction `spot` of all weights falls to."""
    left = spot * sum(weight for _, weight in members)
    for index, (_, weight) in enumerate(members):
        left -= weight
        if left < 0:
            return index
    return len(members) - 1


def _source(config: Config, name: str) -> Source:
    settings = config.sources[name]
    return Source(name, settings.address, settings.ehlo or config.hostname)
