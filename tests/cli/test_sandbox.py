"""`mailerd sandbox`: what the sandbox took."""

import os

import pytest

from mailerd.sandbox import BEHAVIOURS
from tests.cli.conftest import document, lines
from tests.support.live import LiveDaemon


def test_what_was_taken_is_listed_and_shown(daemon, settled):
    settled("ann@box.example", "bob@box.example", subject="first")
    settled("cid@box.example", subject="second")

    listed = lines(daemon.command("sandbox", "list", "--json"))
    assert [each["subject"] for each in listed] == ["first", "second"]
    assert "ann@box.example and 1 more" in daemon.command("sandbox", "list").out
    only = daemon.command("sandbox", "list", "--limit", "1")
    assert "first" not in only.out
    assert "Only the last 1 of 2" in only.err

    shown = daemon.command("sandbox", "show", listed[0]["id"]).out
    assert "RCPT TO    <ann@box.example>" in shown
    assert "Subject: first" in shown
    assert document(daemon.command("sandbox", "show", "--json"))["subject"] == "second"
    raw = daemon.command("sandbox", "show", "--raw").out
    assert raw.startswith("Received:")
    assert raw.endswith("hello\n")


@pytest.mark.parametrize("name", ["00000000000000", "../../etc/passwd", "x"])
def test_a_message_that_is_not_there_is_told(daemon, name):
    done = daemon.command("sandbox", "show", name)
    assert done.status == os.EX_NOINPUT
    assert "the sandbox has no message" in done.err


def test_the_help_lists_the_addresses_that_it_acts_on(daemon):
    shown = daemon.command("sandbox", "--help").out
    assert all(f"{name}@" in shown for name in BEHAVIOURS)


def test_where_no_sandbox_ever_was_the_way_to_one_is_told(tmp_path):
    done = LiveDaemon(tmp_path).command("sandbox", "list")
    assert done.status == os.EX_UNAVAILABLE
    assert "set sandbox.bind in" in done.err
