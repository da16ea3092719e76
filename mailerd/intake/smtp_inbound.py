"""What comes back to us: taken from anybody, for addresses of ours only, and never sent on as it is."""

from mailerd.errors import Refused
from mailerd.intake.smtp_server import SmtpConnection
from mailerd.wire.smtp import MailCommand, RcptCommand


class InboundConnection(SmtpConnection):
    """A host that has something for us. It need not be a bounce: complaints and many reports have a sender."""

    def _check_mail(self, mail: MailCommand) -> None:
        if mail.ret or mail.envid:
            raise _not_offered("MAIL: RET and ENVID are")
        if mail.require_tls:
            raise _not_offered("MAIL: REQUIRETLS is")

    def _check_recipient(self, recipient: RcptCommand) -> None:
        if recipient.notify or recipient.orcpt:
            raise _not_offered("RCPT: NOTIFY and ORCPT are")
        if self.service.inbound is None:
            raise Refused(550, "5.7.1", "Relaying denied", name="relay_denied")
        self.service.inbound.accepts(recipient.address.address)

    async def _take(self, mail: MailCommand, recipients: list[RcptCommand], content: bytes) -> str:
        assert self.service.inbound is not None  # or no recipient was taken
        addresses = [recipient.address.address for recipient in recipients]
        await self.service.inbound.receive(mail.sender, addresses, content, self.peer, self._helo, self._encrypted)
        return "Ok"


def _not_offered(what: str) -> Refused:
    return Refused(555, "5.5.4", f"{what} not offered here, leave it out", name="unknown_parameter")
