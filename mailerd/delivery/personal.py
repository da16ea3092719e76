"""What differs between the recipients of one message: where its bounces come back to, and how its reader leaves.

Return paths are signed for each recipient (VERP), so that a bounce, however mangled, says whom it is about, and a
forged one is refused before it is read. Such mail goes out one recipient a transaction, and names the return path in
its header too, which comes back with many a report that comes to the wrong place.
"""

from collections.abc import Sequence

from mailerd.config import Config
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.suppression import CAMPAIGNS
from mailerd.wire.address import domain_to_ascii, with_parents
from mailerd.wire.srs import is_srs
from mailerd.wire.tokens import Tokens
from mailerd.wire.unsubscribe import PURPOSE, Subscription

RETURN_PATH = "return-path"  # the purpose of tokens
BOUNCE = "b-"  # local parts: what stands before a recipient's token
UNSUBSCRIBE = "u-"
RECIPIENT_FIELD = "X-Mailerd-Recipient: {}\r\n"  # not signed: the signature is the same for all recipients
ONE_CLICK = b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
# By which services that relay our mail give a recipient's token back (`mailerd.feedback.upstreams`). Not signed: the
# service takes them out.
UPSTREAM_FIELDS = {
    "ses": "X-SES-MESSAGE-TAGS: mailerd={}\r\n",
    "sendgrid": 'X-SMTPAPI: {{"unique_args": {{"mailerd": "{}"}}}}\r\n',
    "mailgun": 'X-Mailgun-Variables: {{"mailerd": "{}"}}\r\n',
    "postmark": "X-PM-Metadata-mailerd: {}\r\n",
}
MAX_LINE = 998  # bytes of a header line, RFC 5322 section 2.1.1
MOST_KNOWN = 10_000  # sender domains


class Personal:
    """Makes what is different. `secret` is the installation's."""

    def __init__(self, config: Config, secret: bytes) -> None:
        self._bounces = Tokens(secret, RETURN_PATH)
        self._unsubscribes = Tokens(secret, PURPOSE)
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What is sent from now on comes back as `config` has it."""
        self._domains = {domain_to_ascii(name): each.return_path for name, each in config.domains.items()}
        self._tenants = {name: tenant.return_path for name, tenant in config.tenants.items()}
        self._known: dict[tuple[str, str], str | None] = {}  # by domain of the sender and tenant
        self._upstreams = {name: upstream.kind for name, upstream in config.upstreams.items()}
        self._url = (config.http.public_url or "").rstrip("/") if config.http else ""

    def domain(self, message: Message) -> str | None:
        """Where bounces of this message come back to; None: to its sender's own address, or nowhere."""
        sender = message.sender
        key = (sender[sender.rfind("@") + 1 :], message.tenant)
        try:
            domain = self._known[key]
        except KeyError:
            domain = self._find(*key)
        return None if domain is None or is_srs(sender) else domain  # rewritten: that is a return path already

    def _find(self, sender: str, tenant: str) -> str | None:
        entry = next((name for name in with_parents(sender) if name in self._domains), None)
        found = (self._domains[entry] if entry else None) or (self._tenants.get(tenant) if sender else None)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[sender, tenant] = found
        return found

    def alone(self, message: Message, upstream: str = "") -> bool:
        """Does each recipient need a transaction of its own, by this route?"""
        return bool(upstream or (message.unsubscribe and self._url)) or self.domain(message) is not None

    def path(self, message: Message, recipients: Sequence[Recipient]) -> str:
        """The envelope sender that the host of these recipients is told.

        They are several when there was no return path yet as they were put together: then it names the message only.
        """
        domain = self.domain(message)
        if domain is None:
            return message.sender
        return f"{self._mailbox(message, recipients)}@{domain}"

    def field(self, message: Message, recipients: Sequence[Recipient]) -> bytes:
        """The field that names the recipient in mail that has a return path of his own; not to be signed."""
        if len(recipients) != 1 or self.domain(message) is None:
            return b""
        return RECIPIENT_FIELD.format(self._mailbox(message, recipients)).encode()

    def _mailbox(self, message: Message, recipients: Sequence[Recipient]) -> str:
        n = recipients[0].n if len(recipients) == 1 else 0
        return BOUNCE + self._bounces.make(message.id, n)

    def header(self, message: Message, recipients: Sequence[Recipient]) -> bytes:
        """The fields of RFC 2369 and RFC 8058, if the message is to have them; to be signed with it.

        None for several recipients: one could unsubscribe the other.
        """
        if not message.unsubscribe or len(recipients) != 1:
            return b""
        ways = []
        if link := self.link(message, recipients[0]):
            ways.append(f"<{link}>")
        if domain := self.domain(message):
            token = self._unsubscribes.make(message.id, recipients[0].n)
            ways.append(f"<mailto:{UNSUBSCRIBE}{token}@{domain}?subject=unsubscribe>")
        if not ways:
            return b""
        # A line for each: the first stands behind the name of the field when it fits there.
        start = "List-Unsubscribe:" + ("\r\n " if len(ways[0]) > MAX_LINE - 20 else " ")
        field = (start + ",\r\n ".join(ways)).encode() + b"\r\n"
        return field + ONE_CLICK if link else field

    def upstream_field(self, message: Message, recipients: Sequence[Recipient], upstream: str) -> bytes:
        """What a service of the configuration is told besides; not to be signed."""
        kind = self._upstreams.get(upstream)
        if kind is None or len(recipients) != 1:
            return b""
        return UPSTREAM_FIELDS[kind].format(self._bounces.make(message.id, recipients[0].n)).encode()

    def link(self, message: Message, recipient: Recipient) -> str:
        """Where one click unsubscribes; "" without a public URL, or when no line can hold it.

        Of a campaign it is from campaigns, whichever stream this one goes out on.
        """
        if not self._url:
            return ""
        subscription = Subscription(
            message.tenant,
            CAMPAIGNS if message.render else message.stream,
            message.topic,
            message.campaign,
            recipient.address,
            message.id,
            recipient.n,
        )
        # What a campaign was called is known from the message as well; its name may be long.
        for each in (subscription, subscription._replace(campaign="")):
            link = f"{self._url}/u/{each.seal(self._unsubscribes)}"
            if len(link) < MAX_LINE - 3:  # a space and < before, > and a comma behind
                return link
        return ""
