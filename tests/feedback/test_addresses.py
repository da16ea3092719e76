"""Which addresses are ours, and what they mean."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.config import (
    Config,
    Duration,
    Endpoint,
    Hostname,
    Inbound,
    IpAddress,
    Listener,
    Retention,
    SendingDomain,
    Source,
    Tenant,
)
from mailerd.errors import Refused
from mailerd.feedback.addresses import (
    Addresses,
    Bounce,
    Complaint,
    DmarcReport,
    Forward,
    SrsReturn,
    TlsReport,
    Unsubscribe,
)
from mailerd.queue.ids import first_id_at
from mailerd.wire.smtp import parse_rcpt
from mailerd.wire.srs import Srs
from mailerd.wire.tokens import RecipientToken, Tokens

SECRET = b"s" * 32
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MESSAGE = first_id_at(int(NOW.timestamp() * 1000))
BOUNCE = "b-" + Tokens(SECRET, "return-path").make(MESSAGE, 3)
LEAVE = "u-" + Tokens(SECRET, "unsubscribe").make(MESSAGE, 3)
TOKEN = RecipientToken(MESSAGE, 3)
SRS = Srs(SECRET).forward("ann@sender.example", "bounce.a.example", NOW)

CONFIG = Config(
    hostname="mail.a.example",
    domains={"a.example": SendingDomain(return_path=Hostname("bounce.a.example")), "plain.example": SendingDomain()},
    tenants={"acme": Tenant(return_path=Hostname("bounce.acme.example"))},
    inbound=Inbound(complaints=("fbl", "fbl+yahoo"), forward={"postmaster": "ops@b.example", "abuse": "ab@b.example"}),
    listeners=(Listener(bind=Endpoint("::", 25), kind="inbound"), Listener(bind=Endpoint("192.0.2.9", 587))),
    sources={"one": Source(address=IpAddress("192.0.2.1")), "two": Source(address=IpAddress("2001:db8::1"))},
)


def addresses(now: datetime = NOW, secret: bytes = SECRET, **changes: Any) -> Addresses:
    return Addresses(msgspec.structs.replace(CONFIG, **changes), secret, lambda: now)


def read(address: str, reader: Addresses | None = None) -> object:
    """As RCPT has it; None also for what no RCPT can have."""
    try:
        return (reader or addresses()).read(parse_rcpt(f"TO:<{address}>", smtputf8=True).address.address)
    except Refused:
        return None


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        (f"{BOUNCE}@bounce.a.example", Bounce(TOKEN)),
        (f"{BOUNCE.upper()}@BOUNCE.A.example", Bounce(TOKEN)),
        (f'"{BOUNCE}"@bounce.a.example', Bounce(TOKEN)),
        (f"{BOUNCE}@bounce.acme.example", Bounce(TOKEN)),
        (f"{BOUNCE}@mail.a.example", Bounce(TOKEN)),
        (f"{BOUNCE}@bounce.earlier.example", Bounce(TOKEN)),
        (f"{LEAVE}@bounce.earlier.example", Unsubscribe(TOKEN)),
        (f"{BOUNCE}@[192.0.2.77]", Bounce(TOKEN)),
        (SRS.replace("bounce.a.example", "bounce.earlier.example"), SrsReturn("ann@sender.example")),
        (f"@relay.example,@other.example:{BOUNCE}@bounce.a.example", Bounce(TOKEN)),
        (f"{LEAVE}@bounce.a.example", Unsubscribe(TOKEN)),
        ("fbl@mail.a.example", Complaint()),
        ("FBL@bounce.acme.example", Complaint()),
        (r'"f\bl"@mail.a.example', Complaint()),
        ("fbl+yahoo@mail.a.example", Complaint()),
        ("dmarc@mail.a.example", DmarcReport()),
        ("tlsrpt@mail.a.example", TlsReport()),
        ("postmaster", Forward("ops@b.example")),
        ("PostMaster", Forward("ops@b.example")),
        ("postmaster@bounce.a.example", Forward("ops@b.example")),
        ("postmaster@[192.0.2.1]", Forward("ops@b.example")),
        ("postmaster@[IPv6:2001:DB8:0::1]", Forward("ops@b.example")),
        ("abuse@mail.a.example", Forward("ab@b.example")),
        (SRS, SrsReturn("ann@sender.example")),
        (SRS.lower(), SrsReturn("ann@sender.example")),
    ],
)
def test_what_is_ours_has_a_meaning(address, meaning):
    assert read(address) == meaning


@pytest.mark.parametrize(
    "address",
    [
        "ann@a.example",
        "fbl@a.example",
        "fbl@plain.example",
        "fbl@sub.bounce.a.example",
        "fbl@bounce.a.example.evil.example",
        "fbl@[192.0.2.9]",
        "fbl@[192.0.2.2]",
        "fbl@[127.0.0.1]",
        "postmaster+x@mail.a.example",
        "fbl+comcast@mail.a.example",
        "root@mail.a.example",
        "postmaster%b.example@mail.a.example",
        "victim%other.example@mail.a.example",
        '"victim@other.example"@mail.a.example',
        "other.example!victim@mail.a.example",
        "@mail.a.example:victim@other.example",
        "victim@other.example@mail.a.example",
        "postmaster@bounce.earlier.example",
        "SRS0=AAAAAA=AA=other.example=victim@bounce.earlier.example",
        f"u-{BOUNCE[2:]}@bounce.earlier.example",
        f"{BOUNCE}x@bounce.a.example",
        f"{BOUNCE[:-1]}@bounce.a.example",
        f"{BOUNCE} @bounce.a.example",
        f'"{BOUNCE} "@bounce.a.example',
        f"{BOUNCE}+x@bounce.a.example",
        f"u-{BOUNCE[2:]}@bounce.a.example",
        f"b-{LEAVE[2:]}@bounce.a.example",
        f"{BOUNCE[2:]}@bounce.a.example",
        f"{SRS.replace('ann', 'eve')}",
        "SRS0=AAAAAA=AA=other.example=victim@bounce.a.example",
        "SRS1=AAAAAA=other.example==x=y=z=victim@bounce.a.example",
        "ﬁbl@mail.a.example",
        "postma\u017fter@mail.a.example",
        '""@mail.a.example',
        "",
    ],
)
def test_what_is_not_ours_has_none(address):
    assert read(address) is None


@pytest.mark.parametrize("prefix", ["b-", "u-"])
@pytest.mark.parametrize(("days", "known"), [(-1, True), (0, True), (29, True), (31, False), (4000, False)])
def test_a_token_is_good_for_as_long_as_events_are_kept(prefix, days, known):
    local = {"b-": BOUNCE, "u-": LEAVE}[prefix]
    reader = addresses(NOW + timedelta(days=days), retention=Retention(events=Duration(30 * 86_400)))
    assert (read(f"{local}@bounce.a.example", reader) is not None) == known


def test_another_installation_takes_none_of_our_tokens():
    reader = addresses(secret=b"t" * 32)
    assert {read(f"{local}@bounce.a.example", reader) for local in (BOUNCE, LEAVE)} == {None}
    assert read(SRS, reader) is None


def test_what_is_reconfigured_counts_from_then_on():
    reader = addresses()
    reader.reconfigure(Config(hostname="new.example", inbound=Inbound(complaints=("loop",))))
    assert read("fbl@mail.a.example", reader) is None
    assert read("fbl@new.example", reader) is None
    assert read("loop@new.example", reader) == Complaint()
    assert read("postmaster", reader) is None


def test_a_return_path_that_is_gone_loses_no_bounce_under_way():
    reader = addresses()
    reader.reconfigure(Config(hostname="new.example"))
    assert read(f"{BOUNCE}@bounce.a.example", reader) == Bounce(TOKEN)
    assert read(f"{LEAVE}@bounce.a.example", reader) == Unsubscribe(TOKEN)
    assert read(SRS, reader) == SrsReturn("ann@sender.example")


def test_no_byte_of_the_local_part_of_a_return_path_can_be_another():
    reader, address = addresses(), f"{BOUNCE}@bounce.a.example"
    for at in range(len(BOUNCE) + 1):
        for byte in range(128):  # beyond, IDNA takes letters for others
            changed = address[:at] + chr(byte) + address[at + 1 :]
            if changed.lower() != address:
                assert read(changed, reader) is None, changed


@given(st.text(max_size=80))
def test_any_text_is_read_without_a_complaint(text):
    for domain in ("", "@bounce.a.example", "@other.example"):
        for start in ("", "b-", "u-", "SRS0=", '"'):
            assert addresses().read(f"{start}{text}{domain}") in (None, Forward("ops@b.example"))
