"""That README says what the results say."""

import json
from pathlib import Path

import pytest

from benchmarks import readme, relay
from benchmarks.load import Load
from benchmarks.options import RESULTS
from tests.benchmarks.test_relay import ran

README = "before\n<!-- figures: {} -->\nwhat was here\n<!-- end -->\nafter\n"


def write(directory: Path, name: str, *lines: dict[str, object]) -> None:
    (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def compare(directory: Path, load: Load, *, peer: str, ours: float, theirs: float) -> None:
    runs = (ran("mailerd", load, rate=ours), ran(peer, load, rate=theirs))
    write(directory, "relay", *({"round": 0} | one.as_dict() for one in runs))


def test_readme_says_what_the_results_say() -> None:
    text = readme.README.read_text()
    assert text == readme.rendered(text, RESULTS), "run `scripts/bench readme`"


def test_a_block_is_written_anew_and_the_rest_is_left(tmp_path: Path) -> None:
    (tmp_path / "idle.md").write_text(
        "# idle\n\n**One**\n\n| a |\n| --- |\n| 1 |\n\n**Two**\n\n| b |\n| --- |\n| 2 |\n"
    )

    written = readme.rendered(README.format("idle: Tw"), tmp_path)

    assert written.startswith("before\n<!-- figures: idle: Tw -->\n")
    assert written.endswith("<!-- end -->\nafter\n")
    assert "| b |" in written
    assert "| a |" not in written
    assert readme.rendered(written, tmp_path) == written


def test_a_block_can_be_those_rows_that_have_a_word(tmp_path: Path) -> None:
    (tmp_path / "latency.md").write_text("**Milliseconds at half load**\n\n| a |\n| --- |\n| due: 1 |\n| dot: 2 |\n")

    written = readme.block("latency: Milliseconds: due", tmp_path)

    assert "| a |\n| --- |\n| due: 1 |\n" in written
    assert "dot" not in written


def test_stages_that_take_little_are_one_row(tmp_path: Path) -> None:
    rows = "| hash | 30 | 4 |\n| log | 11 | 15 |\n| claim | 3 | 2 |\n| all | 44 | 21 |\n"
    (tmp_path / "stages.md").write_text(f"**CPU**\n\n| stage | in | out |\n| --- | ---: | ---: |\n{rows}")

    written = readme.block("stages, largest", tmp_path)

    assert "| hash | 30 | 4 |\n| 2 others | 14 | 17 |\n| all | 44 | 21 |\n" in written
    assert "log" not in written


def test_what_nobody_makes_is_an_error_and_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert readme.NOTHING in readme.rendered(README.format("latency"), tmp_path)
    with pytest.raises(ValueError, match="there are no figures 'relay, half of it'"):
        readme.rendered(README.format("relay, half of it"), tmp_path)


def test_a_peer_that_is_ahead_is_named_with_the_reason(tmp_path: Path) -> None:
    compare(tmp_path, Load(), peer="opensmtpd", ours=100, theirs=200)

    written = readme.block("relay, peers ahead", tmp_path)

    assert "| opensmtpd | rate | 10 KB, 20 kept, unsigned: 0.50, 1.00 |" in written
    assert relay.PEERS["opensmtpd"].at_250 in written
    assert not readme.unexplained(tmp_path)


def test_a_peer_that_is_ahead_for_no_known_reason_is_told(tmp_path: Path) -> None:
    compare(tmp_path, Load(), peer="postfix-tuned", ours=100, theirs=200)

    assert readme.unexplained(tmp_path) == ["10 KB, 20 kept, unsigned: postfix-tuned"]
    assert readme.UNEXPLAINED in readme.block("relay, peers ahead", tmp_path)


def test_a_row_is_made_of_the_medians_of_its_lines(tmp_path: Path) -> None:
    reports = [{"what": "reports alone", "rate": rate, "cpu_us": 3_000} for rate in (400.0, 500.0, 900.0)]
    write(tmp_path, "inbound", *reports, {"what": "beside mail", "alone": 2_000.0, "beside": 1_500.0})
    write(tmp_path, "imports", {"file": "new", "rows": 1, "seconds": 1.0})  # its second line is missing

    written = readme.block("others", tmp_path)

    assert "500 a second, 3,000 µs of CPU each; mail beside 83 of them a second 1,500 instead of 2,000" in written
    assert "imports" not in written
