"""`/api/v1/contacts`, `/lists`, `/tags`, `/custom-fields`: as clients see them."""

from typing import Any

from tests.web.conftest import EMAIL, Answer, Api

PATH = "/api/v1/contacts"
LISTS = "/api/v1/lists"
TAGS = "/api/v1/tags"
FIELDS = "/api/v1/custom-fields"
CONSENT = {"method": "form", "text_version": "2026-03", "ip": "203.0.113.7"}


async def post(api: Api, path: str, body: object, **rest: Any) -> Answer:
    return await api.ask("POST", path, json=body, **rest)


async def add(api: Api, email: str = "ann@example.net", **more: Any) -> str:
    answer = await post(api, PATH, {"email": email, **more})
    assert answer.status == 201, answer.json
    return str(answer.json["contact_id"])


async def add_list(api: Api, **more: Any) -> str:
    return str((await post(api, LISTS, {"name": "News", **more})).json["list_id"])


async def emails(api: Api, path: str) -> list[str]:
    """All pages."""
    found: list[str] = []
    cursor = ""
    while True:
        answer = await api.ask("GET", f"{path}{'&' if '?' in path else '?'}limit=2{cursor}")
        assert answer.status == 200, answer.json
        found += [each["email"] for each in answer.json["data"]]
        if not answer.json["has_more"]:
            return found
        cursor = f"&cursor={answer.json['next_cursor']}"


async def test_a_contact_is_made_shown_changed_listed_and_deleted(api: Api) -> None:
    body = {
        "email": "Ann@Example.NET",
        "first_name": "Ann",
        "tags": ["vip", " new "],
        "custom_fields": {"plan": "pro", "seats": 5, "langs": ["de", "en"]},
        "time_zone": "Europe/Berlin",
    }
    made = await post(api, PATH, body, headers={"Idempotency-Key": "one"})
    assert (made.status, list(made.json)) == (201, ["contact_id"])
    path = made.headers["Location"]
    assert path == f"{PATH}/{made.json['contact_id']}"
    again = await post(api, PATH, body, headers={"Idempotency-Key": "one"})
    assert (again.status, again.json, again.headers["Idempotency-Replayed"]) == (201, made.json, "true")
    there = await post(api, PATH, {"email": "ann@example.net"})
    assert (there.status, there.json["code"], there.headers["Location"]) == (409, "duplicate_contact", path)

    shown = (await api.ask("GET", path)).json
    assert shown["email"] == "Ann@example.net"
    assert (shown["tags"], shown["status"], shown["tracking"]) == (["new", "vip"], "active", True)
    change = {"first_name": "Anne", "tags": ["vip"], "custom_fields": {"seats": None, "plan": "basic"}}
    changed = await api.ask("PUT", path, json=change)
    assert changed.status == 200
    assert changed.json["custom_fields"] == {"plan": "basic", "langs": ["de", "en"]}
    assert (changed.json["first_name"], changed.json["tags"]) == ("Anne", ["vip"])
    assert changed.json["time_zone"] == "Europe/Berlin"
    assert (await api.ask("PATCH", path, json={"tracking": False})).json["tracking"] is False

    await add(api, "bob@example.net")
    await add(api, "cid@example.net", tags=["vip"])
    assert await emails(api, PATH) == ["cid@example.net", "bob@example.net", "Ann@example.net"]
    assert await emails(api, f"{PATH}?tag=vip") == ["cid@example.net", "Ann@example.net"]
    assert await emails(api, f"{PATH}?tag=nobody") == await emails(api, f"{PATH}?status=bounced") == []
    assert await emails(api, f"{PATH}?email=ANN@example.net") == ["Ann@example.net"]

    for asked in ({"key": "stranger"}, {}):
        status = 404 if asked else 204
        assert (await api.ask("GET", path, **asked)).status == (404 if asked else 200)
        assert (await api.ask("DELETE", path, **asked)).status == status
    assert (await api.ask("GET", path)).status == 404
    assert (await api.ask("GET", PATH, key="sender")).status == 403


async def test_what_is_wrong_is_told_all_at_once_and_where(api: Api) -> None:
    for body, pointers in (
        ({}, ["/email"]),
        ({"email": "nobody", "time_zone": "Mars", "tags": ["a", "b,c"]}, ["/email", "/time_zone", "/tags/1"]),
        ({"email": "a@b.example", "first_name": "a\u2028b"}, ["/first_name"]),
        ({"email": "a@b.example", "first_name": "a\nBcc: x"}, ["/first_name"]),
        ({"email": "a@b.example", "custom_fields": {"A": 1, "b": {}}}, ["/custom_fields/A", "/custom_fields/b"]),
        ({"email": "a@b.example", "custom_fields": {"a": "\u0000"}}, ["/custom_fields/a"]),
        ({"email": "a@b.example", "custom_fields": {f"f{n}": "x" * 4000 for n in range(17)}}, ["/custom_fields"]),
        ({"email": "a@b.example", "tags": ["t"] * 101}, ["/tags"]),
        ({"email": "a@b.example", "consent": {"method": "form", "ip": "1.2.3"}}, ["/consent/ip"]),
        ({"email": "a@b.example", "list_ids": ["seg_x"]}, ["/list_ids/0"]),
        ({"email": "a@b.example", "status": "active"}, ["/status"]),
    ):
        answer = await post(api, PATH, body)
        assert answer.status == 422, body
        assert [error.pointer for error in answer.problem.errors] == pointers
    for query in ("status=odd", "limit=501", "email=x", "list_id=lst_77", "tag=a,b", "cursor=x"):
        assert (await api.ask("GET", f"{PATH}?{query}")).status in (400, 422)
    assert (await post(api, PATH, {"email": "a@b.example", "list_ids": ["lst_9"]})).status == 404
    assert await emails(api, PATH) == []


async def test_a_contact_leaves_and_comes_back_by_consent(api: Api) -> None:
    news, deals = await add_list(api), await add_list(api, name="Deals")
    ann = await add(api, list_ids=[news, deals], consent=CONSENT)
    path = f"{PATH}/{ann}"

    left = await post(api, f"{path}/unsubscribe", {"reason": "bored", "list_id": deals})
    assert (left.status, left.json["status"], left.json["list_id"]) == (200, "active", deals)
    left = await post(api, f"{path}/unsubscribe", {"reason": "too many"})
    assert (left.json["status"], left.json["changed"]) == ("unsubscribed", True)
    assert (await post(api, f"{path}/unsubscribe", {})).json["changed"] is False
    assert (await api.ask("GET", path)).json["unsubscribe_reason"] == "too many"
    suppressed = (await api.ask("GET", "/api/v1/suppressions/ann@example.net")).json["data"]
    assert [(each["reason"], each["stream"]) for each in suppressed] == [("unsubscribe", "marketing")]
    added = await post(api, f"{LISTS}/{news}/contacts", {"contact_ids": [ann]})
    assert (added.json["added"], added.json["unsubscribed"]) == (0, [ann])

    stale = {"consent": CONSENT | {"at": "2020-01-01T00:00:00Z"}}
    assert (await post(api, f"{path}/subscribe", stale)).problem.code == "stale_consent"
    assert (await post(api, f"{path}/subscribe", {"list_ids": [news]})).status == 422
    api.relay.clock.advance(minutes=1)
    back = await post(api, f"{path}/subscribe", {"consent": CONSENT, "list_ids": [news]})
    assert (back.status, back.json["status"], back.json["unsubscribed_at"]) == (200, "active", None)
    held = (await api.ask("GET", f"{path}/subscriptions")).json
    assert {each["list_id"]: each["status"] for each in held["data"]} == {news: "subscribed", deals: "unsubscribed"}
    assert [each["became"] for each in held["history"]] == ["subscribed", "unsubscribed", "unsubscribed"]
    both = {"contact_ids": [ann], "resubscribe": True}
    assert (await post(api, f"{LISTS}/{deals}/contacts", both)).status == 422
    again = await post(api, f"{LISTS}/{deals}/contacts", both | {"consent": CONSENT})
    assert (again.json["resubscribed"], again.json["contact_count"]) == (1, 1)
    for unknown in ("unsubscribe", "subscribe"):
        body = {"consent": CONSENT} if unknown == "subscribe" else {}
        assert (await post(api, f"{path}/{unknown}", body, key="stranger")).status == 404
        assert (await post(api, f"{path}/{unknown}", body | {"list_id": "lst_99"})).status in (404, 422)


async def test_consents_are_recorded_and_a_withdrawal_unsubscribes(api: Api) -> None:
    path = f"{PATH}/{await add(api)}"
    granted = await post(api, f"{path}/consents", CONSENT | {"at": "2026-01-01T00:00:00Z"})
    assert (granted.status, granted.json["actor"], granted.json["ip"]) == (201, "api:all", "203.0.113.7")
    withdrawn = await post(api, f"{path}/consents", {"action": "withdrawn", "method": "phone"})
    assert (withdrawn.status, withdrawn.json["method"]) == (201, "phone")

    assert (await api.ask("GET", path)).json["status"] == "unsubscribed"
    records = (await api.ask("GET", f"{path}/consents")).json["data"]
    assert [each["action"] for each in records] == ["withdrawn", "granted"]
    assert (await post(api, f"{path}/consents", CONSENT, key="stranger")).status == 404
    assert (await api.ask("GET", f"{path}/consents", key="stranger")).status == 404
    assert (await post(api, f"{path}/consents", CONSENT | {"list_id": "lst_99"})).status == 404
    assert (await post(api, f"{path}/consents", CONSENT | {"at": "2099-01-01T00:00:00Z"})).status == 422


async def test_a_person_gets_all_that_is_known_and_is_forgotten(api: Api) -> None:
    await api.send(EMAIL | {"to": ["Ann@example.net"]})
    await api.delivered()
    news = await add_list(api)
    ann = await add(api, "Ann@example.net", tags=["vip"], list_ids=[news], consent=CONSENT)
    path = f"{PATH}/{ann}"

    exported = await api.ask("GET", f"{path}/export")

    assert exported.json["contact"]["tags"] == ["vip"]
    assert [each["list_id"] for each in exported.json["lists"]] == [news]
    assert [each["text_version"] for each in exported.json["consents"]] == ["2026-03"]
    assert {each["type"] for each in exported.json["events"]} == {"email.queued", "email.delivered"}
    assert (await api.ask("GET", f"{path}/export", key="stranger")).status == 404
    assert (await api.ask("POST", f"{path}/erase", key="stranger")).status == 404
    erased = await api.ask("POST", f"{path}/erase")
    assert (erased.status, erased.json["events"]) == (200, 2)
    assert (await api.ask("GET", path)).status == 404
    assert (await post(api, PATH, {"email": "ANN@example.net"})).problem.code == "erased"
    events = (await api.ask("GET", "/api/v1/events")).json["data"]
    assert {each["data"]["to"] for each in events} == {f"{ann}@erased.invalid"}
    api.relay.clock.advance(minutes=1)
    assert (await post(api, PATH, {"email": "ann@example.net", "consent": CONSENT})).status == 201


async def test_lists_have_contacts_by_page_and_by_cursor(api: Api) -> None:
    news = await add_list(api, description="Monthly")
    path = f"{LISTS}/{news}"
    ids = [await add(api, f"c{n}@example.net") for n in range(5)]
    added = await post(api, f"{path}/contacts", {"contact_ids": [*ids, ids[0], "con_999"]})
    assert (added.json["added"], added.json["contact_count"], added.json["not_found"]) == (5, 5, ["con_999"])
    assert (await post(api, f"{path}/contacts", {"contact_ids": ids})).json["already"] == 5

    page = (await api.ask("GET", f"{path}/contacts?page=2&page_size=2")).json
    assert [each["email"] for each in page["data"]] == ["c2@example.net", "c3@example.net"]
    assert (page["page"], page["page_size"], page["contact_count"], page["has_more"]) == (2, 2, 5, True)
    assert page["data"][0]["list_status"] == "subscribed"
    assert await emails(api, f"{path}/contacts") == [f"c{n}@example.net" for n in range(5)]
    assert (await api.ask("GET", f"{path}/contacts?page=21&page_size=500")).problem.errors[0].code == "too_deep"
    assert (await api.ask("GET", f"{path}/contacts?page=1&cursor={page['next_cursor']}")).status == 422

    removed = await api.ask("DELETE", f"{path}/contacts", json={"contact_ids": ids[:2]})
    assert (removed.status, removed.json["removed"], removed.json["contact_count"]) == (200, 2, 3)
    removed = await post(api, f"{path}/contacts/remove", {"contact_ids": ids[:3]})
    assert (removed.json["removed"], removed.json["contact_count"]) == (1, 2)
    bad = await post(api, f"{path}/contacts", {"contact_ids": [ids[0], "x"]})
    assert bad.problem.errors[0].pointer == "/contact_ids/1"

    assert (await api.ask("PUT", path, json={"name": "Weekly"})).json["description"] == "Monthly"
    assert (await api.ask("PATCH", path, json={"segment_conditions": {"and": []}})).status == 422
    assert [each["name"] for each in (await api.ask("GET", LISTS)).json["data"]] == ["Weekly"]
    for method, body in (("GET", None), ("PUT", {"name": "x"}), ("DELETE", None)):
        assert (await api.ask(method, path, json=body, key="stranger")).status == 404
    assert (await api.ask("GET", f"{path}/contacts", key="stranger")).status == 404
    assert (await api.ask("DELETE", path)).status == 204
    assert (await api.ask("GET", path)).status == 404


async def test_a_dynamic_list_is_a_segment(api: Api) -> None:
    conditions = {"and": [{"field": "first_name", "operator": "=", "value": "Ann"}]}
    made = await post(api, LISTS, {"name": "Anns", "type": "dynamic", "segment_conditions": conditions})
    assert made.status == 201, made.json
    path = made.headers["Location"]
    ann = await add(api, first_name="Ann")
    await add(api, "bob@example.net", first_name="Bob")
    await add(api, "ann2@example.net", first_name="Ann")
    await add(api, "ann3@example.net", first_name="Ann")

    assert await emails(api, f"{path}/contacts") == ["ann@example.net", "ann2@example.net", "ann3@example.net"]
    second = (await api.ask("GET", f"{path}/contacts?page=2&page_size=2")).json
    assert [each["email"] for each in second["data"]] == ["ann3@example.net"]
    as_segment = path.replace("lst_", "seg_")
    assert (await api.ask("GET", as_segment)).json["type"] == "dynamic"
    assert (await api.ask("GET", as_segment.replace("lists", "segments"))).json["name"] == "Anns"
    assert (await post(api, f"{path}/contacts", {"contact_ids": [ann]})).problem.code == "dynamic_list"
    wrong = {"and": [{"field": "status", "operator": "=", "value": "odd"}]}
    refused = await api.ask("PUT", path, json={"segment_conditions": wrong})
    assert refused.problem.errors[0].pointer.startswith("/segment_conditions/and/0")
    assert (await post(api, LISTS, {"name": "x", "type": "dynamic", "segment_conditions": wrong})).status == 422
    assert (await post(api, LISTS, {"name": "x", "type": "dynamic"})).status == 422
    assert (await api.ask("DELETE", path)).status == 204


async def test_tags_have_colours_and_one_name_each(api: Api) -> None:
    await add(api, tags=["vip"])
    (tag,) = (await api.ask("GET", TAGS)).json["data"]
    assert (tag["name"], tag["color"]) == ("vip", "#888888")
    path = f"{TAGS}/{tag['tag_id']}"
    made = await post(api, TAGS, {"name": "new", "color": "#FFAA00"})
    assert made.status == 201

    assert (await post(api, TAGS, {"name": "vip"})).problem.code == "duplicate_tag"
    assert (await api.ask("PUT", path, json={"name": "new"})).status == 409
    assert (await api.ask("PUT", path, json={"name": "gold", "color": "#fffff"})).status == 422
    assert (await api.ask("PATCH", path, json={"name": "gold"})).json["name"] == "gold"
    assert await emails(api, f"{PATH}?tag=gold") == ["ann@example.net"]
    first = (await api.ask("GET", f"{TAGS}?limit=1")).json
    assert (await api.ask("GET", f"{TAGS}?cursor={first['next_cursor']}")).json["data"][0]["name"] == "gold"
    for method in ("GET", "DELETE"):
        assert (await api.ask(method, path, key="stranger")).status == 404
    assert (await api.ask("DELETE", path)).status == 204
    assert (await api.ask("GET", PATH)).json["data"][0]["tags"] == []


async def test_definitions_hold_for_what_is_written(api: Api) -> None:
    name = "seats"
    ann = f"{PATH}/{await add(api, custom_fields={name: 5, 'since': 'long ago'})}"
    made = await post(api, FIELDS, {"name": name, "type": "number", "label": "Seats"})
    assert (made.status, made.headers["Location"]) == (201, f"{FIELDS}/{name}")

    assert (await post(api, FIELDS, {"name": name, "type": "text"})).problem.code == "duplicate_field"
    assert (await post(api, FIELDS, {"name": "since", "type": "date"})).problem.code == "values_do_not_fit"
    assert (await post(api, FIELDS, {"name": "Since", "type": "date"})).status == 422
    wrong = await api.ask("PUT", ann, json={"custom_fields": {name: "many"}})
    assert [error.pointer for error in wrong.problem.errors] == [f"/custom_fields/{name}"]
    assert (await api.ask("PUT", f"{FIELDS}/{name}", json={"type": "list"})).status == 409
    assert (await api.ask("PATCH", f"{FIELDS}/{name}", json={"label": "Places"})).json["type"] == "number"
    assert [each["label"] for each in (await api.ask("GET", FIELDS)).json["data"]] == ["Places"]
    for asked in ({"key": "stranger"}, {}):
        assert (await api.ask("DELETE", f"{FIELDS}/{name}", **asked)).status == (404 if asked else 204)
    assert (await api.ask("GET", f"{FIELDS}/{name}")).status == 404
    assert (await api.ask("GET", f"{FIELDS}/%00")).status == 404
    assert (await api.ask("PUT", ann, json={"custom_fields": {name: "many"}})).status == 200


async def test_a_consent_that_is_withdrawn_is_on_record_also_when_that_changes_nothing(api: Api) -> None:
    path = f"{PATH}/{await add(api)}"
    assert (
        await post(api, "/api/v1/suppressions", {"address": "ann@example.net", "reason": "unsubscribe"})
    ).status < 300
    assert (await post(api, f"{path}/unsubscribe", {})).status == 200

    first, second = [await post(api, f"{path}/consents", {"action": "withdrawn", "method": how}) for how in "ab"]

    assert [(each.status, each.json["action"], each.json["method"]) for each in (first, second)] == [
        (201, "withdrawn", "a"),
        (201, "withdrawn", "b"),
    ]
    ahead = {"action": "withdrawn", "method": "c", "at": "2090-01-01T00:00:00Z"}
    assert (await post(api, f"{path}/consents", ahead)).status == 422
    records = (await api.ask("GET", f"{path}/consents")).json["data"]
    assert {"a", "b"} <= {each["method"] for each in records}
    assert len(records) == 3
