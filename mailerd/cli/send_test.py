"""`mailerd send-test`: one message in by SMTP and out again, every step shown."""

import asyncio
import os
import smtplib
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, message_id
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import Listener
    from mailerd.events import Event
    from mailerd.queue.views import MessageView
    from mailerd.wire.address import Mailbox

PATIENCE = 60.0  # seconds of one step of the submission
PASSWORD = "MAILERD_PASSWORD"  # noqa: S105 the name of a variable
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 compared, not bound


@dataclass(frozen=True, slots=True)
class Door:
    """Where to submit, and as whom."""

    host: str
    port: int
    implicit_tls: bool
    login: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Letter:
    """What to submit."""

    sender: "Mailbox"
    to: "list[Mailbox]"
    subject: str

    @property
    def needs_smtputf8(self) -> bool:
        return any(mailbox.needs_smtputf8 for mailbox in (self.sender, *self.to))


def send_test(
    to: Annotated[list[str], typer.Option("--to", "-t", metavar="ADDRESS", help="Repeat it for more recipients.")],
    sender: Annotated[
        str | None, typer.Option("--from", "-f", metavar="ADDRESS", help="Default: you at hostname.")
    ] = None,
    subject: Annotated[str, typer.Option("--subject", metavar="TEXT")] = "A test message of mailerd",
    server: Annotated[
        str | None, typer.Option("--server", metavar="HOST:PORT", help="Default: the first submission listener.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help=f"AUTH; the password is ${PASSWORD}, or asked for."),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="To wait for a verdict.")] = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a message by SMTP and follow it until each recipient is delivered, put off or given up.

    Where the listener wants AUTH and no --user is given, the API key in data_dir/api-key is used.
    Exit status 0: delivered; 75: put off, or no verdict yet; 1: refused or given up.

    \b
    Examples:
      mailerd send-test --to ann@example.com
      mailerd send-test --to defer@sandbox.example --from me@example.com
      mailerd send-test --to ann@example.com --server mail.example.com:587 --user shop
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load

    settings = load(config)
    letter = Letter(
        _mailbox(sender or f"{_login()}@{settings.config.hostname}"),
        [_mailbox(address) for address in to],
        " ".join(subject.split()),
    )
    id_ = _submit(_door(settings, server, user), letter, quiet=as_json)
    view, steps = asyncio.run(_follow(settings, id_, timeout, quiet=as_json))
    if as_json:
        from mailerd.cli.trace import plain

        print_json(plain(view, steps))
    raise typer.Exit(_status(view, quiet=as_json))


def _mailbox(text: str) -> "Mailbox":
    from mailerd.wire.address import parse_mailbox

    try:
        return parse_mailbox(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not an address: {error}") from None


# in


def _door(settings: "Settings", server: str | None, user: str | None) -> Door:
    listener = _listener(settings, wanted=server is None)
    if server is not None:
        host, port = _endpoint(server)
        implicit = port == 465 or (listener is not None and listener.bind.port == port and _is_implicit(listener))
    elif listener is not None:
        host, port = WILDCARDS.get(listener.bind.host, listener.bind.host), listener.bind.port
        implicit = _is_implicit(listener)
    if port == 0:
        raise CommandError("the listener has port 0, which the system chose: name it with --server", os.EX_USAGE)
    return Door(host, port, implicit, _credentials(settings, listener, user))


def _listener(settings: "Settings", *, wanted: bool) -> "Listener | None":
    for listener in settings.config.listeners:
        if listener.kind != "inbound":
            return listener
    if wanted:
        raise CommandError(f"{settings.path} has no listener for submission: add one to `listeners`", os.EX_CONFIG)
    return None


def _is_implicit(listener: "Listener") -> bool:
    return listener.kind == "submissions"


def _endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT such as 127.0.0.1:2525")
    return host.strip("[]"), int(port)


def _credentials(settings: "Settings", listener: "Listener | None", user: str | None) -> tuple[str, str] | None:
    if user is not None:
        password = os.environ.get(PASSWORD) or typer.prompt(f"Password of {user}", hide_input=True, err=True)
        return user, str(password)
    if listener is None or listener.auth != "required":
        return None
    try:
        return "api-key", (Path(settings.config.data_dir) / "api-key").read_text().strip()
    except OSError:
        text = f"the listener {listener.bind} wants AUTH: give --user NAME of a credential (mailerd credentials create)"
        raise CommandError(text, os.EX_NOPERM) from None


def _submit(door: Door, letter: Letter, *, quiet: bool) -> int:
    """Hand the message in; the id it got. `CommandError` says who refused what."""
    content = _compose(letter)
    options = ["SMTPUTF8", "BODY=8BITMIME"] if letter.needs_smtputf8 else []
    steps = _Steps(quiet=quiet)
    try:
        with _connected(door, steps) as client:
            sender = letter.sender.address
            steps.tell("MAIL FROM", f"<{sender}>", *client.mail(sender, options))
            for mailbox in letter.to:
                steps.tell("RCPT TO", f"<{mailbox.address}>", *client.rcpt(mailbox.address))
            return _queued_as(steps.tell("DATA", f"{len(content):,} bytes", *client.data(content)))
    except smtplib.SMTPServerDisconnected:
        text = f"{door.host}:{door.port} hung up; the log of mailerd says why"
        raise CommandError(text, os.EX_UNAVAILABLE) from None
    except smtplib.SMTPResponseException as error:
        text = _text(error.smtp_error)
        raise CommandError(f"refused: {error.smtp_code} {text}") from None
    except ConnectionRefusedError:
        text = f"nobody listens on {door.host}:{door.port}: start mailerd with `mailerd run`, or name it with --server"
        raise CommandError(text, os.EX_UNAVAILABLE) from None
    except (OSError, smtplib.SMTPException) as error:
        raise CommandError(f"cannot submit to {door.host}:{door.port}: {error}", os.EX_UNAVAILABLE) from None


@contextmanager
def _connected(door: Door, steps: "_Steps") -> Iterator[smtplib.SMTP]:
    """A session after greeting, EHLO, STARTTLS where it is offered, and AUTH where we have a name."""
    context = _tls(door.host)
    client = (
        smtplib.SMTP_SSL(timeout=PATIENCE, context=context) if door.implicit_tls else smtplib.SMTP(timeout=PATIENCE)
    )
    client._host = door.host  # type: ignore[attr-defined]  # smtplib takes the name for TLS from its constructor alone
    steps.tell("connect", f"{door.host}:{door.port}", *client.connect(door.host, door.port))
    try:
        steps.tell("EHLO", client.local_hostname, *client.ehlo())
        if client.has_extn("starttls"):
            steps.tell("STARTTLS", "", *client.starttls(context=context))
            steps.tell("EHLO", client.local_hostname, *client.ehlo())
        if door.login is not None:
            steps.tell("AUTH", door.login[0], *client.login(*door.login))
        yield client
    finally:
        try:
            client.quit()
        except (OSError, smtplib.SMTPException):
            client.close()


def _tls(host: str) -> ssl.SSLContext:
    """On this machine nobody listens in, and the certificate is for another name than 127.0.0.1."""
    from mailerd.config import is_loopback

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the same checks whatever the version of Python
    context.load_default_certs()
    if is_loopback(host):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _compose(letter: Letter) -> bytes:
    now = utc_now()
    message = EmailMessage(policy=SMTPUTF8 if letter.needs_smtputf8 else SMTP)
    message["From"] = letter.sender.address
    message["To"] = ", ".join(mailbox.address for mailbox in letter.to)
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid(domain=letter.sender.domain)
    message.set_content(f"This is a test: `mailerd send-test` sent it at {now:%Y-%m-%d %H:%M:%S} UTC.\n")
    return message.as_bytes()


class _Steps:
    """Shows the conversation; a reply that is no success ends it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def tell(self, command: str, about: str, code: int, reply: bytes) -> str:
        from rich.text import Text

        from mailerd.cli.output import clean, console

        text = _text(reply)
        if not self._quiet:
            line = Text.assemble((f"{command:<10}", "bold"), clean(about))
            console().print(line, Text(f"{'':10}{code} {clean(text)}", "green" if code < 400 else "red"), sep="\n")
        if code >= 400:
            raise CommandError(f"{command} {about} was refused: {code} {text}")
        return text


def _text(reply: bytes | str) -> str:
    """The first line; of EHLO the other ones are the extensions."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    return text.partition("\n")[0]


def _queued_as(reply: str) -> int:
    try:
        return message_id(reply.rpartition(" ")[2])
    except typer.BadParameter:
        raise CommandError(f"taken, but not by mailerd: {reply}", os.EX_PROTOCOL) from None


# and out


async def _follow(settings: "Settings", id_: int, timeout: float, *, quiet: bool) -> "tuple[MessageView, list[Event]]":
    """The message and its steps when every recipient has had its first verdict, or when the time is over."""
    from mailerd.cli.output import console
    from mailerd.cli.settings import database
    from mailerd.cli.trace import draw_steps, watch

    out, view, shown = console(), None, []
    async with database(settings) as pool:
        try:
            async with asyncio.timeout(timeout):
                async for view, steps in watch(pool, id_):
                    shown += steps
                    if not quiet:
                        for step in draw_steps(steps, view.accepted_at):
                            out.print(step)
                    if all(recipient.attempts for recipient in view.recipients):
                        break
        except TimeoutError:
            pass
    if view is None:
        text = "the message was taken, but not by the mailerd of this configuration: give its --config"
        raise CommandError(text, os.EX_CONFIG)
    return view, shown


def _status(view: "MessageView", *, quiet: bool) -> int:
    from mailerd.cli.output import say
    from mailerd.queue.ids import format_message_id

    states = {recipient.state for recipient in view.recipients}
    if states == {"delivered"}:
        status, words = os.EX_OK, "delivered"
    elif states & {"bounced", "expired", "cancelled", "suppressed"}:
        status, words = 1, "given up for at least one recipient"
    else:
        status, words = os.EX_TEMPFAIL, "not delivered yet"
    if not quiet:
        sys.stdout.flush()
        say(f"{words}: `mailerd trace {format_message_id(view.id)}`")
    return status


def _login() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "mailerd"
