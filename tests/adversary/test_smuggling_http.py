"""HTTP request smuggling: whatever a proxy before us makes of it, we take one request or none, never what is inside.

Where the framing can be read in two ways the answer is 400 and the connection closes: what follows is never a request.
"""

import asyncio
from contextlib import suppress

import msgspec
import pytest

from tests.web.conftest import EMAIL, Api

POST = b"POST /api/v1/emails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
MEGABYTE = 1_000_000

# Header lines (and their empty line) and what stands before the smuggled request; %d: the length of that.
TWO_WAYS = {
    "CL.TE": b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "TE.CL": CHUNKED + b"Content-Length: %d\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n",
    "twice the same length": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, %d\r\n\r\n",
    "a length with a sign": b"Content-Length: +0\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "a length with an underscore": b"Content-Length: 0_0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "no length": b"Content-Length: \r\n\r\n",
    "TE and a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE on a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "TE with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE of another name": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE identity": b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
    "TE not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two TE": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "an obsolete fold": b"X: a\r\n Content-Length: %d\r\nContent-Length: 0\r\n\r\n",
    "a bare LF between fields": b"X: a\nContent-Length: 0\r\n\r\n",
    "a bare LF at the end": b"Content-Length: 0\r\n\n",
    "a bare CR": b"X: a\rContent-Length: %d\r\nContent-Length: 0\r\n\r\n",
    "a NUL": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a name with a space": b"X y: a\r\nContent-Length: 0\r\n\r\n",
    "two hosts": b"Host: y\r\nContent-Length: 0\r\n\r\n",
    "chunks that end in LF": CHUNKED + b"\r\n0\n\n",
    "a chunk extension that ends in LF": CHUNKED + b"\r\n0;\nxx\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"\r\n1\r\n {0\r\n\r\n",
    "a negative chunk": CHUNKED + b"\r\n-1\r\n\r\n0\r\n\r\n",
    "a chunk in C": CHUNKED + b"\r\n0x0\r\n\r\n",
    "a chunk and a space": CHUNKED + b"\r\n0 \r\n\r\n",
    "a chunk beyond all numbers": CHUNKED + b"\r\n" + b"f" * 20 + b"\r\n\r\n",
    "a length in the trailer": CHUNKED + b"\r\n0\r\nContent-Length: %d\r\n\r\n",
    "many fields": b"A: b\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
    "a large field": b"A: " + b"b" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "a field without end": b"A: " + b"b" * MEGABYTE,
    "fields without end": b"A: b\r\n" * 200_000,
    "a trailer without end": CHUNKED + b"\r\n0\r\n" + b"A: b\r\n" * 200_000,
}


async def talk(port: int, data: bytes) -> list[bytes]:
    """The status lines of all answers up to the close; none when it is cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with suppress(ConnectionError):
        writer.write(data)
        async with asyncio.timeout(30):
            while piece := await reader.read(65_536):
                answer += piece
    writer.close()
    return [line for line in answer.splitlines() if line.startswith(b"HTTP/1.")]


@pytest.mark.parametrize("what", TWO_WAYS)
async def test_what_can_be_read_in_two_ways_is_no_request_and_what_follows_is_none(what: str, api: Api) -> None:
    body = msgspec.json.encode(EMAIL)
    post = POST.replace(b"%s", api.tokens["all"].encode())
    smuggled = post + b"Content-Length: %d\r\n\r\n" % len(body) + body
    first = TWO_WAYS[what].replace(b"%d", b"%d" % len(smuggled))

    answers = await talk(api.port, post + first + smuggled)

    assert [answer.split()[1] for answer in answers] in ([b"400"], []), answers
    assert await api.accepted() == 0


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: %d\r\n\r\n",
        b'Transfer-Encoding:\tCHUNKED\r\n\r\n%x;ext="a\r\n',
        CHUNKED + b"\r\n%x;" + b"a" * 10_000 + b"\r\n",
        CHUNKED + b"\r\n" + b"0" * 10_000 + b"%x\r\n",
    ],
    ids=["length", "tab", "a long extension", "zeros"],
)
async def test_odd_and_plain_framing_is_one_request_and_the_next_its_own(framing: bytes, api: Api) -> None:
    body = msgspec.json.encode(EMAIL)
    post = POST.replace(b"%s", api.tokens["all"].encode())
    framing = framing.replace(b'"', b"")
    chunked = b"%x" in framing
    first = framing.replace(b"%x", b"%x" % len(body)).replace(b"%d", b"%d" % len(body))
    first += body + (b"\r\n0\r\n\r\n" if chunked else b"")

    answers = await talk(api.port, post + first + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert [answer.split()[1] for answer in answers] == [b"202", b"200"]
    assert await api.accepted() == 1


async def test_a_url_has_so_many_bytes_and_no_more(api: Api) -> None:
    for path in (b"/" + b"a" * 20_000, b"/healthz?" + b"a" * MEGABYTE):
        answers = await talk(api.port, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [answer.split()[1] for answer in answers] in ([b"400"], [])
