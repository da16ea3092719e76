"""`mailerd queue`, beside a real daemon whose mail the sandbox puts off."""

import asyncio
import contextlib
import getpass
import os
import pty
import subprocess
import sys

import pytest

from mailerd import db
from mailerd.db.embedded import running_url
from tests.cli.conftest import document, lines, traced


def states(daemon, message: str) -> list[str]:
    return [recipient["state"] for recipient in traced(daemon, message)["recipients"]]


def test_what_waits_is_listed_by_queue_and_shown_by_recipient(daemon, settled):
    message = settled("always-defer@list.example", "ann@list.example")

    [queue] = lines(daemon.command("queue", "list", "--domain", "List.Example", "--json"))
    assert (queue["name"], queue["recipients"], queue["held"]) == ("transactional/default/default/list.example", 1, 0)
    assert "transactional/default/default/list.example" in daemon.command("queue", "list").out

    [waiting] = lines(daemon.command("queue", "show", queue["name"], "--json"))
    assert (waiting["message_id"], waiting["n"], waiting["state"], waiting["attempts"]) == (message, 1, "deferred", 1)
    assert "451 4.7.1 come back later" in waiting["reason"]
    shown = daemon.command("queue", "show", "--message", message).out
    assert "always-defer@list.example" in shown
    assert "451 4.7.1 come back later" in shown


@pytest.mark.parametrize("columns", [80, 140])
def test_every_fact_is_readable_whatever_the_width_of_the_terminal(daemon, settled, columns):
    domain = f"a-domain-name-of-more-than-forty-letters-{columns}.example"
    message = settled(f"always-defer@{domain}")

    shown = on_terminal(daemon, columns, "queue", "show", "--domain", domain)
    assert all(words in shown for words in (message, "deferred", "451 4.7.1"))
    if columns == 80:
        assert f"always-defer@{domain}" in shown  # in one piece
    listed = on_terminal(daemon, columns, "queue", "list", "--domain", domain)
    assert all(word in listed for word in ("waiting", "held", "in memory", "oldest", "next"))
    assert max(map(len, listed.splitlines())) <= columns


def on_terminal(daemon, columns: int, *arguments: str) -> str:
    """What a command shows on a terminal of this width."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        environ = daemon.environ | {"COLUMNS": str(columns), "TERM": "dumb"}
        done = subprocess.run(
            [sys.executable, "-m", "mailerd", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while more := terminal.read(65_536):
                shown += more
    assert done.returncode == 0, done.stderr
    return shown.decode().replace("\r\n", "\n")


def test_held_mail_is_not_retried_and_that_is_said(daemon, settled):
    settled("always-defer@stays.example")
    held = daemon.command("queue", "hold", "--domain", "stays.example")
    assert "Mail that comes later goes on: `mailerd effects add pause --domain stays.example" in held.err
    assert "when released" in on_terminal(daemon, 80, "queue", "list", "--domain", "stays.example")
    done = daemon.command("queue", "retry", "--domain", "stays.example")
    assert done.out == "0 recipients made due now; 1 that fit wait.\n"
    assert "`mailerd queue release`" in done.err


def test_nothing_to_show_is_told_beside_the_result(daemon):
    assert daemon.command("queue", "list", "--domain", "nobody.example").out == ""
    assert daemon.command("queue", "list", "--domain", "nobody.example", "--json").out == ""
    assert "Nothing" in daemon.command("queue", "show", "--domain", "nobody.example").err


def test_mail_is_held_until_it_is_released(daemon, settled):
    message = settled("always-defer@hold.example")

    held = document(daemon.command("queue", "hold", "--domain", "hold.example", "--json"))
    assert held == {"action": "hold", "changed": 1, "waiting": 1}
    assert states(daemon, message) == ["held"]
    assert "`mailerd queue release`" in daemon.command("trace", message).out

    released = daemon.command("queue", "release", "--message", message)
    assert released.out == "1 recipient released; 1 that fit wait.\n"
    assert states(daemon, message) == ["deferred"]


def test_a_retry_is_made_at_once(daemon, settled):
    message = settled("defer@retry.example")  # greylisted: the second attempt is taken
    assert states(daemon, message) == ["deferred"]

    assert daemon.command("queue", "retry", "--recipient", "defer@retry.example").status == 0
    while states(daemon, message) != ["delivered"]:
        pass


def test_bounced_mail_comes_back_to_its_sender(daemon, settled):
    message = settled("always-defer@bounce.example", sender="boss@here.example")

    done = daemon.command("queue", "bounce", "--sender", "boss@here.example", "--yes")
    assert done.out == "1 recipient given up, senders are told; 1 that fit wait.\n"
    while states(daemon, message) != ["bounced"]:
        pass
    while not lines(daemon.command("search", "--recipient", "boss@here.example", "--state", "delivered", "--json")):
        pass


def test_deleted_mail_is_gone_but_for_its_trace(daemon, settled):
    message = settled("always-defer@delete.example")

    assert daemon.command("queue", "delete", "--domain", "delete.example", "--yes").status == 0
    assert states(daemon, message) == ["cancelled"]
    assert daemon.command("queue", "list", "--domain", "delete.example").out == ""


@pytest.mark.parametrize("answer", ["", "n\n"])
@pytest.mark.parametrize("action", ["bounce", "delete"])
def test_nothing_is_lost_without_a_yes(daemon, settled, action, answer):
    message = settled("always-defer@ask.example")
    done = daemon.command("queue", action, "--message", message, given=answer)
    assert done.status == 1
    assert "1 waiting recipient" in done.err
    assert answer or "]:\nmailerd: " in done.err.replace(" \n", "\n")
    assert states(daemon, message) == ["deferred"]


def test_a_yes_will_do(daemon, settled):
    message = settled("always-defer@ask.example")
    assert daemon.command("queue", "delete", "--message", message, given="y\n").status == 0
    assert states(daemon, message) == ["cancelled"]


def test_what_was_done_is_audited_with_who_did_it(daemon):
    daemon.command("queue", "hold", "--domain", "audit.example")

    async def audited() -> list[tuple[str, str, object]]:
        url = running_url(daemon.data_dir)
        assert url is not None
        async with db.connected(url) as connection:
            rows = await connection.fetch(
                "SELECT actor, action, data FROM audit WHERE data->>'domain' = 'audit.example'"
            )
        return [(row["actor"], row["action"], row["data"]) for row in rows]

    assert asyncio.run(audited()) == [(f"cli:{getpass.getuser()}", "hold", {"domain": "audit.example"})]


def test_everything_is_steered_only_on_purpose(daemon, settled):
    first, second = settled("always-defer@all.example"), settled("always-defer@every.example")
    assert daemon.command("queue", "hold", "--all").status == 0
    assert states(daemon, first) == states(daemon, second) == ["held"]
    assert daemon.command("queue", "release", "--all").status == 0
