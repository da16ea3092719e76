"""What may stand in a contact: addresses, tags, custom fields."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.contacts.fields import (
    MAX_FIELDS,
    MAX_VALUE,
    TYPES,
    check_fields,
    fits,
    from_text,
    merged,
)
from mailerd.campaigns.contacts.values import is_time_zone, parse_email, tag_name, text_problem
from mailerd.queue.suppression import normalised

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@pytest.mark.parametrize(
    ("text", "email", "address"),
    [
        (" Ann@Example.COM ", "Ann@example.com", "ann@example.com"),
        ("ann@bücher.example", "ann@xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
        ('"ann lee"@example.com', '"ann lee"@example.com', '"ann lee"@example.com'),
        ('"ann"@example.com', '"ann"@example.com', "ann@example.com"),
    ],
)
def test_an_address_keeps_its_spelling_and_is_unique_by_another(text: str, email: str, address: str) -> None:
    assert parse_email(text) == (email, address)


@pytest.mark.parametrize(
    "text", ["", "ann", "@example.com", "ann@", "ann@localhost", "ann@[127.0.0.1]", "a b@c.example"]
)
def test_what_is_no_address_of_a_person_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(the|a) "):
        parse_email(text)


@given(st.text(max_size=100) | st.emails())
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    try:
        email, address = parse_email(text)
    except ValueError:
        return
    assert address == normalised(email) == normalised(address)
    assert parse_email(email) == (email, address)
    assert address.rpartition("@")[0]


@given(st.dictionaries(st.text(max_size=70), ANYTHING, max_size=5), st.dictionaries(st.text(), st.sampled_from(TYPES)))
def test_fields_without_problems_can_be_stored_and_read_back(
    values: dict[str, object], definitions: dict[str, str]
) -> None:
    if check_fields(values, definitions):
        return
    stored = merged({}, values)
    encoded = msgspec.json.encode(stored)

    assert len(encoded) <= MAX_FIELDS
    assert b"\\u0000" not in encoded  # PostgreSQL would refuse it
    assert msgspec.json.decode(encoded) == stored
    assert all(fits(value, definitions[name]) for name, value in stored.items() if name in definitions)


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        ("text", "pro", 5),
        ("number", 5.5, "5"),
        ("number", 0, True),
        ("boolean", False, "no"),
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2026-11-22", "2026-W47-7"),
        ("datetime", "2026-11-22T09:30:00+05:30", "2026-11-22T09:30:00"),
        ("datetime", "2026-11-22T09:30Z", "0001-01-01T00:00:00+14:00"),
        ("list", ["a", "b"], "a"),
    ],
)
def test_a_defined_field_holds_its_type_only(type_: str, good: object, bad: object) -> None:
    assert check_fields({"field": good}, {"field": type_}) == []
    (problem,) = check_fields({"field": bad}, {"field": type_})
    assert (problem.name, problem.code) == ("field", "invalid_type")


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"Plan": 1}, "invalid_name"),
        ({"a" * 64: 1}, "invalid_name"),
        ({"plan\n": 1}, "invalid_name"),
        ({"plan": {"a": 1}}, "invalid_type"),
        ({"plan": ["a", 1]}, "invalid_type"),
        ({"plan": "a\x00b"}, "invalid_value"),
        ({"plan": float("nan")}, "out_of_range"),
        ({"plan": 10**20}, "out_of_range"),
        ({"plan": "x" * MAX_VALUE}, "too_large"),
        ({f"f{n}": "x" * 4000 for n in range(17)}, "too_large"),
    ],
)
def test_what_no_field_may_hold_is_told(values: dict[str, object], code: str) -> None:
    assert [problem.code for problem in check_fields(values, {})] == [code]


def test_given_fields_replace_null_removes_and_others_stay() -> None:
    assert merged({"a": 1, "b": 2, "c": 3}, {"a": 9, "b": None, "d": ["x"]}) == {"a": 9, "c": 3, "d": ["x"]}


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("5", "number", 5),
        (" 5.50 ", "number", 5.5),
        ("Yes", "boolean", True),
        ("a; b;;", "list", ["a", "b"]),
        ("2026-11-22", "date", "2026-11-22"),
        ("17.05.1980", "date", "1980-05-17"),
        ("a, b", "list", ["a", "b"]),
        ("a, b;", "list", ["a, b"]),
        ("5", None, "5"),
        ("  ", "number", None),
    ],
)
def test_a_cell_of_a_file_means_a_value(text: str, type_: str | None, value: object) -> None:
    assert from_text(text, type_) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("12,50", 12.5), ("1.234,5", 1234.5), ("-1.234.567", -1234567), ("12.5", 12.5), ("0.125", 0.125), ("7", 7)],
)
def test_numbers_have_a_decimal_comma_where_files_have_semicolons(text: str, value: float) -> None:
    assert from_text(text, "number", decimal_comma=True) == value


@pytest.mark.parametrize(
    ("text", "said"), [("1.234", "1234 or 1,234"), ("1,2,3", "a number"), ("12.50,5", "a number"), (",", "a number")]
)
def test_what_may_be_two_numbers_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_text(text, "number", decimal_comma=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ann <ann@example.com>", "a name and an address"),
        ("ann@example.com, bob@example.com", "two addresses"),
        ("ann @example.com", "a space"),
        ("mailto:ann@example.com", "mailto:"),
        ("ann.example.com", "no @"),
    ],
)
def test_what_people_put_for_an_address_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        parse_email(text)
    assert "ann" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "type_"), [("1_0", "number"), ("inf", "number"), ("maybe", "boolean"), ("1.1.26", "date")]
)
def test_a_cell_that_does_not_fit_is_refused(text: str, type_: str) -> None:
    with pytest.raises(ValueError, match=r"^it is not (a|true)"):
        from_text(text, type_)


def test_tags_are_normalised_and_one_line() -> None:
    assert tag_name(" cafe\u0301 ") == "café"
    for bad in ("", " ", "a,b", "a;b", "a\nb", "x" * 65):
        with pytest.raises(ValueError, match="tag"):
            tag_name(bad)


def test_time_zones_are_those_of_iana_and_texts_have_no_line_ends() -> None:
    assert is_time_zone("Europe/Berlin")
    assert not is_time_zone("Berlin")
    assert not is_time_zone("../etc/passwd")
    assert text_problem("Ann", 10) is None
    assert text_problem("Ann\u2028Bcc: eve@example.com", 100)
