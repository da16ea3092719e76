"""`/api/v1/campaigns`: made, changed, checked, sent, steered, and who was reached."""

import asyncio
import csv
import io
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from mailerd.campaigns.ledger import LedgerStore
from mailerd.campaigns.segments import counting
from mailerd.campaigns.values import Resend
from mailerd.queue.ids import format_id
from tests.campaigns.making import HTML, make_campaign, make_list, make_template
from tests.web.conftest import Answer, Api

PATH = "/api/v1/campaigns"
DOCUMENTED = ("campaign_id", "name", "status", "total_recipients", "sent_count", "delivered_count", "opened_count",
              "clicked_count", "bounced_count", "unsubscribed_count")  # fmt: skip


async def body(api: Api, **changes: Any) -> dict[str, Any]:
    pool = api.relay.pool
    return {
        "name": "Spring",
        "template_id": format_id("tpl_", await make_template(pool)),
        "sender_email": "news@shop.example",
        "sender_name": "Shop",
        "contact_list_ids": [format_id("lst_", await make_list(pool, "ann", "bob"))],
    } | changes


async def create(api: Api, **changes: Any) -> Answer:
    return await api.ask("POST", PATH, json=await body(api, **changes))


async def made(api: Api, **changes: Any) -> str:
    answer = await create(api, **changes)
    assert answer.status == 201, answer.text
    return f"{PATH}/{answer.json['campaign_id']}"


async def step(api: Api, path: str, word: str, **rest: Any) -> tuple[int, str]:
    """The status of the answer, and of the campaign or else the code of the problem."""
    answer = await api.ask("POST", f"{path}/{word}", **rest)
    return answer.status, answer.json.get("code") or answer.json["status"]


async def shown(api: Api, path: str) -> dict[str, Any]:
    answer = await api.ask("GET", path)
    assert answer.status == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def later(api: Api, **parts: float) -> str:
    return (api.relay.clock.now + timedelta(**parts)).isoformat()


async def test_a_draft_is_made_shown_listed_changed_and_deleted(api: Api) -> None:
    answer = await create(api)
    path = answer.headers["Location"]
    assert answer.json == {"campaign_id": path.rpartition("/")[2], "status": "draft"}

    first = await shown(api, path)
    assert [first[name] for name in DOCUMENTED[1:4]] == ["Spring", "draft", 0]
    assert set(DOCUMENTED) <= set(first)
    assert [each["campaign_id"] for each in (await api.ask("GET", PATH)).json["data"]] == [first["campaign_id"]]
    assert (await api.ask("GET", f"{PATH}?status=sent")).json["data"] == []

    for method, change in (("PUT", {"name": "Summer"}), ("PATCH", {"options": {"pace": 600}})):
        assert (await api.ask(method, path, json=change)).status == 200
    second = await shown(api, path)
    assert (second["name"], second["options"]["pace"], second["options"]["track_opens"]) == ("Summer", 600, True)
    assert second["contact_list_ids"] == first["contact_list_ids"]

    assert (await api.ask("DELETE", path)).status == 204
    assert (await api.ask("GET", path)).status == 404


async def test_the_body_of_the_documents_is_taken_and_begins_at_its_time(api: Api) -> None:
    ab_test = {"enabled": False, "variants": [{"subject": "A", "weight": 50}], "test_duration_hours": 4}
    answer = await create(api, subject="Hello", schedule_time=later(api, hours=1), ab_test_config=ab_test)

    assert answer.json["status"] == "scheduled"
    campaign = await shown(api, answer.headers["Location"])
    assert campaign["ab_test_config"] == ab_test
    assert (campaign["forecast"]["limit"], campaign["forecast"]["until"]) == ("schedule", campaign["schedule_time"])


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"template_id": "tpl_999"}, "unknown_template", "/template_id"),
    ({"template_id": "nonsense"}, "unknown_template", "/template_id"),
    ({"contact_list_ids": ["lst_999"]}, "unknown_list", "/audience/list_ids/0"),
    ({"contact_list_ids": ["seg_999"]}, "unknown_segment", "/audience/segment_ids/0"),
    ({"contact_list_ids": ["x"]}, "invalid_id", "/contact_list_ids"),
    ({"audience": {"everyone": True}}, "contradiction", "/contact_list_ids"),
    ({"ab_test_config": {"enabled": True}}, "not_supported_yet", "/ab_test_config/enabled"),
    ({"timing": {"time_zone": "Mars/Olympus"}}, "invalid_value", "/timing/time_zone"),
    ({"timing": {"window": {"days": []}}}, "invalid_value", "/timing/window/days"),
    ({"recurrence": {"every": "week", "at": "09:00"}}, "invalid_value", "/recurrence/days"),
    ({"schedule_time": "2020-01-01T00:00:00Z"}, "invalid_value", "/schedule_time"),
    ({"name": ""}, "invalid_value", "/name"),
    ({"subject": "a\r\nBcc: all@example.com"}, "invalid_value", "/subject"),
    ({"colour": "red"}, "unknown_field", "/colour"),
    ({"options": {"pace": 0}}, "invalid_value", "/options/pace"),
    ({"sender_email": "news at shop"}, "invalid_address", "/sender_email"),
    ({"reply_to": "nobody"}, "invalid_address", "/reply_to"),
]


async def test_what_cannot_be_is_refused_at_once(api: Api) -> None:
    good = await body(api)
    for change, code, pointer in REFUSED:
        answer = await api.ask("POST", PATH, json=good | change)
        assert answer.status == 422, answer.text
        assert (answer.problem.errors[0].code, answer.problem.errors[0].pointer) == (code, pointer)
    assert (await api.ask("GET", PATH)).json["data"] == []


async def test_nobody_sees_or_touches_the_campaigns_of_another_tenant(api: Api) -> None:
    path = await made(api)
    stranger: dict[str, Any] = {"key": "stranger"}

    assert (await api.ask("GET", PATH, **stranger)).json["data"] == []
    for method, rest in (("GET", {}), ("PUT", {"json": {"name": "x"}}), ("DELETE", {})):
        assert (await api.ask(method, path, **rest, **stranger)).status == 404
    for word in ("send", "pause", "resume", "cancel", "duplicate", "check"):
        assert (await api.ask("POST", f"{path}/{word}", **stranger)).status == 404
    assert (await api.ask("GET", f"{path}/recipients", **stranger)).status == 404
    theirs = await make_template(api.relay.pool, tenant="other")
    assert (await create(api, template_id=format_id("tpl_", theirs))).status == 422


async def test_who_may_not_send_makes_drafts_only(api: Api) -> None:
    refused = await api.ask("POST", PATH, json=await body(api), key="sender")
    assert refused.status == 403
    path = await made(api)
    assert (await api.ask("POST", f"{path}/send", key="sender")).status == 403  # it takes `manage`, too
    assert (await api.ask("POST", f"{path}/send", key="reader")).status == 403


async def test_a_campaign_is_sent_paused_resumed_and_cancelled(api: Api) -> None:
    path = await made(api)

    assert await step(api, path, "send") == (202, "sending")
    assert await step(api, path, "pause", json={"reason": "typo"}) == (200, "paused")
    campaign = await shown(api, path)
    assert (campaign["status_reason"], campaign["forecast"]["limit"]) == ("typo", "paused")
    assert await step(api, path, "resume") == (200, "sending")
    assert await step(api, path, "cancel") == (200, "cancelled")
    assert await step(api, path, "resume") == (409, "wrong_status")
    assert (await api.ask("POST", f"{path}/send")).problem.detail.endswith(
        "is cancelled and cannot be sent: duplicate it and send the copy."
    )


async def test_of_two_sends_at_once_one_is_taken(api: Api) -> None:
    path = await made(api)

    answers = await asyncio.gather(*(step(api, path, "send") for _ in range(3)))

    assert sorted(answers) == [(202, "sending"), (409, "wrong_status"), (409, "wrong_status")]


async def test_a_send_that_is_repeated_with_its_key_is_answered_as_before(api: Api) -> None:
    path = await made(api)
    headers = {"Idempotency-Key": "one"}

    first, second = [await api.ask("POST", f"{path}/send", headers=headers) for _ in range(2)]

    assert (first.status, second.status, second.json) == (202, 202, first.json)
    assert second.headers["Idempotency-Replayed"] == "true"
    again = [await api.ask("POST", PATH, json=await body(api, name=name), headers=headers) for name in "xy"]
    assert [each.status for each in again] == [201, 422]  # the key stands for another request


async def test_what_was_changed_meanwhile_is_not_changed_by_who_does_not_know(api: Api) -> None:
    path = await made(api)
    tag = (await api.ask("GET", path)).headers["ETag"]

    assert (await api.ask("PUT", path, json={"name": "a"}, headers={"If-Match": tag})).status == 200
    stale = await api.ask("PUT", path, json={"name": "b"}, headers={"If-Match": tag})

    assert (stale.status, stale.problem.code) == (412, "precondition_failed")
    assert (await api.ask("DELETE", path, headers={"If-Match": tag})).status == 412
    assert (await shown(api, path))["name"] == "a"


async def test_while_it_is_sent_only_name_and_pace_change(api: Api) -> None:
    path = await made(api)
    await step(api, path, "send")

    assert (await api.ask("PUT", path, json={"name": "b", "options": {"pace": 5}})).status == 200
    for change in ({"subject": "b"}, {"options": {"track_opens": False}}, {"schedule_time": None}):
        assert (await api.ask("PUT", path, json=change)).problem.code == "wrong_status"
    assert (await api.ask("DELETE", path)).problem.code == "wrong_status"


async def test_a_draft_is_scheduled_put_off_and_made_a_draft_again(api: Api) -> None:
    path = await made(api)

    assert await step(api, path, "schedule", json={"schedule_time": later(api, days=1)}) == (200, "scheduled")
    assert (await api.ask("PUT", path, json={"schedule_time": later(api, days=2)})).json["status"] == "scheduled"
    assert await step(api, path, "schedule", json={"schedule_time": later(api, days=-2)}) == (422, "invalid")
    assert (await api.ask("PUT", path, json={"schedule_time": None})).json["status"] == "draft"
    assert await step(api, path, "schedule", json={}) == (422, "invalid")


async def test_a_recurring_one_has_its_next_time_and_is_not_sent_itself(api: Api) -> None:
    path = await made(api)
    rule = {"every": "month", "at": "09:00", "day": 31, "time_zone": "europe/kiev"}

    assert await step(api, path, "schedule", json={"recurrence": rule}) == (200, "scheduled")

    campaign = await shown(api, path)
    assert campaign["recurrence"]["time_zone"] == "Europe/Kyiv"
    assert campaign["schedule_time"] > later(api)
    refused = await api.ask("POST", f"{path}/send")
    assert (refused.status, "duplicate it" in refused.problem.detail) == (409, True)
    assert await step(api, path, "pause", json={}) == (200, "paused")
    assert await step(api, path, "resume") == (200, "scheduled")


@pytest.mark.parametrize("method", ["PATCH", "PUT", "schedule"])
async def test_a_changed_rule_counts_the_campaigns_that_came_of_it(api: Api, method: str) -> None:
    path = await made(api)
    rule = {"every": "day", "at": "09:00", "time_zone": "UTC", "count": 3}
    assert await step(api, path, "schedule", json={"recurrence": rule}) == (200, "scheduled")
    await api.relay.pool.execute("""UPDATE campaigns SET recurrence = recurrence || '{"made": 2}'""")

    async def change(**changes: Any) -> Answer:
        body = {"recurrence": (await shown(api, path))["recurrence"] | changes}
        if method == "schedule":
            return await api.ask("POST", f"{path}/schedule", json=body)
        return await api.ask(method, path, json=body)

    assert (await change(at="10:00", made=0)).status == 200
    assert (await shown(api, path))["recurrence"]["made"] == 2
    refused = await change(count=2)
    assert (refused.status, refused.problem.errors[0].pointer) == (422, "/recurrence/count")


async def test_what_keeps_it_from_being_sent_is_told_by_check_and_by_send(api: Api) -> None:
    template = await make_template(api.relay.pool, html="<p>News</p>", text="News")
    path = await made(api, template_id=format_id("tpl_", template), contact_list_ids=[])

    checked = (await api.ask("POST", f"{path}/check")).json
    refused = await api.ask("POST", f"{path}/send")

    codes = [each["code"] for each in checked["findings"] if each["severity"] == "error"]
    assert (checked["ready"], set(codes)) == (
        False,
        {"no_unsubscribe_link", "postal_address_not_shown", "no_audience"},
    )
    assert (refused.status, refused.problem.code) == (422, "not_ready")
    assert [each.code for each in refused.problem.errors] == codes
    assert (await shown(api, path))["status"] == "draft"


async def test_what_is_doubtful_in_the_template_is_told_by_check(api: Api) -> None:
    html = "{{ contact.frist_name }} {{ custom_fields.ctiy }} {{ contact.custom_fields.size }}{{ custom_fields.plan }}"
    template = await make_template(api.relay.pool, html=f"{HTML}<p>{html}</p>")
    path = await made(api, template_id=format_id("tpl_", template), subject="For {{ contact.nmae }}")
    await api.relay.pool.execute("UPDATE contacts SET custom_fields = '{\"size\": 1}' WHERE first_name = 'bob'")
    await api.relay.pool.execute(
        "INSERT INTO custom_field_definitions (tenant, name, type) VALUES ('default', 'plan', 'text')"
    )

    checked = (await api.ask("POST", f"{path}/check")).json

    found = [
        (each["code"], each["pointer"], each["detail"].split()[0])
        for each in checked["findings"]
        if each["code"].startswith("unknown")
    ]
    assert (checked["ready"], found) == (
        True,
        [
            ("unknown_variable", "/template_id", "contact"),
            ("unknown_variable", "/subject", "contact"),
            ("unknown_custom_field", "/template_id", "custom_fields.ctiy"),
        ],
    )


async def test_for_how_many_the_hour_is_past_is_told_by_check(api: Api) -> None:
    path = await made(api)
    await api.relay.pool.execute("UPDATE contacts SET time_zone = 'Pacific/Kiritimati' WHERE first_name = 'ann'")
    timing = {"local_time": True, "time_zone": "UTC"}
    await step(api, path, "schedule", json={"schedule_time": later(api, minutes=5), "timing": timing})

    told = [(await api.ask("POST", f"{path}/check")).json["findings"]]
    await api.ask("PUT", path, json={"timing": timing | {"past": "send_now"}})
    told.append((await api.ask("POST", f"{path}/check")).json["findings"])

    details = [each["detail"] for found in told for each in found if each["code"] == "local_hour_past"]
    assert [("1 contact" in each, "next day" in each) for each in details] == [(True, True), (True, False)]


async def test_a_campaign_for_nobody_is_not_sent(api: Api) -> None:
    nobody = format_id("lst_", await make_list(api.relay.pool))
    path = await made(api, contact_list_ids=[nobody])

    assert [each.code for each in (await api.ask("POST", f"{path}/send")).problem.errors] == ["empty_audience"]


async def test_a_key_sends_only_as_its_domains(api: Api) -> None:
    path = await made(api, sender_email="news@elsewhere.example")

    answer = await api.ask("POST", f"{path}/send", key="shop")

    assert [each.code for each in answer.problem.errors] == ["sender_not_allowed"]


async def test_a_subject_of_the_campaigns_own_is_a_template_too(api: Api) -> None:
    path = await made(api, subject="For {{ contact.first_name }}")
    assert (await api.ask("POST", f"{path}/check")).json["ready"]

    await api.ask("PUT", path, json={"subject": "For {{ contact.first_name "})

    (found,) = [
        each for each in (await api.ask("POST", f"{path}/check")).json["findings"] if each["severity"] == "error"
    ]
    assert found["pointer"] == "/subject"


async def test_a_copy_says_the_same_and_is_a_draft(api: Api) -> None:
    path = await made(api, schedule_time=later(api, days=1), subject="Hello")

    copy = await api.ask("POST", f"{path}/duplicate", json={"name": "Once more"})

    one, other = await shown(api, path), await shown(api, copy.headers["Location"])
    assert (other["name"], other["status"], other["schedule_time"]) == ("Once more", "draft", None)
    for name in ("subject", "template_id", "contact_list_ids", "audience", "options"):
        assert one[name] == other[name]


async def reached(api: Api, *statuses: int) -> str:
    """The path of a campaign that is over, with a contact of each status."""
    pool = api.relay.pool
    audience = {"list_ids": [await make_list(pool, *(f"reader{n}" for n, _ in enumerate(statuses)))]}
    campaign = await make_campaign(pool, status="sent", audience=audience)
    ids = [row["id"] for row in await pool.fetch("SELECT id FROM contacts ORDER BY id")]
    for contact, status in zip(ids, statuses, strict=True):
        await pool.execute(
            "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, reason, marks)"
            " VALUES ($1, $2, now(), false, $3, $4, $5)",
            campaign.id,
            contact,
            status,
            "unsubscribed" if status == 5 else "",
            5 if status == 2 else 0,
        )
    return f"{PATH}/{campaign.name_outside}"


async def test_who_was_not_reached_and_why_is_a_list(api: Api) -> None:
    path = await reached(api, 2, 3, 5, 5, 4)

    all_ = (await api.ask("GET", f"{path}/recipients")).json
    assert [each["status"] for each in all_["data"]] == ["delivered", "bounced", "suppressed", "suppressed", "failed"]
    assert [all_["data"][0][name] for name in ("email", "opened", "clicked")] == ["reader0@example.net", True, True]
    one = (await api.ask("GET", f"{path}/recipients?status=suppressed&reason=unsubscribed&limit=1")).json
    cursor = one["next_cursor"]
    two = (
        await api.ask("GET", f"{path}/recipients?status=suppressed&reason=unsubscribed&limit=1&cursor={cursor}")
    ).json
    assert [each["email"] for each in one["data"] + two["data"]] == ["reader2@example.net", "reader3@example.net"]
    assert (one["has_more"], two["has_more"]) == (True, False)
    assert (await api.ask("GET", f"{path}/recipients?cursor={cursor}")).status == 400


async def test_what_a_person_did_as_well_is_not_said_to_be_by_machines_only(api: Api) -> None:
    """As analytics counts it: `machine_…` are of contacts for whom no person did."""
    path = await reached(api, 2, 2, 2, 2)
    await api.relay.pool.execute(
        "UPDATE campaign_contacts SET marks = (ARRAY[15, 11, 10, 14])[contact_id - (SELECT min(id) - 1 FROM contacts)]"
    )

    found = (await api.ask("GET", f"{path}/recipients")).json["data"]
    file = list(csv.DictReader(io.StringIO((await api.ask("GET", f"{path}/recipients.csv")).text)))

    names = ("opened", "machine_opened", "clicked", "machine_clicked")
    expected = [
        (True, False, True, False), (True, False, False, True), (False, True, False, True), (False, True, True, False)
    ]  # fmt: skip
    assert [tuple(each[name] for name in names) for each in found] == expected
    assert [tuple(each[name] == "true" for name in names) for each in file] == expected


async def test_those_who_were_not_reached_are_sent_to_again_by_one_call(api: Api) -> None:
    path = await reached(api, 2, 4, 7)

    again = await api.ask("POST", f"{path}/resend", json={"statuses": ["failed", "in_doubt"], "send": True})

    campaign = await shown(api, again.headers["Location"])
    assert (again.json["status"], campaign["status"]) == ("sending", "sending")
    assert campaign["resend_of"] == path.rpartition("/")[2]
    stored = await api.relay.pool.fetchval("SELECT options -> 'resend' FROM campaigns ORDER BY id DESC LIMIT 1")
    assert stored["statuses"] == [4, 7]
    nobody = await api.ask("POST", f"{path}/resend", json={"statuses": ["bounced"]})
    assert (nobody.status, nobody.problem.code) == (409, "nobody")
    assert await step(api, again.headers["Location"], "resend", json={"statuses": ["failed"]}) == (409, "wrong_status")


async def test_those_who_are_cancelled_are_sent_to_again_once_all_of_them_are(api: Api) -> None:
    path = await reached(api, 2, 6)
    await api.relay.pool.execute(
        "INSERT INTO campaign_runs (campaign_id, tenant, state, version_id, next_at, started_at, steering,"
        " steering_until) SELECT id, tenant, 'ended', 1, $1, $1, 'cancel', $2 FROM campaigns",
        api.relay.clock.now,
        api.relay.clock.now + timedelta(seconds=20),
    )

    early = await api.ask("POST", f"{path}/resend", json={"statuses": ["failed", "cancelled"]})
    assert (early.status, early.problem.code, early.problem.retry_after) == (409, "not_over", 1)

    await api.relay.pool.execute("UPDATE campaign_runs SET steering = '', steering_until = NULL")
    assert (await api.ask("POST", f"{path}/resend", json={"statuses": ["failed", "cancelled"]})).status == 201


async def test_those_who_did_not_open_or_click_are_sent_to_again(api: Api) -> None:
    path = await reached(api, 2, 2, 2, 2, 3)  # delivered ones have opened and clicked
    await api.relay.pool.execute(
        "UPDATE campaign_contacts SET marks = (ARRAY[2, 1, 5, 48, 0])[contact_id - (SELECT min(id) - 1 FROM contacts)]"
    )
    store, found = LedgerStore(), {}
    for word in ("not_opened", "not_clicked"):
        again = await api.ask("POST", f"{path}/resend", json={"statuses": [word]})
        shown_ = await shown(api, again.headers["Location"])
        assert (shown_["resend_of"], shown_["resend_to"]) == (path.rpartition("/")[2], [word])
        stored = await api.relay.pool.fetchval("SELECT options -> 'resend' FROM campaigns ORDER BY id DESC LIMIT 1")
        select = store.reached_so(msgspec.convert(stored, Resend), "default", 0, 1 << 40)
        rows = await api.relay.pool.fetch(f"SELECT email FROM ({select.sql}) AS r JOIN contacts ON id = contact_id"
                                          " ORDER BY 1", *select.parameters)  # fmt: skip
        found[word] = [row["email"].partition("@")[0] for row in rows]
    assert found == {"not_opened": ["reader0"], "not_clicked": ["reader0", "reader1"]}

    refused = await api.ask("PUT", again.headers["Location"], json={"audience": {"everyone": True}})
    assert [each.pointer for each in refused.problem.errors] == ["/audience"]


async def test_the_recipients_are_those_asked_for_as_a_file_too(api: Api) -> None:
    path = await reached(api, 2, 2, 5, 3)
    await api.relay.pool.execute("UPDATE campaign_contacts SET marks = 16 WHERE status = 5")
    await api.relay.pool.execute("UPDATE contacts SET email = '=1+1@example.net' WHERE first_name = 'reader0'")

    counted = {}
    for query in ("opened=true", "opened=false", "clicked=true&status=delivered", "unsubscribed=true",
                  "complained=true"):  # fmt: skip
        counted[query.partition("&")[0]] = len((await api.ask("GET", f"{path}/recipients?{query}")).json["data"])
    file = await api.ask("GET", f"{path}/recipients.csv?clicked=true")

    assert list(counted.values()) == [2, 2, 2, 1, 0]
    lines = file.text.splitlines()
    assert (len(lines), lines[0].split(",")[:3]) == (3, ["contact_id", "email", "status"])
    assert "'=1+1@example.net" in lines[1]
    assert "recipients.csv" in file.headers["Content-Disposition"]
    assert (await api.ask("GET", f"{path}/recipients?opened=maybe")).status == 422
    assert (await api.ask("GET", f"{path}/recipients.csv", key="stranger")).status == 404


async def test_the_counts_are_those_of_the_roll_ups(api: Api) -> None:
    path = await made(api)
    await step(api, path, "send")
    id_ = int(path.rpartition("_")[2])
    await api.relay.pool.execute("UPDATE campaign_runs SET total = 100, written = true")
    await api.relay.pool.execute(
        "INSERT INTO campaign_totals (campaign_id, queued, suppressed, sent, delivered, bounced, opened)"
        " VALUES ($1, 30, 10, 25, 20, 5, 7)",
        id_,
    )

    campaign = await shown(api, path)

    names = ("total", "waiting", "handed_over", "sent", "delivered", "bounced", "opened", "suppressed")
    assert [campaign.get(f"{name}_count", campaign["total_recipients"]) for name in names] == [
        100, 60, 30, 25, 20, 5, 7, 10,
    ]  # fmt: skip
    assert campaign["forecast"]["limit"] == "pace"


async def test_the_mail_is_sent_to_those_who_want_to_see_it(api: Api) -> None:
    path = await made(api, subject="For {{ contact.first_name }}")

    sent = await api.ask("POST", f"{path}/test", json={"to": ["ann@example.net"]})

    assert (sent.status, sent.json["data"][0]["detail"]) == (202, "")
    (content,) = await api.delivered()
    assert b"Subject: [Test] For Sample" in content
    assert b"1 Main Street" in content
    refused = await api.ask("POST", f"{path}/test", json={"to": ["ann at example"]})
    assert [each.pointer for each in refused.problem.errors] == ["/to/0"]


async def test_a_test_mail_shows_a_contact_if_one_is_named(api: Api) -> None:
    path = await made(api, subject="For {{ contact.first_name }}")
    id_ = await api.relay.pool.fetchval("SELECT id FROM contacts WHERE first_name = 'bob'")

    sent = await api.ask("POST", f"{path}/test", json={"to": ["ann@example.net"], "contact_id": f"con_{id_}"})
    unknown = await api.ask("POST", f"{path}/test", json={"to": ["ann@example.net"], "contact_id": "con_999999"})

    assert (sent.status, sent.json["subject"]) == (202, "[Test] For bob")
    assert (unknown.status, unknown.problem.errors[0].pointer) == (422, "/contact_id")


async def test_contacts_who_would_get_no_mail_are_found_before(api: Api) -> None:
    template = await make_template(api.relay.pool, variables=["contact.last_name"])
    path = await made(api, template_id=format_id("tpl_", template))

    first = [(await api.ask("POST", f"{path}/check")).json]
    await api.relay.pool.execute("UPDATE contacts SET last_name = 'Lee' WHERE first_name = 'ann'")
    first.append((await api.ask("POST", f"{path}/check")).json)

    assert [each["ready"] for each in first] == [False, True]  # of two none and one
    missing = [[each["severity"] for each in told["findings"] if each["code"] == "missing_variable"] for told in first]
    assert missing == [["error", "error"], ["warning"]]


async def test_an_audience_of_one_in_many_is_not_taken_for_empty(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SMALL", 10), ("STRETCH", 1), ("PILOT", 1), ("BUDGET", 0.0)):
        monkeypatch.setattr(counting, name, value)
    await api.relay.pool.execute(
        "INSERT INTO contacts (tenant, email, address, custom_fields) SELECT 'default', a, a,"
        " CASE WHEN i = 1500 THEN '{\"vip\": \"needle\"}'::jsonb ELSE '{}' END"
        " FROM generate_series(1, 2000) AS i, LATERAL (SELECT format('reader%s@example.net', i)) AS r (a)"
    )

    def audience(word: str) -> dict[str, Any]:
        conditions = {"field": "custom_fields.vip", "operator": "contains", "value": word}
        return {"audience": {"conditions": conditions}, "contact_list_ids": None}

    rare, empty = await made(api, **audience("needle")), await made(api, **audience("hay"))

    assert await step(api, empty, "send") == (422, "not_ready")
    assert await step(api, rare, "send") == (202, "sending")


@pytest.mark.parametrize("recurring", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "at", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "2060-01-01T00:00:00Z"]
)
async def test_a_schedule_beyond_all_calendars_is_refused(api: Api, at: str, local: bool, recurring: bool) -> None:
    when: dict[str, Any] = {"schedule_time": at, "timing": {"local_time": local, "time_zone": "Asia/Tokyo"}}
    if recurring:
        when["recurrence"] = {"every": "day", "at": "10:00", "time_zone": "America/New_York", "until": at}
    campaign = await make_campaign(api.relay.pool, audience={"everyone": True})
    path = f"{PATH}/cmp_{campaign.id}"

    for answer in (
        await create(api, **when),
        await api.ask("POST", f"{path}/schedule", json=when),
        await api.ask("PUT", path, json=when),
    ):
        assert answer.status == 422, answer.text
        assert answer.problem.errors[0].pointer in ("/schedule_time", "/recurrence/until")
    if recurring:
        rule = when["recurrence"]
        answer = await api.ask("POST", f"{path}/schedule", json={"recurrence": rule})
        assert answer.status in (202, 200) if at > "2026" else 422


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"sender_name": "Ann\u2028Bcc: x"}, "/sender_name"),
        ({"sender_name": "Ann\u0085x"}, "/sender_name"),
        ({"subject": "Hi\u2029"}, "/subject"),
        ({"reply_to": "a@b.example, c@d.example"}, "/reply_to"),
        ({"reply_to": '"a@b.example, c"@d.example, e@f.example'}, "/reply_to"),
        ({"options": {"topic": "a>"}}, "/options/topic"),
        ({"options": {"topic": "a, b"}}, "/options/topic"),
        ({"options": {"stream": "a\r\nb"}}, "/options/stream"),
        ({"options": {"pool": "a\tb"}}, "/options/pool"),
        ({"options": {"postal_address": "1 Street\x0b"}}, "/options/postal_address"),
    ],
)
async def test_what_cannot_stand_in_a_header_is_refused(api: Api, given: dict[str, Any], pointer: str) -> None:
    for answer in (await create(api, **given), await api.ask("PUT", await made(api), json=given)):
        assert answer.status == 422, answer.text
        assert [each.pointer for each in answer.problem.errors] == [pointer]


async def test_a_postal_address_may_have_lines(api: Api) -> None:
    address = "Acme Ltd\r\n1 Street\nTown"
    path = await made(api, options={"postal_address": address})

    assert (await shown(api, path))["options"]["postal_address"] == address
