"""What was composed is read back by the standard library's parser, which had no part in making it."""

import email
import email.policy
from dataclasses import replace
from email.header import decode_header, make_header
from email.message import EmailMessage, Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.wire.compose import (
    REFUSED_HEADERS,
    Address,
    Attachment,
    FieldError,
    Outgoing,
    compose,
    html_to_text,
    is_refused_header,
)
from mailerd.wire.message import header_problem, split

ANN = Address("ann@example.com")
BOB = Address("bob@example.net", "Bob")
MAIL = Outgoing(from_=ANN, to=(BOB,), subject="Hello", text="Hi Bob\n")
PNG = Attachment("logo.png", b"\x89PNG\r\n\x1a\n\0\xff", "image/png", "logo")
PDF = Attachment("bill.pdf", b"%PDF-1.7\n\xff" * 100, "application/pdf")


def read(mail: Outgoing) -> EmailMessage:
    content = compose(mail)
    assert_sound(content)
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk() if part.defects] == []
    return message


def assert_sound(content: bytes) -> None:
    assert content.isascii()
    assert content.endswith(b"\r\n")
    assert content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert header_problem(split(content)[0]) is None


def plain_value(content: bytes, name: str) -> str:
    """A header value by the older parser, which follows RFC 2047 to the letter."""
    message: Message = email.message_from_bytes(content, policy=email.policy.compat32)
    return str(make_header(decode_header(str(message[name]).replace("\r\n", ""))))


def shape(message: Message) -> object:
    if message.is_multipart():
        return (message.get_content_subtype(), [shape(part) for part in message.get_payload()])
    return message.get_content_type()


def test_a_plain_mail_is_as_plain_as_can_be():
    assert compose(MAIL) == (
        b"From: ann@example.com\r\nTo: Bob <bob@example.net>\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHi Bob\r\n"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "text/plain"),
        ({"text": None}, "text/plain"),
        ({"html": "<p>Hi"}, ("alternative", ["text/plain", "text/html"])),
        ({"html": "<p>Hi", "text": None}, ("alternative", ["text/plain", "text/html"])),
        (
            {"html": "<img src=cid:logo>", "attachments": (PNG,)},
            ("alternative", ["text/plain", ("related", ["text/html", "image/png"])]),
        ),
        (
            {"html": "<img src=cid:logo>", "attachments": (PDF, PNG)},
            ("mixed", [("alternative", ["text/plain", ("related", ["text/html", "image/png"])]), "application/pdf"]),
        ),
        ({"attachments": (PNG,)}, ("mixed", ["text/plain", "image/png"])),
        (
            {"html": "<p>Hi", "attachments": (replace(PNG, disposition="attachment"),)},
            ("mixed", [("alternative", ["text/plain", "text/html"]), "image/png"]),
        ),
    ],
)
def test_the_parts_are_nested_as_clients_expect(changes, expected):
    assert shape(read(replace(MAIL, **changes))) == expected


def test_attachments_come_out_as_they_went_in():
    message = read(replace(MAIL, html="<img src=cid:logo>", attachments=(PNG, PDF, Attachment("empty", b""))))
    logo, bill, empty = (part for part in message.walk() if part.get_filename())
    assert logo.get_content() == PNG.content
    assert (logo["Content-ID"], logo.get_content_disposition()) == ("<logo>", "inline")
    assert bill.get_content() == PDF.content
    assert (bill.get_filename(), bill.get_content_disposition()) == ("bill.pdf", "attachment")
    assert empty.get_content() == b""


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("bill.pdf", "application/pdf"),
        ("LOGO.PNG", "image/png"),
        ("bill.v2.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("logs.tar.gz", "application/gzip"),
        ("logs.tar.bz2", "application/octet-stream"),
        ("Grüße.txt", "text/plain"),
        ("bill", "application/octet-stream"),
        (".pdf", "application/octet-stream"),
        ("bill.unheard-of", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_the_end_of_a_file_name_tells_the_type_when_nothing_else_does(filename, content_type):
    attached = next(read(replace(MAIL, attachments=(Attachment(filename, b"x"),))).iter_attachments())
    assert attached.get_content_type() == content_type


def test_a_missing_text_is_made_from_the_html_with_its_links():
    message = read(replace(MAIL, text=None, html="<h1>Hi</h1><p>See <a href='https://x.example/a'>this</a>, B&uuml;b"))
    text = message.get_body(("plain",))
    assert text is not None
    assert "Hi" in text.get_content()
    assert "[this](https://x.example/a)" in text.get_content()
    assert "Büb" in text.get_content()
    assert "<" not in text.get_content()


@pytest.mark.parametrize(
    "html", ["", " ", "<!-- x -->", "plain", "<?xml version='1.0' encoding='utf-8'?><p>x", "\x01\x0b<p>\x7f", "<" * 50]
)
def test_any_html_gives_some_text(html):
    assert isinstance(html_to_text(html), str)
    read(replace(MAIL, text=None, html=html))


NAMES = [
    "Ann",
    "Ann Lee",
    "Lee, Ann",
    'Ann "A" Lee',
    "back\\slash",
    "a@b",
    "Ünlü, Ann",
    "李雷",
    "=?utf-8?Q?x?=",
    "J. R.",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_display_names_come_out_as_they_went_in(name):
    message = read(replace(MAIL, from_=Address("ann@example.com", name), to=(Address("bob@example.net", name), BOB)))
    assert [(a.display_name, a.addr_spec) for a in message["From"].addresses] == [(name, "ann@example.com")]
    assert [(a.display_name, a.addr_spec) for a in message["To"].addresses] == [
        (name, "bob@example.net"),
        ("Bob", "bob@example.net"),
    ]


def test_long_lists_are_folded_between_addresses():
    many = tuple(Address(f"user{number}@example.com", f"Üser, {number}") for number in range(100))
    content = compose(replace(MAIL, to=many, cc=many[:3], reply_to=(BOB,)))
    message = read(replace(MAIL, to=many, cc=many[:3], reply_to=(BOB,)))
    assert max(map(len, content.split(b"\r\n"))) <= 78
    assert [address.display_name for address in message["To"].addresses] == [one.name for one in many]
    assert len(message["Cc"].addresses) == 3
    assert message["Reply-To"] == "Bob <bob@example.net>"


def test_international_domains_become_a_labels():
    message = read(replace(MAIL, to=(Address("bob@Bücher.example", "Bob"),)))
    assert message["To"] == "Bob <bob@xn--bcher-kva.example>"


def test_an_international_local_part_stays_in_utf_8():
    content = compose(replace(MAIL, to=(Address("jürgen@bücher.example"),)))
    assert "To: jürgen@xn--bcher-kva.example\r\n".encode() in content


def test_a_mail_to_hidden_recipients_only_says_so():
    assert read(replace(MAIL, to=()))["To"] == "undisclosed-recipients:;"
    assert read(replace(MAIL, to=(), cc=(BOB,)))["To"] is None


SUBJECTS = [
    "",
    "Hello",
    "Grüße",
    "a" * 2000,
    "word " * 100 + "end",
    "ü" * 300,
    "😀" * 100,
    "a\tb",
    "x  y" * 40,
    "a: b; c",
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subjects_come_out_as_they_went_in(subject):
    content = compose(replace(MAIL, subject=subject))
    assert_sound(content)
    assert plain_value(content, "Subject") == subject
    if " " in subject or not subject.isascii():
        assert max(map(len, content.split(b"\r\n"))) <= 78


def test_date_and_message_id_are_written_when_given():
    message = read(replace(MAIL, date="Sun, 22 Nov 2026 01:54:12 +0000", message_id="1@example.com"))
    assert message["Message-ID"] == "<1@example.com>"
    assert message["Date"] == "Sun, 22 Nov 2026 01:54:12 +0000"


def test_custom_headers_come_out_as_they_went_in():
    headers = (
        ("X-Campaign", "spring"),
        ("X-Campaign", "süß"),
        ("List-Unsubscribe", "<https://x.example/" + "u" * 300 + ">, <mailto:u@x.example>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ("References", " ".join(f"<{number}@example.com>" for number in range(40))),
    )
    content = compose(replace(MAIL, headers=headers))
    assert_sound(content)
    message = email.message_from_bytes(content, policy=email.policy.compat32)
    assert message.get_all("X-Campaign") == ["spring", "=?utf-8?B?c8O8w58=?="]
    for name, value in headers[2:]:
        assert message[name].replace("\r\n", "") == value


FILENAMES = [
    "a b.txt",
    'q"uote.txt',
    "back\\slash",
    "Rechnung für Bücher.pdf",
    "请求.pdf",
    "x" * 250,
    "ü" * 200,
    "100%.txt",
    "it's.txt",
]


@pytest.mark.parametrize("filename", FILENAMES)
def test_file_names_come_out_as_they_went_in(filename):
    content = compose(replace(MAIL, attachments=(replace(PDF, filename=filename),)))
    assert max(map(len, content.split(b"\r\n"))) <= 78
    message = read(replace(MAIL, attachments=(replace(PDF, filename=filename),)))
    assert [part.get_filename() for part in message.iter_attachments()] == [filename]


TEXTS = [
    "",
    "a",
    "a\r\nb\rc\nd",
    "Grüße\n",
    "李" * 500,
    "x" * 5000,
    ".\n..\nFrom me\n",
    "trailing \t\n \n",
    "=20\n",
    "ü" + "y" * 3000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_out_as_they_went_in(text):
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    body = read(replace(MAIL, text=text)).get_content().replace("\r\n", "\n")
    assert body == (normal if normal.endswith("\n") else normal + "\n")


@settings(max_examples=200, deadline=None)
@given(
    name=st.text(max_size=80),
    subject=st.text(max_size=200),
    text=st.text(max_size=300),
    value=st.text(max_size=200),
    filename=st.text(max_size=80),
)
def test_whatever_the_values_they_come_out_or_are_refused_by_name(name, subject, text, value, filename):
    mail = Outgoing(
        from_=Address("ann@example.com", name),
        to=(BOB,),
        subject=subject,
        text=text,
        headers=(("X-Value", value),),
        attachments=(Attachment(filename, b"x"),),
    )
    try:
        content = compose(mail)
    except FieldError as error:
        content, refused = b"", error.field
    else:
        refused = ""
    assert refused in {"", "from.name", "subject", "text", "headers[0].value", "attachments[0].filename"}
    if refused:
        return
    assert_sound(content)
    assert email.message_from_bytes(content).keys() == [
        "From",
        "To",
        "Subject",
        "X-Value",
        "MIME-Version",
        "Content-Type",
    ]
    if subject.isascii():
        assert plain_value(content, "Subject").split() == subject.split()
    else:
        assert plain_value(content, "Subject") == subject.strip()


INJECTED = ["a\r\nBcc: eve@evil.example", "a\nb", "a\rb", "a\0b", "\r\n", "a\x0bb", "a\x1bb", "a\x7fb", "\ud800"]


@pytest.mark.parametrize("evil", INJECTED)
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("from.address", lambda evil: {"from_": Address(f"ann@example.com{evil}")}),
        ("from.name", lambda evil: {"from_": Address("ann@example.com", evil)}),
        ("to[1].address", lambda evil: {"to": (BOB, Address(f"{evil}@example.com"))}),
        ("cc[0].name", lambda evil: {"cc": (Address("bob@example.net", evil),)}),
        ("reply_to[0].name", lambda evil: {"reply_to": (Address("bob@example.net", evil),)}),
        ("subject", lambda evil: {"subject": evil}),
        ("date", lambda evil: {"date": evil}),
        ("message_id", lambda evil: {"message_id": f"<{evil}@example.com>"}),
        ("headers[1].name", lambda evil: {"headers": (("X-A", "1"), (f"X-{evil}", "1"))}),
        ("headers[0].value", lambda evil: {"headers": (("X-A", evil),)}),
        ("attachments[0].filename", lambda evil: {"attachments": (replace(PDF, filename=evil),)}),
        ("attachments[0].content_id", lambda evil: {"attachments": (replace(PDF, content_id=evil),)}),
        ("attachments[1].content_type", lambda evil: {"attachments": (PDF, replace(PDF, content_type=f"a/b{evil}"))}),
        (
            "attachments[0].content_type",
            lambda evil: {"attachments": (replace(PDF, content_type=f'a/b; name="{evil}"'),)},
        ),
    ],
)
def test_no_value_can_start_another_header_field(field, place, evil):
    with pytest.raises(FieldError) as raised:
        compose(replace(MAIL, **place(evil)))
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"from_": Address("")}, "from.address"),
        ({"from_": Address("ann")}, "from.address"),
        ({"from_": Address("ann@example.com", "x" * 256)}, "from.name"),
        ({"to": (Address("a@b@c d"),)}, "to[0].address"),
        ({"text": "a\0b"}, "text"),
        ({"html": "a\0b"}, "html"),
        ({"html": "\ud800", "text": None}, "html"),
        ({"headers": (("", "x"),)}, "headers[0].name"),
        ({"headers": (("X Y", "x"),)}, "headers[0].name"),
        ({"headers": (("X:Y", "x"),)}, "headers[0].name"),
        ({"headers": (("X-Ü", "x"),)}, "headers[0].name"),
        ({"headers": (("References", "<a@b>"), ("references", "<c@d>"))}, "headers[1].name"),
        ({"headers": (("List-Unsubscribe", "<https://x.example/" + "u" * 1000 + ">"),)}, "headers[0].value"),
        ({"message_id": "no at"}, "message_id"),
        ({"attachments": (replace(PDF, content_type="pdf"),)}, "attachments[0].content_type"),
        ({"attachments": (replace(PDF, content_type="multipart/mixed"),)}, "attachments[0].content_type"),
        ({"attachments": (replace(PDF, content_id="a b"),)}, "attachments[0].content_id"),
        ({"attachments": (replace(PDF, filename="x" * 256),)}, "attachments[0].filename"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_name_of_its_field(changes, field):
    with pytest.raises(FieldError) as raised:
        compose(replace(MAIL, **changes))
    assert raised.value.field == field


@pytest.mark.parametrize(
    "name",
    [*sorted(REFUSED_HEADERS), "BCC", "Content-Type", "content-foo", "Resent-To", "ARC-Seal", "X-Mailerd-Id", "Sender"],
)
def test_headers_that_are_not_the_callers_are_refused(name):
    assert is_refused_header(name)
    with pytest.raises(FieldError) as raised:
        compose(replace(MAIL, headers=((name, "x"),)))
    assert raised.value.field == "headers[0].name"


@pytest.mark.parametrize("name", ["X-Tag", "List-Unsubscribe", "In-Reply-To", "Feedback-ID", "Auto-Submitted", "To-Do"])
def test_other_headers_are_the_callers(name):
    assert not is_refused_header(name)


def test_an_attached_message_is_not_encoded_when_it_need_not_be():
    inner = compose(MAIL)
    message = read(replace(MAIL, attachments=(Attachment("mail.eml", inner, "message/rfc822"),)))
    attached = next(message.iter_attachments())
    assert attached.get_content_type() == "message/rfc822"
    assert attached.get_content()["Subject"] == "Hello"

    for unfit in (b"Subject: \xff\r\n\r\n", b"Subject: x\n\n", b"X: " + b"x" * 1000 + b"\r\n", b"X: \0\r\n"):
        message = read(replace(MAIL, attachments=(Attachment("mail.eml", unfit, "message/rfc822"),)))
        attached = next(message.iter_attachments())
        assert (attached.get_content_type(), attached.get_content()) == ("application/octet-stream", unfit)


def test_content_types_keep_their_parameters():
    typed = replace(PDF, content_type='text/csv; charset=utf-8; header="present here"')
    attached = next(read(replace(MAIL, attachments=(typed,))).iter_attachments())
    assert attached.get_content_charset() == "utf-8"
    assert attached.get_param("header") == "present here"


def test_a_text_cannot_hold_the_boundary_it_is_put_in():
    first = compose(replace(MAIL, attachments=(PDF,)))
    boundary = email.message_from_bytes(first).get_boundary()
    message = read(replace(MAIL, text=f"--{boundary}\r\n\r\nevil", attachments=(PDF,)))
    assert shape(message) == ("mixed", ["text/plain", "application/pdf"])


def test_the_same_mail_makes_the_same_bytes():
    mail = replace(MAIL, html="<p>Hi", attachments=(PDF, PNG))
    assert compose(mail) == compose(mail)
