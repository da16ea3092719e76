from email import message_from_bytes
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.downgrade import downgrade

PLAIN = (
    b"From: bob@y.example\r\nSubject:  two spaces\r\n\tand folded\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
)
MULTIPART = (
    b"From: bob@y.example\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n"
    b"Content-Type: multipart/%s; boundary=b\r\n\r\npreamble\r\n--b\r\n"
    b"Content-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>f\xfcr</p>\r\n"
    b"--b\r\nContent-Type: application/x-thing\r\nContent-Transfer-Encoding: binary\r\n\r\n\x80\x81\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nonly ASCII = here\r\n--b--\r\nepilogue\r\n"
)


def test_seven_bit_content_is_not_touched() -> None:
    content = b"Subject:x\r\n\r\nodd\r\n\r\n \r\n"

    assert downgrade(content) is content


def test_a_text_becomes_quoted_printable_and_the_header_stays() -> None:
    converted = downgrade(PLAIN + "für\r\n.\r\nFrom x \r\n".encode())

    assert converted is not None
    assert converted.isascii()
    head, _, body = converted.partition(b"\r\n\r\n")
    assert b"Subject: two spaces\r\n\tand folded" in head
    assert b"Content-Transfer-Encoding: quoted-printable" in head
    assert b"8bit" not in head
    assert body == b"f=C3=BCr\r\n=2E\r\nFrom x=20\r\n"


def test_each_part_is_converted_by_its_kind() -> None:
    converted = downgrade(MULTIPART % b"mixed")

    assert converted is not None
    assert converted.isascii()
    html, thing, plain = message_from_bytes(converted, policy=default).iter_parts()
    assert html.get_content() == "<p>für</p>"
    assert (html["Content-Transfer-Encoding"], thing["Content-Transfer-Encoding"]) == ("quoted-printable", "base64")
    assert thing.get_content() == b"\x80\x81"
    assert plain["Content-Transfer-Encoding"] is None
    assert b"only ASCII = here\r\n--b--\r\nepilogue" in converted
    assert b"8bit" not in converted


@pytest.mark.parametrize(
    "content",
    [
        MULTIPART % b"signed",
        MULTIPART % b"encrypted",
        PLAIN.replace(b"8bit", b"base64") + b"\xfc\r\n",
        "Subject: für\r\n\r\nfür\r\n".encode(),
    ],
    ids=["signed", "encrypted", "says it is base64", "8-bit header"],
)
def test_what_cannot_be_converted_is_refused(content: bytes) -> None:
    assert downgrade(content) is None


@given(st.binary(max_size=200))
def test_any_text_decodes_to_what_it_was(body: bytes) -> None:
    text = body.replace(b"\r", b"").replace(b"\n", b"\r\n")

    converted = downgrade(PLAIN + text)

    assert converted is not None
    decoded = message_from_bytes(converted).get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.replace(b"\r\n", b"\n").rstrip(b"\n") == text.replace(b"\r\n", b"\n").rstrip(b"\n")


@given(st.binary(max_size=300))
def test_any_bytes_end_as_seven_bits_or_a_refusal(content: bytes) -> None:
    converted = downgrade(content)

    assert converted is None or converted.isascii()
