"""How the relay table is made of runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import relay, syncs
from benchmarks.load import Load, Run
from benchmarks.peers import Peer
from benchmarks.peers.mailerd import Mailerd
from benchmarks.peers.opensmtpd import OpenSmtpd
from benchmarks.peers.postfix import TunedPostfix
from benchmarks.report import Results

LOADS = (Load(count=10), Load(count=10, signed=True))


def ran(peer: str, load: Load, rate: float = 100.0, cpu: float = 1000.0) -> Run:
    return Run(
        peer=peer,
        cell=load.name,
        rate=rate,
        accept_rate=rate,
        cpu_us=cpu,
        memory_mb=1.0,
        flushes=1.0,
        source_us=1.0,
        sink_us=1.0,
        count=load.count,
        missing=0,
        duplicates=0,
        strays=0,
        signed=load.count if load.signed else 0,
        tls=load.count if load.tls else 0,
        load=0.0,
    )


def results(directory: Path, *, resumed: bool = False) -> Results:
    return Results(directory, "relay", Console(quiet=True), resumed=resumed)


@pytest.fixture
def systems() -> list[Peer]:
    """Not started: what they are is enough."""
    return [object.__new__(kind) for kind in (Mailerd, TunedPostfix, OpenSmtpd)]


def table(systems: list[Peer]) -> relay.Table:
    return relay.Table([load.name for load in LOADS], [peer.name for peer in systems])


def test_every_cell_is_in_the_matrix_once() -> None:
    names = [load.name for load in relay.every_load()]
    assert len(set(names)) == len(names) == 64
    assert {load.name for load in relay.USUAL} <= set(names)


def test_nobody_is_asked_for_what_it_cannot(systems: list[Peer], tmp_path: Path) -> None:
    empty = table(systems)
    left = relay._left(2, LOADS, systems, results(tmp_path), empty, relay.PEERS)

    assert [(number, load.signed, peer.name) for number, load, peer in left] == [
        (0, False, "mailerd"),
        (0, False, "postfix-tuned"),
        (0, False, "opensmtpd"),
        (1, False, "postfix-tuned"),
        (1, False, "opensmtpd"),
        (1, False, "mailerd"),
        (0, True, "mailerd"),
        (0, True, "postfix-tuned"),
        (1, True, "postfix-tuned"),
        (1, True, "mailerd"),
    ]
    assert empty.why_not == {(LOADS[1].name, "opensmtpd"): "does not sign"}


def test_of_the_whole_table_most_peers_have_the_usual_cells_only(systems: list[Peer], tmp_path: Path) -> None:
    loads = relay.sized([Load(), Load(size=1024, clients=100)], 1.0)
    left = relay._left(1, loads, systems, results(tmp_path), table(systems), relay.MATRIX_PEERS)

    assert [(load.name, peer.name) for _, load, peer in left] == [
        ("10 KB, 20 kept, unsigned", "mailerd"),
        ("10 KB, 20 kept, unsigned", "postfix-tuned"),
        ("10 KB, 20 kept, unsigned", "opensmtpd"),
        ("1 KB, 100 kept, unsigned", "mailerd"),
        ("1 KB, 100 kept, unsigned", "postfix-tuned"),
    ]
    assert [load.count for _, load, _ in left[:2]] == [6_000, 2_400]  # a slower peer is sent less


def test_a_run_that_was_stopped_goes_on_with_the_round_that_was_not_whole(systems: list[Peer], tmp_path: Path) -> None:
    first = results(tmp_path)
    for peer in systems:
        first.line(round=0, **ran(peer.name, relay.for_peer(LOADS[0], peer.name)).as_dict())
    first.line(round=1, **ran("mailerd", LOADS[0]).as_dict())
    with first.path(".jsonl").open("a") as file:
        file.write('{"round": 1, "peer": "postf')

    again = results(tmp_path, resumed=True)
    resumed = table(systems)
    left = relay._left(2, LOADS, systems, again, resumed, relay.PEERS)

    assert {(number, load.name) for number, load, _ in left} == {
        (1, LOADS[0].name),
        (0, LOADS[1].name),
        (1, LOADS[1].name),
    }
    assert len([load for number, load, _ in left if (number, load.name) == (1, LOADS[0].name)]) == 3
    assert [one.peer for one in resumed.of(LOADS[0].name, "opensmtpd")] == ["opensmtpd"]
    assert len([json.loads(line) for line in again.path(".jsonl").read_text().splitlines()]) == 4


def test_runs_of_another_number_of_messages_are_not_gone_on_with(systems: list[Peer], tmp_path: Path) -> None:
    first = results(tmp_path)
    for peer in systems:
        first.line(round=0, **ran(peer.name, replace(LOADS[0], count=99)).as_dict())

    left = relay._left(1, LOADS[:1], systems, results(tmp_path, resumed=True), table(systems), relay.PEERS)

    assert len(left) == 3


def test_a_peer_is_ahead_where_the_median_of_the_same_rounds_says_so(systems: list[Peer]) -> None:
    filled = table(systems)
    for number, (ours, theirs) in enumerate([(100.0, 50.0), (100.0, 110.0), (100.0, 120.0)]):
        filled.add(number, ran("mailerd", LOADS[0], rate=ours))
        filled.add(number, ran("postfix-tuned", LOADS[0], rate=theirs, cpu=5000.0))
    filled.add(7, ran("postfix-tuned", LOADS[0], rate=1e6))  # ours broke in this round

    ratios = relay._ratios(filled.pairs(LOADS[0].name, "postfix-tuned"))

    assert relay._ahead({("cell", "postfix-tuned"): ratios}) == [
        ["cell", "postfix-tuned", "rate", "0.91 (0.83–2.00)", "0.20"]
    ]
    assert relay._ahead({})[0][0] == "none"


def test_a_run_is_complete_when_all_of_it_came_once_signed_and_encrypted_as_it_was_to_be() -> None:
    for load in (Load(), Load(signed=True), Load(tls=True)):
        good = ran("mailerd", load)
        assert good.complete
        for wrong in ({"missing": 1}, {"duplicates": 1}, {"signed": 7}, {"tls": 7}):
            assert not replace(good, **wrong).complete  # type: ignore[arg-type]


def test_the_calls_are_read_from_the_summary_of_strace() -> None:
    summary = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.11    0.700000         700      1000         3 fsync
  9.89    0.070000         700       100           fdatasync
------ ----------- ----------- --------- --------- ----------------
100.00    0.770000         700      1100         3 total
"""
    assert syncs.parse(summary) == {"fsync": 1000, "fdatasync": 100}
    assert syncs.parse("") == {}
