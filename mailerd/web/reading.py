"""Reads request bodies: of the right type, within size, time and memory."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from aiohttp import web

from mailerd.web.problems import UNAVAILABLE_WAIT, ProblemError
from mailerd.web.services import Limits


class Disconnected(ConnectionError):  # noqa: N818 - clients may go
    """The client has gone: nobody is left to answer."""


class BodyReader:
    """All bodies being read or worked on by one process share `limits.memory`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: web.Request, media_types: Collection[str]) -> AsyncIterator[bytes]:
        """The body, whose memory is counted until the block ends. Raises `ProblemError` 400, 408, 413, 415 or 503."""
        self._check_head(request, media_types)
        body = bytearray()
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: web.Request) -> None:
        content = request.content
        try:
            self._add(content.read_nowait(), body)
            if content.at_eof():  # a small body has come with the header: no clock is needed
                return
            async with asyncio.timeout(self._limits.total_read):
                while not content.at_eof():
                    async with asyncio.timeout(self._limits.idle_read):
                        piece = await content.readany()
                    self._add(piece, body)
        except TimeoutError:
            raise ProblemError(408, "request_timeout", "The body did not come in time.", close=True) from None
        except ConnectionError as error:
            raise Disconnected from error
        except web.RequestPayloadError:
            raise ProblemError(400, "malformed_request", "The body is not framed as HTTP says.", close=True) from None

    def _add(self, piece: bytes, body: bytearray) -> None:
        body += piece
        self._held += len(piece)
        if len(body) > self._limits.max_body:
            raise self._too_large()
        if self._held > self._limits.memory:
            detail = "Too many large requests at once; send it again."
            raise ProblemError(503, "busy", detail, retry_after=UNAVAILABLE_WAIT, close=True)

    def _check_head(self, request: web.Request, media_types: Collection[str]) -> None:
        if (request.content_length or 0) > self._limits.max_body:
            raise self._too_large()
        if "Content-Type" not in request.headers or request.content_type not in media_types:
            headers = {"Accept": ", ".join(media_types)}
            detail = f"Send the body as {' or '.join(media_types)}."
            raise ProblemError(415, "unsupported_media_type", detail, headers=headers)
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            headers = {"Accept-Encoding": "identity"}
            raise ProblemError(415, "unsupported_media_type", "Send the body uncompressed.", headers=headers)

    def _too_large(self) -> ProblemError:
        detail = f"The body of a request may have {self._limits.max_body:,} bytes."
        return ProblemError(413, "body_too_large", detail, close=True)
