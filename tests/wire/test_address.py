import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.address import Mailbox, domain_to_ascii, parse_mailbox


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("ann@b.example", "ann", "b.example"),
        ("Ann.Lee+news@B.Example", "Ann.Lee+news", "b.example"),
        ("!#$%&'*+/=?^_`{|}~-@b.example", "!#$%&'*+/=?^_`{|}~-", "b.example"),
        ("root@localhost", "root", "localhost"),
        ("ann@3com.example", "ann", "3com.example"),
        ("ann@xn--mnchen-3ya.example", "ann", "xn--mnchen-3ya.example"),
        ("ann@mail_gate.b.example", "ann", "mail_gate.b.example"),
        ("ann@r3---sn.example", "ann", "r3---sn.example"),
        ('"ann lee"@b.example', '"ann lee"', "b.example"),
        ('"a@b\\"c\\\\"@B.example', '"a@b\\"c\\\\"', "b.example"),
        ('""@b.example', '""', "b.example"),
        ("ann@[127.0.0.1]", "ann", "[127.0.0.1]"),
        ("ann@[ipv6:2001:DB8:0::1]", "ann", "[IPv6:2001:db8::1]"),
        ("ann@München.example", "ann", "xn--mnchen-3ya.example"),
        ("ann@例え。テスト", "ann", "xn--r8jz45g.xn--zckzah"),
        ("用户@例え.テスト", "用户", "xn--r8jz45g.xn--zckzah"),
        ('"用 户"@b.example', '"用 户"', "b.example"),
        ("a" * 64 + "@b.example", "a" * 64, "b.example"),
    ],
)
def test_an_address_is_read_with_the_local_part_as_given_and_the_domain_in_one_spelling(text, local, domain):
    assert parse_mailbox(text) == Mailbox(f"{local}@{domain}", local, domain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no @"),
        ("ann", "no @"),
        ("@b.example", "before the @ is empty"),
        ("ann@", "domain is empty"),
        (".ann@b.example", "dot"),
        ("ann.@b.example", "dot"),
        ("a..nn@b.example", "two in a row"),
        ("ann lee@b.example", "must be quoted"),
        ("a@b@c.example", "must be quoted"),
        ("ann,bob@b.example", "must be quoted"),
        ("<ann@b.example>", "must be quoted"),
        ('"ann@b.example', "quoted part"),
        ('"a"b"@c.example', "quoted part"),
        ('"a\\"@c.example', "quoted part"),
        ("ann@b.example.", "starts or ends with a dot"),
        ("ann@.b.example", "starts or ends with a dot"),
        ("ann@b..example", "two in a row"),
        ("ann@-b.example", "hyphen"),
        ("ann@b-.example", "hyphen"),
        ("ann@b c.example", "character that no domain has"),
        ("ann@b.example>", "character that no domain has"),
        ("ann@b.example\r\nRCPT TO:<x@y>", "before the @"),
        ("ann@b.example\n", "character that no domain has"),
        ("ann@b.example\x00", "character that no domain has"),
        ("a\rnn@b.example", "control characters"),
        ("a\x00nn@b.example", "control characters"),
        ('"a\nb"@b.example', "control characters"),
        ("a\u2028nn@b.example", "exotic spaces"),
        ("a\u3000nn@b.example", "exotic spaces"),
        ("ann\udcff@b.example", "not UTF-8"),
        ("ann@b\udcff.example", "not UTF-8"),
        ("ann@b\u00a0c.example", "exotic spaces"),
        ("ann@☃☃.-example", "IDNA"),
        ("ann@xn--ü.example", "IDNA"),
        ("ann@10.0.0.1", r"\[192.0.2.1\]"),
        ("ann@[10.0.0.256]", "literal"),
        ("ann@[10.0.0.01]", "literal"),
        ("ann@[::1]", "literal"),
        ("ann@[IPv6:fe80::1%eth0]", "literal"),
        ("ann@[IPv6:]", "literal"),
        ("ann@[10.0.0.1", "literal"),
        ("ann@[x-tag:thing]", "literal"),
        ("a" * 65 + "@b.example", "64 bytes"),
        ("ü" * 33 + "@b.example", "64 bytes"),
        ("ann@" + "b" * 64 + ".example", "63 characters"),
        ("ann@" + "ü" * 64 + ".example", "IDNA"),
        ("ann@" + "b." * 124 + "example", "254 bytes"),
        ("ann@" + "b." * 130 + "example", "255 bytes"),
        ("ann@" + "ü" * 2_000_000, "254 bytes"),
        ("a." * 2_000_000, "254 bytes"),
    ],
)
def test_a_wrong_address_is_refused_with_words_that_say_what_is_wrong(text, words):
    with pytest.raises(ValueError, match=words) as refusal:
        parse_mailbox(text)
    assert str(refusal.value).isascii()


def test_only_a_local_part_beyond_ascii_needs_smtputf8():
    assert parse_mailbox("用户@b.example").needs_smtputf8
    assert not parse_mailbox("ann@münchen.example").needs_smtputf8
    assert not parse_mailbox("ann@b.example").needs_smtputf8


def test_the_longest_address_is_taken_and_one_byte_more_is_not():
    longest = "a" * 64 + "@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 61
    assert len(longest) == 254
    assert parse_mailbox(longest).address == longest
    with pytest.raises(ValueError, match="254 bytes"):
        parse_mailbox(longest + "d")


def test_a_domain_becomes_lower_case_a_labels():
    assert domain_to_ascii("B.Example") == "b.example"
    assert domain_to_ascii("STRASSE.example") == "strasse.example"
    assert domain_to_ascii("ＦＵＬＬ.example") == "full.example"
    assert domain_to_ascii("Bücher.example") == "xn--bcher-kva.example"


@pytest.mark.parametrize("text", ["", "[127.0.0.1]", "b..example", "1.2.3.4", "b.example\n", "ann@b.example"])
def test_what_is_no_domain_name_is_refused(text):
    with pytest.raises(ValueError):
        domain_to_ascii(text)


@given(st.text(max_size=80) | st.builds("{}@{}".format, st.text(max_size=70), st.text(max_size=70)))
def test_any_text_is_an_address_of_one_line_or_a_value_error(text):
    try:
        mailbox = parse_mailbox(text)
    except ValueError:
        return
    assert mailbox.address == f"{mailbox.local}@{mailbox.domain}"
    assert mailbox.domain == mailbox.domain.lower() or mailbox.domain.startswith("[IPv6:")
    assert mailbox.domain.isascii()
    assert len(mailbox.address.encode()) <= 254
    assert len(mailbox.address.splitlines()) == 1
    assert parse_mailbox(mailbox.address) == mailbox
