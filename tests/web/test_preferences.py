"""The preference centre, `/p/{token}`, and the documents' public unsubscribe call."""

import re

import pytest

from mailerd.campaigns.contacts import preferences
from mailerd.campaigns.contacts.following import ContactFollowerStore
from mailerd.db import Pool
from mailerd.events import START, EventStore
from mailerd.queue.suppression import SuppressionStore
from mailerd.wire.preferences import PURPOSE, Preferences
from mailerd.wire.tokens import Tokens
from mailerd.wire.unsubscribe import PURPOSE as UNSUBSCRIBE
from mailerd.wire.unsubscribe import Subscription
from tests.support.relay import RunningRelay
from tests.web.conftest import Api

SECRET = b"secret of the installation"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def contact(pool: Pool, *lists: str, email: str = "Ann@example.net") -> int:
    id_: int = await pool.fetchval(
        "INSERT INTO contacts (tenant, email, address) VALUES ('default', $1, lower($1)) RETURNING id", email
    )
    for name in lists:
        await pool.execute(
            "WITH list AS (INSERT INTO contact_lists (tenant, name, created_by, contact_count)"
            " VALUES ('default', $1, 'all', 1) RETURNING id)"
            " INSERT INTO list_contacts (list_id, contact_id, source) SELECT id, $2, 'test' FROM list",
            name,
            id_,
        )
    return id_


def link(contact_id: int, tenant: str = "default") -> str:
    return "/p/" + Preferences(tenant, contact_id).seal(Tokens(SECRET, PURPOSE))


async def states(pool: Pool, contact_id: int) -> dict[str, str]:
    rows = await pool.fetch(
        "SELECT l.name, lc.status FROM list_contacts AS lc JOIN contact_lists AS l ON l.id = list_id"
        " WHERE contact_id = $1",
        contact_id,
    )
    return {row["name"]: row["status"] for row in rows}


async def show(api: Api, path: str) -> str:
    answer = await api.ask("GET", path, key="none")
    assert answer.status == 200
    return answer.body.decode()


def boxes(text: str) -> dict[str, bool]:
    """The lists on the page, and whether they are ticked."""
    found = re.findall(r'name="list" value="(lst_\d+)"( checked)?', text)
    return {id_: bool(checked) for id_, checked in found}


async def test_a_reader_leaves_one_list_and_comes_back(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News", "Offers & more")
    path = link(id_)
    text = await show(api, path)
    assert "Ann@example.net" in text
    assert "Offers &amp; more" in text
    news, offers = boxes(text)

    await api.ask("POST", path, data=f"by=page&list={news}&tracking=yes".encode(), headers=FORM, key="none")

    assert boxes(await show(api, path)) == {news: True, offers: False}
    assert await states(relay.pool, id_) == {"News": "subscribed", "Offers & more": "unsubscribed"}
    assert await relay.pool.fetchval("SELECT count(*) FROM suppressions") == 0
    await api.ask("POST", path, data=f"by=page&list={news}&list={offers}".encode(), headers=FORM, key="none")
    assert boxes(await show(api, path)) == {news: True, offers: True}
    assert not await relay.pool.fetchval("SELECT tracking FROM contacts WHERE id = $1", id_)
    actions = await relay.pool.fetch("SELECT action, method FROM consents ORDER BY id")
    assert [tuple(row) for row in actions] == [("withdrawn", "page"), ("granted", "page"), ("granted", "page")]


async def test_a_reader_leaves_everything_and_comes_back_to_one_list(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News", "Offers")
    path = link(id_)
    news, _ = boxes(await show(api, path))

    await api.ask("POST", path, data=b"by=page&all=leave", headers=FORM, key="none")
    text = await show(api, path)
    assert "You get no mail from us now" in text
    assert set(boxes(text).values()) == {False}
    assert await relay.pool.fetchval("SELECT reason FROM suppressions") == "unsubscribe"

    await api.ask("POST", path, data=f"by=page&list={news}".encode(), headers=FORM, key="none")
    assert await relay.pool.fetchval("SELECT count(*) FROM suppressions") == 0
    assert await states(relay.pool, id_) == {"News": "subscribed", "Offers": "unsubscribed"}


async def test_looking_and_what_machines_post_change_nothing(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News")
    path = link(id_)
    for method, body in (("GET", None), ("POST", b""), ("POST", b"List-Unsubscribe=One-Click")):
        answer = await api.ask(method, path, data=body, headers=FORM if body is not None else {}, key="none")
        assert answer.status == 200

    assert await states(relay.pool, id_) == {"News": "subscribed"}


async def test_lists_of_others_cannot_be_joined_by_the_form(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News")
    await contact(relay.pool, "Secret", email="bob@example.net")
    other = await relay.pool.fetchval("SELECT id FROM contact_lists WHERE name = 'Secret'")

    await api.ask("POST", link(id_), data=f"by=page&list=lst_{other}&list=x".encode(), headers=FORM, key="none")

    assert await states(relay.pool, id_) == {"News": "unsubscribed"}


async def test_links_that_are_forged_or_of_nobody_lead_nowhere(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News")
    forged = "/p/" + Preferences("default", id_).seal(Tokens(SECRET, UNSUBSCRIBE))
    for path in (forged, link(id_)[:-1], link(id_, "other"), link(id_ + 1), "/p/x"):
        assert (await api.ask("GET", path, key="none")).status == 404
        assert (await api.ask("POST", path, data=b"by=page&all=leave", headers=FORM, key="none")).status == 404
    assert await states(relay.pool, id_) == {"News": "subscribed"}


async def test_whose_address_is_gone_is_told_so(api: Api, relay: RunningRelay) -> None:
    path = link(await contact(relay.pool, "News"))
    assert "Mail from <strong>Acme &amp; Co</strong> to" in await show(api, path)
    assert (await api.ask("POST", "/api/v1/contacts/con_1/erase")).status == 200

    for method, body in (("GET", None), ("POST", b"by=page&all=leave")):
        answer = await api.ask(method, path, data=body, headers=FORM if body else {}, key="none")
        assert (answer.status, b"not stored any more" in answer.body) == (404, True)
    assert b"not stored" not in (await api.ask("GET", "/p/x", key="none")).body


async def test_whose_mail_bounced_is_told_so_and_cannot_subscribe(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News")
    await relay.pool.execute(
        "INSERT INTO suppressions (address, tenant, stream, topic, reason, source, detail, created_at)"
        " VALUES ('ann@example.net', 'default', '', '', 'bounce', 'smtp', '', now())"
    )
    text = await show(api, link(id_))
    assert "came back" in text
    assert "<form" not in text
    answer = await api.ask("POST", link(id_), data=b"by=page&all=again", headers=FORM, key="none")
    assert b"That did not work" in answer.body


async def test_the_documents_call_unsubscribes_who_has_the_token_of_his_mail(api: Api, relay: RunningRelay) -> None:
    subscription = Subscription("default", "marketing", "", "cmp_1", "ann@example.net", 17, 1)
    token = subscription.seal(Tokens(SECRET, UNSUBSCRIBE))
    path = "/api/v1/public/unsubscribe"
    for wrong in (
        {"email": "bob@example.net", "token": token},
        {"email": "ann@example.net", "token": token, "campaign_id": "cmp_2"},
        {"email": "ann@example.net", "token": "x"},
    ):
        assert (await api.ask("POST", path, json=wrong, key="none")).status == 403

    body = {"email": "Ann@example.net", "token": token, "campaign_id": "cmp_1"}
    answer = await api.ask("POST", path, json=body, key="none")

    assert (answer.status, answer.json) == (200, {"status": "unsubscribed"})
    assert (await api.ask("POST", path, json=body, key="none")).status == 200
    assert await relay.pool.fetchval("SELECT count(*) FROM suppressions") == 1


async def test_contacts_show_what_was_said_by_one_click_and_its_taking_back(api: Api, relay: RunningRelay) -> None:
    id_ = await contact(relay.pool, "News")
    subscription = Subscription("default", "marketing", "", "cmp_1", "Ann@example.net", 17, 1)
    path = "/u/" + subscription.seal(Tokens(SECRET, UNSUBSCRIBE))
    await api.ask("POST", path, data=b"List-Unsubscribe=One-Click", headers=FORM, key="none")

    async def follow() -> bool:
        page = await EventStore(relay.pool).after(START, limit=100)
        async with relay.pool.acquire() as connection, connection.transaction():
            await ContactFollowerStore(SuppressionStore(relay.pool)).read(page.events, connection)
        at = await relay.pool.fetchval("SELECT unsubscribed_at FROM contacts WHERE id = $1", id_)
        return at is not None

    assert await follow()
    relay.clock.advance(minutes=1)
    await api.ask("POST", path, data=b"by=page&again=yes", headers=FORM, key="none")
    assert not await follow()
    rows = await relay.pool.fetch("SELECT action, method, actor FROM consents ORDER BY id")
    assert [row["action"] for row in rows][:2] == ["withdrawn", "granted"]


async def test_a_stolen_link_makes_only_so_many_records_an_hour_and_leaving_always_works(
    api: Api, relay: RunningRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferences, "CHANGES", 2)
    id_ = await contact(relay.pool, "News", "Offers")
    path = link(id_)
    both = "&".join(f"list={each}" for each in boxes(await show(api, path)))

    async def post(form: str) -> int:
        relay.clock.advance(seconds=1)
        answer = await api.ask("POST", path, data=f"by=page&{form}".encode(), headers=FORM, key="none")
        return answer.status

    async def records() -> list[int]:
        return [
            await relay.pool.fetchval(f"SELECT count(*) FROM {table}")
            for table in ("consents", "subscription_history", "events")
        ]

    answers = []
    for _ in range(4):
        answers += [await post("tracking=yes"), await post(f"tracking=yes&{both}")]
    assert answers == [200, 200] * 2 + [200, 429, 200, 429]
    said = await records()

    assert await post("tracking=yes") == 200  # it is so already
    assert await post("all=again") == 200
    assert await records() == said
    assert await post("all=leave") == 200
    assert await relay.pool.fetchval("SELECT count(*) FROM suppressions") == 1
    said = await records()
    assert await post("all=leave") == 200
    assert await post("all=again") == 429
    assert await records() == said

    relay.clock.advance(hours=1)
    assert await post(f"tracking=yes&{both}") == 200
