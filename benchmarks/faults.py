"""kill -9 of workers, the daemon and PostgreSQL, at random moments and at named steps, under load and amid campaigns.

    scripts/bench faults --kills 500
    scripts/bench faults --kills 500 --resume       what was done before counts, the rest is done now

Clients submit by SMTP and HTTP all the time and write down who was answered 250 or 202, and one campaign follows the
other. The kills come in parts of `PART`, each on a daemon of its own. At the end of a part the queue drains, and the
ledger of the clients is compared with that of the mail exchanger and with the events: everything promised arrived,
nothing arrived twice unless the events mark it as in doubt, the events of each recipient are in order, and campaigns
reached each contact once. The exit status is not 0 when that is not so. Every kill is of a process that we started.

What became of mail is put down to the kill that was next when it was submitted.
"""

import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks import machine
from benchmarks.report import MISSED, Results, machine_line, trees_of
from tests.faults import steps
from tests.faults.laboratory import Comparison, Laboratory, kill, laboratory
from tests.support.campaign_run import STEPS as TABLES
from tests.support.campaign_run import CampaignRun, at_step
from tests.support.submitters import Submitters

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path(__file__).parent / "work" / "quick"  # that nobody takes them for figures
USUAL, FEW = 500, 6  # kills
FROZEN = 40.0  # seconds; longer than a lease
EARLY = 0.25  # share of the kills that do not wait until mail flows again after the one before
RECOVERED = 90.0  # seconds in which mail has to flow again
SOME = 20  # recipients promised show that it does
PART = 100  # kills of one daemon and its data directory
LOAD = {"smtp": 16, "http": 4, "pause": 0.1}  # enough to be met by every kill; the rest is for starting again
CONTACTS = 1_500  # of a campaign
PACE = 3_000  # of them a minute: campaigns are under way all the time, and leave the machine to the other mail
LOOK = 5.0  # seconds between looks at how far a campaign is
COME = 10.0  # seconds in which a campaign under way comes to a step
FINISHED = 300.0  # seconds for a campaign to be sent and counted once nothing is hurt any more
COUNTED = ("promised", "lost", "broken", "twice", "unmarked", "in_doubt", "disorder")  # recipients, of one kill

console = Console(width=None if sys.stdout.isatty() else 160)
Hurt = Callable[[Laboratory], Awaitable[None]]


async def kill_worker(lab: Laboratory) -> None:
    if workers := lab.daemon.workers():
        kill(random.choice(workers))


async def kill_daemon(lab: Laboratory) -> None:
    await lab.daemon.kill()
    await lab.daemon.start()


async def kill_starting_daemon(lab: Laboratory) -> None:
    """Twice: once as it serves, and once somewhere in the start that follows."""
    await lab.daemon.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(random.uniform(0.05, 2.0)):
            await lab.daemon.start()
    await lab.daemon.kill()
    await lab.daemon.start()


async def kill_postmaster(lab: Laboratory) -> None:
    if (pid := lab.daemon.postmaster()) is not None:
        kill(pid)


async def kill_session(lab: Laboratory) -> None:
    if backends := lab.daemon.backends():
        kill(random.choice(backends))


async def kill_all(lab: Laboratory) -> None:
    """As when the power fails, as far as processes go."""
    for pid in [lab.daemon.postmaster(), *lab.daemon.backends(), *lab.daemon.workers()]:
        if pid is not None:
            kill(pid)
    await lab.daemon.kill()
    await lab.daemon.start()


async def freeze_worker(lab: Laboratory) -> None:
    """A worker stands still; the daemon finds out and kills it."""
    worker = random.choice(lab.daemon.workers())
    kill(worker, signal.SIGSTOP)
    await asyncio.sleep(FROZEN)
    kill(worker, signal.SIGCONT)


async def freeze_worker_and_daemon(lab: Laboratory) -> None:
    """Nobody kills the worker that stands still; another one takes over, and then it goes on."""
    worker = random.choice(lab.daemon.workers())
    kill(lab.daemon.process.pid, signal.SIGSTOP)
    kill(worker, signal.SIGSTOP)
    await asyncio.sleep(FROZEN)
    kill(worker, signal.SIGCONT)
    await asyncio.sleep(2)
    kill(lab.daemon.process.pid, signal.SIGCONT)


KILLS: dict[str, Hurt] = {
    "worker": kill_worker,
    "daemon": kill_daemon,
    "postmaster": kill_postmaster,
    "database session": kill_session,
    "daemon, and as it starts": kill_starting_daemon,
    "all at once": kill_all,
}
STEPS = (*steps.STEPS, *steps.OF_CAMPAIGNS)
FREEZES: dict[str, Hurt] = {
    "worker stopped 40 s": freeze_worker,
    "worker and daemon stopped 40 s": freeze_worker_and_daemon,
}


class Campaigns:
    """One after the other in one laboratory; all are looked at in the end."""

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab
        self._runs: list[CampaignRun] = []
        self._looked = -LOOK

    async def keep_going(self) -> None:
        """Begin another when the last one is through."""
        if time.monotonic() < self._looked + LOOK:
            return
        self._looked = time.monotonic()
        if self._runs and self._runs[-1].arrived().total() < CONTACTS * 0.9:
            return
        run = CampaignRun(self._lab, CONTACTS, pace=PACE, prefix=f"campaign{len(self._runs) + 1}-")
        await run.start()
        self._runs.append(run)

    async def counts(self) -> Counter[str]:
        """Wait for the end of all; contacts by what became of them, the wrong ones by the names of `Outcome`."""
        found: Counter[str] = Counter()
        for run in self._runs:
            await run.finished(FINISHED)
            outcome = await run.outcome()
            found += outcome.statuses
            found["contacts"] += outcome.contacts
            found["in doubt, and arrived"] += outcome.in_doubt_arrived
            for name in WRONG:
                found[name] += len(getattr(outcome, name))
            if not outcome.exact:
                console.print(outcome)
        return found


WRONG = ("lost", "twice", "unsent", "strangers", "miscounted")


@dataclass
class Kind:
    """All kills of one kind: how many, for how long nobody was promised anything then, and `COUNTED`."""

    kills: int = 0
    outages: list[float] = field(default_factory=list)  # seconds
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Kind") -> None:
        self.kills += other.kills
        self.outages += other.outages
        self.counts = dict(Counter(self.counts) + Counter(other.counts))


@dataclass
class Part:
    """What a part leaves in the results, one line each."""

    seconds: float
    kinds: dict[str, Kind]
    campaigns: dict[str, int]
    recipients: dict[str, int]  # of the whole part: refused, unanswered, …
    kept: bool

    @property
    def kills(self) -> int:
        return sum(kind.kills for kind in self.kinds.values())


class Run:
    """One laboratory, hurt again and again."""

    def __init__(self, lab: Laboratory, load: Submitters, results: Results) -> None:
        self._lab = lab
        self._load = load
        self._results = results
        self.campaigns = Campaigns(lab)
        self.kinds: dict[str, Kind] = {}
        self._names: list[str] = []  # of the kills, in their order

    async def hurt(self, name: str, *, early: bool) -> bool:
        """Do it, and see for how long nobody was promised anything; False: nobody came to the step."""
        self._load.mark(f"k{len(self._names)}-")
        self._names.append(name)
        begun = time.monotonic()
        if not early:
            await self._load.until_promised(random.randrange(10, 100))
            await self.campaigns.keep_going()
        await asyncio.sleep(random.uniform(0, 0.3))
        self._load.promises.longest_gap = 0.0
        ready = time.monotonic()
        done = await self._do(name)
        hurt = time.monotonic()
        async with asyncio.timeout(RECOVERED):
            await self._load.until_promised(SOME)
        seconds = self._load.promises.longest_gap
        ended = time.monotonic()
        took = {"waited": ready - begun, "hurting": hurt - ready, "recovering": ended - hurt}
        took = {what: round(each, 2) for what, each in took.items()}
        self._results.line(hurt=name, early=early, done=done, seconds=round(seconds, 3), took=took)
        kind = self.kinds.setdefault(name, Kind())
        kind.kills += done
        kind.outages += [seconds] if done else []
        return done

    async def _do(self, name: str) -> bool:
        lab = self._lab
        if how := (KILLS | FREEZES).get(name):
            await how(lab)
        elif name in TABLES:
            if not await at_step(lab, TABLES[name]):
                return False
            await lab.daemon.start()
        elif name in steps.STEPS:
            await steps.kill_at(lab, name)
        else:
            lab.daemon.arm(f"{name}=kill")
            with suppress(AssertionError):
                await lab.daemon.fired(COME)
                return True
            lab.daemon.disarm()  # the campaign was through
            return False
        return True

    def attribute(self, comparison: Comparison, twice: Sequence[str], doubtful: set[str]) -> None:
        """Count by kinds of kills what became of recipients."""
        promised = self._load.promises.promised
        found = (
            promised,
            comparison.lost,
            comparison.broken,
            twice,
            comparison.unmarked,
            doubtful,
            comparison.disorder,
        )
        for what, addresses in zip(COUNTED, found, strict=True):
            for address in addresses:
                label = address.removeprefix(f"{self._load.prefix}k").partition("-")[0]
                name = self._names[int(label)] if label.isdigit() else "before the first"
                counts = self.kinds.setdefault(name, Kind()).counts
                counts[what] = counts.get(what, 0) + 1


async def part(names: Sequence[str], results: Results, directory: Path) -> Part:
    """One daemon, hurt in these ways, and what became of its mail."""
    begun = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    async with laboratory(directory) as lab:
        load = lab.load(**LOAD)
        load.start()
        run = Run(lab, load, results)
        for number, name in enumerate(names):
            await run.hurt(name, early=number > 0 and random.random() < EARLY)
        await load.stop()
        comparison = await lab.verdict(load)
        campaigns = await run.campaigns.counts()
        times = Counter(arrival.address for arrival in lab.arrivals(load))
        twice = [address for address, count in times.items() if count > 1]
        run.attribute(comparison, twice, await lab.doubtful(load))
    kept = comparison.kept and not any(campaigns[name] for name in WRONG)
    if not kept:
        console.print(comparison)
    sums = {name: value for name, value in asdict(comparison).items() if isinstance(value, int)}
    return Part(time.monotonic() - begun, run.kinds, dict(campaigns), sums, kept)


def in_turn(count: int) -> list[str]:
    """The kinds of so many kills: all of them once in a random order, then again."""
    kinds = [*KILLS, *STEPS, *TABLES]
    names: list[str] = []
    while len(names) < count:
        names += random.sample(kinds, len(kinds))
    return names[:count]


def before(file: Path) -> list[Part]:
    """The parts of an earlier run of this very tree."""
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()] if file.exists() else []
    if trees_of(lines) != {machine.tree()}:
        return []
    return [msgspec.convert(line["part"], Part) for line in lines if "part" in line]


def report(results: Results, parts: Sequence[Part]) -> None:
    kinds: dict[str, Kind] = {}
    campaigns: Counter[str] = Counter()
    recipients: Counter[str] = Counter()
    for each in parts:
        campaigns.update(each.campaigns)
        recipients.update(each.recipients)
        for name, kind in each.kinds.items():
            kinds.setdefault(name, Kind()).add(kind)
    rows = [_row(name, kind) for name, kind in sorted(kinds.items())]
    total = Kind()
    for kind in kinds.values():
        total.add(kind)
    heads = ("killed", "times", "no promise for, median", "longest", *(name.replace("_", " ") for name in COUNTED))
    results.table("Kills under load, and what became of the recipients", heads, [*rows, _row("all", total)])
    counts = [(name.replace("_", " "), f"{count:,}") for name, count in recipients.items()]
    results.table("Recipients", ("what became of them", "count"), counts)
    results.table(
        "Contacts of campaigns", ("what became of them", "count"), [(n, f"{c:,}") for n, c in campaigns.items()]
    )
    summary = {"kills": total.kills, "seconds": round(sum(each.seconds for each in parts)), "recipients": recipients}
    summary |= {"counts": {name: total.counts.get(name, 0) for name in COUNTED}}
    summary |= {"campaigns": campaigns, "kept": all(each.kept for each in parts)}
    results.line(**summary)
    results.path(".json").write_text(json.dumps(summary, indent=2) + "\n")


def _row(name: str, kind: Kind) -> tuple[str, ...]:
    middle, longest = (median(kind.outages), max(kind.outages)) if kind.outages else (0.0, 0.0)
    return (
        name,
        f"{kind.kills}",
        f"{middle:.1f} s",
        f"{longest:.1f} s",
        *(f"{kind.counts.get(what, 0):,}" for what in COUNTED),
    )


def directory_of(kills: int, *, quick: bool, resume: bool) -> Path:
    """Where results go that nobody gave a place: few kills are no figures, unless they are the rest of more."""
    return QUICK_RESULTS if quick or (kills < USUAL and not resume) else RESULTS


def main(
    kills: Annotated[int | None, typer.Option(min=1, help=f"{USUAL} if not given.", show_default=False)] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{FEW} kills and no freezes: to see that it works, not for figures.")
    ] = False,
    freezes: Annotated[bool, typer.Option(help="Stop processes for 40 s, too.")] = True,
    resume: Annotated[bool, typer.Option(help="Go on behind the parts that an earlier run has finished.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the random moments; they still depend on the machine.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A directory for data and logs, kept afterwards.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where faults.json and faults.md are written: benchmarks/results if not given, with --quick or fewer "
            "kills than usual benchmarks/work/quick, unless they are resumed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Kill, count, report."""
    random.seed(seed)
    kills, freezes = kills or (FEW if quick else USUAL), freezes and not quick
    out = out or directory_of(kills, quick=quick, resume=resume)
    parts = before(out / "faults.jsonl") if resume else []
    results = Results(out, "faults", console)
    described = machine.describe(out)
    results.line(machine=described)
    results.text(machine_line(described))
    for each in parts:
        results.line(part=msgspec.to_builtins(each))
    done = sum(each.kills for each in parts)
    with tempfile.TemporaryDirectory(prefix="mailerd-faults-") as temporary:
        while done < kills:
            names = in_turn(min(PART, kills - done))
            if freezes and done + len(names) >= kills:
                names += FREEZES
            directory = (keep or Path(temporary)) / f"part{len(parts) + 1}"
            parts.append(asyncio.run(part(names, results, directory)))
            results.line(part=msgspec.to_builtins(parts[-1]))
            if keep is None:
                shutil.rmtree(directory, ignore_errors=True)
            if not parts[-1].kills:
                break
            done += parts[-1].kills
            rate = parts[-1].kills / parts[-1].seconds * 60
            console.print(f"{done} of {kills} kills, {rate:.0f} a minute", highlight=False)
    report(results, parts)
    if not all(each.kept for each in parts):
        raise typer.Exit(MISSED)
