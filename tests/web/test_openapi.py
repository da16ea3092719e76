"""The document itself; that answers agree with it is asserted by every test that uses the `api` fixture."""

import re
from typing import Any

from mailerd.web.app import OPERATIONS, build_app
from mailerd.web.openapi import statuses
from mailerd.web.services import Services
from tests.web.conftest import Api


async def test_every_route_and_status_is_in_the_document(api: Api, services: Services) -> None:
    document = (await api.ask("GET", "/api/v1/openapi.json", key="none")).json
    routes = {
        (route.method, route.resource.canonical)
        for route in build_app(services).router.routes()
        if route.resource is not None
    }

    assert document["openapi"] == "3.1.0"
    assert routes == {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    for operation in OPERATIONS:
        documented = document["paths"][operation.path][operation.method.lower()]
        assert documented["operationId"] == operation.id
        assert {int(status) for status in documented["responses"]} == statuses(operation)
        assert documented["security"] == ([{"key": []}] if operation.scope else [])


async def test_every_reference_leads_somewhere(api: Api) -> None:
    document = (await api.ask("GET", "/api/v1/openapi.json")).json

    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


async def test_operations_have_names_of_their_own_and_path_parameters_are_declared(api: Api) -> None:
    document = (await api.ask("GET", "/api/v1/openapi.json")).json
    names = []
    for path, methods in document["paths"].items():
        for operation in methods.values():
            names.append(operation["operationId"])
            declared = {known["name"] for known in operation["parameters"] if known["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in names)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for value in node for found in references(value)]
    return []
