"""Return paths of mail that is sent on: ours come back as the sender's own, nobody can make one up."""

import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.wire.address import parse_mailbox
from mailerd.wire.srs import Srs, is_srs

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OURS = "bounce.ours.example"
SRS = Srs(b"s" * 32)


@pytest.mark.parametrize(
    "sender",
    [
        "ann@example.com",
        "a=b+c-d@example.com",
        "=@example.com",
        '"a b"@example.com',
        r'"a\"b\\c"@example.com',
        '"a@b.example"@example.com',
        '"x>y"@example.com',
        "jürgen@example.com",
        "ann@[192.0.2.1]",
        "ann@[IPv6:2001:db8::1]",
        "srs0@example.com",
        "SRS1=broken@example.com",
    ],
)
def test_a_sender_comes_back_from_its_return_path(sender):
    path = SRS.forward(sender, OURS, NOW)
    assert parse_mailbox(path).address == path
    assert path.endswith(f"@{OURS}")
    assert is_srs(path.removeprefix('"'))
    assert SRS.reverse(path, NOW) == sender
    for changed in (path.lower(), path.upper().replace(OURS.upper(), OURS)):
        back = SRS.reverse(changed, NOW)
        assert back is not None
        assert back.lower() == sender.lower()


def test_the_form_is_the_one_that_others_know():
    path = SRS.forward("ann@example.com", OURS, NOW)
    tag, mac, stamp, domain, local = path.removesuffix(f"@{OURS}").split("=")
    assert (tag, domain, local) == ("SRS0", "example.com", "ann")
    assert len(mac) == 6
    assert len(stamp) == 2


@pytest.mark.parametrize("separator", "=+-")
def test_what_was_sent_on_before_goes_back_to_the_first_who_did(separator):
    first = f"SRS0{separator}abcd=JL=a.example=ann@first.example"
    second = SRS.forward(first, OURS, NOW)
    assert second.startswith("SRS1=")
    assert second.endswith(f"=first.example={separator}abcd=JL=a.example=ann@{OURS}")
    assert SRS.reverse(second, NOW) == first

    other = Srs(b"t" * 32)
    third = other.forward(second, "third.example", NOW)
    assert third.count("first.example") == 1, "a chain grows no further"
    assert other.reverse(third, NOW) == first
    assert SRS.reverse(third, NOW) is None


def test_nothing_answers_to_the_null_sender():
    assert SRS.forward("", OURS, NOW) == ""


def test_a_path_that_would_be_too_long_is_the_null_sender():
    fits, long = f"{'a' * 37}@example.com", f"{'a' * 38}@example.com"
    assert SRS.reverse(SRS.forward(fits, OURS, NOW), NOW) == fits
    assert SRS.forward(long, OURS, NOW) == ""


@pytest.mark.parametrize(("days", "good"), [(-2, False), (-1, True), (0, True), (21, True), (22, False), (1024, False)])
def test_a_path_is_good_for_three_weeks(days, good):
    path = SRS.forward("ann@example.com", OURS, NOW)
    assert (SRS.reverse(path, NOW + timedelta(days=days)) is not None) == good


def test_a_path_of_another_installation_is_none_of_ours():
    assert SRS.reverse(Srs(b"t" * 32).forward("ann@example.com", OURS, NOW), NOW) is None


@pytest.mark.parametrize("sender", ["ann@example.com", "SRS0=abcd=JL=a.example=ann@first.example"])
def test_no_letter_can_be_changed_or_left_out(sender):
    local = SRS.forward(sender, OURS, NOW).partition("@")[0]
    for at in range(5, len(local)):
        assert SRS.reverse(f"{local[:at]}@{OURS}", NOW) is None
        for letter in string.ascii_lowercase + string.digits + "=-+.":
            changed = local[:at] + letter + local[at + 1 :]
            if changed.lower() != local.lower():
                assert SRS.reverse(f"{changed}@{OURS}", NOW) is None


@given(st.text(max_size=60) | st.text(alphabet="=-+@.\"\\ab'[]:ſK\0", max_size=60))
def test_any_text_is_read_without_a_complaint(text):
    for tag in ("", "SRS0=", "SRS1=", '"SRS0='):
        assert SRS.reverse(tag + text, NOW) is None


LOCALS = st.text(alphabet=string.ascii_letters + string.digits + '=+-._ @"\\<>', min_size=1, max_size=20)


@settings(max_examples=300)
@given(local=LOCALS, quote=st.booleans())
def test_every_address_comes_back(local, quote):
    if quote:
        local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        sender = parse_mailbox(f"{local}@example.com").address
    except ValueError:
        return
    path = SRS.forward(sender, OURS, NOW)
    if path:
        assert parse_mailbox(path).address == path
        back = SRS.reverse(path, NOW)
        # Quotes that were not needed are gone: the address is the same (RFC 5321 section 4.1.2).
        assert back == sender or (back is not None and f'"{back.rpartition("@")[0]}"' in sender)
