"""The way back: what the sandbox answers goes to an inbound listener of ours, as from any host."""

import asyncio

import aiosmtplib
import structlog

from mailerd.config import Endpoint
from mailerd.sandbox.answers import Answer

log = structlog.get_logger()

MOST_WAITING = 1_000  # answers; more are dropped
TIMEOUT = 30.0  # seconds for a connection, and for each reply
PAUSES = (1.0, 5.0, 20.0)  # seconds before another try: its workers may be starting


class Sender:
    """Sends to `inbound`, one after the other, from `start()` to `stop()`."""

    def __init__(self, inbound: Endpoint, hostname: str) -> None:
        self._inbound = inbound
        self._hostname = hostname
        self._waiting: asyncio.Queue[Answer] = asyncio.Queue(MOST_WAITING)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sandbox answers")

    async def stop(self) -> None:
        """What is still waiting is forgotten."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def put(self, answer: Answer) -> None:
        """Send it soon."""
        try:
            self._waiting.put_nowait(answer)
        except asyncio.QueueFull:
            log.warning("sandbox.answer_dropped", to=answer.to, waiting=MOST_WAITING)

    async def _run(self) -> None:
        while True:
            answer = await self._waiting.get()
            try:
                await self._send(answer)
            except aiosmtplib.SMTPResponseException as refusal:
                log.warning("sandbox.answer_refused", to=answer.to, code=refusal.code, reply=refusal.message)
            except (OSError, aiosmtplib.SMTPException) as error:
                log.warning("sandbox.answer_failed", to=answer.to, inbound=str(self._inbound), error=str(error))
            except Exception:  # one bad answer must not keep the others from being sent
                log.exception("sandbox.answer_crashed", to=answer.to)

    async def _send(self, answer: Answer) -> None:
        """Raises what the last try met."""
        for pause in PAUSES:
            try:
                await self._transaction(answer)
            except (OSError, aiosmtplib.SMTPException) as error:
                if isinstance(error, aiosmtplib.SMTPResponseException) and error.code >= 500:
                    raise
                await asyncio.sleep(pause)
            else:
                return
        await self._transaction(answer)

    async def _transaction(self, answer: Answer) -> None:
        client = aiosmtplib.SMTP(
            hostname=self._inbound.host,
            port=self._inbound.port,
            local_hostname=self._hostname,
            timeout=TIMEOUT,
            start_tls=False,
        )
        async with client:
            await client.ehlo()
            options = [] if answer.to.isascii() else ["SMTPUTF8"]
            await client.mail("", options=options)
            await client.rcpt(answer.to, encoding="utf-8")
            await client.data(answer.content)
