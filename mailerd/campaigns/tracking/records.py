"""Hits as they stand in files: records with a length and a checksum, so that a torn one is known. Pure.

A record is its payload's length and CRC-32, four bytes each, and the payload in MessagePack.
"""

import struct
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

FRAME = struct.Struct(">II")  # length and CRC-32 of the payload
LONGEST = 16_384  # bytes of a payload: ours have 5,000 at most
MAX_AGENT = 500  # letters
MAX_IP = 45

Id = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]  # what the database takes


class Hit(Struct, frozen=True, array_like=True, kw_only=True):
    """One request, or `times` of the same within a moment. `at` in microseconds since 1970; an open has no link."""

    at: Annotated[int, Meta(ge=0, le=4_102_444_800_000_000)]  # to the year 2100
    kind: Literal["opened", "clicked"]
    message_id: Id
    campaign_id: Id
    contact_id: Id
    link: Annotated[int, Meta(ge=0, le=65_535)] = 0
    url: Text = ""
    method: Literal["GET", "HEAD"] = "GET"
    ip: Annotated[Text, Meta(max_length=MAX_IP)] = ""
    user_agent: Annotated[Text, Meta(max_length=MAX_AGENT)] = ""
    times: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Hit)


class Read(NamedTuple):
    """The hits of the records that are whole, and how far these go. `bad`: records that are whole, and no hits."""

    hits: list[Hit]
    size: int
    bad: int


def encode(hit: Hit) -> bytes:
    payload = _encoder.encode(hit)
    return FRAME.pack(len(payload), crc32(payload)) + payload


def decode(data: bytes) -> Read:
    """Read up to the end, or to what is no whole record: torn by a crash, or not yet written."""
    hits: list[Hit] = []
    size = bad = 0
    for payload in _payloads(data):
        size += FRAME.size + len(payload)
        try:
            hits.append(_decoder.decode(payload))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    return Read(hits, size, bad)


def _payloads(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + FRAME.size <= len(data):
        length, checksum = FRAME.unpack_from(data, offset)
        offset += FRAME.size
        payload = data[offset : offset + length]
        # Zeros, which a crash of the machine may leave, look like a record of no length.
        if not 0 < length <= LONGEST or len(payload) < length or crc32(payload) != checksum:
            return
        yield payload
        offset += length


def plain(text: str, longest: int) -> str:
    """A header field's text as it can be stored: cut, and without what is no text."""
    text = text[:longest]
    if text.isprintable():
        return text
    return text.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
