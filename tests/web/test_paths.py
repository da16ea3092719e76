"""`/api/v1/paths` and `/api/v1/effects`: why mail waits, and the brakes that make it wait."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mailerd.config import Source
from mailerd.config.values import IpAddress
from tests.web.conftest import EMAIL, Api

PAUSE = {"kind": "pause", "site": "mx.example.net", "reason": "asked by postmaster", "for": "2h"}
EFFECTS = "/api/v1/effects"


async def add(api: Api, **changes: Any) -> Any:
    return await api.ask("POST", EFFECTS, json=PAUSE | changes)


async def test_an_address_is_explained_with_its_path(api: Api) -> None:
    answer = await api.ask("GET", "/api/v1/paths?address=ann@example.net&sender=me@example.com", key="reader")
    (destination,) = answer.json["destinations"]
    assert answer.status == 200
    assert (destination["domain"], destination["site"]) == ("example.net", "mx.example.net")
    assert destination["paths"][0]["state"] == "ok"
    assert destination["next"].startswith("an attempt at once")
    assert all(limit["place"] for limit in destination["paths"][0]["limits"])


async def test_paths_in_use_are_listed(api: Api) -> None:
    await api.send()
    await api.relay.settled()
    for query in ("", "?site=mx.example.net", "?limit=1"):
        (path,) = (await api.ask("GET", f"/api/v1/paths{query}")).json["paths"]
        assert (path["source"], path["site"], path["provider"]) == ("", "mx.example.net", "default")
    assert (await api.ask("GET", "/api/v1/paths?source=mta9")).json["paths"] == []


@pytest.mark.parametrize(
    "sources",
    [{"mta1": Source(address=IpAddress("127.0.0.31")), "mta2": Source(address=IpAddress("192.0.2.77"))}],
    indirect=True,
)
async def test_paths_of_sources_with_addresses_are_told(api: Api) -> None:
    await api.send()
    await api.relay.settled()
    for query in ("", "?source=mta1", "?site=mx.example.net"):
        answer = await api.ask("GET", f"/api/v1/paths{query}")
        assert answer.status == 200
        assert [(path["source"], path["address"]) for path in answer.json["paths"]] == [("mta1", "127.0.0.31")]
    (destination,) = (await api.ask("GET", "/api/v1/paths?address=example.net")).json["destinations"]
    told = {path["source"]: (path["address"], path["state"]) for path in destination["paths"]}
    assert told == {"mta1": ("127.0.0.31", "ok"), "mta2": ("192.0.2.77", "failing")}


@pytest.mark.parametrize(
    "query", ["address=@", "address=a@b@c", "address=example.net&stream=x", "nonsense=1", "limit=0"]
)
async def test_questions_that_make_no_sense_are_refused(api: Api, query: str) -> None:
    assert (await api.ask("GET", f"/api/v1/paths?{query}")).status == 422


async def test_a_paused_site_gets_nothing_until_the_pause_is_cancelled(api: Api) -> None:
    made = await add(api)
    assert (made.status, made.json["rule"], made.json["reason"]) == (201, "all", "asked by postmaster")
    api.relay.relay.upkeep.changed()  # as the notification would
    await held(api, effects=1)
    sent = await api.send()
    await api.relay.settled()
    (recipient,) = (await api.ask("GET", f"/api/v1/emails/{sent.json['id']}")).json["recipients"]
    assert "asked by postmaster" in recipient["reason"]
    assert recipient["due_at"][:19] == made.json["until"][:19]
    explained = (await api.ask("GET", "/api/v1/paths?address=example.net")).json["destinations"][0]
    assert "asked by postmaster" in explained["next"]
    assert [effect["id"] for effect in explained["paths"][0]["effects"]] == [made.json["id"]]
    assert api.mx.delivered == []

    ended = await api.ask("DELETE", f"{EFFECTS}/{made.json['id']}")
    assert (ended.status, ended.json["id"]) == (200, made.json["id"])
    assert (await api.ask("GET", EFFECTS)).json["data"] == []
    assert (await api.ask("DELETE", f"{EFFECTS}/{made.json['id']}")).status == 404


async def held(api: Api, *, effects: int) -> None:
    """Wait until the worker knows of so many effects."""
    async with asyncio.timeout(60):
        while len(api.relay.relay.effects.active) != effects:
            await asyncio.sleep(0)


async def test_the_same_effect_again_lasts_longer_and_is_one(api: Api) -> None:
    first, again = await add(api), await add(api, **{"for": "3h"})
    assert again.json["id"] == first.json["id"]
    assert again.json["until"] > first.json["until"]
    assert len((await api.ask("GET", EFFECTS, key="reader")).json["data"]) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "stop"},
        {"site": ""},
        {"reason": "  "},
        {"for": "0"},
        {"for": "soon"},
        {"kind": "slow"},
        {"kind": "slow", "rate": "0/h"},
        {"kind": "slow", "rate": "many"},
        {"kind": "connections"},
        {"kind": "connections", "connections": 0},
        {"kind": "avoid"},
        {"kind": "slow", "rate": "1/h", "tenant": "acme"},
        {"source": "mta9"},
        {"provider": "gogle"},
        {"colour": "red"},
    ],
)
async def test_effects_that_would_brake_nothing_are_refused(api: Api, other: dict[str, Any]) -> None:
    assert (await add(api, **other)).status == 422
    assert (await api.ask("GET", EFFECTS)).json["data"] == []


async def test_effects_of_each_kind_hold(api: Api) -> None:
    slow = await add(api, kind="slow", rate="30/min")
    few = await add(api, kind="connections", connections=3, provider="google", site="")
    assert (slow.json["value"], few.json["value"]) == (0.5, 3.0)
    path = (await api.ask("GET", "/api/v1/paths?address=example.net")).json["destinations"][0]["paths"][0]
    limit = next(limit for limit in path["limits"] if "asked by postmaster" in limit["name"])
    assert (limit["allows"], limit["place"]) == ("30 a minute", "all")


async def test_other_tenants_see_and_change_nothing_of_it(api: Api) -> None:
    made = await add(api)
    for method, path, body in (
        ("GET", "/api/v1/paths", None),
        ("GET", "/api/v1/paths?address=ann@example.net", None),
        ("GET", EFFECTS, None),
        ("POST", EFFECTS, PAUSE),
        ("DELETE", f"{EFFECTS}/{made.json['id']}", None),
    ):
        answer = await api.ask(method, path, key="stranger", json=body)
        assert (answer.status, answer.problem.code) == (403, "forbidden")


async def test_scopes_are_kept(api: Api) -> None:
    assert (await api.ask("GET", "/api/v1/paths", key="sender")).status == 403
    assert (await api.ask("POST", EFFECTS, key="reader", json=PAUSE)).status == 403
    assert (await api.ask("DELETE", f"{EFFECTS}/1", key="reader")).status == 403


@pytest.mark.parametrize("id_", ["0", "x", "99999999999999999999", "1.5"])
async def test_an_effect_that_there_is_not_cannot_be_cancelled(api: Api, id_: str) -> None:
    assert (await api.ask("DELETE", f"{EFFECTS}/{id_}")).status == 404


async def test_effects_are_written_down_with_their_actor(api: Api) -> None:
    made = await add(api)
    await api.ask("DELETE", f"{EFFECTS}/{made.json['id']}")
    rows = await api.relay.pool.fetch("SELECT actor, action FROM audit ORDER BY at")
    assert [tuple(row) for row in rows] == [("all", "effect"), ("all", "effect.cancel")]


async def test_waiting_mail_of_others_is_told_without_addresses(api: Api) -> None:
    tomorrow = (api.relay.clock.now + timedelta(days=1)).isoformat()
    assert (await api.send(EMAIL | {"scheduled_at": tomorrow}, key="stranger")).status == 202
    answer = await api.ask("GET", "/api/v1/paths?address=example.net")
    assert [each["queue"]["tenant"] for each in answer.json["destinations"][0]["queues"]] == ["other"]
    assert b"ann@example.net" not in answer.body
