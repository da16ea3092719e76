"""Writes the tables of README's figures from the results: between `<!-- figures: NAME -->` and `<!-- end -->`.

    scripts/bench readme            # `scripts/bench all` does it at its end

NAME is one of `MADE`, or `FILE` or `FILE: TITLE`: the tables of the results file FILE.md, or those whose title begins
so; with `FILE: TITLE: WORD` only their rows that have this word. A test compares these blocks with the results.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import relay
from benchmarks.load import Load
from benchmarks.report import Spread

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?P<begin><!-- figures: (?P<name>.+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
TABLE = re.compile(r"^\*\*(?P<title>.+)\*\*\n\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)
NOTHING = "Not measured yet.\n"
LEAST_STAGE = 20.0  # µs a message: what README names of the stages
NO_FSYNC = "does not wait for the disk before it says 250: "

# Why a peer may be ahead in a cell of the relay's table; the first one that fits. What none explains is told as such.
Reason = tuple[Callable[[Load, str], bool], Callable[[str], str]]
REASONS: Sequence[Reason] = (
    (
        lambda _, peer: peer in {"opensmtpd", "slimta"},
        lambda peer: NO_FSYNC + relay.PEERS[peer].at_250,
    ),
    (
        lambda load, _: load.size >= 1024 * 1024,
        lambda _: (
            "what a message of 1 MB costs is its bytes: mailerd has PostgreSQL write them to its log and to a "
            "table, and reads and writes them in Python; the peer writes them once, to a file"
        ),
    ),
)
UNEXPLAINED = "not explained yet"


@dataclass(frozen=True)
class Row:
    """Of the table of all other figures. `{0[rate]:,.0f}` in `figure`: median of the lines that have all of `picks[0]`.

    `rate.sum` is their sum, `count` how many they are. A row whose lines are not there is left out.
    """

    name: str  # of the benchmark
    what: str
    figure: str
    picks: tuple[Mapping[str, object], ...] = ({},)


ROWS = (
    Row(
        "faults",
        "worker, daemon, PostgreSQL or all of them killed under load, at random and at named steps",
        "{0[kills]:,.0f} kills: of {0[counts.promised]:,.0f} recipients promised {0[counts.lost]:,.0f} lost; "
        "{0[counts.twice]:,.0f} came again, {0[counts.unmarked]:,.0f} of them not marked as in doubt",
        ({"kills": ...},),
    ),
    Row(
        "idle",
        "idle SMTP connections",
        "{0[connections]:,.0f}: {0[kb_each]:.1f} KB each, {0[memory_after_mb]:.0f} MB in all, PostgreSQL included",
    ),
    Row(
        "blocked",
        "recipients that wait for one provider; other mail without → with them",
        "{0[recipients]:,.0f} in {0[queues]:,.0f} queues; {1[rate]:,.0f} → {2[rate]:,.0f} messages a second",
        (
            {"brake": "pause", "queues": ...},
            {"system": "without-pause", "rate": ...},
            {"system": "blocked-pause", "rate": ...},
        ),
    ),
    Row(
        "shaping",
        "limits as a counting sink sees them, with 1, 2 and 4 workers and with 2 nodes, beside a backlog",
        "{0[held.sum]:.0f} of {0[count]:.0f} held in every window of their period; of what rates allow "
        "{1[use]:.0%} was used",
        ({"held": ...}, {"use": ...}),
    ),
    Row(
        "webhooks",
        "mail beside webhooks, messages a second",
        "{0[rate]:,.0f} without an endpoint, {1[rate]:,.0f} beside one that hangs, {2[rate]:,.0f} beside 100 that "
        "hang; all events told: {3[rate]:,.0f} in arrays of 100, {4[rate]:,.0f} in a request each",
        (
            {"kind": "no endpoint"},
            {"kind": "hanging, all events"},
            {"kind": "100 hanging endpoints, all events"},
            {"kind": "healthy, all events, 100 a request"},
            {"kind": "healthy, all events, one a request"},
        ),
    ),
    Row(
        "inbound",
        "bounces of 5 KB that come in",
        "{0[rate]:,.0f} a second, {0[cpu_us]:,.0f} µs of CPU each; mail beside 83 of them a second {1[beside]:,.0f} "
        "instead of {1[alone]:,.0f} a second",
        ({"what": "reports alone"}, {"what": "beside mail"}),
    ),
    Row(
        "suppressions",
        "asking for an address among the suppressions, CPU",
        "{0[rows]:,.0f} rows: in batches of 10 {1[wall_us]:.0f} µs, of 100 {2[wall_us]:.0f} µs, alone "
        "{3[wall_us]:.0f} µs",
        ({"rows": ...}, {"batch": 10}, {"batch": 100}, {"batch": 1}),
    ),
    Row(
        "imports",
        "a file of suppressions goes in",
        "{0[rows]:,.0f} lines in {0[seconds]:.1f} s, and once more in {1[seconds]:.1f} s",
        ({"file": "new"}, {"file": "the same again"}),
    ),
    Row(
        "contacts",
        "a CSV of contacts onto a list",
        "{0[rows]:,.0f}: {0[rate]:,.0f} rows a second new, {1[rate]:,.0f} the same again; {0[memory_mb]:.0f} MB",
        ({"file": "new"}, {"file": "the same again"}),
    ),
    Row(
        "templates",
        "rendering a newsletter of 50 KB with 24 variables and 15 tracked links",
        "{0[mean_ms]:.2f} ms, 99 % within {0[p99_ms]:.2f} ms",
        ({"mails": ...},),
    ),
    Row(
        "tracking",
        "opens and clicks, the readers on the same cores",
        "up to {0[per_second]:,.0f} a second; at 3,000 a second half within {1[p50]:.1f} ms, 99 % within {1[p99]:.0f} "
        "ms, {2[p99]:.0f} ms with the database busy, {3[p99]:.0f} ms with it stopped; of {4[answered]:,.0f} answers "
        "{4[told]:,.0f} became events",
        (
            {"name": "quiet, as many as it takes"},
            {"name": "quiet"},
            {"name": "busy"},
            {"name": "stopped"},
            {"answered": ...},
        ),
    ),
    Row(
        "campaign-crash",
        "a campaign that is hurt again and again while it is sent",
        "{0[contacts]:,.0f} contacts, {0[kills]:.0f} attacks: {0[twice]:.0f} had it twice, {0[lost]:.0f} lost, "
        "{0[unsent]:.0f} not sent; {0[in_doubt]:.0f} in doubt and listed so",
        ({"contacts": ...},),
    ),
    Row(
        "campaigns-at-once",
        "campaigns that begin in the same second",
        "{0[campaigns]:,.0f}: the last one's first mail after {0[first_last]:.0f} s, one more campaign's after "
        "{0[new_first]:.1f} s; {0[mails]:,.0f} mails in {0[finished]:.0f} s, {0[twice]:.0f} twice",
        ({"campaigns": ...},),
    ),
    Row(
        "segments",
        "telling the size of a segment",
        "{0[rows]:,.0f} contacts: half of the segments within {1[median_s]:.2f} s",
        ({"rows": ...}, {"median_s": ...}),
    ),
    Row(
        "analytics",
        "events that were counted when reports are asked for; how fast more are counted",
        "{0[events]:,.0f}; {1[events_s]:,.0f} a second",
        ({"events": ...}, {"events_s": ...}),
    ),
)


def rendered(text: str, results: Path) -> str:
    """README's text with every block as the results say. Raises ValueError for a block that nobody makes."""
    return BLOCK.sub(lambda found: f"{found['begin']}\n{block(found['name'], results)}\n{found['end']}", text)


def unexplained(results: Path) -> list[str]:
    """Cells in which a peer is ahead and nobody has said why."""
    return [f"{load.name}: {peer}" for load, peer, *_, why in _ahead(_table(results)) if why == UNEXPLAINED]


def block(name: str, results: Path) -> str:
    """Markdown."""
    if name in MADE:
        return MADE[name](results) or NOTHING
    file, title, word = (*name.split(": ", 2), "", "")[:3]
    if not re.fullmatch(r"[a-z-]+", file):
        raise ValueError(f"there are no figures {name!r}")
    said = "\n".join(
        f"**{found['title']}**\n\n{_with(word, found['rows'])}"
        for found in _tables(file, results)
        if found["title"].startswith(title)
    )
    return f"{said}\n{_source(file, results)}\n" if said else NOTHING


def _tables(file: str, results: Path) -> list[re.Match[str]]:
    path = results / f"{file}.md"
    return list(TABLE.finditer(path.read_text() + "\n")) if path.exists() else []


def _with(word: str, rows: str) -> str:
    """Head and rule of a table, and its rows that have the word."""
    lines = rows.splitlines(keepends=True)
    return "".join(lines[:2] + [line for line in lines[2:] if word in line])


def _source(name: str, results: Path) -> str:
    """Where figures are from."""
    machines = [line["machine"] for line in _lines(name, results) if "machine" in line]
    day = (
        f", {machines[-1]['date'][:16].replace('T', ' ')}"
        if machines
        else ", computed"
        if name == "capacity"
        else ", undated"
    )
    return f"`scripts/bench {name.replace('-crash', ' --crash')}`, [{name}.md](benchmarks/results/{name}.md){day}"


def _lines(name: str, results: Path) -> list[dict[str, Any]]:
    file = results / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# The relay.


def _table(results: Path) -> relay.Table:
    table = relay.Table([load.name for load in relay.every_load()], list(relay.PEERS))
    for number, one in relay.runs_in(_lines("relay", results)):
        table.add(number, one)
    return table


def _machine(results: Path) -> str:
    """Of the relay's figures."""
    for line in _lines("relay", results):
        if (said := line.get("machine")) is not None:
            memory = round(said["memory_mb"] / 1000)
            where = f"{said['cpus']} cores of {said['cpu']}, {memory} GB, Linux {said['kernel']}, {said['filesystem']}"
            return f"Machine of the relay's figures: {where}; Python {said['python']}; {said['date'][:10]}.\n"
    return ""


def _usual(results: Path) -> str:
    """Every peer in the usual cells, rate and CPU; and the memory that it needed in any cell."""
    table = _table(results)
    rows = [
        [load.name, *(_figures(table, load.name, peer) for peer in table.peers)]
        for load in relay.USUAL
        if table.of(load.name, "mailerd")
    ]
    if not rows:
        return ""
    rows.append(["memory (PSS) in all cells, MB", *(_memory(table, peer) for peer in table.peers)])
    said = _markdown(["messages a second, CPU of each", *table.peers], rows)
    return f"{said}\n{_source('relay', results)}\n"


def _figures(table: relay.Table, cell: str, peer: str) -> str:
    if not (runs := table.of(cell, peer)):
        return "–"
    rate, cpu = (median(getattr(one, name) for one in runs) for name in ("rate", "cpu_us"))
    return f"{rate:,.0f}, {cpu / 1000:.2f} ms"


def _memory(table: relay.Table, peer: str) -> str:
    megabytes = [one.memory_mb for load in relay.every_load() for one in table.of(load.name, peer)]
    return f"{min(megabytes):.0f} to {max(megabytes):.0f}" if megabytes else "–"


def _whole(results: Path) -> str:
    """mailerd to the tuned Postfix in every cell that was measured."""
    table = _table(results)
    ratios = relay.ratios_of(table)
    kinds = [(signed, tls) for tls in (False, True) for signed in (False, True)]
    rows = []
    for plain in [load for load in relay.every_load() if not load.signed and not load.tls]:
        twins = [Load(plain.size, plain.clients, plain.kept, signed=signed, tls=tls) for signed, tls in kinds]
        found = [ratios.get((twin.name, "postfix-tuned")) for twin in twins]
        if any(found):
            rows.append([plain.name.removesuffix(", unsigned"), *(_ratio(pair) for pair in found)])
    heads = ["rate and CPU to Postfix (tuned)", "unsigned", "RSA-2048", "STARTTLS", "RSA-2048, STARTTLS"]
    return _markdown(heads, rows) if rows else ""


def _ratio(pair: tuple[Spread, Spread] | None) -> str:
    return f"{pair[0]:.1f}×, {pair[1].middle:.2f}" if pair else "–"


def _ahead(table: relay.Table) -> list[tuple[Load, str, list[str], Spread, Spread, str]]:
    loads = {load.name: load for load in relay.every_load()}
    found = []
    for (cell, peer), (rate, cpu) in relay.ratios_of(table).items():
        if what := relay.ahead_in(rate, cpu):
            found.append((loads[cell], peer, what, rate, cpu, _why(loads[cell], peer)))
    return found


def _why(load: Load, peer: str) -> str:
    return next((say(peer) for fits, say in REASONS if fits(load, peer)), UNEXPLAINED)


def _ahead_block(results: Path) -> str:
    table = _table(results)
    if not table.runs:
        return ""
    cells: dict[tuple[str, str, str], list[str]] = {}
    for load, peer, what, rate, cpu, why in _ahead(table):
        cells.setdefault((peer, ", ".join(what), why), []).append(f"{load.name}: {rate:.2f}, {cpu:.2f}")
    rows = [[peer, what, "<br>".join(mine), why] for (peer, what, why), mine in cells.items()]
    heads = ["peer", "ahead in", "cells: mailerd's rate and CPU to it", "why"]
    return _markdown(heads, rows) if rows else "No peer is ahead in any cell.\n"


# The stages.


def _stages(results: Path) -> str:
    """Those that take LEAST_STAGE somewhere; the others in one row."""
    found = _tables("stages", results)
    if not found:
        return ""
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[0]["rows"].splitlines())
    *stages, all_ = rows
    small = [row for row in stages if max(map(float, row[1:])) < LEAST_STAGE]
    sums = [sum(float(row[place]) for row in small) for place in range(1, len(heads))]
    rest = [f"{len(small)} others", *(f"{microseconds:.0f}" for microseconds in sums)]
    said = _markdown(heads, [*(row for row in stages if row not in small), rest, all_])
    return f"{said}\n{_source('stages', results)}\n"


# All others.


def _others(results: Path) -> str:
    rows = [
        [row.what, row.figure.format(*values), _source(row.name, results)]
        for row in ROWS
        if (values := _values(row, results))
    ]
    return _markdown(["what", "figure", "by"], rows) if rows else ""


def _values(row: Row, results: Path) -> list[dict[str, float]]:
    """For each of the picks the medians of what its lines say; empty: some are not there."""
    lines = [_flat(line) for line in _lines(row.name, results)]
    found = []
    for pick in row.picks or ({},):
        mine = [line for line in lines if _is(line, pick)]
        if not mine:
            return []
        numbers = {key: values for key in mine[-1] if (values := _numbers(mine, key))}
        sums = {f"{key}.sum": sum(values) for key, values in numbers.items()}
        found.append({key: median(values) for key, values in numbers.items()} | sums | {"count": len(mine)})
    return found


def _is(line: Mapping[str, Any], pick: Mapping[str, object]) -> bool:
    """`...` stands for any value."""
    return all(key in line and value in (..., line[key]) for key, value in pick.items())


def _numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines if isinstance(line.get(key), int | float)]


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


MADE: Mapping[str, Callable[[Path], str]] = {
    "machine": _machine,
    "relay, usual cells": _usual,
    "relay, whole table": _whole,
    "relay, peers ahead": _ahead_block,
    "stages, largest": _stages,
    "others": _others,
}
