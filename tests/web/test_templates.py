"""`/api/v1/templates`: made, changed, compared, tried out, and deleted."""

from typing import Any

from tests.web.conftest import Answer, Api

PATH = "/api/v1/templates"
WELCOME = {
    "name": "Welcome",
    "subject": "Welcome, {{ contact.first_name }}",
    "html_content": "<p>Hello {{ contact.first_name }}</p><a href='https://a.example'>go</a>",
    "variables": ["contact.email"],
}
CONTACT = """
    INSERT INTO contacts (tenant, email, address, first_name, custom_fields)
    VALUES ($1, 'bo@example.net', 'bo@example.net', 'Bo', '{"city": "Oslo"}') RETURNING id
"""
CAMPAIGN = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, status, created_by)
    VALUES ('', $2, $1, 'news@example.com', 'scheduled', 'all')
"""


async def made(api: Api, **changes: Any) -> str:
    """The path of a new template."""
    answer = await api.ask("POST", PATH, json=WELCOME | changes)
    assert answer.status == 201, answer.json
    return f"{PATH}/{answer.json['template_id']}"


async def put(api: Api, path: str, etag: str = "*", **changes: Any) -> Answer:
    return await api.ask("PUT", path, json=changes, headers={"If-Match": etag})


async def test_a_template_is_made_shown_listed_and_deleted(api: Api) -> None:
    answer = await api.ask("POST", PATH, json=WELCOME)
    path = answer.headers["Location"]
    shown = await api.ask("GET", path)

    assert (answer.status, answer.json["version"]) == (201, 1)
    assert path == f"{PATH}/{answer.json['template_id']}"
    assert {name: shown.json[name] for name in WELCOME} == WELCOME
    assert shown.json["links"] == [{"link": 1, "url": "https://a.example"}]
    assert shown.headers["ETag"] == answer.headers["ETag"]
    other = await made(api)
    page = (await api.ask("GET", f"{PATH}?limit=1")).json
    rest = (await api.ask("GET", f"{PATH}?limit=1&cursor={page['next_cursor']}")).json
    assert [f"{PATH}/{each['template_id']}" for each in page["data"] + rest["data"]] == [other, path]
    assert (page["has_more"], rest["has_more"]) == (True, False)

    assert (await api.ask("DELETE", path)).status == 204
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/versions"), ("GET", f"{path}/versions/1")):
        assert (await api.ask(method, where)).status == 404
    assert (await put(api, path, name="x")).status == 404


async def test_another_tenant_sees_nothing(api: Api) -> None:
    path = await made(api)

    assert (await api.ask("GET", PATH, key="stranger")).json["data"] == []
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/versions/1"), ("GET", f"{path}/versions")):
        assert (await api.ask(method, where, key="stranger")).status == 404
    for where in (f"{path}/preview", f"{path}/versions/1/restore"):
        assert (await api.ask("POST", where, json={}, key="stranger")).status == 404
    assert (await api.ask("PUT", path, json={"name": "x"}, key="stranger")).status == 404


async def test_content_makes_versions_and_nothing_else_does(api: Api) -> None:
    path = await made(api)
    renamed = await put(api, path, name="Hello")
    same = await put(api, path, subject=WELCOME["subject"])
    changed = await api.ask("PATCH", path, json={"subject": "Hi {{ contact.first_name }}"})

    assert [answer.json["version"] for answer in (renamed, same, changed)] == [1, 1, 2]
    assert renamed.headers["ETag"] == same.headers["ETag"] != changed.headers["ETag"]
    assert (await api.ask("GET", f"{path}/versions/1")).json["subject"] == WELCOME["subject"]
    shown = (await api.ask("GET", path)).json
    assert (shown["name"], shown["subject"], shown["html_content"]) == (
        "Hello",
        "Hi {{ contact.first_name }}",
        WELCOME["html_content"],
    )
    diff = (await api.ask("GET", f"{path}/versions/2/diff")).json
    assert diff["subject"].splitlines()[-2:] == ["-Welcome, {{ contact.first_name }}", "+Hi {{ contact.first_name }}"]
    assert diff["html_content"] == diff["format"] == ""
    assert (await api.ask("GET", f"{path}/versions/2/diff?against=7")).status == 404

    key = {"Idempotency-Key": "again"}
    restored = [await api.ask("POST", f"{path}/versions/1/restore", headers=key) for _ in range(2)]
    assert [answer.json["version"] for answer in restored] == [3, 3]
    assert (await api.ask("GET", path)).json["subject"] == WELCOME["subject"]
    history = (await api.ask("GET", f"{path}/versions?limit=2")).json
    assert [(each["version"], each["restored"]) for each in history["data"]] == [(3, 1), (2, None)]
    older = (await api.ask("GET", f"{path}/versions?limit=2&cursor={history['next_cursor']}")).json
    assert [each["version"] for each in older["data"]] == [1]


async def test_versions_too_large_to_compare_are_not_compared(api: Api) -> None:
    path = await made(api, html_content="<p>a</p>\n" * 1_501)
    await put(api, path, html_content="<p>b</p>")

    answer = await api.ask("GET", f"{path}/versions/2/diff")

    assert (answer.status, answer.json["code"]) == (422, "too_large")


async def test_a_change_to_what_was_not_read_is_refused(api: Api) -> None:
    path = await made(api)
    etag = (await api.ask("GET", path)).headers["ETag"]

    assert (await put(api, path, etag, subject="A")).status == 200
    late = await put(api, path, etag, subject="B")
    gone = await api.ask("DELETE", path, headers={"If-Match": etag})

    assert (late.status, late.json["code"], gone.status) == (412, "precondition_failed", 412)
    assert (await api.ask("GET", path)).json["subject"] == "A"


async def test_a_template_of_scheduled_campaigns_is_deleted_only_by_force(api: Api) -> None:
    path = await made(api)
    row = await api.relay.pool.fetchval("SELECT max(id) FROM templates")
    await api.relay.pool.execute(CAMPAIGN.replace("''", "(SELECT tenant FROM templates WHERE id = $1)"), row, "Spring")

    refused = await api.ask("DELETE", path)

    assert (refused.status, refused.json["code"]) == (409, "in_use")
    assert "Spring (cmp_" in refused.json["detail"]
    assert (await api.ask("DELETE", f"{path}?force=true")).status == 204


async def test_the_same_key_makes_one_template(api: Api) -> None:
    key = {"Idempotency-Key": "one"}
    answers = [await api.ask("POST", PATH, json=WELCOME, headers=key) for _ in range(2)]

    assert answers[0].json == answers[1].json
    assert len((await api.ask("GET", PATH)).json["data"]) == 1
    assert (await api.ask("POST", PATH, json=WELCOME | {"name": "x"}, headers=key)).status == 422


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"html_content": "<p>\n{{ ''.__class__ }}"}, "/html_content", "Line 2"),
    ({"html_content": "<script>x</script>"}, "/html_content", "Line 1"),
    ({"subject": "{% for x in y %}"}, "/subject", "Line 1"),
    ({"subject": ""}, "/subject", "subject"),
    ({"variables": ["contact first"]}, "/variables/0", "named"),
    ({"text_content": "{{ x | nothing }}"}, "/text_content", "no filter"),
    ({"format": "pdf"}, "/format", "mjml"),
    ({"name": ""}, "/name", ""),
    ({"colour": "x"}, "/colour", ""),
]


async def test_what_is_no_template_is_refused_and_says_where(api: Api) -> None:
    for asked, pointer, words in REFUSED:  # one server for all
        answer = await api.ask("POST", PATH, json=WELCOME | asked)

        assert answer.status == 422, asked
        assert answer.json["errors"][0]["pointer"] == pointer
        assert words in answer.json["errors"][0]["detail"]


async def test_a_preview_shows_sample_data_given_data_and_contacts(api: Api) -> None:
    path = await made(api, html_content="<p>{{ contact.first_name }} {{ custom_fields.city }} {{ coupon }}</p>")
    tenant = await api.relay.pool.fetchval("SELECT tenant FROM templates")
    contact = await api.relay.pool.fetchval(CONTACT, tenant)
    foreign = await api.relay.pool.fetchval(CONTACT, "someone else")

    async def shown(**asked: Any) -> Any:
        answer = await api.ask("POST", f"{path}/preview", json=asked)
        assert answer.status in (200, 422)
        return answer.json

    plain = await shown()
    assert "<p>Ann  </p>" in plain["html"]
    assert plain["subject"] == "Welcome, Ann"
    assert [each["detail"].split()[0] for each in plain["problems"]] == ["custom_fields.city", "coupon"]
    of_contact = await shown(contact_id=f"con_{contact}", variables={"coupon": "X1"})
    assert "<p>Bo Oslo X1</p>" in of_contact["html"]
    assert (of_contact["text"].strip(), of_contact["problems"]) == ("Bo Oslo X1", [])
    assert (await shown(contact_id=f"con_{foreign}"))["errors"][0]["code"] == "unknown_contact"
    assert (await shown(contact_id="x"))["errors"][0]["code"] == "unknown_contact"
    assert "<p>Cy" in (await shown(variables={"contact.first_name": "Cy"}, version=1))["html"]
    nested: Any = "x"
    for _ in range(30):
        nested = {"a": nested}
    assert (await shown(variables=nested))["errors"][0]["pointer"] == "/variables"


async def test_validation_says_all_and_saves_nothing(api: Api) -> None:
    bad = await api.ask("POST", f"{PATH}/validate", json={"html_content": "<script>x</script>\n<p onclick='x'>"})
    good = await api.ask("POST", f"{PATH}/validate", json={"html_content": "<p>{{ contact.email }}</p>"})

    assert (bad.json["valid"], [each.get("line") for each in bad.json["problems"]][:2]) == (False, [1, 2])
    assert (good.json["valid"], good.json["variables_used"]) == (True, ["contact.email"])
    assert (await api.ask("GET", PATH)).json["data"] == []


async def test_a_test_mail_is_ordinary_mail_and_is_not_tracked(api: Api) -> None:
    path = await made(api)
    asked = {"to": ["ann@example.net", "bob@example.net"], "sender_email": "news@example.com", "sender_name": "News"}
    key = {"Idempotency-Key": "test"}
    answers = [await api.ask("POST", f"{path}/test", json=asked, headers=key) for _ in range(2)]

    assert answers[0].status == 202, answers[0].json
    assert answers[0].json == answers[1].json
    assert [each["to"] for each in answers[0].json["data"]] == asked["to"]
    contents = await api.delivered()
    assert len(contents) == 2
    assert b"Subject: [Test] Welcome, Ann" in contents[0]
    assert b"https://a.example" in contents[0]
    assert await api.accepted() == 2


async def test_a_test_mail_that_cannot_be_sent_says_why(api: Api) -> None:
    path = await made(api, html_content="<p>{{ 1 / contact.custom_fields.n }}</p>")
    asked = {"to": ["ann@example.net"], "sender_email": "news@example.com"}

    async def refused(key: str = "all", **changes: Any) -> tuple[int, str]:
        answer = await api.ask("POST", f"{path}/test", json=asked | changes, key=key)
        return answer.status, (answer.json.get("errors") or [{}])[0].get("pointer", answer.json["code"])

    assert await refused(variables={"contact.custom_fields.n": 0}) == (422, "render_failed")
    assert await refused(sender_email="nobody") == (422, "/sender_email")
    assert await refused(to=["ann@example.net", "x"]) == (422, "/to/1")
    assert await refused(to=[]) == (422, "/to")
    assert await refused(key="reader") == (403, "forbidden")
    assert await refused(key="sender", contact_id="con_1") == (403, "forbidden")
    assert await api.accepted() == 0
