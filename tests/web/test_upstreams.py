"""`/api/v1/upstreams/{name}/events`: what services say of the mail that they relayed for us."""

import json
import secrets
import time
from hashlib import sha256
from hmac import digest
from typing import Any

import pytest

from mailerd.queue.ids import parse_message_id
from mailerd.wire.tokens import Tokens
from tests.web.conftest import SECRET, Answer, Api

PATH = "/api/v1/upstreams/mailgun/events"


def body(event: dict[str, Any], key: bytes = b"key", token: str = "") -> bytes:
    timestamp, token = str(int(time.time())), token or secrets.token_hex()
    proof = digest(key, (timestamp + token).encode(), sha256).hex()
    signature = {"timestamp": timestamp, "token": token, "signature": proof}
    return json.dumps({"signature": signature, "event-data": event}).encode()


def failed(token: str = "", **changes: Any) -> dict[str, Any]:
    status = {"code": 550, "message": "5.1.1 no such user", "enhanced-code": "5.1.1"}
    event = {"event": "failed", "severity": "permanent", "recipient": "ann@example.net", "delivery-status": status}
    return event | {"user-variables": {"mailerd": token}} | changes


async def tell(api: Api, data: bytes, path: str = PATH) -> Answer:
    return await api.ask("POST", path, key="none", data=data, headers={"Content-Type": "application/json"})


async def sent(api: Api) -> tuple[str, str]:
    """A message that was handed over: its id, and the token of its recipient."""
    id_ = (await api.send()).json["id"]
    await api.relay.settled()
    return id_, Tokens(SECRET, "return-path").make(parse_message_id(id_), 1)


async def test_a_bounce_that_a_service_reports_is_one_of_ours(api: Api) -> None:
    id_, token = await sent(api)

    answer = await tell(api, body(failed(token)))
    again = await tell(api, body(failed(token)))

    assert (answer.status, answer.json) == (200, {"events": 1, "followed": 1})
    assert again.status == 200
    recipient = (await api.ask("GET", f"/api/v1/emails/{id_}")).json["recipients"][0]
    assert recipient["state"] == "bounced"
    (entry,) = (await api.ask("GET", "/api/v1/suppressions")).json["data"]
    assert (entry["address"], entry["reason"], entry["email_id"]) == ("ann@example.net", "bounce", id_)
    assert entry["source"] == "upstream:mailgun"
    assert (await api.ask("GET", "/api/v1/events?type=email.bounced")).json["data"][0]["data"]["email_id"] == id_


@pytest.mark.parametrize(("event", "reason"), [("complained", "complaint"), ("unsubscribed", "unsubscribe")])
async def test_complaints_and_unsubscribes_suppress(api: Api, event: str, reason: str) -> None:
    _, token = await sent(api)

    await tell(api, body(failed(token, event=event)))

    (entry,) = (await api.ask("GET", "/api/v1/suppressions")).json["data"]
    assert entry["reason"] == reason


async def test_a_message_id_leads_to_the_recipient_that_is_named(api: Api) -> None:
    await sent(api)
    message_id = await api.relay.pool.fetchval("SELECT data->>'message_id' FROM events WHERE n = 1 LIMIT 1")
    message = {"headers": {"message-id": message_id.strip("<>")}}

    assert (await tell(api, body(failed(message=message, recipient="bob@example.net")))).json["followed"] == 0
    assert (await tell(api, body(failed(message=message)))).json["followed"] == 1


@pytest.mark.parametrize("event", [failed("x" * 31), failed(), failed(event="opened"), failed(severity="temporary")])
async def test_what_leads_to_no_mail_or_means_nothing_changes_nothing(api: Api, event: dict[str, Any]) -> None:
    await sent(api)

    assert (await tell(api, body(event))).json["followed"] == 0
    assert (await api.ask("GET", "/api/v1/suppressions")).json["data"] == []


async def test_a_signature_of_mailgun_is_good_for_one_request(api: Api) -> None:
    """It signs a token, not the event: whoever has seen one could say anything with it."""
    _, token = await sent(api)
    assert (await tell(api, body(failed(), token="seen"))).json["events"] == 1

    again = await tell(api, body(failed(token), token="seen"))

    assert (again.status, again.json) == (200, {"events": 0, "followed": 0})
    assert (await api.ask("GET", "/api/v1/suppressions")).json["data"] == []


async def test_a_forged_request_is_refused(api: Api) -> None:
    _, token = await sent(api)

    answer = await tell(api, body(failed(token), key=b"guess"))

    assert (answer.status, answer.json["code"]) == (403, "bad_signature")
    assert (await tell(api, b"{}")).status == 422
    assert (await tell(api, body(failed(token)), "/api/v1/upstreams/none/events")).status == 404
    assert (await api.ask("GET", "/api/v1/suppressions")).json["data"] == []
