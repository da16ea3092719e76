"""Clients that submit numbered messages and write down what they were told of each: the promises."""

import asyncio
import itertools
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

DOMAINS = 20
PATIENCE = 100.0  # seconds for one answer; longer than the daemon may take to say 451
AGAIN = 0.05  # seconds before a lost connection is opened anew
SEVERAL = 10  # one message in so many has three recipients
KEEP = 30  # messages over one connection, so that clients spread over the workers again


@dataclass
class Promises:
    """By recipient address, which no two messages share.

    `promised` were answered 250 or 202. `refused` got another answer: which. Of `unanswered` nothing was heard: the
    connection ended, and whether the mail was taken is not known. `keyed` were submitted with an Idempotency-Key, and
    again with the same one until there was an answer.
    """

    promised: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    keyed: set[str] = field(default_factory=set)
    longest_gap: float = 0.0  # seconds between two promises, since somebody set it to 0
    _last: float = field(default_factory=time.monotonic)

    def note(self, addresses: list[str], answer: str) -> None:
        """What was said of these; "" for nothing."""
        if answer[:3] in ("250", "202"):
            self.promised.update(addresses)
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self._last)
            self._last = now
        elif answer:
            self.refused.update(dict.fromkeys(addresses, answer))
        else:
            self.unanswered.update(addresses)


class Target(Protocol):
    """Where to submit. The ports may change when the daemon is started again."""

    smtp_port: int
    http_port: int
    api_key: str


@dataclass(frozen=True, slots=True)
class Numbered:
    """A message whose recipients name it, and whose header holds the checksum of its body."""

    sender: str
    recipients: list[str]
    content: bytes


class Mailbag:
    """Makes messages, no two with the same recipient; all recipients begin with `prefix`."""

    def __init__(self, size: int, prefix: str) -> None:
        self.prefix = prefix
        self._numbers = itertools.count(1)
        self._random = random.Random(1)
        self._size = size

    def next(self) -> Numbered:
        number = next(self._numbers)
        count = 3 if number % SEVERAL == 0 else 1
        recipients = [f"{self.prefix}{number}.{n}@d{(number + n) % DOMAINS}.example" for n in range(count)]
        line = b".%d " % number + self._random.randbytes(35).hex().encode() + b"\r\n"
        body = line * max(1, self._random.randrange(2 * self._size) // len(line))
        header = f"From: <app@sender.example>\r\nSubject: message {number}\r\nX-Checksum: {zlib.crc32(body)}\r\n\r\n"
        return Numbered("app@sender.example", recipients, header.encode() + body)


class Submitters:
    """`smtp` and `http` clients that submit one message after the other, `pause` seconds apart, until `stop`."""

    def __init__(
        self,
        target: Target,
        *,
        smtp: int = 20,
        http: int = 4,
        pause: float = 0.05,
        size: int = 4_000,
        prefix: str = "m",
    ) -> None:
        self.prefix = prefix
        self.promises = Promises()
        self._target = target
        self._counts = {"smtp": smtp, "http": http}
        self._pause = pause
        self._mailbag = Mailbag(size, prefix)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        talks: dict[str, Callable[[], SmtpClient | HttpClient]] = {
            "smtp": lambda: SmtpClient(self._target),
            "http": lambda: HttpClient(self._target),
        }
        self._tasks = [
            asyncio.create_task(
                self._run(talks[kind](), keyed=kind == "http" and n % 2 == 0), name=f"{kind} client {n}"
            )
            for kind, count in self._counts.items()
            for n in range(count)
        ]

    def mark(self, label: str) -> None:
        """What is submitted from now on has recipients that begin with `prefix` and this."""
        self._mailbag.prefix = f"{self.prefix}{label}"

    async def stop(self) -> None:
        """Each client hears the answer to its last message first."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def until_promised(self, count: int) -> None:
        """Wait until that many more recipients were promised."""
        wanted = len(self.promises.promised) + count
        async with asyncio.timeout(60):
            while len(self.promises.promised) < wanted:
                await asyncio.sleep(0.01)

    async def _run(self, client: "SmtpClient | HttpClient", *, keyed: bool) -> None:
        for count in itertools.count(1):
            if self._stopping.is_set():
                break
            if count % KEEP == 0:
                client.close()
            mail = self._mailbag.next()
            if keyed:
                self.promises.keyed.update(mail.recipients)
            answer = await client.submit(mail, key=mail.recipients[0] if keyed else "")
            while keyed and answer[:3] != "202" and not self._stopping.is_set():
                await asyncio.sleep(AGAIN)
                answer = await client.submit(mail, key=mail.recipients[0])
            self.promises.note(mail.recipients, answer)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause * random.uniform(0.5, 1.5)):
                    await self._stopping.wait()
        client.close()


class _Connected:
    """A connection that is kept as long as it lasts."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class SmtpClient(_Connected):
    """Speaks SMTP, one transaction after the other."""

    async def submit(self, mail: Numbered, key: str = "") -> str:
        """The reply that settled it; "" when the connection ended after the final dot went out."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    if self._writer is None:
                        await self._open()
                    commands = [f"MAIL FROM:<{mail.sender}>", *(f"RCPT TO:<{to}>" for to in mail.recipients), "DATA"]
                    refusal = await self._envelope(commands)
            except OSError:  # before the content: nothing was submitted
                self.close()
                await asyncio.sleep(AGAIN)
                continue
            if refusal:
                self.close()
                return refusal
            break
        try:
            async with asyncio.timeout(PATIENCE):
                stuffed = mail.content.replace(b"\r\n.", b"\r\n..")
                answer = await self._say(stuffed + b".\r\n")
        except TimeoutError:
            raise AssertionError(f"no answer to the final dot in {PATIENCE:g} s") from None
        except OSError:
            answer = ""
        if not answer.startswith("250"):
            self.close()
        return answer

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.smtp_port)
        for command in (b"", b"EHLO client.example\r\n"):
            reply = await self._say(command)
            if not reply.startswith("2"):
                raise ConnectionError(reply)

    async def _envelope(self, commands: list[str]) -> str:
        """The reply that refused; "" when the content may come."""
        for command in commands:
            reply = await self._say(command.encode() + b"\r\n")
            if reply[0] not in "23":
                return reply
        return ""

    async def _say(self, data: bytes) -> str:
        assert self._writer is not None
        self._writer.write(data)
        while True:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("closed")
            if line[3:4] != b"-":
                return line.decode().strip()


class HttpClient(_Connected):
    """Posts raw messages over a kept connection."""

    async def submit(self, mail: Numbered, key: str = "") -> str:
        """Status and body of the answer; "" when the connection ended after the request went out."""
        query = urlencode([("from", mail.sender), *(("to", to) for to in mail.recipients)])
        header = (
            f"POST /api/v1/emails/raw?{query} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {self._target.api_key}\r\nContent-Type: message/rfc822\r\n"
            f"Content-Length: {len(mail.content)}\r\n" + (f"Idempotency-Key: {key}\r\n" if key else "") + "\r\n"
        )
        while self._writer is None:
            try:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.http_port)
            except OSError:
                await asyncio.sleep(AGAIN)
        try:
            async with asyncio.timeout(PATIENCE):
                self._writer.write(header.encode() + mail.content)
                return await self._answer()
        except TimeoutError:
            raise AssertionError(f"no answer to a POST in {PATIENCE:g} s") from None
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return ""

    async def _answer(self) -> str:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await self._reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            self.close()
        return f"{head.split(' ', 2)[1]} {body.decode()}"
