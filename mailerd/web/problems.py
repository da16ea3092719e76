"""Everything that goes wrong over HTTP, in one shape: application/problem+json (RFC 9457)."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from mailerd.errors import Refused
from mailerd.intake.allowance import RateLimited
from mailerd.web.complaints import read_complaint

MEDIA_TYPE = "application/problem+json"
UNAVAILABLE_WAIT = 5  # seconds a client should leave us alone when the database is away
TITLES = {
    "malformed_json": "The body is not JSON",
    "malformed_request": "The request is not HTTP",
    "invalid_cursor": "The cursor does not belong to this search",
    "invalid_idempotency_key": "The Idempotency-Key cannot be used",
    "unauthorized": "A valid API key is needed",
    "forbidden": "The API key may not do this",
    "not_found": "There is nothing here",
    "method_not_allowed": "This cannot be done here",
    "request_timeout": "The body came too slowly",
    "idempotency_in_progress": "The same request is being worked on",
    "held_by_operator": "An operator holds this mail",
    "message_finished": "Every recipient has its final state",
    "body_too_large": "The body is too large",
    "message_too_large": "The message is too large",
    "unsupported_media_type": "The body is of a type that is not taken",
    "invalid": "The request is not valid",
    "idempotency_key_reused": "The Idempotency-Key stands for another request",
    "nothing_accepted": "No message of the batch was accepted",
    "rate_limited": "Too many requests",
    "internal_error": "Something went wrong on our side",
    "unavailable": "Not possible right now",
    "timeout": "It took too long",
    "busy": "Too much at once",
    "not_ready": "Not ready",
}
"""Of codes that say too little as words."""


class FieldError(Struct, frozen=True, omit_defaults=True):
    """One thing wrong with the request: where in the body (RFC 6901) or in which query parameter, and what."""

    code: str
    detail: str
    pointer: str = ""
    parameter: str = ""


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457. Branch on `code`: it does not change; `title` and `detail` are for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: tuple[FieldError, ...] = ()
    retry_after: int | None = None  # seconds


class ProblemError(Exception):
    """A request ends here, with this problem as its answer. All texts are public."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.retry_after = retry_after
        self.close = close  # the connection with it: what is left of the body is not worth reading

    def under(self, pointer: str) -> "ProblemError":
        """The same problem with something inside the body: there stands what was at fault."""
        errors = [msgspec.structs.replace(error, pointer=pointer + error.pointer) for error in self.errors]
        errors = errors or [FieldError(self.code, self.detail, pointer=pointer)]
        detail = _summary(errors) if self.detail == _summary(self.errors) else self.detail
        return ProblemError(self.status, self.code, detail, errors=errors)

    def of_query(self) -> "ProblemError":
        """The same problem with a request whose body is a message: what is no part of that stands in the query."""
        errors = [
            FieldError(error.code, error.detail, parameter=error.pointer.split("/")[1])
            if error.pointer and error.pointer != "/raw"
            else FieldError(error.code, error.detail, parameter=error.parameter)
            for error in self.errors
        ]
        detail = _summary(errors) if self.detail == _summary(self.errors) else self.detail
        return ProblemError(
            self.status, self.code, detail, errors=errors, headers=self.headers, retry_after=self.retry_after
        )

    def answer(self, request_id: str) -> web.Response:
        problem = Problem(
            type=f"urn:mailerd:problem:{self.code}",
            title=TITLES.get(self.code) or self.code.replace("_", " ").capitalize(),
            status=self.status,
            code=self.code,
            detail=self.detail,
            instance=f"urn:mailerd:request:{request_id}",
            request_id=request_id,
            errors=self.errors,
            retry_after=self.retry_after,
        )
        response = web.Response(status=self.status, body=encode(problem), content_type=MEDIA_TYPE, headers=self.headers)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        if self.close:
            response.force_close()
        return response


def invalid(errors: Sequence[FieldError]) -> ProblemError:
    """422, with everything that was found."""
    return ProblemError(422, "invalid", _summary(errors), errors=errors)


def _summary(errors: Sequence[FieldError]) -> str:
    """What is wrong; of a value that is none of its kind also where, for those who read no further."""
    if len(errors) != 1:
        return f"{len(errors)} things are wrong with the request; see errors."
    (error,) = errors
    return f"{error.pointer}: {error.detail}" if error.pointer and error.code == "invalid_value" else error.detail


def of_refusal(refusal: Refused, sent: Container[str] = ()) -> ProblemError:
    """What the relay would not take. Its field becomes a pointer if the client sent a field of that name."""
    status = refusal.http
    errors = [FieldError(refusal.name, refusal.text, pointer=f"/{refusal.field}")] if refusal.field in sent else []
    wait = UNAVAILABLE_WAIT if status in (429, 503) else None
    if isinstance(refusal, RateLimited):
        wait = refusal.wait
    return ProblemError(status, refusal.name, refusal.text, errors=errors, retry_after=wait)


def encode(value: object) -> bytes:
    """As JSON, with the line end that people at a terminal want after it."""
    return msgspec.json.encode(value, enc_hook=_plain) + b"\n"


def _plain(value: object) -> str:
    """Values of the configuration are kinds of `str`: an address of ours, a host name."""
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is not for JSON")


T = TypeVar("T")


def decode(body: bytes | msgspec.Raw, type_: type[T]) -> T:
    """Read JSON as `type_`; raises `ProblemError` 400 for what is not JSON, 422 for what is not a `type_`."""
    try:
        found = msgspec.json.decode(body, type=type_)
        # Neither mail nor PostgreSQL has room for NUL; halves of surrogate pairs are no JSON to msgspec.
        if b"\\u0000" in bytes(body) and (pointer := _with_nul(found)) is not None:
            raise invalid([FieldError("invalid_value", NUL, pointer)])
        return found
    except msgspec.ValidationError as error:
        raise invalid([of_validation(error, type_)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProblemError(400, "malformed_json", f"The body is not JSON in UTF-8: {_fault(body, error)}.") from None
    except RecursionError:
        raise ProblemError(400, "malformed_json", "The body is nested too deeply.") from None


def _with_nul(value: object) -> str | None:
    """The pointer to the first text with a NUL; what is not decoded yet is not looked into."""
    if isinstance(value, str):
        return "" if "\0" in value else None
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, msgspec.Struct):
        parts = ((field.encode_name, getattr(value, field.name)) for field in msgspec.structs.fields(value))
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for name, part in parts:
        below = "" if "\0" in str(name) else _with_nul(part)
        if below is not None:
            return f"/{escape(str(name))}{below}"
    return None


NUL = "It has a NUL character."


def _fault(body: bytes | msgspec.Raw, error: Exception) -> str:
    """What is wrong, and in which line and column, both from 1."""
    data = bytes(body)
    text, _, place = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    if isinstance(error, UnicodeDecodeError):  # it counts from the beginning of a string
        text, at = "bytes that are not UTF-8", _not_utf8(data)
    elif text == "Input data was truncated":
        text, at = "it ends too early", len(data)
    else:
        at = int(place.rstrip(")")) if place else 0
        letter = data[at] if at < len(data) else 0x20
        if text == "invalid character" and letter < 0x20 and b'"' in _STRING.sub(b"", data[:at]):
            what, written = _CONTROLS.get(letter, ("control character", f"\\u{letter:04x}"))
            text = f"a raw {what} in a string; write {written}"
    before = data[:at]
    lines = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    return f"line {lines}, column {column}: {text}"


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CONTROLS = {0x09: ("tab", "\\t"), 0x0A: ("line break", "\\n"), 0x0D: ("line break", "\\r\\n or \\n")}


def _not_utf8(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def of_validation(error: msgspec.ValidationError, type_: Any) -> FieldError:
    """What msgspec found wrong with what was to be a `type_`: a pointer, a code, and a sentence of what is allowed."""
    found = read_complaint(str(error), type_)
    pointer = "".join(f"/{escape(step)}" for step in found.steps)
    return FieldError(found.code, found.detail, pointer=pointer)


def escape(name: str) -> str:
    """A member's name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")  # RFC 6901 section 3
