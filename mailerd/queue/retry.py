"""When a deferred recipient is tried again: a pure function of the verdict's class, the count of tries and the time.

The waits are those between attempts, counted from the end of the last one. The last wait of a schedule repeats until
the recipient expires.
"""

import re
from datetime import datetime, timedelta

MINUTE = 60.0
HOUR = 3_600.0

DEFAULT = (5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE, 1.3 * HOUR, 2.6 * HOUR, 4 * HOUR)
NETWORK = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, 1 * HOUR, 2 * HOUR, 4 * HOUR)
BLOCKED = (15 * MINUTE, 30 * MINUTE, 1 * HOUR, 2 * HOUR, 4 * HOUR)  # knocking harder makes it worse
SCHEDULES: dict[str, tuple[float, ...]] = {
    "greylisted": (5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE, 1.3 * HOUR, 2.6 * HOUR, 4 * HOUR),
    "rate_limited": (10 * MINUTE, 20 * MINUTE, 40 * MINUTE, 1 * HOUR, 2 * HOUR, 4 * HOUR),
    "spam_block": BLOCKED,
    "domain_block": BLOCKED,
    "mailbox_full": (1 * HOUR, 4 * HOUR, 8 * HOUR, 16 * HOUR, 24 * HOUR),
    "too_many_recipients": (1 * MINUTE, 5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE, 1 * HOUR),
    "network": NETWORK,
    "dns": NETWORK,
}
SPREAD = 0.1  # of a wait, to either side
LAST_TRY = timedelta(minutes=2)  # before the expiry, so that the attempt is over by then
HINT_BOUNDS = (30.0, 4 * HOUR)
HINTED_ATTEMPTS = 5  # after these a peer's hint may no longer make us come sooner than the schedule

HINT = re.compile(
    r"(?:try|retry|again|come back|wait|delayed|deferred)\b[^0-9]{0,40}?"
    r"(?:(?P<hh>\d{1,2}):(?P<mm>\d\d):(?P<ss>\d\d)"
    r"|(?P<count>\d{1,6}) ?(?P<unit>s|m|h)(?:(?<=s)ec(?:ond)?s?|(?<=m)in(?:ute)?s?|(?<=h)(?:ou)?rs?)?\b)",
    re.IGNORECASE,
)
UNITS = {"s": 1.0, "m": MINUTE, "h": HOUR}


def next_attempt(
    kind: str,
    attempts: int,
    now: datetime,
    expires_at: datetime,
    jitter: float,
    waits: tuple[float, ...] = (),
    *,
    text: str = "",
) -> datetime | None:
    """When to try again after `attempts` tries (1 after the first), or None: give the recipient up as expired.

    `waits` (seconds) stands in for the schedule of the class. `jitter` in [0, 1) spreads a wait by 10 % to either side.
    A time named in the reply's `text`, such as "try again in 300 seconds", is kept, within 30 s and 4 h, and then
    spread to the later side only.

    Never later than `expires_at`. A wait that would pass it is shortened to a last try two minutes before, unless that
    would more than halve the wait: a try so soon after the last one tells nothing new, so None, and the sender learns
    it now.
    """
    steps = waits or SCHEDULES.get(kind, DEFAULT)
    seconds = steps[min(max(attempts, 1), len(steps)) - 1] * (1 - SPREAD + 2 * SPREAD * jitter)
    hint = hinted_wait(text) if text else None
    if hint is not None and (hint > seconds or attempts <= HINTED_ATTEMPTS):
        seconds = hint * (1 + SPREAD * jitter)
    wait = timedelta(seconds=seconds)
    if now + wait < expires_at:
        return now + wait
    last = expires_at - LAST_TRY
    return last if last - now >= wait / 2 else None


def hinted_wait(text: str) -> float | None:
    """The seconds that a reply asks us to wait, put within bounds; None when it names no time."""
    match = HINT.search(text)
    if match is None:
        return None
    if match["count"]:
        seconds = int(match["count"]) * UNITS[match["unit"].lower()]
    else:
        seconds = int(match["hh"]) * HOUR + int(match["mm"]) * MINUTE + int(match["ss"])
    lowest, highest = HINT_BOUNDS
    return min(max(seconds, lowest), highest)
