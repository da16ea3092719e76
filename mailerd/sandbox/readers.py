"""Readers of what the sandbox has taken: they open it, click, or unsubscribe, as people do in their mail programs.

Only links of our own daemon are followed: those that begin with `base`, its `http.public_url`.
"""

import asyncio
import email
import email.policy
import html
import re
from typing import Literal, NamedTuple

import aiohttp
import structlog

log = structlog.get_logger()

Act = Literal["open", "click", "unsubscribe"]

MOST_WAITING = 10_000  # more are dropped
AT_ONCE = 4
PAUSE = 0.5  # seconds between opening a mail and clicking in it
TIMEOUT = aiohttp.ClientTimeout(total=10)
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Thunderbird/140.0 (a reader in the sandbox)"
LINK = re.compile(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)
WAY_OUT = re.compile(r"<(https?://[^>\s]+)>")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Links(NamedTuple):
    """What a mail has for its reader: pixels, tracked links, where one click unsubscribes."""

    pixels: list[str]
    clicks: list[str]
    out: str


def find_links(content: bytes, base: str) -> Links:
    """Those of a message that begin with `base`."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    part = message.get_body(("html",))
    text = part.get_content() if part is not None else ""
    found = [url for url in map(html.unescape, LINK.findall(text)) if url.startswith(base)]
    ways = WAY_OUT.findall(str(message.get("List-Unsubscribe", "")))
    return Links(
        [url for url in found if "/o/" in url],
        [url for url in found if "/c/" in url],
        next((url for url in ways if url.startswith(base)), ""),
    )


class Readers:
    """Reads from `start()` to `stop()`, a few mails at a time."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/") + "/"
        self._waiting: asyncio.Queue[tuple[Act, bytes]] = asyncio.Queue(MOST_WAITING)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name="sandbox reader") for _ in range(AT_ONCE)]

    async def stop(self) -> None:
        """What is still waiting is forgotten."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def put(self, act: Act, content: bytes) -> None:
        """Somebody reads it soon."""
        try:
            self._waiting.put_nowait((act, content))
        except asyncio.QueueFull:
            log.warning("sandbox.reader_dropped", waiting=MOST_WAITING)

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=TIMEOUT, headers={"User-Agent": AGENT}) as session:
            while True:
                act, content = await self._waiting.get()
                try:
                    await self._read(act, find_links(content, self._base), session)
                except (OSError, aiohttp.ClientError, TimeoutError) as error:
                    log.warning("sandbox.reader_failed", error=str(error) or type(error).__name__)
                except Exception:  # one strange mail must not keep the others from being read
                    log.exception("sandbox.reader_crashed")

    async def _read(self, act: Act, links: Links, session: aiohttp.ClientSession) -> None:
        for url in links.pixels:
            async with session.get(url):
                pass
        if act == "click" and links.clicks:
            await asyncio.sleep(PAUSE)
            async with session.get(links.clicks[0], allow_redirects=False):
                pass
        if act == "unsubscribe" and links.out:
            await asyncio.sleep(PAUSE)
            async with session.post(links.out, data=b"List-Unsubscribe=One-Click", headers=FORM):
                pass
