"""Peers that do not start, and what is left of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from benchmarks.cgroup import PREFIX, remove_stale
from benchmarks.mail_commands import blocked_command, relay_command
from benchmarks.options import QUICK_RESULTS, RESULTS, out_of
from benchmarks.peers import Peer, Tls, check_open, free_port
from benchmarks.peers.postfix import Postfix
from tests.support.postfix import missing

PASSES_BY = "import time; time.sleep(600)"
FAILS = "import sys; sys.exit('no such table: aliases')"


class Failing(Peer):
    """Its first process runs, its second one ends."""

    name = "failing"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        self._run([sys.executable, "-c", PASSES_BY], "first.log")
        self._run([sys.executable, "-c", FAILS], "second.log")
        self._wait_for_port(free_port())


def test_a_peer_that_ends_at_once_is_told_with_what_it_said_and_nothing_of_it_stays(tmp_path):
    peer = Failing(tmp_path / "failing")
    with pytest.raises(RuntimeError, match="it ended at once: no such table: aliases"):
        peer.start(0, tmp_path / "key", "s")
    running = peer.group.pids()
    peer.stop()
    assert running
    assert not [pid for pid in running if Path("/proc", str(pid)).exists()]


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_postfix_that_cannot_be_stopped_loses_its_groups_all_the_same(tmp_path):
    peer = Postfix(tmp_path / "postfix")  # never started: its configuration is not there
    groups = [peer.group, peer._milter]
    with pytest.raises(RuntimeError, match=r"postfix stop ended with status"):
        peer.stop()
    for path in (getattr(group, "_path", None) for group in groups):
        assert path is None or not path.exists()


def test_a_directory_that_its_users_cannot_enter_is_named(tmp_path):
    closed = tmp_path / "closed"
    (closed / "work").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(RuntimeError, match=r"its users cannot enter .*/closed: "):
        check_open(closed / "work")


def test_empty_groups_of_benchmarks_that_are_gone_are_removed_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = tmp_path / f"{PREFIX}{ended.pid}-postfix-tuned"
    others = [tmp_path / f"{PREFIX}1-sink", tmp_path / f"{PREFIX}x-sink", tmp_path / "system.slice"]
    busy = tmp_path / f"{PREFIX}{ended.pid}-sink"
    for each in (stale, busy / "child", *others):
        each.mkdir(parents=True)
    remove_stale(tmp_path)
    assert not stale.exists()
    assert all(each.exists() for each in (busy, *others))


def test_a_small_version_never_writes_over_the_results(tmp_path):
    assert out_of(None, quick=False) == RESULTS
    assert out_of(None, quick=True) == QUICK_RESULTS != RESULTS
    assert out_of(tmp_path, quick=True) == out_of(tmp_path, quick=False) == tmp_path


def test_a_choice_that_is_not_there_is_told_with_those_that_are(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"there is no postfx, only mailerd, postfix, "):
        relay_command(tmp_path, peer=["postfx"])
    with pytest.raises(typer.BadParameter, match=r"there is no 11KB, only 1KB, 10KB, "):
        relay_command(tmp_path, size=["11KB"])
    with pytest.raises(typer.BadParameter, match=r"there is no some, only usual, "):
        relay_command(tmp_path, cells="some")
    with pytest.raises(typer.BadParameter, match=r"there is no wait, only pause, "):
        blocked_command(tmp_path, brake=["wait"])
    assert not list(tmp_path.iterdir())
