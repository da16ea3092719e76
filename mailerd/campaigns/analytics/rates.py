"""Rates of the counts, in percent. Pure."""

from mailerd.campaigns.analytics.counts import Counts

# Of a hundred of the second, the first. Opens and clicks are contacts, each counted once, and people.
RATES = {
    "open_rate": ("opened", "delivered"),
    "click_rate": ("clicked", "delivered"),
    "click_to_open_rate": ("clicked", "opened"),
    "bounce_rate": ("bounced", "sent"),
    "unsubscribe_rate": ("unsubscribed", "delivered"),
    "complaint_rate": ("complained", "delivered"),
    "deliverability_rate": ("delivered", "sent"),
    "machine_open_rate": ("machine_opened", "delivered"),
    "machine_click_rate": ("machine_clicked", "delivered"),
}


def rate(name: str, counts: Counts) -> float:
    """In percent, with two decimals; 0 of nothing."""
    part, whole = RATES[name]
    return percent(counts.get(part, 0), counts.get(whole, 0))


def percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole > 0 else 0.0


def rates(counts: Counts) -> dict[str, float]:
    return {name: rate(name, counts) for name in RATES}
