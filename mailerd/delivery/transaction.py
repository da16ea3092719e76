"""One mail transaction over an open connection: MAIL, RCPT, DATA in one write if the peer allows it, then the content.

Whatever the peer does ends as a verdict for each recipient, and as the word whether the connection may be used again.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mailerd import failpoints
from mailerd.delivery.pipeline import Pipeline, Trouble
from mailerd.delivery.verdict import Blame, Kind, Verdict, classify, local_verdict, network_verdict
from mailerd.errors import LocalProtocolError
from mailerd.wire.smtp import Reply, dot_stuff, orcpt_encode, xtext_encode

# What may stand between < and >: no control characters, and no `>` or space by which an address could add parameters,
# unless within a quoted local part.
ADDRESS = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"@)?[^\x00-\x20\x7f<>"]*')
PARAMETERS = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*|")
START_INPUT = 354
# Bytes of commands that DATA is written with. A socket takes them at once; of more, DATA could stay behind with us.
WITH_DATA = 8192
TOO_LARGE = "the message has {} bytes, the host takes {} at most"
NO_8BIT = "the host does not take 8-bit content (8BITMIME), and this message cannot be converted"
NO_UTF8 = "the host does not support internationalised addresses (SMTPUTF8)"
NO_UTF8_HEADER = "the host does not support internationalised headers (SMTPUTF8)"
NO_REQUIRETLS = "the sender requires TLS all the way (REQUIRETLS), and {}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, by RFC 5321 4.5.3.2; `block`: the peer has to take some of the content in this time."""

    connect: float = 30
    greeting: float = 300
    ehlo: float = 300
    starttls: float = 120
    auth: float = 120
    mail: float = 300
    rcpt: float = 300
    data: float = 120
    block: float = 180
    dot: float = 600
    quit: float = 5


@dataclass(frozen=True, slots=True)
class Features:
    """What the peer offers, as far as it changes what we send. `None`: it names no limit."""

    pipelining: bool = False
    max_size: int | None = None
    size: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    rcpt_max: int | None = None  # recipients of a transaction (RFC 9422)
    mail_max: int | None = None  # transactions of a connection
    no_requiretls: str = "the host does not support it"  # why REQUIRETLS cannot be used, "" if it can


class Step(NamedTuple):
    """A line of the trace: what the peer answered at `stage`, and how long the group of commands took."""

    stage: str
    reply: Reply | None  # None: no answer
    milliseconds: float


class Permit(Protocol):
    """The word that this mail may be sent, which is good for a moment only."""

    def good(self) -> bool:
        """Asked right before DATA is written."""

    def was_good(self) -> bool:
        """Asked right after DATA was written: was it still good then, whatever kept us from running meanwhile?"""

    async def renew(self) -> bool:
        """Asked where DATA is written only after the replies to MAIL and RCPT; False calls the mail off."""


class Result(NamedTuple):
    """What became of one recipient. `reply` is None when no reply made the verdict.

    `in_doubt`: the content was sent to its end and the reply never came; the peer may have taken the message.
    """

    verdict: Verdict
    stage: str
    reply: Reply | None = None
    in_doubt: bool = False


class Mail(NamedTuple):
    """What a transaction sends. `parameters`: the DSN parameters of each recipient (`dsn_parameters`), or empty.

    `head`: fields that stand before the content.
    """

    sender: str
    recipients: list[str]
    content: bytes
    smtputf8: bool = False
    eight_bit: bool = False
    ret: str = ""
    envid: str = ""
    parameters: Sequence[str] = ()
    require_tls: bool = False
    head: bytes = b""

    @property
    def size(self) -> int:
        return len(self.head) + len(self.content)


class Transaction(NamedTuple):
    """The results are in the order of the recipients.

    `usable`: the connection may carry another transaction. `stale`: a kept connection had gone before the peer answered
    anything, so that a new connection may be tried at once; nothing was said about the message. `called_off`: by us,
    before DATA; there are no results.
    """

    results: list[Result]
    steps: list[Step]
    usable: bool
    stale: bool
    milliseconds: float
    called_off: bool = False


def dsn_parameters(notify: str, orcpt: str) -> str:
    """The RCPT parameters of RFC 3461 for a recipient: `notify` as in NOTIFY, `orcpt` as `type;address`, decoded."""
    parts = [f"NOTIFY={notify}"] if notify else []
    if orcpt:
        parts.append(f"ORCPT={orcpt_encode(orcpt)}")
    return " ".join(parts)


class Conversation:
    """The steps of one transaction; `run` is the whole of it. No `permit`: nobody is asked right before DATA."""

    def __init__(
        self,
        pipeline: Pipeline,
        features: Features,
        timeouts: Timeouts,
        mail: Mail,
        on_dot: Callable[[], None] | None,
        permit: Permit | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._features = features
        self._timeouts = timeouts
        self._mail = mail
        self._on_dot = on_dot
        self._permit = permit
        self._called_off = False
        self._results: dict[int, Result] = {}  # by index of the recipient
        self._steps: list[Step] = []
        self._answered = False

    async def run(self) -> Transaction:
        """Send the mail. Raises only LocalProtocolError: an address or a parameter that must not be written."""
        begun = time.perf_counter()
        self._refuse_unsendable()
        total = len(self._mail.recipients)
        sent = [index for index in range(total) if index not in self._results] if self._results else list(range(total))
        if sent:
            await self._send(sent)
        trouble = self._pipeline.trouble
        return Transaction(
            results=[] if self._called_off else [self._results[index] for index in range(total)],
            steps=self._steps,
            usable=trouble is None,
            stale=trouble is not None and trouble.kind in ("closed", "reset") and bool(sent) and not self._answered,
            milliseconds=(time.perf_counter() - begun) * 1000,
            called_off=self._called_off,
        )

    # before anything is written

    def _refuse_unsendable(self) -> None:
        """Give a verdict to the recipients whose mail this peer cannot take, by what it said in EHLO."""
        mail, features = self._mail, self._features
        everyone = range(len(mail.recipients))
        if mail.require_tls and features.no_requiretls:
            # RFC 8689 sections 4.2.1 and 5: an unsafe way is no way.
            text = NO_REQUIRETLS.format(features.no_requiretls)
            self._settle(everyone, Result(local_verdict(Kind.TLS, 550, "5.7.30", text), "mail"))
        elif features.max_size is not None and mail.size > features.max_size:
            text = TOO_LARGE.format(mail.size, features.max_size)
            self._settle(everyone, Result(local_verdict(Kind.TOO_LARGE, 552, "5.3.4", text), "mail"))
        elif mail.eight_bit and not features.eight_bit:
            # RFC 6152 section 3: convert or return. Converting has to come before signing: wire.downgrade.
            self._settle(everyone, _not_supported("5.6.3", NO_8BIT))
        elif not features.smtputf8:
            if not mail.sender.isascii():
                self._settle(everyone, _not_supported("5.6.7", NO_UTF8))
            elif mail.smtputf8 and not (mail.head + _header(mail.content)).isascii():
                self._settle(everyone, _not_supported("5.6.7", NO_UTF8_HEADER))
            else:
                foreign = [index for index in everyone if not mail.recipients[index].isascii()]
                if foreign:
                    self._settle(foreign, _not_supported("5.6.7", NO_UTF8))

    def _commands(self, sent: list[int]) -> list[bytes]:
        mail = self._mail
        commands = [_command("MAIL FROM", mail.sender, self._mail_parameters())]
        with_parameters = self._features.dsn and mail.parameters
        for index in sent:
            parameters = mail.parameters[index] if with_parameters else ""
            commands.append(_command("RCPT TO", mail.recipients[index], parameters))
        commands.append(b"DATA\r\n")
        return commands

    def _mail_parameters(self) -> str:
        mail, features = self._mail, self._features
        parameters = []
        if features.size:
            parameters.append(f"SIZE={mail.size}")
        if mail.eight_bit:
            parameters.append("BODY=8BITMIME")
        if features.smtputf8 and (mail.smtputf8 or not mail.sender.isascii() or not "".join(mail.recipients).isascii()):
            parameters.append("SMTPUTF8")
        if mail.require_tls:
            parameters.append("REQUIRETLS")
        if features.dsn and mail.ret:
            parameters.append(f"RET={mail.ret}")
        if features.dsn and mail.envid:
            parameters.append(f"ENVID={xtext_encode(mail.envid)}")
        return " ".join(parameters)

    # the conversation

    async def _send(self, sent: list[int]) -> None:
        commands = self._commands(sent)
        replies = await (self._pipelined(commands) if self._features.pipelining else self._one_by_one(commands))
        if self._called_off:
            if self._steps:
                await self._resynchronise(sent)
            return
        accepted = self._judge_envelope(sent, replies)
        data = replies[-1]
        if self._pipeline.trouble is not None or data is None or data.code != START_INPUT:
            await self._resynchronise(sent)
        elif accepted:
            await self._send_content(accepted)
        else:
            await self._send_nothing()

    async def _pipelined(self, commands: list[bytes]) -> list[Reply | None]:
        """All commands in one write (RFC 2920), DATA by itself if they are long; None for replies that did not come."""
        group = b"".join(commands)
        apart = self._permit is not None and len(group) > WITH_DATA
        if apart:
            del commands[-1]
            group = b"".join(commands)
        begun = time.perf_counter()
        timeouts = self._timeouts
        replies: list[Reply | None] = []
        patience = max(timeouts.mail, timeouts.rcpt, timeouts.data)
        exchange = self._pipeline.exchange if apart else self._exchange_data
        replies += await exchange(group, len(commands), patience)
        del replies[len(commands) :]
        replies += [None] * (len(commands) - len(replies))
        elapsed = (time.perf_counter() - begun) * 1000
        self._note("mail", replies[0], elapsed)
        for reply in replies[1:] if apart else replies[1:-1]:
            self._note("rcpt", reply, elapsed)
        if apart:
            accepted = _done(replies[0]) and any(map(_done, replies[1:]))
            replies.append(await self._ask_data() if accepted and self._pipeline.trouble is None else None)
        else:
            self._note("data", replies[-1], elapsed)
        return replies

    async def _one_by_one(self, commands: list[bytes]) -> list[Reply | None]:
        """Each command after the reply to the one before; None for the commands that were not worth sending."""
        replies: list[Reply | None] = [None] * len(commands)
        replies[0] = reply = await self._ask("mail", commands[0], self._timeouts.mail)
        if not _done(reply):
            return replies
        accepted = False
        for index in range(1, len(commands) - 1):
            replies[index] = reply = await self._ask("rcpt", commands[index], self._timeouts.rcpt)
            if self._pipeline.trouble is not None:
                return replies
            accepted |= _done(reply)
        if accepted:
            replies[-1] = await self._ask_data()
        return replies

    async def _ask_data(self) -> Reply | None:
        """DATA after the replies to what comes before it."""
        if self._permit is not None and not await self._permit.renew():
            self._called_off = True
            return None
        begun = time.perf_counter()
        replies = await self._exchange_data(b"DATA\r\n", 1, self._timeouts.data)
        reply = replies[0] if replies else None
        self._note("data", reply, (time.perf_counter() - begun) * 1000)
        return reply

    async def _exchange_data(self, commands: bytes, wanted: int, seconds: float) -> list[Reply]:
        """Write the commands that end with DATA, if that is permitted at this moment, and hear the replies."""
        if failpoints.ON:
            failpoints.reached("attempt.before_data")
        permit = self._permit
        if permit is None:
            return await self._pipeline.exchange(commands, wanted, seconds)
        if not permit.good():
            self._called_off = True
            return []
        replies = await self._pipeline.exchange(commands, wanted, seconds, permit.was_good)
        self._called_off = self._pipeline.late
        return replies

    async def _ask(self, stage: str, command: bytes, seconds: float) -> Reply | None:
        begun = time.perf_counter()
        replies = await self._pipeline.exchange(command, 1, seconds)
        reply = replies[0] if replies else None
        self._note(stage, reply, (time.perf_counter() - begun) * 1000)
        return reply

    def _judge_envelope(self, sent: list[int], replies: list[Reply | None]) -> list[int]:
        """Give a verdict to whom MAIL, RCPT or DATA refused; return the recipients that wait for the content."""
        if self._pipeline.trouble is None and not _in_order(replies):
            self._pipeline.fail("garbage", "unexpected reply: " + " | ".join(str(reply) for reply in replies if reply))
        trouble = self._pipeline.trouble
        if trouble is not None and self._out_of_step(trouble):
            self._settle(sent, _broken(trouble.kind, trouble.text, "rcpt"))
            return []
        mail, rcpts, data = replies[0], replies[1:-1], replies[-1]
        if mail is not None and not _done(mail):
            self._settle(sent, _refused(mail, "mail"))
            return []
        accepted = []
        for index, reply in zip(sent, rcpts, strict=True):
            if reply is None or _done(reply):
                accepted.append(index)
            else:
                self._results[index] = _refused(reply, "rcpt")
        if accepted and data is not None and data.code != START_INPUT:
            self._settle(accepted, _refused(data, "data"))
            return []
        if trouble is not None:
            self._settle(accepted, self._ended_by(replies))
            return []
        return accepted

    def _out_of_step(self, trouble: Trouble) -> bool:
        """True when there were more or fewer replies than commands, so that there is no saying which is whose."""
        return trouble.kind == "garbage" or (trouble.kind == "timeout" and self._features.pipelining)

    def _ended_by(self, replies: list[Reply | None]) -> Result:
        """The result of those who were refused by no reply of their own, when the connection ended before DATA's."""
        for reply in replies[1:-1]:
            if reply is not None and reply.code == 421:
                return _refused(reply, "rcpt")
        stage = "mail" if replies[0] is None else "rcpt" if None in replies[1:-1] else "data"
        trouble = self._pipeline.trouble
        assert trouble is not None
        return _broken(trouble.kind, trouble.text, stage)

    async def _send_content(self, accepted: list[int]) -> None:
        if self._on_dot is not None:
            self._on_dot()
        begun = time.perf_counter()
        pipeline, mail = self._pipeline, self._mail
        data = dot_stuff(mail.content, head=mail.head)
        replies = await pipeline.exchange_content(data, self._timeouts.block, self._timeouts.dot)
        reply = replies[0] if replies else None
        self._note("dot", reply, (time.perf_counter() - begun) * 1000)
        if reply is not None and reply.code >= 400:
            self._settle(accepted, _refused(reply, "dot"))
            if pipeline.unsent:  # refused in the middle of the content: what follows would be read as commands
                pipeline.close()
        elif reply is not None and _done(reply) and not pipeline.unsent:
            self._settle(accepted, Result(classify(reply, "dot"), "dot", reply))
        else:
            self._settle(accepted, self._unanswered(reply))

    def _unanswered(self, reply: Reply | None) -> Result:
        """The result when the content has no final reply."""
        if reply is not None:
            self._pipeline.fail("garbage", f"unexpected reply to the content: {reply}")
        trouble = self._pipeline.trouble
        assert trouble is not None
        in_doubt = trouble.unsent == 0
        return Result(network_verdict(trouble.kind, trouble.text, in_doubt=in_doubt), "dot", None, in_doubt)

    async def _send_nothing(self) -> None:
        """The peer wants content although it refused all recipients: a lone dot gets us out (RFC 2920 section 3.1)."""
        await self._ask("dot", b".\r\n", self._timeouts.dot)

    async def _resynchronise(self, sent: list[int]) -> None:
        """After a refused envelope: RSET clears it, and its reply shows that the replies before were in step.

        A peer that answers one command twice shifts all that follows by one, unseen as long as it is refusing. A 354
        now is the late answer to DATA, and then no reply before can be trusted.
        """
        if self._pipeline.trouble is not None:
            return
        reply = await self._ask("rset", b"RSET\r\n", self._timeouts.mail)
        if reply is not None and reply.code == START_INPUT:
            self._pipeline.fail("garbage", f"replies out of step: {reply} to RSET")
        trouble = self._pipeline.trouble
        if trouble is not None and trouble.kind == "garbage":
            self._settle(sent, _broken(trouble.kind, trouble.text, "rcpt"))
        elif trouble is None and not _done(reply):
            self._pipeline.close()

    # the rest

    def _settle(self, indexes: "range | list[int]", result: Result) -> None:
        for index in indexes:
            self._results[index] = result

    def _note(self, stage: str, reply: Reply | None, milliseconds: float) -> None:
        if reply is not None:
            self._steps.append(Step(stage, reply, milliseconds))
            self._answered |= reply.code != 421


def _command(verb: str, address: str, parameters: str) -> bytes:
    if ADDRESS.fullmatch(address) is None or PARAMETERS.fullmatch(parameters) is None:
        raise LocalProtocolError(f"not to be written into a command: {verb}:<{address!r}> {parameters!r}")
    line = f"{verb}:<{address}> {parameters}\r\n" if parameters else f"{verb}:<{address}>\r\n"
    try:
        return line.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"not UTF-8: {address!r}") from error


def _header(content: bytes) -> bytes:
    return content[: content.find(b"\r\n\r\n")]


def _done(reply: Reply | None) -> bool:
    return reply is not None and 200 <= reply.code < 300


def _in_order(replies: list[Reply | None]) -> bool:
    """False when a reply cannot be the answer to its command: 354 to MAIL or RCPT, 2yz to DATA, 1yz to anything."""
    for reply in replies[:-1]:
        if reply is not None and not _done(reply) and reply.code < 400:
            return False
    data = replies[-1]
    return data is None or data.code == START_INPUT or data.code >= 400


def _refused(reply: Reply, stage: str) -> Result:
    return Result(classify(reply, stage), stage, reply)


def _broken(kind: str, text: str, stage: str) -> Result:
    return Result(network_verdict(kind, text), stage)


def _not_supported(enhanced: str, text: str) -> Result:
    return Result(local_verdict(Kind.OTHER, 554, enhanced, text, blame=Blame.CONTENT), "mail")
