"""Bodies that are files: read piece by piece, never whole in memory; alone, or as the file of a form."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from mailerd.web.operations import Call
from mailerd.web.problems import ProblemError
from mailerd.web.reading import Disconnected

FORM = "multipart/form-data"
PIECE = 65_536  # bytes
MAX_FIELDS = 50  # of a form, beside the file
MAX_FIELD = 65_536  # bytes

Feed = Callable[[bytes], Awaitable[None]]


@asynccontextmanager
async def uploading(call: Call, most: int) -> AsyncIterator[None]:
    """While a file of up to so many bytes comes in, only its pieces have a time limit; what comes after has all of its.

    Raises `ProblemError` 408, 413, 415 and 400 for what is wrong with the way it comes.
    """
    request = call.request
    if request.content_type not in call.operation.bodies or "Content-Type" not in request.headers:
        known = call.operation.bodies
        detail = f"Send the body as {' or '.join(known)}."
        raise ProblemError(415, "unsupported_media_type", detail, headers={"Accept": ", ".join(known)})
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        headers = {"Accept-Encoding": "identity"}
        raise ProblemError(415, "unsupported_media_type", "Send the body uncompressed.", headers=headers)
    if (request.content_length or 0) > most + MAX_FIELDS * MAX_FIELD:
        raise too_large(most)
    call.deadline.reschedule(None)
    try:
        yield
    except TimeoutError:
        raise ProblemError(408, "request_timeout", "The body did not come in time.", close=True) from None
    except ConnectionError as error:
        raise Disconnected from error
    except (web.RequestPayloadError, HttpProcessingError, ValueError, AssertionError) as error:  # the last three: forms
        detail = f"The body is not framed as HTTP and its type say: {str(error)[:100]}"
        raise ProblemError(400, "malformed_request", detail, close=True) from None
    finally:
        call.deadline.reschedule(asyncio.get_running_loop().time() + call.services.limits.handling)


def too_large(most: int) -> ProblemError:
    return ProblemError(413, "body_too_large", f"A file may have {most:,} bytes.", close=True)


async def read_body(call: Call, feed: Feed) -> None:
    """The body is the file."""
    content = call.request.content
    while not content.at_eof():
        async with asyncio.timeout(call.services.limits.idle_read):
            piece = await content.readany()
        if piece:
            await feed(piece)


async def read_form(call: Call, begin: Callable[[dict[str, list[str]]], Awaitable[Feed]]) -> None:
    """A form: first its fields, then the file, for which `begin` says where it goes. Raises `ProblemError` (400)."""
    idle = call.services.limits.idle_read
    fields: dict[str, list[str]] = {}
    feed: Feed | None = None
    reader = await call.request.multipart()
    while True:
        async with asyncio.timeout(idle):
            part = await reader.next()
        if part is None:
            break
        if not isinstance(part, BodyPartReader):
            raise ProblemError(400, "malformed_request", "A form has no forms within.", close=True)
        if feed is not None:
            raise ProblemError(400, "malformed_request", "The file is the last part of the form.", close=True)
        if part.filename is None:
            if sum(map(len, fields.values())) >= MAX_FIELDS:
                raise ProblemError(400, "malformed_request", f"A form has at most {MAX_FIELDS} fields.", close=True)
            fields.setdefault(part.name or "", []).append(await _field(part, idle))
            continue
        feed = await begin(fields)
        while True:
            async with asyncio.timeout(idle):
                piece = await part.read_chunk(PIECE)
            if not piece:
                break
            await feed(piece)
    if feed is None:
        raise ProblemError(400, "malformed_request", "The form has no file: a part with a filename.")


async def _field(part: BodyPartReader, idle: float) -> str:
    value = b""
    while True:
        async with asyncio.timeout(idle):
            piece = await part.read_chunk(PIECE)
        if not piece:
            return value.decode()
        value += piece
        if len(value) > MAX_FIELD:
            detail = f"A field of the form has at most {MAX_FIELD:,} bytes."
            raise ProblemError(400, "malformed_request", detail, close=True)
