"""Time zones: IANA names in one spelling, and what a wall clock means in them.

The rules for clocks that are put forward or back: a local time that does not exist means the next minute that does, one
that comes twice means the first of the two.
"""

from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

FIRST = timedelta(hours=14)  # the largest offset there is: where every day begins
LAST = timedelta(hours=-12)
MAX_NAME = 64


@cache
def _names() -> dict[str, str]:
    """The name to use for each that is known, by its lower case.

    What stands in `zone.tab` is a name of today, though its clocks may follow those of another city; what does not and
    is a link is an old or second name.
    """
    data = files("tzdata.zoneinfo")
    current = {
        line.split("\t")[2].strip() for line in (data / "zone.tab").read_text("utf-8").splitlines() if line[:1] != "#"
    }
    found: dict[str, str] = {}
    links: dict[str, str] = {}
    for line in (data / "tzdata.zi").read_text("utf-8").splitlines():
        match line.split():
            case ["L", target, name]:
                links[name] = target
            case ["Z", name, *_]:
                found[name.lower()] = name
    for name, target in links.items():
        found[name.lower()] = name if name in current else target
    for name in ("utc", "etc/utc", "etc/uct", "uct", "zulu", "etc/zulu", "universal", "etc/universal"):
        found[name] = "UTC"
    del found["factory"]
    return found


@cache
def all_zones() -> frozenset[str]:
    """The names that `canonical_zone` gives."""
    return frozenset(_names().values())


def canonical_zone(name: str) -> str:
    """The IANA name that is in use for `name`: `Europe/Kyiv` for `europe/kiev`. ValueError: there is no such zone."""
    known = _names().get(name.strip().lower()) if len(name) <= MAX_NAME else None
    if known is None:
        raise ValueError(f"{name[:MAX_NAME]!r} is not a time zone such as Europe/Berlin")
    return known


@lru_cache(maxsize=1024)
def zone_of(name: str, fallback: str = "UTC") -> ZoneInfo:
    """The zone of that name; of `fallback` when it is empty or unknown."""
    try:
        return ZoneInfo(canonical_zone(name))
    except ValueError:
        return ZoneInfo(canonical_zone(fallback))


@lru_cache(maxsize=8192)
def instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, at which clocks of the zone show `wall` (which has no zone): see the rules above."""
    before = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if before.astimezone(zone).replace(tzinfo=None) == wall:
        return before
    # In a gap: `before` lies behind the change, what the later offset makes of `wall` lies before it.
    early, late = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), before
    offset = late.astimezone(zone).utcoffset()
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) / 2
        middle = middle.replace(microsecond=0)
        if middle in (early, late):
            break
        if middle.astimezone(zone).utcoffset() == offset:
            late = middle
        else:
            early = middle
    return late


def wall_clock(at: datetime, zone: ZoneInfo) -> datetime:
    """What clocks of the zone show at that moment, without a zone."""
    return at.astimezone(zone).replace(tzinfo=None, fold=0)
