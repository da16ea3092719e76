"""What binds on a path: its connections and rates, from limits, brakes and what was learnt, as holds and charges.

They are made anew when something that they rest on has changed, and then cost a message nothing but the counting.
"""

import math
import time
from collections.abc import Callable
from datetime import datetime

from mailerd.config import Config, Rate
from mailerd.config.shaping import Limits
from mailerd.config.values import ByteRate
from mailerd.delivery.control import Pace
from mailerd.delivery.effects import Effects
from mailerd.delivery.grants import Grants
from mailerd.delivery.ledger import Charge, Hold, Ledger
from mailerd.delivery.paths import Cause, Path
from mailerd.delivery.shaping import RuleBook

WISH_AGAIN = 3.0  # seconds: what other nodes want too has to be asked for as long as it is used
LOOK_EVERY = 0.05  # seconds between looks at what other workers made of a path's pace
BYTES = "#bytes"  # ends the name of a meter that counts them
MANY = 1 << 20  # connections
JITTER = 0.25  # seconds between the moments at which something leaves us and is counted by a receiver,
MOST_JITTER = 0.1  # of a period: more of a short one would cost too much
WISH, WISH_FIRST = "!!", "!"  # end the names of meters that count who waits for a connection of another
SCOPES = {
    "per_path": "{path}",
    "per_source": "{source} to all of {path.provider}",
    "per_site": "all sources to {path.site}",
    "total": "all sources to {path.provider}",
}

Bound = tuple[list[Charge], list[Cause]]


class Bounds:
    """Makes holds and charges. An interval of inf: this node has no part yet of what all nodes share."""

    def __init__(
        self,
        config: Config,
        book: RuleBook,
        *,
        ledger: Ledger,
        effects: Effects,
        grants: Grants,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._book = book
        self._ledger = ledger
        self._effects = effects
        self._grants = grants
        self._clock = clock
        self._now = monotonic
        self._generation = 0

    def reconfigure(self, config: Config, book: RuleBook) -> None:
        """Other limits."""
        self._config = config
        self._book = book
        self._generation += 1

    def renew(self, path: Path) -> None:
        """Make the path's holds and charges anew when something they rest on has changed."""
        now = self._now()
        control = self._config.delivery.control
        if control and now - path.looked > LOOK_EVERY:
            path.pace = Pace.unpack(path.meter.state(), now)
            path.looked = now
        generation = self._generation + self._effects.generation + self._grants.generation  # none of them goes back
        if path.pace is path.renewed_for and generation == path.generation and path.ends > now:
            return
        path.renewed_for, path.generation = path.pace, generation
        known = (
            self._effects.generation,
            self._generation + self._grants.generation,
            _rounded(path.pace.interval) if control else 0.0,
            path.pace.connections(MANY) if control else MANY,
        )
        if known != path.known or path.ends <= now:
            path.known = known
            self._make(path)

    def _make(self, path: Path) -> None:
        clock, now = self._clock(), self._now()
        effects = [e for e in self._effects.of_path(path.source, path.provider, path.site) if e.until > clock]
        path.ends = min((now + (e.until - clock).total_seconds() for e in effects), default=math.inf)
        if not self._grants.alone():
            path.ends = min(path.ends, now + WISH_AGAIN)
        path.paused = next((effect for effect in effects if effect.kind == "pause"), None)
        limits = path.limits
        path.holds, path.hold_causes = [], []
        path.opening, path.opening_causes = [], []
        path.charges, path.causes = [], []
        # The pace of the path's own meter: the slowest of its limit, the brakes and what was learnt.
        _, _, interval, window = path.known
        allowed = [(window, Cause("connections learnt from its replies", "delivery.control"))]
        slowest = [(interval, Cause("rate learnt from its replies", "delivery.control"))]
        for effect in effects:
            cause = Cause(f"effect {effect.id}: {effect}", effect.rule)
            if effect.kind == "connections":
                allowed.append((max(1, int(effect.value)), cause))
            elif effect.kind == "slow" and effect.value > 0:
                slowest.append((1 / effect.value, cause))
        if limits.per_path.connections is not None:
            allowed.append((limits.per_path.connections, self._cause(path, "per_path", "connections")))
        if limits.per_path.message_rate is not None:
            slowest.append((_interval(limits.per_path.message_rate), self._cause(path, "per_path", "message_rate")))
        most, cause = min(allowed, key=lambda each: each[0])
        path.holds.append(Hold(path.meter, most))
        path.hold_causes.append(cause)
        gap, cause = max(slowest, key=lambda each: each[0])
        if gap > 0:
            path.charges.append(Charge(path.meter, gap))
            path.causes.append(cause)
        self._add(path, "per_path", str(path.meter.name), own=False)
        self._add(path, "per_source", f"{path.source}@{path.provider}", own=True)
        self._add(path, "per_site", f"site {path.site}", own=True, shared=True)
        self._add(path, "total", f"provider {path.provider}", own=True, shared=True)
        names = [hold.meter.name for hold in path.holds]
        path.wishes = [(self._ledger.meter(name + WISH_FIRST), self._ledger.meter(name + WISH)) for name in names]

    def _add(self, path: Path, scope: str, name: str, *, own: bool, shared: bool = False) -> None:
        """The limits of one scope, counted by meters of that name; `shared`: over all nodes."""
        limits: Limits = getattr(path.limits, scope)
        if own and limits.connections is not None:
            most = self._grants.connections(name, limits.connections) if shared else limits.connections
            path.holds.append(Hold(self._ledger.meter(name), most))
            path.hold_causes.append(self._cause(path, scope, "connections"))
        if limits.connection_rate is not None:
            gap = self._gap(f"{name}#open", limits.connection_rate, shared=shared)
            path.opening.append(Charge(self._ledger.meter(f"{name}#open"), gap))
            path.opening_causes.append(self._cause(path, scope, "connection_rate"))
        if own and limits.message_rate is not None:
            gap = self._gap(f"{name}#messages", limits.message_rate, shared=shared)  # connections are shared as `name`
            path.charges.append(Charge(self._ledger.meter(name), gap))
            path.causes.append(self._cause(path, scope, "message_rate"))
        if limits.byte_rate is not None:
            gap = self._gap(f"{name}{BYTES}", limits.byte_rate, shared=shared)
            path.charges.append(Charge(self._ledger.meter(f"{name}{BYTES}"), gap))
            path.causes.append(self._cause(path, scope, "byte_rate"))

    def _gap(self, name: str, rate: Rate | ByteRate, *, shared: bool) -> float:
        """Seconds between two units, on this node; inf while it has no part of what is shared."""
        share = self._grants.share(name) if shared else 1.0
        if share == 0:
            return math.inf
        # Whole units in the period: the nodes' windows must not add up to more.
        units = share * _count(rate)
        return _period(rate) / (math.floor(units + 1e-9) or units)

    def _cause(self, path: Path, scope: str, key: str) -> Cause:
        name = f"{SCOPES[scope].format(path=path, source=path.source or 'this host')}: {key.replace('_', ' ')}"
        value = getattr(getattr(path.limits, scope), key)
        allows = "" if key == "connections" else str(value)
        return Cause(name, self._book.place(path.provider, scope, key), allows=allows)

    def of_mail(self, tenant: str, campaign: str, credential: str, domain: str) -> Bound:
        """The rates of one tenant's, campaign's, credential's and domain's mail."""
        charges, causes = self.of_flow(tenant, campaign)
        for kind, name, limits in (
            ("credential", credential, self._book.of_credential(credential)),
            ("domain", domain, self._book.of_domain(domain)),
        ):
            if limits is not None:
                self._charge(kind, name, limits, charges, causes)
        return charges, causes

    def of_flow(self, tenant: str, campaign: str) -> Bound:
        charges: list[Charge] = []
        causes: list[Cause] = []
        if (limits := self._book.of_tenant(tenant)) is not None:
            self._charge("tenant", tenant, limits, charges, causes)
        if campaign and (limits := self._book.of_campaign(campaign)) is not None:
            self._charge("campaign", campaign, limits, charges, causes)
        return charges, causes

    def of_queue(self, tenant: str, campaign: str, domain: str) -> Bound:
        """The rates that all mail of a queue has."""
        charges, causes = self.of_flow(tenant, campaign)
        if (limits := self._book.of_domain(domain)) is not None:
            self._charge("domain", domain, limits, charges, causes)
        return charges, causes

    def _charge(self, kind: str, name: str, limits: Limits, charges: list[Charge], causes: list[Cause]) -> None:
        meter = f"{kind} {name}"
        for key, rate, suffix in (("message_rate", limits.message_rate, ""), ("byte_rate", limits.byte_rate, BYTES)):
            if rate is not None:
                gap = self._gap(meter + suffix, rate, shared=True)
                charges.append(Charge(self._ledger.meter(meter + suffix), gap))
                place = self._book.place(name, kind, key)
                causes.append(Cause(f"{key.replace('_', ' ')} of {meter}", place, kind != "credential", str(rate)))


def _interval(rate: Rate | ByteRate) -> float:
    return _period(rate) / _count(rate)


def _period(rate: Rate | ByteRate) -> float:
    """A little longer than it is: what we send evenly may be held up on its way, and arrive together."""
    return rate.period + min(JITTER, MOST_JITTER * rate.period)


def _count(rate: Rate | ByteRate) -> int:
    return rate.count if isinstance(rate, Rate) else rate.size


def _rounded(interval: float) -> float:
    """In steps of 3 %, upwards: a pace moves with every reply, and what rests on it need not."""
    return 1.03 ** math.ceil(math.log(interval, 1.03)) if interval > 0 else 0.0
