"""Very many small campaigns that begin in the same second: does each go on, and how long does one more wait?

Each has its own list and contacts; so many share a template (the newsletter of `campaign`). They are scheduled for one
moment. Progress is read from the sink's ledger, which says whose mail came when. Shares are compared by Jain's index
over the campaigns that are not finished: 1 when all have as much, 1/n when one has all. When a third has arrived, one
more campaign is sent by the API. At the end each contact must have had its mail once.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import machine
from benchmarks.campaign import NEWSLETTER, PATIENCE, System
from benchmarks.cgroup import memory
from benchmarks.kinds import cpu_by_kind
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from mailerd.campaigns.templates.compiling import compile_template
from tests.support.campaign_run import SEED, TEMPLATE, VERSION
from tests.support.ledger_mx import LedgerMx

CONTACTS = 20  # of a campaign
NEW = 20  # of the one that comes while the others are sent
EVERY = 2.0  # seconds between looks
AHEAD = 5.0  # seconds from when all is there to the moment for which they are scheduled
FIRST_WITHIN = 5.0  # seconds, of the one that comes later
PEOPLE = f"""
    INSERT INTO contacts (tenant, email, address, first_name)
    SELECT 'default', email, email, 'Ann' FROM (
        SELECT 'c' || c || 'x' || n || '@d' || n || '.example' AS email
          FROM generate_series(1, $1::int) AS c, generate_series(1, {CONTACTS}) AS n) AS made
"""
LISTS = """
    INSERT INTO contact_lists (tenant, name, created_by)
    SELECT 'default', 'list ' || c, 'bench' FROM generate_series(1, $1::int) AS c
"""
MEMBERS = """
    INSERT INTO list_contacts (list_id, contact_id, source)
    SELECT l.id, c.id, 'bench' FROM contacts AS c
      JOIN contact_lists AS l ON l.name = 'list ' || substring(c.address FROM '^c(\\d+)x')
"""
CAMPAIGNS = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, sender_name, created_by, audience, options)
    SELECT 'default', l.name, ($2::bigint[])[1 + l.id % $3], 'news@signed.example', 'Bench', 'bench',
           jsonb_build_object('list_ids', jsonb_build_array(l.id)), '{}'
      FROM contact_lists AS l WHERE l.name LIKE 'list %' ORDER BY l.id LIMIT $1
"""
SCHEDULE = "UPDATE campaigns SET status = 'scheduled', schedule_time = $1 WHERE status = 'draft'"


@dataclass
class Figures:
    """Seconds from the moment for which all were scheduled; `jain` the least while a tenth to nine tenths had come."""

    campaigns: int
    mails: int
    arrived: int
    twice: int
    strangers: int
    first_p50: float
    first_p99: float
    first_last: float
    finished: float
    jain: float
    new_first: float
    memory_mb: float
    cpu: dict[str, float]


def run(work: Path, results: Results, *, campaigns: int, templates: int) -> bool:
    """Whether everybody had the mail once, and the later campaign its first within `FIRST_WITHIN`."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    figures, looks = asyncio.run(_measure(work, campaigns, templates))
    results.line(**asdict(figures))
    for look in looks:
        results.line(**look)
    rows = [
        ("contacts with their mail", f"{figures.arrived:,} of {figures.mails:,}"),
        ("twice", f"{figures.twice:,}"),
        ("first mail of a campaign, median", f"{figures.first_p50:.1f} s"),
        ("first mail of a campaign, 99 %", f"{figures.first_p99:.1f} s"),
        ("first mail of the last campaign", f"{figures.first_last:.1f} s"),
        ("last mail", f"{figures.finished:.1f} s"),
        ("mails a second", f"{figures.arrived / figures.finished:,.0f}"),
        ("shares (Jain), least", f"{figures.jain:.2f}"),
        ("first mail of one more campaign", f"{figures.new_first:.1f} s"),
        ("memory", f"{figures.memory_mb:,.0f} MB"),
        *((f"CPU of a mail, {name}", f"{1e6 * each / figures.mails:,.0f} µs") for name, each in figures.cpu.items()),
    ]
    results.table(f"{campaigns:,} campaigns of {CONTACTS} contacts, {templates:,} templates", ("what", "figure"), rows)
    return figures.arrived == figures.mails and not figures.twice and figures.new_first < FIRST_WITHIN


async def _measure(work: Path, campaigns: int, templates: int) -> tuple[Figures, list[dict[str, Any]]]:
    async with LedgerMx(work) as mx:
        system = System(work)
        try:
            system.peer.start(mx.port, make_key(work)[0], SELECTOR)
            template = await _seed(system, campaigns, templates)
            return await _watch(system, mx, campaigns, template)
        finally:
            system.peer.stop()


async def _seed(system: System, campaigns: int, templates: int) -> int:
    """A template of them."""
    compiled = msgspec.to_builtins(compile_template("News for {{ contact.first_name }}", NEWSLETTER.read_text(), ""))
    ids = []
    async with system.connected() as connection:
        for _ in range(templates):
            ids.append(await connection.fetchval(TEMPLATE, "default"))
            await connection.execute(VERSION, ids[-1], "News", "", compiled)
        await connection.execute(PEOPLE, campaigns, timeout=None)
        await connection.execute(LISTS, campaigns, timeout=None)
        await connection.execute("ANALYZE contacts; ANALYZE contact_lists")
        await connection.execute(MEMBERS, timeout=None)
        await connection.fetchval(SEED, "default", "new", NEW)
        await connection.execute(CAMPAIGNS, campaigns, ids, templates, timeout=None)
        await connection.execute("ANALYZE; CHECKPOINT", timeout=None)
    return int(ids[0])


async def _watch(system: System, mx: LedgerMx, campaigns: int, template: int) -> tuple[Figures, list[dict[str, Any]]]:
    async with system.connected() as connection:
        at = await connection.fetchval("SELECT now() + make_interval(secs => $1)", AHEAD)
        await connection.execute(SCHEDULE, at, timeout=None)
        new_list = await connection.fetchval("SELECT id FROM contact_lists WHERE name = 'readers'")
        left = await connection.fetchval("SELECT extract(epoch FROM $1::timestamptz - clock_timestamp())::float8", at)
    begun = time.time() + left
    mails, sent_at, looks, most = campaigns * CONTACTS, 0.0, [], 0
    cpu = cpu_by_kind(system.peer.group.pids())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        await asyncio.sleep(EVERY)
        arrived = [each.address for each in mx.arrivals()]
        shares = Counter(_campaign(address) for address in arrived)
        new = shares.pop("new", 0)
        most = max(most, memory(system.peer.group.pids()))
        looks.append(_look(time.time() - begun, shares, campaigns))
        if not sent_at and shares.total() >= mails / 3:
            sent_at = time.time()
            await asyncio.to_thread(_send_new, system, template, new_list)
        if shares.total() >= mails and new >= NEW:
            break
    used = cpu_by_kind(system.peer.group.pids())
    return _figures(mx, begun, sent_at, campaigns, looks, most, {name: used[name] - cpu[name] for name in used}), looks


def _send_new(system: System, template: int, list_id: int) -> None:
    body = {
        "name": "One more",
        "template_id": f"tpl_{template}",
        "sender_email": "news@signed.example",
        "contact_list_ids": [f"lst_{list_id}"],
    }
    made, _ = system.call("", body)
    system.call(f"/{made['campaign_id']}/send")


def _campaign(address: str) -> str:
    """`c17x3@…` is of campaign 17, `new3@…` of the one that came later."""
    return "new" if address.startswith("new") else address.partition("x")[0]


def _look(seconds: float, shares: Counter[str], campaigns: int) -> dict[str, Any]:
    """Of those that are not finished."""
    going = [share for share in shares.values() if share < CONTACTS] + [0] * (campaigns - len(shares))
    return {
        "at": round(seconds, 1),
        "arrived": shares.total(),
        "begun": len(shares),
        "finished": sum(share >= CONTACTS for share in shares.values()),
        "jain": round(_jain(going), 3),
    }


def _jain(shares: Sequence[int]) -> float:
    squares = sum(share**2 for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def _figures(
    mx: LedgerMx,
    begun: float,
    sent_at: float,
    campaigns: int,
    looks: Sequence[dict[str, Any]],
    most: int,
    cpu: dict[str, float],
) -> Figures:
    mails = campaigns * CONTACTS
    arrivals = mx.arrivals()
    times = Counter(each.address for each in arrivals)
    first: dict[str, float] = {}
    for each in sorted(arrivals, key=lambda each: each.at):
        first.setdefault(_campaign(each.address), each.at)
    new = first.pop("new", float("inf"))
    waited = sorted(at - begun for at in first.values()) or [float("inf")]
    known = {f"c{c}x{n}@d{n}.example" for c in range(1, campaigns + 1) for n in range(1, CONTACTS + 1)}
    middle = [look["jain"] for look in looks if mails / 10 <= look["arrived"] <= 9 * mails / 10]
    return Figures(
        campaigns=campaigns,
        mails=mails,
        arrived=len(known & times.keys()),
        twice=sum(count > 1 for count in times.values()),
        strangers=sum(not address.startswith("new") for address in times.keys() - known),
        first_p50=waited[len(waited) // 2],
        first_p99=waited[int(0.99 * len(waited))],
        first_last=waited[-1],
        finished=max((each.at for each in arrivals), default=begun) - begun,
        jain=min(middle, default=1.0),
        new_first=new - sent_at,
        memory_mb=most / 1e6,
        cpu=cpu,
    )
