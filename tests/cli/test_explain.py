"""`mailerd explain` and `mailerd effects` beside a running daemon."""

import json
import os
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from mailerd.cli.explain import draw
from mailerd.delivery.explained import Destination, Explanation, PathView, Waiting, WaitingQueue
from mailerd.queue.views import QueueView
from tests.cli.conftest import Submit, document, lines
from tests.support.live import LiveDaemon


@pytest.fixture
def pause(daemon: LiveDaemon):
    """Pause everything to the sandbox; its effect."""
    site = f"127.0.0.1:{daemon.sandbox[1]}"
    made = document(
        daemon.command("effects", "add", "pause", "--site", site, "--for", "2h", "--reason", "maintenance", "--json")
    )
    yield made
    daemon.command("effects", "cancel", str(made["id"]))


def test_an_address_is_explained_to_programs_and_people(daemon: LiveDaemon, settled: Submit) -> None:
    settled("ann@there.example")
    told = document(daemon.command("explain", "bob@There.example", "--json"))
    (destination,) = told["destinations"]
    assert destination["domain"] == "there.example"
    line = daemon.file.read_text().splitlines().index("routes:") + 2
    place = f"{daemon.file}:{line}"
    assert destination["rule"] == {"number": 0, "place": place}
    assert (destination["tls"], destination["tls_by"]) == ("none", place)
    assert destination["paths"][0]["lately"] > 0  # the daemon's own counts
    assert told["unknown"] == []

    people = daemon.command("explain", "there.example")
    assert people.status == 0
    assert "an attempt at once from this host" in people.out
    assert "the next message may leave" in people.out
    assert "delivery.messages_per_connection" in people.out


def test_a_suppressed_address_is_explained_as_such(daemon: LiveDaemon, submit: Submit, pause: dict) -> None:
    message = submit("no@suppressed.example")
    while not document(daemon.command("trace", message, "--json"))["recipients"][0]["reason"].startswith("effect"):
        pass
    assert daemon.command("suppressions", "add", "no@suppressed.example").status == 0
    told = document(daemon.command("explain", "No@suppressed.example", "--json"))
    (entry,) = told["suppressed"]
    assert (entry["address"], entry["reason"]) == ("no@suppressed.example", "manual")
    assert told["destinations"][0]["next"].startswith("it would be refused: no@suppressed.example is suppressed since")
    assert document(daemon.command("explain", "yes@suppressed.example", "--json"))["suppressed"] == []
    people = daemon.command("explain", "no@suppressed.example").out
    assert "manual by " in people
    assert "at once" not in people

    waits = document(daemon.command("explain", message, "--json"))
    assert [each["recipient"] for each in waits["suppressed"]] == ["no@suppressed.example"]
    assert "would be given up" in waits["destinations"][0]["next"]
    assert "suppressed: no@suppressed.example, entry" in daemon.command("explain", message).out


def test_a_message_that_waits_for_an_effect_names_it(daemon: LiveDaemon, submit: Submit, pause: dict) -> None:
    message = submit("ann@there.example")
    while not document(daemon.command("trace", message, "--json"))["recipients"][0]["reason"].startswith("effect"):
        pass
    told = document(daemon.command("explain", message, "--json"))
    (waiting,) = told["waiting"]
    assert (waiting["message_id"], waiting["address"]) == (message, "ann@there.example")
    assert f"effect {pause['id']}: paused: maintenance" in waiting["reason"]
    assert waiting["due_at"][:16] == pause["until"][:16]
    people = daemon.command("explain", message).out
    assert f"effect {pause['id']}, pause" in people
    assert "maintenance" in people
    assert "ann@there.example" in people

    path = document(daemon.command("explain", f">127.0.0.1:{daemon.sandbox[1]}", "--json"))["paths"][0]
    ends, waits = datetime.fromisoformat(pause["until"]), datetime.fromisoformat(path["waits"]["until"])
    assert abs(ends - waits) < timedelta(seconds=1)
    assert daemon.command("effects", "cancel", str(pause["id"])).status == 0
    while document(daemon.command("trace", message, "--json"))["recipients"][0]["state"] != "delivered":
        pass
    done = daemon.command("explain", message)
    assert (done.status, "mailerd trace" in done.err) == (os.EX_NOINPUT, True)


def test_effects_are_listed_with_who_made_them(daemon: LiveDaemon, pause: dict) -> None:
    (listed,) = lines(daemon.command("effects", "list", "--json"))
    assert listed == pause
    assert listed["rule"].startswith("cli:")
    people = daemon.command("effects", "list").out
    assert "maintenance" in people
    assert "site 127.0.0.1" in people


def test_slow_and_connections_take_their_numbers(daemon: LiveDaemon) -> None:
    for arguments, value in (
        (("slow", "--rate", "30/min"), 0.5),
        (("connections", "--connections", "2"), 2.0),
    ):
        made = document(
            daemon.command("effects", "add", *arguments, "--site", "mx.nowhere.example", "--reason", "r", "--json")
        )
        assert made["value"] == value
        assert daemon.command("effects", "cancel", str(made["id"])).status == 0
    assert "No brake holds" in daemon.command("effects", "list").err


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "pause", "--reason", "everything"),
        ("add", "pause", "--source", "mta9", "--reason", "r"),
        ("add", "slow", "--site", "mx.example", "--reason", "r"),
        ("add", "slow", "--site", "mx.example", "--rate", "fast", "--reason", "r"),
        ("add", "avoid", "--site", "mx.example", "--reason", "r"),
        ("add", "slow", "--tenant", "acme", "--rate", "1/h", "--reason", "r"),
        ("add", "pause", "--site", "mx.example", "--for", "soon", "--reason", "r"),
        ("add", "pause", "--site", "mx.example", "--for", "8d", "--reason", "r"),
        ("add", "pause", "--site", "mx.example", "--connections", "3", "--reason", "r"),
        ("add", "pause", "--site", "mx.example", "--domain", "there.example", "--reason", "r"),
        ("add", "avoid", "--all", "--rate", "3/min", "--reason", "r"),
        ("add", "stop", "--site", "mx.example", "--reason", "r"),
        ("cancel",),
        ("cancel", "x"),
    ],
)
def test_effects_that_make_no_sense_are_a_matter_of_usage(daemon: LiveDaemon, arguments: tuple[str, ...]) -> None:
    done = daemon.command("effects", *arguments)
    assert (done.status, "Traceback" in done.err) == (os.EX_USAGE, False), done


def test_a_brake_for_a_domain_holds_for_its_site_and_says_whose_else_that_is(daemon: LiveDaemon) -> None:
    done = daemon.command("effects", "add", "pause", "--domain", "There.example", "--reason", "r", "--json")
    made = document(done)
    assert daemon.command("effects", "cancel", str(made["id"])).status == 0
    site = f"127.0.0.1:{daemon.sandbox[1]}"
    assert made["site"] == site
    assert f"Mail for there.example goes to the site {site}. It is that of all mail that routes[0]" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--site", "there.example"), "--domain there.example finds the site"),
        (("--tenant", "nobody"), "No credential is of a tenant nobody"),
        (("--campaign", "sprnig"), "No mail of campaign sprnig waits now"),
    ],
)
def test_a_brake_that_fits_nothing_known_is_made_and_doubted(
    daemon: LiveDaemon, arguments: tuple[str, str], said: str
) -> None:
    done = daemon.command("effects", "add", "pause", *arguments, "--reason", "r", "--json")
    assert daemon.command("effects", "cancel", str(document(done)["id"])).status == 0
    assert said in done.err


def test_an_effect_that_does_not_hold_cannot_be_cancelled(daemon: LiveDaemon) -> None:
    done = daemon.command("effects", "cancel", "9999")
    assert (done.status, "effects list" in done.err) == (os.EX_NOINPUT, True)


@pytest.mark.parametrize("asked", ["ann@@x", "msg_nonsense", "ä b"])
def test_what_is_nothing_of_ours_is_a_matter_of_usage(daemon: LiveDaemon, asked: str) -> None:
    done = daemon.command("explain", asked)
    assert (done.status, "Traceback" in done.err) == (os.EX_USAGE, False), done


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("nosuch>127.0.0.1:2526", os.EX_NOINPUT, "no source 'nosuch'"),
        ("this host > 127.0.0.1:1", os.EX_NOINPUT, "no site '127.0.0.1:1'"),  # as a path is shown
        ("this host>127.0.0.1:1", os.EX_NOINPUT, "no site '127.0.0.1:1'"),
        (">127.0.0.1:1", os.EX_NOINPUT, "no site '127.0.0.1:1'"),
        (">fresh.example", os.EX_NOINPUT, "fresh.example is at 127.0.0.1"),
        ("mta1>", os.EX_USAGE, "SOURCE>SITE"),
        ("a>b>c.example", os.EX_USAGE, "SOURCE>SITE"),
    ],
)
def test_a_path_that_there_is_not_is_an_error(daemon: LiveDaemon, asked: str, status: int, said: str) -> None:
    done = daemon.command("explain", asked)
    assert (done.status, said in " ".join(done.err.split())) == (status, True), done


def test_a_source_that_may_not_send_says_so_and_the_same_reason_is_told_once() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    reason = "message rate of tenant acme (own.yaml:8)"
    queue = QueueView(
        name="transactional/default/acme/example.net",
        stream="transactional",
        pool="default",
        tenant="acme",
        campaign="",
        domain="example.net",
        recipients=2,
        held=0,
        in_memory=0,
        oldest=now - timedelta(hours=3, minutes=59),
        next_due=now,
        blocked_until=now + timedelta(hours=2),
        reason=reason,
    )
    path = PathView(
        source="mta2",
        address="192.0.2.77",
        site="mx.example.net",
        provider="default",
        provider_place="",
        state="failing",
        reason="not ours",
        connections=0,
        lately=0.0,
        limits=[],
        effects=[],
        waits=Waiting(reason="it sends nothing: not ours", until=None),
    )
    waits = Waiting(reason=reason, until=now + timedelta(hours=1, minutes=59, seconds=59.9))
    destination = Destination(
        domain="example.net",
        sender="",
        stream="transactional",
        pool="default",
        paths=[path],
        queues=[WaitingQueue(queue=queue, waits=waits)],
    )
    told = StringIO()
    draw(Console(file=told, width=300), Explanation(asked="example.net", destinations=[destination]), now)
    text = told.getvalue()
    assert text.count(reason) == 1
    assert text.count("not ours") == 1
    assert "may leave" not in text
    assert "in 2 h " in text
    assert "3 h 59 min ago" in text


def test_an_unknown_stream_is_named(daemon: LiveDaemon) -> None:
    done = daemon.command("explain", "ann@there.example", "--stream", "x")
    assert done.status == os.EX_USAGE
    assert "no stream 'x', only transactional" in done.err


def test_a_campaign_is_held_and_released_by_its_name(daemon: LiveDaemon) -> None:
    import http.client

    client = http.client.HTTPConnection(*daemon.http)
    for campaign in ("spring", "summer"):
        body = {
            "from": "me@here.example",
            "to": "ann@campaign.example",
            "text": "hi",
            "campaign": campaign,
            "scheduled_at": "2027-01-01T00:00:00Z",
        }
        headers = {"Authorization": f"Bearer {daemon.key}", "Content-Type": "application/json"}
        client.request("POST", "/api/v1/emails", json.dumps(body), headers)
        response = client.getresponse()
        assert (response.status, response.read()[:0]) == (202, b"")
    client.close()

    assert document(daemon.command("queue", "hold", "--campaign", "spring", "--json"))["changed"] == 1
    queues = {
        queue["campaign"]: queue
        for queue in lines(daemon.command("queue", "list", "--domain", "campaign.example", "--json"))
    }
    assert (queues["spring"]["held"], queues["summer"]["held"]) == (1, 0)
    assert queues["spring"]["name"] == "transactional/default/default:spring/campaign.example"
    (shown,) = lines(daemon.command("queue", "show", "--campaign", "spring", "--json"))
    assert (shown["state"], shown["tenant"], shown["campaign"]) == ("held", "default", "spring")
    told = document(daemon.command("explain", "ann@campaign.example", "--json"))
    assert sorted(each["queue"]["campaign"] for each in told["destinations"][0]["queues"]) == ["spring", "summer"]
    assert document(daemon.command("queue", "delete", "--campaign", "spring", "--yes", "--json"))["changed"] == 1
    assert document(daemon.command("queue", "delete", "--campaign", "summer", "--yes", "--json"))["changed"] == 1
