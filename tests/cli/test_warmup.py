"""`mailerd warmup`, beside a real daemon; how far the sources are is written into its database."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from mailerd import db
from mailerd.db.embedded import running_url
from mailerd.delivery.warmup import DayFacts, State
from mailerd.delivery.warmup_budgets import Ask, WarmUpStore
from tests.cli.conftest import lines
from tests.cli.test_queue import on_terminal
from tests.support.live import CONFIG, LiveDaemon

WARMING = """
sources:
  mta1: {{}}
  mta2: {{warmup: {{plan: standard, started: 2026-01-01}}}}
  mta3: {{warmup: {{plan: ours}}}}
  mta4: {{warmup: {{}}}}
warmup: {{plans: {{ours: {{per: hour, stages: [50, 100]}}}}}}
"""
SINCE = date(2026, 11, 1)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd"), config=CONFIG + WARMING) as running:
        asyncio.run(fill(running))
        yield running


async def fill(daemon: LiveDaemon) -> None:
    now = datetime.now(UTC)
    hours = [now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=n) for n in range(2)]
    url = running_url(daemon.data_dir)
    assert url is not None
    pool = await db.connect_pool(url, min=1, max=1)
    store = WarmUpStore(pool)
    held = "hold: 120 of 500 delivered, 90 % are asked for"
    await store.begin(
        {
            ("mta2", "google"): State("standard 500/day", 1, SINCE),
            ("mta2", "yahoo"): State("standard warm", 29, SINCE),
            ("mta3", "google"): State("ours 100/hour", 1, SINCE),
        }
    )
    await pool.execute("UPDATE warmups SET verdict = $1 WHERE provider = 'google' AND source = 'mta2'", held)
    for hour in hours:  # the commands may already look at the next one
        midnight = hour.replace(hour=0)
        await pool.execute("DELETE FROM warmup_windows WHERE window_start = $1 AND source = 'mta2'", midnight)
        await store.draw([Ask("mta2", "google", midnight, 120, 500), Ask("mta3", "google", hour, 100, 100)])
    for day in {hour.date() for hour in hours}:
        await store.add([(("mta2", "google"), DayFacts(day, delivered=110, deferred=4, bounced=1, complained=2))])
    await pool.close()


def test_each_source_is_shown_with_stage_use_and_verdict_at_each_provider(daemon):
    first, *others = lines(daemon.command("warmup", "--json"))

    ends = datetime.fromisoformat(first.pop("window_ends"))
    assert (ends.hour, ends.minute) == (0, 0)
    assert first == {
        "source": "mta2",
        "provider": "google",
        "plan": "standard",
        "per": "day",
        "stage": 2,
        "stages": 29,
        "budget": 500,
        "used": 120,
        "left": 380,
        "next_budget": 1000,
        "stage_since": "2026-11-01",
        "last_day": None,
        "verdict": "hold: 120 of 500 delivered, 90 % are asked for",
        "today": {"delivered": 110, "deferred": 4, "bounced": 1, "complained": 2},
    }
    assert {(row["source"], row["provider"], row["stage"], row["left"]) for row in others} == {
        ("mta2", "yahoo", None, None),
        ("mta3", "google", 2, 0),
    }


def test_a_table_and_a_chart_are_drawn_in_any_width(daemon):
    narrow, wide = on_terminal(daemon, 80, "warmup"), daemon.command("warmup").out
    for shown in (narrow, wide):
        for words in ("2 of 29", "120 of 500/day", "380", "1,000", "hold: 120 of 500 delivered", "100 of 100/hour"):
            assert words in shown
        assert "▁▂··················" in shown
        assert "███░░░░░░░" in shown
    assert max(map(len, narrow.splitlines())) <= 80
    assert [line.split()[:2] for line in wide.splitlines()[2:]] == [
        ["mta2", "google"],
        ["mta2", "yahoo"],
        ["mta3", "google"],
    ]


def test_one_source_or_provider_can_be_asked_for(daemon):
    assert [row["source"] for row in lines(daemon.command("warmup", "--source", "mta3", "--json"))] == ["mta3"]
    assert [row["provider"] for row in lines(daemon.command("warmup", "--provider", "yahoo", "--json"))] == ["yahoo"]
    assert len(lines(daemon.command("warmup", "--limit", "1", "--json"))) == 1


def test_a_source_that_has_sent_nothing_and_one_without_warm_up_are_named(daemon):
    assert "mta4 has sent nothing yet." in daemon.command("warmup").err
    refused = daemon.command("warmup", "--source", "mta1")
    assert refused.status == 64
    assert "no source 'mta1' with a warm-up; those that have one: mta2, mta3, mta4" in refused.err
