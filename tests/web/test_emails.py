import base64
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest

from mailerd.errors import Refused
from mailerd.web.app import OPERATIONS
from tests.web.conftest import EMAIL, Api


def batch(*emails: object) -> dict[str, object]:
    return {"emails": list(emails)}


async def test_a_message_is_answered_with_202_and_an_id_for_every_recipient(api: Api) -> None:
    answer = await api.send(
        EMAIL | {"to": ["Ann <ann@example.net>"], "cc": "bob@example.net", "bcc": [{"email": "eve@EXAMPLE.net"}]}
    )

    assert answer.status == 202
    assert answer.json["id"].startswith("msg_")
    assert answer.json["status"] == "queued"
    assert answer.json["recipients"] == [
        {"id": answer.json["id"] + ".1", "email": "ann@example.net", "kind": "to"},
        {"id": answer.json["id"] + ".2", "email": "bob@example.net", "kind": "cc"},
        {"id": answer.json["id"] + ".3", "email": "eve@example.net", "kind": "bcc"},
    ]


async def test_bcc_is_in_the_envelope_and_in_no_header(api: Api) -> None:
    await api.send(EMAIL | {"bcc": "eve@example.net"})

    stored = api.relay.last
    assert [command.address.address for command in stored.envelope.recipients] == ["ann@example.net", "eve@example.net"]
    assert b"eve" not in stored.content


async def test_who_is_named_twice_gets_one_copy(api: Api) -> None:
    answer = await api.send(EMAIL | {"cc": "ann@EXAMPLE.NET", "bcc": ["ann@example.net"]})

    assert [(known["email"], known["kind"]) for known in answer.json["recipients"]] == [("ann@example.net", "to")]


async def test_the_message_has_what_was_asked_for(api: Api) -> None:
    picture = bytes(range(256))
    await api.send(
        {
            "from": {"email": "shop@bücher.example", "name": "Bücher, Müller & Söhne"},
            "to": ['"Ann, A." <ann@example.net>'],
            "reply_to": "help@example.com",
            "subject": "Grüße",
            "html": '<p>Hello</p><img src="cid:logo">',
            "headers": {"X-Order": "1001"},
            "attachments": [
                {
                    "filename": "logo.png",
                    "content": base64.b64encode(picture).decode(),
                    "content_type": "image/png",
                    "content_id": "logo",
                },
                {"filename": "bill.txt", "content": base64.b64encode(b"1 EUR").decode(), "content_type": "text/plain"},
            ],
        }
    )

    stored = api.relay.last
    message: Any = message_from_bytes(stored.content, policy=default)
    assert stored.envelope.sender == "shop@xn--bcher-kva.example"
    assert message["From"].addresses[0].display_name == "Bücher, Müller & Söhne"
    assert message["To"].addresses[0].display_name == "Ann, A."
    assert message["Reply-To"] == "help@example.com"
    assert message["Subject"] == "Grüße"
    assert message["X-Order"] == "1001"
    assert message.get_body(("plain",)).get_content().strip().startswith("Hello")
    parts = {part.get_filename(): part for part in message.walk() if part.get_filename()}
    assert parts["logo.png"].get_content() == picture
    assert parts["logo.png"]["Content-ID"] == "<logo>"
    assert parts["logo.png"].get_content_disposition() == "inline"
    assert parts["bill.txt"].get_content_disposition() == "attachment"


async def test_options_go_into_the_envelope(api: Api) -> None:
    answer = await api.send(
        EMAIL
        | {
            "tags": ["order"],
            "labels": {"order_id": "1001"},
            "stream": "marketing",
            "pool": "warm",
            "scheduled_at": "2026-11-23T12:00:00+01:00",
            "expires_at": "2026-11-24T12:00:00Z",
        }
    )

    envelope = api.relay.last.envelope
    assert answer.json["status"] == "scheduled"
    assert envelope.labels == {"order": "", "order_id": "1001"}
    assert (envelope.stream, envelope.pool) == ("marketing", "warm")
    assert envelope.not_before == datetime(2026, 11, 23, 11, tzinfo=UTC)
    assert envelope.expires_at == datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize("size", [10, 70_000])
async def test_large_and_small_messages_are_composed_alike(api: Api, size: int) -> None:
    """Large ones in a thread."""
    answer = await api.send(EMAIL | {"text": "x " * size, "html": "<p>x</p>"})

    assert answer.status == 202
    assert api.relay.last.envelope.size == len(api.relay.last.content)


FAULTS: list[tuple[dict[str, object], list[str]]] = [
    ({"from": "nobody"}, ["/from"]),
    ({"from": {"email": "nobody"}}, ["/from/email"]),
    ({"from": ""}, ["/from"]),
    ({"from": "Ann <ann@example.com>, bob@example.com"}, ["/from"]),
    ({"from": "Ann\r\nBcc: eve@example.net <ann@example.com>"}, ["/from"]),
    ({"from": {"email": "ann@example.com", "name": "A\nBcc: x"}}, ["/from/email"]),
    ({"from": 1}, ["/from"]),
    ({"to": ["ann@example.net", "bob@", "@x"]}, ["/to/1", "/to/2"]),
    ({"to": "ann@example.net\r\nRCPT TO:<eve@example.net>"}, ["/to"]),
    ({"to": [], "cc": []}, ["/to"]),
    ({"to": "bob", "reply_to": ["x"]}, ["/to", "/reply_to/0"]),
    ({"to": [{"email": "ann@example.net", "nick": "A"}]}, ["/to/0/nick"]),
    ({"to": [f"ann{n}@example.net" for n in range(101)]}, ["/to"]),
    ({"subject": "Hello\r\nBcc: eve@example.net"}, ["/subject"]),
    ({"headers": {"X-A/B": "1\r\nBcc: x"}}, ["/headers/X-A~1B"]),
    ({"headers": {"Bcc": "eve@example.net"}}, ["/headers/Bcc"]),
    ({"headers": {"DKIM-Signature": "v=1"}}, ["/headers/DKIM-Signature"]),
    ({"headers": {"Bad Name": "1"}}, ["/headers/Bad Name"]),
    ({"text": None}, ["/text"]),
    ({"attachments": [{"content": "?"}]}, ["/attachments/0/content"]),
    ({"attachments": [{"content": "", "filename": "a\r\nb"}]}, ["/attachments/0/filename"]),
    ({"attachments": [{"content": "", "content_type": "text"}]}, ["/attachments/0/content_type"]),
    ({"tags": ["a b"]}, ["/tags/0"]),
    ({"tags": ["a\n"]}, ["/tags/0"]),
    ({"tags": ["a"], "labels": {"a": "1"}}, ["/tags"]),
    ({"labels": {"a": "\x00"}}, ["/labels"]),
    ({"scheduled_at": "tomorrow"}, ["/scheduled_at"]),
    ({"scheduled_at": "2026-11-23T12:00:00"}, ["/scheduled_at"]),
    ({"scheduled_at": "2026-11-23T12:00:00Z", "expires_at": "2026-11-23T11:00:00Z"}, ["/expires_at"]),
    ({"template": "tpl_1"}, ["/template"]),
    ({"a/b~": 1}, ["/a~1b~0"]),
]


@pytest.mark.parametrize(("change", "pointers"), FAULTS, ids=[str(change)[:50] for change, _ in FAULTS])
async def test_each_fault_is_told_with_a_pointer(api: Api, change: dict[str, object], pointers: list[str]) -> None:
    answer = await api.send(EMAIL | change)

    assert answer.status == 422
    assert answer.problem.code == "invalid"
    assert [error.pointer for error in answer.problem.errors] == pointers
    assert api.relay.messages == {}


async def test_a_missing_field_is_pointed_at(api: Api) -> None:
    answer = await api.send({"to": "ann@example.net", "text": "x"})

    assert [(error.pointer, error.code) for error in answer.problem.errors] == [("/from", "missing_field")]


@pytest.mark.parametrize("changes", [{"max_body": 4_000_000, "memory": 4_000_000}], indirect=True)
async def test_a_hundred_thousand_recipients_are_refused_at_once(api: Api) -> None:
    answer = await api.send(EMAIL | {"to": ["a@b.c"] * 100_000})

    assert answer.status == 422
    assert [error.code for error in answer.problem.errors] == ["too_many_recipients"]


async def test_what_the_relay_refuses_is_told_by_name_and_field(api: Api) -> None:
    answer = await api.send(key="shop")

    assert answer.status == 403
    assert answer.problem.code == "sender_not_allowed"
    assert [error.pointer for error in answer.problem.errors] == ["/from"]


async def test_a_batch_takes_the_good_and_tells_the_bad(api: Api) -> None:
    good = EMAIL | {"from": "a@shop.example"}
    answer = await api.ask(
        "POST", "/api/v1/emails/batch", key="shop", json=batch(good, EMAIL | {"to": "x"}, EMAIL, 7, good)
    )

    assert answer.status == 202
    assert (answer.json["accepted"], answer.json["refused"]) == (2, 3)
    assert [item["status"] for item in answer.json["data"]] == [202, 422, 403, 422, 202]
    assert [item["error"]["errors"][0]["pointer"] for item in answer.json["data"] if item["error"]] == [
        "/emails/1/to",
        "/emails/2/from",
        "/emails/3",
    ]
    assert len(api.relay.messages) == 2


@pytest.mark.parametrize(
    ("emails", "status", "pointers"),
    [
        ([EMAIL | {"to": "x"}, EMAIL | {"from": 1}], 422, ["/emails/0/to", "/emails/1/from"]),
        ([EMAIL, EMAIL], 403, ["/emails/0/from", "/emails/1/from"]),
        ([EMAIL, {}], 422, ["/emails/0/from", "/emails/1/from"]),
        ([], 422, ["/emails"]),
        ([EMAIL] * 1001, 422, ["/emails"]),
    ],
)
async def test_a_batch_of_which_nothing_is_taken_is_a_problem(
    api: Api, emails: list[object], status: int, pointers: list[str]
) -> None:
    answer = await api.ask("POST", "/api/v1/emails/batch", key="shop", json=batch(*emails))

    assert answer.status == status
    assert [error.pointer for error in answer.problem.errors] == pointers
    assert api.relay.messages == {}


async def test_a_raw_message_goes_as_it_is_with_line_ends_mended(api: Api) -> None:
    raw = b"From: shop@example.com\nSubject: Hello\r\n\r\nOne\n.\nTwo\r\n"
    answer = await api.ask(
        "POST",
        "/api/v1/emails/raw",
        json={"from": "bounces@example.com", "to": ["ann@example.net"], "raw": base64.b64encode(raw).decode()},
    )

    assert answer.status == 202
    assert api.relay.last.envelope.sender == "bounces@example.com"
    assert api.relay.last.content == b"From: shop@example.com\r\nSubject: Hello\r\n\r\nOne\r\n.\r\nTwo\r\n"


async def test_a_raw_message_may_be_the_body_with_its_envelope_in_the_query(api: Api) -> None:
    answer = await api.ask(
        "POST",
        "/api/v1/emails/raw?from=shop@example.com&to=ann@example.net&to=bob@example.net&tag=a&tag=b",
        data="Subject: Grüße\r\n\r\nHello\r\n".encode(),
        headers={"Content-Type": "message/rfc822"},
    )

    assert answer.status == 202
    assert [known["email"] for known in answer.json["recipients"]] == ["ann@example.net", "bob@example.net"]
    assert api.relay.last.envelope.labels == {"a": "", "b": ""}
    assert api.relay.last.envelope.eight_bit


@pytest.mark.parametrize(
    ("query", "raw", "parameters"),
    [
        ("from=shop@example.com", b"A: b\r\n\r\n", ["to"]),
        ("from=shop@example.com&to=x&to=ann@example.net", b"A: b\r\n\r\n", ["to"]),
        ("from=shop@example.com&from=x@example.com&to=ann@example.net", b"A: b\r\n\r\n", ["from"]),
        ("from=shop@example.com&to=ann@example.net&nonsense=1", b"A: b\r\n\r\n", ["nonsense"]),
        ("from=shop@example.com&to=ann@example.net", b"A: b\r\r\n\r\n", [""]),
        ("from=shop@example.com&to=ann@example.net", b"A: \x00\r\n\r\n", [""]),
        ("from=shop@example.com&to=ann@example.net", b"no header", [""]),
        ("from=shop@example.com&to=ann@example.net", b"", [""]),
    ],
)
async def test_faults_of_a_raw_body_name_the_query_parameter(
    api: Api, query: str, raw: bytes, parameters: list[str]
) -> None:
    answer = await api.ask("POST", f"/api/v1/emails/raw?{query}", data=raw, headers={"Content-Type": "message/rfc822"})

    assert answer.status == 422
    assert [error.parameter for error in answer.problem.errors] == parameters


@pytest.mark.parametrize("changes", [{"max_message": 100_000}], indirect=True)
async def test_a_message_too_large_once_composed_is_refused(api: Api) -> None:
    answer = await api.send(EMAIL | {"text": "x" * 110_000})

    assert answer.status == 413
    assert answer.problem.code == "message_too_large"


async def test_the_same_key_and_body_are_done_once_and_the_answer_is_given_again(api: Api) -> None:
    first = await api.send(headers={"Idempotency-Key": "order 1001"})
    again = await api.send(headers={"Idempotency-Key": "order 1001"})

    assert again.body == first.body
    assert again.status == 202
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(api.relay.messages) == 1


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    await api.send(headers={"Idempotency-Key": "k"})
    answer = await api.send(EMAIL | {"subject": "Other"}, headers={"Idempotency-Key": "k"})

    assert (answer.status, answer.problem.code) == (422, "idempotency_key_reused")


async def test_the_same_key_of_another_owner_or_path_is_another_key(api: Api) -> None:
    await api.send(headers={"Idempotency-Key": "k"})
    other = await api.send(key="sender", headers={"Idempotency-Key": "k"})
    there = await api.ask("POST", "/api/v1/emails/batch", json=batch(EMAIL), headers={"Idempotency-Key": "k"})

    assert (other.status, there.status) == (202, 202)
    assert len(api.relay.messages) == 3


async def test_a_key_that_is_being_worked_on_is_a_conflict(api: Api) -> None:
    api.relay.busy_keys.add("k")
    answer = await api.send(headers={"Idempotency-Key": "k"})

    assert (answer.status, answer.problem.code) == (409, "idempotency_in_progress")
    assert answer.headers["Retry-After"] == "1"


async def test_what_failed_leaves_its_key_free(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await api.send(EMAIL | {"to": "x"}, headers=headers)).status == 422
    assert (await api.send(key="shop", headers=headers)).status == 403
    good = EMAIL | {"from": "a@shop.example"}
    assert (await api.send(good, key="shop", headers=headers)).status == 202


@pytest.mark.parametrize("key", ["", "k" * 256, "k\u00fc"])
async def test_a_key_that_is_no_key_is_refused(api: Api, key: str) -> None:
    answer = await api.send(headers={"Idempotency-Key": key})

    assert (answer.status, answer.problem.code) == (400, "invalid_idempotency_key")


async def test_a_credential_that_has_used_its_rate_is_told_when_to_come_back(api: Api) -> None:
    answers = [await api.send(key="slow") for _ in range(4)]

    assert [answer.status for answer in answers] == [202, 202, 202, 429]
    assert answers[0].headers["RateLimit-Policy"] == '"messages";q=3;w=3600'
    assert answers[0].headers["RateLimit"].startswith('"messages";r=2;t=')
    assert answers[3].headers["RateLimit"].startswith('"messages";r=0;t=')
    assert 1000 < int(answers[3].headers["Retry-After"]) <= 1200
    assert answers[3].problem.retry_after == int(answers[3].headers["Retry-After"])


async def test_a_refusal_for_its_rate_by_the_relay_is_429_too(api: Api) -> None:
    api.relay.trouble = Refused(451, "4.7.1", "too many recipients; try again later", name="rate_limited", http=429)
    answer = await api.send()

    assert (answer.status, answer.problem.code) == (429, "rate_limited")
    assert "Retry-After" in answer.headers


async def test_an_email_tells_where_it_stands(api: Api) -> None:
    sent = await api.send(EMAIL | {"tags": ["order"], "labels": {"n": "1"}})
    answer = await api.ask("GET", f"/api/v1/emails/{sent.json['id']}", key="reader")

    assert answer.status == 200
    assert answer.json["tags"] == ["order"]
    assert answer.json["labels"] == {"n": "1"}
    (recipient,) = answer.json["recipients"]
    assert recipient["id"] == sent.json["recipients"][0]["id"]
    assert (recipient["state"], recipient["due_at"], recipient["reason"]) == (
        "queued",
        "2026-11-22T12:00:00Z",
        "greylisted",
    )


@pytest.mark.parametrize("name", ["msg_0000000000000", "msg_x", "1", "%00", "%ff", "msg_zzzzzzzzzzzzz", "a" * 5000])
async def test_an_unknown_email_is_not_found(api: Api, name: str) -> None:
    assert (await api.ask("GET", f"/api/v1/emails/{name}")).status == 404


async def test_another_tenants_email_is_not_found(api: Api) -> None:
    path = f"/api/v1/emails/{(await api.send()).json['id']}"

    assert (await api.ask("GET", path, key="stranger")).status == 404
    assert (await api.ask("POST", path + "/cancel", key="stranger")).status == 404
    assert (await api.ask("GET", "/api/v1/emails", key="stranger")).json["data"] == []


async def test_a_search_is_paged_by_cursor_without_gap_or_repetition(api: Api) -> None:
    sent = [(await api.send()).json["id"] for _ in range(7)]
    found: list[str] = []
    cursor = ""
    for _ in range(10):
        page = (await api.ask("GET", f"/api/v1/emails?limit=3&sender=shop@example.com{cursor}")).json
        found += [line["id"] for line in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert page["next_cursor"] is None
    assert found == sent[::-1]


async def test_a_cursor_is_good_for_its_own_search_only(api: Api) -> None:
    for _ in range(3):
        await api.send()
    cursor = (await api.ask("GET", "/api/v1/emails?limit=1")).json["next_cursor"]
    forged = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")

    assert (await api.ask("GET", f"/api/v1/emails?limit=2&cursor={cursor}")).status == 200
    for query, key in [
        (f"sender=x@example.com&cursor={cursor}", "all"),
        (f"cursor={cursor}", "stranger"),
        (f"cursor={forged}", "all"),
        ("cursor=", "all"),
        ("cursor=%C3%BC", "all"),
        ("cursor=A", "all"),
    ]:
        answer = await api.ask("GET", f"/api/v1/emails?{query}", key=key)
        assert (answer.status, answer.problem.code) == (400, "invalid_cursor"), query


async def test_a_search_filters(api: Api) -> None:
    one = (await api.send(EMAIL | {"tags": ["a"], "to": "one@example.net"})).json["id"]
    await api.send(EMAIL | {"tags": ["b"]})

    for query in ("tag=a", "recipient=one@EXAMPLE.net"):
        answer = await api.ask("GET", f"/api/v1/emails?{query}")
        assert [line["id"] for line in answer.json["data"]] == [one]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("state=lost", "state"),
        ("after=yesterday", "after"),
        ("after=2026-11-22T12:00:00", "after"),
        ("recipient=x", "recipient"),
        ("sender=%00@example.com", "sender"),
        ("tag=%00", "tag"),
        ("page=1", "page"),
    ],
)
async def test_a_bad_query_names_its_parameter(api: Api, query: str, parameter: str) -> None:
    answer = await api.ask("GET", f"/api/v1/emails?{query}")

    assert answer.status == 422
    assert [error.parameter for error in answer.problem.errors] == [parameter]


@pytest.mark.parametrize("action", ["cancel", "hold", "release", "retry", "bounce"])
async def test_steering_tells_how_many_recipients_followed(api: Api, action: str) -> None:
    sent = await api.send(EMAIL | {"cc": "bob@example.net"})
    answer = await api.ask("POST", f"/api/v1/emails/{sent.json['id']}/{action}")

    final = action in ("cancel", "bounce")
    assert answer.json == {"id": sent.json["id"], "changed": 2, "waiting": 0 if final else 2}
    assert [entry[:2] for entry in api.relay.audit] == [("all", action)]


async def test_an_email_can_be_rescheduled(api: Api) -> None:
    path = f"/api/v1/emails/{(await api.send()).json['id']}/reschedule"

    assert (await api.ask("POST", path, json={"scheduled_at": "2027-01-01T00:00:00Z"})).status == 200
    assert api.relay.audit[0][1] == "reschedule 2027"
    assert (await api.ask("POST", path, json={"scheduled_at": 7})).status == 422


async def test_steering_a_finished_email_is_a_conflict(api: Api) -> None:
    path = f"/api/v1/emails/{(await api.send()).json['id']}"
    assert (await api.ask("POST", path + "/cancel")).status == 200
    answer = await api.ask("POST", path + "/retry")

    assert (answer.status, answer.problem.code) == (409, "message_finished")


@pytest.mark.parametrize("operation", [known for known in OPERATIONS if known.example], ids=lambda known: known.id)
async def test_the_examples_of_the_document_work(api: Api, operation: Any) -> None:
    path = operation.path
    if "{id}" in path:
        path = path.replace("{id}", (await api.send()).json["id"])
    answer = await api.ask(operation.method, path, json=operation.example)

    assert answer.status in operation.answers
