"""How many contacts of a campaign are handed over in one turn, and when its next turn is. Pure.

A turn is paid for afterwards: the next is as much later as the contacts take at the campaign's pace. Who comes late,
up to `CREDIT`, is not made to wait for it again, so the pace is kept over time; who comes later than that, after a
pause or a night without power, has lost it. A turn is at most `CREDIT` of pace as well: nobody sends more than a second
of pace at once, however long he could not.

The turn is that of the campaign whose time came first. What each gets is bounded, so with ever so many campaigns each
has its turn before any has its second.
"""

from datetime import datetime, timedelta

CREDIT = timedelta(seconds=0.5)
MOST_ROWS = 500  # of one transaction
MOST_CAMPAIGNS = 50


def share(pace: float, *, batch: int, room: int, campaigns: int) -> int:
    """Contacts for one of so many campaigns in one transaction. `pace`: contacts a second; `room`: for this one."""
    return max(1, min(batch, room, MOST_ROWS // campaigns, int(pace * CREDIT.total_seconds())))


def next_turn(was: datetime, now: datetime, taken: int, pace: float) -> datetime:
    """When the next turn is of a campaign whose turn was at `was`, and that handed `taken` contacts over at `now`."""
    if not taken:
        return max(was, now)  # else what is never sent would keep a campaign before all others
    return max(was, now - CREDIT) + timedelta(seconds=taken / pace)
