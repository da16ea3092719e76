"""The pure parts of the HTTP side: pointers, cursors, allowances, names with addresses."""

from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.errors import Refused
from mailerd.intake.allowance import RateLimited
from mailerd.queue.views import MailFilters
from mailerd.web.bodies import Email
from mailerd.web.composing import parse_named, prepare_email
from mailerd.web.cursors import Cursors
from mailerd.web.problems import FieldError, ProblemError, decode, of_refusal
from mailerd.web.services import Limits

FILTERS = MailFilters(tenant="default", sender="a@example.com", after=datetime(2026, 1, 1, tzinfo=UTC))


@given(st.integers(0, (1 << 63) - 1))
def test_a_cursor_leads_back_to_its_place(position: int) -> None:
    cursors = Cursors(b"key")

    assert cursors.read(FILTERS, cursors.make(FILTERS, position)) == position


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda data: data.hex()))
def test_what_we_did_not_make_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError):
        Cursors(b"key").read(FILTERS, text)


def test_a_cursor_of_another_installation_is_no_cursor() -> None:
    with pytest.raises(ValueError):
        Cursors(b"other").read(FILTERS, Cursors(b"key").make(FILTERS, 7))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann@example.com", ("", "ann@example.com")),
        (" ann@example.com ", ("", "ann@example.com")),
        ("<ann@example.com>", ("", "ann@example.com")),
        ("Ann <ann@example.com>", ("Ann", "ann@example.com")),
        ("Ann B. C. <ann@example.com> ", ("Ann B. C.", "ann@example.com")),
        ("Ann, A <ann@example.com>", ("Ann, A", "ann@example.com")),
        ('"Ann, \\"A\\"" <ann@example.com>', ('Ann, "A"', "ann@example.com")),
        ('"a b"@example.com', ("", '"a b"@example.com')),
        ('Ann <"a b"@example.com>', ("Ann", '"a b"@example.com')),
        ("Änn <änn@bücher.example>", ("Änn", "änn@bücher.example")),
    ],
)
def test_a_name_and_an_address_are_told_apart(text: str, expected: tuple[str, str]) -> None:
    assert parse_named(text) == expected


@pytest.mark.parametrize(
    "text", ["Ann <<a@b.example>", 'Ann "A" B <a@b.example>', "a>", "x" * 3000, '"Ann <a@b.example>']
)
def test_what_cannot_be_told_apart_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_named(text)


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_no_text_gets_a_line_end_into_an_address(text: str) -> None:
    """Nor does any fail with something else than a problem."""
    prepared = None
    with suppress(ProblemError):
        prepared = prepare_email(Email(from_=text, to="ann@example.net", text=""), Limits())
    if prepared is not None:
        header = prepared.content.partition(b"\r\n\r\n")[0]
        assert header.count(b"\nTo:") + header.count(b"\nFrom:") + header.startswith(b"From:") == 2
        assert "\n" not in prepared.envelope.sender


NAMES = st.sampled_from([known.encode_name for known in msgspec.structs.fields(Email)]) | st.text(max_size=5)
SCALARS = st.none() | st.text(max_size=20) | st.integers() | st.floats()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_json_object_is_an_email_or_a_problem(body: dict[str, object]) -> None:
    email = {"from": "a@example.com", "to": "b@example.net", "text": "x"} | body
    problem = None
    try:
        prepare_email(decode(msgspec.json.encode(email), Email), Limits())
    except ProblemError as error:
        problem = error
    assert problem is None or problem.status == 422
    assert problem is None or all(error.pointer.startswith("/") for error in problem.errors)


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Inner] = []
    names: dict[str, int] = {}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[]", FieldError("invalid_value", "Expected an object, not an array.")),
        (
            b'{"items":[{"size":1},{"size":""}]}',
            FieldError("invalid_value", "Expected a whole number, not a text.", "/items/1/size"),
        ),
        (b'{"items":[{}]}', FieldError("missing_field", "The field size is required.", "/items/0/size")),
        (b'{"items":[{"size":1,"a~/b":2}]}', FieldError("unknown_field", "There is no field a~/b.", "/items/0/a~0~1b")),
        (b'{"\\u0000\\n":1}', FieldError("unknown_field", "There is no field \ufffd\ufffd.", "/\ufffd\ufffd")),
        (b'{"names":{"a.b":"x"}}', FieldError("invalid_value", "Expected a whole number, not a text.", "/names")),
        (b'{"` - at `$.x`":1}', FieldError("unknown_field", "There is no field ` - at `$.x`.", "/` - at `$.x`")),
    ],
)
def test_a_validation_error_becomes_a_pointer(body: bytes, error: FieldError) -> None:
    with pytest.raises(ProblemError) as caught:
        decode(body, Outer)
    assert caught.value.errors == (error,)


@pytest.mark.parametrize(
    ("refusal", "sent", "status", "pointer", "wait"),
    [
        (Refused(550, "5.7.1", "no", name="a", field="from", http=403), {"from"}, 403, "/from", None),
        (Refused(550, "5.7.1", "no", name="a", field="raw"), {"from"}, 422, None, None),
        (Refused(451, "4.7.1", "later", name="a"), set(), 429, None, 5),
        (Refused(452, "4.3.1", "later", name="a", http=503), set(), 503, None, 5),
        (RateLimited("later", 77), {"from"}, 429, None, 77),
    ],
)
def test_a_refusal_becomes_a_problem(
    refusal: Refused, sent: set[str], status: int, pointer: str | None, wait: int | None
) -> None:
    problem = of_refusal(refusal, sent)

    assert (problem.status, problem.retry_after) == (status, wait)
    assert [error.pointer for error in problem.errors] == ([pointer] if pointer else [])
