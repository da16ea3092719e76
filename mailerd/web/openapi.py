"""The OpenAPI 3.1 document, made of the operations and the types that the handlers use."""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from mailerd import __version__
from mailerd.web import problems
from mailerd.web.operations import JSON, Call, Operation
from mailerd.web.problems import Problem

REFERENCE = "#/components/schemas/{name}"
EVERYWHERE = (400, 500, 503)
WITH_KEY = (401, 403, 429)
IDEMPOTENT = (409, 422)  # the key is in use, or another request's
HEADERS: Mapping[str, dict[str, Any]] = {
    "X-Request-Id": {"description": "Yours if you sent a sane one, else ours", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}},
    "RateLimit": {"description": "What is left (draft-ietf-httpapi-ratelimit-headers)", "schema": {"type": "string"}},
    "RateLimit-Policy": {"description": "What the API key may send", "schema": {"type": "string"}},
    "ETag": {"description": "Of what is there now: for If-Match", "schema": {"type": "string"}},
    "Idempotency-Replayed": {"description": "`true`: the answer of an earlier request", "schema": {"type": "string"}},
}
PLAIN_SCHEMAS: Mapping[type, dict[str, Any]] = {dict: {"type": "object"}, str: {"type": "string"}, bytes: {}}
REQUEST_ID_PARAMETER = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Comes back in the response and stands in our log",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}
IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A request with a key is done once, however often it is sent; the key is remembered for a day",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}

IF_MATCH_PARAMETER = {
    "name": "If-Match",
    "in": "header",
    "description": "An ETag: done only if it is still that, else 412",
    "schema": {"type": "string", "maxLength": 200, "pattern": "^[ -~]*$"},
}


async def show(call: Call) -> web.Response:
    return web.Response(body=call.tools.document, content_type=JSON)


OPERATION = Operation(
    id="openapi.get",
    method="GET",
    path="/api/v1/openapi.json",
    scope=None,
    summary="This document",
    handler=show,
    answers={200: (JSON, dict)},
)


def document(operations: Sequence[Operation]) -> bytes:
    types = list(dict.fromkeys(type_ for operation in operations for type_ in _types(operation)))
    _, components = msgspec.json.schema_components([*types, Problem], ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return problems.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "mailerd",
                "version": __version__,
                "description": "Send mail and see what became of it. Errors are problems (RFC 9457): branch on `code`.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": name} for name in dict.fromkeys(_tag(operation) for operation in operations)],
            "paths": paths,
            "components": {
                "schemas": components,
                "headers": HEADERS,
                "responses": {"Problem": _problem_response()},
                "securitySchemes": {
                    "key": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key: `mailerd credentials create`",
                    }
                },
            },
        }
    )


def statuses(operation: Operation) -> set[int]:
    """Every status that an operation may answer with."""
    shared = (*EVERYWHERE, *WITH_KEY) if operation.scope else EVERYWHERE
    keyed = IDEMPOTENT if operation.idempotent else ()
    return {*operation.answers, *operation.problems, *shared, *keyed}


def _types(operation: Operation) -> Iterable[type]:
    for type_ in (*operation.bodies.values(), *(type_ for _, type_ in operation.answers.values())):
        if issubclass(type_, msgspec.Struct):
            yield type_


def _operation(operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [_tag(operation)],
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {str(status): _response(operation, status) for status in sorted(statuses(operation))},
        "security": [{"key": []}] if operation.scope else [],
    }
    if operation.scope:
        made["description"] = f"Needs an API key with the scope `{operation.scope}`."
    if operation.bodies:
        made["requestBody"] = {
            "required": True,
            "content": {media: _media(operation, media, type_) for media, type_ in operation.bodies.items()},
        }
    return made


def _tag(operation: Operation) -> str:
    return operation.id.partition(".")[0]


def _media(operation: Operation, media: str, type_: type) -> dict[str, Any]:
    made: dict[str, Any] = {"schema": _schema(type_)}
    if media == JSON and operation.example is not None:
        made["example"] = operation.example
    return made


def _schema(type_: type) -> dict[str, Any]:
    if issubclass(type_, msgspec.Struct):
        return {"$ref": REFERENCE.format(name=type_.__name__)}
    return dict(PLAIN_SCHEMAS[type_])


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if operation.query is not None:
        schema = _inlined(operation.query)
        required = [] if JSON in operation.bodies else schema.get("required", [])
        made += [
            {"name": name, "in": "query", "required": name in required, "schema": member}
            for name, member in schema["properties"].items()
        ]
    if operation.idempotent:
        made.append(IDEMPOTENCY_PARAMETER)
    if HTTPStatus.PRECONDITION_FAILED in operation.problems:
        made.append(IF_MATCH_PARAMETER)
    return [*made, REQUEST_ID_PARAMETER]


def _inlined(type_: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a flat struct, whose members refer to nothing."""
    _, components = msgspec.json.schema_components([type_], ref_template=REFERENCE)
    schema: dict[str, Any] = components[type_.__name__]
    return schema


def _response(operation: Operation, status: int) -> dict[str, Any]:
    if status not in operation.answers:
        return {"$ref": "#/components/responses/Problem"}
    media, type_ = operation.answers[status]
    headers = ["X-Request-Id"]
    if operation.idempotent:
        headers += ["RateLimit", "RateLimit-Policy", "Idempotency-Replayed"]
    if HTTPStatus.PRECONDITION_FAILED in operation.problems and status != HTTPStatus.NO_CONTENT:
        headers.append("ETag")
    made: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    if status != HTTPStatus.NO_CONTENT:
        made["content"] = {each: {"schema": _schema(type_)} for each in (media, *operation.also)}
    return made


def _problem_response() -> dict[str, Any]:
    return {
        "description": "A problem (RFC 9457)",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", "Retry-After")},
        "content": {problems.MEDIA_TYPE: {"schema": _schema(Problem)}},
    }
