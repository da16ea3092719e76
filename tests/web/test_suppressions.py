"""`/api/v1/suppressions` and `/u/{token}`: who is not mailed any more, and how readers say so."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mailerd.queue.ids import SUPPRESSION, format_id
from mailerd.queue.suppression import Reason, Suppression
from mailerd.wire.tokens import Tokens
from mailerd.wire.unsubscribe import PURPOSE, Subscription
from tests.web.conftest import EMAIL, Answer, Api

PATH = "/api/v1/suppressions"
SECRET = b"secret of the installation"


async def add(api: Api, address: str = "ann@example.net", key: str = "all", **more: Any) -> Answer:
    return await api.ask("POST", PATH, json={"address": address, **more}, key=key)


async def listed(api: Api, query: str = "", **asking: Any) -> list[str]:
    answer = await api.ask("GET", f"{PATH}{query}", **asking)
    assert answer.status == 200, answer.json
    return [each["address"] for each in answer.json["data"]]


async def test_an_address_is_added_listed_shown_and_removed(api: Api) -> None:
    answer = await add(api, "Ann@Example.NET", detail="asked by phone")
    (entry,) = answer.json["data"]
    assert (answer.status, answer.json["added"]) == (201, 1)
    assert (entry["address"], entry["reason"], entry["detail"]) == ("ann@example.net", "manual", "asked by phone")
    assert await listed(api) == await listed(api, "?address=ANN@example.net") == ["ann@example.net"]
    assert (await api.ask("GET", f"{PATH}/{entry['id']}")).json["data"] == [entry]
    assert (await api.ask("GET", f"{PATH}/ANN@example.net")).json["data"] == [entry]
    assert (await api.ask("GET", f"{PATH}/bob@example.net")).status == 404

    again = await add(api)
    assert (again.status, again.json) == (200, {"added": 0, "data": [entry]})
    removed = await api.ask("DELETE", f"{PATH}/ann@example.net")

    assert [each["id"] for each in removed.json["data"]] == [entry["id"]]
    assert await listed(api) == []
    assert (await api.ask("DELETE", f"{PATH}/{entry['id']}")).status == 404


async def test_another_tenant_sees_and_removes_nothing(api: Api) -> None:
    id_ = (await add(api)).json["data"][0]["id"]

    assert await listed(api, key="stranger") == []
    assert (await api.ask("GET", f"{PATH}/{id_}", key="stranger")).status == 404
    for which in (id_, "ann@example.net"):
        assert (await api.ask("DELETE", f"{PATH}/{which}", key="stranger")).status == 404
    assert await listed(api) == ["ann@example.net"]


async def test_who_complained_stays_unless_it_is_said_on_purpose(api: Api) -> None:
    await add(api, reason="complaint")

    refused = await api.ask("DELETE", f"{PATH}/ann@example.net")

    assert (refused.status, refused.json["code"]) == (409, "complaint")
    assert (await api.ask("DELETE", f"{PATH}/ann@example.net?force=true")).status == 200


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"address": "nobody"}, "/address"),
        ({"address": "@"}, "/address"),
        ({"address": "a@b.example", "reason": "because"}, "/reason"),
        ({"address": "a@b.example", "topic": "news"}, "/stream"),
        ({"address": "a@b.example", "expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
        ({"address": "a@b.example", "tenant": "other"}, "/tenant"),
        ({"address": "a@b.example", "stream": "marketting"}, "/stream"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_says_where(api: Api, body: dict[str, Any], pointer: str) -> None:
    single = await api.ask("POST", PATH, json=body)
    batch = await api.ask("POST", f"{PATH}/batch", json={"suppressions": [{"address": "x@y.example"}, body]})

    assert (single.status, single.json["errors"][0]["pointer"]) == (422, pointer)
    assert (batch.status, batch.json["errors"][0]["pointer"]) == (422, f"/suppressions/1{pointer}")
    assert await listed(api) == []


async def test_a_batch_answers_with_all_of_its_entries_and_how_many_are_new(api: Api) -> None:
    await add(api)
    both = {"suppressions": [{"address": "bob@example.net"}, {"address": "ann@example.net"}]}

    first = await api.ask("POST", f"{PATH}/batch", json=both)
    again = await api.ask("POST", f"{PATH}/batch", json=both)

    assert (first.status, first.json["added"], again.status, again.json["added"]) == (201, 1, 200, 0)
    assert [each["address"] for each in first.json["data"]] == ["bob@example.net", "ann@example.net"]
    assert again.json["data"] == first.json["data"]


async def test_a_stream_that_nothing_is_sent_on_is_refused_by_name(api: Api) -> None:
    single = await add(api, stream="marketting")
    file = await api.ask(
        "POST", f"{PATH}/imports?stream=marketting", data=b"a@b.example\n", headers={"Content-Type": "text/csv"}
    )
    progress = await imported(api, b"address,stream\nann@example.net,marketting\nbob@example.net,marketing\n")

    assert (single.status, single.json["code"]) == (422, "unknown_stream")
    assert "known: marketing, transactional" in single.json["detail"]
    assert (file.status, file.json["code"]) == (422, "unknown_stream")
    assert (progress["added"], progress["refused"]) == (1, 1)
    assert "marketting" in progress["problems"][0]["problem"]


async def test_what_is_over_is_listed_only_when_asked_for(api: Api) -> None:
    tomorrow = (api.relay.clock.now + timedelta(days=1)).isoformat()
    id_ = (await add(api, expires_at=tomorrow)).json["data"][0]["id"]
    await add(api, "bob@example.net")
    api.relay.clock.now += timedelta(days=2)

    assert await listed(api) == ["bob@example.net"]
    assert await listed(api, "?expired=true") == ["bob@example.net", "ann@example.net"]
    assert (await api.ask("GET", f"{PATH}/ann@example.net")).status == 404
    assert (await api.ask("GET", f"{PATH}/{id_}")).status == 200
    assert (await api.ask("DELETE", f"{PATH}/ann@example.net")).status == 404


async def for_everybody(api: Api, address: str = "ann@example.net") -> str:
    entry = Suppression(
        address, reason=Reason.BOUNCE, source="smtp", detail="said to another", created_at=api.relay.clock.now
    )
    (added,) = await api.relay.relay.suppressions.add([entry])
    return format_id(SUPPRESSION, added.id)


@pytest.mark.parametrize("key", ["all", "stranger"])
async def test_who_is_bound_by_an_entry_for_all_tenants_sees_that_and_cannot_remove_it(api: Api, key: str) -> None:
    id_ = await for_everybody(api)

    (entry,) = (await api.ask("GET", f"{PATH}?address=ann@example.net", key=key)).json["data"]
    assert (entry["id"], entry["scope"], entry["reason"], entry["detail"]) == (id_, "global", "bounce", "")
    for which in (id_, "ann@example.net"):
        assert (await api.ask("GET", f"{PATH}/{which}", key=key)).json["data"] == [entry]
        refused = await api.ask("DELETE", f"{PATH}/{which}", key=key)
        assert (refused.status, refused.json["code"]) == (403, "global_suppression")
    await add(api, key=key)
    scopes = [each["scope"] for each in (await api.ask("GET", f"{PATH}/ann@example.net", key=key)).json["data"]]
    assert scopes == ["tenant", "global"]
    assert len((await api.ask("DELETE", f"{PATH}/ann@example.net", key=key)).json["data"]) == 1


async def test_nobody_but_operators_reads_the_list_of_what_binds_all_tenants(api: Api) -> None:
    """With `suppression.scope: global` it has the addresses that other tenants mail to."""
    await add(api, "own@example.net")
    await for_everybody(api)
    await add(api, "theirs@example.net", key="stranger")

    assert await listed(api) == ["ann@example.net", "own@example.net"]
    assert await listed(api, key="stranger") == ["theirs@example.net"]
    page = (await api.ask("GET", f"{PATH}?limit=1")).json
    assert await listed(api, f"?limit=1&cursor={page['next_cursor']}") == ["own@example.net"]


async def test_the_answer_to_an_email_names_the_entry_as_it_can_be_asked_for(api: Api) -> None:
    id_ = (await add(api, "bob@example.net")).json["data"][0]["id"]

    answer = await api.send(EMAIL | {"to": ["ann@example.net", "bob@example.net"]})
    refused = await api.send(EMAIL | {"to": ["bob@example.net"]})

    (left_out,) = answer.json["suppressed"]
    assert left_out["suppression"] == id_
    assert id_ in left_out["detail"]
    assert f"remove suppression {id_}" in refused.json["detail"]


async def test_pages_go_on_where_they_ended(api: Api) -> None:
    several = [{"address": f"u{n}@example.net"} for n in range(7)]
    assert (await api.ask("POST", f"{PATH}/batch", json={"suppressions": several})).json["added"] == 7
    seen, query = [], "?limit=3"
    while query:
        page = (await api.ask("GET", f"{PATH}{query}")).json
        seen += [each["address"] for each in page["data"]]
        query = f"?limit=3&cursor={page['next_cursor']}" if page["has_more"] else ""
    cursor = (await api.ask("GET", f"{PATH}?limit=3")).json["next_cursor"]

    assert sorted(seen) == [f"u{n}@example.net" for n in range(7)]
    assert (await api.ask("GET", f"{PATH}?reason=manual&cursor={cursor}")).json["code"] == "invalid_cursor"


async def imported(api: Api, text: bytes, query: str = "") -> Any:
    answer = await api.ask("POST", f"{PATH}/imports{query}", data=text, headers={"Content-Type": "text/csv"})
    assert answer.status == 202, answer.json
    async with asyncio.timeout(60):
        while (progress := (await api.ask("GET", answer.headers["Location"])).json)["state"] == "running":
            await asyncio.sleep(0.02)
    assert (await api.ask("GET", answer.headers["Location"], key="stranger")).status == 404
    return progress


async def test_a_file_is_imported_beside_everything_else_and_exported_again(api: Api) -> None:
    text = b"\xef\xbb\xbfEmail;Reason\r\nann@example.net;spam\nBOB@example.net;\rnobody;\r\nann@example.net;spam\r\n"

    first, again = await imported(api, text, "?reason=unsubscribe&stream=marketing"), await imported(api, text)

    assert (first["state"], first["read"], first["added"], first["refused"]) == ("done", 4, 2, 1)
    assert first["there"] == 1
    assert first["id"].startswith("imp_")
    assert [each["id"] for each in (await api.ask("GET", f"{PATH}/imports")).json["data"]] == [again["id"], first["id"]]
    assert (await api.ask("GET", f"{PATH}/imports", key="stranger")).json["data"] == []
    assert first["problems"][0]["problem"] == "the address has no @: write local@domain"
    assert again["added"] == 2  # for all streams, which is another scope
    exported = await api.ask("GET", f"{PATH}/export")
    assert exported.headers["Content-Type"].startswith("text/csv")
    lines = exported.text.splitlines()
    assert lines[0].startswith("address,tenant,stream,topic,reason")
    assert lines[1].startswith("ann@example.net,default,marketing,,complaint")
    assert lines[2].startswith("bob@example.net,default,marketing,,unsubscribe")
    assert (await imported(api, exported.text.encode()))["added"] == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"PK\x03\x04\x00\x00", "no text file"),
        (b"name,age\r\nann,12\r\n", "neither an address nor a column called address"),
        ("ann@example.net\n\xe4".encode("latin-1"), "not UTF-8"),
        (b"x" * 100_000, "a line has more than"),
    ],
)
async def test_what_is_no_list_of_addresses_fails_and_says_why(api: Api, text: bytes, error: str) -> None:
    progress = await imported(api, text)

    assert progress["state"] == "failed"
    assert error in progress["error"]


async def test_no_line_reaches_into_another_tenant_or_all_of_them(api: Api) -> None:
    progress = await imported(api, b"address,tenant\nann@example.net,other\nbob@example.net,\nx@example.net,*\n")

    assert (progress["added"], progress["refused"]) == (1, 2)
    assert "only operators" in progress["problems"][1]["problem"]
    assert await listed(api, key="stranger") == []


# -- /u/{token}


def token(**changes: Any) -> str:
    subscription = Subscription("default", "marketing", "", "", "ann@example.net", 1 << 40, 1)._replace(**changes)
    return subscription.seal(Tokens(SECRET, PURPOSE))


async def test_looking_at_the_link_changes_nothing(api: Api) -> None:
    for _ in range(3):
        page = await api.ask("GET", f"/u/{token(address='a<b>@example.net')}", key="none")

    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<strong>marketing</strong> mail from <strong>Acme &amp; Co</strong>" in page.text
    assert "a&lt;b&gt;@example.net" in page.text
    assert await listed(api) == []


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b"List-Unsubscribe=One-Click", "application/x-www-form-urlencoded"),
        (
            b'--x\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
async def test_one_click_unsubscribes_at_once_and_once(api: Api, body: bytes, type_: str) -> None:
    for _ in range(2):
        answer = await api.ask("POST", f"/u/{token()}", key="none", data=body, headers={"Content-Type": type_})
        assert answer.status == 200
    (entry,) = (await api.ask("GET", PATH)).json["data"]

    assert (entry["address"], entry["stream"], entry["reason"]) == ("ann@example.net", "marketing", "unsubscribe")
    assert entry["source"] == "one-click"
    types = [row["type"] for row in await api.relay.pool.fetch("SELECT type FROM events ORDER BY type")]
    assert types == ["recipient.unsubscribed", "suppression.added"]


async def test_the_button_of_the_page_works_and_a_topic_is_left_alone(api: Api) -> None:
    page = b"List-Unsubscribe=One-Click&by=page"
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    answer = await api.ask("POST", f"/u/{token(topic='offers')}", key="none", data=page, headers=form)

    assert "offers" in answer.text
    (entry,) = (await api.ask("GET", PATH)).json["data"]
    assert (entry["topic"], entry["source"]) == ("offers", "page")


@pytest.mark.parametrize("change", [slice(1, None), slice(0, -2), slice(0, 10)])
async def test_a_link_that_is_cut_says_so_and_does_nothing(api: Api, change: slice) -> None:
    for method in ("GET", "POST"):
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await api.ask(
            method, f"/u/{token()[change]}", key="none", data=b"" if method == "POST" else None, headers=form
        )
        assert (answer.status, "does not work" in answer.text) == (404, True)
    other = Subscription("default", "marketing", "", "", "ann@example.net", 1, 1).seal(Tokens(SECRET, "return-path"))
    assert (await api.ask("GET", f"/u/{other}", key="none")).status == 404
    assert await listed(api) == []


async def test_an_old_link_works_for_as_long_as_the_installation(api: Api) -> None:
    link = token(message_id=1)
    api.relay.clock.now += timedelta(days=4000)

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await api.ask("POST", f"/u/{link}", key="none", data=b"x=y", headers=form)).status == 200
    assert await listed(api) == ["ann@example.net"]


async def click(api: Api, link: str, **form: str) -> Answer:
    return await api.ask("POST", f"/u/{link}", key="none", data={"List-Unsubscribe": "One-Click", "by": "page"} | form)


async def test_who_has_left_already_is_told_so(api: Api) -> None:
    assert "<h1>You are unsubscribed</h1>" in (await click(api, token())).text

    for page in (await click(api, token()), await api.ask("GET", f"/u/{token()}", key="none")):
        assert "<h1>You are unsubscribed already</h1>" in page.text
    assert "Shall" in (await api.ask("GET", f"/u/{token(topic='offers')}", key="none")).text


async def test_who_left_by_mistake_comes_back_within_the_hour(api: Api) -> None:
    assert 'name="again"' in (await click(api, token())).text
    await add(api, reason="bounce")

    back = await click(api, token(), again="yes")

    assert "<h1>You are subscribed again</h1>" in back.text
    assert [each["reason"] for each in (await api.ask("GET", PATH)).json["data"]] == ["bounce"]
    assert await api.relay.pool.fetchval("SELECT data->>'actor' FROM events WHERE type = 'suppression.removed'") == (
        "page"
    )


async def test_leaving_and_coming_back_makes_no_records_without_end(api: Api) -> None:
    for _ in range(5):
        assert 'name="again"' in (await click(api, token())).text
        assert "<h1>You are subscribed again</h1>" in (await click(api, token(), again="yes")).text

    assert 'name="again"' not in (await click(api, token())).text
    assert "<h1>You are unsubscribed already</h1>" in (await click(api, token(), again="yes")).text
    assert await listed(api) == ["ann@example.net"]


async def test_who_changes_his_mind_again_and_again_keeps_no_other_recipient_from_coming_back(api: Api) -> None:
    other = token(address="bob@example.net", n=2)
    for _ in range(5):
        await click(api, token())
        await click(api, token(), again="yes")

    assert 'name="again"' in (await click(api, other)).text
    assert "<h1>You are subscribed again</h1>" in (await click(api, other, again="yes")).text


async def test_nobody_is_brought_back_later_or_from_where_another_took_them(api: Api) -> None:
    await click(api, token())
    api.relay.clock.now += timedelta(hours=2)
    assert 'name="again"' not in (await click(api, token())).text
    assert "<h1>You are unsubscribed already</h1>" in (await click(api, token(), again="yes")).text
    await add(api, "bob@example.net", reason="unsubscribe", stream="marketing")
    assert "already" in (await click(api, token(address="bob@example.net"), again="yes")).text

    assert sorted(await listed(api)) == ["ann@example.net", "bob@example.net"]


async def test_again_without_having_left_does_nothing_at_all(api: Api) -> None:
    page = await click(api, token(), again="yes")

    assert "<h1>Unsubscribe</h1>" in page.text
    assert await listed(api) == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (None, {}),
        (b"List-Unsubscribe=One-Click", {"Content-Type": "text/plain"}),
        (b"{}", {"Content-Type": "application/json"}),
        (b"", {"Content-Type": "application/x-www-form-urlencoded"}),
    ],
)
async def test_a_post_of_whatever_kind_means_to_leave(api: Api, body: bytes | None, headers: dict[str, str]) -> None:
    skip = {"skip_auto_headers": ["Content-Type"]}
    answer = await api.ask("POST", f"/u/{token()}", key="none", data=body, headers=headers, **skip)

    assert answer.status == 200
    assert await listed(api) == ["ann@example.net"]


async def test_programs_that_look_at_the_head_only_are_answered(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}/u/{token()}"
    async with api.session.head(url) as head, api.session.get(url) as page:
        assert (head.status, await head.read()) == (200, b"")
        assert head.headers["Content-Length"] == page.headers["Content-Length"]
        assert head.headers["Content-Type"] == page.headers["Content-Type"]
    assert await listed(api) == []


@pytest.mark.parametrize("more", ["/", "/x", "/x/y"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_link_with_something_behind_it_shows_the_page_for_people(api: Api, method: str, more: str) -> None:
    async with api.session.request(method, f"http://127.0.0.1:{api.port}/u/{token()}{more}") as answer:
        assert (answer.status, answer.content_type) == (404, "text/html")
        assert "does not work" in await answer.text()
    assert await listed(api) == []
