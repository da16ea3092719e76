"""One attempt: a request, and what came of it in words that fit a log."""

import errno
import os
import ssl
import time
from collections.abc import Callable
from datetime import datetime

import aiohttp
import structlog

from mailerd.delivery.https import Poster
from mailerd.feedback.webhooks.schedule import retry_after
from mailerd.feedback.webhooks.signing import headers
from mailerd.feedback.webhooks.values import Outcome, Webhook

log = structlog.get_logger()

MOST_WORDS = 300  # characters of an error


async def send(
    poster: Poster, webhook: Webhook, key: str, body: bytes, *, clock: Callable[[], datetime], timeout: float
) -> Outcome:
    """Sign and post; never raises but for being cancelled. Within `timeout` seconds."""
    now, begun = clock(), time.monotonic()
    try:
        fields = headers(key, now, body, webhook.secrets(now))
        answered = await poster.post(webhook.url, body, headers=fields, timeout=timeout)
    except TimeoutError:
        return Outcome(0, f"no answer within {timeout:g} s", took=time.monotonic() - begun)
    except (OSError, aiohttp.ClientError, ValueError) as error:  # the last: a URL that may not be posted to (any more)
        return Outcome(0, _words(error), took=time.monotonic() - begun)
    except Exception as error:  # whatever a host can think of, it is a failure of that host
        log.exception("webhook.failed", webhook=webhook.outside_id)
        return Outcome(0, _words(error), took=time.monotonic() - begun)
    return Outcome(
        answered.status,
        "" if 200 <= answered.status < 300 else _meaning(answered.status),
        _printable(answered.excerpt.decode("utf-8", "replace")),
        time.monotonic() - begun,
        retry_after(answered.retry_after, now),
    )


def _meaning(status: int) -> str:
    return "redirects are not followed" if 300 <= status < 400 else f"status {status}"


def _words(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number in errno.errorcode:
            return f"cannot connect: {os.strerror(number).lower()}"  # its own text repeats that for each address
        case aiohttp.ClientConnectorError():
            error = error.os_error
        case aiohttp.ClientOSError() if isinstance(error.__cause__, ssl.SSLError):
            error = error.__cause__
    return _printable(str(error) or type(error).__name__)[:MOST_WORDS]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
