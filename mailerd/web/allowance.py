"""How much a credential may still send: token buckets, told to clients as RateLimit headers."""

import math
from dataclasses import dataclass

from mailerd.config import Rate


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a credential may still do after asking. `wait` is 0 when it was granted, else seconds until it would be."""

    quota: int
    period: float  # seconds in which the quota comes back
    remaining: int
    reset: int  # seconds until the bucket is full again
    wait: int

    def headers(self) -> dict[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers-11."""
        window = max(1, round(self.period))
        return {
            "RateLimit-Policy": f'"messages";q={self.quota};w={window}',
            "RateLimit": f'"messages";r={self.remaining};t={self.reset}',
        }


class Bucket:
    """Holds up to `quota` messages and fills evenly, all of them in one period."""

    def __init__(self, quota: int, period: float, now: float) -> None:
        self.quota = quota
        self.period = period
        self._level = float(quota)
        self._at = now

    def take(self, amount: int, now: float) -> Allowance:
        """Take `amount` or nothing. What is larger than the bucket is granted when it is full, and leaves a debt."""
        speed = self.quota / self.period
        self._level = min(float(self.quota), self._level + max(0.0, now - self._at) * speed)
        self._at = now
        missing = min(amount, self.quota) - self._level
        if missing <= 1e-9:
            self._level -= amount
        return Allowance(
            quota=self.quota,
            period=self.period,
            remaining=max(0, math.floor(self._level + 1e-9)),
            reset=math.ceil((self.quota - self._level) / speed),
            wait=0 if missing <= 1e-9 else max(1, math.ceil(missing / speed)),
        )


class Allowances:
    """The buckets of all credentials in one of `workers` processes, each of which grants its share."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._buckets: dict[str, Bucket] = {}

    def take(self, credential: str, rate: Rate, amount: int, now: float) -> Allowance:
        """`now` is of a monotonic clock. A credential whose rate was changed starts with a full bucket."""
        quota = max(1, rate.count // self._workers)
        bucket = self._buckets.get(credential)
        if bucket is None or (bucket.quota, bucket.period) != (quota, rate.period):
            bucket = self._buckets[credential] = Bucket(quota, rate.period, now)
        return bucket.take(amount, now)
