"""What differs between the recipients of one message: where its bounces come back to, and how its reader leaves.

Return paths are signed for each recipient (VERP), so that a bounce, however mangled, says whom it is about, and a
forged one is refused before it is read. Such mail goes out one recipient a transaction.
"""

from urllib.parse import quote

from mailerd.config import Config
from mailerd.queue.mail import Message, Recipient
from mailerd.wire.address import domain_to_ascii, with_parents
from mailerd.wire.tokens import Tokens

BOUNCE = "b-"  # local parts: what stands before a recipient's token
UNSUBSCRIBE = "u-"
CRLF = "\r\n"
SEPARATOR = "\0"  # in sealed tokens; no address, tenant, stream or topic has it


class Personal:
    """Makes what is different. `secret` is the installation's."""

    def __init__(self, config: Config, secret: bytes) -> None:
        self._bounces = Tokens(secret, "return-path")
        self._unsubscribes = Tokens(secret, "unsubscribe")
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What is sent from now on comes back as `config` has it."""
        self._domains = {domain_to_ascii(name): each.return_path for name, each in config.domains.items()}
        self._tenants = {name: tenant.return_path for name, tenant in config.tenants.items()}
        self._url = (config.http.public_url or "").rstrip("/") if config.http else ""

    def domain(self, message: Message) -> str | None:
        """Where bounces of this message come back to; None: to its sender's own address."""
        if not message.sender:
            return None
        for name in with_parents(message.sender.rpartition("@")[2]):
            if name in self._domains:
                return self._domains[name] or self._tenants.get(message.tenant)
        return self._tenants.get(message.tenant)

    def alone(self, message: Message) -> bool:
        """Does each recipient need a transaction of its own?"""
        return (message.unsubscribe and bool(self._url)) or self.domain(message) is not None

    def path(self, message: Message, recipient: Recipient) -> str:
        """The envelope sender that this recipient's host is told."""
        domain = self.domain(message)
        return f"{BOUNCE}{self._bounces.make(message.id, recipient.n)}@{domain}" if domain else message.sender

    def header(self, message: Message, recipient: Recipient) -> bytes:
        """The fields of RFC 2369 and RFC 8058, if the message is to have them; to be signed with it."""
        if not message.unsubscribe or not self._url:
            return b""
        facts = SEPARATOR.join((message.tenant, message.stream, message.topic, recipient.address))
        ways = [f"<{self._url}/u/{self._unsubscribes.seal(facts.encode())}>"]
        if domain := self.domain(message):
            token = self._unsubscribes.make(message.id, recipient.n)
            ways.append(f"<mailto:{UNSUBSCRIBE}{token}@{quote(domain)}?subject=unsubscribe>")
        fields = f"List-Unsubscribe: {(',' + CRLF + ' ').join(ways)}{CRLF}"
        return f"{fields}List-Unsubscribe-Post: List-Unsubscribe=One-Click{CRLF}".encode()
