"""`GET /api/v1/events`: what happened to a tenant's own mail, and how it is followed."""

from datetime import timedelta

import pytest

from mailerd.events import Event, EventStore
from mailerd.queue.ids import first_id_at, format_message_id
from tests.web.conftest import Api

PATH = "/api/v1/events"


async def append(api: Api, *some: Event) -> None:
    async with api.relay.pool.acquire() as connection, connection.transaction():
        await EventStore(api.relay.pool).append(connection, some)


def message(api: Api, number: int, hours: float = 0) -> int:
    at = api.relay.clock.now + timedelta(hours=hours)
    return first_id_at(int(at.timestamp() * 1000)) + number


def steps(api: Api, number: int, *types: str, hours: float = 0, **changes: object) -> list[Event]:
    """A message accepted so many hours from now, and what became of it."""
    at, id_ = api.relay.clock.now + timedelta(hours=hours), message(api, number, hours)
    facts = {"sender": f"shop{number}@example.com", "subject": f"Order {number}", "message_id": "<1@x>"}
    values = {"address": "ann@example.net", "tenant": "default", "stream": "transactional", "campaign": ""} | changes
    first = Event(at, "message.accepted", id_, 1, data=facts, **values)  # type: ignore[arg-type]
    return [first, *(Event(at, type_, id_, 1, data={"kind": "other"}, **values) for type_ in types)]  # type: ignore[arg-type]


async def listed(api: Api, query: str = "", **rest: str) -> list[str]:
    """Types of all pages, with the number of the message."""
    found, cursor = [], ""
    while True:
        answer = await api.ask("GET", f"{PATH}?{query}{cursor}", **rest)
        assert answer.status == 200, answer.body
        found += [f"{each['type']} {each['data'].get('from', '')[4:5]}" for each in answer.json["data"]]
        if not answer.json["has_more"]:
            return found
        cursor = f"&cursor={answer.json['next_cursor']}"


async def test_mail_that_was_sent_is_told_newest_first(api, mx):
    sent = (await api.send(tagged := {
        "from": "Shop <shop@example.com>", "to": ["ann@example.net"], "subject": "Hi", "text": "Hi", "tags": ["order"]
    })).json["id"]  # fmt: skip
    assert tagged
    await api.delivered()
    answer = await api.ask("GET", PATH)
    delivered, queued = answer.json["data"]
    assert (queued["type"], delivered["type"]) == ("email.queued", "email.delivered")
    assert delivered["id"] > queued["id"]
    data = delivered["data"]
    assert (data["email_id"], data["recipient"], data["to"], data["subject"]) == (sent, 1, "ann@example.net", "Hi")
    assert (data["from"], data["tags"], data["stream"]) == ("shop@example.com", ["order"], "transactional")
    assert data["outcome"]["code"] == 250
    assert "tenant" not in str(answer.json)
    assert (answer.json["has_more"], answer.json["next_cursor"]) == (False, None)


async def test_a_tenant_sees_only_its_own(api):
    await append(api, *steps(api, 1, "recipient.bounced"), *steps(api, 2, "recipient.bounced", tenant="other"))
    assert await listed(api) == ["email.bounced 1", "email.queued 1"]
    assert await listed(api, key="stranger") == ["email.bounced 2", "email.queued 2"]
    assert await listed(api, f"email_id={format_message_id(message(api, 1))}", key="stranger") == []
    assert await listed(api, "recipient=ann@example.net", key="stranger") == ["email.bounced 2", "email.queued 2"]


async def test_filters_say_what_is_wanted(api):
    await append(
        api,
        *steps(api, 1, "recipient.deferred", "recipient.bounced"),
        *steps(api, 2, "recipient.delivered", stream="marketing", campaign="spring"),
        *steps(api, 3, "recipient.expired", "recipient.held", address="bob@example.net"),
        Event(api.relay.clock.now, "suppression.added", 0, 0, "bob@example.net", "default", {"reason": "manual"}),
    )
    assert await listed(api, "type=email.bounced&type=email.failed") == ["email.failed 3", "email.bounced 1"]
    assert await listed(api, "type=suppression.*") == ["suppression.added "]
    assert await listed(api, "type=email.scheduled") == []
    assert await listed(api, "stream=marketing") == await listed(api, "campaign=spring") == [
        "email.delivered 2", "email.queued 2"
    ]  # fmt: skip
    one = f"email_id={format_message_id(message(api, 1))}"
    assert await listed(api, f"{one}&order=oldest") == ["email.queued 1", "email.delivery_delayed 1", "email.bounced 1"]
    assert await listed(api, f"{one}&recipient=bob@example.net") == []
    assert await listed(api, f"{one}&recipient=ann@example.net&type=email.bounced") == ["email.bounced 1"]
    assert await listed(api, "recipient=bob@example.net") == ["suppression.added ", "email.failed 3", "email.queued 3"]


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_a_time_has_its_events_whatever_stands_around_it(api, order):
    for hour in range(6):
        await append(api, *steps(api, hour, "recipient.delivered", hours=hour - 6))
    now = api.relay.clock.now
    since, until = (f"{now + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}" for hours in (-4.5, -2.5))
    found = await listed(api, f"since={since}&until={until}&order={order}&limit=3")
    expected = ["email.queued 2", "email.delivered 2", "email.queued 3", "email.delivered 3"]
    assert found == (expected if order == "oldest" else expected[::-1])
    assert len(await listed(api, f"until={until}&order={order}")) == 8
    assert len(await listed(api, f"since={since}&order={order}")) == 8


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_pages_go_on_where_the_one_before_ended(api, order):
    for number in range(8):
        await append(api, *steps(api, number, "recipient.delivered"))
    whole = await listed(api, f"order={order}&limit=500")
    assert len(whole) == 16
    assert await listed(api, f"order={order}&limit=3") == whole


async def test_a_rare_filter_looks_at_a_bounded_number_of_events_at_a_time(api, monkeypatch):
    monkeypatch.setattr("mailerd.feedback.event_search.STEP", 5)
    monkeypatch.setattr("mailerd.feedback.event_search.LOOK_AT", 10)
    await append(api, *steps(api, 1, "recipient.bounced"))
    await append(api, *(each for number in range(20) for each in steps(api, number % 10, "recipient.delivered")))
    first = (await api.ask("GET", f"{PATH}?type=email.bounced")).json
    assert (first["data"], first["has_more"]) == ([], True)
    assert await listed(api, "type=email.bounced") == ["email.bounced 1"]


async def test_oldest_first_follows_what_happens_and_misses_no_transaction_that_was_slow(api):
    await append(api, *steps(api, 1))
    page = (await api.ask("GET", f"{PATH}?order=oldest")).json
    assert ([each["type"] for each in page["data"]], page["has_more"]) == (["email.queued"], False)

    pool = api.relay.pool
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await EventStore(pool).append(slow, steps(api, 2))
        await append(api, *steps(api, 3))
        again = (await api.ask("GET", f"{PATH}?order=oldest&cursor={page['next_cursor']}")).json
        assert again["data"] == []
        await transaction.commit()
    rest = (await api.ask("GET", f"{PATH}?order=oldest&cursor={again['next_cursor']}")).json
    assert [each["data"]["subject"] for each in rest["data"]] == ["Order 2", "Order 3"]


@pytest.mark.parametrize(
    "query",
    [
        "type=email.opend",
        "type=recipient.bounced",
        "email_id=msg_1",
        "recipient=nobody",
        "since=yesterday",
        "since=9999-12-31T23:59:59Z",
        "until=0001-01-01T00:00:00Z",
        "order=sideways",
        "limit=0",
        "page=2",
        "stream=a&stream=b",
    ],
)
async def test_what_cannot_be_asked_is_a_problem_that_names_the_parameter(api, query):
    answer = await api.ask("GET", f"{PATH}?{query}")
    assert answer.status == 422
    assert answer.problem.errors[0].parameter == query.partition("=")[0]


async def test_a_cursor_is_good_for_its_search_and_its_tenant_only(api):
    await append(api, *steps(api, 1, "recipient.delivered"))
    cursor = (await api.ask("GET", f"{PATH}?limit=1")).json["next_cursor"]
    for query, key in ((f"stream=x&cursor={cursor}", "all"), (f"cursor={cursor}", "stranger"), ("cursor=x", "all")):
        answer = await api.ask("GET", f"{PATH}?limit=1&{query}", key=key)
        assert (answer.status, answer.problem.code) == (400, "invalid_cursor")


async def test_reading_needs_the_scope(api):
    assert (await api.ask("GET", PATH, key="sender")).status == 403
    assert (await api.ask("GET", PATH, key="none")).status == 401
    assert (await api.ask("GET", PATH, key="reader")).status == 200
