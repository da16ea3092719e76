"""Files of contacts over HTTP: in, how far, which rows were refused, and out again."""

import asyncio
import csv
import io
from typing import Any

import aiohttp
import pytest

from mailerd.campaigns.contacts.imports.importer import Importer
from mailerd.queue.suppression import SuppressionStore
from tests.web.conftest import SECRET, Answer, Api

PATH = "/api/v1/contacts/imports"
CSV = {"Content-Type": "text/csv"}
FILE = "Email,First Name,Phone,Shoe\r\nann@example.com,Ann,+49 30 1,38\r\nnobody,,,\r\nbob@example.com,=1+1,,\r\n"


@pytest.fixture
def importer(api: Api, database: str) -> Importer:
    return Importer(database, api.relay.pool, SuppressionStore(api.relay.pool), SECRET)


async def send(api: Api, data: str | bytes | io.BytesIO, query: str = "", **rest: Any) -> Answer:
    return await api.ask("POST", f"{PATH}{query}", data=data, headers=CSV, **rest)


async def done(api: Api, importer: Importer, answer: Answer) -> Any:
    assert answer.status == 202, answer.text
    while await importer.work():
        pass
    return (await api.ask("GET", answer.headers["Location"])).json


async def test_a_file_is_imported_and_its_refused_rows_are_a_file(api: Api, importer: Importer) -> None:
    list_id = (await api.ask("POST", "/api/v1/lists", json={"name": "news"})).json["list_id"]

    answer = await send(api, FILE, f"?list_id={list_id}&tags=vip,new&consent_method=form&consent_ip=192.0.2.1")
    before = (await api.ask("GET", answer.headers["Location"])).json
    after = await done(api, importer, answer)
    errors = await api.ask("GET", after["errors_url"])

    assert answer.json == {"import_id": before["import_id"], "status": "processing", "ignored_columns": ["Shoe"]}
    assert (before["status"], before["percent"], before["rows"]) == ("processing", 0.0, 0)
    assert (after["status"], after["percent"], after["eta"]) == ("completed", 100.0, None)
    assert (after["rows"], after["created"], after["refused"], after["list_id"]) == (3, 2, 1, list_id)
    rows = list(csv.DictReader(io.StringIO(errors.text)))
    (row,) = rows
    assert (row.pop("import_line"), row.pop("import_code")) == ("3", "invalid_email")
    assert row.pop("import_reason").startswith("Email (email): ")
    assert list(row) == FILE.splitlines()[0].split(",")
    assert row["Email"] == "nobody"
    (ann,) = (await api.ask("GET", "/api/v1/contacts?email=ann@example.com")).json["data"]
    assert (ann["first_name"], ann["phone"], ann["tags"]) == ("Ann", "+49 30 1", ["new", "vip"])
    listed = (await api.ask("GET", PATH)).json
    assert [each["import_id"] for each in listed["data"]] == [after["import_id"]]


async def test_contacts_of_a_json_body_are_imported_once_for_a_key(api: Api, importer: Importer) -> None:
    body = {"contacts": [{"email": "ann@example.com", "first_name": "Ann"}, {"email": "x"}, {"mail": "y"}]}
    once = {"Idempotency-Key": "one"}

    answer = await api.ask("POST", "/api/v1/contacts/import", json=body, headers=once)
    again = await api.ask("POST", "/api/v1/contacts/import", json=body, headers=once)
    view = await done(api, importer, answer)

    assert answer.json["status"] == "processing"
    assert again.json == answer.json
    assert (view["rows"], view["created"], view["refused"]) == (3, 1, 2)
    errors = await api.ask("GET", view["errors_url"])
    assert [line.split(",")[:2] for line in errors.text.splitlines()[1:]] == [["2", "invalid_email"], ["3", "invalid"]]


async def test_files_that_come_at_the_same_time_do_not_wait_for_each_other(api: Api) -> None:
    """There are few connections to the database, and mail goes by them too."""
    answers = await asyncio.wait_for(asyncio.gather(*(send(api, FILE) for _ in range(12))), 8)

    assert [answer.status for answer in answers] == [202] * 12


async def test_a_form_brings_a_file_too(api: Api, importer: Importer) -> None:
    form = aiohttp.FormData()
    form.add_field("mapping", '{"Mail": "email", "Shoe": "custom_fields.shoe"}')
    form.add_field("dry_run", "true")
    form.add_field("file", "Mail;Shoe\nann@example.com;38\n", filename="people.csv", content_type="text/csv")

    view = await done(api, importer, await api.ask("POST", PATH, data=form))

    assert (view["status"], view["dry_run"], view["created"]) == ("completed", True, 1)
    assert view["columns"] == ["email", "custom_fields.shoe"]
    assert (await api.ask("GET", "/api/v1/contacts")).json["data"] == []


REFUSED = (
    ("name,shoe\nann,38\n", "", 422, "name, shoe"),
    ("", "", 422, "empty"),
    ("email,mail\na@b.example,c@d.example\n", "", 422, "email, mail"),
    ("x," * 10_000 + "email\n", "", 422, "10,001 columns"),
    ("\0\0\0", "", 422, "No column"),
    ("mail\na@b.example\n", "?mapping={}x", 422, "JSON object"),
    ("mail\na@b.example\n", '?mapping={"mail":"shoe"}', 422, "expected email"),
    ("mail\na@b.example\n", '?mapping={"post":"email"}', 422, "has not: post"),
    ("mail\na@b.example\n", "?list_id=lst_9", 422, "no list"),
    ("mail\na@b.example\n", "?consent_ip=192.0.2.1", 422, "how they agreed"),
    ("mail\na@b.example\n", "?encoding=latin", 422, ""),
    ("mail\na@b.example\n", "?tags=%20%00", 422, "tag"),
    ("mail\n" + "a@b.example\n" * 100_000, "", 413, "1,000,000"),
)


async def test_what_cannot_be_imported_is_refused_at_once_and_leaves_nothing(api: Api) -> None:
    for data, query, status, word in REFUSED:
        answer = await send(api, io.BytesIO(data.encode()), query)

        assert (answer.status, word in answer.text) == (status, True), answer.text
    assert (await send(api, FILE, key="reader")).status == 403
    assert (await api.ask("POST", PATH, data=b"%PDF", headers={"Content-Type": "application/pdf"})).status == 415
    assert (await api.ask("GET", PATH)).json["data"] == []
    for table in ("contact_imports", "contact_import_parts"):
        assert await api.relay.pool.fetchval(f"SELECT count(*) FROM {table}") == 0


FORM = "multipart/form-data; boundary=x"
BROKEN_FORMS = (
    (b"--x\r\n", FORM),
    (b"nothing", "multipart/form-data"),
    (b'--x\r\nContent-Disposition: form-data; name="a\x01"\r\n\r\n1\r\n--x--\r\n', FORM),
    (b'--x\r\nContent-Disposition: form-data; name="mode"\r\n\r\nskip\r\n--x--\r\n', FORM),
    (b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nema', FORM),
    (b'--x\r\nContent-Disposition: form-data; name="mode"\r\n\r\n' + b"x" * 70_000 + b"\r\n--x--\r\n", FORM),
    (b'--x\r\nContent-Disposition: form-data; name="mode"\r\n\r\n\xff\r\n--x--\r\n', FORM),
    (b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--\r\n", FORM),
)


async def test_broken_forms_are_told_and_leave_nothing(api: Api) -> None:
    for body, kind in BROKEN_FORMS:
        answer = await api.ask("POST", PATH, data=body, headers={"Content-Type": kind})

        assert answer.status in (400, 422), (body, answer.text)
    assert await api.relay.pool.fetchval("SELECT count(*) FROM contact_imports") == 0


async def test_an_import_is_cancelled_and_belongs_to_its_tenant(api: Api, importer: Importer) -> None:
    path = (await send(api, FILE)).headers["Location"]

    for which in (path, f"{path}/errors.csv"):
        assert (await api.ask("GET", which, key="stranger")).status == 404
    assert (await api.ask("POST", f"{path}/cancel", key="stranger")).status == 404
    assert (await api.ask("GET", PATH, key="stranger")).json["data"] == []
    assert (await api.ask("POST", f"{path}/cancel")).json["status"] == "cancelled"
    assert (await api.ask("POST", f"{path}/cancel")).status == 409
    assert not await importer.work()
    assert (await api.ask("GET", f"{PATH}/cim_x")).status == 404


async def test_what_is_exported_is_safe_in_a_spreadsheet_and_comes_back_the_same(api: Api, importer: Importer) -> None:
    await done(api, importer, await send(api, FILE, "?unknown_columns=custom_fields"))
    exported = await api.ask("GET", "/api/v1/contacts/export")
    before = (await api.ask("GET", "/api/v1/contacts")).json["data"]
    for each in before:
        await api.ask("DELETE", f"/api/v1/contacts/{each['contact_id']}")

    view = await done(api, importer, await send(api, exported.body))
    after = (await api.ask("GET", "/api/v1/contacts")).json["data"]

    cells = [cell for row in csv.reader(io.StringIO(exported.text)) for cell in row]
    assert {"'=1+1", "'+49 30 1"} < set(cells)
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert (view["created"], view["refused"]) == (2, 0)
    kept = ("email", "first_name", "phone", "custom_fields")
    assert [[each[name] for name in kept] for each in after] == [[each[name] for name in kept] for each in before]


async def test_lists_and_segments_are_exported_by_themselves(api: Api, importer: Importer) -> None:
    made = (await api.ask("POST", "/api/v1/lists", json={"name": "news"})).json["list_id"]
    conditions = {"field": "first_name", "operator": "equals", "value": "Ann"}
    segment = await api.ask("POST", "/api/v1/segments", json={"name": "Anns", "conditions": conditions})
    await done(api, importer, await send(api, "email,first_name\nann@example.com,Ann\ncy@example.com,Cy\n"))
    await done(api, importer, await send(api, "email\nbob@example.com\n", f"?list_id={made}"))

    async def exported(query: str) -> list[str]:
        answer = await api.ask("GET", f"/api/v1/contacts/export?{query}")
        assert answer.status == 200, answer.text
        return [row["email"] for row in csv.DictReader(io.StringIO(answer.text))]

    assert await exported(f"list_id={made}") == ["bob@example.com"]
    assert await exported("") == ["ann@example.com", "cy@example.com", "bob@example.com"]
    if segment.status == 201:
        assert await exported(f"segment_id={segment.json['segment_id']}") == ["ann@example.com"]
    assert (await api.ask("GET", "/api/v1/contacts/export?list_id=lst_99")).status == 422
    assert (await api.ask("GET", f"/api/v1/contacts/export?list_id={made}", key="stranger")).status == 422


async def test_columns_whose_names_are_no_text_are_told_as_far_as_they_are(api: Api) -> None:
    for data, query, status in (
        (b"[0]", "?encoding=utf-16-be", 422),
        (b"mail,a\xff\0\na@b.example,1\n", "?encoding=utf-8", 202),
    ):
        answer = await send(api, io.BytesIO(data), query)

        assert answer.status == status, answer.text
