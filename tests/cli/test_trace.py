"""`mailerd trace`, `search` and `send-test`: what became of messages."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial

from mailerd.cli.output import console
from mailerd.cli.trace import draw_steps
from mailerd.events import Event
from tests.cli.conftest import document, lines, traced
from tests.support.live import TOP


def test_a_trace_shows_every_step_with_what_was_said(daemon, settled):
    message = settled("ann@trace.example", "bounce@trace.example", subject="Grüße")
    shown = daemon.command("trace", message).out

    for words in (
        "me@here.example",
        "accepted     ann@trace.example and 1 more",
        "by smtp, from 127.0.0.1",
        "subject Grüße",
        "delivered    ann@trace.example",
        "250 2.0.0 taken as",
        "bounced      bounce@trace.example",
        "at 127.0.0.1, in clear, ",
        "550 5.1.1 no such mailbox (at rcpt, class invalid_recipient, attempt 1)",
    ):
        assert words in shown, shown
    assert shown.index("bounced      bounce@") < shown.index("suppressed   bounce@")  # what it led to comes behind it
    assert all(line == line.rstrip() or "  " in line for line in shown.splitlines())


def test_a_trace_as_json_has_the_fields_of_the_api_and_all_steps(daemon, settled):
    message = settled("ann@json.example", "always-defer@json.example")
    found = traced(daemon, message)

    assert found["id"] == message
    assert [(each["id"], each["state"]) for each in found["recipients"]] == [
        (f"{message}.1", "delivered"),
        (f"{message}.2", "deferred"),
    ]
    assert {attempt["host"] for attempt in found["attempts"]} == {"127.0.0.1"}
    types = sorted(step["type"] for step in found["steps"])
    assert types == ["message.accepted", "message.accepted", "recipient.deferred", "recipient.delivered"]
    assert daemon.command("trace", f"{message}.2", "--json").status == 0  # the id of a recipient will do


def test_a_trace_says_why_a_recipient_waits_and_until_when(daemon, settled):
    message = settled("always-defer@wait.example")
    shown = daemon.command("trace", message).out
    assert "next attempt in " in shown
    assert "given up in 1 d" in shown


def test_opens_and_clicks_are_shown_with_who_where_and_what_with(capsys):
    at = datetime(2026, 11, 22, 14, tzinfo=UTC)
    person = {"actor": "human", "reasons": [], "link": 3, "url": "https://a.example/", "ip": "192.0.2.1"}
    machine = {"actor": "machine_open", "reasons": ["apple_proxy"], "times": 2, "ip": "192.0.2.2"}
    to_ann = partial(Event, at, message_id=1, n=1, tenant="default", address="ann@a.example")
    steps = [
        to_ann("recipient.opened", data=machine),
        to_ann("recipient.clicked", data=person | {"user_agent": "Cat"}),
        Event(at, "recipient.clicked", 1, 1, "", "default", {"actor": "scanner", "reasons": [], "link": 4}),
    ]
    for drawn in draw_steps(steps, at):
        console().print(drawn)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "14:00:00.000  +0.000s opened       ann@a.example",
        "by a machine: machine open (apple_proxy), 2 times",
        "from 192.0.2.2",
        "14:00:00.000  +0.000s clicked      ann@a.example",
        "by a person",
        "https://a.example/",
        "from 192.0.2.1, with Cat",
        "14:00:00.000  +0.000s clicked",
        "by a machine: scanner",
        "link 4",
    ]


def test_a_message_that_nobody_knows_is_told(daemon):
    done = daemon.command("trace", "msg_0000000000000")
    assert done.status == os.EX_NOINPUT
    assert done.err.startswith("mailerd: no message msg_0000000000000 is known here")


def test_following_ends_when_nothing_waits_any_more(daemon, settled):
    message = settled("defer@follow.example")
    following = subprocess.Popen(
        [sys.executable, "-m", "mailerd", "trace", message, "--follow"],
        cwd=TOP,
        env=daemon.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    seen = ""
    while "deferred" not in seen:
        seen += following.stdout.readline()
    daemon.command("queue", "retry", "--message", message)
    rest, _ = following.communicate(timeout=30)
    assert "delivered    defer@follow.example" in rest
    assert following.returncode == 0


def test_messages_are_found_by_who_where_and_what(daemon, settled):
    first = settled("ann@search.example", sender="one@search.example")
    second = settled("bounce@search.example", sender="two@search.example")

    def ids(*options: str) -> list[str]:
        return [found["id"] for found in lines(daemon.command("search", *options, "--json"))]

    assert ids("--recipient", "ann@search.example") == [first]
    assert ids("--sender", "two@search.example") == [second]
    assert ids("--sender", "two@search.example", "--state", "delivered") == []
    assert ids("--sender", "one@search.example", "--before", "2020-01-01") == []
    assert ids("--sender", "one@search.example", "--after", "2020-01-01T00:00:00Z") == [first]
    assert f"{first}" in daemon.command("search", "--sender", "one@search.example").out
    third = settled(
        "ann@search.example", "b@search.example", sender="s@search.example", subject="=?utf-8?Q?Gr=C3=BC?=e"
    )
    shown = daemon.command("search", "--sender", "s@search.example").out
    for words in (third, "ann@search.example +1 more", "Grüe"):
        assert words in shown
    assert "subject Grüe" in daemon.command("trace", third).out
    assert "No message fits" in daemon.command("search", "--sender", "none@search.example").err


def send_test(daemon, *options: str):
    return daemon.command("send-test", "--server", "{}:{}".format(*daemon.smtp), *options)


def test_a_test_message_is_followed_until_it_is_delivered(daemon):
    done = send_test(daemon, "--to", "ann@test.example", "--from", "me@here.example")
    assert done.status == 0, done
    for words in ("220 mail.test", "MAIL FROM <me@here.example>", "queued as msg_", "delivered    ann@test.example"):
        assert words in done.out
    assert "delivered: `mailerd trace msg_" in done.err


def test_a_test_message_that_waits_or_fails_has_another_exit_status(daemon):
    deferred = send_test(daemon, "--to", "always-defer@test.example", "--json")
    assert deferred.status == os.EX_TEMPFAIL
    assert document(deferred)["recipients"][0]["state"] == "deferred"
    bounced = send_test(daemon, "--to", "bounce@test.example", "--to", "ann@test.example", "--json")
    assert bounced.status == 1
    assert {each["state"] for each in json.loads(bounced.out)["recipients"]} == {"bounced", "delivered"}


def test_a_test_message_to_an_address_beyond_ascii(daemon):
    assert send_test(daemon, "--to", "jürgen@bücher.example", "--subject", "Grüße\nBcc: x@x.example").status == 0


def test_a_test_message_may_be_submitted_with_a_password(daemon):
    daemon.command(
        "credentials", "create", "tester", "--password", "--sender-domain", "a.example", given="long enough 1"
    )
    options = ("--user", "tester", "--to", "ann@test.example")
    server = "{}:{}".format(*daemon.smtp)
    daemon.environ["MAILERD_PASSWORD"] = "long enough 1"
    try:
        good = daemon.command("send-test", "--server", server, *options, "--from", "me@a.example")
        refused = daemon.command("send-test", "--server", server, *options, "--from", "me@b.example")
    finally:
        del daemon.environ["MAILERD_PASSWORD"]
    assert good.status == 0, good
    assert "AUTH      tester" in good.out
    assert refused.status == 1
    assert "was refused: 550" in refused.err


def test_a_wrong_password_is_told_in_one_line(daemon):
    daemon.environ["MAILERD_PASSWORD"] = "wrong"
    try:
        done = send_test(daemon, "--user", "nobody", "--to", "ann@test.example")
    finally:
        del daemon.environ["MAILERD_PASSWORD"]
    assert done.status == 1
    assert done.err.startswith("mailerd: refused: 535 ")
    assert done.err.count("\n") == 1


def test_a_listener_that_nobody_can_reach_is_named(daemon):
    done = daemon.command("send-test", "--to", "ann@test.example", "--server", "127.0.0.1:1")
    assert done.status == os.EX_UNAVAILABLE
    assert done.err.startswith("mailerd: nobody listens on 127.0.0.1:1: ")
    done = daemon.command("send-test", "--to", "ann@test.example")  # the configured port is 0
    assert done.status == os.EX_USAGE
    assert "--server" in done.err


def test_the_log_says_by_which_pool_and_source_a_recipient_was_tried(daemon, settled):
    message = settled("ann@logged.example")
    tried = [json.loads(line) for line in daemon.log.splitlines() if message in line and '"recipient.' in line]
    assert [(line["event"], line["pool"], line["source"]) for line in tried] == [("recipient.delivered", "default", "")]
