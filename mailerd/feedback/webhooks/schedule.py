"""When an endpoint is tried again, and when no more. Pure.

Each request has its own schedule: ten attempts over about 75 hours, or five over five hours when the endpoint says that
the request is bad. An endpoint at which new events fail again and again, or that says that it is busy, is left alone
altogether between looks at it, whatever is due.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

from mailerd.feedback.webhooks.values import Outcome

DELAYS = tuple(
    timedelta(seconds=seconds)
    for seconds in (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)  # before each attempt
)
DELAYS_OF_REJECTED = tuple(timedelta(seconds=seconds) for seconds in (0, 5, 300, 3_600, 14_400))
JITTER = 0.1  # of a delay, added, so that what failed together does not come back together
MOST_ASKED = timedelta(hours=1)  # of Retry-After; more is not waited for
DOWN_AFTER = 10  # new events that failed, with no success between them
SHORTEST, LONGEST = timedelta(seconds=5), timedelta(minutes=5)  # between looks at an endpoint that is down
OUTAGE = timedelta(hours=1)  # of failures: when it is over, what failed is due at once
DISABLE_AFTER = timedelta(days=5)  # without any success


def most_attempts(outcome: Outcome) -> int:
    """How many attempts a request has in all when this was the answer to the last one."""
    return len(_delays(outcome))


def next_attempt(attempts: int, now: datetime, outcome: Outcome, chance: float) -> datetime | None:
    """When a request is tried again after so many attempts; None: not any more. `chance` is 0 … 1."""
    delays = _delays(outcome)
    if attempts >= len(delays):
        return None
    asked = min(timedelta(seconds=outcome.retry_after), MOST_ASKED)
    return now + max(delays[attempts] * (1 + JITTER * chance), asked)


def _delays(outcome: Outcome) -> tuple[timedelta, ...]:
    return DELAYS_OF_REJECTED if outcome.rejects else DELAYS


def retry_after(text: str, now: datetime) -> float:
    """Seconds of a Retry-After field (RFC 9110 section 10.2.3), 0 when it says nothing."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
        return max(0.0, (at - now).total_seconds()) if at.tzinfo is not None else 0.0
    except (ValueError, OverflowError):  # no date, or one of no year that there is
        return 0.0


@dataclass(slots=True)
class Health:
    """How an endpoint has answered lately."""

    failing_since: datetime | None = None
    failures: int = 0  # of new events, with no success between them
    pauses: int = 0
    paused_until: datetime | None = None

    @property
    def down(self) -> bool:
        """It takes nothing: new events are not tried one after the other, but wait."""
        return self.failures >= DOWN_AFTER

    def paused(self, now: datetime) -> bool:
        return self.paused_until is not None and now < self.paused_until

    def succeeded(self, now: datetime) -> bool:
        """It took something. True: an outage is over, and what failed meanwhile should not wait any longer."""
        long = self.failing_since is not None and now - self.failing_since >= OUTAGE
        over = long or self.down or self.pauses > 0
        self.failing_since, self.failures, self.pauses, self.paused_until = None, 0, 0, None
        return over

    def failed(self, now: datetime, outcome: Outcome, *, new: bool) -> None:
        """It did not take something. `new`: that was tried for the first time; what fails again says little."""
        if new:
            self.failures += 1
            self.failing_since = self.failing_since or now
        if self.paused(now) or not (outcome.throttles or self.failures >= DOWN_AFTER):
            return
        own = min(SHORTEST * 2 ** min(self.pauses, 10), LONGEST)
        asked = min(timedelta(seconds=outcome.retry_after), MOST_ASKED)
        self.paused_until = now + max(own, asked)
        self.pauses += 1

    def hopeless(self, now: datetime) -> bool:
        """Nothing else has come of new events for so long that somebody has to look."""
        return self.down and self.failing_since is not None and now - self.failing_since >= DISABLE_AFTER
