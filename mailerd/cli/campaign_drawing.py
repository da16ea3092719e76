"""Campaigns as the commands show them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.campaigns.compliance import Finding
    from mailerd.campaigns.forecast import Forecast
    from mailerd.campaigns.recipients import Reached
    from mailerd.campaigns.values import Campaign, Standing

COUNTS = ("sent", "delivered", "opened", "clicked", "bounced", "unsubscribed", "complained", "failed", "suppressed",
          "cancelled", "in_doubt")  # fmt: skip
SHOWN = (*COUNTS, "deferred")  # `deferred`: attempts, not contacts


def plain(standing: "Standing") -> dict[str, Any]:
    from mailerd.campaigns.analytics.counts import in_queue

    campaign = standing.campaign
    return {
        "campaign_id": campaign.name_outside,
        "name": campaign.name,
        "status": campaign.status,
        "status_reason": campaign.status_reason,
        "schedule_time": campaign.schedule_time,
        "recurrence": campaign.recurrence,
        "started_at": campaign.started_at,
        "finished_at": campaign.finished_at,
        "total": 0 if standing.run is None else standing.run.total,
        "waiting": standing.waiting,
        "handed_over": standing.counts.get("queued", 0),
        "in_queue": in_queue(standing.counts),
    } | {name: standing.counts.get(name, 0) for name in COUNTS}


def draw_list(found: "list[Standing]", *, as_json: bool) -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, console, print_json_lines, time_of

    if as_json:
        print_json_lines(plain(each) for each in found)
        return
    numbers = ("recipients", "waiting", "delivered", "bounced")
    columns = ("campaign", "name", "status", *numbers, "repeats", "begins")
    listing = Listing(columns, below=("begins", "repeats", "bounced", "waiting", "name"), numbers=numbers)
    for each in found:
        row = plain(each)
        counts = (f"{row[name]:,}" for name in ("total", "waiting", "delivered", "bounced"))
        begins = time_of(row["started_at"] or row["schedule_time"])
        listing.add_row(
            row["campaign_id"], clean(row["name"]), coloured(row["status"]), *counts, _repeats(each.campaign), begins
        )
    console().print(listing)


def _repeats(campaign: "Campaign") -> str:
    rule = campaign.recurrence
    return "" if rule is None else f"every {rule.every}"


def draw(standing: "Standing", ahead: "Forecast | None", *, as_json: bool) -> None:
    from mailerd.cli.output import coloured, console, facts, from_now, print_json, time_of

    row, now = plain(standing), utc_now()
    if as_json:
        told = None if ahead is None else {"finish": ahead.finish, "limit": ahead.limit, "until": ahead.until}
        print_json(row | {"forecast": told})
        return
    done = row["total"] - row["waiting"]
    part = f"{done / row['total']:.0%}, " if row["total"] else ""
    through = (
        "" if ahead is None or ahead.finish is None else f"{time_of(ahead.finish)} ({from_now(ahead.finish, now)})"
    )
    console().print(
        facts(
            [
                ("campaign", f"{row['campaign_id']} {row['name']}"),
                ("status", coloured(row["status"])),
                ("because", row["status_reason"]),
                ("repeats", _repeats(standing.campaign)),
                ("begins", "" if row["started_at"] else time_of(row["schedule_time"])),
                ("began", time_of(row["started_at"])),
                ("ended", time_of(row["finished_at"])),
                ("handed over", f"{part}{done:,} of {row['total']:,}"),
                ("will be through", through),
                ("hangs on", "" if ahead is None else ahead.detail),
                ("in the queue", f"{row['in_queue']:,}" if row["in_queue"] else ""),
                *((name.replace("_", " "), f"{row[name]:,}" if row[name] else "") for name in COUNTS),
            ]
        )
    )


def draw_recipients(found: "list[Reached]", *, as_json: bool) -> None:
    from mailerd.campaigns.ledger import Status
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, console, print_json_lines, time_of
    from mailerd.queue.ids import CONTACT, format_id, format_message_id

    rows = [
        {
            "contact_id": format_id(CONTACT, each.contact_id),
            "email": each.email or None,
            "status": Status(each.status).word,
            "reason": each.reason,
            "email_id": None if each.message_id is None else format_message_id(each.message_id),
            "changed_at": each.changed_at,
        }
        | each.done
        for each in found
    ]
    if as_json:
        print_json_lines(rows)
        return
    listing = Listing(("address", "status", "reason", "message", "since"), below=("since", "message"))
    for row in rows:
        address = clean(row["email"] or "(erased)")
        since = time_of(row["changed_at"])  # type: ignore[arg-type]
        listing.add_row(address, coloured(str(row["status"])), str(row["reason"]), str(row["email_id"] or ""), since)
    console().print(listing)


def draw_findings(found: "Sequence[Finding]", *, as_json: bool) -> None:
    from mailerd.cli.output import console, facts, print_json_lines

    if as_json:
        print_json_lines(found)
        return
    told = ((each.severity, f"{each.detail} ({each.pointer})" if each.pointer else each.detail) for each in found)
    console().print(facts(told))
    if not found:
        console().print("Nothing keeps it from being sent.")


def draw_analytics(standing: "Standing", *, as_json: bool) -> None:
    from mailerd.campaigns.analytics.counts import COUNTS as NAMES
    from mailerd.campaigns.analytics.counts import in_queue
    from mailerd.campaigns.analytics.rates import rates
    from mailerd.cli.output import console, facts, print_json

    counts = {name: standing.counts.get(name, 0) for name in NAMES}
    told, waiting = rates(counts), in_queue(counts)
    if as_json:
        print_json({"campaign_id": standing.campaign.name_outside} | counts | {"in_queue": waiting} | told)
        return
    parts = {name.removesuffix("_rate"): f"{value:.2f} %" for name, value in told.items()}
    console().print(
        facts(
            [
                ("campaign", f"{standing.campaign.name_outside} {standing.campaign.name}"),
                ("in queue", f"{waiting:,}" if waiting else ""),
                *((name.replace("_", " "), f"{counts[name]:,}" if counts[name] else "") for name in SHOWN),
                *((f"{name.replace('_', ' ')} rate", part) for name, part in parts.items()),
            ]
        )
    )
