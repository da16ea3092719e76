"""Group commit on a real database: who is answered what when a commit fails, is cut off, or nobody waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mailerd.db import Pool, connect_pool, connected
from mailerd.errors import MailerdError, Refused, Unavailable
from mailerd.events import Event
from mailerd.queue.commit import GroupCommit
from mailerd.queue.ids import first_id_at
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.store import QueueStore
from mailerd.queue.workers import WorkerStore
from tests.support.database_proxy import DatabaseProxy

NUMBERS = count()


def mail(
    *,
    address: str = "bob@example.net",
    domain: str = "example.net",
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Message:
    """A message as intake makes it, or one that nobody should make."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "id": first_id_at(int(now.timestamp() * 1000)) + next(NUMBERS),
        "sender": "ann@sender.example",
        "stream": "transactional",
        "pool": "default",
        "credential": "trusted",
        "tenant": "default",
        "size": 4,
        "accepted_at": now,
        "content": b"x\r\n\r\n",
        "labels": facts,
    }
    message = Message(**values | changes)
    message.recipients.append(Recipient(message, 1, address, domain, now + timedelta(days=1), now))
    return message


def accepted(message: Message) -> list[Event]:
    recipient = message.recipients[0]
    return [Event(message.accepted_at, "message.accepted", message.id, 1, recipient.address, "default", message.labels)]


@dataclass
class Group:
    """A group commit, a way around it to look at the database, and one to stand in its way."""

    commit: GroupCommit
    pool: Pool
    kept: list[Message] = field(default_factory=list)
    left: list[Message] = field(default_factory=list)
    dropped: list[Message] = field(default_factory=list)

    async def add(self, *messages: Message) -> MailerdError | None:
        try:
            await self.commit.add(list(messages), [event for message in messages for event in accepted(message)])
        except MailerdError as error:
            return error
        return None

    def start(self, *messages: Message) -> "asyncio.Task[MailerdError | None]":
        return asyncio.create_task(self.add(*messages))

    async def stored(self) -> set[int]:
        return {row["id"] for row in await self.pool.fetch("SELECT id FROM messages")}

    @asynccontextmanager
    async def stuck(self) -> AsyncIterator[None]:
        """No commit ends within this block."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE queues IN EXCLUSIVE MODE")
            yield

    async def pid_stuck(self) -> int:
        """The backend that waits for the block to end."""
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with asyncio.timeout(60):
            while (pid := await self.pool.fetchval(waiting)) is None:
                await asyncio.sleep(0.01)
        return int(pid)


@pytest.fixture
async def proxy(database: str, tmp_path: Path) -> AsyncIterator[DatabaseProxy]:
    async with DatabaseProxy(database, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def group(database: str, proxy: DatabaseProxy) -> AsyncIterator[Group]:
    pool = await connect_pool(proxy.url, min=1, max=3)
    around = await connect_pool(database, min=1, max=3)
    running = Group(
        GroupCommit(
            QueueStore(pool),
            worker=await WorkerStore(around).register("test", 1),
            keep=lambda message: message.size < 1000,
            kept=lambda messages: running.kept.extend(messages),
            left=lambda messages: running.left.extend(messages),
            dropped=lambda message: running.dropped.append(message),
            clock=lambda: datetime.now(UTC),
        ),
        around,
    )
    yield running
    pool.terminate()
    await around.close()


async def test_what_waits_is_committed_together(group: Group) -> None:
    messages = [mail() for _ in range(11)]
    async with group.stuck():
        first = group.start(messages[0])
        await group.pid_stuck()
        others = [group.start(message) for message in messages[1:]]
        await asyncio.sleep(0)

    assert await asyncio.gather(first, *others) == [None] * 11
    assert await group.pool.fetchval("SELECT count(DISTINCT xmin::text) FROM messages") == 2
    assert [message.id for message in group.kept] == [message.id for message in messages]


async def test_only_what_fits_is_kept_in_memory(group: Group) -> None:
    small, large = mail(), mail(size=1000)
    assert await group.add(small, large) is None

    assert (group.kept, group.left) == ([small], [large])
    owned = await group.pool.fetch("SELECT message_id, owner IS NOT NULL FROM recipients ORDER BY message_id")
    assert [tuple(row) for row in owned] == [(small.id, True), (large.id, False)]


POISON: list[dict[str, Any]] = [
    {"facts": {"label": "\x00"}},
    {"facts": {"label": "\ud800"}},
    {"facts": {"\udcff": ""}},
    {"address": "b\x00b@example.net"},
    {"address": "b\udcffb@example.net"},
    {"size": 1 << 40},
]


@pytest.mark.parametrize("poison", POISON, ids=ascii)
async def test_a_message_that_cannot_be_stored_harms_no_other(group: Group, poison: dict[str, Any]) -> None:
    good = [mail() for _ in range(3)]
    bad = mail(**poison)
    async with group.stuck():
        first = group.start(mail())
        await group.pid_stuck()
        waiting = [group.start(message) for message in (good[0], bad, *good[1:])]
        await asyncio.sleep(0)

    answers = await asyncio.gather(*waiting)
    assert await first is None
    assert [type(answer) for answer in answers] == [type(None), Refused, type(None), type(None)]
    assert {message.id for message in good} < await group.stored()
    assert bad.id not in await group.stored()
    assert bad not in group.kept
    assert set(good) < set(group.kept)
    assert group.dropped == ([bad] if bad.size < 1000 else [])


async def test_an_id_that_was_used_is_refused_to_its_second_owner_only(group: Group) -> None:
    first, again, other = mail(), mail(), mail()
    again.id = first.id
    assert await group.add(first) is None
    answers = await asyncio.gather(group.add(again), group.add(other))

    assert isinstance(answers[0], Unavailable)
    assert answers[1] is None


async def test_a_backend_that_dies_in_a_commit_has_stored_nothing_and_nobody_is_told_otherwise(group: Group) -> None:
    messages = [mail(), mail()]
    async with group.stuck():
        waiting = [group.start(message) for message in messages]
        await group.pool.execute("SELECT pg_terminate_backend($1)", await group.pid_stuck())
        answers = await asyncio.gather(*waiting)

    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    assert await group.stored() == set()
    assert group.dropped == messages
    assert group.kept == []
    later = mail()
    assert await group.add(later) is None
    assert await group.stored() == {later.id}


async def test_a_commit_whose_answer_was_lost_is_found_out(group: Group, proxy: DatabaseProxy) -> None:
    first, message = mail(), mail()
    await group.add(first)  # so that the statement is prepared, and stuck where it stores
    async with group.stuck():
        waiting = group.start(message)
        await group.pid_stuck()
        proxy.swallow()
    await until(group, {first.id, message.id})
    proxy.cut()

    assert await waiting is None
    assert group.kept == [first, message]
    await group.add(mail())
    assert message.id in await group.stored()


@pytest.mark.parametrize("failing", [False, True], ids=["at once", "at the second try"])
async def test_what_was_refused_is_withdrawn_when_the_server_commits_it_late(
    group: Group, proxy: DatabaseProxy, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    monkeypatch.setattr("mailerd.queue.commit.RESOLVE_FOR", 0.5)
    store = group.commit._store
    withdraw, failed, not_yet = store.withdraw, [] if failing else [True], asyncio.Lock()

    async def fail_once(*arguments: Any) -> None:
        async with not_yet:
            if not failed:
                failed.append(True)
                raise asyncpg.DeadlockDetectedError("deadlock detected")
            await withdraw(*arguments)

    monkeypatch.setattr(store, "withdraw", fail_once)
    first, message = mail(), mail(size=1000)
    await group.add(first)
    async with group.stuck():
        waiting = group.start(message)
        await group.pid_stuck()
        proxy.cut(server_sees=False)
        assert isinstance(await waiting, Unavailable)
        assert await group.pool.fetchval("SELECT count(*) FROM messages") == 1
        await not_yet.acquire()
    await until(group, {first.id, message.id})
    not_yet.release()
    await until(group, {first.id})
    assert await group.pool.fetchval("SELECT count(*) FROM recipients") == 1
    assert await group.pool.fetchval("SELECT count(*) FROM events") == 1
    assert group.kept == [first]


async def test_a_database_that_is_away_refuses_and_is_used_again_when_it_is_back(
    group: Group, proxy: DatabaseProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.queue.commit.RESOLVE_FOR", 0.5)
    assert await group.add(mail()) is None
    proxy.stop()
    assert isinstance(await group.add(mail()), Unavailable)
    await proxy.start()
    assert await group.add(mail()) is None
    assert len(await group.stored()) == 2


async def test_who_gives_up_before_the_commit_has_stored_nothing(group: Group) -> None:
    first, second, third = mail(), mail(), mail()
    async with group.stuck():
        waiting = [group.start(first)]
        await group.pid_stuck()
        waiting += [group.start(second), group.start(third)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[1]

    assert [await waiting[0], await waiting[2]] == [None, None]
    assert await group.stored() == {first.id, third.id}


async def test_who_gives_up_during_the_commit_has_sent_the_message(group: Group) -> None:
    message, other = mail(), mail()
    async with group.stuck():
        waiting = [group.start(message), group.start(other)]
        await group.pid_stuck()
        waiting[0].cancel()

    assert await waiting[1] is None
    assert await group.stored() == {message.id, other.id}
    assert group.kept == [message, other]


async def test_drained_waits_for_the_commit_under_way(group: Group, database: str) -> None:
    await group.commit.drained()
    async with group.stuck():
        waiting = group.start(mail())
        await group.pid_stuck()
        drained = asyncio.create_task(group.commit.drained())
        await asyncio.sleep(0)
        assert not drained.done()
    await drained
    assert await waiting is None
    async with connected(database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM messages") == 1


async def until(group: Group, stored: set[int]) -> None:
    async with asyncio.timeout(60):
        while await group.stored() != stored:
            await asyncio.sleep(0.02)
