"""Operations: what can be asked for over HTTP. The router and the OpenAPI document are both made of these."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_origin

import msgspec
from aiohttp import web

from mailerd.intake.credentials import Credential
from mailerd.web import problems
from mailerd.web.cursors import Cursors
from mailerd.web.problems import FieldError
from mailerd.web.reading import BodyReader
from mailerd.web.services import Services

Scope = Literal["send", "read", "manage"]
JSON = "application/json"
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`answers` maps each good status to its media type and type, `problems` lists the bad ones beside the common ones.

    `bodies` are the types that are taken, by media type. A type of bytes is anything at all.
    """

    id: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    scope: Scope | None  # None: nobody needs a key
    summary: str
    handler: Callable[["Call"], Awaitable[web.Response]]
    answers: Mapping[int, tuple[str, type]]
    also: tuple[str, ...] = ()  # media types that good answers may have instead
    bodies: Mapping[str, type] = field(default_factory=dict)
    example: object = None  # of the JSON body
    query: type[msgspec.Struct] | None = None
    problems: tuple[int, ...] = ()
    idempotent: bool = False  # takes an Idempotency-Key
    quiet: bool = False  # counted, and not logged one by one


@dataclass(frozen=True, slots=True)
class Tools:
    """What all calls of one application share."""

    services: Services
    cursors: Cursors
    reader: BodyReader
    document: bytes  # OpenAPI


@dataclass(slots=True)
class Call:
    """One request to one operation. The key was checked already, if the operation has a scope."""

    request: web.Request
    operation: Operation
    tools: Tools
    deadline: asyncio.Timeout
    credential: Credential | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for the access log

    @property
    def services(self) -> Services:
        return self.tools.services

    @property
    def caller(self) -> Credential:
        if self.credential is None:
            raise LookupError(f"{self.operation.id} asks for no key")
        return self.credential

    @property
    def peer(self) -> str:
        return self.request.remote or ""

    @asynccontextmanager
    async def body(self) -> AsyncIterator[bytes]:
        """The body of the request. While it comes in its own time limits hold; the work on it has all of its time."""
        self.deadline.reschedule(None)
        async with self.tools.reader.read(self.request, self.operation.bodies) as body:
            self.deadline.reschedule(asyncio.get_running_loop().time() + self.services.limits.handling)
            yield body

    def query(self, type_: type[T]) -> T:
        """The query parameters as `type_`; raises `ProblemError` (422). Only those that are lists may be repeated."""
        given = self.request.query
        lists = {known.encode_name for known in msgspec.structs.fields(type_) if _is_list(known.type)}
        values = {name: given.getall(name) if name in lists else given[name] for name in given}
        try:
            for name in values.keys() - lists:
                if len(given.getall(name)) > 1:
                    raise msgspec.ValidationError(f"Given more than once - at `$.{name}`")
            for name in given:
                if any("\0" in value for value in given.getall(name)):
                    raise problems.invalid([FieldError("invalid_value", problems.NUL, parameter=name)])
            return msgspec.convert(values, type_, strict=False)
        except msgspec.ValidationError as error:
            found = problems.of_validation(error, type_)
            name = found.pointer.strip("/").partition("/")[0]
            raise problems.invalid([FieldError(found.code, found.detail, parameter=name)]) from None


def _is_list(type_: Any) -> bool:
    return get_origin(type_) is list or get_origin(getattr(type_, "__origin__", None)) is list


def json_answer(status: int, body: object) -> web.Response:
    return web.Response(status=status, body=problems.encode(body), content_type=JSON)
