"""A mail exchanger on 127.0.0.x that says what the test tells it to say, over real sockets.

    async with ScriptedMx() as mx:
        mx.on("RCPT TO:<ann@x.example>", "451 4.7.1 come back later", then="250 2.1.5 ok")
        ...
        assert mx.delivered == [("ann@x.example", content, "bob@y.example")]

A pattern is the beginning of a command line, letter case aside, or one of the moments CONNECT (before the greeting),
CONTENT (after the 354, before the content is read) and DOT (after the content). The longest pattern that fits speaks.
A step is a reply (several lines by "\\n"), raw bytes, one of CLOSE, RESET, SILENCE, DEAF, a `Pause`, or a list.
"""

import asyncio
import atexit
import base64
import contextlib
import datetime
import hashlib
import hmac
import shutil
import socket
import ssl
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.authority import CA_USAGE

EXTENSIONS = ("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


class Action(NamedTuple):
    name: str


class Pause(NamedTuple):
    """Wait; then go on with the next of the list."""

    seconds: float


CLOSE = Action("close")  # an orderly FIN
RESET = Action("reset")  # a RST
SILENCE = Action("silence")  # say nothing, keep reading
DEAF = Action("deaf")  # read nothing from here on

Step = str | bytes | Action | Pause | list["str | bytes | Action | Pause"]


class Delivery(NamedTuple):
    recipient: str
    content: bytes
    sender: str


@dataclass
class _Script:
    steps: list[Step]

    def next(self) -> Step:
        """The first step that is left; the last one stays."""
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


class Certificate(NamedTuple):
    """A throwaway self-signed certificate: PEM files, usable as its own CA."""

    pem: str
    key: str


@cache
def certificate(*names: str) -> Certificate:
    """A certificate for host names and IP addresses, made once for each set of names."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [
        x509.IPAddress(ip_address(text)) if text.replace(".", "").isdigit() else x509.DNSName(text) for text in names
    ]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = Path(tempfile.mkdtemp(prefix="mailerd-test-certificate-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pem, key_file = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Certificate(str(pem), str(key_file))


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(*names))
    return context


class ScriptedMx:
    """A real listener; `tls` is "", "starttls" or "implicit". Everything that happened can be read off it."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        name: str = "mx.example",
        extensions: tuple[str, ...] = EXTENSIONS,
        tls: str = "",
        users: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.address = host
        self.port = port
        self.name = name
        self.extensions = extensions
        self.tls = tls
        self.users = users or {}
        self.delivered: list[Delivery] = []
        self.commands: list[str] = []  # of all connections, in the order of arrival
        self.logins: list[str] = []
        self.peers: list[str] = []  # the client's IP, one for each connection
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.recipients_of: Counter[str] = Counter()  # delivered, by the client's IP
        self.tls_connections = 0
        self.resumed = 0  # TLS sessions
        self.transactions = 0  # that ended with a 2yz after the dot
        self._scripts: dict[str, _Script] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = context or (server_context(name, host) if tls else None)

    def on(self, pattern: str, *steps: Step, then: Step | None = None) -> None:
        """Take `steps` one after the other when `pattern` comes, the last one (or `then`) from there on."""
        self._scripts[pattern.upper()] = _Script([*steps, *([] if then is None else [then])])

    async def __aenter__(self) -> "ScriptedMx":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        context = self._context if self.tls == "implicit" else None
        self._server = await asyncio.start_server(
            self._serve, self.address, self.port, limit=2**26, ssl=context, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def certificate(self) -> str:
        """The PEM file of our certificate: to be trusted, or not."""
        return certificate(self.name, self.address).pem

    def script(self, pattern: str, default: Step) -> Step:
        line = pattern.upper()
        fitting = [known for known in self._scripts if line.startswith(known)]
        return self._scripts[max(fitting, key=len)].next() if fitting else default

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers.append(writer.get_extra_info("peername")[0])
        try:
            await _Connection(self, reader, writer).run()
        except (ConnectionError, EOFError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()


@dataclass
class _Envelope:
    sender: str
    recipients: list[str] = field(default_factory=list)


class _Connection:
    def __init__(self, mx: ScriptedMx, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._mx = mx
        self._reader = reader
        self._writer = writer
        self._envelope: _Envelope | None = None
        self._note_tls()

    async def run(self) -> None:
        await self._say("CONNECT", f"220 {self._mx.name} ESMTP")
        while line := await self._reader.readline():
            command = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            self._mx.commands.append(command)
            verb = command.upper().partition(" ")[0].partition(":")[0]
            handler = getattr(self, f"_on_{verb.lower()}", None)
            if handler is not None:
                await handler(command)
            else:
                await self._say(command, "500 5.5.2 what?")
            if verb == "QUIT":
                return

    async def _say(self, pattern: str, default: Step) -> str:
        """Take the step for `pattern`; return the code of the (last) reply, "" if there was none."""
        step = self._mx.script(pattern, default)
        said = b""
        for part in step if isinstance(step, list) else [step]:
            match part:
                case str():
                    self._writer.write(_lines(part))
                    said += _lines(part)
                case bytes():
                    self._writer.write(part)
                    said += part
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Action():
                    await self._act(part)
        await self._writer.drain()
        return said.rstrip().rpartition(b"\n")[2][:3].decode("latin-1")

    async def _act(self, action: Action) -> None:
        if action is CLOSE:
            self._writer.close()
            raise ConnectionError
        if action is RESET:
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self._writer.transport.abort()
            raise ConnectionError
        if action is DEAF:
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def _on_ehlo(self, command: str) -> None:
        lines = [f"250-{self._mx.name}"]
        encrypted = self._writer.get_extra_info("ssl_object") is not None
        offered = list(self._mx.extensions)
        if self._mx.tls == "starttls" and not encrypted:
            offered.append("STARTTLS")
        lines += [f"250-{extension}" for extension in offered]
        lines[-1] = lines[-1].replace("-", " ", 1)
        self._envelope = None
        await self._say(command, "\n".join(lines))

    async def _on_helo(self, command: str) -> None:
        self._envelope = None
        await self._say(command, f"250 {self._mx.name}")

    async def _on_starttls(self, command: str) -> None:
        if await self._say(command, "220 2.0.0 go ahead") == "220" and self._mx._context is not None:
            await self._writer.start_tls(self._mx._context)
            self._note_tls()

    def _note_tls(self) -> None:
        ssl_object = self._writer.get_extra_info("ssl_object")
        if ssl_object is not None:
            self._mx.tls_connections += 1
            self._mx.resumed += ssl_object.session_reused

    async def _on_auth(self, command: str) -> None:
        _, mechanism, *initial = command.split(" ")
        name, password = "", ""
        if mechanism.upper() == "PLAIN":
            _, name, password = _decode(initial[0] if initial else await self._ask("")).split("\0")
        elif mechanism.upper() == "LOGIN":
            name = _decode(initial[0] if initial else await self._ask("Username:"))
            password = _decode(await self._ask("Password:"))
        elif mechanism.upper() == "CRAM-MD5":
            name, _, digest = _decode(await self._ask("<1@mx.example>")).rpartition(" ")
            secret = self._mx.users.get(name, "")
            if hmac.new(secret.encode(), b"<1@mx.example>", hashlib.md5).hexdigest() == digest:
                password = secret
        right = bool(password) and self._mx.users.get(name) == password
        if right:
            self._mx.logins.append(f"{mechanism.upper()} {name}")
        await self._say(command, "235 2.7.0 welcome" if right else "535 5.7.8 wrong")

    async def _ask(self, challenge: str) -> str:
        self._writer.write(b"334 " + base64.b64encode(challenge.encode()) + b"\r\n")
        return (await self._reader.readline()).decode().strip()

    async def _on_mail(self, command: str) -> None:
        code = await self._say(command, "250 2.1.0 ok")
        if code.startswith("2"):
            self._envelope = _Envelope(_path(command))

    async def _on_rcpt(self, command: str) -> None:
        code = await self._say(command, "250 2.1.5 ok" if self._envelope else "503 5.5.1 MAIL first")
        if code.startswith("2") and self._envelope is not None:
            self._envelope.recipients.append(_path(command))

    async def _on_data(self, command: str) -> None:
        accepting = self._envelope is not None and self._envelope.recipients
        if await self._say(command, "354 go ahead" if accepting else "503 5.5.1 no valid recipients") != "354":
            return
        await self._say("CONTENT", b"")
        content = await self._read_content()
        envelope = self._envelope or _Envelope("")
        self._envelope = None
        code = await self._say("DOT", "250 2.0.0 queued" if envelope.recipients else "554 5.5.1 no valid recipients")
        if code.startswith("2"):
            self._mx.transactions += 1
            self._mx.recipients_of[self._writer.get_extra_info("peername")[0]] += len(envelope.recipients)
            self._mx.delivered += [Delivery(recipient, content, envelope.sender) for recipient in envelope.recipients]

    async def _read_content(self) -> bytes:
        lines = []
        while (line := await self._reader.readline()) != b".\r\n":
            if not line.endswith(b"\n"):
                raise EOFError
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)

    async def _on_rset(self, command: str) -> None:
        self._envelope = None
        await self._say(command, "250 2.0.0 ok")

    async def _on_noop(self, command: str) -> None:
        await self._say(command, "250 2.0.0 ok")

    async def _on_quit(self, command: str) -> None:
        await self._say(command, "221 2.0.0 bye")


def _lines(reply: str) -> bytes:
    return reply.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n"


def _path(command: str) -> str:
    return command.partition("<")[2].rpartition(">")[0]


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()
