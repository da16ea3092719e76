"""`mailerd events`, against a daemon with a sink."""

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mailerd import db
from mailerd.cli.events import _line
from mailerd.db.embedded import running_url
from mailerd.db.event_sizes import PartitionSize, growth
from mailerd.events import START, Event, FollowerStore, Recorded
from mailerd.feedback.names import outside
from tests.cli.conftest import Submit, lines
from tests.support.live import CONFIG, Finished, LiveDaemon

SINK = "sinks: {{log: {{kind: jsonl, directory: '{data_dir}/sink'}}}}\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd"), config=CONFIG + SINK) as running:
        yield running


def types(finished: Finished) -> list[str]:
    return [line["type"] for line in lines(finished)]


def test_the_last_events_are_shown_in_their_order(daemon: LiveDaemon, settled: Submit) -> None:
    message = settled("bounce@there.example", subject="Grüße".encode().decode("latin-1"))
    told = lines(daemon.command("events", "tail", "--message", message, "--json"))
    assert [each["type"] for each in told][:2] == ["email.queued", "email.bounced"]
    assert {each["data"]["email_id"] for each in told} >= {message}
    drawn = daemon.command("events", "tail")
    assert "email.bounced" in drawn.out
    assert "bounce@there.example" in drawn.out


def test_types_and_times_are_chosen(daemon: LiveDaemon, settled: Submit) -> None:
    settled("ann@there.example")
    settled("bob@there.example")
    assert set(types(daemon.command("events", "tail", "-t", "email.delivered", "--json"))) == {"email.delivered"}
    assert len(types(daemon.command("events", "tail", "-t", "email.*", "-n", "2", "--json"))) == 2
    assert types(daemon.command("events", "tail", "--since", "2999-01-01", "--json")) == []
    everything = types(daemon.command("events", "tail", "--since", "2020-01-01", "--json"))
    assert everything[0] == "email.queued"
    assert len(everything) >= 4


def test_an_unknown_type_is_refused(daemon: LiveDaemon) -> None:
    finished = daemon.command("events", "tail", "--type", "email.opend")
    assert finished.status == os.EX_USAGE
    assert "email.bounced" in finished.err


def test_the_size_is_shown_by_month_with_a_forecast(daemon: LiveDaemon, settled: Submit) -> None:
    settled("ann@there.example")
    told = json.loads(daemon.command("events", "size", "--json").out)
    month = f"events_{datetime.now(UTC):%Y_%m}"
    rows = {each["name"]: each["rows"] for each in told["partitions"]}
    assert rows[month] >= 2
    assert told["forecast"] > told["bytes_per_day"] > 0
    drawn = daemon.command("events", "size").out
    assert f"{datetime.now(UTC):%Y-%m}" in drawn
    assert "█" in drawn


def test_followers_are_listed_with_their_lag_and_can_be_forgotten(daemon: LiveDaemon, settled: Submit) -> None:
    settled("ann@there.example")
    while (found := {each["name"]: each for each in lines(daemon.command("events", "followers", "--json"))})[
        "sink:log"
    ]["events_behind"]:
        pass
    assert found["sink:log"]["position"].startswith("evt_")
    assert "sink:log" in daemon.command("events", "followers").out
    written = (daemon.data_dir / "sink" / "log.jsonl").read_text()
    assert "email.delivered" in written
    asyncio.run(follow_as(daemon, "sink:old"))
    states = {each["name"]: each["state"] for each in lines(daemon.command("events", "followers", "--json"))}
    assert (states["sink:log"], states["sink:old"]) == ("reading", "not configured")
    people = daemon.command("events", "followers")
    assert ("not configured" in people.out, "--forget sink:old" in people.err) == (True, True)
    assert daemon.command("events", "followers", "--forget", "sink:old", "--yes").status == 0
    assert daemon.command("events", "followers", "--forget", "sink:nobody", "--yes").status == os.EX_NOINPUT


async def follow_as(daemon: LiveDaemon, name: str) -> None:
    url = running_url(daemon.data_dir)
    assert url is not None
    async with await db.connect_pool(url, max=1) as pool:
        await FollowerStore(pool).advance(name, START)


def test_the_end_of_an_endpoint_is_told_with_its_reason() -> None:
    data = {"id": "whk_1", "url": "https://app.example/", "why": "it answered 410", "failing_since": None}
    event = outside(Recorded(START, Event(datetime.now(UTC), "webhook.disabled", 0, 0, "", "default", data)))
    assert event is not None
    assert "whk_1 https://app.example/ it answered 410" in str(_line(event))


def test_growth_is_of_the_last_months_and_whole_months_are_kept() -> None:
    now = datetime(2026, 11, 16, tzinfo=UTC)
    old = PartitionSize("events_2026_01", 10, 10_000_000, 0, now - timedelta(days=300), now - timedelta(days=290))
    lately = [
        PartitionSize(f"events_2026_{month}", 100, 600, 400, now - timedelta(days=days), now)
        for month, days in ((10, 40), (11, 15))
    ]
    coming = PartitionSize("events_2026_12", 0, 0, 80, None, None)

    assert growth([old, *lately, coming], 100 * 86_400.0, now) == (5.0, 50.0, 50 * 131)
    assert growth([coming], 86_400.0, now) == (0.0, 0.0, 80)
