"""Requests made of the OpenAPI document, good ones and bad ones: what is answered must be what the document says.

`World` makes one of everything, so that requests get further than "there is no such thing": the ids in paths, and half
of those in bodies, are of things that are there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
API = "/api/v1"
CONDITIONS = {"field": "email", "operator": "contains", "value": "a"}
# What half of the bodies have in these members: texts made of a schema are hardly ever addresses, or times to come.
LIKELY: dict[str, Any] = {
    "to": ["me@example.net"],
    "from": "a@shop.example",
    "sender_email": "news@shop.example",
    "email": "p{n}@example.net",
    "schedule_time": "{later}",
    "conditions": CONDITIONS,
    "segment_conditions": CONDITIONS,
}
# Where the thing of a path is made: its POST, and a body of which all that must be new is {n}.
MADE = {
    "contacts": ("contact_id", {"email": "ann{n}@example.net", "tags": ["vip"], "custom_fields": {"plan": "pro"}}),
    "lists": ("list_id", {"name": "News {n}"}),
    "tags": ("tag_id", {"name": "tag {n}"}),
    "custom-fields": ("name", {"name": "field_{n}", "type": "text"}),
    "segments": ("segment_id", {"name": "S {n}", "conditions": CONDITIONS}),
    "templates": (
        "template_id",
        {
            "name": "T {n}",
            "subject": "Hello",
            "html_content": '<p>Hello, {{ postal_address }}</p><a href="{{ unsubscribe_url }}">out</a>',
        },
    ),
    "campaigns": (
        "campaign_id",
        {"name": "C {n}", "template_id": "*", "sender_email": "news@shop.example", "contact_list_ids": ["*"]},
    ),
    "contacts/import": ("import_id", {"contacts": [{"email": "imported{n}@example.net"}]}),
    "emails": (
        "id",
        {"from": "a@shop.example", "to": ["x@example.net"], "text": "x", "scheduled_at": "{later}"},
    ),
    "webhooks": ("id", {"url": "https://hooks.example/{n}", "events": ["email.delivered"]}),
}
# After these there has to be another thing, with which these steps were taken.
USED_UP: dict[str, tuple[str, ...]] = {
    "campaigns.send": (),
    "campaigns.schedule": (),
    "campaigns.pause": ("send",),
    "campaigns.resume": ("send", "pause"),
    "campaigns.cancel": ("send",),
    "contacts.erase": (),
}


class World:
    """One of each thing, by the first step of its path."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self.session = requests.Session()
        self._n = 0
        self._later = (datetime.now(UTC) + timedelta(days=30)).isoformat()
        self.ids: dict[str, str] = {}
        self.seen: Counter[tuple[str, int]] = Counter()  # answers, by operation and status
        for kind in MADE:
            self.make(kind)
            if kind == "lists":
                body = {"contact_ids": [self.ids["contacts"]]}
                path = f"{url}{API}/lists/{self.ids['lists']}/contacts"
                assert self.session.post(path, json=body, headers=self.headers, timeout=20).ok

    def make(self, kind: str, steps: Sequence[str] = ()) -> None:
        """Another one, with these steps taken."""
        self._n += 1
        key, body = MADE[kind]
        answer = self.session.post(f"{self.url}{API}/{kind}", json=self._filled(body), headers=self.headers, timeout=20)
        assert answer.ok, (kind, answer.text)
        self.ids[kind] = answer.json()[key]
        for step in steps:
            path = f"{self.url}{API}/{kind}/{self.ids[kind]}/{step}"
            answer = self.session.post(path, headers=self.headers, timeout=20)
            assert answer.ok, answer.text

    def _filled(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._filled(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each, key) for each in value]
        if value == "*":
            return self.known(key)
        return value.replace("{n}", str(self._n)).replace("{later}", self._later) if isinstance(value, str) else value

    def known(self, key: str) -> str | None:
        """The id of a thing that a member of this name may mean."""
        name = key.removesuffix("_ids").removesuffix("_id")
        kinds = {"contact_list": "lists", "list": "lists", "exclude_list": "lists", "exclude_segment": "segments"}
        return self.ids.get(kinds.get(name, f"{name}s"))

    def path_of(self, path: str) -> dict[str, str]:
        """Parameters of a path that lead to what there is."""
        steps = path.removeprefix(f"{API}/").split("/")
        kind = "contacts/import" if "{import_id}" in steps else steps[0]
        names = [step.strip("{}") for step in steps if step.startswith("{")]
        found = dict.fromkeys(names, "1")
        if names and kind in self.ids:
            found[names[0]] = self.ids[kind]
        return found

    def real(self, value: Any) -> Any:
        """The body with ids of things that are there, and what else is likely."""
        if isinstance(value, dict):
            return {name: self._real(name, each) for name, each in value.items()}
        return [self.real(each) for each in value] if isinstance(value, list) else value

    def _real(self, name: str, value: Any) -> Any:
        if value is not None and name in LIKELY:
            self._n += 1
            return self._filled(LIKELY[name])
        known = self.known(name) if name.endswith(("_id", "_ids")) else None
        if known is None:
            return self.real(value)
        return [known] if isinstance(value, list) else known if isinstance(value, str) else value


def fuzz(
    world: World, *, examples: int, only: Sequence[str] = (), start: int = 0, checks: Sequence[Any] = ()
) -> Iterator[str]:
    """What was found wrong, as texts. `only`: how the ids of operations begin."""
    schema = schemathesis.openapi.from_url(f"{world.url}{API}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        id_ = operation.definition.raw["operationId"]
        if only and not id_.startswith(tuple(only)):
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield from _tried(world, operation, id_, mode, examples, start, [*CHECKS, *checks])


def _tried(
    world: World, operation: Any, id_: str, mode: GenerationMode, examples: int, start: int, checks: list[Any]
) -> Iterator[str]:
    wrong: dict[str, str] = {}
    kind = operation.path.removeprefix(f"{API}/").partition("/")[0]
    uses_up = kind in MADE and (operation.method.upper() == "DELETE" or id_ in USED_UP)
    steps = USED_UP.get(id_, ())
    if steps:
        world.make(kind, steps)

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not start,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode), there=st.integers(0, 9), known=st.booleans())
    def ask(case: Any, there: int, known: bool) -> None:
        if case.path_parameters and there:
            case.path_parameters = world.path_of(operation.path)
        if known and isinstance(case.body, dict):
            case.body = world.real(case.body)
        response = case.call(base_url=world.url, session=world.session, headers=world.headers, timeout=30,
                             allow_redirects=False)  # fmt: skip
        world.seen[id_, response.status_code] += 1
        if response.status_code == 503 and response.json()["code"] == "busy":
            return  # of the many files that we send
        try:
            case.validate_response(response, checks=checks)
        except (Failure, FailureGroup) as failure:
            for each in getattr(failure, "exceptions", [failure]):
                told = f"{id_}, {mode.value}: {each.title}: {response.status_code} {response.text[:300]!r}"
                asked = f"{each}\n{case.as_curl_command()}"[:1500]
                wrong.setdefault(f"{each.title} {response.status_code}", f"{told}\n{asked}")
        if uses_up and response.status_code < 300:
            world.make(kind, steps)

    try:
        ask()
    except Exception as error:
        wrong["error"] = f"{id_} {mode.value}: {type(error).__name__}: {str(error)[:500]}"
    yield from wrong.values()
