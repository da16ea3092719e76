"""How much a credential may still send: token buckets, the same for SMTP and HTTP."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mailerd.config import Rate
from mailerd.errors import Refused
from mailerd.intake.credentials import Credential


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of one rate: `remaining` of `limit` now, and all of it again in `reset` seconds."""

    what: str  # messages or recipients
    limit: int
    period: float
    remaining: int
    reset: int


class RateLimited(Refused):
    """A credential has used its rate; after `wait` seconds the same is granted."""

    def __init__(self, text: str, wait: int) -> None:
        super().__init__(451, "4.7.1", text, name="rate_limited", http=429)
        self.wait = wait


class _Bucket:
    """Fills evenly, all of it in one period. What is larger than the bucket is granted when it is full: a debt."""

    def __init__(self, limit: int, period: float, now: float) -> None:
        self.limit = limit
        self.period = period
        self._level = float(limit)
        self._at = now

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` can be taken; 0: now."""
        self._fill(now)
        missing = min(amount, self.limit) - self._level
        return 0.0 if missing <= 1e-9 else missing * self.period / self.limit

    def take(self, amount: int) -> None:
        self._level -= amount

    def allowance(self, what: str, now: float) -> Allowance:
        self._fill(now)
        return Allowance(
            what=what,
            limit=self.limit,
            period=self.period,
            remaining=max(0, math.floor(self._level + 1e-9)),
            reset=math.ceil((self.limit - self._level) * self.period / self.limit),
        )

    def _fill(self, now: float) -> None:
        self._level = min(self.limit, self._level + max(0.0, now - self._at) * self.limit / self.period)
        self._at = now


class Allowances:
    """The buckets of all credentials in one of `workers` processes, each of which grants its share."""

    def __init__(self, workers: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._monotonic = monotonic
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def take(self, credential: Credential, messages: int, recipients: int) -> None:
        """Count these against the credential's rates. Raises `RateLimited`, nothing being counted then."""
        if credential.message_rate is None and credential.recipient_rate is None:
            return
        now = self._monotonic()
        amounts = {"messages": messages, "recipients": recipients}
        buckets = self._of(credential, now)
        for what, bucket in buckets.items():
            if wait := bucket.wait(amounts[what], now):
                text = f"{credential.name} may send {bucket.limit:,} {what} in {bucket.period:g} s; try again later"
                raise RateLimited(text, max(1, math.ceil(wait)))
        for what, bucket in buckets.items():
            bucket.take(amounts[what])

    def left(self, credential: Credential) -> list[Allowance]:
        """What is left of each rate that the credential has."""
        now = self._monotonic()
        return [bucket.allowance(what, now) for what, bucket in self._of(credential, now).items()]

    def _of(self, credential: Credential, now: float) -> dict[str, _Bucket]:
        rates = {"messages": credential.message_rate, "recipients": credential.recipient_rate}
        return {what: self._bucket(credential.name, what, rate, now) for what, rate in rates.items() if rate}

    def _bucket(self, name: str, what: str, rate: Rate, now: float) -> _Bucket:
        """A credential whose rate was changed starts with a full bucket."""
        limit = max(1, rate.count // self._workers)
        bucket = self._buckets.get((name, what))
        if bucket is None or (bucket.limit, bucket.period) != (limit, rate.period):
            bucket = self._buckets[name, what] = _Bucket(limit, rate.period, now)
        return bucket
