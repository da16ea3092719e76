"""From which of our addresses a message leaves: one of its pool's sources, by weight."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from mailerd.config import Config


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
    """The sources of every pool. A pool without sources sends from whatever address the system chooses."""

    def __init__(self, config: Config, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._system = Source("", None, config.hostname)
        self._pools: Mapping[str, tuple[list[Source], list[int]]] = {
            name: (
                [_source(config, member.name) for member in pool.sources if member.weight],
                [member.weight for member in pool.sources if member.weight],
            )
            for name, pool in config.pools.items()
        }

    def pick(self, pool: str) -> Source:
        """A source of the pool; each gets its weight's share of the picks."""
        sources, weights = self._pools.get(pool, ([], []))
        if not sources:
            return self._system
        return sources[0] if len(sources) == 1 else self._rng.choices(sources, weights)[0]


def _source(config: Config, name: str) -> Source:
    settings = config.sources[name]
    return Source(name, settings.address, settings.ehlo or config.hostname)
