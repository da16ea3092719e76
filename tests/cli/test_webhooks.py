"""`mailerd webhooks` beside a running daemon."""

import os
from collections.abc import Iterator

import pytest

from tests.cli.conftest import document, lines
from tests.support.live import CONFIG, LiveDaemon, free_port

ALLOWED = CONFIG + "webhooks: {{allow_private: [localhost]}}\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd"), config=ALLOWED) as running:
        yield running


def test_an_endpoint_is_made_looked_at_switched_and_deleted(daemon: LiveDaemon) -> None:
    url = f"http://localhost:{free_port()}/hooks"
    made = document(daemon.command("webhooks", "add", url, "-e", "email.*", "--batch", "20", "--json"))
    id_ = made["webhook_id"]
    assert made["secret"].startswith("whsec_")
    assert [one["webhook_id"] for one in lines(daemon.command("webhooks", "list", "--json"))] == [id_]
    assert url in daemon.command("webhooks", "list").out

    assert document(daemon.command("webhooks", "disable", id_, "--json"))["status"] == "disabled"
    assert document(daemon.command("webhooks", "enable", id_, "--json"))["status"] == "enabled"
    rotated = document(daemon.command("webhooks", "rotate", id_, "--json"))
    assert rotated["secret"] != made["secret"]
    shown = daemon.command("webhooks", "show", id_)
    assert "20 events" in shown.out
    assert rotated["secret"] not in shown.out

    test = daemon.command("webhooks", "test", id_, "--json")
    assert (test.status, document(test)["status"]) == (os.EX_UNAVAILABLE, 0)
    assert daemon.command("webhooks", "deliveries", id_, "--json").out == ""
    replay = document(daemon.command("webhooks", "replay", id_, "--since", "2026-01-01", "--json"))
    assert replay["id"].startswith("rpl_")
    assert [each["id"] for each in lines(daemon.command("webhooks", "replays", id_, "--json"))] == [replay["id"]]
    assert replay["id"] in daemon.command("webhooks", "replays", id_).out
    assert [(each["name"], each["state"]) for each in lines(daemon.command("events", "followers", "--json"))][-1] == (
        id_,
        "reading",
    )
    assert daemon.command("webhooks", "retry", id_, "dlv_0000000000001").status == os.EX_NOINPUT

    added = daemon.command("webhooks", "add", url, "-e", "*").out.split()
    assert (added[0], added[2], added[4], added[5][:6]) == ("webhook", "url", "secret", "whsec_")
    assert daemon.command("webhooks", "delete", id_, "--yes").status == 0
    assert daemon.command("webhooks", "show", id_).status == os.EX_NOINPUT


@pytest.mark.parametrize(
    ("url", "event", "words"),
    [
        ("http://app.example.com/", "email.*", "https://"),
        ("https://169.254.169.254/", "email.*", "private network"),
        ("http://localhost:1/", "email.eaten", "no events"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(daemon: LiveDaemon, url: str, event: str, words: str) -> None:
    done = daemon.command("webhooks", "add", url, "-e", event)
    assert done.status == os.EX_USAGE
    assert words in done.err
    assert done.err.count("\n") == 1
