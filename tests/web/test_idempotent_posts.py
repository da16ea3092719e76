"""Every POST of the campaign platform that makes or sends something: with an Idempotency-Key it is done once."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from typing import Any, NamedTuple

import pytest

from mailerd.queue.ids import CAMPAIGN, CONTACT, LIST, TEMPLATE, format_id
from tests.campaigns.making import make_campaign, make_list, make_template
from tests.web.conftest import ACCEPTED, Answer, Api

V1 = "/api/v1"
NUMBERS = count(1)


class Post(NamedTuple):
    """Each call of `path` leads to something new, of `body` says something new; `made` counts what comes of it."""

    path: Callable[[Api], Awaitable[str]]
    body: Callable[[Api], Awaitable[Any]]
    made: str


def at(path: str) -> Callable[[Api], Awaitable[str]]:
    async def fixed(api: Api) -> str:
        return f"{V1}/{path}"

    return fixed


def says(**fields: Any) -> Callable[[Api], Awaitable[Any]]:
    """The fields, with a new number for {n}."""

    async def body(api: Api) -> Any:
        n = str(next(NUMBERS))
        return {name: value.replace("{n}", n) if isinstance(value, str) else value for name, value in fields.items()}

    return body


async def contact(api: Api) -> str:
    list_id = await make_list(api.relay.pool, f"person{next(NUMBERS)}")
    query = "SELECT contact_id FROM list_contacts WHERE list_id = $1"
    return f"{V1}/contacts/{format_id(CONTACT, await api.relay.pool.fetchval(query, list_id))}/consents"


async def new_campaign(api: Api) -> dict[str, Any]:
    pool = api.relay.pool
    return {
        "name": f"C {next(NUMBERS)}",
        "template_id": format_id(TEMPLATE, await make_template(pool)),
        "sender_email": "news@shop.example",
        "sender_name": "Shop",
        "contact_list_ids": [format_id(LIST, await make_list(pool, "ann"))],
    }


def of_campaign(step: str) -> Callable[[Api], Awaitable[str]]:
    async def path(api: Api) -> str:
        made = await api.ask("POST", f"{V1}/campaigns", json=await new_campaign(api))
        return f"{V1}/campaigns/{made.json['campaign_id']}/{step}"

    return path


async def of_a_campaign_that_is_over(api: Api) -> str:
    campaign = await make_campaign(api.relay.pool, status="sent")
    await api.relay.pool.execute(
        "INSERT INTO campaign_contacts (campaign_id, contact_id, status, waiting, due_at) VALUES ($1, 1, 4, false, $2)",
        campaign.id,
        api.relay.clock.now,
    )
    return f"{V1}/campaigns/{format_id(CAMPAIGN, campaign.id)}/resend"


async def a_time(api: Api) -> Any:
    return {"schedule_time": (api.relay.clock.now + timedelta(hours=next(NUMBERS))).isoformat()}


async def nothing(api: Api) -> None:
    return None


async def of_template(api: Api) -> str:
    return f"{V1}/templates/{format_id(TEMPLATE, await make_template(api.relay.pool))}"


async def a_test(api: Api) -> str:
    return f"{await of_template(api)}/test"


async def a_version(api: Api) -> str:
    return f"{await of_template(api)}/versions/1/restore"


async def a_file(api: Api) -> bytes:
    return f"email\nrow{next(NUMBERS)}@example.net\n".encode()


def rows(table: str) -> str:
    return f"SELECT count(*) FROM {table}"


def audited(action: str) -> str:
    return f"SELECT count(*) FROM audit WHERE action = '{action}'"


CONDITIONS = {"field": "email", "operator": "contains", "value": "ann"}
POSTS = {
    "contacts": Post(at("contacts"), says(email="c{n}@example.net"), rows("contacts")),
    "lists": Post(at("lists"), says(name="L {n}"), rows("contact_lists")),
    "dynamic lists": Post(
        at("lists"), says(name="D {n}", type="dynamic", segment_conditions=CONDITIONS), rows("contact_lists")
    ),
    "tags": Post(at("tags"), says(name="tag {n}"), rows("tags")),
    "fields": Post(at("custom-fields"), says(name="f{n}", type="text"), rows("custom_field_definitions")),
    "segments": Post(at("segments"), says(name="S {n}", conditions=CONDITIONS), rows("contact_lists")),
    "templates": Post(
        at("templates"), says(name="T {n}", subject="x", html_content="<p>x</p>"), rows("template_versions")
    ),
    "restored versions": Post(a_version, nothing, rows("template_versions")),
    "tests of templates": Post(
        a_test, says(to=["me@example.net"], sender_email="a@shop.example", sender_name="{n}"), ACCEPTED
    ),
    "campaigns": Post(at("campaigns"), new_campaign, rows("campaigns")),
    "sends": Post(of_campaign("send"), nothing, rows("campaign_runs")),
    "schedules": Post(of_campaign("schedule"), a_time, audited("campaign.schedule")),
    "duplicates": Post(of_campaign("duplicate"), says(name="again {n}"), rows("campaigns")),
    "resends": Post(of_a_campaign_that_is_over, says(statuses=["failed"], name="once more {n}"), rows("campaigns")),
    "tests of campaigns": Post(of_campaign("test"), says(to=["me@example.net"]), ACCEPTED),
    "consents": Post(contact, says(method="form", text_version="{n}"), rows("consents")),
    "withdrawn consents": Post(contact, says(action="withdrawn", method="phone", text_version="{n}"), rows("consents")),
    "imports": Post(
        at("contacts/import"), says(contacts=[{"email": "i@example.net"}], mode="skip"), rows("contact_imports")
    ),
    "files": Post(at("contacts/imports"), a_file, rows("contact_imports")),
}


async def ask(api: Api, path: str, body: Any, key: str) -> Answer:
    headers = {"Idempotency-Key": key}
    if isinstance(body, bytes):
        return await api.ask("POST", path, data=body, headers=headers | {"Content-Type": "text/csv"})
    return await api.ask("POST", path, headers=headers, **({} if body is None else {"json": body}))


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
async def test_what_is_asked_again_or_at_once_with_a_key_is_done_once(api: Api, post: Post) -> None:
    path, body = await post.path(api), await post.body(api)
    made = await api.relay.pool.fetchval(post.made)

    first, again = [await ask(api, path, body, "one") for _ in range(2)]

    assert 200 <= first.status < 300, first.text
    assert "Idempotency-Replayed" not in first.headers
    assert (again.status, again.json, again.headers["Idempotency-Replayed"]) == (first.status, first.json, "true")
    assert await api.relay.pool.fetchval(post.made) == made + 1
    if body is not None and (other := await post.body(api)) != body:
        answer = await ask(api, path, other, "one")
        assert (answer.status, answer.problem.code) == (422, "idempotency_key_reused")

    path, body = await post.path(api), await post.body(api)
    made = await api.relay.pool.fetchval(post.made)
    answers = await asyncio.gather(*(ask(api, path, body, "two") for _ in range(3)))
    done = [answer for answer in answers if answer.status < 300]
    assert sum("Idempotency-Replayed" not in answer.headers for answer in done) == 1
    assert len({answer.body for answer in done}) == 1
    assert {answer.problem.code for answer in answers if answer not in done} <= {"idempotency_in_progress"}
    assert await api.relay.pool.fetchval(post.made) == made + 1
