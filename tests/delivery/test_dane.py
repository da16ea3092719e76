"""Certificates against TLSA records: RFC 6698, 7671 and 7672, case by case."""

import datetime

import pytest

from mailerd.delivery.dane import Dane, Tlsa, authenticate
from tests.support.authority import Issued, issue, root

NOW = datetime.datetime.now(datetime.UTC)
MX = "mx.example.com"
ROOT = root()
MIDDLE = issue(ROOT, ca=True, common_name="Test Middle")
HOST = issue(MIDDLE, MX)


def tlsa(record: str) -> Tlsa:
    usage, selector, matching, data = record.split()
    return Tlsa(int(usage), int(selector), int(matching), bytes.fromhex(data))


def judged(host: Issued, *records: str, names: tuple[str, ...] = (MX,), now: datetime.datetime = NOW) -> str:
    """ "" for the right host, else the result type."""
    failure = authenticate([tlsa(record) for record in records], host.chain, names, now)
    return "" if failure is None else failure.result


@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_a_record_of_the_host_itself_suffices(selector, matching):
    other = issue(MIDDLE, MX)
    assert judged(HOST, HOST.tlsa(3, selector, matching)) == ""
    assert judged(other, HOST.tlsa(3, selector, matching)) == "tlsa-invalid"


@pytest.mark.parametrize("authority", [MIDDLE, ROOT], ids=["middle", "root"])
@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_a_record_of_an_authority_that_the_host_presents_will_do(selector, matching, authority):
    assert judged(HOST, authority.tlsa(2, selector, matching)) == ""
    assert judged(HOST, root().tlsa(2, selector, matching)) == "tlsa-invalid"


def test_an_authority_that_is_in_dns_in_full_need_not_be_presented():
    host = issue(ROOT, MX, send_root=False)
    assert host.chain == [host.der]
    assert judged(host, ROOT.tlsa(2, 0, 0)) == ""
    assert judged(host, ROOT.tlsa(2, 0, 1)) == "tlsa-invalid"


def test_for_a_record_of_the_host_itself_names_dates_and_issuers_do_not_matter():
    host = issue(root("Nobody", ca=False), "elsewhere.example", days=-3)
    assert judged(host, host.tlsa(3, 1, 1)) == ""


BROKEN = {
    "expired": (issue(MIDDLE, MX, days=-3), "certificate-expired"),
    "of another name": (issue(MIDDLE, "elsewhere.example"), "certificate-host-mismatch"),
    "of no name": (issue(MIDDLE), "certificate-host-mismatch"),
    "for clients": (issue(MIDDLE, MX, client_only=True), "certificate-not-trusted"),
    "with a demand that nobody understands": (issue(MIDDLE, MX, critical="1.2.3.4"), "tlsa-invalid"),
    "by an expired authority": (issue(issue(ROOT, ca=True, days=-3), MX), "tlsa-invalid"),
    "by somebody who is no authority": (issue(issue(ROOT, MX), MX), "tlsa-invalid"),
    "by an authority too many": (issue(issue(issue(ROOT, ca=True, path_length=0), ca=True), MX), "tlsa-invalid"),
    "itself": (ROOT, "tlsa-invalid"),
}


@pytest.mark.parametrize(("host", "result"), BROKEN.values(), ids=BROKEN)
def test_a_record_of_an_authority_wants_a_valid_chain_and_name(host, result):
    assert judged(host, ROOT.tlsa(2, 0, 1)) == result


def test_the_name_may_be_any_of_those_asked_for_and_stand_for_one_label():
    wild, old = issue(MIDDLE, "*.example.com"), issue(MIDDLE, common_name=MX)
    assert judged(wild, ROOT.tlsa(2, 1, 1), names=("elsewhere.example", MX)) == ""
    assert judged(wild, ROOT.tlsa(2, 1, 1), names=("a.mx.example.com", "example.com")) == "certificate-host-mismatch"
    assert judged(old, ROOT.tlsa(2, 1, 1)) == ""
    assert judged(issue(MIDDLE, "other.example", common_name=MX), ROOT.tlsa(2, 1, 1)) == "certificate-host-mismatch"


def test_a_certificate_is_judged_by_the_date_handed_in():
    assert judged(HOST, ROOT.tlsa(2, 0, 1), now=NOW + datetime.timedelta(days=20)) == "tlsa-invalid"
    assert judged(issue(ROOT, MX, days=2), ROOT.tlsa(2, 0, 1), now=NOW + datetime.timedelta(days=5)) == (
        "certificate-expired"
    )


def test_one_good_record_among_others_suffices():
    others = [root().tlsa(2, 0, 1), issue(MIDDLE, MX).tlsa(3, 1, 1), "0 0 1 " + "00" * 32]
    assert judged(HOST, *others, HOST.tlsa(3, 1, 1)) == ""


def test_a_weaker_digest_is_not_asked_where_a_stronger_one_is_published():
    wrong = issue(MIDDLE, MX)
    assert judged(HOST, HOST.tlsa(3, 1, 1), wrong.tlsa(3, 1, 2)) == "tlsa-invalid"
    assert judged(HOST, HOST.tlsa(3, 0, 1), wrong.tlsa(3, 1, 2)) == ""
    assert judged(HOST, HOST.tlsa(3, 1, 0), wrong.tlsa(3, 1, 2)) == ""


@pytest.mark.parametrize(
    ("record", "usable"),
    [
        ("3 1 1 " + "00" * 32, True),
        ("2 0 2 " + "00" * 64, True),
        ("3 0 0 00", True),
        ("0 1 1 " + "00" * 32, False),
        ("1 1 1 " + "00" * 32, False),
        ("255 1 1 " + "00" * 32, False),
        ("3 2 1 " + "00" * 32, False),
        ("3 1 3 " + "00" * 32, False),
        ("3 1 1 " + "00" * 31, False),
        ("3 1 2 " + "00" * 32, False),
    ],
)
def test_what_smtp_can_use(record, usable):
    assert tlsa(record).usable == usable
    assert Dane(MX, (tlsa(record),)).authenticates == usable
    assert str(tlsa(record)) == record


@pytest.mark.parametrize("chain", [[], [b"rubbish"], [b""]])
def test_a_host_without_a_readable_certificate_is_not_the_right_one(chain):
    failure = authenticate([tlsa(HOST.tlsa(3, 1, 1))], chain, (MX,), NOW)
    assert failure is not None
    assert failure.result == "validation-failure"


def test_a_long_chain_of_rubbish_and_loops_ends_soon():
    a, b = root("A"), root("B")
    chain = [issue(a, MX).der, *[a.der, b.der, b"rubbish"] * 1_000]
    failure = authenticate([tlsa(ROOT.tlsa(2, 0, 1))], chain, (MX,), NOW)
    assert failure is not None
    assert failure.result == "tlsa-invalid"


ODD = {  # of the authority between: what is looked for in it, and what is put in its place
    "version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"),
    "extension twice": (b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x13"),
    "no extension": (b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x11"),
}


@pytest.mark.parametrize(("old", "new"), ODD.values(), ids=ODD)
def test_a_certificate_that_nobody_can_read_proves_nothing(old, new):
    assert old in MIDDLE.der
    chain = [HOST.der, MIDDLE.der.replace(old, new), *HOST.chain[2:]]
    failure = authenticate([tlsa(ROOT.tlsa(2, 0, 1))], chain, (MX,), NOW)
    assert failure is not None
    assert failure.result == "tlsa-invalid"
