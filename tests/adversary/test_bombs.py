"""Small things that want to be large: each is answered within bounds of time and memory.

Reports that come back have their own: tests/feedback/test_reading_bounds.py and test_aggregate_bounds.py; templates in
tests/campaigns/templates/test_hostile.py. Here is what is submitted, and what is uploaded.
"""

import gzip
import re
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from mailerd.errors import Refused
from mailerd.intake.credentials import Credential
from mailerd.web.app import OPERATIONS
from mailerd.wire import message
from tests.support.relay import RunningRelay
from tests.web.conftest import Api

SIZE = 8_000_000  # bytes
MOMENT = 3.0  # seconds of processor time, several times what any takes
SHOP = Credential("shop", sender_domains=("mine.example",))
HEADERS = {
    "fields": b"X: y\r\n",
    "one folded field": b"X: y\r\n" + b" z\r\n" * 10,
    "addresses": b"From: " + b"a@mine.example,\r\n " * 10 + b"a@mine.example\r\n",
    "comments": b"From: " + b"(" * 100 + b"\r\n",
    "encoded words": b"Subject: " + b"=?utf-8?q?=41?= " * 10 + b"\r\n",
    "blind copies": b"Bcc: x@y.example\r\n",
    "authors": b"From: a@mine.example\r\n",
    "hops": b"Received: x\r\n",
}


def grown(unit: bytes, size: int) -> bytes:
    """A header of this size made of this; what repeats within a field makes the field longer."""
    head, _, inner = unit.partition(b": ")
    if unit.count(b"\r\n") == 1 and not inner.startswith((b"(", b"=?")):
        return unit * (size // len(unit))
    inner = inner.removesuffix(b"\r\n")
    return head + b": " + inner * (size // len(inner)) + b"\r\n"


async def test_a_header_of_megabytes_is_refused_before_it_is_read(relay: RunningRelay) -> None:
    for what, unit in HEADERS.items():
        content = grown(unit, SIZE) + b"\r\nx\r\n"
        begun = time.thread_time()
        with pytest.raises(Refused, match="malformed: it has more than 1,000,000 bytes"):
            await relay.submit("ann@example.net", sender="me@mine.example", content=content, credential=SHOP)
        assert time.thread_time() - begun < MOMENT, what


async def test_the_largest_header_that_is_taken_is_read_in_a_moment(relay: RunningRelay) -> None:
    for what, unit in HEADERS.items():
        content = grown(unit, message.MAX_HEADER - 1_000) + b"\r\nx\r\n"
        begun = time.thread_time()
        with suppress(Refused):
            await relay.submit("ann@example.net", sender="me@mine.example", content=content, credential=SHOP)
        assert time.thread_time() - begun < MOMENT, what


async def test_mime_without_end_is_bytes_to_us(relay: RunningRelay) -> None:
    """What is submitted is not taken apart: parts by the hundred thousand and levels cost what their bytes cost."""
    head = b"From: me@mine.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    for body in (
        b"--b\r\n\r\n" * 100_000,
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" * 10_000,
        b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" * 10_000,
    ):
        begun = time.thread_time()
        receipt = await relay.submit("ann@example.net", sender="me@mine.example", content=head + body, credential=SHOP)
        assert receipt.message_id
        assert time.thread_time() - begun < MOMENT


# ---- HTTP


def deflated(size: int, wbits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(b" " * size) + packer.flush()


PACKED = {
    "gzip": gzip.compress(b" " * 100_000_000, 9),
    "deflate": deflated(100_000_000, 15),
    "br": b"\xcb\xff\xff\xff\xff" + b"\x00" * 100,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\x00" * 100,
    "gzip, gzip": gzip.compress(gzip.compress(b" " * 10_000_000)),
    "x-unknown": b"{}",
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_nothing_packed_is_unpacked(encoding: str, api: Api) -> None:
    """By no operation that takes a body, and one that looks as if it had been announced is JSON no more."""
    tracemalloc.start()
    for operation in OPERATIONS:
        if operation.bodies and operation.scope and operation.method != "DELETE":
            path = re.sub(r"\{\w+\}", "1", operation.path)
            (kind, *_) = operation.bodies
            headers = {"Content-Type": kind, "Content-Encoding": encoding}
            answer = await api.ask(operation.method, path, data=PACKED[encoding], headers=headers)
            assert answer.status in (404, 415), operation.id
    answer = await api.ask(
        "POST", "/api/v1/emails", data=PACKED[encoding], headers={"Content-Type": "application/json"}
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert answer.status in (400, 422)
    assert peak < 20_000_000


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
FIELD = b'--x\r\nContent-Disposition: form-data; name="mode"\r\n\r\nskip\r\n'
FORMS = {
    "many parts": (FIELD, 20_000),
    "a part with many header lines": (b"--x\r\n" + b"A: b\r\n" * 10_000, 100),
    "one header line": (b"--x\r\nA: " + b"b" * 10_000, 100),
    "nothing before the first part": (b"no boundary\r\n", 30_000),
    "one line": (b"x" * 10_000, 100),
    "parts in parts": (b"--x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n", 20_000),
    "a packed part": (
        b'--x\r\nContent-Disposition: form-data; name="mode"\r\nContent-Encoding: gzip\r\n\r\n'
        + gzip.compress(b" " * 10_000_000)
        + b"\r\n",
        60,
    ),
}


@pytest.mark.parametrize("what", FORMS)
async def test_a_form_without_end_is_given_up(what: str, api: Api) -> None:
    piece, times = FORMS[what]

    async def body() -> AsyncIterator[bytes]:
        at_once = 1 + 50_000 // len(piece)
        for _ in range(times // at_once + 1):
            yield piece * at_once

    tracemalloc.start()
    try:
        answer = await api.ask("POST", "/api/v1/contacts/imports", data=body(), headers=FORM)
        assert answer.status in (400, 408, 413, 422), answer.text
    except OSError:  # closed while we were sending
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20_000_000
    assert (await api.send()).status == 202
