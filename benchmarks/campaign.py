"""A campaign to a million: how long it takes to be made, to begin, to write its ledger, and to send its mail.

The mail is a newsletter of 50 KB with 20 variables and 15 tracked links, rendered for each contact, signed by RSA-2048
and taken by the sink on this machine. CPU is counted by kind of process. With `--crash` a smaller campaign is hurt
again and again instead, and its ledger compared with what arrived (`tests.support.campaign_run`).
"""

import asyncio
import json
import random
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import machine
from benchmarks.cgroup import Accounting, accounting
from benchmarks.database import KEPT, SIZE_OF, WAL
from benchmarks.kinds import cpu_by_kind, each
from benchmarks.load import Bench, watched_memory
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key, verify
from mailerd import db
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.db.embedded import running_url
from tests.faults.laboratory import Laboratory, kill, laboratory
from tests.support.campaign_run import STEPS, TEMPLATE, VERSION, CampaignRun, at_step

NEWSLETTER = Path(__file__).parent / "data" / "newsletter.html"
PACE = 10_000_000  # a minute: as fast as it goes
FIRST_WITHIN, LEDGER, RATE = 5.0, 50_000, 1_667  # seconds, rows a second, mails a second
CREATED_WITHIN = 2.0
PATIENCE = 1_800.0
SEED = """
    INSERT INTO contacts (tenant, email, address, first_name, last_name, custom_fields)
    SELECT 'default', $3 || i || '@d' || i % 50 || '.example', $3 || i || '@d' || i % 50 || '.example', 'Ann', 'Reader',
           jsonb_build_object('city', 'Riga', 'club', 'gold', 'country', 'LV', 'dog', 'rex', 'level', 3,
                              'points', i % 1000, 'store', 'Old Town', 'teaser', 'here is what grows')
      FROM generate_series($1::int, $2::int) AS i
"""
LIST = "INSERT INTO contact_lists (tenant, name, created_by) VALUES ('default', 'all', 'bench') RETURNING id"
MEMBERS = """
    INSERT INTO list_contacts (list_id, contact_id, source)
    SELECT $1, id, 'bench' FROM contacts WHERE id > $2 AND id <= $3 AND address LIKE $4 || '%'
"""
PART = 100_000
LEDGER_SIZE = SIZE_OF.format(table="campaign_contacts")
WRITTEN = "SELECT written, total FROM campaign_runs WHERE campaign_id = $1"


class System:
    """mailerd with its API, and its database looked into."""

    def __init__(self, work: Path) -> None:
        self.port = free_port()
        self.peer = Mailerd(
            work / "mailerd",
            http={"bind": f"127.0.0.1:{self.port}", "public_url": "https://mail.signed.example"},
            first_key=True,
            tenants={"default": {"postal_address": "Bench Ltd, 1 Street"}},
        )

    async def seed(self, count: int, prefix: str) -> tuple[int, int]:
        """Contacts on a list, and the newsletter as a template: their numbers."""
        async with self.connected() as connection:
            list_id = await connection.fetchval(LIST)
            for first in range(1, count + 1, PART):
                await connection.execute(SEED, first, min(first + PART - 1, count), prefix)
            highest = await connection.fetchval("SELECT max(id) FROM contacts")
            for first in range(0, highest, PART):
                await connection.execute(MEMBERS, list_id, first, first + PART, prefix)
            html = NEWSLETTER.read_text()
            compiled = compile_template("News for {{ contact.first_name }}", html, "", "html", [])
            template = await connection.fetchval(TEMPLATE, "default")
            await connection.execute(VERSION, template, "News", html, msgspec.to_builtins(compiled))
            await connection.execute("ANALYZE contacts; ANALYZE list_contacts; CHECKPOINT")
        return list_id, template

    def connected(self) -> Any:
        """A context with a connection."""
        url = running_url(self.peer.data_dir)
        assert url is not None
        return db.connected(url)

    def ask(self, statement: str) -> int:
        """The number that a statement answers with."""

        async def asked() -> int:
            async with self.connected() as connection:
                value: int = await connection.fetchval(statement)
                return value

        return asyncio.run(asked())

    async def written(self, campaign: int) -> tuple[bool, int]:
        async with self.connected() as connection:
            row = await connection.fetchrow(WRITTEN, campaign)
        return (row["written"], row["total"]) if row else (False, 0)

    def call(self, path: str, body: dict[str, Any] | None = None) -> tuple[dict[str, Any], float]:
        """POST; what is answered, and how many seconds it took."""
        key = (self.peer.data_dir / "api-key").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/campaigns{path}",
            data=json.dumps(body).encode() if body is not None else b"",
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            method="POST",
        )
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, Any] = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error
        return answer, time.monotonic() - begun


def _plain(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) and value < 10 else f"{value:,.0f}"


def run(work: Path, results: Results, *, contacts: int, mails: int) -> bool:
    """A campaign to so many contacts, of which so many mails are waited for. Whether the figures are as promised."""
    described = machine.describe(work)
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        system = System(work)
        stack.callback(system.peer.stop)
        key, record = make_key(work)
        system.peer.start(bench.sink.port, key, SELECTOR)
        figures = _measure(bench, sink_group, system, contacts, mails)
    verified = verify(work / "sample", record) if (work / "sample").exists() else None
    results.line(machine=described, verified=verified, **figures)
    rows = [(name, _plain(value)) for name, value in figures.items()]
    results.table(f"A campaign to {contacts:,} contacts", ("what", "figure"), rows)
    results.text(machine_line(described))
    return (
        figures["seconds of the call that makes it"] < CREATED_WITHIN
        and figures["seconds from send to the first mail"] < FIRST_WITHIN
        and figures["rows of the ledger a second"] >= LEDGER
        and figures["mails a second"] >= RATE
        and not figures["twice"]
    )


def make(system: System, contacts: int, prefix: str) -> tuple[str, float]:
    """A campaign, not sent yet, to contacts that are made first: its id, and how many seconds the call took."""
    list_id, template = asyncio.run(system.seed(contacts, prefix))
    body = {
        "name": "Bench",
        "template_id": f"tpl_{template}",
        "sender_email": "news@signed.example",
        "sender_name": "Bench",
        "contact_list_ids": [f"lst_{list_id}"],
        "options": {"pace": PACE},
    }
    made, seconds = system.call("", body)
    return made["campaign_id"], seconds


def _measure(bench: Bench, sink: Accounting, system: System, contacts: int, mails: int) -> dict[str, Any]:
    prefix = "r1x"
    bench.sink.begin(prefix)
    campaign, creating = make(system, contacts, prefix)
    begun = time.monotonic()
    _, sending = system.call(f"/{campaign}/send")
    with watched_memory(system.peer.group) as peak:
        first = bench.sink.wait(1, 60.0)["last"] - begun
        writing = _until_written(system, int(campaign.partition("_")[2]), begun)
        steady, at_steady = bench.sink.report()["unique"], time.monotonic()
        cpu_steady, sink_steady = cpu_by_kind(system.peer.group.pids()), sink.cpu()
        wal, rows = system.ask(WAL), system.ask(KEPT)
        report = bench.sink.wait(mails, PATIENCE)
    last, used = report["last"], cpu_by_kind(system.peer.group.pids())
    wal, rows = system.ask(WAL) - wal, system.ask(KEPT) - rows
    sent = report["unique"] - steady
    took = each(cpu_steady, used, sent)
    return {
        "seconds of the call that makes it": creating,
        "seconds of the call that sends it": sending,
        "seconds from send to the first mail": first,
        "rows of the ledger a second": contacts / writing,
        "mails while the ledger was written": steady,
        "mails a second": sent / (last - at_steady),
        **{f"CPU of a mail, µs: {name}": value for name, value in sorted(took.items())},
        "CPU of a mail, µs: the sink": (sink.cpu() - sink_steady) / sent * 1e6,
        "WAL of a mail, bytes": wal / sent,
        "rows that stay of a mail, bytes": rows / sent + system.ask(LEDGER_SIZE) / contacts,
        "memory, MB": max(peak) / 1e6,
        "mails": report["unique"],
        "twice": report["duplicates"],
    }


def _until_written(system: System, campaign: int, begun: float) -> float:
    while not asyncio.run(system.written(campaign))[0]:
        if time.monotonic() > begun + PATIENCE:
            raise TimeoutError("the ledger is not written")
        time.sleep(0.2)
    return time.monotonic() - begun


# crashes


def crash(work: Path, results: Results, *, contacts: int, kills: int) -> bool:
    """Hurt it so often while it is sent; whether everybody has it once, and the ledger and the counts say so."""
    return asyncio.run(_crash(work, results, contacts, kills))


async def _crash(work: Path, results: Results, contacts: int, kills: int) -> bool:
    results.line(machine=machine.describe(work))
    async with laboratory(work) as lab:
        run = CampaignRun(lab, contacts, pace=120_000, prefix="crash-")
        hurt: Counter[str] = Counter()
        await run.start()
        await at_step(lab, "campaign_contacts")
        await lab.daemon.start()
        ways = ["worker", "pause and worker", "daemon", "slow host and workers", "starting daemon", *STEPS]
        for n in range(kills):
            if n and not await run.until_arrived(contacts // (kills + 10), 300):
                break
            way = ways[n % len(ways)]
            hurt[way] += await _hurt(lab, run, way)
            results.line(kill=n, way=way, arrived=run.arrived().total())
        await run.finished(600)
        outcome = await run.outcome()
    rows = [(name, f"{count:,}") for name, count in sorted(outcome.statuses.items())]
    rows += [("killed", f"{sum(hurt.values())}"), ("in doubt, and arrived", f"{outcome.in_doubt_arrived}")]
    wrong = ("lost", "twice", "unsent", "strangers", "miscounted")
    rows += [(name, f"{len(getattr(outcome, name))}") for name in wrong]
    counts = {name: len(getattr(outcome, name)) for name in wrong} | {"in_doubt": outcome.statuses["in_doubt"]}
    results.line(contacts=contacts, kills=hurt.total(), **counts)
    results.table(f"A campaign to {contacts:,} contacts, hurt", ("what became of them", "count"), rows)
    if not outcome.exact:
        results.text("\n".join(f"{name}: {getattr(outcome, name)[:20]}" for name in wrong))
    return outcome.exact


async def _hurt(lab: Laboratory, run: CampaignRun, way: str) -> bool:
    """Whether anything was killed: nobody may have come to the step."""
    await asyncio.sleep(random.uniform(0, 0.5))
    match way:
        case "worker":
            kill(random.choice(lab.daemon.workers()))
        case "pause and worker":
            paused = await run.order("pause") == 200
            kill(random.choice(lab.daemon.workers()))
            if paused:
                await run.order("resume")
        case "slow host and workers":
            await lab.mx.tell("slow 0.5")
            await asyncio.sleep(0.4)
            for pid in lab.daemon.workers():
                kill(pid)
            await lab.mx.tell("normal")
        case "starting daemon":
            await lab.daemon.kill()
            starting = asyncio.create_task(lab.daemon.start())
            await asyncio.sleep(random.uniform(0.05, 2.0))
            await lab.daemon.kill()
            await asyncio.gather(starting, return_exceptions=True)
            await lab.daemon.start()
        case "daemon":
            await lab.daemon.kill()
            await lab.daemon.start()
        case _:
            if not await at_step(lab, STEPS[way]):
                return False
            await lab.daemon.start()
    return True
