"""Suppressions by the million: what a line of a file leads to."""

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.queue.suppression import SuppressionStore
from mailerd.queue.suppression_csv import read_rows, write_rows
from mailerd.queue.suppression_files import AT_ONCE, Defaults, Progress, SuppressionFileStore

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
STREAMS = frozenset({"transactional", "marketing"})


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=3)
    yield pool
    await pool.close()


async def imported(pool: Pool, text: str, *, bound: bool = True, tenant: str = "acme") -> Progress:
    rows = read_rows(io.StringIO(text, newline=""))
    defaults = Defaults(tenant, NOW, streams=STREAMS, bound=bound)
    return [progress async for progress in SuppressionFileStore(pool).import_rows(rows, defaults)][-1]


async def scopes(pool: Pool) -> list[tuple[str, str, str]]:
    found = await SuppressionStore(pool).list(tenant=None, limit=100)
    return [(each.address, each.tenant, each.stream) for each in reversed(found)]


async def test_scopes_survive_the_way_out_and_in(pool: Pool) -> None:
    await imported(
        pool,
        "address,tenant,stream\na@b.example,*,\nb@b.example,,marketing\nc@b.example,other,\n",
        bound=False,
        tenant="default",
    )
    before = await scopes(pool)
    store = SuppressionFileStore(pool)
    text = write_rows([row async for part in store.export(None, reason=None, now=NOW) for row in part])
    await pool.execute("DELETE FROM suppressions")

    await imported(pool, text, bound=False, tenant="third")

    assert before == await scopes(pool)
    assert before == [("a@b.example", "", ""), ("b@b.example", "default", "marketing"), ("c@b.example", "other", "")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a@b.example,*,,,", "all tenants"),
        ("a@b.example,other,,,", "not yours"),
        ("a@b.example,,marketting,,", "known: marketing, transactional"),
        (f"a@b.example,,,{(NOW + 2 * DAY).isoformat()},", "created_at"),
        (f"a@b.example,,,,{(NOW - DAY).isoformat()}", "expires_at"),
    ],
    ids=["other_scope", "other_tenant", "unknown_stream", "made_tomorrow", "over"],
)
async def test_a_line_that_cannot_hold_is_refused(pool: Pool, line: str, problem: str) -> None:
    progress = await imported(pool, f"address,tenant,stream,created_at,expires_at\n{line}\nb@b.example,,,,\n")

    assert (progress.read, progress.added, progress.there, progress.refused) == (2, 1, 0, 1)
    assert problem in progress.problems[0].problem


async def test_a_clock_that_is_hours_ahead_is_forgiven(pool: Pool) -> None:
    """A time without a zone may be that of Auckland."""
    await imported(pool, f"address,created_at\na@b.example,{(NOW + DAY / 2).isoformat()}\n")

    (only,) = await SuppressionStore(pool).list(tenant="acme", limit=10)
    assert only.created_at == NOW


async def test_of_files_that_come_at_the_same_time_only_as_many_are_taken_as_may_be_under_way(pool: Pool) -> None:
    store = SuppressionFileStore(pool)
    text = b"address\n" + b"".join(b"u%d@example.net\n" % n for n in range(1_000))
    defaults = Defaults("acme", NOW, streams=STREAMS)

    begun = await asyncio.gather(*(store.start(text, defaults, "api:test") for _ in range(6)))

    assert len([number for number in begun if number is not None]) == AT_ONCE
    await store.stop()
