"""The API and the relay behind it: a message from its submission to the mail exchanger, once, or back."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from mailerd.db import connected
from mailerd.delivery.effects import Effect, EffectStore
from mailerd.queue.control import ControlStore, Selection
from tests.support.database_proxy import DatabaseProxy
from tests.web.conftest import EMAIL, Api

ACTIONS = ("cancel", "hold", "release", "retry", "bounce")
LATER = "2027-11-01T00:00:00Z"


async def state(api: Api, path: str) -> list[str]:
    return [recipient["state"] for recipient in (await api.ask("GET", path)).json["recipients"]]


async def test_a_message_is_delivered_and_its_view_tells_how(api: Api) -> None:
    api.mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    sent = await api.send(EMAIL | {"cc": "no@example.net", "tags": ["order"], "labels": {"n": "1"}})
    await api.relay.settled()
    detail = (await api.ask("GET", f"/api/v1/emails/{sent.json['id']}", key="reader")).json

    assert (detail["sender"], detail["credential"]) == ("shop@example.com", "all")
    assert (detail["tags"], detail["labels"]) == (["order"], {"n": "1"})
    assert [(each["email"], each["id"]) for each in sent.json["recipients"]] == [
        (each["address"], each["id"]) for each in detail["recipients"]
    ]
    assert [each["state"] for each in detail["recipients"]] == ["delivered", "bounced"]
    assert detail["recipients"][1]["last_reply"] == "550 5.1.1 no such user"
    attempts = {attempt["recipient_id"][-1]: attempt for attempt in detail["attempts"]}
    assert (attempts["1"]["outcome"], attempts["1"]["host"]) == ("delivered", "mx.example.net")
    assert (attempts["2"]["code"], attempts["2"]["stage"]) == (550, "rcpt")


async def test_a_deferred_message_says_why_it_waits_and_until_when(api: Api) -> None:
    api.mx.on("RCPT TO:<", "451 4.7.1 greylisted, come back later", then="250 ok")
    sent = await api.send()
    await api.relay.settled()
    (recipient,) = (await api.ask("GET", f"/api/v1/emails/{sent.json['id']}")).json["recipients"]

    assert (recipient["state"], recipient["attempts"]) == ("deferred", 1)
    assert recipient["reason"].startswith("greylisted: 451 4.7.1")
    assert recipient["due_at"] > api.relay.clock.now.isoformat()


async def test_a_message_behind_a_blocked_queue_says_what_blocks_it(api: Api) -> None:
    await api.mx.stop()
    first = await api.send()
    await api.relay.settled()
    second = await api.send(EMAIL | {"scheduled_at": (api.relay.clock.now).isoformat()})
    await api.relay.settled()

    for sent in (first, second):
        (recipient,) = (await api.ask("GET", f"/api/v1/emails/{sent.json['id']}")).json["recipients"]
        assert "refused" in recipient["reason"]
        assert recipient["due_at"] > api.relay.clock.now.isoformat()


async def test_of_a_batch_the_good_ones_are_delivered(api: Api) -> None:
    good = EMAIL | {"from": "a@shop.example"}
    body = {"emails": [good, EMAIL, EMAIL | {"to": "x"}, good | {"to": "bob@example.net"}]}
    answer = await api.ask("POST", "/api/v1/emails/batch", key="shop", json=body)

    assert [item["status"] for item in answer.json["data"]] == [202, 403, 422, 202]
    await api.relay.settled()
    assert sorted(delivery.recipient for delivery in api.mx.delivered) == ["ann@example.net", "bob@example.net"]
    for item in answer.json["data"]:
        if item["email"]:
            assert await state(api, f"/api/v1/emails/{item['email']['id']}") == ["delivered"]


async def test_a_raw_message_is_delivered_with_its_own_envelope(api: Api) -> None:
    raw = base64.b64encode(b"From: shop@example.com\nSubject: x\n\nHello\n").decode()
    body = {"from": "bounces@example.com", "to": "ann@example.net", "raw": raw}
    assert (await api.ask("POST", "/api/v1/emails/raw", json=body)).status == 202

    (content,) = await api.delivered()
    assert api.mx.delivered[0].sender == "bounces@example.com"
    assert content.endswith(b"From: shop@example.com\r\nSubject: x\r\n\r\nHello\r\n")


# A key


async def test_a_key_sends_one_message_however_often_it_comes(api: Api) -> None:
    headers = {"Idempotency-Key": "order 1001"}
    first = await api.send(headers=headers)
    again = await api.send(headers=headers)
    other = await api.send(EMAIL | {"subject": "Other"}, headers=headers)

    assert (first.status, again.status, again.body) == (202, 202, first.body)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (other.status, other.problem.code) == (422, "idempotency_key_reused")
    assert len(await api.delivered()) == 1


@asynccontextmanager
async def no_keys_stored(database: str) -> AsyncIterator[None]:
    """Requests with a key come as far as to store it, which is after they have stored their messages."""
    async with connected(database) as connection, connection.transaction():
        await connection.execute("LOCK TABLE idempotency_keys IN SHARE MODE")
        yield


async def stuck(database: str) -> int:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with connected(database) as connection, asyncio.timeout(60):
        while (pid := await connection.fetchval(waiting)) is None:
            await asyncio.sleep(0.01)
    return int(pid)


async def test_requests_with_one_key_at_a_time_have_one_effect(api: Api, database: str) -> None:
    headers = {"Idempotency-Key": "k"}
    async with no_keys_stored(database):
        first = asyncio.create_task(api.send(headers=headers))
        await stuck(database)
        second = await api.send(headers=headers)
        assert (second.status, second.problem.code) == (409, "idempotency_in_progress")
        assert second.headers["Retry-After"] == "1"

    assert (await first).status == 202
    assert (await api.send(headers=headers)).body == (await first).body
    answers = await asyncio.gather(*(api.send(headers={"Idempotency-Key": "l"}) for _ in range(8)))
    assert {answer.status for answer in answers} <= {202, 409}
    assert len({answer.body for answer in answers if answer.status == 202}) == 1
    assert await api.accepted() == 2


async def test_a_request_that_broke_off_half_way_has_done_nothing_and_may_come_again(api: Api, database: str) -> None:
    headers = {"Idempotency-Key": "k"}
    async with no_keys_stored(database):
        sending = asyncio.create_task(api.send(headers=headers))
        pid = await stuck(database)
        async with connected(database) as connection:
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
        broken = await sending
    assert (broken.status, broken.problem.code) == (503, "unavailable")
    assert await api.accepted() == 0

    assert (await api.send(headers=headers)).status == 202
    assert len(await api.delivered()) == 1


# Steering


async def test_a_cancelled_email_is_never_sent(api: Api) -> None:
    path = await api.later(cc="bob@example.net")
    answer = await api.ask("POST", f"{path}/cancel")

    assert (answer.json["changed"], answer.json["waiting"]) == (2, 0)
    assert await state(api, path) == ["cancelled", "cancelled"]
    api.relay.clock.advance(days=2)
    await api.relay.run_once()
    assert api.mx.delivered == []
    assert (await api.ask("POST", f"{path}/retry")).problem.code == "message_finished"


async def test_an_email_that_an_operator_holds_is_not_released(api: Api) -> None:
    path = await api.later()
    operator = ControlStore(api.relay.pool, operator=True)
    await operator.hold(Selection(tenant="default"), actor="cli:eve", now=api.relay.clock.now)
    assert (await api.ask("POST", f"{path}/release")).problem.code == "held_by_operator"
    assert await state(api, path) == ["held"]
    assert (await api.ask("POST", f"{path}/cancel")).json["changed"] == 1


async def test_a_held_email_goes_on_when_it_is_released(api: Api) -> None:
    path = await api.later()
    assert (await api.ask("POST", f"{path}/hold")).json["changed"] == 1
    api.relay.clock.advance(days=1, hours=1)
    await api.relay.run_once()
    (recipient,) = (await api.ask("GET", path)).json["recipients"]
    assert (recipient["state"], recipient["reason"]) == ("held", "held by all")
    assert [line["states"] for line in (await api.ask("GET", "/api/v1/emails?state=held")).json["data"]] == [
        {"held": 1}
    ]

    assert (await api.ask("POST", f"{path}/release")).json == {"id": path[-17:], "changed": 1, "waiting": 1, "kept": 0}
    await api.relay.run_once()
    assert await state(api, path) == ["delivered"]


async def test_an_email_is_sent_at_once_when_it_is_tried_again_or_at_another_time(api: Api) -> None:
    now, later = await api.later(), await api.later(to="bob@example.net")
    assert (await api.ask("POST", f"{now}/retry")).json["changed"] == 1
    at = (api.relay.clock.now).replace(microsecond=0).isoformat()
    assert (await api.ask("POST", f"{later}/reschedule", json={"scheduled_at": LATER})).json["changed"] == 1
    await api.relay.run_once()

    assert await state(api, now) == ["delivered"]
    (recipient,) = (await api.ask("GET", later)).json["recipients"]
    assert recipient["due_at"] == recipient["expires_at"] > at  # not later than it expires
    assert recipient["reason"] == "rescheduled by all"
    for wrong in (7, "tomorrow", "9999-12-31T23:59:59-12:00"):
        answer = await api.ask("POST", f"{later}/reschedule", json={"scheduled_at": wrong})
        assert [error.pointer for error in answer.problem.errors] == ["/scheduled_at"]


async def test_a_bounced_email_is_returned_to_its_sender(api: Api) -> None:
    path = await api.later()
    assert (await api.ask("POST", f"{path}/bounce")).json["changed"] == 1
    await api.relay.relay.sweep()
    (report,) = await api.delivered()

    assert await state(api, path) == ["bounced"]
    assert api.mx.delivered[0].recipient == "shop@example.com"
    assert b"returned to its sender by the operator" in report


async def test_steering_is_written_down_with_its_actor(api: Api) -> None:
    path = await api.later()
    for action in ("hold", "release", "retry"):
        await api.ask("POST", f"{path}/{action}", key="all")
    rows = await api.relay.pool.fetch("SELECT actor, action FROM audit ORDER BY at")

    assert [tuple(row) for row in rows] == [("all", "hold"), ("all", "release"), ("all", "reschedule")]


# Tenants


async def test_a_stranger_finds_nothing_of_ours_and_changes_nothing(api: Api) -> None:
    path = await api.later(tags=["order"])
    before = (await api.ask("GET", path)).body
    asked = [("GET", path, None), *(("POST", f"{path}/{action}", None) for action in ACTIONS)]
    for method, place, body in [*asked, ("POST", f"{path}/reschedule", {"scheduled_at": LATER})]:
        answer = await api.ask(method, place, key="stranger", json=body)
        assert (answer.status, answer.problem.code) == (404, "not_found"), place
    for query in ("", "recipient=ann@example.net", "sender=shop@example.com", "tag=order", "state=queued"):
        assert (await api.ask("GET", f"/api/v1/emails?{query}", key="stranger")).json["data"] == []

    assert (await api.ask("GET", path)).body == before
    assert await api.relay.pool.fetchval("SELECT count(*) FROM audit") == 0


# Trouble


async def test_without_a_database_everything_is_503_and_works_again_when_it_is_back(
    api: Api, proxy: DatabaseProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.queue.commit.RESOLVE_FOR", 0.5)
    path = await api.later()
    asked = [("POST", "/api/v1/emails", EMAIL), ("GET", "/api/v1/emails", None), ("GET", path, None)]
    asked += [("POST", f"{path}/{action}", None) for action in ACTIONS]
    proxy.stop()
    for method, place, body in asked:
        answer = await api.ask(method, place, json=body)
        assert (answer.status, answer.problem.code) == (503, "unavailable"), place
        assert answer.headers["Retry-After"] == "5"
        assert b"PGSQL" not in answer.body
        assert b"sock" not in answer.body
    keyed = await api.send(headers={"Idempotency-Key": "k"})
    assert keyed.status == 503
    assert (await api.ask("GET", "/api/v1/emails", key="reader")).status == 503  # a key never seen before

    await proxy.start()
    assert (await api.send(headers={"Idempotency-Key": "k"})).status == 202
    for method, place, body in asked:
        assert (await api.ask(method, place, json=body)).status in (200, 202, 409), place


async def test_connections_that_are_cut_are_replaced(api: Api, database: str) -> None:
    assert (await api.send()).status == 202
    async with connected(database) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    answers = [await api.send() for _ in range(5)]

    assert {answer.status for answer in answers} <= {202, 503}
    assert answers[-1].status == 202
    assert await api.accepted() == 1 + sum(answer.status == 202 for answer in answers)


async def test_a_tenant_is_not_told_what_was_answered_to_another_one(api: Api) -> None:
    now = api.relay.clock.now
    words = "too-fast: 421 4.7.0 slow down, rival@example.org"
    until = now + timedelta(hours=1)
    effect = Effect(0, "pause", "", "default", "", "", "", 0.0, words, "f.yaml:7", now, until)
    made = await EffectStore(api.relay.pool).add(effect)
    api.relay.relay.upkeep.changed()
    async with asyncio.timeout(60):
        while not api.relay.relay.effects.active:
            await asyncio.sleep(0.02)
    reasons = {}
    for key in ("all", "stranger"):
        email = (await api.ask("POST", "/api/v1/emails", key=key, json=EMAIL)).json
        await api.relay.settled()
        detail = (await api.ask("GET", f"/api/v1/emails/{email['id']}", key=key)).json
        reasons[key] = detail["recipients"][0]["reason"]
    assert words in reasons["all"]
    assert reasons["stranger"] == f"effect {made.id} (too-fast)"
