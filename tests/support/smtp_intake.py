"""An SMTP listener of ours over a real socket, somewhere for its messages to go, and a client that sends raw bytes."""

import asyncio
import contextlib
import datetime
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailerd import config
from mailerd.errors import Refused
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.inbound import TakesInbound
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_listener import SmtpListener
from tests.support.authority import CA_USAGE


@dataclass
class Received:
    envelope: Envelope
    content: bytes
    origin: Origin

    @property
    def recipients(self) -> list[str]:
        return [recipient.address.address for recipient in self.envelope.recipients]


@dataclass
class Outbox:
    """Takes every message and keeps it. It waits for `gate` if there is one, and raises `trouble` while that is set."""

    messages: list[Received] = field(default_factory=list)
    trouble: Exception | None = None
    gate: asyncio.Event | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    def check_sender(self, credential: Credential, sender: str) -> None:
        domain = sender.rpartition("@")[2]
        if sender and not credential.may_send_as(domain):
            raise Refused(550, "5.7.1", f"may not send as {domain}", name="sender_not_allowed")

    async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.messages.append(Received(envelope, content, origin))
        recipients = [(n, each.address.address) for n, each in enumerate(envelope.recipients, 1)]
        return Receipt(len(self.messages), recipients)

    @property
    def contents(self) -> list[bytes]:
        return [message.content for message in self.messages]


class Intake:
    """`async with Intake(outbox, authenticator, listener={…}, limits={…})` serves on `port` of 127.0.0.1 (or ::1)."""

    def __init__(
        self,
        outbox: Outbox,
        authenticator: Authenticator,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        listener: dict[str, Any] | None = None,
        limits: dict[str, Any] | None = None,
        memory: Memory | None = None,
        inbound: TakesInbound | None = None,
    ) -> None:
        self.sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.clients: list[Client] = []
        self.host = host
        self.port = self.sock.getsockname()[1]
        smtp = config.Smtp(**(limits or {}))
        self.memory = memory or Memory(smtp.data_memory)
        settings = {"starttls": "off", "auth": "trusted", "trusted": ("127.0.0.0/8", "::1/128"), **(listener or {})}
        self.listener = SmtpListener(
            config.Listener(**{"bind": config.Endpoint(host, self.port), **settings}),
            self.sock,
            limits=smtp,
            hostname="mail.example.com",
            submitter=outbox,
            authenticator=authenticator,
            memory=self.memory,
            inbound=inbound,
            tls=tls,
        )

    async def __aenter__(self) -> Self:
        self.listener.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self.clients:
            client.close()
        await self.listener.stop(0.5)

    async def open(self, tls: ssl.SSLContext | None = None) -> "Client":
        """A client that has read nothing yet."""
        name = "mail.example.com" if tls else None
        client = Client(*await asyncio.open_connection(self.host, self.port, ssl=tls, server_hostname=name))
        self.clients.append(client)
        return client

    async def connect(self, tls: ssl.SSLContext | None = None) -> "Client":
        """A client that has read the greeting."""
        client = await self.open(tls)
        assert (await client.reply()).startswith("220 mail.example.com ")
        return client

    async def connect_from(self, source: str) -> "Client":
        """A client at this address of 127/8 that has read the greeting."""
        client = Client(*await asyncio.open_connection(self.host, self.port, local_addr=(source, 0)))
        self.clients.append(client)
        assert (await client.reply()).startswith("220 mail.example.com ")
        return client

    async def session(self, *lines: str) -> list[str]:
        """The replies to an EHLO and these lines, one after the other."""
        client = await self.connect()
        await client.say("EHLO client.example")
        return [await client.say(line) for line in lines]


class Client:
    """Speaks SMTP in bytes, or line by line with `say`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> str:
        """One reply with all its lines; "" when the server has closed."""
        lines = []
        async with asyncio.timeout(60):
            while line := await self.reader.readline():
                lines.append(line.decode().removesuffix("\r\n"))
                if line[3:4] != b"-":
                    break
        return "\n".join(lines)

    async def replies(self, count: int) -> list[str]:
        return [await self.reply() for _ in range(count)]

    async def say(self, line: str) -> str:
        self.write(line.encode() + b"\r\n")
        return await self.reply()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.writer.start_tls(context, server_hostname="mail.example.com")

    async def rest(self) -> str:
        """Everything up to the close."""
        async with asyncio.timeout(60):
            return (await self.reader.read()).decode()

    async def drip(self, data: bytes) -> None:
        """Send `data` every few milliseconds until the server has closed."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while not self.writer.is_closing():
                    self.write(data)
                    await self.writer.drain()
                    await asyncio.sleep(0.005)

    def close(self) -> None:
        self.writer.close()


def make_certificate(directory: Path) -> tuple[str, str]:
    """A self-signed certificate for mail.example.com; the paths of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("mail.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(certificate_path), str(key_path)


def trusting(certificate: str) -> ssl.SSLContext:
    """A client's context that believes in this certificate only."""
    return ssl.create_default_context(cafile=certificate)
