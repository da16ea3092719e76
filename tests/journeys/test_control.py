"""Hold, release, retry, bounce, cancel: what operators do to waiting mail."""

import asyncio
from datetime import timedelta

import pytest

from mailerd import db
from mailerd.campaigns.queued import QueuedMail
from mailerd.db import Pool
from mailerd.db.migrate import migrate, shipped
from mailerd.intake.envelope import Receipt
from mailerd.queue.control import FREEZE, FROZEN, HIGHEST, LOWEST, STEP, ControlStore, MessageControl, Selection
from mailerd.queue.workers import WorkerStore
from tests.support.dns_server import DnsServer
from tests.support.postgres import TestPostgres
from tests.support.relay import RunningRelay
from tests.support.scripted_mx import Pause, ScriptedMx

BEFORE = 13  # the version of databases that do not tell who holds mail


@pytest.fixture(params=[STEP, 1])
def control(relay: RunningRelay, request: pytest.FixtureRequest) -> ControlStore:
    """At once, and in steps of the fewest recipients that one can have."""
    return ControlStore(relay.pool, step=request.param)


@pytest.fixture
def later(mx: ScriptedMx) -> None:
    """Everything is deferred once."""
    mx.on("RCPT TO:<", "451 4.3.0 later", "451 4.3.0 later", then="250 ok")


async def test_held_mail_stays_until_it_is_released(
    relay: RunningRelay, mx: ScriptedMx, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.org")
    await relay.settled()
    held = await control.hold(Selection(domain="example.net"), actor="me", now=relay.clock.now)
    assert (held.changed, held.waiting) == (1, 1)

    relay.clock.advance(hours=2)
    await relay.run_once()
    assert await relay.states(receipt) == ["held", "delivered"]
    assert (await relay.view(receipt)).recipients[0].reason == "held by me"

    await control.release(Selection(message=receipt.message_id), actor="me", now=relay.clock.now)
    await relay.run_once()
    assert await relay.states(receipt) == ["delivered", "delivered"]
    assert await relay.pool.fetchval("SELECT count(*) FROM audit") == 2
    assert "recipient.held" in await relay.events(receipt)


async def test_all_mail_of_a_selection_is_steered_and_the_command_audited_once(
    relay: RunningRelay, mx: ScriptedMx, control: ControlStore
) -> None:
    mx.on("RCPT TO:<", then="451 4.3.0 later")
    receipts = [await relay.submit(f"a{n}@example.net", f"b{n}@example.net") for n in range(4)]
    await relay.settled()
    selection = Selection(domain="example.net")
    assert (await control.hold(selection, actor="me", now=relay.clock.now)).changed == 8
    assert (await control.release(selection, actor="me", now=relay.clock.now)).changed == 8
    at = relay.clock.now + timedelta(hours=1)
    assert (await control.reschedule(selection, due_at=at, actor="me", now=relay.clock.now)).changed == 8
    gone = await control.cancel(selection, actor="me", now=relay.clock.now)

    assert (gone.changed, gone.waiting) == (8, 0)
    assert [await relay.states(receipt) for receipt in receipts] == [["cancelled"] * 2] * 4
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    actions = await relay.pool.fetch("SELECT action FROM audit ORDER BY at")
    assert [row[0] for row in actions] == ["hold", "release", "reschedule", "cancel"]


async def test_retry_makes_waiting_mail_due_now(relay: RunningRelay, control: ControlStore, later: None) -> None:
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    steered = await control.retry(Selection(message=receipt.message_id), actor="me", now=relay.clock.now)
    assert steered.changed == 2
    await relay.run_once()
    assert await relay.states(receipt) == ["delivered", "delivered"]


async def test_retry_goes_on_when_it_and_a_claim_waited_for_each_others_queues(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    await relay.submit("a@example.net", "b@example.org")
    await relay.settled()
    await relay.pool.execute("UPDATE queues SET blocked_until = 'infinity', reason = 'no route'")
    await control.hold(Selection(pool="default"), actor="me", now=relay.clock.now)  # so that nothing is rescheduled
    async with relay.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM queues WHERE name LIKE '%/example.org' FOR UPDATE")
        retry = asyncio.create_task(control.retry(Selection(pool="default"), actor="me", now=relay.clock.now))
        await waiting_for_a_lock(relay.pool)
        await other.execute("SELECT FROM queues WHERE name LIKE '%/example.net' FOR UPDATE")
    await retry
    assert await relay.pool.fetchval("SELECT count(*) FROM queues WHERE blocked_until IS NOT NULL") == 0


async def test_commands_at_one_time_leave_the_connections_to_the_mail(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    """The pool of a worker has four: of these commands each waits for the locked row, or for its turn."""
    await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    selection = Selection(domain="example.net")
    async with relay.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM recipients FOR UPDATE")
        held = [
            asyncio.create_task(control.hold(selection, actor="me", now=relay.clock.now))
            for _ in range(relay.pool.get_max_size())
        ]
        async with asyncio.timeout(5):
            await waiting_for_a_lock(relay.pool)
    assert sum([(await each).changed for each in held]) == 2


async def waiting_for_a_lock(pool: Pool) -> None:
    while not await pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        await asyncio.sleep(0.01)


async def test_cancelled_mail_is_gone_and_nobody_is_told(
    relay: RunningRelay, mx: ScriptedMx, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    steered = await control.cancel(Selection(address="a@example.net"), actor="me", now=relay.clock.now)
    assert (steered.changed, steered.waiting) == (1, 0)
    relay.clock.advance(hours=2)
    await relay.run_once()
    assert await relay.states(receipt) == ["cancelled", "delivered"]
    assert [delivery.recipient for delivery in mx.delivered] == ["b@example.net"]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_bounced_mail_is_returned_to_its_sender(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer, control: ControlStore, later: None
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    await control.bounce(Selection(sender="ann@sender.example"), actor="me", now=relay.clock.now)
    await relay.relay.sweep()
    await relay.settled()
    assert await relay.states(receipt) == ["bounced", "bounced"]
    assert mx.delivered[-1].recipient == "ann@sender.example"
    assert b"returned to its sender by the operator" in mx.delivered[-1].content
    assert "recipient.held" not in await relay.events(receipt)


async def test_rescheduled_mail_waits_until_then(relay: RunningRelay, control: ControlStore, later: None) -> None:
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    at = relay.clock.now + timedelta(hours=5)
    await control.reschedule(Selection(message=receipt.message_id), due_at=at, actor="me", now=relay.clock.now)
    assert {recipient.due_at for recipient in (await relay.view(receipt)).recipients} == {at}


async def test_one_message_is_steered_by_its_own_tenant_only(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    steering = MessageControl(control, relay.clock)
    assert await steering.cancel(receipt.message_id, tenant="other", actor="eve") is None
    steered = await steering.hold(receipt.message_id, tenant="default", actor="ann")
    assert steered is not None
    assert steered.changed == 2


async def test_mail_in_memory_is_recalled(relay: RunningRelay, mx: ScriptedMx, control: ControlStore) -> None:
    mx.on("CONNECT", [Pause(0.5), "220 hello"])
    receipts = [await relay.submit(f"user{n}@example.net") for n in range(5)]
    recalled = relay.relay.dispatcher.recall(Selection(credential="trusted"))
    assert recalled == 5
    await control.hold(Selection(domain="example.net"), actor="me", now=relay.clock.now)
    await relay.settled()
    assert [(await relay.states(receipt))[0] for receipt in receipts] == ["held"] * 5


async def test_mail_that_was_held_while_a_worker_heard_nothing_is_recalled_when_it_hears_again(
    relay: RunningRelay, mx: ScriptedMx, control: ControlStore
) -> None:
    mx.on("CONNECT", [Pause(3.0), "220 hello"])  # longer than a command asks for it
    held, other = await relay.submit("a@example.net"), await relay.submit("b@example.org")
    steered = await control.hold(Selection(message=held.message_id), actor="me", now=relay.clock.now)
    assert steered.changed == 1

    workers = WorkerStore(relay.pool)
    assert relay.relay.dispatcher.recall_these(await workers.held(relay.number)) == 1
    await relay.settled()
    assert [await relay.states(receipt) for receipt in (held, other)] == [["held"], ["delivered"]]


async def test_mail_waiting_for_its_route_is_recalled_too(
    relay: RunningRelay, dns: DnsServer, control: ControlStore
) -> None:
    dns.misbehave("slow.example", "drop")
    receipt = await relay.submit("a@slow.example")
    assert relay.relay.dispatcher.recall(Selection(domain="slow.example")) == 1
    await control.cancel(Selection(domain="slow.example"), actor="me", now=relay.clock.now)
    assert await relay.states(receipt) == ["cancelled"]


async def test_a_cancel_that_died_half_way_leaves_mail_held_with_the_reason_and_it_can_be_released(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    selection = Selection(message=receipt.message_id)
    await relay.pool.execute(FREEZE, *selection.parameters(), LOWEST, HIGHEST, False)
    assert {recipient.state for recipient in (await relay.view(receipt)).recipients} == {"held"}
    assert "release it" in (await relay.view(receipt)).recipients[0].reason

    await control.release(selection, actor="me", now=relay.clock.now)
    relay.clock.advance(hours=2)
    await relay.run_once()
    assert await relay.states(receipt) == ["delivered", "delivered"]


@pytest.mark.parametrize("command", ["cancel", "bounce"])
async def test_a_command_for_good_is_audited_before_it_does_anything(
    relay: RunningRelay, control: ControlStore, later: None, command: str
) -> None:
    await relay.submit("a@example.net", "b@example.net")
    await relay.settled()
    await relay.pool.execute("UPDATE recipients SET owner = $1", relay.number)  # so that it waits for the worker
    task = asyncio.create_task(getattr(control, command)(Selection(pool="default"), actor="me", now=relay.clock.now))
    while not await relay.pool.fetchval("SELECT bool_or(held) FROM recipients"):
        await asyncio.sleep(0.01)
    assert await relay.pool.fetchval("SELECT action FROM audit") == command
    await task
    assert await relay.pool.fetchval("SELECT count(*) FROM audit") == 1


async def test_mail_of_others_between_is_not_counted_nor_forgotten(
    relay: RunningRelay, mx: ScriptedMx, control: ControlStore
) -> None:
    """Steps are of all mail, whether it fits or not."""
    mx.on("RCPT TO:<", then="451 4.3.0 later")
    mixed = [await relay.submit(f"a{n}@example.net", f"b{n}@example.org") for n in range(3)]
    other, alone = await relay.submit("c@example.org"), await relay.submit("d@example.net")
    await relay.settled()
    await relay.pool.execute("UPDATE messages SET pending = 0 WHERE id = $1", other.message_id)  # its body is kept
    await relay.pool.execute("DELETE FROM recipients WHERE message_id = $1", other.message_id)
    selection = Selection(domain="example.net")
    assert (await control.hold(selection, actor="me", now=relay.clock.now)).waiting == 4
    assert await control.count(Selection()) == 7

    gone = await control.cancel(selection, actor="me", now=relay.clock.now)
    assert (gone.changed, gone.waiting) == (4, 0)
    assert [await relay.states(receipt) for receipt in mixed] == [["cancelled", "deferred"]] * 3
    left = {row[0] for row in await relay.pool.fetch("SELECT id FROM messages")}
    assert left == {*(receipt.message_id for receipt in mixed), other.message_id}
    assert alone.message_id not in left


async def test_what_an_operator_holds_no_tenant_releases(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt, selection = await held_by_operator(relay, "a@example.net", "b@example.org")
    tenant = MessageControl(control, relay.clock)
    steered = await tenant.release(receipt.message_id, tenant="default", actor="ann")
    assert steered is not None
    assert (steered.changed, steered.kept) == (0, 2)
    await QueuedMail(control, relay.clock).release("cmp_1", "default", "ann")
    assert await relay.states(receipt) == ["held", "held"]

    steered = await operator(relay).release(selection, actor="cli:eve", now=relay.clock.now)
    assert (steered.changed, steered.kept) == (2, 0)
    assert await relay.states(receipt) == ["deferred", "deferred"]


async def test_a_tenant_releases_what_is_not_held_by_an_operator(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.org")
    await relay.settled()
    selection = Selection(message=receipt.message_id)
    await control.hold(selection, actor="ann", now=relay.clock.now)
    await operator(relay).hold(Selection(domain="example.net"), actor="cli:eve", now=relay.clock.now)
    await control.hold(selection, actor="ann", now=relay.clock.now)
    reasons = [recipient.reason for recipient in (await relay.view(receipt)).recipients]
    assert reasons == ["held by cli:eve", "held by ann"]

    steered = await control.release(selection, actor="ann", now=relay.clock.now)
    assert (steered.changed, steered.kept) == (1, 1)
    assert await relay.states(receipt) == ["held", "deferred"]


@pytest.mark.parametrize("command", ["cancel", "bounce"])
async def test_a_command_for_good_leaves_what_it_could_not_stop_as_it_was_held(
    relay: RunningRelay, control: ControlStore, later: None, command: str
) -> None:
    _, selection = await held_by_operator(relay, "a@example.net", "b@example.org")
    # As if a worker were in the middle of sending it.
    await relay.pool.execute("UPDATE recipients SET owner = $1 WHERE domain = 'example.net'", relay.number)
    steered = await getattr(control, command)(selection, actor="ann", now=relay.clock.now)
    assert steered.changed == 1
    row = await relay.pool.fetchrow("SELECT held, reason FROM recipients WHERE domain = 'example.net'")
    assert row is not None
    assert tuple(row) == (True, "held by cli:eve")


async def test_an_operators_hold_counts_that_comes_while_a_tenant_cancels(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt = await relay.submit("a@example.net", "b@example.org")
    await relay.settled()
    selection = Selection(message=receipt.message_id)
    await relay.pool.execute("UPDATE recipients SET owner = $1", relay.number)
    cancel = asyncio.create_task(control.cancel(selection, actor="ann", now=relay.clock.now))
    while not await relay.pool.fetchval("SELECT bool_and(held) FROM recipients"):
        await asyncio.sleep(0.01)
    await operator(relay).hold(selection, actor="cli:eve", now=relay.clock.now)
    assert (await cancel).changed == 0
    assert await relay.states(receipt) == ["held", "held"]
    assert (await control.release(selection, actor="ann", now=relay.clock.now)).kept == 2


async def test_held_mail_of_a_worker_that_died_still_says_why_it_is_held(
    relay: RunningRelay, control: ControlStore, later: None
) -> None:
    receipt, _ = await held_by_operator(relay, "a@example.net")
    await relay.pool.execute("UPDATE recipients SET owner = $1", relay.number)
    await WorkerStore(relay.pool).release(relay.number, [])
    assert (await relay.view(receipt)).recipients[0].reason == "held by cli:eve"


async def test_an_old_database_tells_operators_holds_by_their_reasons(postgres: TestPostgres) -> None:
    name = await postgres.fresh(migrated=False)
    async with db.connected(postgres.url_of(name)) as connection:
        await migrate(connection, [each for each in shipped() if each.version <= BEFORE])
        await connection.executemany(
            "INSERT INTO recipients (message_id, n, address, domain, queue, held, due_at, expires_at, reason)"
            " VALUES (1, $1, 'a@example.net', 'example.net', 'q', $2, now(), now(), $3)",
            [(1, True, "held by cli:eve"), (2, True, "held by shop"), (3, True, FROZEN), (4, False, "later")],
        )
        await migrate(connection)
        rows = await connection.fetch("SELECT held_by_operator FROM recipients ORDER BY n")
        assert [row[0] for row in rows] == [True, False, True, False]
    await postgres.drop(name)


def operator(relay: RunningRelay) -> ControlStore:
    return ControlStore(relay.pool, operator=True)


async def held_by_operator(relay: RunningRelay, *recipients: str) -> tuple[Receipt, Selection]:
    receipt = await relay.submit(*recipients)
    await relay.settled()
    await relay.pool.execute("UPDATE messages SET campaign = 'cmp_1'")
    selection = Selection(campaign="cmp_1")
    assert (await operator(relay).hold(selection, actor="cli:eve", now=relay.clock.now)).changed == len(recipients)
    return receipt, selection
