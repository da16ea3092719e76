"""What people say of their mail, what an entry in the suppressions makes of a contact, and what nobody revives."""

from datetime import timedelta
from typing import Any

import pytest

from mailerd.campaigns.contacts import consent
from mailerd.campaigns.contacts.consent import ConsentFacts, agreed_sql
from mailerd.campaigns.contacts.status import status_sql, suppressed_sql
from mailerd.errors import Refused
from mailerd.queue.suppression import Reason, Suppression
from tests.campaigns.contacts.conftest import TENANT, Contacts

ENTRIES: list[tuple[str, dict[str, Any], str]] = [
    ("ann@example.com", {"reason": Reason.COMPLAINT}, "complained"),
    ("ann@example.com", {"reason": Reason.BOUNCE, "tenant": ""}, "bounced"),
    ("ann@example.com", {"reason": Reason.SOFT_BOUNCE, "stream": "marketing"}, "bounced"),
    ("ann@example.com", {"reason": Reason.UNSUBSCRIBE}, "unsubscribed"),
    ("@example.com", {"reason": Reason.MANUAL}, "suppressed"),
    ("ann@example.com", {"reason": Reason.BOUNCE, "tenant": "other"}, "active"),
    ("ann@example.com", {"reason": Reason.BOUNCE, "stream": "transactional"}, "active"),
    ("ann@example.com", {"reason": Reason.UNSUBSCRIBE, "stream": "marketing", "topic": "news"}, "active"),
    ("@xample.com", {"reason": Reason.MANUAL}, "active"),
]


async def unsubscribe(contacts: Contacts, contact_id: int, list_id: int | None = None) -> bool | None:
    return await contacts.book.subscriptions.unsubscribe(
        TENANT, contact_id, list_id=list_id, reason="too many", source="api:test"
    )


async def subscribe(contacts: Contacts, contact_id: int, *list_ids: int, ago: float = 0) -> bool:
    facts = ConsentFacts(method="form", at=contacts.clock() - timedelta(seconds=ago))
    return await contacts.book.subscriptions.subscribe(
        TENANT, contact_id, consent=facts, list_ids=list_ids, source="api:test"
    )


async def test_the_status_is_the_worst_that_binds_now(contacts: Contacts) -> None:
    ann = await contacts.add("Ann@Example.com")
    for address, facts, expected in ENTRIES:
        now = contacts.clock()
        entry = Suppression(
            address, **{"tenant": TENANT} | facts, source="test", created_at=now, expires_at=now + timedelta(1)
        )
        await contacts.suppressions.add([entry])
        sql = f"""SELECT {status_sql("c", "$2", now="$3")}, {suppressed_sql("c", "$2", now="$3")}
                    FROM contacts AS c WHERE id = $1"""

        status, suppressed = await contacts.pool.fetchrow(sql, ann, "marketing", now)  # type: ignore[misc]

        assert (status, suppressed) == (expected, expected != "active")
        assert await contacts.status(ann) == expected
        contacts.clock.advance(days=1)  # it is over
        assert await contacts.status(ann) == "active"
        contacts.clock.advance(seconds=1)
    for address, facts, _ in ENTRIES[:5]:
        await contacts.suppressions.add(
            [Suppression(address, **{"tenant": TENANT} | facts, source="test", created_at=contacts.clock())]
        )
    assert await contacts.status(ann) == "complained"


async def test_who_unsubscribes_is_off_all_lists_and_on_record(contacts: Contacts) -> None:
    ann, news, deals = await contacts.add(), await contacts.add_list("news"), await contacts.add_list("deals")
    for list_id in (news, deals):
        await contacts.join(list_id, ann)
    assert await contacts.count(news) == 1

    assert await unsubscribe(contacts, ann) is True
    assert await unsubscribe(contacts, ann) is False
    assert await unsubscribe(contacts, ann + 1) is None

    assert await contacts.status(ann) == "unsubscribed"
    assert await contacts.statuses(ann) == {news: "unsubscribed", deals: "unsubscribed"}
    assert await contacts.count(news) == await contacts.count(deals) == 0
    (record,) = await contacts.book.consents.of(TENANT, ann) or []
    assert (record.action, record.method, record.actor, record.list_id) == ("withdrawn", "api", "api:test", None)
    history = await contacts.book.subscriptions.history(TENANT, ann)
    assert {(each.list_id, each.was, each.became, each.detail) for each in history} == {
        (news, "subscribed", "unsubscribed", "too many"),
        (deals, "subscribed", "unsubscribed", "too many"),
    }
    contact = await contacts.book.contacts.get(TENANT, ann)
    assert contact is not None
    assert (contact.unsubscribe_reason, contact.unsubscribed_at) == ("too many", contacts.clock())


async def test_leaving_one_list_leaves_the_others(contacts: Contacts) -> None:
    ann, news, deals = await contacts.add(), await contacts.add_list("news"), await contacts.add_list("deals")
    await contacts.join(news, ann)
    await contacts.join(deals, ann)

    assert await unsubscribe(contacts, ann, news) is True

    assert await contacts.status(ann) == "active"
    assert await contacts.statuses(ann) == {news: "unsubscribed", deals: "subscribed"}
    with pytest.raises(Refused, match="no such list"):
        await unsubscribe(contacts, ann, deals + 1)


async def test_neither_adding_nor_removing_nor_deleting_brings_back_who_left(contacts: Contacts) -> None:
    ann, news = await contacts.add(), await contacts.add_list()
    await contacts.join(news, ann)
    await unsubscribe(contacts, ann, news)

    assert (await contacts.join(news, ann)).left == [ann]
    await contacts.book.members.remove(TENANT, news, [ann], source="test", now=contacts.clock())
    assert (await contacts.join(news, ann)).left == [ann]
    await contacts.book.contacts.delete(TENANT, ann)
    again = await contacts.add()

    assert (await contacts.join(news, again)).left == [again]
    assert await contacts.count(news) == 0
    await unsubscribe(contacts, again)
    await contacts.book.contacts.delete(TENANT, again)
    assert await contacts.status(await contacts.add()) == "unsubscribed"


async def test_only_a_younger_consent_subscribes_again(contacts: Contacts) -> None:
    ann, news, deals = await contacts.add(), await contacts.add_list("news"), await contacts.add_list("deals")
    await contacts.join(news, ann)
    await contacts.join(deals, ann)
    await unsubscribe(contacts, ann)
    contacts.clock.advance(hours=1)

    with pytest.raises(Refused) as refused:
        await subscribe(contacts, ann, news, ago=7200)
    assert refused.value.name == "stale_consent"
    with pytest.raises(Refused, match="future"):
        await subscribe(contacts, ann, news, ago=-7200)
    assert await subscribe(contacts, ann, news)

    assert await contacts.status(ann) == "active"
    assert await contacts.statuses(ann) == {news: "subscribed", deals: "unsubscribed"}
    assert (await contacts.count(news), await contacts.count(deals)) == (1, 0)
    assert not await subscribe(contacts, ann + 1)


async def test_a_consent_lifts_nothing_but_what_the_person_said(contacts: Contacts) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"reason": Reason.COMPLAINT}, "complained"),
        ({"reason": Reason.BOUNCE}, "bounced"),
        ({"reason": Reason.MANUAL}, "suppressed"),
        ({"reason": Reason.UNSUBSCRIBE, "tenant": ""}, "unsubscribed"),
    ]
    for n, (facts, status) in enumerate(cases):
        ann = await contacts.add(f"ann{n}@example.com")
        await unsubscribe(contacts, ann)
        said: dict[str, Any] = {"tenant": TENANT, "source": "test", "created_at": contacts.clock()} | facts
        await contacts.suppressions.add([Suppression(f"ann{n}@example.com", **said)])

        with pytest.raises(Refused) as refused:
            await subscribe(contacts, ann)

        assert refused.value.name == f"contact_{status}"
        sql = "SELECT count(*) FROM suppressions WHERE reason = 'unsubscribe' AND tenant = $1 AND address LIKE $2"
        assert await contacts.pool.fetchval(sql, TENANT, f"ann{n}@%") == 1  # that was undone, too


async def test_an_unsubscribing_by_mail_is_an_event_of_that_mail(contacts: Contacts) -> None:
    ann = await contacts.add()

    await contacts.book.subscriptions.unsubscribe(
        TENANT, ann, reason="", source="page", message_id=17, campaign="cmp_3"
    )

    row = await contacts.pool.fetchrow("SELECT * FROM events WHERE type = 'recipient.unsubscribed'")
    assert row is not None
    assert (row["message_id"], row["n"], row["campaign"], row["address"]) == (17, 1, "cmp_3", "ann@example.com")


SAID: list[tuple[list[tuple[str, int | None]], bool]] = [
    ([], False),
    ([("granted", None)], True),
    ([("granted", 1)], True),
    ([("granted", 2)], False),
    ([("granted", None), ("withdrawn", None)], False),
    ([("granted", 1), ("withdrawn", None)], False),
    ([("withdrawn", None), ("granted", 1)], True),
    ([("granted", None), ("withdrawn", 2)], True),
]


async def test_what_was_said_last_counts(contacts: Contacts) -> None:
    for n, (said, agreed) in enumerate(SAID):
        ann = await contacts.add(f"ann{n}@example.com")
        for hour, (action, list_id) in enumerate(said):
            await contacts.pool.execute(
                """INSERT INTO consents (tenant, address, contact_id, list_id, action, method, actor, at)
                   VALUES ($1, $6, $2, $3, $4, 'form', 'test', $5)""",
                TENANT,
                ann,
                list_id,
                action,
                contacts.clock() + timedelta(hours=hour),
                f"ann{n}@example.com",
            )

        sql = f"SELECT {agreed_sql('c', '$2::bigint[]')} FROM contacts AS c WHERE id = $1"
        assert await contacts.pool.fetchval(sql, ann, [1]) is agreed, said


async def test_an_address_has_only_so_many_records_of_consent_but_may_always_leave(
    contacts: Contacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consent, "MAX_CONSENTS", 3)
    news, subscriptions = await contacts.add_list(), contacts.book.subscriptions
    agreed = ConsentFacts(method="form", at=contacts.clock())
    ann = await contacts.add(list_ids=[news], consent=agreed)
    for _ in range(2):
        assert await subscriptions.subscribe(TENANT, ann, consent=agreed, list_ids=[news], source="api:test")

    with pytest.raises(Refused, match="at most 3"):
        await subscriptions.subscribe(TENANT, ann, consent=agreed, source="api:test")
    for _ in range(3):  # what changes nothing makes no record any more
        await subscriptions.unsubscribe(TENANT, ann, reason="", source="api:test", facts=agreed)
    assert await contacts.status(ann) == "unsubscribed"
    assert await contacts.pool.fetchval("SELECT count(*) FROM consents") == 4
    await contacts.book.contacts.delete(TENANT, ann)
    with pytest.raises(Refused, match="at most 3"):
        await contacts.add(consent=agreed)
