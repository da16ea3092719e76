"""`/api/v1/segments`: lists made of conditions."""

from typing import Any

import pytest

from tests.web.conftest import Answer, Api

PATH = "/api/v1/segments"
VIP = {"field": "tags", "operator": "contains", "value": "vip"}
DOCUMENTED = {
    "name": "Active Users",
    "conditions": {
        "and": [
            {"field": "last_purchase_date", "operator": ">", "value": "2024-01-01"},
            {"field": "tags", "operator": "contains", "value": "active"},
        ]
    },
}
FILL = """
    WITH made AS (
        INSERT INTO contacts (tenant, email, address, first_name, custom_fields)
        SELECT $1, n || '@d.example', n || '@d.example', 'Ann', jsonb_build_object('last_purchase_date', $2::text)
          FROM generate_series(1, $3::int) AS n RETURNING id, tenant),
    named AS (INSERT INTO tags (tenant, name) VALUES ($1, 'active') RETURNING id)
    INSERT INTO contact_tags (contact_id, tag_id) SELECT made.id, named.id FROM made, named WHERE made.id % 2 = 0
"""


async def tenant(api: Api) -> str:
    return str(await api.relay.pool.fetchval("SELECT tenant FROM credentials WHERE name = 'all'"))


async def filled(api: Api, count: int = 30) -> None:
    await api.relay.pool.execute(FILL, await tenant(api), "2025-05-05", count)


async def create(api: Api, body: dict[str, Any] = DOCUMENTED, **rest: Any) -> Answer:
    return await api.ask("POST", PATH, json=body, **rest)


async def test_what_no_contact_has_is_warned_of(api: Api) -> None:
    await filled(api)
    slip = {"or": [VIP, {"field": "custom_fields.last_purchased_date", "operator": ">", "value": "2024-01-01"}]}
    fields = {"unknown_tag": "/conditions/or/0/value", "unknown_field": "/conditions/or/1/field"}

    made = await create(api, {"name": "Slip", "conditions": slip})
    path = f"{PATH}/{made.json['segment_id']}"
    for answer in (
        made,
        await api.ask("PUT", path, json={"name": "Slips"}),
        await api.ask("POST", f"{PATH}/preview", json={"conditions": slip}),
    ):
        assert {each["code"]: each["pointer"] for each in answer.json["warnings"]} == fields
        assert "did you mean last_purchase_date?" in str(answer.json["warnings"])
    assert len((await api.ask("GET", f"{path}/estimate")).json["warnings"]) == 2

    await api.ask("POST", "/api/v1/custom-fields", json={"name": "last_purchased_date", "type": "date"})
    await api.ask("POST", "/api/v1/tags", json={"name": "vip"})
    assert "warnings" not in (await api.ask("GET", f"{path}/estimate")).json


async def test_a_segment_is_made_as_the_documents_say_and_has_who_fits(api: Api) -> None:
    await filled(api)

    made = await create(api)
    assert (made.status, list(made.json)) == (201, ["segment_id"])
    path = f"{PATH}/{made.json['segment_id']}"
    assert made.headers["Location"] == path
    shown = (await api.ask("GET", path)).json
    assert (shown["name"], shown["conditions"]) == (DOCUMENTED["name"], DOCUMENTED["conditions"])
    assert (shown["contact_count"], shown["counted_at"]) == (None, None)

    assert (await api.ask("GET", f"{path}/estimate")).json | {"sampled": 0} == {
        "estimate": 15,
        "low": 15,
        "high": 15,
        "method": "exact",
        "sampled": 0,
    }
    counted = (await api.ask("POST", f"{path}/count")).json
    assert (counted["done"], counted["counted"], counted["next_cursor"]) == (True, 15, None)
    assert (await api.ask("GET", path)).json["contact_count"] == 15

    found: list[str] = []
    cursor = ""
    while True:
        page = (await api.ask("GET", f"{path}/contacts?limit=4{cursor}")).json
        found += [each["email"] for each in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(found) == len(set(found)) == 15


async def test_who_fits_changes_with_the_contacts_and_with_the_conditions(api: Api) -> None:
    await filled(api)
    path = f"{PATH}/{(await create(api)).json['segment_id']}"
    await api.ask("POST", f"{path}/count")

    await api.relay.pool.execute("DELETE FROM contact_tags")
    assert (await api.ask("GET", f"{path}/estimate")).json["estimate"] == 0
    assert (await api.ask("GET", f"{path}/contacts")).json["data"] == []
    changed = await api.ask("PATCH", path, json={"conditions": {"not": VIP}})

    assert (changed.status, changed.json["name"]) == (200, DOCUMENTED["name"])
    assert changed.json["contact_count"] is None, "what was counted was of other conditions"
    assert (await api.ask("PUT", path, json={"name": "All"})).json["conditions"] == {"not": VIP}
    assert (await api.ask("GET", f"{path}/estimate")).json["estimate"] == 30


async def test_a_preview_tells_a_number_and_some_names_and_keeps_nothing(api: Api) -> None:
    await filled(api)

    answer = await api.ask("POST", f"{PATH}/preview", json={"conditions": DOCUMENTED["conditions"]}, key="reader")

    assert answer.json["estimate"] == 15
    assert len(answer.json["contacts"]) == 10
    assert set(answer.json["contacts"][0]) == {"contact_id", "email", "first_name", "last_name"}
    assert (await api.ask("GET", PATH)).json == {"data": [], "has_more": False, "next_cursor": None}


async def test_segments_are_listed_newest_first_page_by_page(api: Api) -> None:
    for name in "abc":
        await create(api, {"name": name, "conditions": VIP})

    first = (await api.ask("GET", f"{PATH}?limit=2")).json
    rest = (await api.ask("GET", f"{PATH}?limit=2&cursor={first['next_cursor']}")).json

    assert [each["name"] for each in first["data"] + rest["data"]] == ["c", "b", "a"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await api.ask("GET", f"{PATH}?cursor={first['next_cursor']}", key="stranger")).status == 400


async def test_the_same_key_makes_one_segment(api: Api) -> None:
    first = await create(api, headers={"Idempotency-Key": "one"})
    again = await create(api, headers={"Idempotency-Key": "one"})

    assert first.json == again.json
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len((await api.ask("GET", PATH)).json["data"]) == 1


@pytest.mark.parametrize(
    ("conditions", "pointer"),
    [
        ({"and": [VIP, {"field": "email", "operator": ">", "value": 5}]}, "/conditions/and/1/operator"),
        ({"or": [{"field": "lists", "operator": "in", "value": ["lst_999"]}]}, "/conditions/or/0/value"),
        ({"engagement": "opened", "campaign": "cmp_999"}, "/conditions/campaign"),
        ({"field": "segment", "operator": "=", "value": "seg_999"}, "/conditions/value"),
        ({}, "/conditions"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_says_where(api: Api, conditions: Any, pointer: str) -> None:
    refused = await create(api, {"name": "x", "conditions": conditions})
    preview = await api.ask("POST", f"{PATH}/preview", json={"conditions": conditions})

    assert (refused.status, refused.problem.errors[0].pointer) == (422, pointer)
    assert (preview.status, preview.problem.errors[0].pointer) == (422, pointer)


async def test_trees_of_any_depth_are_answered(api: Api) -> None:
    for depth, statuses in ((19, (201,)), (100, (422,)), (20_000, (400, 422))):
        text = (
            '{"name":"x","conditions":'
            + '{"not":' * depth
            + '{"field":"email","operator":"exists"}'
            + "}" * depth
            + "}"
        )
        answer = await api.ask("POST", PATH, data=text, headers={"Content-Type": "application/json"})
        assert answer.status in statuses, depth


async def test_another_tenant_sees_changes_and_counts_nothing(api: Api) -> None:
    await filled(api)
    id_ = (await create(api)).json["segment_id"]
    path = f"{PATH}/{id_}"

    for method, way in (("GET", ""), ("GET", "/estimate"), ("GET", "/contacts"), ("POST", "/count"), ("DELETE", "")):
        assert (await api.ask(method, path + way, key="stranger")).status == 404
    assert (await api.ask("PATCH", path, json={"name": "mine"}, key="stranger")).status == 404
    assert (await api.ask("GET", PATH, key="stranger")).json["data"] == []
    named = {"name": "x", "conditions": {"field": "segment", "operator": "=", "value": id_}}
    assert (await create(api, named, key="stranger")).problem.errors[0].code == "unknown_segment"
    theirs = await api.ask("POST", f"{PATH}/preview", json={"conditions": {"not": VIP}}, key="stranger")
    assert (theirs.json["estimate"], theirs.json["contacts"]) == (0, [])


async def test_what_a_campaign_or_a_segment_needs_stays(api: Api) -> None:
    id_ = (await create(api)).json["segment_id"]
    await create(api, {"name": "x", "conditions": {"field": "segment", "operator": "in", "value": [id_]}})

    refused = await api.ask("DELETE", f"{PATH}/{id_}")

    assert (refused.status, refused.problem.code) == (409, "in_use")
    assert "segment seg_" in refused.problem.detail
    for each in (await api.ask("GET", PATH)).json["data"]:
        assert (await api.ask("DELETE", f"{PATH}/{each['segment_id']}")).status == 204
    assert (await api.ask("DELETE", f"{PATH}/{id_}")).status == 404


async def test_conditions_that_hold_no_longer_are_told_and_can_be_mended(api: Api) -> None:
    tree = {"field": "level", "operator": ">", "value": 3}
    path = f"{PATH}/{(await create(api, {'name': 'x', 'conditions': tree})).json['segment_id']}"
    await api.relay.pool.execute(
        "INSERT INTO custom_field_definitions (tenant, name, type) VALUES ($1, 'level', 'text')", await tenant(api)
    )

    for method, way in (("GET", "/estimate"), ("GET", "/contacts"), ("POST", "/count")):
        answer = await api.ask(method, path + way)
        assert (answer.status, answer.problem.code) == (409, "broken_segment")
    assert (await api.ask("GET", path)).json["conditions"] == tree
    assert (await api.ask("PUT", path, json={"conditions": VIP})).status == 200
    assert (await api.ask("GET", f"{path}/estimate")).status == 200


async def test_reading_needs_read_and_changing_needs_manage(api: Api) -> None:
    path = f"{PATH}/{(await create(api)).json['segment_id']}"

    assert (await api.ask("GET", f"{path}/contacts", key="reader")).status == 200
    assert (await create(api, key="reader")).status == 403
    assert (await api.ask("DELETE", path, key="reader")).status == 403
    assert (await api.ask("GET", f"{path}/contacts", key="sender")).status == 403
