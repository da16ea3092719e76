"""The frame around every operation, and the server below it: over sockets, also with what is hardly HTTP."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from mailerd.web.app import OPERATIONS, build_app
from mailerd.web.problems import Problem
from mailerd.web.server import HttpServer
from mailerd.web.services import Services
from tests.support.database_proxy import DatabaseProxy
from tests.web.conftest import EMAIL, Api
from tests.web.stubborn import StubbornSubmitter

JSON = {"Content-Type": "application/json"}


def head(tokens: dict[str, str]) -> bytes:
    """The beginning of a submission."""
    lines = ("POST /api/v1/emails HTTP/1.1", "Host: x", f"Authorization: Bearer {tokens['all']}")
    return "".join(f"{line}\r\n" for line in (*lines, "Content-Type: application/json")).encode()


async def talk(port: int, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are and read until the server closes; return status, headers, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    data = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body


def problem(body: bytes) -> Problem:
    return msgspec.json.decode(body, type=Problem, strict=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"from": "a@b.example"',
        b'{"from": NaN}',
        b"{'from': 1}",
        b'{"from": "\xff"}',
        b'{"from": "\\ud800"}',
        b'{"text": "x"} {}',
        b"\x00" * 1000,
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"nonsense": ' + b"[" * 100_000,
        b'{"emails": [' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_what_is_not_json_is_a_problem_and_breaks_nothing(api: Api, body: bytes) -> None:
    for path in ("/api/v1/emails", "/api/v1/emails/batch", "/api/v1/emails/raw"):
        answer = await api.ask("POST", path, data=body, headers=JSON)
        assert answer.problem.status in (400, 422)  # whatever is seen first
    assert (await api.send()).status == 202


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"x"', b"{}", b'{"emails": 7}', b'{"emails": [{}, 1, []]}'])
async def test_json_of_another_shape_is_invalid(api: Api, body: bytes) -> None:
    for path in ("/api/v1/emails", "/api/v1/emails/batch", "/api/v1/emails/raw"):
        assert (await api.ask("POST", path, data=body, headers=JSON)).problem.status == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_of_another_type_is_refused(api: Api, headers: dict[str, str]) -> None:
    answer = await api.ask("POST", "/api/v1/emails", data=b"{}", headers=headers)

    assert (answer.status, answer.problem.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "authorization", ["Bearer none", "Bearer wrong", "Basic YWxsOmFsbA==", "Bearer", "all", "Bearer a b"]
)
async def test_without_a_valid_key_nothing_is_answered(api: Api, authorization: str) -> None:
    for operation in OPERATIONS:
        if operation.scope:
            path = re.sub(r"\{\w+\}", "msg_0000000000000", operation.path)
            answer = await api.ask(operation.method, path, headers={"Authorization": authorization})
            assert (answer.status, answer.problem.code) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_every_operation_asks_for_its_scope(api: Api) -> None:
    for operation in OPERATIONS:
        if operation.scope:
            path = re.sub(r"\{\w+\}", "msg_0000000000000", operation.path)
            answer = await api.ask(operation.method, path, key="reader" if operation.scope == "send" else "sender")
            assert (answer.status, answer.problem.code) == (403, "forbidden")


async def test_an_unknown_path_is_a_problem(api: Api) -> None:
    for path in ("/", "/api/v1", "/api/v1/emails/", "/api/v2/emails", "//", "/%2e%2e/etc/passwd"):
        assert (await api.ask("GET", path)).problem.code == "not_found"


async def test_a_wrong_method_is_told_the_right_ones(api: Api) -> None:
    answer = await api.ask("DELETE", "/api/v1/emails")

    assert (answer.status, answer.problem.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("given", "taken"),
    [("order-1001:a.B_c", True), ("a" * 129, False), ("a b", False), ("<script>", False), ("", False)],
)
async def test_a_sane_request_id_is_taken_over(api: Api, given: str, taken: bool) -> None:
    answer = await api.ask("GET", "/nowhere", headers={"X-Request-Id": given})

    assert (answer.headers["X-Request-Id"] == given) is taken
    assert answer.problem.request_id == answer.headers["X-Request-Id"]
    assert answer.problem.instance.endswith(answer.problem.request_id)


async def test_our_own_faults_show_nothing_of_themselves(api: Api, submitter: StubbornSubmitter) -> None:
    submitter.trouble = KeyError("password=secret in /usr/lib")
    answer = await api.send()

    assert (answer.status, answer.problem.code) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert b"KeyError" not in answer.body


@pytest.mark.parametrize("changes", [{"handling": 0.5}], indirect=True)
async def test_what_takes_too_long_is_given_up(api: Api, submitter: StubbornSubmitter) -> None:
    submitter.closed = True
    answer = await api.send()

    assert (answer.status, answer.problem.code) == (503, "timeout")


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(api: Api) -> None:
    status, headers, body = await talk(
        api.port, head(api.tokens) + b"Content-Length: 200001\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )

    assert (status, problem(body).code) == (413, "body_too_large")
    assert headers["content-type"] == "application/problem+json"


async def test_a_body_that_grows_too_large_is_refused(api: Api) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, _, body = await talk(
        api.port, head(api.tokens) + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 4, b"0\r\n\r\n"
    )

    assert (status, problem(body).code) == (413, "body_too_large")


async def test_a_client_that_waits_for_100_continue_gets_it(api: Api) -> None:
    body = msgspec.json.encode(EMAIL)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head(api.tokens) + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 202")
    writer.close()


async def test_a_body_that_stops_coming_is_given_up(api: Api) -> None:
    status, _, body = await talk(api.port, head(api.tokens) + b'Content-Length: 100\r\n\r\n{"from":')

    assert (status, problem(body).code) == (408, "request_timeout")


@pytest.mark.parametrize("changes", [{"total_read": 0.2}], indirect=True)
async def test_a_body_that_trickles_is_given_up(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head(api.tokens) + b"Content-Length: 100000\r\n\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 408")
    trickling.cancel()
    writer.close()


@pytest.mark.parametrize("changes", [{"memory": 1_000}], indirect=True)
async def test_bodies_share_a_bounded_memory(api: Api) -> None:
    answer = await api.send(EMAIL | {"text": "x" * 2_000})

    assert (answer.status, answer.problem.code) == (503, "busy")
    assert (await api.send()).status == 202  # what was held is given back


async def test_headers_that_trickle_do_not_hold_a_connection(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    started = time.monotonic()
    for letter in b"GET /healthz HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
        writer.write(bytes([letter]))
        await asyncio.sleep(0.02)
        if reader.at_eof() or reader.exception():
            break
    with suppress(ConnectionError):  # what came after the end was answered by a reset
        assert await asyncio.wait_for(reader.read(), 60) == b""
    assert time.monotonic() - started < 3
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO example.com\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1_000 + b"\r\n",
        b"POST /api/v1/emails HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=lambda data: repr(data[:30]),
)
async def test_what_is_not_http_gets_a_problem_and_the_end(api: Api, data: bytes) -> None:
    status, headers, body = await talk(api.port, data)

    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert problem(body).code == "malformed_request"
    assert headers["x-request-id"] == problem(body).request_id
    assert headers["server"] == "mailerd"
    assert body.endswith(b"\n")


async def test_a_body_framed_badly_gets_a_problem(api: Api) -> None:
    status, _, body = await talk(
        api.port, head(api.tokens) + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    )

    assert status == 400
    assert problem(body).code == "malformed_request"


async def test_a_client_that_goes_away_leaves_the_server_well(api: Api) -> None:
    for sent in (b"", head(api.tokens), head(api.tokens) + b"Content-Length: 100\r\n\r\n{"):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(sent)
        await writer.drain()
        writer.transport.abort()
    assert (await api.send()).status == 202


@pytest.mark.parametrize("changes", [{"connections": 2, "keep_alive": 30.0}], indirect=True)
async def test_connections_beyond_the_limit_are_closed_at_once(api: Api, server: tuple[HttpServer, int]) -> None:
    held = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(2)]
    await until(lambda: server[0].connections == 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    for _, open_writer in [*held, (reader, writer)]:
        open_writer.close()
    await until(lambda: server[0].connections == 0)
    assert (await api.send()).status == 202


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def started(services: Services) -> tuple[HttpServer, int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(build_app(services), listening, services.limits)
    await server.start()
    return server, listening.getsockname()[1]


async def test_stopping_lets_requests_under_way_finish(
    started: tuple[HttpServer, int], submitter: StubbornSubmitter, tokens: dict[str, str]
) -> None:
    server, port = started
    submitter.closed = True
    body = msgspec.json.encode(EMAIL)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(tokens) + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await submitter.entered.wait()

    stopping = asyncio.create_task(server.stop())
    assert await asyncio.wait_for(idle.read(), 60) == b""
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    submitter.gate.set()

    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 202")
    await asyncio.wait_for(stopping, 60)
    for open_writer in (writer, idle_writer):
        open_writer.close()


@pytest.mark.parametrize("changes", [{"stop": 0.1}], indirect=True)
async def test_stopping_does_not_wait_for_ever(
    started: tuple[HttpServer, int], submitter: StubbornSubmitter, tokens: dict[str, str]
) -> None:
    server, port = started
    submitter.closed = True
    body = msgspec.json.encode(EMAIL)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(tokens) + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await submitter.entered.wait()

    await asyncio.wait_for(server.stop(), 60)
    writer.close()


async def test_the_process_is_alive_and_ready(api: Api) -> None:
    assert (await api.ask("GET", "/healthz", key="none")).json == {"status": "ok"}
    assert (await api.ask("GET", "/readyz", key="none")).json == {"status": "ready"}


async def test_without_a_database_it_is_alive_and_not_ready(api: Api, proxy: DatabaseProxy) -> None:
    proxy.stop()

    assert (await api.ask("GET", "/healthz")).status == 200
    answer = await api.ask("GET", "/readyz")
    assert (answer.status, answer.problem.code) == (503, "not_ready")
    assert b"PGSQL" not in answer.body
    await proxy.start()
    assert (await api.ask("GET", "/readyz")).status == 200


async def test_while_it_is_stopped_it_is_not_ready(api: Api, stopping: list[bool]) -> None:
    stopping.append(True)

    assert (await api.ask("GET", "/readyz")).problem.code == "not_ready"


async def test_metrics_are_shown_to_this_machine(api: Api) -> None:
    await api.send()
    answer = await api.ask("GET", "/metrics", key="none")

    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert re.search(
        rb'^mailerd_http_requests_total\{operation="emails.send",status="202"\} \d', answer.body, re.MULTILINE
    )


@pytest.mark.parametrize(("key", "status"), [("none", 401), ("sender", 403), ("reader", 200)])
async def test_metrics_are_shown_through_a_proxy_only_with_a_key(api: Api, key: str, status: int) -> None:
    answer = await api.ask("GET", "/metrics", key=key, headers={"X-Forwarded-For": "192.0.2.1"})

    assert answer.status == status
