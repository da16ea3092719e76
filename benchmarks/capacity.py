"""What 10 million and 100 million messages a day need, calculated from what a message was measured to cost.

The costs are read from the results of `scale`, `campaign` and `idle`; everything else is an assumption with a name
(`Assumptions`). It is a model on paper: it adds up CPU, bytes and connections, and knows no contention between nodes
beyond what `scale` saw.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Results

DAY = 86_400
PER_DAY = (10_000_000, 100_000_000)
SOURCES = {"scale": "scripts/bench scale", "campaign": "scripts/bench campaign", "idle": "scripts/bench idle"}


@dataclass(frozen=True)
class Costs:
    """Of one message (CPU µs, bytes), of a worker process (MB), of a client's connection (KB)."""

    kind: str
    daemon_us: float
    postgres_us: float
    wal_bytes: float
    kept_bytes: float
    worker_mb: float
    postgres_mb: float
    connection_kb: float
    body_bytes: float


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here. Say otherwise on the command line."""

    peak: float = 5.0  # times the average of the day
    utilisation: float = 0.6  # of a core at the peak: the rest is for retries, bounces, reports, a dead node
    remote_seconds: float = 1.0  # that a host takes for a message, first byte to last reply
    connections_per_path: int = 20  # delivery.connections_per_path
    largest_provider: float = 0.4  # share of the mail
    events_days: int = 365  # retention.events
    worker_cores: float = 1.0  # a worker is one process with one event loop


@dataclass(frozen=True)
class Need:
    """At a rate of messages a second."""

    rate: float
    worker_cores: int
    postgres_cores: int
    wal_mb_s: float
    wal_gb_day: float
    kept_gb_day: float
    kept_gb: float
    connections: int
    sources: int
    memory_gb: float
    network_mb_s: float


def need(costs: Costs, per_day: float, rate: float, assumed: Assumptions) -> Need:
    """What so many messages a day need in all, and at this rate (messages a second) at the same time."""
    workers = ceil(rate * costs.daemon_us / 1e6 / assumed.utilisation / assumed.worker_cores)
    connections = ceil(rate * assumed.remote_seconds)
    at_one_provider = rate * assumed.largest_provider
    memory = workers * costs.worker_mb / 1e3 + costs.postgres_mb / 1e3 + connections * costs.connection_kb / 1e6
    return Need(
        rate=rate,
        worker_cores=ceil(workers * assumed.worker_cores),
        postgres_cores=ceil(rate * costs.postgres_us / 1e6 / assumed.utilisation),
        wal_mb_s=rate * costs.wal_bytes / 1e6,
        wal_gb_day=per_day * costs.wal_bytes / 1e9,
        kept_gb_day=per_day * costs.kept_bytes / 1e9,
        kept_gb=per_day * costs.kept_bytes / 1e9 * assumed.events_days,
        connections=connections,
        sources=ceil(at_one_provider * assumed.remote_seconds / assumed.connections_per_path),
        memory_gb=memory,
        network_mb_s=rate * costs.body_bytes / 1e6,
    )


FORMULAS = """\
- rate = messages a day / 86,400, at the peak times {peak:g}
- cores for workers = rate × CPU of main process and workers / {utilisation:g}; a worker is one process, one event loop
- cores for PostgreSQL = rate × CPU of PostgreSQL / {utilisation:g}
- WAL = rate × bytes of write-ahead log; a day's archive = messages a day × the same
- rows that stay = messages a day × bytes of events × {events_days} days (`retention.events`)
- connections (Little's law) = rate × {remote_seconds:g} s that a host takes for a message
- sources = rate × {largest_provider:.0%} for the largest provider × {remote_seconds:g} s / {connections_per_path}
  connections of one source at one site (`delivery.connections_per_path`)
- memory = workers × MB of a worker + PostgreSQL's + connections × KB of one
- network = rate × bytes of a body, out; transactional mail comes in, too\
"""


def from_scale(lines: Iterable[Mapping[str, Any]], connection_kb: float, *, signed: bool) -> Costs:
    """Transactional mail: the dearest of the settings, as several nodes cost more than one. Raises ValueError."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("signed") is signed and "daemon_us" in line:
            found.setdefault(line["setting"], []).append(line)
    if not found:
        raise ValueError("the results of scale have no such runs")

    def total(runs: Sequence[Mapping[str, Any]]) -> float:
        return float(median(run["daemon_us"] + run["postgres_us"] for run in runs))

    runs = max(found.values(), key=total)

    def middle(name: str) -> float:
        return float(median(run[name] for run in runs))

    one_worker = [run["daemon_mb"] for name, many in found.items() if name.startswith("1 node, 1 ") for run in many]
    return Costs(
        kind="transactional, signed" if signed else "transactional, unsigned",
        daemon_us=middle("daemon_us"),
        postgres_us=middle("postgres_us"),
        wal_bytes=middle("wal_bytes"),
        kept_bytes=middle("kept_bytes"),
        worker_mb=median(one_worker or [middle("daemon_mb")]),
        postgres_mb=middle("postgres_mb"),
        connection_kb=connection_kb,
        body_bytes=middle("size"),
    )


def from_campaign(lines: Iterable[Mapping[str, Any]], transactional: Costs, body_bytes: float) -> Costs:
    """Campaign mail: rendered, tracked, signed. What its results do not say is as of `transactional`."""
    for line in lines:
        cpu = {key.rpartition(": ")[2]: value for key, value in line.items() if key.startswith("CPU of a mail")}
        if {"workers", "PostgreSQL"} <= cpu.keys():
            return Costs(
                kind="campaign, signed",
                daemon_us=cpu["workers"] + cpu.get("main", 0.0),
                postgres_us=cpu["PostgreSQL"],
                wal_bytes=line.get("WAL of a mail, bytes", transactional.wal_bytes),
                kept_bytes=line.get("rows that stay of a mail, bytes", transactional.kept_bytes),
                worker_mb=transactional.worker_mb,
                postgres_mb=transactional.postgres_mb,
                connection_kb=transactional.connection_kb,
                body_bytes=body_bytes,
            )
    raise ValueError("the results of campaign have no costs")


def read_costs(directory: Path, campaign_body: float) -> list[Costs]:
    """From the results in `directory`. Raises ValueError, saying which benchmark to run, when some are missing."""
    lines = {}
    for name, command in SOURCES.items():
        file = directory / f"{name}.jsonl"
        if not file.exists():
            raise ValueError(f"{file} is missing: {command}")
        lines[name] = [json.loads(line) for line in file.read_text().splitlines()]
    kilobytes = [line["kb_each"] for line in lines["idle"] if "kb_each" in line]
    if not kilobytes:
        raise ValueError(f"the results of idle have no costs: {SOURCES['idle']}")
    signed = from_scale(lines["scale"], kilobytes[-1], signed=True)
    return [signed, from_campaign(lines["campaign"], signed, campaign_body)]


def run(results: Results, known: Sequence[Costs], assumed: Assumptions) -> None:
    """Calculate, and say, what is needed where messages cost so much."""
    results.text("Calculated by `scripts/bench capacity` from the results beside this file; formulas below.")
    names = {
        "daemon_us": "CPU of main process and workers, µs a message",
        "postgres_us": "CPU of PostgreSQL, µs a message",
        "wal_bytes": "write-ahead log, bytes a message",
        "kept_bytes": "rows that stay, bytes a message",
        "worker_mb": "memory of a worker, MB",
        "postgres_mb": "memory of PostgreSQL, MB",
        "connection_kb": "memory of a connection, KB",
        "body_bytes": "body, bytes",
    }
    rows = [[name, *(f"{getattr(costs, key):,.0f}" for costs in known)] for key, name in names.items()]
    results.table("Measured", ["of one message", *(costs.kind for costs in known)], rows)
    rows = []
    for per_day in PER_DAY:
        for costs in known:
            for name, times in (("average", 1.0), (f"{assumed.peak:g}× peak", assumed.peak)):
                found = need(costs, per_day, per_day / DAY * times, assumed)
                results.line(kind=costs.kind, per_day=per_day, load=name, **asdict(found))
                rows.append([f"{per_day / 1e6:.0f} million a day, {costs.kind}, {name}", *_cells(found)])
    heads = ["load", "msg/s", "cores: workers", "PostgreSQL", "WAL MB/s", "WAL GB/day", "rows GB/day", "kept GB"]
    heads += ["connections", "sources", "memory GB", "network MB/s"]
    results.table("Needed", heads, rows)
    results.text("Formulas:\n\n" + FORMULAS.format(**asdict(assumed)))
    results.line(assumed=asdict(assumed), costs=[asdict(costs) for costs in known])


def _cells(found: Need) -> list[str]:
    whole = (found.rate, found.worker_cores, found.postgres_cores)
    tenths = (found.wal_mb_s, found.wal_gb_day, found.kept_gb_day)
    rest = (found.kept_gb, found.connections, found.sources)
    return [
        *(f"{value:,.0f}" for value in whole),
        *(f"{value:,.1f}" for value in tenths),
        *(f"{value:,.0f}" for value in rest),
        f"{found.memory_gb:.1f}",
        f"{found.network_mb_s:.1f}",
    ]
