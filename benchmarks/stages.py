"""Where a message's microseconds go: the CPU of each stage of its way, unsigned, signed, and in a campaign.

Each worker is sampled by py-spy while mail runs through it. A sample belongs to the innermost frame that lies in a file
of ours with a stage of its own (`STAGES`, by package and file, so that functions may move); what lies in files that
several stages use belongs to its caller. The shares are of the CPU time that the kernel counted for the process, so
the sum is right even where the sampler is not. PostgreSQL's backends are asked a hundred times a second what they run.
"""

import asyncio
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import campaign, machine
from benchmarks.cgroup import accounting
from benchmarks.load import Bench, Load
from benchmarks.peers.mailerd import Mailerd
from benchmarks.profile import folded, peer_times
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from mailerd import db
from mailerd.db.embedded import running_url

# By the beginning of a file's path below mailerd/; the longest that fits. "": a file that stages share.
STAGES = {
    "intake/": "intake: submission",
    "intake/smtp_": "intake: SMTP in",
    "intake/hand_over": "campaign: hand-over",
    "web/": "intake: HTTP",
    "queue/": "",
    "queue/commit": "commit",
    "queue/screening": "suppression asked",
    "queue/suppression": "suppression asked",
    "queue/journal": "journal",
    "queue/workers": "upkeep",
    "delivery/": "attempt",
    "delivery/claims": "dispatch",
    "delivery/dispatcher": "dispatch",
    "delivery/routing": "dispatch",
    "delivery/shares": "dispatch",
    "delivery/resolver": "dispatch",
    "delivery/memory": "dispatch",
    "delivery/line": "dispatch",
    "delivery/turns": "dispatch",
    "delivery/destination": "dispatch",
    "delivery/traffic": "limits",
    "delivery/ledger": "limits",
    "delivery/shaping": "limits",
    "delivery/control": "limits",
    "delivery/lessons": "limits",
    "delivery/grants": "limits",
    "delivery/effects": "limits",
    "delivery/bounds": "limits",
    "delivery/paths": "limits",
    "delivery/warmup": "limits",
    "delivery/identity": "DKIM: header, hash",
    "wire/dkim": "DKIM: header, hash",
    "delivery/transaction": "SMTP out",
    "delivery/pipeline": "SMTP out",
    "delivery/session": "SMTP out",
    "delivery/verdict": "verdict",
    "delivery/settler": "settle",
    "delivery/upkeep": "upkeep",
    "delivery/source_": "upkeep",
    "campaigns/": "campaign: rest",
    "campaigns/mailing": "campaign: mailing",
    "campaigns/analytics": "followers",
    "campaigns/runner": "campaign: hand-over",
    "campaigns/templates": "campaign: render",
    "campaigns/tracking": "campaign: links",
    "wire/tracking": "campaign: links",
    "wire/compose": "campaign: compose",
    "feedback/": "followers",
    "wire/": "",
    "db/": "",
    "events": "",
    "errors": "",
    "config/": "",
    "logs": "log",
    "metrics": "metrics",
    "assignment": "upkeep",
    "": "",  # where a process begins: what has no other file of ours in it is the event loop's
}
RSA = "DKIM: RSA"
SIGNING, SEALS = "wire/dkim", "seal"  # what does the RSA, or whatever of it runs in threads
# What stands in frames of none of our files, by what their paths hold.
OTHERS = (("structlog", "log"), ("logging", "log"), ("asyncpg", "database replies"), ("prometheus", "metrics"))
LOOP = "event loop"
IN_THREADS = "concurrent/futures/thread"
FRAME = re.compile(r"\((?P<file>[^()]+?)(?::\d+)?\)$")
OURS = re.compile(r"(?:^|/)mailerd/(?P<file>.+)\.py$")

STATEMENTS = (
    ("accept", re.compile(r"INSERT INTO messages")),
    ("settle", re.compile(r"DELETE FROM recipients USING|WITH finished")),
    ("suppression asked", re.compile(r"suppressions")),
    ("campaign", re.compile(r"campaign|contacts|template")),
    ("claim", re.compile(r"recipients|queues|FROM messages")),
    ("events read", re.compile(r"events")),
    ("leases, limits", re.compile(r"workers|effects|grants|nodes|LISTEN|NOTIFY", re.IGNORECASE)),
    ("begin, commit", re.compile(r"^\s*(?:BEGIN|COMMIT|ROLLBACK|START)", re.IGNORECASE)),
)
RUNNING = """
    SELECT query FROM pg_stat_activity
     WHERE backend_type = 'client backend' AND state = 'active' AND wait_event IS NULL AND pid <> pg_backend_pid()
"""
ASK = 0.01  # seconds
WARM = 1_000


def stage_of(stack: str) -> str:
    """The stage of one folded stack, outermost frame first: `main (a.py:1);inner (b.py:2)`."""
    frames = [(frame, match["file"]) for frame in stack.split(";") if (match := FRAME.search(frame))]
    files = [file for _, file in frames]
    for part, stage in OTHERS[:2]:
        if files and f"/{part}/" in f"/{files[-1]}":
            return stage
    for frame, path in reversed(frames):
        if (match := OURS.search(path)) and (stage := _stage_of_file(file := match["file"])):
            threaded = any(IN_THREADS in each for each in files)
            return RSA if file == SIGNING and (threaded or SEALS in frame) else stage
    for part, stage in OTHERS:
        if any(f"/{part}" in f"/{file}" for file in files):
            return stage
    return LOOP


def _stage_of_file(file: str) -> str:
    return STAGES[max((prefix for prefix in STAGES if file.startswith(prefix)), key=len)]


def shares(folded_stacks: str) -> dict[str, float]:
    """Of the samples of one process, by stage."""
    counts: Counter[str] = Counter()
    for line in folded_stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if count.isdecimal():  # a name that was read while it changed has bytes that end a line
            counts[stage_of(stack)] += int(count)
    total = sum(counts.values()) or 1
    return {stage: count / total for stage, count in counts.items()}


def kind_of_statement(query: str) -> str:
    return next((name for name, pattern in STATEMENTS if pattern.search(query)), "other")


@dataclass(frozen=True)
class Flow:
    """One kind of mail: `run` sends some and says how many arrived."""

    name: str
    peer: Mailerd
    send: Callable[[], int]


def run(work: Path, results: Results, *, seconds: float, contacts: int, count: int) -> bool:
    """Watch each kind of mail for so long; whether there were samples of all."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(f"{machine_line(described)}; {seconds:g} s each")
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        key, _ = make_key(work)
        with ExitStack() as relayed:
            peer = Mailerd(work / "relay")
            relayed.callback(peer.stop)
            peer.start(bench.sink.port, key, SELECTOR)
            for load in (Load(count=count), Load(signed=True, count=count)):
                bench.run(peer, Load(count=WARM, signed=load.signed))
                flow = Flow(load.name, peer, lambda load=load: bench.run(peer, load).count)  # type: ignore[misc]
                found[flow.name] = _watch(flow, seconds, work)
        system = campaign.System(work)
        stack.callback(system.peer.stop)
        system.peer.start(bench.sink.port, key, SELECTOR)
        found["campaign, 50 KB, RSA-2048"] = _watch(_campaign(system, bench, contacts), seconds, work)
    for name, stages in found.items():
        results.line(flow=name, us_by_stage=stages)
    names = sorted({stage for stages in found.values() for stage in stages}, key=_order(found))
    rows = [[name, *(f"{stages.get(name, 0.0):.0f}" for stages in found.values())] for name in names]
    rows.append(["all", *(f"{sum(stages.values()):.0f}" for stages in found.values())])
    results.table("CPU of each stage, µs a message", ["stage", *found], rows)
    return all(any(name.startswith("worker") for name in stages) for stages in found.values())


def _order(found: Mapping[str, Mapping[str, float]]) -> Callable[[str], tuple[str, float]]:
    """Workers' stages first, each kind by what it costs in the mean."""

    def key(stage: str) -> tuple[str, float]:
        return {"w": "0", "P": "1"}.get(stage[0], "2"), -sum(stages.get(stage, 0.0) for stages in found.values())

    return key


def _campaign(system: campaign.System, bench: Bench, contacts: int) -> Flow:
    """Mail of a campaign under way, in pieces of what arrives in a while."""
    bench.sink.begin("r1x")
    made, _ = campaign.make(system, contacts, "r1x")
    system.call(f"/{made}/send")
    bench.sink.wait(min(WARM, contacts // 10), campaign.PATIENCE)

    def send() -> int:
        before: int = bench.sink.report()["unique"]
        time.sleep(1.0)
        after: int = bench.sink.report()["unique"]
        return after - before

    return Flow("campaign", system.peer, send)


def _watch(flow: Flow, seconds: float, work: Path) -> dict[str, float]:
    """µs a message by stage of the workers, by statement of PostgreSQL's backends, and of all other processes."""
    stacks: dict[int, str] = {}

    def record(pid: int) -> None:
        stacks[pid] = folded(pid, seconds, work / f"stages-{pid}.folded")

    watchers = [threading.Thread(target=record, args=(pid,)) for pid in flow.peer.workers()]
    with _statements(flow.peer) as statements:
        before, begun = peer_times(flow.peer), time.monotonic()
        for watcher in watchers:
            watcher.start()
        sent = 0
        while sent == 0 or time.monotonic() < begun + seconds:
            sent += flow.send()
        after = peer_times(flow.peer)
        for watcher in watchers:
            watcher.join()
    used = {name: sum(times) - sum(before.get(name, (0.0, 0.0))) for name, times in after.items()}
    return split(used, {pid: shares(text) for pid, text in stacks.items()}, statements, sent)


def split(
    used: Mapping[str, float], stages: Mapping[int, Mapping[str, float]], statements: Mapping[str, int], count: int
) -> dict[str, float]:
    """Share out the seconds of each process (`"12 worker"`: pid, what it calls itself) over its stages, in µs."""
    found: defaultdict[str, float] = defaultdict(float)
    asked = sum(statements.values()) or 1
    for name, seconds in used.items():
        pid, _, what = name.partition(" ")
        micros = seconds / count * 1e6
        if (of := stages.get(int(pid))) is not None:
            for stage, share in of.items():
                found[f"worker, {stage}"] += micros * share
        elif what.startswith("postgres: mailerd"):
            for statement, times in (statements or {"not asked": 1}).items():
                found[f"PostgreSQL, {statement}"] += micros * times / asked
        elif what.startswith("postgres"):
            found["PostgreSQL, its other processes"] += micros
        else:
            found["main process"] += micros
    return dict(found)


@contextmanager
def _statements(peer: Mailerd) -> Iterator[Counter[str]]:
    """Counts what PostgreSQL's backends are at, by kind of statement."""
    counts: Counter[str] = Counter()
    done = threading.Event()
    url = running_url(peer.data_dir)
    assert url is not None, "mailerd runs"

    async def ask() -> None:
        async with db.connected(url) as connection:
            statement = await connection.prepare(RUNNING)
            while not done.is_set():
                counts.update(kind_of_statement(row["query"]) for row in await statement.fetch())
                await asyncio.sleep(ASK)

    asker = threading.Thread(target=lambda: asyncio.run(ask()), name="statements")
    asker.start()
    try:
        yield counts
    finally:
        done.set()
        asker.join()
