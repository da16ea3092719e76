"""What holds for every resource: strangers see nothing, scopes, unknown fields, cursors, and If-Match."""

import re
from typing import Any

import pytest

from mailerd.campaigns.contacts.lists import MAX_ID
from mailerd.web.app import OPERATIONS
from mailerd.web.operations import JSON, Operation
from tests.web.conftest import EMAIL, Answer, Api

V1 = "/api/v1"
CONDITIONS = {"field": "email", "operator": "contains", "value": "a"}
# What is made, by the first step of its path: the body, and the member of the answer that names it.
THINGS: dict[str, tuple[dict[str, Any], str]] = {
    "contacts": ({"email": "ann@example.net", "tags": ["vip"]}, "contact_id"),
    "lists": ({"name": "News"}, "list_id"),
    "tags": ({"name": "new"}, "tag_id"),
    "custom-fields": ({"name": "plan", "type": "text"}, "name"),
    "segments": ({"name": "S", "conditions": CONDITIONS}, "segment_id"),
    "templates": ({"name": "T", "subject": "x", "html_content": "<p>x</p>"}, "template_id"),
    "campaigns": ({"name": "C", "sender_email": "news@shop.example"}, "campaign_id"),
    "contacts/imports": ({"contacts": [{"email": "bob@example.net"}]}, "import_id"),
    "emails": (EMAIL | {"to": ["later@example.net"]}, "id"),
    "webhooks": ({"url": "https://hooks.example/", "events": ["email.delivered"]}, "id"),
}
EVERYBODYS = ("effects", "upstreams")  # of no tenant
NOT_DATA = ("workers", "credentials", "source_checks", "followers")  # change by themselves
TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
READING = (
    "templates.validate",
    "templates.preview",
    "segments.preview",
    "campaigns.check",
)  # POSTs that change nothing


@pytest.fixture
async def ids(api: Api) -> dict[str, str]:
    """One of each thing, of the tenant of the key `all`: its name, by the first step of its path."""
    made: dict[str, str] = {}
    for kind, (body, member) in THINGS.items():
        if kind == "campaigns":
            body = body | {"template_id": made["templates"], "contact_list_ids": [made["lists"]]}
        if kind == "emails":
            made[kind] = (await api.later()).rpartition("/")[2]
            continue
        answer = await api.ask("POST", f"{V1}/{kind.replace('imports', 'import')}", json=body)
        assert answer.status < 300, answer.text
        made[kind] = answer.json[member]
    return made


def filled(path: str, ids: dict[str, str]) -> str:
    """The path of something that is there."""
    steps = path.removeprefix(f"{V1}/").split("/")
    kind = next(kind for kind in ("contacts/imports", steps[0]) if path.startswith(f"{V1}/{kind}"))
    first, *rest = re.findall(r"{\w+}", path)
    path = path.replace(first, ids[kind])
    for each in rest:
        path = path.replace(each, "1")
    return path


def of_things() -> list[Operation]:
    return [
        operation
        for operation in OPERATIONS
        if "{" in operation.path
        and operation.path.startswith(V1)
        and operation.path.split("/")[3] in {kind.partition("/")[0] for kind in THINGS}
    ]


async def asked(api: Api, operation: Operation, path: str, key: str, **more: Any) -> Answer:
    body = {"json": operation.example or {}} if JSON in operation.bodies else {}
    return await api.ask(operation.method, path, key=key, **body, **more)


async def everything(api: Api) -> dict[str, str]:
    """What stands in each table, as a digest."""
    pool = api.relay.pool
    names = [row[0] for row in await pool.fetch(TABLES) if row[0] not in NOT_DATA]
    digest = "SELECT md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM {} AS t"
    return {name: await pool.fetchval(digest.format(name)) for name in names}


async def test_what_is_another_tenants_is_not_there_and_does_not_change(api: Api, ids: dict[str, str]) -> None:
    await api.relay.settled()
    before = await everything(api)

    for operation in of_things():
        answer = await asked(api, operation, filled(operation.path, ids), "stranger")
        assert answer.status == 404, (operation.id, answer.text)
        assert answer.problem.code == "not_found", operation.id

    after = await everything(api)
    assert [name for name in before if before[name] != after[name]] == []


async def test_what_is_another_tenants_cannot_be_named_in_what_is_ones_own(api: Api, ids: dict[str, str]) -> None:
    own: dict[str, str] = {}
    for kind in ("contacts", "lists", "templates"):
        body, member = THINGS[kind]
        own[kind] = (await api.ask("POST", f"{V1}/{kind}", json=body, key="stranger")).json[member]
    campaign = {"name": "C", "sender_email": "a@shop.example", "template_id": own["templates"]}
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("campaigns", campaign | {"template_id": ids["templates"]}, "unknown_template"),
        ("campaigns", campaign | {"contact_list_ids": [ids["lists"]]}, "unknown_list"),
        ("campaigns", campaign | {"contact_list_ids": [ids["segments"]]}, "unknown_segment"),
        ("campaigns", campaign | {"audience": {"everyone": True, "exclude_campaign_ids": [ids["campaigns"]]}},
         "unknown_campaign"),
        ("segments", {"name": "S", "conditions": {"field": "list", "operator": "in", "value": [ids["lists"]]}}, ""),
        ("segments", {"name": "S", "conditions": {"engagement": "opened", "campaign": ids["campaigns"]}}, ""),
        (f"templates/{own['templates']}/preview", {"contact_id": ids["contacts"]}, "unknown_contact"),
        ("contacts/import", {"contacts": [{"email": "x@example.net"}], "list_id": ids["lists"]}, "unknown_list"),
    ]  # fmt: skip
    for path, body, code in refused:
        answer = await api.ask("POST", f"{V1}/{path}", json=body, key="stranger")
        assert answer.status == 422, (path, body, answer.text)
        assert code in ("", answer.problem.errors[0].code), answer.text

    added = await api.ask(
        "POST", f"{V1}/lists/{own['lists']}/contacts", json={"contact_ids": [ids["contacts"]]}, key="stranger"
    )
    assert (added.json["added"], added.json["not_found"]) == (0, [ids["contacts"]])
    for body in ({"email": "new@example.net", "list_ids": [ids["lists"]]},):
        answer = await api.ask("POST", f"{V1}/contacts", json=body, key="stranger")
        assert answer.status in (404, 422), answer.text


async def test_every_list_is_empty_for_a_stranger(api: Api, ids: dict[str, str]) -> None:
    for operation in OPERATIONS:
        if operation.method == "GET" and "{" not in operation.path and operation.path.split("/")[-1] in THINGS:
            answer = await api.ask("GET", operation.path, key="stranger")
            assert (answer.status, answer.json["data"]) == (200, []), operation.id


def test_reading_needs_read_and_changing_needs_manage_or_send() -> None:
    campaigns = {"analytics", *(operation.id.partition(".")[0] for operation in of_things())} - {"emails", "webhooks"}
    for operation in OPERATIONS:
        if operation.id.partition(".")[0] in campaigns:
            reads = operation.method == "GET" or operation.id in READING
            assert operation.scope in (("read",) if reads else ("manage", "send")), operation.id


async def test_a_key_without_the_scope_is_refused_before_anything_is_looked_at(api: Api, ids: dict[str, str]) -> None:
    for operation in of_things():
        for key, scope in (("reader", "read"), ("sender", "send")):
            if operation.scope != scope:
                answer = await asked(api, operation, filled(operation.path, ids), key)
                assert (answer.status, answer.problem.code) == (403, "forbidden"), operation.id


async def test_a_field_that_is_none_is_refused(api: Api, ids: dict[str, str]) -> None:
    for operation in OPERATIONS:
        if operation.scope is None or not isinstance(operation.example, dict):
            continue
        path = filled(operation.path, ids) if "{" in operation.path and operation in of_things() else operation.path
        answer = await api.ask(operation.method, path, json=operation.example | {"surprise": 1})
        if operation in of_things() or "{" not in path:
            assert answer.status == 422, (operation.id, answer.text)
            error = answer.problem.errors[0]
            assert (error.code, error.pointer) == ("unknown_field", "/surprise"), (operation.id, answer.text)


async def test_a_cursor_is_good_for_one_search_of_one_tenant(api: Api, ids: dict[str, str]) -> None:
    lists = {f"{V1}/{kind}": kind for kind in THINGS if kind not in ("custom-fields", "webhooks")}
    more = {
        "contacts": {"email": "b@example.net"},
        "lists": {"name": "B"},
        "tags": {"name": "b"},
        "segments": {"name": "B", "conditions": CONDITIONS},
        "templates": THINGS["templates"][0],
        "campaigns": THINGS["campaigns"][0] | {"template_id": ids["templates"]},
        "contacts/imports": THINGS["contacts/imports"][0],
    }
    for kind, body in more.items():
        assert (await api.ask("POST", f"{V1}/{kind.replace('imports', 'import')}", json=body)).status < 300, kind
    await api.later()
    cursors = {path: (await api.ask("GET", f"{path}?limit=1")).json["next_cursor"] for path in lists}
    assert None not in cursors.values()

    for path in lists:
        assert (await api.ask("GET", f"{path}?limit=1&cursor={cursors[path]}")).status == 200, path
        wrong = [(other, "all") for where, other in cursors.items() if where != path] + [(cursors[path], "stranger")]
        for cursor, key in wrong:
            answer = await api.ask("GET", f"{path}?cursor={cursor}", key=key)
            assert (answer.status, answer.problem.code) == (400, "invalid_cursor"), (path, key)


@pytest.mark.parametrize(("kind", "word"), [("campaigns", "PUT"), ("campaigns", "PATCH"), ("templates", "PUT")])
async def test_if_match_keeps_what_has_changed(api: Api, ids: dict[str, str], kind: str, word: str) -> None:
    path = f"{V1}/{kind}/{ids[kind]}"
    tag = (await api.ask("GET", path)).headers["ETag"]
    changed = await api.ask(word, path, json={"name": "second"}, headers={"If-Match": tag})
    assert (changed.status, changed.headers["ETag"] != tag) == (200, True)

    for method, body in ((word, {"json": {"name": "third"}}), ("DELETE", {})):
        stale = await api.ask(method, path, headers={"If-Match": tag}, **body)
        assert (stale.status, stale.problem.code) == (412, "precondition_failed")

    shown = await api.ask("GET", path)
    assert (shown.json["name"], shown.headers["ETag"]) == ("second", changed.headers["ETag"])
    assert (await api.ask("DELETE", path, headers={"If-Match": shown.headers["ETag"]})).status in (204, 409)


async def test_ids_that_are_none_are_not_there(api: Api, ids: dict[str, str]) -> None:
    for operation in of_things():
        for text in ("nonsense", "con_", f"con_{MAX_ID + 1}", "lst_-1", "%00", "%F0%9F%92%A9", "tpl_" + "9" * 50):
            path = filled(operation.path, dict.fromkeys(THINGS, text))
            answer = await asked(api, operation, path, "all")
            assert answer.status == 404, (operation.id, text, answer.text)
