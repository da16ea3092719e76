"""Contacts, lists, tags and definitions on a real database, also when several write at once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mailerd.campaigns.contacts.consent import ConsentFacts
from mailerd.campaigns.contacts.members import Added
from mailerd.campaigns.contacts.refusals import ContactExistsError, FieldsRefusedError
from mailerd.campaigns.contacts.store import ContactFilters, ContactValues
from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.errors import Refused
from mailerd.queue.suppression import Reason, Suppression
from tests.campaigns.contacts.conftest import TENANT, Contacts


async def change(contacts: Contacts, contact_id: int, **values: Any) -> bool:
    return await contacts.book.contacts.change(TENANT, contact_id, ContactValues(**values))


async def fields(contacts: Contacts, contact_id: int) -> dict[str, Any]:
    contact = await contacts.book.contacts.get(TENANT, contact_id)
    assert contact is not None
    return contact.custom_fields


async def define(contacts: Contacts, name: str, type_: Any) -> None:
    async with contacts.pool.acquire() as connection, connection.transaction():
        await contacts.book.definitions.create(connection, TENANT, name, type_, "", now=contacts.clock())


async def suppress(
    contacts: Contacts, address: str = "ann@example.com", *, reason: Reason = Reason.UNSUBSCRIBE, **scope: Any
) -> None:
    entry = Suppression(
        address, tenant=TENANT, reason=reason, source="test", created_at=contacts.clock() - timedelta(hours=1), **scope
    )
    await contacts.suppressions.add([entry])


async def listed(contacts: Contacts, **filters: Any) -> list[str]:
    found: list[str] = []
    before = (1 << 63) - 1
    while True:
        page = await contacts.book.contacts.list(TENANT, ContactFilters(**filters), limit=2, before=before)
        found += [each.email for each in page.contacts]
        if page.position is None:
            return found
        before = page.position


async def test_of_many_who_create_one_address_at_once_one_does(contacts: Contacts) -> None:
    spellings = ["Ann@example.com", "ann@EXAMPLE.com", '"ann"@example.com', "ANN@example.com", "ann@example.com"]

    done = await asyncio.gather(*(contacts.add(each, tags=["b", "a"]) for each in spellings), return_exceptions=True)

    made = [each for each in done if isinstance(each, int)]
    refused = [each for each in done if isinstance(each, ContactExistsError)]
    assert (len(made), len(refused)) == (1, 4)
    assert {each.contact_id for each in refused} == set(made)
    assert await contacts.add(tenant="other") not in made


async def test_changes_of_one_contact_at_once_are_all_kept(contacts: Contacts) -> None:
    ann = await contacts.add(custom_fields={"gone": 1})

    await asyncio.gather(
        *(change(contacts, ann, custom_fields={f"field{n}": n}) for n in range(5)),
        change(contacts, ann, custom_fields={"gone": None}),
        change(contacts, ann, first_name="Ann", tags=["b", "a"]),
        contacts.book.subscriptions.unsubscribe(TENANT, ann, reason="", source="api:test"),
    )

    contact = await contacts.book.contacts.get(TENANT, ann)
    assert contact is not None
    assert contact.custom_fields == {f"field{n}": n for n in range(5)}
    assert (contact.first_name, contact.tags, contact.status) == ("Ann", ["a", "b"], "unsubscribed")


async def test_whoever_unsubscribed_gets_no_other_address(contacts: Contacts) -> None:
    ann, bob = await contacts.add(), await contacts.add("bob@example.com")
    await contacts.book.subscriptions.unsubscribe(TENANT, ann, reason="", source="api:test")

    with pytest.raises(Refused, match="way around"):
        await change(contacts, ann, email="ann2@example.com")
    with pytest.raises(ContactExistsError) as there:
        await change(contacts, bob, email="ANN@example.com")
    assert there.value.contact_id == ann
    assert await change(contacts, ann, email="Ann@example.com")  # the same in another spelling
    assert await change(contacts, bob, email="rob@example.com")
    ids = [await contacts.add(f"c{n}@example.com") for n in range(3)]
    done = await asyncio.gather(
        *(change(contacts, each, email="one@example.com") for each in ids), return_exceptions=True
    )
    assert sorted(isinstance(each, ContactExistsError) for each in done) == [False, True, True]


async def test_counts_stay_exact_whatever_happens_at_once(contacts: Contacts) -> None:
    news, deals = await contacts.add_list("news"), await contacts.add_list("deals")
    ids = [await contacts.add(f"c{n}@example.com") for n in range(8)]
    book = contacts.book

    async def join(list_id: int, some: list[int]) -> None:
        await contacts.join(list_id, *some)

    async def remove(list_id: int, some: list[int]) -> None:
        await book.members.remove(TENANT, list_id, some, source="test", now=contacts.clock())

    for _ in range(3):
        await asyncio.gather(
            join(news, ids),
            join(deals, ids[::-1]),
            join(news, ids[4:]),
            remove(news, ids[2:6]),
            remove(deals, ids[:3]),
            *(
                book.subscriptions.unsubscribe(TENANT, each, list_id=news, reason="", source="api:x")
                for each in ids[:2]
            ),
            book.subscriptions.unsubscribe(TENANT, ids[3], reason="", source="api:x"),
            book.contacts.delete(TENANT, ids[7]),
        )
        for list_id in (news, deals):
            await contacts.count(list_id)
    orphans = "SELECT count(*) FROM list_contacts WHERE contact_id NOT IN (SELECT id FROM contacts)"
    assert await contacts.pool.fetchval(orphans) == 0
    assert (await contacts.join(news, ids[7])).missing == [ids[7]]

    async def again(list_id: int) -> object:
        return await contacts.join(list_id, *ids)

    done = await asyncio.gather(
        again(news), book.lists.delete(TENANT, news), again(news), again(news), return_exceptions=True
    )
    assert done[1] is True
    assert {type(each) for each in done} <= {bool, Refused, Added}
    assert await contacts.pool.fetchval("SELECT count(*) FROM list_contacts WHERE list_id = $1", news) == 0


async def test_a_list_of_another_tenant_is_none(contacts: Contacts) -> None:
    theirs, ann = await contacts.add_list(tenant="other"), await contacts.add()
    bob = await contacts.add("bob@example.com", tenant="other")
    news = await contacts.add_list()

    with pytest.raises(Refused, match="no such list"):
        await contacts.join(theirs, ann)
    assert (await contacts.join(news, ann, bob)).missing == [bob]
    assert await contacts.book.lists.get(TENANT, theirs) is None
    assert not await contacts.book.lists.delete(TENANT, theirs)
    assert not await contacts.book.contacts.delete(TENANT, bob)
    assert await contacts.book.contacts.get(TENANT, bob) is None


async def test_contacts_are_found_by_what_they_are(contacts: Contacts) -> None:
    news = await contacts.add_list()
    ids = [await contacts.add(f"c{n}@example.com", tags=["odd"] if n % 2 else []) for n in range(5)]
    await contacts.add("c9@example.com", tenant="other")
    await contacts.join(news, *ids[1:4])
    await contacts.book.subscriptions.unsubscribe(TENANT, ids[1], reason="", source="api:test")
    odd = await contacts.book.tags.find(TENANT, "odd")

    assert await listed(contacts) == [f"c{n}@example.com" for n in (4, 3, 2, 1, 0)]
    assert await listed(contacts, address="c3@example.com") == ["c3@example.com"]
    assert await listed(contacts, address="c9@example.com") == []
    assert await listed(contacts, tag_id=odd) == ["c3@example.com", "c1@example.com"]
    assert await listed(contacts, list_id=news) == ["c3@example.com", "c2@example.com"]
    assert await listed(contacts, tag_id=odd, list_id=news) == ["c3@example.com"]
    assert await listed(contacts, status="unsubscribed") == ["c1@example.com"]
    assert await listed(contacts, tag_id=odd, status="active") == ["c3@example.com"]


async def test_a_deleted_tag_is_on_nobody(contacts: Contacts) -> None:
    ann = await contacts.add(tags=["vip", "old"])
    vip = await contacts.book.tags.find(TENANT, "vip")
    assert vip is not None

    done = await asyncio.gather(
        contacts.book.tags.delete(TENANT, vip), *(change(contacts, ann, tags=["vip", f"t{n}"]) for n in range(3))
    )

    assert done[0] is True
    stale = "SELECT count(*) FROM contact_tags WHERE tag_id NOT IN (SELECT id FROM tags)"
    assert await contacts.pool.fetchval(stale) == 0


async def test_a_type_is_refused_that_values_do_not_fit_and_held_to_afterwards(contacts: Contacts) -> None:
    ann = await contacts.add(custom_fields={"seats": "5", "since": "2026-01-31"})
    await contacts.add("bob@example.com", tenant="other", custom_fields={"plan": 5})

    with pytest.raises(Refused) as refused:
        await define(contacts, "seats", "number")
    assert refused.value.name == "values_do_not_fit"
    await define(contacts, "since", "date")
    await define(contacts, "plan", "text")
    await change(contacts, ann, custom_fields={"seats": 5})
    await define(contacts, "seats", "number")

    with pytest.raises(FieldsRefusedError) as told:
        await change(contacts, ann, custom_fields={"seats": "many", "since": "yesterday"})
    assert [problem.name for problem in told.value.problems] == ["seats", "since"]
    with pytest.raises(Refused, match="is no boolean"):
        await contacts.book.definitions.change(TENANT, "seats", type_="boolean", label=None)
    assert await fields(contacts, ann) == {"seats": 5, "since": "2026-01-31"}
    done = await asyncio.gather(
        define(contacts, "size", "number"),
        *(change(contacts, ann, custom_fields={"size": size}) for size in ("large", 5, "small")),
        return_exceptions=True,
    )
    size = (await fields(contacts, ann)).get("size")
    assert done[0] is None or isinstance(done[0], Refused)
    assert size is None or isinstance(size, str if done[0] else int)


async def test_an_erased_person_leaves_nothing_but_what_must_stay(contacts: Contacts) -> None:
    book, now = contacts.book, contacts.clock()
    consent = ConsentFacts(method="form", ip="203.0.113.7", at=now)
    ann = await contacts.add("Ann@Example.com", tags=["vip"], consent=consent, custom_fields={"plan": "pro"})
    news = await contacts.add_list()
    await contacts.join(news, ann)
    entry = Suppression(
        "ann@example.com", tenant=TENANT, reason=Reason.MANUAL, source="api:x", detail="Ann called", created_at=now
    )
    await contacts.suppressions.add([entry])
    await _mail(contacts, 1, "Ann@example.com", {"recipients": 1, "subject": "Dear Ann", "size": 7})
    await _mail(contacts, 2, "ann@example.com", {"recipients": 2, "subject": "Dear all", "size": 7})
    await contacts.pool.execute(
        "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, message_id) VALUES (3, $1, $2, 1)", ann, now
    )
    await contacts.pool.execute("INSERT INTO engagements VALUES ($1, $2, 3, 1, 2, false, 0)", now, ann)
    person = await book.persons.export(TENANT, ann)
    assert person is not None
    assert (len(person.events), len(person.campaigns), len(person.engagements)) == (5, 1, 1)
    assert [each.detail for each in person.suppressions] == ["Ann called"]

    done = await book.erasures.erase(TENANT, ann)

    assert (done.suppressions, done.events) == (1, 5)
    assert await contacts.count(news) == 0
    left = await _mentions(contacts, "ann@example.com", "Ann called", "Dear Ann", "203.0.113.7", "550 no Ann")
    assert left == {"suppressions"}
    events = await contacts.pool.fetch("SELECT address, data FROM events WHERE message_id = 2 ORDER BY type")
    assert {row["address"] for row in events} == {f"con_{ann}@erased.invalid"}
    assert events[0]["data"]["subject"] == "Dear all"  # it is not this person's alone
    assert await contacts.pool.fetchval("SELECT count(*) FROM campaign_contacts WHERE contact_id = $1", ann) == 1
    with pytest.raises(Refused, match="no such contact"):
        await book.erasures.erase(TENANT, ann)


async def test_no_event_keeps_any_spelling_of_an_erased_address(contacts: Contacts) -> None:
    now = contacts.clock()
    ute = await contacts.add("Complain+Ute@Example.NET")
    tom = await contacts.add("Tom@Example.NET")
    ledger = "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, message_id) VALUES (3, $1, $2, 1)"
    await contacts.pool.execute(ledger, ute, now)
    await _mail(contacts, 1, "COMPLAIN+Ute@example.net", {"recipients": 1})  # the contact was spelt so at that time
    await _mail(contacts, 2, "Complain+Ute@example.net", {"recipients": 2})
    await _mail(contacts, 4, "complain+UTE@example.net", {"recipients": 1})  # no campaign's; it bounced
    bounce = Suppression(
        "complain+ute@example.net", tenant=TENANT, reason=Reason.BOUNCE, source="x", message_id=4, created_at=now
    )
    await contacts.suppressions.add([bounce])
    told = [
        ("email.opened", 1, "complain+ute@example.net", TENANT),
        ("suppression.added", 1, "complain+ute@example.net", ""),  # it binds all tenants, and came of this mail
        ("suppression.removed", 0, "complain+ute@example.net", TENANT),
        ("contact.unsubscribed", 0, "Complain+Ute@example.net", TENANT),
        ("contact.unsubscribed", 0, "complain+ute@example.net", "other"),
        ("recipient.delivered", 2, "tom@example.net", TENANT),
    ]
    for type_, message_id, address, tenant in told:
        await _event(contacts, type_, message_id, address, {"url": "https://x.example/?m=ute"}, tenant=tenant)

    done = await contacts.book.erasures.erase(TENANT, ute)

    events = await contacts.pool.fetch("SELECT type, address, tenant, data FROM events ORDER BY type")
    left = [row for row in events if "ute@" in row["address"].lower()]
    assert [(row["type"], row["tenant"]) for row in left] == [("contact.unsubscribed", "other")]
    anonymous = [row for row in events if row["address"] == f"con_{ute}@erased.invalid"]
    assert len(anonymous) == done.events == 11
    assert not any("url" in row["data"] for row in anonymous)
    assert await contacts.book.erasures.erase(TENANT, tom)


async def test_who_was_erased_comes_back_by_a_later_consent_only(contacts: Contacts) -> None:
    ann, bob = await contacts.add(), await contacts.add("bob@example.com")
    await contacts.book.erasures.erase(TENANT, ann)
    contacts.clock.advance(hours=1)
    erased = await contacts.book.erasures.erased(TENANT, ["ann@example.com", "bob@example.com"])
    assert list(erased) == ["ann@example.com"]

    old = ConsentFacts(method="form", at=contacts.clock() - timedelta(hours=2))
    for consent in (None, old):
        with pytest.raises(Refused) as refused:
            await contacts.add("Ann@example.com", consent=consent)
        assert refused.value.name == "erased"
    with pytest.raises(Refused, match="erased"):
        await change(contacts, bob, email="ann@example.com")
    assert await contacts.add(tenant="other")
    again = await contacts.add(consent=ConsentFacts(method="form", at=contacts.clock()))

    assert await contacts.status(again) == "active"
    assert await contacts.book.erasures.erased(TENANT, ["ann@example.com"]) == {}


async def test_who_is_erased_while_they_are_created_stays_erased(contacts: Contacts) -> None:
    for _ in range(5):
        ann = await contacts.add(consent=ConsentFacts(method="form", at=contacts.clock()))
        contacts.clock.advance(seconds=1)

        done = await asyncio.gather(
            contacts.book.erasures.erase(TENANT, ann), *(contacts.add() for _ in range(3)), return_exceptions=True
        )

        assert not isinstance(done[0], BaseException)
        assert all(isinstance(each, Refused) for each in done[1:])
        assert await contacts.book.contacts.find(TENANT, "ann@example.com") is None
        contacts.clock.advance(seconds=1)


async def test_tenants_cannot_grow_without_end(contacts: Contacts) -> None:
    await contacts.pool.execute(
        "INSERT INTO tags (tenant, name) SELECT $1, 't' || n FROM generate_series(1, 9999) n", TENANT
    )
    await contacts.pool.execute(
        "INSERT INTO contact_lists (tenant, name, created_by) SELECT $1, n::text, '' FROM generate_series(1, 10000) n",
        TENANT,
    )
    await contacts.pool.execute(
        """INSERT INTO custom_field_definitions (tenant, name, type)
           SELECT $1, 'f' || n, 'text' FROM generate_series(1, 500) n""",
        TENANT,
    )

    with pytest.raises(Refused, match="tags"):
        await contacts.add(tags=["one", "two"])
    assert await contacts.add(tags=["one", "t7"])
    with pytest.raises(Refused, match="lists"):
        await contacts.add_list()
    with pytest.raises(Refused, match="definitions"):
        await define(contacts, "one_more", "text")


async def _mail(contacts: Contacts, message_id: int, address: str, facts: dict[str, Any]) -> None:
    """A mail that was accepted and bounced."""
    for type_, data in (("message.accepted", facts), ("recipient.bounced", {"code": 550, "text": "550 no Ann"})):
        await _event(contacts, type_, message_id, address, data)


async def _event(
    contacts: Contacts, type_: str, message_id: int, address: str, data: dict[str, Any], *, tenant: str = TENANT
) -> None:
    await contacts.pool.execute(
        "INSERT INTO events (at, type, message_id, n, address, tenant, data) VALUES ($1, $2, $3, 1, $4, $5, $6)",
        contacts.clock(),
        type_,
        message_id,
        address,
        tenant,
        data,
    )


async def _mentions(contacts: Contacts, *texts: str) -> set[str]:
    """The tables in which any of these texts stands."""
    tables = await contacts.pool.fetch(
        """SELECT relname FROM pg_class
            WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace"""
    )
    found = set()
    for (name,) in tables:
        rows = await contacts.pool.fetch(f"SELECT t::text AS row FROM {name} AS t")
        if any(text.lower() in row["row"].lower() for row in rows for text in texts):
            found.add(name)
    return found


async def test_whoever_left_a_list_has_left_it_by_both_addresses_when_his_changes(contacts: Contacts) -> None:
    news = await contacts.add_list()
    ann = await contacts.add(list_ids=[news])
    await contacts.book.subscriptions.unsubscribe(TENANT, ann, list_id=news, reason="", source="api:test")

    assert await change(contacts, ann, email="ann2@example.com")
    again = await contacts.add(list_ids=[news])

    assert await contacts.statuses(again) == {news: "unsubscribed"}
    await contacts.book.members.remove(TENANT, news, [ann], source="test", now=contacts.clock())
    await contacts.join(news, ann)
    assert await contacts.statuses(ann) == {news: "unsubscribed"}
    assert await contacts.count(news) == 0
    for email in ("ann3@example.com", "ann2@example.com"):  # and there and back makes no records
        assert await change(contacts, ann, email=email)
    assert await contacts.pool.fetchval("SELECT count(*) FROM consents WHERE address = 'ann2@example.com'") == 1


@pytest.mark.parametrize("reason", [Reason.UNSUBSCRIBE, Reason.MANUAL])
async def test_a_bounce_hides_nothing_that_forbids_another_address(contacts: Contacts, reason: Reason) -> None:
    """The worst is shown as the status, and that is the bounce."""
    ann = await contacts.add()
    for each in (reason, Reason.BOUNCE):
        await suppress(contacts, reason=each, stream=STREAM if each is Reason.UNSUBSCRIBE else "")
    assert await contacts.status(ann) == "bounced"

    with pytest.raises(Refused, match="another address would be a way around that"):
        await change(contacts, ann, email="ann2@example.com")


async def test_topics_and_streams_that_were_left_stay_left_when_the_address_changes(contacts: Contacts) -> None:
    """And when it changes back: mail to the former address may be in the queue still."""
    ann = await contacts.add()
    await suppress(contacts, stream=STREAM, topic="offers")
    await suppress(contacts, stream="digest")
    await suppress(contacts, reason=Reason.BOUNCE)
    await suppress(contacts, stream=STREAM, topic="over", expires_at=contacts.clock() - timedelta(seconds=1))

    assert await change(contacts, ann, email="ann2@example.com")

    await suppress(contacts, "ann2@example.com", stream=STREAM, topic="news")
    assert await change(contacts, ann, email="ann@example.com")
    assert await contacts.status(ann) == "bounced"
    held = {each: set[tuple[str, str]]() for each in ("ann@example.com", "ann2@example.com")}
    for address, left in held.items():
        entries = await contacts.suppressions.list(tenant=TENANT, limit=9, address=address, holding_at=contacts.clock())
        left |= {(each.stream, each.topic) for each in entries if each.reason is Reason.UNSUBSCRIBE}
    assert held["ann@example.com"] == held["ann2@example.com"] == {(STREAM, "offers"), ("digest", ""), (STREAM, "news")}


async def test_no_change_of_address_puts_an_address_on_a_list_that_it_has_left(contacts: Contacts) -> None:
    news, offers = await contacts.add_list(), await contacts.add_list("offers")
    bob = await contacts.add("bob@example.com", list_ids=[news])
    await contacts.book.subscriptions.unsubscribe(TENANT, bob, list_id=news, reason="", source="api:test")
    await contacts.book.contacts.delete(TENANT, bob)
    contacts.clock.advance(minutes=1)
    agreed = ConsentFacts(method="form", at=contacts.clock())
    ann = await contacts.add(list_ids=[news, offers], consent=agreed)

    assert await change(contacts, ann, email="bob@example.com")

    assert await contacts.statuses(ann) == {news: "unsubscribed", offers: "subscribed"}
    assert (await contacts.count(news), await contacts.count(offers)) == (0, 1)
    [last, *_] = await contacts.book.subscriptions.history(TENANT, ann)
    assert (last.list_id, last.was, last.became, last.source) == (news, "subscribed", "unsubscribed", "address")
    await contacts.book.members.remove(TENANT, news, [ann], source="test", now=contacts.clock())
    await contacts.join(news, ann)
    assert (await contacts.statuses(ann))[news] == "unsubscribed"


async def test_erasing_forgets_earlier_addresses_too_and_nobody_comes_back_by_them(contacts: Contacts) -> None:
    ann, news = await contacts.add("ann@old.example"), await contacts.add_list()
    await contacts.join(news, ann)
    await contacts.book.subscriptions.unsubscribe(TENANT, ann, list_id=news, reason="", source="api:test")
    assert await change(contacts, ann, email="ann@new.example")
    assert await _mentions(contacts, "ann@old.example") == {"consents"}

    await contacts.book.erasures.erase(TENANT, ann)

    assert await _mentions(contacts, "ann@old.example", "ann@new.example") == set()
    for address in ("ann@old.example", "ann@new.example"):
        with pytest.raises(Refused, match="erased"):
            await contacts.add(address)
