"""What is counted, the same in all roll-ups. Pure.

`queued` (handed over) to `in_doubt` count rows of the ledger, as do `complained` to `clicked`, `machine_opened` and
`machine_clicked`: each contact of a campaign once. The others count what happened, as often as it did: `deferred` are
attempts, `opens` and `clicks` hits by people, `machine_opens` and `machine_clicks` hits by machines.

    sent = delivered + bounced + failed + in_doubt
    hard_bounced are some of bounced; recalled are those suppressed or cancelled after they were handed over
    in the queue = queued - sent - recalled
    waiting = the audience - queued - (suppressed + cancelled - recalled)

A delta may be negative: mail that was delivered and comes back later is no longer delivered but bounced.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

COUNTS = (
    "queued",
    "suppressed",
    "cancelled",
    "recalled",
    "sent",
    "delivered",
    "bounced",
    "hard_bounced",
    "failed",
    "in_doubt",
    "deferred",
    "complained",
    "unsubscribed",
    "opened",
    "clicked",
    "opens",
    "clicks",
    "machine_opened",
    "machine_clicked",
    "machine_opens",
    "machine_clicks",
)
Counts = Mapping[str, int]  # by names of COUNTS; those not named are 0


class Delta(NamedTuple):
    """What changes in the counts of a campaign, and when it happened (an aware datetime).

    `domain` is that of the address, in lower case; `site` who takes its mail, "" when that is not known.
    """

    campaign_id: int
    tenant: str
    at: datetime
    domain: str
    counts: Counts
    site: str = ""


def added(counts: Iterable[Counts]) -> dict[str, int]:
    """The sum."""
    total: dict[str, int] = {}
    for each in counts:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    return total


def in_queue(counts: Counts) -> int:
    """Mails that were handed over and have no outcome so far."""
    return max(0, counts.get("queued", 0) - counts.get("sent", 0) - counts.get("recalled", 0))


def all_of(counts: Counts) -> dict[str, int]:
    """Every count by its name, also those that are 0."""
    return {name: counts.get(name, 0) for name in COUNTS}
