"""What clients are told of a request that is not valid."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, inspect

from mailerd.web.app import OPERATIONS
from mailerd.web.bodies import Campaign, Email, Moment, Name, Request, Value
from mailerd.web.complaints import PATTERNS
from mailerd.web.problems import ProblemError, decode


class Inner(Request, frozen=True, kw_only=True):
    kind: Literal["slow", "pause"] = "slow"


class Body(Request, frozen=True, kw_only=True):
    name: Name = "a"
    campaign: Campaign | None = None
    names: Annotated[list[Name], Meta(max_length=2)] = msgspec.field(default_factory=list)
    labels: dict[Name, Value] = msgspec.field(default_factory=dict)
    count: Annotated[int, Meta(ge=1, le=500)] = 1
    at: Moment | None = None
    raw: bytes = b""
    inner: list[Inner] = msgspec.field(default_factory=list)
    choice: Literal["a", "b"] | None = None
    on: bool = True


@pytest.mark.parametrize(
    ("body", "pointer", "said"),
    [
        ('{"name": "a b"}', "/name", "It may have only letters, digits and _ . : / @ + -."),
        ('{"names": ["ok", "a b"]}', "/names/1", "It may have only letters, digits and _ . : / @ + -."),
        ('{"labels": {"a b": "x"}}', "/labels", "It may have only letters, digits and _ . : / @ + -."),
        ('{"labels": {"a": "x\\n"}}', "/labels", "It may have anything but control characters."),
        ('{"campaign": "a/b"}', "/campaign", "It may have anything but / : ! and control characters."),
        ('{"name": ""}', "/name", "Expected at least 1 character."),
        ('{"names": ["a", "b", "c"]}', "/names", "Expected at most 2 items."),
        ('{"count": 501}', "/count", "Expected at most 500."),
        ('{"count": 0}', "/count", "Expected at least 1."),
        ('{"count": "1"}', "/count", "Expected a whole number, not a text."),
        ('{"campaign": 1}', "/campaign", "Expected a text or null, not a whole number."),
        ('{"at": "tomorrow"}', "/at", "This is not a time such as 2026-11-22T09:30:00Z."),
        ('{"at": "2026-11-22T09:30:00"}', "/at", "The time needs an offset, such as 2026-11-22T09:30:00Z."),
        ('{"raw": "***"}', "/raw", "This is not base64."),
        ('{"inner": [{"kind": "fast"}]}', "/inner/0/kind", "Expected pause or slow."),
        ('{"choice": "foo"}', "/choice", "Expected a or b."),
        ('{"on": "yes"}', "/on", "Expected true or false, not a text."),
        ('{"off": 1}', "/off", "There is no field off."),
        ("[]", "", "Expected an object, not an array."),
    ],
)
def test_a_sentence_says_what_is_allowed(body: str, pointer: str, said: str) -> None:
    with pytest.raises(ProblemError) as found:
        decode(body.encode(), Body)
    (error,) = found.value.errors
    assert (error.pointer, error.detail) == (pointer, said)


@pytest.mark.parametrize("body", ['{"name": "a', "{", ""])
def test_what_ends_too_early_is_said_so(body: str) -> None:
    with pytest.raises(ProblemError, match="it ends too early") as found:
        decode(body.encode(), Body)
    assert found.value.code == "malformed_json"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name":\n "a\nb"}', r"line 2, column 4: a raw line break in a string; write \n."),
        ('{"name": "é\t"}'.encode(), r"line 1, column 12: a raw tab in a string; write \t."),
        (b'{"name": "a\\" \x01"}', r"line 1, column 15: a raw control character in a string; write \u0001."),
        (b'{"name": tru\n}', "line 2, column 1: invalid character."),
        (b'{\n"name": "a",}', "line 2, column 13: trailing comma in object."),
        (b'{\n"name": "\xff"}', "line 2, column 10: bytes that are not UTF-8."),
        (b'{\n"name": ', "line 2, column 9: it ends too early."),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body: bytes, said: str) -> None:
    with pytest.raises(ProblemError) as found:
        decode(body, Body)
    assert found.value.detail == f"The body is not JSON in UTF-8: {said}"


def test_every_pattern_of_a_request_has_words() -> None:
    assert _patterns() == set(PATTERNS)


def _patterns() -> set[str]:
    """Of all that clients send."""
    types: list[Any] = [type_ for operation in OPERATIONS for type_ in (*operation.bodies.values(), operation.query)]
    found: set[str] = set()
    seen: set[int] = set()

    def walk(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, inspect.StrType) and value.pattern:
            found.add(value.pattern)
        if isinstance(value, tuple | list):
            for each in value:
                walk(each)
        elif isinstance(value, msgspec.Struct):
            for name in value.__struct_fields__:
                walk(getattr(value, name))

    asked = [type_ for type_ in types if isinstance(type_, type) and issubclass(type_, Request)]
    walk(inspect.multi_type_info([*asked, Email]))
    return found


def test_a_datetime_is_no_text() -> None:
    assert isinstance(decode(b'{"at": "2026-11-22T09:30:00Z"}', Body).at, datetime)


def test_one_value_that_is_wrong_is_named_where_people_read_first() -> None:
    with pytest.raises(ProblemError) as caught:
        decode(b'{"count": "many"}', Body)
    said = "Expected a whole number, not a text."
    assert caught.value.detail == f"/count: {said}"
    assert caught.value.under("/emails/3").detail == f"/emails/3/count: {said}"
    assert caught.value.of_query().detail == said
    assert [error.parameter for error in caught.value.of_query().errors] == ["count"]
