"""Records of hits: what was written is read, and what is torn is known."""

import struct
from zlib import crc32

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.tracking.records import MAX_AGENT, Hit, decode, encode, plain

IDS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=40)
HITS = st.builds(
    Hit,
    at=st.integers(0, 4_000_000_000_000_000),
    kind=st.sampled_from(["opened", "clicked"]),
    message_id=IDS,
    campaign_id=IDS,
    contact_id=IDS,
    link=st.integers(0, 65_535),
    url=TEXTS,
    method=st.sampled_from(["GET", "HEAD"]),
    ip=TEXTS,
    user_agent=TEXTS,
    times=st.integers(1, 1_000_000_000),
)
HIT = Hit(at=1, kind="clicked", message_id=2, campaign_id=3, contact_id=4, link=5, url="https://a.example/")


@given(st.lists(HITS, max_size=5))
def test_what_was_written_is_read(hits):
    data = b"".join(map(encode, hits))

    assert decode(data) == (hits, len(data), 0)


@given(st.lists(HITS, min_size=1, max_size=3), st.data())
def test_a_torn_record_is_not_read_and_those_before_it_are(hits, data):
    records = [encode(hit) for hit in hits]
    whole = b"".join(records[:-1])
    cut = data.draw(st.integers(0, len(records[-1]) - 1))

    assert decode(whole + records[-1][:cut]) == (hits[:-1], len(whole), 0)


def test_a_record_with_any_changed_byte_is_not_read():
    record = encode(HIT)
    for at in range(len(record)):
        changed = record[:at] + bytes((record[at] ^ 1,)) + record[at + 1 :]
        assert decode(changed + record).hits == []


def test_zeros_which_a_crash_of_the_machine_leaves_are_no_records():
    assert decode(encode(HIT) + bytes(4096)) == ([HIT], len(encode(HIT)), 0)


def test_a_record_that_holds_something_else_is_passed_over_and_counted():
    others = [b"\xc1", b"\xc0", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([1, "opened", -1, 3, 4])]
    nul = msgspec.msgpack.encode([1, "opened", 2, 3, 4, 0, "\x00"])
    data = b"".join(struct.pack(">II", len(other), crc32(other)) + other for other in (*others, nul)) + encode(HIT)

    assert decode(data) == ([HIT], len(data), 5)


@given(st.binary(max_size=300))
def test_anything_at_all_is_read_without_a_complaint(data):
    assert 0 <= decode(data).size <= len(data)


@given(st.binary(max_size=60))
def test_any_payload_is_read_without_a_complaint(payload):
    assert len(decode(struct.pack(">II", len(payload), crc32(payload)) + payload).hits) <= 1


@given(st.text(max_size=600))
def test_text_of_strangers_becomes_text_that_can_be_stored(text):
    hit = msgspec.structs.replace(HIT, user_agent=plain(text, MAX_AGENT))

    assert decode(encode(hit)).hits == [hit]
    assert plain("Mozilla/5.0 (\udcff\x00)", 100).count("\ufffd") + plain("\udcff", 9).count("?") == 2
