"""What is calculated from what was measured."""

import json
from pathlib import Path
from xml.etree import ElementTree

import dns.message
import pytest
from rich.console import Console

from benchmarks import backlog, capacity, chart, machine, names, soak
from benchmarks.everything import PARTS, Outcome, Part, Scale, run_parts
from benchmarks.kinds import each, kind_of
from benchmarks.report import MISSED, Results
from benchmarks.soak import Sample
from benchmarks.stages import LOOP, RSA, kind_of_statement, shares, split, stage_of
from mailerd.queue import store

COSTS = capacity.Costs(
    kind="signed",
    daemon_us=1_000,
    postgres_us=300,
    wal_bytes=13_000,
    kept_bytes=1_000,
    worker_mb=100,
    postgres_mb=200,
    connection_kb=7,
    body_bytes=10_000,
)


# capacity


def test_capacity_follows_its_formulas() -> None:
    assumed = capacity.Assumptions(utilisation=0.5, remote_seconds=2.0, connections_per_path=20, largest_provider=0.4)

    found = capacity.need(COSTS, 86_400_000, 1_000, assumed)

    assert (found.worker_cores, found.postgres_cores) == (2, 1)
    assert found.connections == 2_000
    assert found.sources == 40
    assert found.wal_mb_s == pytest.approx(13)
    assert found.wal_gb_day == pytest.approx(86_400_000 * 13_000 / 1e9)
    assert found.kept_gb == pytest.approx(found.kept_gb_day * 365)
    assert found.memory_gb == pytest.approx(0.2 + 0.2 + 0.014)


def scale_line(setting: str, daemon_us: float, *, signed: bool = True) -> dict[str, object]:
    line = {"setting": setting, "signed": signed, "daemon_us": daemon_us, "postgres_us": 300.0, "wal_bytes": 13_000.0}
    return line | {"kept_bytes": 1_000.0, "daemon_mb": 100.0, "postgres_mb": 200.0, "size": 10_240}


def test_costs_are_those_of_the_dearest_setting() -> None:
    lines = [scale_line("1 node, 1 worker each", 900), scale_line("2 nodes, 1 worker each", 1_100)]
    lines += [scale_line("2 nodes, 1 worker each", 1_300), scale_line("2 nodes, 1 worker each", 9_000, signed=False)]

    assert capacity.from_scale([{"machine": {}}, *lines], 7.0, signed=True).daemon_us == 1_200


def test_capacity_says_which_benchmark_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scripts/bench scale"):
        capacity.read_costs(tmp_path, 50_000)


def test_capacity_is_written_from_the_results_of_others(tmp_path: Path) -> None:
    campaign = {"CPU of a mail, µs: PostgreSQL": 400, "CPU of a mail, µs: workers": 1_500, "CPU of a mail, µs: main": 1}
    for name, line in (
        ("scale", scale_line("1 node, 1 worker each", 900)),
        ("campaign", campaign),
        ("idle", {"kb_each": 7.0}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    results = Results(tmp_path, "capacity", Console(quiet=True))

    capacity.run(results, capacity.read_costs(tmp_path, 50_000), capacity.Assumptions())
    *needs, _ = map(json.loads, (tmp_path / "capacity.jsonl").read_text().splitlines())
    assert [(each["per_day"], each["load"]) for each in needs[:2]] == [(10_000_000, "average"), (10_000_000, "5× peak")]
    assert len(needs) == 8


# stages

START = "<module> (mailerd/__main__.py:1);main (mailerd/worker.py:103);run (uvloop/__init__.py:38)"
DRIVER = "Pool.execute (asyncpg/pool.py:5);Connection._do_execute (asyncpg/connection.py:9)"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (START, LOOP),
        (f"{START};run (asyncio/runners.py:86)", LOOP),
        (f"{START};read (asyncpg/pool.py:8)", "database replies"),
        (f"{START};f (mailerd/queue/commit.py:8);accept (mailerd/queue/store.py:7);{DRIVER}", "commit"),
        (f"{START};f (mailerd/delivery/settler.py:8);settle (mailerd/queue/store.py:7);{DRIVER}", "settle"),
        (f"{START};f (mailerd/delivery/attempt.py:8);g (mailerd/delivery/pipeline.py:7)", "SMTP out"),
        (f"{START};f (mailerd/delivery/attempt.py:8);_signed_fields (mailerd/wire/dkim.py:7)", "DKIM: header, hash"),
        (f"{START};f (mailerd/delivery/attempt.py:8);Draft.seal (mailerd/wire/dkim.py:7)", RSA),
        ("run (concurrent/futures/thread.py:1);<lambda> (mailerd/wire/dkim.py:7)", RSA),
        (f"{START};f (mailerd/intake/smtp_server.py:8);_info (structlog/_native.py:7)", "log"),
        (f"{START};f (mailerd/intake/submission.py:8);fix_up (mailerd/wire/message.py:7)", "intake: submission"),
        (
            f"{START};f (/srv/x/mailerd/campaigns/templates/rendering.py:8);<listcomp> (<template>:1)",
            "campaign: render",
        ),
    ],
)
def test_a_sample_belongs_to_the_innermost_file_with_a_stage(stack: str, stage: str) -> None:
    assert stage_of(stack) == stage


def test_the_time_of_each_process_is_shared_out_completely() -> None:
    torn = f"{START};f (\0\x7f\x8a(\0007f8afe4cb2d245e7:3\0)\x85 (mailerd/queue/commit.py:8) 1"  # as py-spy reads some
    samples = shares(f"{START} 3\n{torn}\n")
    used = {"7 worker": 2.0, "8 postgres: mailerd mailerd": 1.0, "9 postgres: checkpointer": 0.5, "6 mailerd.yaml": 0.5}

    found = split(used, {7: samples}, {"accept": 3, "settle": 1}, 1_000)

    assert found["worker, event loop"] == pytest.approx(1_500)
    assert found["worker, commit"] == pytest.approx(500)
    assert found["PostgreSQL, accept"] == pytest.approx(750)
    assert sum(found.values()) == pytest.approx(4_000)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [(store.ACCEPT, "accept"), (store.SETTLE, "settle"), (store.CLAIM, "claim"), ("COMMIT;", "begin, commit")],
)
def test_a_statement_is_known_by_its_beginning(statement: str, kind: str) -> None:
    assert kind_of_statement(statement[:1_023]) == kind  # track_activity_query_size


# soak


def sample(seconds: float, **fields: float) -> Sample:
    values = dict.fromkeys(Sample.__dataclass_fields__, 1.0) | {"seconds": seconds} | fields
    return Sample(**values)  # type: ignore[arg-type]


def test_a_last_third_that_is_like_the_first_is_steady() -> None:
    assert soak.judge([sample(n, workers_mb=100 + n, accept_p99_ms=5) for n in range(30)]) == []


def test_memory_that_grows_is_named() -> None:
    (problem,) = soak.judge([sample(n, workers_mb=100 + 5 * n) for n in range(30)])

    assert problem.startswith("memory")


# backlog


def test_there_are_never_more_domains_than_recipients() -> None:
    cells = backlog.cells([1_000, 1_000_000], [1, 1_000, 100_000])

    assert [(cell.queued, cell.domains) for cell in cells] == [
        (1_000, 1),
        (1_000, 1_000),
        (1_000_000, 1),
        (1_000_000, 1_000),
        (1_000_000, 100_000),
    ]


def test_a_queue_is_held_against_the_shortest_of_as_many_domains() -> None:
    def figures(rate: float, memory_mb: float = 300) -> dict[str, float]:
        return {"rate": rate, "memory_mb": memory_mb, "missing": 0, "duplicates": 0}

    found = [
        (backlog.Cell(1_000, 1), figures(4_000)),
        (backlog.Cell(1_000, 1_000), figures(1_000)),
        (backlog.Cell(100_000, 1), figures(3_100)),
        (backlog.Cell(100_000, 1_000), figures(900)),
        (backlog.Cell(100_000, 100_000), figures(700, 400)),
    ]

    assert backlog.judge(found) == [
        "100,000 over 1 domain: -22% messages a second",
        "100,000 over 100,000 domains: -30% messages a second",
        "100,000 over 100,000 domains: +33% memory",
    ]


def test_sites_are_held_against_sites() -> None:
    def figures(rate: float, memory_mb: float = 300) -> dict[str, float]:
        return {"rate": rate, "memory_mb": memory_mb, "missing": 0, "duplicates": 0}

    found = [
        (backlog.Cell(1_000, 1), figures(4_000, 200)),
        (backlog.Cell(10_000, 1_000, sites=True), figures(1_000)),
        (backlog.Cell(10_000, 10_000, sites=True), figures(400, 390)),
        (backlog.Cell(100_000, 1_000, sites=True), figures(700)),
    ]

    assert backlog.judge(found) == [
        "10,000 over 10,000 sites: +30% memory",
        "100,000 over 1,000 sites: -30% messages a second",
    ]


def test_a_name_server_of_the_benchmark_gives_each_domain_a_host() -> None:
    def ask(name: str, kind: str) -> list[str]:
        query = dns.message.make_query(name, kind)
        found = dns.message.from_wire(names.answer(query.to_wire()))
        assert query.is_response(found)
        return [record.to_text() for rrset in found.answer for record in rrset]

    assert ask("d7.example", "MX") == ["10 mx.d7.example."]
    assert ask("mx.d7.example", "A") == ["127.0.0.1"]
    assert ask("mx.d7.example", "AAAA") == ask("_mta-sts.d7.example", "TXT") == ask("d7.example", "A") == []


# all of it


def test_every_part_of_all_is_a_command_with_words_of_its_own() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    part = Part("campaign --crash", 1, 2, 3, shorter="--kills 9")
    assert part.words(Scale.USUAL) == ["campaign", "--crash", "--kills", "9"]
    assert part.words(Scale.THOROUGH) == ["campaign", "--crash"]
    assert part.words(Scale.QUICK) == ["campaign", "--crash", "--quick"]


def test_all_of_it_fits_into_a_session() -> None:
    assert sum(part.minutes for part in PARTS) <= 150


def outcome(part: Part, tree: str, status: int = 0) -> Outcome:
    return Outcome(part.name, part.words(Scale.QUICK), tree, 1.0, 1.0, status)


def test_parts_that_were_measured_with_this_tree_are_not_run_again(tmp_path: Path) -> None:
    part = Part("capacity", 1, 1, 1)  # has nothing to calculate with, and says so
    results = Results(tmp_path, "all", Console(quiet=True))

    def ran(*known: Outcome) -> list[Outcome]:
        return run_parts([part], tmp_path, tmp_path, Scale.QUICK, results, known=known)

    done, missed, failed = (outcome(part, machine.tree(), status) for status in (0, MISSED, 1))
    assert ran(done) == [done]
    assert ran(missed) == [missed]
    (again,) = ran(failed, outcome(part, "another tree"))
    assert (again.tree, again.status) == (machine.tree(), MISSED)
    assert [line["status"] for line in map(json.loads, (tmp_path / "all.jsonl").read_text().splitlines())] == [MISSED]


def test_results_of_another_tree_are_not_gone_on_with(tmp_path: Path) -> None:
    Results(tmp_path, "relay", Console(quiet=True)).line(machine={"tree": "one"})

    assert Results(tmp_path, "relay", Console(quiet=True), resumed=True, tree="one").lines
    assert not Results(tmp_path, "relay", Console(quiet=True), resumed=True, tree="other").lines
    assert not (tmp_path / "relay.jsonl").read_text()


def test_a_process_is_known_by_its_command_line() -> None:
    commands = (b"postgres: checkpointer \0", b"python\0-m\0mailerd\0worker\0", b"python\0-m\0mailerd\0run\0")
    assert [kind_of(command) for command in commands] == ["PostgreSQL", "workers", "main"]
    assert each({"main": 1.0}, {"main": 1.5, "workers": 1.0}, 1_000) == {"main": 500, "workers": 1_000}


@pytest.mark.parametrize("logarithmic", [False, True])
def test_curves_are_drawn_within_the_picture(*, logarithmic: bool) -> None:
    ticks = [(0.0, "0"), (10.0, "10")]
    points = [(0.0, 0.5), (5.0, 20.0), (10.0, 900.0)]

    picture = ElementTree.fromstring(
        chart.page([chart.plot("a <b>", [("one", points)], ticks=ticks, logarithmic=logarithmic)])
    )

    (curve,) = [element for element in picture.iter() if element.tag.endswith("polyline")]
    places = [tuple(map(float, place.split(","))) for place in curve.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert all(
        0 <= x <= float(picture.attrib["width"]) and 0 <= y <= float(picture.attrib["height"]) for x, y in places
    )
