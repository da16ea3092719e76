"""Pixels and tracked links over HTTP: answered whatever happens, never leading where their mail did not."""

import re
import struct
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from mailerd.campaigns.tracking.classifier import Classifier
from mailerd.campaigns.tracking.files import DIRECTORY, left_behind
from mailerd.campaigns.tracking.records import Hit, decode
from mailerd.config import Config
from mailerd.web.services import Services
from mailerd.web.tracking import PIXEL
from mailerd.wire.tracking import Tracking
from tests.support.database_proxy import DatabaseProxy
from tests.support.relay import Clock
from tests.web.conftest import EMAIL, SECRET, Api

TOKENS = Tracking(SECRET)
MESSAGE = 116_000_000_000_000_000
TARGET = "https://shop.example/a%2Fb%20c/?utm_source=news&utm_medium=email&x=%C3%BC+1&y=%zz#part?2"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
PIXEL_PATH = "/o/" + TOKENS.open_token(MESSAGE, 17, 33)


def click_path(url: str = TARGET, link: int = 3) -> str:
    return "/c/" + TOKENS.click_token(MESSAGE, 17, 33, link, url)


@dataclass
class Reader:
    """Follows links as mail programs do, without going where they lead."""

    api: Api
    directory: Path

    async def ask(self, method: str, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        url = URL(f"http://127.0.0.1:{self.api.port}{path}", encoded=True)
        named = {"User-Agent": FIREFOX} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.api.session.request(method, url, headers=named, allow_redirects=False) as response:
            return response, await response.read()

    def hits(self) -> list[Hit]:
        """Those in the files."""
        return [hit for path in left_behind(self.directory) for hit in decode(path.read_bytes()).hits]


@pytest.fixture
def reader(api: Api, tmp_path: Path) -> Reader:
    return Reader(api, tmp_path / DIRECTORY)


async def test_a_pixel_is_a_transparent_gif_that_nobody_keeps_and_the_hit_is_written(
    reader: Reader, services: Services
) -> None:
    for path in (PIXEL_PATH, PIXEL_PATH + ".gif"):
        response, body = await reader.ask("GET", path)
        assert (response.status, response.content_type, body) == (200, "image/gif", PIXEL)
        assert "no-store" in response.headers["Cache-Control"]
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "Set-Cookie" not in response.headers

    (hit,) = reader.hits()  # the second repeats the first
    assert (hit.kind, hit.message_id, hit.campaign_id, hit.contact_id) == ("opened", MESSAGE, 17, 33)
    assert (hit.method, hit.ip, hit.user_agent, hit.url) == ("GET", "127.0.0.1", FIREFOX, "")


SHOP = EMAIL | {
    "from": "shop@shop.example",
    "text": TARGET,
    "html": f'<p>Your <a href="{TARGET.replace("&", "&amp;")}">order</a></p>',
}


async def tracked_paths(api: Api, **tracking: bool) -> list[str]:
    """Of the links and pictures of a mail that was sent so."""
    answer = await api.send(SHOP | {"tracking": tracking})
    assert answer.status == 202
    message: Any = message_from_bytes((await api.delivered())[-1], policy=default)
    assert TARGET in message.get_body(("plain",)).get_content()
    html = message.get_body(("html",)).get_content()
    return re.findall(r'(?:href|src)="https://click.shop.example(/[^"]+)"', html)


async def test_one_message_is_tracked_when_it_asks_for_it_and_what_its_reader_does_becomes_its_events(
    reader: Reader, services: Services, now: Clock
) -> None:
    link, pixel = await tracked_paths(reader.api, opens=True, clicks=True)
    for path in (pixel, link):
        response, _ = await reader.ask("GET", path)
    assert response.headers["Location"] == TARGET

    services.tracker.start()
    await services.tracker.stop(5.0)
    now.advance(seconds=30)
    await Classifier(reader.api.relay.pool, Config(), now).turn()

    events = (await reader.api.ask("GET", "/api/v1/events?type=email.opened&type=email.clicked")).json["data"]
    told = [event["data"] for event in events]
    assert sorted(event["type"] for event in events) == ["email.clicked", "email.opened"]
    assert {data["to"] for data in told} == {"ann@example.net"}


async def test_a_message_is_tracked_as_far_as_it_asks(reader: Reader) -> None:
    assert await tracked_paths(reader.api) == []
    assert [path[:3] for path in await tracked_paths(reader.api, opens=True)] == ["/o/"]
    assert [path[:3] for path in await tracked_paths(reader.api, clicks=True)] == ["/c/"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"to": ["ann@example.net", "bob@example.net"]}, "tracking_one_recipient"),
        ({"from": "shop@example.com"}, "tracking_unavailable"),
        ({"html": "x" * 400_000}, "too_large_to_track"),
    ],
)
@pytest.mark.parametrize("changes", [{"max_body": 1_000_000}], indirect=True)
async def test_what_cannot_be_tracked_is_refused(api: Api, change: dict[str, Any], code: str) -> None:
    answer = await api.send(SHOP | {"tracking": {"opens": True}} | change)

    assert answer.status == 422
    assert answer.problem.code == code
    assert [fault.pointer for fault in answer.problem.errors] == ["/tracking"]


def test_the_pixel_is_one_pixel_and_none_is_seen() -> None:
    assert len(PIXEL) == 43
    assert PIXEL[:6] == b"GIF89a"
    assert struct.unpack("<HH", PIXEL[6:10]) == (1, 1)
    assert PIXEL[19:21] == b"\x21\xf9"  # graphic control extension (GIF89a section 23)
    assert PIXEL[22] & 1  # with a transparent colour


async def test_a_link_leads_where_it_did_to_the_last_letter(reader: Reader) -> None:
    response, body = await reader.ask("GET", click_path())

    assert (response.status, response.headers["Location"]) == (302, TARGET)
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response.headers["Cache-Control"]
    assert len(body) < 2_000
    (hit,) = reader.hits()
    assert (hit.kind, hit.link, hit.url, hit.contact_id) == ("clicked", 3, TARGET, 33)


async def test_locations_are_what_stood_in_the_mail_in_ascii(reader: Reader) -> None:
    same = [
        "http://user@shop.example:8080",
        "https://shop.example/?next=https://evil.example/",
        "https://shop.example/%0d%0aSet-Cookie:a=b",
        "https://shop.example/" + "x" * 1_979,
    ]
    for url, location in [
        *zip(same, same, strict=True),
        ("https://bücher.example/ä b", "https://xn--bcher-kva.example/%C3%A4%20b"),
    ]:
        response, _ = await reader.ask("GET", click_path(url))
        assert response.headers.getall("Location") == [location]
        assert "Set-Cookie" not in response.headers


async def test_a_forged_or_cut_token_leads_nowhere_and_nothing_is_kept(reader: Reader) -> None:
    good, pixel = click_path(), PIXEL_PATH
    forged = [good[:-1], good + "A", good[:40] + "A" + good[41:], "/c/" + pixel[3:], "/c/", "/c/a/b", "/c/%00"]
    forged += ["/c/https:%2F%2Fevil.example", good + "?url=https://evil.example/", good + ".gif"]
    for path in forged:
        response, body = await reader.ask("GET", path)
        if "?" in path:
            assert response.headers["Location"] == TARGET
            continue
        assert (response.status, response.content_type) == (404, "text/html")
        assert "Location" not in response.headers
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert b"evil" not in body
    for path in (pixel[:-1], pixel + "A", "/o/" + good[3:], "/o/x.gif", "/o/%ff", "/o/" + "A" * 7_000):
        response, body = await reader.ask("GET", path)
        assert (response.status, body) == (200, PIXEL)

    assert len(reader.hits()) == 1


async def test_the_forms_with_a_target_in_a_parameter_do_not_exist(reader: Reader) -> None:
    token = click_path()[3:]
    for path in (f"/click?c=cmp_17&t={token}&url=https://evil.example/", f"/open?c=cmp_17&t={PIXEL_PATH[3:]}"):
        response, _ = await reader.ask("GET", path)
        assert response.status == 404
        assert "Location" not in response.headers
    assert reader.hits() == []


async def test_head_is_answered_and_taken_as_what_it_is(reader: Reader) -> None:
    response, body = await reader.ask("HEAD", PIXEL_PATH)
    assert (response.status, response.headers["Content-Length"], body) == (200, "43", b"")
    response, body = await reader.ask("HEAD", click_path())
    assert (response.status, response.headers["Location"], body) == (302, TARGET, b"")
    response, _ = await reader.ask("HEAD", click_path()[:-1])
    assert response.status == 404

    assert [(hit.kind, hit.method) for hit in reader.hits()] == [("opened", "HEAD"), ("clicked", "HEAD")]


async def test_other_methods_are_refused_and_kept_out(reader: Reader) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        for path in (PIXEL_PATH, click_path()):
            response, _ = await reader.ask(method, path)
            assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert reader.hits() == []


async def test_any_host_is_answered(reader: Reader) -> None:
    response, _ = await reader.ask("GET", click_path(), Host="click.customer.example")
    assert response.headers["Location"] == TARGET


async def test_the_address_is_that_which_a_proxy_on_this_machine_names(reader: Reader) -> None:
    told = {
        "203.0.113.9": "203.0.113.9",
        "10.0.0.1, 203.0.114.9": "203.0.114.9",
        "2001:DB8::1": "2001:db8::1",
        "unknown": "127.0.0.1",
    }
    for named in told:
        await reader.ask("GET", PIXEL_PATH, X_Forwarded_For=named)
    assert [hit.ip for hit in reader.hits()] == list(told.values())


async def test_what_readers_send_is_cut_and_made_text(reader: Reader) -> None:
    await reader.ask("GET", PIXEL_PATH, User_Agent="ü" + "x" * 5_000)
    (hit,) = reader.hits()
    assert len(hit.user_agent) == 500


async def test_a_replayed_link_is_counted_and_not_written_each_time(reader: Reader) -> None:
    for _ in range(50):
        await reader.ask("GET", click_path())
    assert len(reader.hits()) == 1


async def test_answers_go_on_while_the_database_is_away_and_the_hits_are_stored_after(
    reader: Reader, services: Services, proxy: DatabaseProxy, api: Api
) -> None:
    proxy.stop()
    for link in range(1, 6):
        response, _ = await reader.ask("GET", click_path(link=link))
        assert response.headers["Location"] == TARGET
    response, body = await reader.ask("GET", PIXEL_PATH)
    assert body == PIXEL
    await proxy.start()
    await services.tracker.stop(5.0)

    assert await api.relay.pool.fetchval("SELECT count(*) FROM hits") == 6


async def test_answers_go_on_while_the_disk_is_full(
    reader: Reader, services: Services, tmp_path: Path, api: Api
) -> None:
    (tmp_path / DIRECTORY).touch()  # nothing can be written there
    response, _ = await reader.ask("GET", click_path())
    assert response.headers["Location"] == TARGET
    (tmp_path / DIRECTORY).unlink()
    await services.tracker.stop(5.0)

    assert await api.relay.pool.fetchval("SELECT count(*) FROM hits") == 1


async def test_the_document_has_them_and_no_key_is_needed(api: Api) -> None:
    document: Any = (await api.ask("GET", "/api/v1/openapi.json", key="none")).json
    for path in ("/o/{token}", "/c/{token}"):
        assert set(document["paths"][path]) == {"get", "head"}
        assert all(operation["security"] == [] for operation in document["paths"][path].values())
