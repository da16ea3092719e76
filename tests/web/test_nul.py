"""No text of any request may have a NUL, whatever the request: 422, and a pointer to it."""

from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from mailerd.web import problems
from mailerd.web.app import OPERATIONS
from mailerd.web.bodies import Request
from mailerd.web.operations import JSON
from mailerd.web.problems import ProblemError
from tests.web.conftest import Api

BODIES = {each.bodies[JSON] for each in OPERATIONS if JSON in each.bodies and issubclass(each.bodies[JSON], Request)}


def texts(type_: type[msgspec.Struct]) -> Iterator[tuple[str, bool]]:
    """The members that may hold any text, and whether in a list."""
    known = inspect.type_info(type_)
    assert isinstance(known, inspect.StructType)
    for field in known.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for kind in kinds:
            if isinstance(kind, inspect.StrType):
                yield field.encode_name, False
            elif isinstance(kind, inspect.ListType) and isinstance(kind.item_type, inspect.StrType):
                yield field.encode_name, True


@pytest.mark.parametrize("type_", sorted(BODIES, key=str), ids=str)
def test_a_body_with_a_nul_or_half_a_surrogate_is_refused(type_: type[msgspec.Struct]) -> None:
    partial = msgspec.defstruct(
        "Partial",
        [(field.name, field.type, msgspec.UNSET) for field in msgspec.structs.fields(type_)],  # all may be left out
        rename={field.name: field.encode_name for field in msgspec.structs.fields(type_)},
        kw_only=True,
    )
    for name, in_list in texts(type_):
        for text, status in ((r"\u0000ab", 422), (r"\ud800", 400)):
            value = f'["{text}"]' if in_list else f'"{text}"'
            with pytest.raises(ProblemError) as refused:
                problems.decode(f'{{"{name}": {value}}}'.encode(), partial)
            assert refused.value.status == status
            if status == 422:
                assert refused.value.errors[0].pointer.startswith(f"/{name}")


@pytest.mark.parametrize(
    "path",
    ["/api/v1/events?campaign=%00", "/api/v1/contacts?email=a%00b", "/api/v1/suppressions?address=%00",
     "/api/v1/emails?recipient=%00", "/api/v1/campaigns?cursor=%00"],
)  # fmt: skip
async def test_a_query_with_a_nul_is_refused(api: Api, path: str) -> None:
    answer = await api.ask("GET", path)

    assert answer.status == 422
    assert answer.problem.errors[0].parameter == path.partition("?")[2].partition("=")[0]


async def test_nothing_that_is_kept_as_it_was_given_breaks_the_database(api: Api) -> None:
    for method, path, body in (
        ("POST", "/api/v1/suppressions", {"address": "a@b.example", "detail": "a\0b"}),
        ("POST", "/api/v1/campaigns", {"name": "a", "template_id": "tpl_1", "sender_email": "a@b.example",
                                       "options": {"pool": "\0", "postal_address": "x"}}),
        ("PUT", "/api/v1/campaigns/cmp_1", {"options": {"postal_address": "\0"}}),
        ("POST", "/api/v1/contacts", {"email": "a@b.example", "custom_fields": {"a": ["\0"]}}),
    ):  # fmt: skip
        answer = await api.ask(method, path, json=body)
        assert (answer.status, answer.problem.code) == (422, "invalid"), answer.text
