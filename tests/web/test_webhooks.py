"""`/api/v1/webhooks`: every answer is held to the OpenAPI document by the `api` fixture."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from mailerd.config import Webhooks
from mailerd.delivery.https import Poster
from mailerd.feedback.webhooks.teller import Teller
from tests.support import authority
from tests.support.dns_server import DnsServer
from tests.support.webhook_receiver import Receiver
from tests.web.conftest import AUTHORITY, Api

HOOKS = "/api/v1/webhooks"
NEW = {"url": "https://hooks.example/mail", "events": ["email.bounced", "email.complained"]}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver(authority.issue(AUTHORITY, "hooks.example").context()) as server:
        yield server


async def made(api: Api, **changes: Any) -> dict[str, Any]:
    answer = await api.ask("POST", HOOKS, json=NEW | changes)
    assert answer.status == 201, answer.body
    assert isinstance(answer.json, dict)
    return answer.json


async def test_a_webhook_is_made_with_a_secret_that_is_shown_once(api: Api) -> None:
    answer = await api.ask("POST", HOOKS, json=NEW)
    webhook = answer.json
    path = f"{HOOKS}/{webhook['webhook_id']}"

    assert answer.status == 201
    assert answer.headers["Location"] == path
    assert webhook["webhook_id"].startswith("whk_")
    assert webhook["id"] == webhook["webhook_id"]
    assert not {"enabled", "told_up_to"} & webhook.keys()
    assert Verifier(webhook["secret"])
    assert webhook["status"] == "enabled"
    assert "secret" not in (await api.ask("GET", path)).json
    assert [one["webhook_id"] for one in (await api.ask("GET", HOOKS)).json["data"]] == [webhook["webhook_id"]]


async def test_what_is_given_is_changed_and_the_rest_stays(api: Api) -> None:
    webhook = await made(api, description="ours", batch={"events": 50})
    path = f"{HOOKS}/{webhook['webhook_id']}"
    changed = (await api.ask("PATCH", path, json={"events": ["email.*"], "streams": ["marketing"]})).json
    assert (changed["events"], changed["streams"]) == (["email.*"], ["marketing"])
    assert changed["description"] == "ours"
    assert changed["batch"] == {"events": 50, "wait_ms": 1000}

    off = (await api.ask("PATCH", path, json={"enabled": False, "batch": None})).json
    assert (off["status"], off["disabled_reason"], off["batch"]) == ("disabled", "by all", None)
    on = (await api.ask("PATCH", path, json={"enabled": True})).json
    assert (on["status"], on["disabled_reason"]) == ("enabled", "")


@pytest.mark.parametrize(
    "url",
    [
        "http://app.example.com/",
        "ftp://app.example.com/",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://me:secret@app.example.com/",
        "https://app.example.com:25/",
        "https://inside.example.com/",
        "https://nowhere.example.com/",
        "https://app.example.com/ hooks",
        "app.example.com",
        "https://",
    ],
)
async def test_urls_that_lead_inside_or_nowhere_are_refused(api: Api, dns: DnsServer, url: str) -> None:
    dns.add("app.example.com", "A", "93.184.216.34")
    dns.add("inside.example.com", "A", "192.168.1.1", "127.0.0.1")
    answer = await api.ask("POST", HOOKS, json=NEW | {"url": url})
    assert answer.status == 422
    assert (answer.problem.code, answer.problem.errors[0].pointer) == ("invalid_url", "/url")


@pytest.mark.parametrize(
    "body",
    [{}, NEW | {"events": []}, NEW | {"events": ["email.eaten"]}, NEW | {"event": 1}, NEW | {"batch": {"events": 0}}],
)
async def test_bad_requests_are_refused(api: Api, body: dict[str, Any]) -> None:
    assert (await api.ask("POST", HOOKS, json=body)).status == 422


async def test_an_unknown_event_is_pointed_at(api: Api) -> None:
    problem = (await api.ask("POST", HOOKS, json=NEW | {"events": ["email.eaten"]})).problem
    assert (problem.code, problem.errors[0].pointer) == ("unknown_event", "/events")
    assert "only email.queued" in problem.detail
    path = f"{HOOKS}/{(await made(api))['id']}/replay"
    problem = (await api.ask("POST", path, json={"since": "2026-01-01T00:00:00Z", "types": ["email.eaten"]})).problem
    assert (problem.code, problem.errors[0].pointer) == ("unknown_event", "/types")


async def test_lists_are_alike(api: Api) -> None:
    webhook = await made(api)
    for path in (HOOKS, f"{HOOKS}/{webhook['id']}/replays", f"{HOOKS}/{webhook['id']}/deliveries"):
        answer = (await api.ask("GET", path)).json
        assert (answer["has_more"], answer["next_cursor"]) == (False, None)


async def test_webhooks_of_others_are_not_there(api: Api) -> None:
    webhook = await made(api)
    path = f"{HOOKS}/{webhook['webhook_id']}"
    for method, rest, body in (
        ("GET", "", None),
        ("PATCH", "", {"enabled": False}),
        ("DELETE", "", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/test", None),
        ("GET", "/deliveries", None),
        ("POST", "/deliveries/dlv_0000000000001/retry", None),
        ("POST", "/replay", {"since": "2026-01-01T00:00:00Z"}),
        ("GET", "/replays", None),
        ("GET", "/replays/rpl_0000000000001", None),
    ):
        answer = await api.ask(method, path + rest, key="stranger", json=body)
        assert answer.status == 404, (method, rest)
    assert (await api.ask("GET", HOOKS, key="stranger")).json["data"] == []
    assert (await api.ask("GET", path + "x")).status == 404
    assert (await api.ask("GET", path, key="reader")).status == 403


async def test_there_are_fifty_at_most(api: Api) -> None:
    for _ in range(50):
        await made(api)
    answer = await api.ask("POST", HOOKS, json=NEW)
    assert (answer.status, answer.problem.code) == (409, "too_many_webhooks")
    assert (await api.ask("POST", HOOKS, json=NEW, key="stranger")).status == 201


async def test_the_test_button_says_what_the_endpoint_answered(api: Api, receiver: Receiver) -> None:
    webhook = await made(api, url=receiver.url("/t"))
    receiver.secrets["/t"] = webhook["secret"]
    path = f"{HOOKS}/{webhook['webhook_id']}/test"
    answer = (await api.ask("POST", path)).json
    assert (answer["delivered"], answer["status"], answer["answer"]) == (True, 200, "")  # it is a host inside
    assert receiver.taken[0].json["type"] == "webhook.test"

    receiver.answer = 500
    answer = (await api.ask("POST", path)).json
    assert (answer["delivered"], answer["status"], answer["error"]) == (False, 500, "status 500")
    await receiver.go_down()
    answer = (await api.ask("POST", path)).json
    assert (answer["delivered"], answer["status"]) == (False, 0)
    assert answer["error"]


async def test_a_deleted_webhook_is_gone(api: Api) -> None:
    webhook = await made(api)
    path = f"{HOOKS}/{webhook['webhook_id']}"
    assert (await api.ask("DELETE", path)).status == 200
    assert (await api.ask("GET", path)).status == 404


@pytest.mark.parametrize("changes", [{"keep_alive": 60.0}], indirect=True)
async def test_deliveries_are_listed_page_by_page_and_told_again(
    api: Api, receiver: Receiver, poster: Poster, database: str
) -> None:
    webhook = await made(api, url=receiver.url("/t"), events=["*"])
    receiver.secrets["/t"] = webhook["secret"]
    path = f"{HOOKS}/{webhook['webhook_id']}"
    settings = Webhooks()
    pool = api.relay.pool
    teller = Teller(database, pool, settings, poster, clock=api.relay.clock)
    running = asyncio.create_task(teller.run())
    for _ in range(3):
        await api.send()
    await api.relay.settled()
    await receiver.until(lambda: len(receiver.taken) == 6)
    assert {event["type"] for event in receiver.events} == {"email.queued", "email.delivered"}
    while len((await api.ask("GET", path + "/deliveries")).json["data"]) < 6:
        await asyncio.sleep(0.05)

    first = (await api.ask("GET", path + "/deliveries?limit=4&outcome=delivered")).json
    assert (len(first["data"]), first["has_more"]) == (4, True)
    rest = (await api.ask("GET", path + f"/deliveries?limit=4&outcome=delivered&cursor={first['next_cursor']}")).json
    assert (len(rest["data"]), rest["has_more"]) == (2, False)
    assert (await api.ask("GET", path + f"/deliveries?cursor={first['next_cursor']}")).problem.code == "invalid_cursor"

    again = await api.ask("POST", f"{path}/deliveries/{first['data'][0]['id']}/retry")
    assert again.status == 202
    teller.heard(str(await pool.fetchval("SELECT id FROM webhooks")))
    await receiver.until(lambda: len(receiver.taken) == 7)
    assert receiver.taken[-1].key == first["data"][0]["event_id"]

    api.relay.clock.advance(minutes=1)
    replay = (await api.ask("POST", path + "/replay", json={"since": "2026-01-01T00:00:00Z"})).json
    teller.heard(str(await pool.fetchval("SELECT id FROM webhooks")))
    await receiver.until(lambda: len(receiver.taken) == 13)
    while (found := (await api.ask("GET", f"{path}/replays/{replay['id']}")).json)["status"] != "finished":
        await asyncio.sleep(0.05)
    assert found["told"] == 6
    assert len((await api.ask("GET", path + "/replays")).json["data"]) == 1
    await teller.stop()
    await running
