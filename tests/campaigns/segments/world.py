"""Some hundred contacts, as rows and as plain values, and what conditions mean of them in plain Python.

`holds` reads the JSON of conditions by itself: it shares no code with the parser and the compiler.
"""

import random
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from mailerd.db import Connection
from mailerd.queue.ids import first_id_at

TENANT = "shop"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DEFINITIONS = {
    "level": "number",
    "joined": "datetime",
    "born": "date",
    "colours": "list",
    "ok": "boolean",
    "note": "text",
}
TEXTS = [
    "",
    "Ann",
    "ann",
    "ANNA",
    "100%",
    "100",
    "a_b",
    "axb",
    "back\\slash",
    "Ärger",
    "äRGER",
    "it's",
    '"',
    "x; --",
    "nn",
]
DATES = ["2026-11-22", "2026-11-20", "2024-02-29", "2026-02-31", "1999-12-31", "2026-13-01", "soon", ""]
TIMES = ["2026-11-22T11:59:59Z", "2026-11-22 13:00+01:00", "2026-11-21T23:30:00.5-05:00", "2026-11-22T12:00:00Z"]
NUMBERS: list[Any] = [0, 1, -1.5, 3, 3.0, 10**12, 0.1, "3", " 3", "-1.5", "1e3", "three", "007", True, None, []]
TAGS = ["vip", "VIP", "new", "100%"]
DOMAINS = ["gmail.com", "example.org", "sub.gmail.com"]
STATES = ["subscribed", "unsubscribed", "unconfirmed"]
REASONS = ["bounce", "soft_bounce", "complaint", "unsubscribe", "manual"]
STATUS_OF = {"complaint": 3, "bounce": 2, "soft_bounce": 2, "unsubscribe": 1, "manual": 0}
WORDS = ["suppressed", "unsubscribed", "bounced", "complained"]


@dataclass
class Person:
    id: int
    columns: dict[str, Any]
    custom: dict[str, Any]
    tags: set[str] = field(default_factory=set)
    lists: dict[int, str] = field(default_factory=dict)
    status: str = "active"
    hits: list[tuple[str, int, datetime, bool, int]] = field(default_factory=list)  # kind, campaign, at, machine, link
    mails: list[tuple[int, int, datetime]] = field(default_factory=list)  # campaign, status, handed over


@dataclass
class World:
    people: list[Person]
    lists: list[int]
    segments: dict[int, Any]
    campaigns: list[int]


def value(rng: random.Random) -> Any:
    pools: list[list[Any]] = [TEXTS, DATES, TIMES, NUMBERS, [["Red", "blue"], [], ["100%"], ["ann", "x"]]]
    return rng.choice(rng.choice(pools))


def fields(rng: random.Random) -> dict[str, Any]:
    pools: dict[str, list[Any]] = {
        "level": NUMBERS,
        "joined": [*TIMES, *DATES, 5],
        "born": [*DATES, *TIMES],
        "colours": [["Red", "blue"], [], ["100%"], "red"],
        "ok": [True, False, "true", 1],
        "note": [*TEXTS, 3],
    }
    made = {name: rng.choice(pool) for name, pool in pools.items() if rng.random() < 0.6}
    return made | {name: value(rng) for name in ("city", "any_thing") if rng.random() < 0.6}


async def build(connection: Connection, rng: random.Random, count: int = 300) -> World:
    fetch = connection.fetchval
    lists = [
        await fetch("INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, 'l', 'x') RETURNING id", TENANT)
        for _ in range(3)
    ]
    campaigns = [
        await fetch(
            "INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by)"
            " VALUES ($1, 'c', 1, 'a@b.example', 'x') RETURNING id",
            TENANT,
        )
        for _ in range(2)
    ]
    segments = {}
    for tree in (
        {"field": "tags", "operator": "contains", "value": "vip"},
        {
            "or": [
                {"field": "level", "operator": ">", "value": 1},
                {"field": "domain", "operator": "=", "value": "gmail.com"},
            ]
        },
    ):
        id_ = await fetch(
            "INSERT INTO contact_lists (tenant, name, type, segment_conditions, created_by)"
            " VALUES ($1, 's', 'dynamic', $2, 'x') RETURNING id",
            TENANT,
            tree,
        )
        segments[id_] = tree
    for name, type_ in DEFINITIONS.items():
        await connection.execute("INSERT INTO custom_field_definitions VALUES ($1, $2, $3)", TENANT, name, type_)
    tags = {
        name: await fetch("INSERT INTO tags (tenant, name) VALUES ($1, $2) RETURNING id", TENANT, name) for name in TAGS
    }
    people = [await _person(connection, rng, n, lists, campaigns, tags) for n in range(count)]
    await connection.execute("ANALYZE")
    return World(people, lists, segments, campaigns)


async def _person(
    connection: Connection, rng: random.Random, n: int, lists: list[int], campaigns: list[int], tags: dict[str, int]
) -> Person:
    email = f"{rng.choice(['Ann', 'bob', 'x_y'])}{n}@{rng.choice(DOMAINS)}"
    columns = {
        "email": email,
        "first_name": rng.choice(TEXTS),
        "last_name": rng.choice(TEXTS),
        "phone": rng.choice(["", "+49 30 1", "030"]),
        "time_zone": rng.choice(["", "Europe/Berlin", "Asia/Tokyo"]),
        "subscribed_at": NOW - timedelta(hours=rng.randrange(200)),
        "unsubscribed_at": rng.choice([None, NOW - timedelta(days=2)]),
        "created_at": NOW - timedelta(hours=rng.randrange(2000)),
        "updated_at": NOW - timedelta(hours=rng.randrange(100)),
    }
    custom = fields(rng)
    id_ = await connection.fetchval(
        f"INSERT INTO contacts (tenant, address, custom_fields, {', '.join(columns)})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id",
        TENANT,
        email.lower(),
        custom,
        *columns.values(),
    )
    person = Person(id_, columns | {"domain": email.lower().partition("@")[2]}, custom)
    for name in rng.sample(TAGS, rng.randrange(3)):
        person.tags.add(name)
        await connection.execute("INSERT INTO contact_tags VALUES ($1, $2)", id_, tags[name])
    for list_id in rng.sample(lists, rng.randrange(3)):
        person.lists[list_id] = rng.choice(STATES)
        await connection.execute(
            "INSERT INTO list_contacts (list_id, contact_id, status, source) VALUES ($1, $2, $3, 'x')",
            list_id,
            id_,
            person.lists[list_id],
        )
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        kind, machine, link = rng.choice(["opened", "clicked"]), rng.random() < 0.3, rng.randrange(1, 3)
        link = link if kind == "clicked" else 0
        hit = (kind, rng.choice(campaigns), NOW - timedelta(hours=rng.randrange(1000)), machine, link)
        person.hits.append(hit)
        await connection.execute(
            "INSERT INTO engagements (kind, campaign_id, at, machine, link, contact_id, message_id)"
            " VALUES ($1, $2, $3, $4, $5, $6, 1)",
            1 if kind == "opened" else 2,
            *hit[1:],
            id_,
        )
    for campaign in rng.sample(campaigns, rng.randrange(3)):
        mail = (campaign, rng.randrange(8), NOW - timedelta(hours=rng.randrange(1000)))
        person.mails.append(mail)
        await connection.execute(
            "INSERT INTO campaign_contacts (campaign_id, contact_id, status, message_id, due_at)"
            " VALUES ($1, $2, $3, $4, now())",
            campaign,
            id_,
            mail[1],
            first_id_at(int(mail[2].timestamp() * 1000)),
        )
    await _suppress(connection, rng, person)
    return person


async def _suppress(connection: Connection, rng: random.Random, person: Person) -> None:
    reasons = rng.sample(REASONS, rng.choice([0, 0, 0, 1, 2]))
    for reason in reasons:
        await connection.execute(
            "INSERT INTO suppressions (address, tenant, reason, source, created_at) VALUES ($1, $2, $3, 'x', now())",
            person.columns["email"].lower(),
            rng.choice([TENANT, ""]),
            reason,
        )
    if reasons:
        person.status = WORDS[max(STATUS_OF[reason] for reason in reasons)]


def holds(tree: dict[str, Any], person: Person, world: World) -> bool:
    """Whether conditions are true of somebody, at `NOW`."""
    match tree:
        case {"and": parts}:
            return all(holds(part, person, world) for part in parts)
        case {"or": parts}:
            return any(holds(part, person, world) for part in parts)
        case {"not": part}:
            return not holds(part, person, world)
        case {"engagement": word}:
            count = _hits(tree, word.removeprefix("not_"), person, tree.get("within_days"))
            return bool((count >= tree.get("at_least", 1)) != word.startswith("not_"))
    operator = tree["operator"]
    for negative, positive in (("not_", ""), ("!=", "=")):
        if operator.startswith(negative):
            operator = positive + operator.removeprefix(negative)
            return not _leaf(tree, operator, person, world)
    return _leaf(tree, operator, person, world)


def _leaf(tree: dict[str, Any], operator: str, person: Person, world: World) -> bool:
    name, wanted = tree["field"], tree.get("value")
    several: list[Any] = list(tree["value"]) if operator == "in" else [wanted]
    match name:
        case "status":
            return person.status in several
        case "tags":
            return bool(person.tags) if operator == "exists" else any(each in person.tags for each in several)
        case "lists":
            state = tree.get("state", "subscribed")
            mine = {f"lst_{id_}" for id_, found in person.lists.items() if state in ("any", found)}
            return bool(mine) if operator == "exists" else any(each in mine for each in several)
        case "segment":
            return any(holds(world.segments[int(each[4:])], person, world) for each in several)
        case "opened" | "clicked" | "received" | "total_opens" | "total_clicks":
            kind = {"total_opens": "opened", "total_clicks": "clicked"}.get(name, name)
            return _engaged(tree, kind, operator, wanted, person)
        case "last_opened" | "last_clicked":
            kind = name.removeprefix("last_")
            moments = [at for what, _, at, machine, _ in person.hits if what == kind and not machine]
            return bool(moments) and _compare_moment(max(moments), operator, wanted)
    if name in person.columns:
        mine = person.columns[name]
        if name.endswith("_at"):
            return mine is not None and bool(_compare_moment(mine, operator, wanted))
        if operator == "exists":
            return bool(mine != "")
        return _compare_text(mine, operator, several)
    return _custom(name.removeprefix("custom_fields."), operator, wanted, several, person)


def _engaged(tree: dict[str, Any], kind: str, operator: str, wanted: Any, person: Person) -> bool:
    if operator == "within_days":
        return _hits(tree, kind, person, wanted) > 0
    if operator == "exists":
        return _hits(tree, kind, person, tree.get("within_days")) > 0
    if isinstance(wanted, bool):
        return (_hits(tree, kind, person, tree.get("within_days")) > 0) == wanted
    if isinstance(wanted, str | list):
        given = tree | {"campaign": wanted}
        return _hits(given, kind, person, tree.get("within_days")) > 0
    return _compare(_hits(tree, kind, person, tree.get("within_days")), operator, wanted)


def _hits(tree: dict[str, Any], kind: str, person: Person, days: int | None) -> int:
    since = NOW - timedelta(days=days) if days is not None else datetime(1, 1, 1, tzinfo=UTC)
    campaign = tree.get("campaign", "any")
    campaigns = campaign if isinstance(campaign, list) else [campaign]

    def counts(number: int) -> bool:
        return campaign == "any" or f"cmp_{number}" in campaigns

    if kind == "received":
        return sum(counts(number) and status == 2 and at >= since for number, status, at in person.mails)
    return sum(
        what == kind
        and counts(number)
        and at >= since
        and (tree.get("machines", False) or not machine)
        and tree.get("link") in (None, link)
        for what, number, at, machine, link in person.hits
    )


def _custom(name: str, operator: str, wanted: Any, several: list[Any], person: Person) -> bool:
    mine = person.custom.get(name)
    if operator == "exists":
        return mine not in (None, "", []) or mine is False
    declared = DEFINITIONS.get(name)
    sample = several[0] if several else None
    if operator in ("before", "after", "within_days") or declared in ("date", "datetime"):
        return (at := _moment(mine)) is not None and _compare_moment(at, operator, wanted)
    if isinstance(sample, bool):
        return isinstance(mine, bool) and mine == wanted
    if isinstance(sample, int | float):
        number = _number(mine)
        return number is not None and any(_compare(number, operator, Decimal(str(each))) for each in several)
    if operator in ("<", "<=", ">", ">="):
        return (at := _moment(mine)) is not None and _compare_moment(at, operator, wanted)
    if isinstance(mine, str):
        return _compare_text(mine, operator, several)
    if isinstance(mine, list):
        whole = "=" if operator == "contains" else operator
        return any(_compare_text(each, whole, several) for each in mine)
    return False


def _number(mine: Any) -> Decimal | None:
    if isinstance(mine, bool):
        return None
    if isinstance(mine, int | float):
        return Decimal(str(mine))
    if isinstance(mine, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?", mine):
        return Decimal(mine)
    return None


def _moment(mine: Any) -> datetime | None:
    if not isinstance(mine, str):
        return None
    if mine == "2026-02-31":
        return datetime(2026, 3, 3, tzinfo=UTC)
    try:
        at = datetime.fromisoformat(mine)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _compare_moment(mine: datetime, operator: str, wanted: Any) -> bool:
    if operator == "exists":
        return True
    if operator == "within_days":
        return NOW - timedelta(days=wanted) <= mine <= NOW
    start = datetime.fromisoformat(wanted)
    end = start
    if start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
        end = start + timedelta(days=1) - timedelta(microseconds=1)
    match operator:
        case ">" | "after":
            return mine > end
        case ">=":
            return mine >= start
        case "<" | "before":
            return mine < start
        case "<=":
            return mine <= end
    return start <= mine <= end


def _compare_text(mine: str, operator: str, several: list[Any]) -> bool:
    mine = mine.lower()
    others = [each.lower() for each in several]
    match operator:
        case "contains":
            return others[0] in mine
        case "starts_with":
            return mine.startswith(others[0])
        case "ends_with":
            return mine.endswith(others[0])
    return mine in others


def _compare(mine: Any, operator: str, wanted: Any) -> bool:
    compared: dict[str, bool] = {
        "<": mine < wanted,
        "<=": mine <= wanted,
        ">": mine > wanted,
        ">=": mine >= wanted,
    }
    return bool(compared.get(operator, mine == wanted))
