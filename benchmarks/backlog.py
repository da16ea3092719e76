"""Delivery out of the database: does a long queue, or one of many domains, make each message dearer?

The queue is filled by the product's own statement (`QueueStore.accept`) in an embedded PostgreSQL with no daemon on it,
everything due. Then mailerd starts, as after an outage: how long until the first message arrives, how fast the rest
follows, what it costs. Short queues are filled and drained again and again by the same daemon, so that a second of
delivery is not mistaken for a second of starting.

*Domains* all go to one sink by one route: what the queue costs. *Sites* have a mail exchanger of their own each, found
by DNS (`names`): four lookups, a connection and a mail, as when a newsletter goes to the whole world.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks import chart, machine
from benchmarks.kinds import POSTGRES, cpu_by_kind, watched_kinds
from benchmarks.load import SETTLE, total_cpu
from benchmarks.names import Names
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink
from mailerd import db
from mailerd.db.embedded import EmbeddedPostgres, running_url
from mailerd.db.migrate import migrate
from mailerd.events import Event
from mailerd.queue.ids import IdMaker
from mailerd.queue.mail import Message, Queue, Recipient, queue_of
from mailerd.queue.store import QueueStore

T = TypeVar("T")
PATIENCE = 1_800.0  # seconds
SIZE = 2_048  # bytes of each body
AT_ONCE = 1_000  # messages of one accepting transaction
FILLERS = 4  # at the same time
ENOUGH = 10_000  # mails of one cell, in as many drains as that takes
NUMBER = 2_047  # of the worker whose ids these are: none has it so early
SENDER = "bench@plain.example"
WITHIN = 0.2  # slower than the shortest queue, as the design promises
FLAT = 1.2  # times as much memory
SIZES = """
    SELECT sum(pg_total_relation_size(name::regclass))::bigint
      FROM unnest(ARRAY['recipients', 'messages', 'queues']) AS name
"""
ROWS = "SELECT count(*) FROM recipients"


@dataclass(frozen=True)
class Cell:
    """So many recipients over so many domains; `sites`: each of which has a mail exchanger of its own."""

    queued: int
    domains: int
    sites: bool = False

    @property
    def name(self) -> str:
        noun = "site" if self.sites else "domain"
        return f"{self.queued:,} over {self.domains:,} {noun}{'' if self.domains == 1 else 's'}"


@dataclass(frozen=True)
class Drain:
    """What one queue showed, from full to empty."""

    rate: float  # messages a second between the first arrival and the last
    cpu_us: float  # of all processes, a message
    postgres_us: float
    missing: int
    duplicates: int


def cells(queued: Sequence[int], domains: Sequence[int], *, sites: bool = False) -> list[Cell]:
    """All but those with more domains than recipients."""
    return [Cell(*pair, sites) for pair in product(queued, domains) if pair[0] >= pair[1]]


# Some eight minutes on two quiet cores; with FULL two hours. QUICK is for trying it out.
USUAL = [*cells([1_000, 100_000], [1, 1_000]), *cells([10_000], [1_000, 10_000], sites=True)]
FULL = [
    *cells([1_000, 100_000, 1_000_000], [1, 1_000, 100_000]),
    *cells([10_000, 100_000], [1_000, 10_000, 100_000], sites=True),
]
QUICK = [*cells([500, 5_000], [1, 100]), *cells([500], [100], sites=True)]


def run(work: Path, results: Results, chosen: Sequence[Cell], *, judged: bool) -> bool:
    """Each cell on a database of its own; whether all came once and, if it is `judged`, speed and memory stay."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    found = []
    for cell in chosen:
        with _System(work, cell) as system:
            figures = system.measure()
        results.line(**asdict(cell), **figures)
        told = ", ".join(f"{head} {figures[name]:,.0f}" for name, head in COLUMNS)
        results.console.print(f"{cell.name}: {told}", highlight=False)
        found.append((cell, figures))
    rows = [[cell.name, *(f"{figures[name]:,.0f}" for name, _ in COLUMNS)] for cell, figures in found]
    results.table("Delivery out of a full queue", ["queued", *(head for _, head in COLUMNS)], rows)
    results.picture(
        chart.page([
            chart.bars("Delivered a second", [(cell.name, [("mailerd", f["rate"])]) for cell, f in found]),
            chart.bars("Most memory, MB (PSS)", [(cell.name, [("mailerd", f["memory_mb"])]) for cell, f in found]),
        ])
    )  # fmt: skip
    problems = judge(found)
    results.line(problems=problems)
    results.text("\n".join(problems) or f"Every queue within {WITHIN:.0%} of the shortest, memory flat.")
    return not (judged and problems) and not any(f["missing"] or f["duplicates"] for _, f in found)


COLUMNS = (
    ("fill_rate", "filled/s"),
    ("ready_ms", "start to ready, ms"),
    ("first_ms", "start to first, ms"),
    ("rate", "delivered/s"),
    ("cpu_us", "CPU µs/msg"),
    ("postgres_us", "of it PostgreSQL"),
    ("memory_mb", "PSS MB"),
    ("postgres_mb", "of it PostgreSQL"),
    ("full_mb", "tables MB, full"),
    ("drained_mb", "drained"),
    ("missing", "lost"),
    ("duplicates", "twice"),
)


def judge(found: Sequence[tuple[Cell, dict[str, float]]]) -> list[str]:
    """What is not as promised, in words: held against the shortest queue of as many domains, or as it has.

    Sites are held against sites, and only of as many for their speed: each costs its lookups and connections.
    """
    groups = [[each for each in found if each[0].sites is sites] for sites in (False, True)]
    return [problem for group in groups if group for problem in _judge(group)]


def _judge(found: Sequence[tuple[Cell, dict[str, float]]]) -> list[str]:
    problems = []
    shortest = min(cell.queued for cell, _ in found)
    bases = {cell.domains: figures for cell, figures in found if cell.queued == shortest}
    for cell, figures in found:
        base = bases[max(domains for domains in bases if domains <= cell.domains)]
        if figures["missing"] or figures["duplicates"]:
            problems.append(f"{cell.name}: {figures['missing']:.0f} lost, {figures['duplicates']:.0f} twice")
        compared = not cell.sites or cell.domains in bases
        if compared and figures["rate"] < base["rate"] * (1 - WITHIN):
            problems.append(f"{cell.name}: {figures['rate'] / base['rate'] - 1:+.0%} messages a second")
        memory = (bases[min(bases)] if cell.sites else base)["memory_mb"]
        if figures["memory_mb"] > memory * FLAT:
            problems.append(f"{cell.name}: {figures['memory_mb'] / memory - 1:+.0%} memory")
    return problems


class _System:
    """mailerd with a sink that everything goes to."""

    def __init__(self, work: Path, cell: Cell) -> None:
        self._cell = cell
        directory = work / f"backlog-{cell.queued}-{cell.domains}{'-sites' * cell.sites}"
        directory.mkdir(parents=True)
        self._sink = Sink([], directory)
        self._names = Names() if cell.sites else None
        self._peer = Mailerd(directory / "mailerd", **self._settings())
        self._directory = directory

    def _settings(self) -> dict[str, object]:
        """By default all goes to the sink, whatever the domain."""
        if self._names is None:
            return {}
        return {
            "routes": [],
            "resolver": {"nameservers": [f"127.0.0.1:{self._names.port}"]},
            "delivery": {"port": self._sink.port, "allow_private": True},
        }

    def __enter__(self) -> "_System":
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()
        if self._names is not None:
            self._names.close()
        self._peer.stop()

    def measure(self) -> dict[str, float]:
        key, _ = make_key(self._directory)
        self._sink.begin("r0x")
        fill_rate = self._cell.queued / asyncio.run(self._without_daemon(lambda url: _fill(url, self._cell, "r0x")))
        full = asyncio.run(self._without_daemon(_settled_size))
        with watched_kinds(self._peer.group) as memory:
            begun = time.monotonic()
            drain, ready, first = self._first(key, begun)
            drains = [drain]
            drains += [self._again(f"r{number}x") for number in range(1, ENOUGH // self._cell.queued)]
            warm = drains[1:] or drains
            left = asyncio.run(_ask(self._url(), ROWS))
            drained = asyncio.run(_ask(self._url(), SIZES))
        return {
            "fill_rate": fill_rate,
            "ready_ms": (ready - begun) * 1e3,
            "first_ms": (first - begun) * 1e3,
            "rate": median(drain.rate for drain in warm),
            "cpu_us": median(drain.cpu_us for drain in warm),
            "postgres_us": median(drain.postgres_us for drain in warm),
            "memory_mb": sum(memory.values()) / 1e6,
            "postgres_mb": memory[POSTGRES] / 1e6,
            "full_mb": full / 1e6,
            "drained_mb": drained / 1e6,
            "missing": sum(drain.missing for drain in drains),
            "duplicates": sum(drain.duplicates for drain in drains),
            "left": left,
            "drains": len(drains),
            "first_rate": drains[0].rate,
            "first_cpu_us": drains[0].cpu_us,
        }

    def _first(self, key: Path, begun: float) -> tuple[Drain, float, float]:
        """Start mailerd on the full queue: what came of it, when it was ready, when the first message arrived."""
        self._peer.start(self._sink.port, key, SELECTOR)
        ready = time.monotonic()
        drain, first = self._drain()
        return drain, ready, first

    def _again(self, run: str) -> Drain:
        """Fill the queue while it is blocked, and let it go."""
        self._sink.begin(run)
        asyncio.run(_fill(self._url(), self._cell, run, blocked=True))
        asyncio.run(_unblock(self._url()))
        return self._drain()[0]

    def _drain(self) -> tuple[Drain, float]:
        """From the first arrival on; when that was."""
        first = self._sink.wait(1, PATIENCE)
        count = self._cell.queued
        cpu, kinds = total_cpu([self._peer.group]), cpu_by_kind(self._peer.group.pids())
        report = self._sink.wait(count, PATIENCE)
        time.sleep(SETTLE)
        used = total_cpu([self._peer.group]) - cpu
        postgres = cpu_by_kind(self._peer.group.pids())[POSTGRES] - kinds[POSTGRES]
        report = self._sink.report()
        rest = max(1, count - first["unique"])
        return Drain(
            rate=rest / max(1e-3, report["last"] - first["last"]),
            cpu_us=used / rest * 1e6,
            postgres_us=postgres / rest * 1e6,
            missing=count - report["unique"],
            duplicates=report["duplicates"],
        ), first["last"]

    def _url(self) -> str:
        url = running_url(self._peer.data_dir)
        assert url is not None, "mailerd runs"
        return url

    async def _without_daemon(self, work: Callable[[str], Awaitable[T]]) -> T:
        """Do something with the database of a daemon that does not run."""
        server = EmbeddedPostgres(self._peer.data_dir)
        await server.start()
        try:
            async with db.connected(server.url) as connection:
                await migrate(connection)
            return await work(server.url)
        finally:
            await server.stop(PATIENCE)


async def _fill(url: str, cell: Cell, run: str, *, blocked: bool = False) -> float:
    """Accept the messages, due now, as a worker with no room in memory does; how many seconds that took.

    `blocked`: their queues do not move yet.
    """
    begun = time.monotonic()
    pool = await db.connect_pool(url, max=FILLERS)
    store = QueueStore(pool)
    ids = IdMaker(NUMBER, lambda: time.time_ns() // 1_000_000)
    starts = iter(range(0, cell.queued, AT_ONCE))

    async def fill() -> None:
        for start in starts:
            messages = [message(ids.next(), n, cell, run) for n in range(start, min(start + AT_ONCE, cell.queued))]
            if blocked:
                until = datetime.now(UTC) + timedelta(hours=1)
                queues: set[Queue] = {queue_of(recipient) for each in messages for recipient in each.recipients}
                await store.block(dict.fromkeys(queues, (until, "the benchmark fills")))
            await store.accept(messages, [accepted(each) for each in messages], {})

    try:
        async with asyncio.TaskGroup() as fillers:
            for _ in range(FILLERS):
                fillers.create_task(fill())
        return time.monotonic() - begun
    finally:
        await pool.close()


def message(id_: int, number: int, cell: Cell, run: str) -> Message:
    """A message to one recipient."""
    now = datetime.now(UTC)
    address, domain = f"{number}{run}@d{number % cell.domains}.example", f"d{number % cell.domains}.example"
    made = Message(
        id=id_,
        sender=SENDER,
        stream="transactional",
        pool="default",
        credential="bench",
        tenant="default",
        size=len(CONTENT),
        accepted_at=now,
        content=CONTENT,
        lane=1,
    )
    made.recipients.append(Recipient(made, 1, address, domain, now + timedelta(days=1), now))
    return made


def accepted(made: Message) -> Event:
    """What is written down of its acceptance."""
    facts = {"sender": SENDER, "size": made.size, "recipients": 1, "stream": made.stream, "pool": made.pool}
    facts |= {"credential": made.credential, "protocol": "ESMTP", "peer": "127.0.0.1", "subject": "backlog"}
    address = made.recipients[0].address
    return Event(made.accepted_at, "message.accepted", made.id, 1, address, made.tenant, facts, made.stream)


HEAD = f"From: <{SENDER}>\r\nSubject: backlog\r\nMessage-ID: <a@plain.example>\r\n"
DATE = "Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n\r\n"
CONTENT = (HEAD + DATE + ("x" * 70 + "\r\n") * (SIZE // 72)).encode()


async def _settled_size(url: str) -> int:
    """Bytes of the tables of the queue, with statistics as of a server that has had the time to make them."""
    async with db.connected(url) as connection:
        for table in ("recipients", "messages", "queues"):
            await connection.execute(f"VACUUM ANALYZE {table}")
        size: int = await connection.fetchval(SIZES)
        return size


async def _unblock(url: str) -> None:
    pool = await db.connect_pool(url, max=1)
    await QueueStore(pool).unblock()
    await pool.close()


async def _ask(url: str, statement: str) -> int:
    async with db.connected(url) as connection:
        value: int = await connection.fetchval(statement)
        return value
