"""Imports on a real database: who is created, updated, left as he is, refused; nothing twice and nothing left out."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.campaigns.contacts.imports import store
from mailerd.campaigns.contacts.imports.refused import RefusedFile
from mailerd.campaigns.contacts.imports.store import Import
from mailerd.campaigns.contacts.imports.values import Consent
from mailerd.campaigns.contacts.store import erasure_hash
from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.db import connect_pool
from mailerd.queue.suppression import Reason, Suppression, SuppressionStore
from tests.campaigns.contacts.importing import SECRET, TENANT, Imports
from tests.support.postgres import TestPostgres

TABLES = (
    *("contacts", "custom_field_definitions", "tags", "contact_tags", "contact_lists", "list_contacts", "consents"),
    *("subscription_history", "erasures", "suppressions"),
    *("contact_imports", "contact_import_parts", "contact_import_errors"),
)


@pytest.fixture(scope="module")
def shared(postgres: TestPostgres) -> Iterator[str]:
    """One database for all of these tests: making one takes longer than most of them."""
    name = asyncio.run(postgres.fresh())
    yield postgres.url_of(name)
    asyncio.run(postgres.drop(name))


@pytest.fixture
async def imports(shared: str) -> AsyncIterator[Imports]:
    async with await connect_pool(shared, min=1, max=3) as pool:
        await pool.execute(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY")
        yield Imports(pool, shared)


async def suppress(imports: Imports, address: str, reason: Reason = Reason.BOUNCE, tenant: str = TENANT) -> None:
    entry = Suppression(address, tenant=tenant, reason=reason, source="test", created_at=datetime.now(UTC))
    await SuppressionStore(imports.pool).add([entry])


def counts(made: Import) -> dict[str, int]:
    """Those that are not nothing."""
    found = {name: getattr(made.counts, name) for name in made.counts.__struct_fields__}
    kinds = ("created", "updated", "unchanged", "skipped", "refused", "duplicates")
    assert found["rows"] == sum(found[name] for name in kinds), "each row is one of these"
    return {name: count for name, count in found.items() if count}


async def test_people_come_in_with_all_that_the_file_says(imports: Imports) -> None:
    list_id = await imports.list()
    await imports.pool.execute(
        "INSERT INTO custom_field_definitions (tenant, name, type) VALUES ('default', 'age', 'number')"
    )
    text = (
        "E-Mail;First Name;Surname;Mobile;TZ;Tags;custom_fields.age;Plan;Shoe\r\n"
        'Ann@Example.com;Ann;"Lee ""A"" \\ Co";+49 30 1;Europe/Berlin;vip, new;42;go\\ld;38\r\n'
        "\r\n"
        "bob@example.com;;;;;;;;\r\n"
        "nobody;;;;;;;;\r\n"
        "cy@example.com;Cy;;;;;old;;\r\n"
    )

    made = await imports.run(text, list_id=list_id, mapping={"Plan": "custom_fields.plan"}, tags=["all"])

    assert made.state == "completed"
    assert counts(made) == {"rows": 4, "created": 2, "refused": 2}
    assert made.position.ignored == ["Shoe"]
    ann = await imports.contact("ann@example.com")
    assert ann["email"] == "Ann@example.com"
    assert (ann["first_name"], ann["last_name"], ann["phone"]) == ("Ann", 'Lee "A" \\ Co', "+49 30 1")
    assert ann["custom_fields"] == {"age": 42, "plan": "go\\ld"}
    assert await imports.on_list(list_id) == {"ann@example.com": "subscribed", "bob@example.com": "subscribed"}
    assert [(row.line, row.code) for row in await imports.errors(made)] == [(5, "invalid_email"), (6, "invalid_field")]
    assert await imports.pool.fetchval("SELECT contact_count FROM contact_lists") == 2
    assert await imports.pool.fetchval("SELECT count(*) FROM contact_tags") == 4


async def test_a_german_spreadsheet_is_read_and_its_refused_rows_come_back_mended(imports: Imports) -> None:
    await imports.pool.execute(
        """INSERT INTO custom_field_definitions (tenant, name, type)
           VALUES ('default', 'price', 'number'), ('default', 'born', 'date'), ('default', 'likes', 'list')"""
    )
    mapping = {"Preis": "custom_fields.price", "Geboren": "custom_fields.born", "Mag": "custom_fields.likes"}
    text = (
        "sep=;\r\nE-Mail;Vorname;Preis;Geboren;Mag;x\r\n"
        "ann@x.example;Ann;1.234,50;17.05.1980;Rot, Blau;\r\n"
        "Bob <bob@x.example>;Bob;;;;'=1\r\n"
        'cy@x.example;"Cy ""C""; Ö";12,5x;;;=2\r\n'
        "dan@x.example;;;;;;;9\r\n"
    )

    made = await imports.run(text.encode("cp1252"), mapping=mapping)

    assert counts(made) == {"rows": 4, "created": 1, "refused": 3}
    assert (await imports.contact("ann@x.example"))["custom_fields"] == {
        "price": 1234.5,
        "born": "1980-05-17",
        "likes": ["Rot", "Blau"],
    }
    rows = await imports.errors(made)
    assert [(row.line, row.detail) for row in rows] == [
        (4, "E-Mail (email): it is a name and an address: only the address belongs here."),
        (5, "Preis (custom_fields.price): it is not a number."),
        (6, "The row has 8 cells, the header 6."),
    ]
    file = RefusedFile(made.settings, made.position)
    refused = file.head() + file.lines(rows)
    assert refused.splitlines()[0] == "\ufeffimport_line;import_code;import_reason;E-Mail;Vorname;Preis;Geboren;Mag;x"
    mended = refused.replace("Bob <bob@x.example>", "bob@x.example").replace("12,5x", "12,5").replace(";9", "")
    again = await imports.run(mended, mapping=mapping, unknown="custom_fields")
    assert counts(again) == {"rows": 3, "created": 3}
    cy = await imports.contact("cy@x.example")
    assert (cy["first_name"], cy["custom_fields"]) == ('Cy "C"; Ö', {"price": 12.5, "x": "=2"})
    assert (await imports.contact("bob@x.example"))["custom_fields"] == {"x": "=1"}


async def test_rows_that_cannot_be_kept_whole_are_told_of_by_their_beginning(imports: Imports) -> None:
    made = await imports.run(f'email,first_name\nnobody,{"x" * 9000}\nann@x.example,"open\n')

    file = RefusedFile(made.settings, made.position)
    long, broken = csv.reader(io.StringIO(file.lines(await imports.errors(made))))
    assert long[3] == "nobody," + "x" * 193
    assert broken[1::2] == ["unreadable", 'ann@x.example,"open\n']


async def test_who_is_there_is_updated_cell_by_cell_and_the_same_again_changes_nothing(imports: Imports) -> None:
    await imports.run("email,first_name,phone,custom_fields.a,custom_fields.b\na@x.example,Ann,1,one,two\n")
    before = await imports.contact("a@x.example")

    same = await imports.run("email,first_name,phone\nA@X.example,Ann,\n")
    unchanged = await imports.contact("a@x.example")
    other = await imports.run("email,first_name,phone,custom_fields.b\na@x.example,,2,three\n")

    assert counts(same) == {"rows": 1, "unchanged": 1}
    assert unchanged == before
    assert counts(other) == {"rows": 1, "updated": 1}
    after = await imports.contact("a@x.example")
    assert (after["first_name"], after["phone"]) == ("Ann", "2")
    assert after["custom_fields"] == {"a": "one", "b": "three"}
    assert after["updated_at"] > before["updated_at"]


async def test_json_takes_fields_away(imports: Imports) -> None:
    await imports.run('{"email": "a@x.example", "custom_fields": {"a": 1, "b": [], "c": null}}\n', format="json")
    made = await imports.run('{"email": "a@x.example", "custom_fields": {"a": null}}', format="json")

    assert counts(made) == {"rows": 1, "updated": 1}
    assert (await imports.contact("a@x.example"))["custom_fields"] == {"b": []}


async def test_of_rows_with_one_address_the_last_counts(imports: Imports) -> None:
    text = "email,first_name,phone\nb@x.example,Bob,1\na@x.example,Ann,\nB@x.example,,2\nb@x.example,Rob,\n"

    made = await imports.run(text)
    skipping = await imports.run(text.replace("@x", "@y"), mode="skip")

    assert counts(made) == counts(skipping) == {"rows": 4, "created": 2, "duplicates": 2}
    bob = await imports.contact("b@x.example")
    assert (bob["first_name"], bob["phone"]) == ("Rob", "2")
    assert (await imports.contact("b@y.example"))["first_name"] == "Bob"


async def test_mode_skip_leaves_alone_who_is_there(imports: Imports) -> None:
    list_id = await imports.list()
    await imports.run("email,first_name\na@x.example,Ann\n")

    made = await imports.run("email,first_name\na@x.example,Eve\nb@x.example,Bob\n", mode="skip", list_id=list_id)

    assert counts(made) == {"rows": 2, "created": 1, "skipped": 1}
    assert (await imports.contact("a@x.example"))["first_name"] == "Ann"
    assert await imports.on_list(list_id) == {"b@x.example": "subscribed"}


async def test_nobody_is_revived(imports: Imports) -> None:
    """Whoever unsubscribed, bounced or complained gets new fields and no subscription; who was erased gets nothing."""
    list_id = await imports.list()
    await imports.run("email\nleft@x.example\nbounced@x.example\nok@x.example\n", list_id=list_id)
    left = (await imports.contact("left@x.example"))["id"]
    await imports.pool.execute("UPDATE list_contacts SET status = 'unsubscribed' WHERE contact_id = $1", left)
    await imports.pool.execute("UPDATE contact_lists SET contact_count = 2")
    await suppress(imports, "bounced@x.example")
    await suppress(imports, "new@x.example", Reason.COMPLAINT, tenant="")
    await suppress(imports, "@y.example", Reason.MANUAL)
    said = """INSERT INTO consents (tenant, address, list_id, action, method, actor, at)
              VALUES ('default', 'deleted@x.example', $1, 'withdrawn', 'page', 'page', now())"""
    await imports.pool.execute(said, list_id)
    erased = "INSERT INTO erasures (tenant, hash) VALUES ($1, $2)"
    await imports.pool.execute(erased, TENANT, erasure_hash(SECRET, TENANT, "erased@x.example"))
    people = ("left@x", "bounced@x", "ok@x", "new@x", "any@y", "deleted@x", "erased@x", "other@x")
    text = "email,phone\n" + "".join(f"{who}.example,1\n" for who in people)

    made = await imports.run(text, list_id=list_id, consent=Consent(method="form", ip="192.0.2.1"))

    assert counts(made) == {
        "rows": 8,
        "created": 4,
        "updated": 3,
        "skipped": 1,
        "erased": 1,
        "not_subscribed": 5,
    }
    assert {who for who, status in (await imports.on_list(list_id)).items() if status == "subscribed"} == {
        "ok@x.example",
        "other@x.example",
        "bounced@x.example",  # as before: its mail is suppressed all the same
    }
    assert (await imports.contact("left@x.example"))["phone"] == "1"
    assert await imports.pool.fetchval("SELECT contact_count FROM contact_lists") == 3
    agreed = await imports.pool.fetch("SELECT address, ip FROM consents WHERE action = 'granted' ORDER BY 1")
    assert ("ok@x.example", "192.0.2.1") in [tuple(row) for row in agreed]
    assert "bounced@x.example" not in [row["address"] for row in agreed]


async def test_mode_unsubscribe_suppresses_and_marks(imports: Imports) -> None:
    lists = [await imports.list("one"), await imports.list("two")]
    for list_id in lists:
        await imports.run("email\na@x.example\nb@x.example\n", list_id=list_id)

    one = await imports.run("email\na@x.example\nstranger@x.example\n", mode="unsubscribe", list_id=lists[0])
    again = await imports.run("email\na@x.example\n", mode="unsubscribe", list_id=lists[0])
    all_ = await imports.run("email\nB@x.example\nstranger@x.example\n", mode="unsubscribe")
    back = await imports.run("email\nstranger@x.example\nb@x.example\n", list_id=lists[0])

    assert counts(one) == {"rows": 2, "updated": 2}
    assert counts(again) == {"rows": 1, "unchanged": 1}
    assert counts(all_) == {"rows": 2, "updated": 2}
    assert counts(back) == {"rows": 2, "created": 1, "unchanged": 1, "not_subscribed": 2}
    assert set((await imports.on_list(lists[0])).values()) == {"unsubscribed"}
    assert await imports.on_list(lists[1]) == {"a@x.example": "subscribed", "b@x.example": "unsubscribed"}
    assert (await imports.contact("b@x.example"))["unsubscribed_at"] is not None
    assert [row["contact_count"] for row in await imports.pool.fetch("SELECT * FROM contact_lists ORDER BY id")] == [
        0,
        1,
    ]
    assert await imports.pool.fetchval("SELECT count(*) FROM subscription_history") == 3
    suppressed = await imports.pool.fetch("SELECT address FROM suppressions ORDER BY 1")
    assert [row["address"] for row in suppressed] == ["b@x.example", "stranger@x.example"]


async def test_who_leaves_at_the_moment_of_an_import_of_those_who_left_is_not_in_its_way(imports: Imports) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    await imports.run("Email\nann@example.org\n")
    made = await imports.receive(b"Email\nann@example.org\n", mode="unsubscribe")

    async with imports.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '10ms'")  # it is we who would notice
        await connection.execute("SELECT FROM contacts FOR UPDATE")
        importing = asyncio.create_task(imports.importer().advance(made.id))
        async with asyncio.timeout(30):
            while not await imports.pool.fetchval(waiting):
                await asyncio.sleep(0.01)
        entry = Suppression(
            "ann@example.org",
            tenant=TENANT,
            stream=STREAM,
            reason=Reason.UNSUBSCRIBE,
            source="page",
            created_at=datetime.now(UTC),
        )
        await SuppressionStore(imports.pool).add([entry], connection)

    assert await importing
    assert (await imports.get(made.id)).state == "completed"


async def test_who_did_not_hear_that_a_file_was_received_cannot_take_it_away(imports: Imports) -> None:
    made = await imports.receive(b"Email\nann@example.org\n")
    await imports.store.forget(made.id)

    assert await imports.importer().advance(made.id)
    assert (await imports.get(made.id)).state == "completed"


async def test_an_import_whose_file_is_gone_keeps_no_other_from_its_turn(imports: Imports) -> None:
    gone, other = [await imports.receive(b"Email\nann@example.org\n") for _ in range(2)]
    await imports.pool.execute("DELETE FROM contact_import_parts WHERE import_id = $1", gone.id)

    assert await imports.importer().work()
    assert (await imports.get(other.id)).state == "completed"


async def test_refused_rows_are_dropped_some_time_after_the_end_since_there_are_addresses_in_them(
    imports: Imports,
) -> None:
    made = await imports.run("Email\n" + "nobody\n" * 300)
    await imports.store.sweep(datetime.now(UTC))
    assert len(await imports.errors(made)) == 300

    await imports.store.sweep(datetime.now(UTC) + timedelta(days=31))
    assert await imports.errors(made) == []
    assert counts(await imports.get(made.id))["refused"] == 300


async def test_a_dry_run_counts_and_writes_nothing(imports: Imports) -> None:
    list_id = await imports.list()
    await imports.run("email,first_name\na@x.example,Ann\nb@x.example,Bob\n")
    before = await imports.state()
    text = "email,first_name,tags\na@x.example,Ann,t\nb@x.example,Rob,\nc@x.example,,\n"

    for mode, expected in (
        ("upsert", {"rows": 3, "created": 1, "updated": 1, "unchanged": 1}),
        ("skip", {"rows": 3, "created": 1, "skipped": 2}),
        ("unsubscribe", {"rows": 3, "updated": 3}),
    ):
        consent = Consent(method="form")
        made = await imports.run(text, mode=mode, dry_run=True, list_id=list_id, tags=["x"], consent=consent)
        assert counts(made) == expected
    assert await imports.state() == before


async def test_tenants_do_not_see_each_other(imports: Imports) -> None:
    await imports.run("email,first_name\na@x.example,Ann\n")

    made = await imports.run("email,first_name\na@x.example,Eve\n", tenant="other")

    assert counts(made) == {"rows": 1, "created": 1}
    names = await imports.pool.fetch("SELECT first_name FROM contacts ORDER BY tenant")
    assert [row["first_name"] for row in names] == ["Ann", "Eve"]


async def test_a_list_that_is_deleted_ends_the_import_with_words(imports: Imports) -> None:
    list_id = await imports.list()
    made = await imports.receive(b"email\na@x.example\n", list_id=list_id)
    await imports.pool.execute("DELETE FROM contact_lists")

    await imports.importer().advance(made.id)

    failed = await imports.get(made.id)
    assert (failed.state, failed.error) == ("failed", "There is no such list of yours.")
    assert await imports.pool.fetchval("SELECT count(*) FROM contacts") == 0
    assert await imports.pool.fetchval("SELECT count(*) FROM contact_import_parts") == 0


def people(number: int) -> bytes:
    """Quotes over several lines, repeated addresses, refused rows, a quote that is not closed, long lines."""
    lines = ["email,first_name,tags,custom_fields.note"]
    for n in range(number):
        note = f'"two\nlines, {n}"' if n % 3 == 0 else f"n{n}"
        address = "broken" if n % 11 == 5 else f"user{n % 37}@example{n % 37 % 5}.com"
        lines.append(f"{address},Ann{n},t{n % 4},{note}")
    lines.append('"x@y.example,not closed')
    return "\r\n".join(lines).encode()


class _KilledError(BaseException):
    pass


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of a file so small that there are many."""
    for module in ("store", "blocks", "receiving"):
        monkeypatch.setattr(f"mailerd.campaigns.contacts.imports.{module}.PART", 700)
    return 700


async def test_killed_after_any_block_it_goes_on_where_it_was(imports: Imports, small_parts: int) -> None:
    assert small_parts == store.PART
    list_id = await imports.list()
    data = people(120)
    made = await imports.receive(data, list_id=list_id, tags=["all"], consent=Consent(method="form"))
    blocks = 0

    def count(_: Import) -> None:
        nonlocal blocks
        blocks += 1

    await imports.importer(after_block=count).advance(made.id)
    whole, once = await imports.state(), await imports.get(made.id)
    assert blocks > 5
    for table in ("contacts", "list_contacts", "contact_tags", "tags", "consents", "contact_import_errors"):
        await imports.pool.execute(f"DELETE FROM {table}")
    await imports.pool.execute("UPDATE contact_lists SET contact_count = 0")

    def kill(_: Import) -> None:
        raise _KilledError

    again = await imports.receive(data, list_id=list_id, tags=["all"], consent=Consent(method="form"))
    kills = 0
    while (await imports.get(again.id)).state == "processing":
        try:
            await imports.importer(after_block=kill).advance(again.id)
        except _KilledError:
            kills += 1

    assert kills == blocks
    assert await imports.state() == whole
    assert counts(await imports.get(again.id)) == counts(once)
    assert once.counts.duplicates > 10
    assert {row.code for row in await imports.errors(again)} == {"unreadable", "invalid_email"}


async def test_two_importers_share_the_work_and_take_nothing_twice(imports: Imports, small_parts: int) -> None:
    files = [await imports.receive(people(60), list_id=await imports.list(f"list {n}")) for n in range(3)]

    async def work() -> None:
        importer = imports.importer()
        while await importer.work():
            pass

    await asyncio.gather(work(), work())

    done = [await imports.get(made.id) for made in files]
    assert {made.state for made in done} == {"completed"}
    assert sum(made.counts.created for made in done) == await imports.pool.fetchval("SELECT count(*) FROM contacts")
    for made in done:
        counts(made)


async def test_a_cancelled_import_stops_and_its_file_goes(imports: Imports, small_parts: int) -> None:
    made = await imports.receive(people(60))
    running: list[asyncio.Task[Any]] = []

    def cancel(work: Import) -> None:
        if not running:
            running.append(asyncio.create_task(imports.store.cancel(work.id, TENANT)))

    await imports.importer(after_block=cancel).advance(made.id)
    await running[0]
    await imports.store.sweep(datetime.now(UTC))

    ended = await imports.get(made.id)
    assert ended.state == "cancelled"
    assert 0 < ended.bytes_done < ended.bytes
    assert await imports.pool.fetchval("SELECT count(*) FROM contact_import_parts") == 0


async def test_more_refused_rows_than_are_kept_are_counted(imports: Imports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailerd.campaigns.contacts.imports.writing.MAX_ERRORS", 10)

    made = await imports.run("email\n" + "nobody\n" * 25)

    assert counts(made) == {"rows": 25, "refused": 25}
    assert len(await imports.errors(made)) == made.position.errors == 10
