import base64
from datetime import datetime, timedelta, timezone
from email import message_from_bytes
from email.policy import default
from typing import Any
from urllib.parse import quote

import pytest

from mailerd.intake.credentials import CredentialStore
from mailerd.web.app import OPERATIONS
from tests.support.dns_server import DnsServer
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

    (content, *_) = contents = await api.delivered()
    assert [delivery.recipient for delivery in api.mx.delivered] == ["ann@example.net", "eve@example.net"]
    assert b"eve" not in content
    assert len(contents) == 2


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

    (content,) = await api.delivered()
    message: Any = message_from_bytes(content, policy=default)
    assert api.mx.delivered[0].sender == "shop@xn--bcher-kva.example"
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


async def test_an_attachment_has_the_type_that_its_name_tells(api: Api) -> None:
    content = base64.b64encode(b"x").decode()
    await api.send(EMAIL | {"attachments": [{"filename": name, "content": content} for name in ("a.pdf", "b")]})

    (delivered,) = await api.delivered()
    types = [part.get_content_type() for part in message_from_bytes(delivered).walk() if part.get_filename()]
    assert types == ["application/pdf", "application/octet-stream"]


async def test_options_are_those_of_the_message(api: Api) -> None:
    start = (api.relay.clock.now + timedelta(hours=1)).replace(microsecond=0)
    answer = await api.send(
        EMAIL
        | {
            "tags": ["order"],
            "labels": {"order_id": "1001"},
            "stream": "marketing",
            "pool": "default",
            "scheduled_at": start.astimezone(timezone(timedelta(hours=2))).isoformat(),
            "expires_at": (start + timedelta(hours=3)).isoformat(),
        }
    )

    assert answer.json["status"] == "scheduled"
    detail = (await api.ask("GET", f"/api/v1/emails/{answer.json['id']}")).json
    assert (detail["tags"], detail["labels"]) == (["order"], {"order_id": "1001"})
    assert (detail["stream"], detail["pool"]) == ("marketing", "default")
    (recipient,) = detail["recipients"]
    assert datetime.fromisoformat(recipient["due_at"]) == start
    assert datetime.fromisoformat(recipient["expires_at"]) == start + timedelta(hours=3)


@pytest.mark.parametrize("size", [10, 70_000])
async def test_large_and_small_messages_are_composed_alike(api: Api, size: int) -> None:
    """Large ones in a thread."""
    answer = await api.send(EMAIL | {"text": "x " * size, "html": "<p>x</p>"})

    assert answer.status == 202
    (content,) = await api.delivered()
    assert len(content) > size


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
    ({"campaign": "a/b"}, ["/campaign"]),
    ({"campaign": "a\n"}, ["/campaign"]),
    ({"campaign": "x" * 101}, ["/campaign"]),
    ({"priority": "urgent"}, ["/priority"]),
    ({"require_tls": "yes"}, ["/require_tls"]),
    ({"unsubscribe": "yes"}, ["/unsubscribe"]),
    ({"topic": "a/b"}, ["/topic"]),
    ({"template": "tpl_1"}, ["/template"]),
    ({"a/b~": 1}, ["/a~1b~0"]),
]


@pytest.mark.parametrize(("change", "pointers"), FAULTS, ids=[str(change)[:50] for change, _ in FAULTS])
async def test_each_fault_is_told_with_a_pointer(api: Api, change: dict[str, object], pointers: list[str]) -> None:
    answer = await api.send(EMAIL | change)

    assert answer.status == 422
    assert answer.problem.code == "invalid"
    assert [error.pointer for error in answer.problem.errors] == pointers
    assert await api.accepted() == 0


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


ORDERED = "SELECT campaign, lane, require_tls, topic, unsubscribe FROM messages"


async def test_wishes_are_those_asked_for(api: Api) -> None:
    await api.later(campaign="Frühling 27", priority="high", require_tls=True, topic="offers", unsubscribe=True)

    row = await api.relay.pool.fetchrow(ORDERED)
    assert tuple(row) == ("Frühling 27", 0, True, "offers", True)


async def test_a_raw_message_is_asked_for_in_its_query(api: Api) -> None:
    tomorrow = quote((api.relay.clock.now + timedelta(days=1)).isoformat())
    query = f"from=shop@example.com&to=ann@example.net&scheduled_at={tomorrow}"
    raw = b"From: shop@example.com\r\nX-Mailerd-Campaign: autumn\r\n\r\nhello\r\n"
    headers = {"Content-Type": "message/rfc822"}
    path = f"/api/v1/emails/raw?{query}&campaign=spring&priority=low&require_tls=false&stream=marketing&topic=news"
    answer = await api.ask("POST", path, data=raw, headers=headers)

    assert answer.status == 202
    row = await api.relay.pool.fetchrow(ORDERED)
    assert tuple(row) == ("spring", 5, False, "news", True)
    refused = await api.ask("POST", f"/api/v1/emails/raw?{query}&priority=urgent", data=raw, headers=headers)
    assert [error.parameter for error in refused.problem.errors] == ["priority"]


async def test_a_campaign_that_cannot_be_named_is_pointed_at(api: Api) -> None:
    answer = await api.send(EMAIL | {"campaign": "a\u2028b"})

    assert (answer.status, answer.problem.code) == (422, "invalid_campaign")
    assert [error.pointer for error in answer.problem.errors] == ["/campaign"]


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
    assert await api.accepted() == 2


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
    assert await api.accepted() == 0


async def test_a_batch_that_is_a_bare_array_is_told_what_to_wrap_it_in(api: Api) -> None:
    answer = await api.ask("POST", "/api/v1/emails/batch", json=[EMAIL])

    assert (answer.status, answer.problem.code) == (422, "invalid")
    assert '{"emails": [...]}' in answer.problem.detail
    assert await api.accepted() == 0


async def test_a_raw_message_goes_as_it_is_with_line_ends_mended(api: Api) -> None:
    raw = b"From: shop@example.com\nSubject: Hello\r\n\r\nOne\n.\nTwo\r\n"
    answer = await api.ask(
        "POST",
        "/api/v1/emails/raw",
        json={"from": "bounces@example.com", "to": ["ann@example.net"], "raw": base64.b64encode(raw).decode()},
    )

    assert answer.status == 202
    (content,) = await api.delivered()
    assert api.mx.delivered[0].sender == "bounces@example.com"
    assert content.endswith(b"From: shop@example.com\r\nSubject: Hello\r\n\r\nOne\r\n.\r\nTwo\r\n")


async def test_a_raw_message_may_be_the_body_with_its_envelope_in_the_query(api: Api) -> None:
    answer = await api.ask(
        "POST",
        "/api/v1/emails/raw?from=shop@example.com&to=ann@example.net&to=bob@example.net&tag=a&tag=b",
        data="Subject: Grüße\r\n\r\nHello\r\n".encode(),
        headers={"Content-Type": "message/rfc822"},
    )

    assert answer.status == 202
    assert [known["email"] for known in answer.json["recipients"]] == ["ann@example.net", "bob@example.net"]
    assert len(await api.delivered()) == 2
    assert (await api.ask("GET", f"/api/v1/emails/{answer.json['id']}")).json["tags"] == ["a", "b"]


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
    assert await api.accepted() == 1


async def test_each_problem_has_a_title_of_its_own(api: Api) -> None:
    refused = await api.send(EMAIL | {"from": "a@elsewhere.example"}, key="shop")
    assert (refused.status, refused.problem.code, refused.problem.title) == (
        403,
        "sender_not_allowed",
        "Sender not allowed",
    )


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    await api.send(headers={"Idempotency-Key": "k"})
    answer = await api.send(EMAIL | {"subject": "Other"}, headers={"Idempotency-Key": "k"})

    assert (answer.status, answer.problem.code) == (422, "idempotency_key_reused")


async def test_the_same_key_of_another_owner_or_path_is_another_key(api: Api) -> None:
    await api.send(headers={"Idempotency-Key": "k"})
    other = await api.send(key="sender", headers={"Idempotency-Key": "k"})
    there = await api.ask("POST", "/api/v1/emails/batch", json=batch(EMAIL), headers={"Idempotency-Key": "k"})

    assert (other.status, there.status) == (202, 202)
    assert await api.accepted() == 3


async def test_a_key_is_not_that_of_a_credential_of_the_same_name_of_another_tenant(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await api.send(key="sender", headers=headers)
    store = CredentialStore(api.relay.pool)
    await store.delete("sender")
    token = await store.create("sender", tenant="other")
    other = await api.send(key=token, headers=headers)

    assert (first.status, other.status) == (202, 202)
    assert other.body != first.body
    assert await api.accepted() == 2


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
    answers = [await api.send(key="slow", headers={"Idempotency-Key": f"{n}"}) for n in range(4)]

    assert [answer.status for answer in answers] == [202, 202, 202, 429]
    assert answers[0].headers["RateLimit-Policy"] == '"messages";q=3;w=3600, "recipients";q=10;w=60'
    assert answers[0].headers["RateLimit"].startswith('"messages";r=2;t=')
    assert answers[3].headers["RateLimit"].startswith('"messages";r=0;t=')
    assert 1000 < int(answers[3].headers["Retry-After"]) <= 1200
    assert answers[3].problem.retry_after == int(answers[3].headers["Retry-After"])
    again = await api.send(key="slow", headers={"Idempotency-Key": "2"})
    assert (again.status, again.body) == (202, answers[2].body)  # what was done needs no allowance
    assert "RateLimit" not in (await api.send()).headers


async def test_too_many_recipients_leave_the_message_rate_alone(api: Api) -> None:
    eleven = EMAIL | {"to": [f"user{n}@example.net" for n in range(11)]}
    assert (await api.send(EMAIL, key="slow")).status == 202
    answer = await api.send(eleven, key="slow")

    assert (answer.status, answer.problem.code) == (429, "rate_limited")
    assert answer.headers["RateLimit"].startswith('"messages";r=2;')


async def test_what_is_refused_costs_no_allowance(api: Api) -> None:
    assert (await api.send(EMAIL | {"stream": "lost"}, key="slow")).status == 422
    assert (await api.send(key="slow")).headers["RateLimit"].startswith('"messages";r=2;')


@pytest.mark.parametrize(
    ("key", "change", "code", "pointers"),
    [
        ("all", {"stream": "lost"}, "unknown_stream", ["/stream"]),
        ("all", {"pool": "lost"}, "unknown_pool", ["/pool"]),
        ("shop", {"from": "a@shop.example", "stream": "transactional"}, "stream_not_allowed", ["/stream"]),
        ("shop", {}, "sender_not_allowed", ["/from"]),
        ("all", {"scheduled_at": "9999-12-31T23:59:59-12:00"}, "too_far_ahead", ["/scheduled_at"]),
        ("all", {"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_too_late", ["/expires_at"]),
        ("all", {"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_too_soon", ["/expires_at"]),
    ],
)
async def test_refusals_point_at_fields_that_were_sent(
    api: Api, key: str, change: dict[str, object], code: str, pointers: list[str]
) -> None:
    answer = await api.send(EMAIL | change, key=key)

    assert answer.problem.code == code
    assert [error.pointer for error in answer.problem.errors] == pointers


async def test_only_raw_mail_is_told_of_raw(api: Api) -> None:
    loop = b"Received: x\r\n" * 101 + b"Subject: x\r\n\r\nx\r\n"
    query = "from=shop@example.com&to=ann@example.net"
    body = {"from": "shop@example.com", "to": "ann@example.net", "raw": base64.b64encode(loop).decode()}

    answer = await api.ask("POST", "/api/v1/emails/raw", json=body)
    assert [(error.code, error.pointer) for error in answer.problem.errors] == [("mail_loop", "/raw")]
    answer = await api.ask("POST", f"/api/v1/emails/raw?{query}", data=loop, headers={"Content-Type": "message/rfc822"})
    assert answer.problem.code == "mail_loop"
    assert [error.pointer for error in answer.problem.errors] == [""]


@pytest.mark.parametrize("text", ["Grüße\ud83d\ude00", "a\u0000b", "\u2028", "\u202e", "\x7f", "x" * 9_999])
async def test_odd_subjects_are_sent_or_refused_and_never_break_anything(api: Api, text: str) -> None:
    answer = await api.send(EMAIL | {"subject": text})

    assert answer.status in (202, 422)
    if answer.status == 202:
        assert (await api.ask("GET", f"/api/v1/emails/{answer.json['id']}")).status == 200


@pytest.mark.parametrize("name", ["msg_0000000000000", "msg_x", "1", "%00", "%ff", "msg_zzzzzzzzzzzzz", "a" * 5000])
async def test_an_unknown_email_is_not_found(api: Api, name: str) -> None:
    assert (await api.ask("GET", f"/api/v1/emails/{name}")).status == 404


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


async def test_subject_and_first_recipient_are_seen_in_searches(api: Api) -> None:
    sent = await api.send(EMAIL | {"to": ["ann@example.net", "bob@example.net"], "subject": "Grüße"})
    (line,) = (await api.ask("GET", "/api/v1/emails")).json["data"]

    assert (line["first_recipient"], line["total"], line["subject"]) == ("ann@example.net", 2, "Grüße")
    assert (await api.ask("GET", f"/api/v1/emails/{sent.json['id']}")).json["subject"] == "Grüße"


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
    before = quote(api.relay.clock.now.isoformat())
    one = (await api.send(EMAIL | {"tags": ["a"], "to": "x@example.net", "cc": "one@example.net"})).json["id"]
    await api.send(EMAIL | {"tags": ["b"], "from": "other@example.com", "scheduled_at": "2027-11-01T00:00:00Z"})
    await api.relay.settled()

    for query in (
        "tag=a",
        "recipient=one@EXAMPLE.net",
        "recipient=one@example.net&sender=shop@example.com&tag=a&state=delivered",
        "sender=shop@example.com",
        "state=delivered",
        f"after={before}&tag=a",
    ):
        answer = await api.ask("GET", f"/api/v1/emails?{query}")
        assert [line["id"] for line in answer.json["data"]] == [one], query
    for query in (
        "recipient=one@example.net&tag=b",
        "state=bounced",
        "state=held",
        f"before={before}",
        "after=9999-12-31T23:59:59-12:00",
        "before=0001-01-01T00:00:00%2B12:00",
    ):
        assert (await api.ask("GET", f"/api/v1/emails?{query}")).json["data"] == [], query
    for query in ("", "before=9999-12-31T23:59:59-12:00&after=0001-01-01T00:00:00%2B12:00"):
        assert len((await api.ask("GET", f"/api/v1/emails?{query}")).json["data"]) == 2


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


RELAY = {"emails", "events", "suppressions", "webhooks", "paths", "effects", "upstreams"}
EXAMPLES = [known for known in OPERATIONS if known.example and known.id.partition(".")[0] in RELAY]


@pytest.mark.parametrize("operation", EXAMPLES, ids=lambda known: known.id)
async def test_the_examples_of_the_document_work(api: Api, dns: DnsServer, operation: Any) -> None:
    path = operation.path
    if operation.id.startswith("webhooks."):
        dns.add("app.example.com", "A", "93.184.216.34")  # an address of the world: looked up, and not spoken to
    if path.startswith("/api/v1/webhooks/{id}"):
        made = await api.ask("POST", "/api/v1/webhooks", json={"url": "https://app.example.com", "events": ["*"]})
        path = path.replace("{id}", made.json["webhook_id"])
    elif "{id}" in path:
        path = path.replace("/api/v1/emails/{id}", await api.later())
    answer = await api.ask(operation.method, path, json=operation.example)

    assert answer.status in operation.answers
