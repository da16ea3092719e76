"""`mailerd queue`: what waits, and steering it."""

import asyncio
import getpass
import os
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.asking import confirm
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption, YesOption, message_id
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.queue.control import ControlStore, Selection, Steer
    from mailerd.queue.views import QueueView, Steered
    from mailerd.queue.waiting import WaitingView

app = typer.Typer(
    help="Look at what waits, and steer it: hold, release, retry, bounce, delete. Every command is written to the "
    "audit table.",
    no_args_is_help=True,
)

MessageOption = Annotated[str | None, typer.Option("--message", "-m", metavar="MESSAGE_ID", help="All of one message.")]
RecipientOption = Annotated[str | None, typer.Option("--recipient", "-r", metavar="ADDRESS", help="To this address.")]
DomainOption = Annotated[str | None, typer.Option("--domain", "-d", metavar="DOMAIN", help="To this domain.")]
SenderOption = Annotated[
    str | None, typer.Option("--sender", "-s", metavar="ADDRESS", help="From this address; '' too.")
]
StreamOption = Annotated[str | None, typer.Option("--stream", metavar="NAME", help="Of this stream.")]
PoolOption = Annotated[str | None, typer.Option("--pool", metavar="NAME", help="Of this pool.")]
CredentialOption = Annotated[str | None, typer.Option("--credential", metavar="NAME", help="Submitted with it.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Of this tenant.")]
CampaignOption = Annotated[str | None, typer.Option("--campaign", metavar="NAME", help="Of this campaign.")]
AllOption = Annotated[bool, typer.Option("--all", help="Everything that waits: said on purpose.")]

WIDE = 120  # columns, from which the reasons have room beside the rest


class Action(StrEnum):
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    BOUNCE = "bounce"
    DELETE = "delete"


DONE = {
    Action.HOLD: "held",
    Action.RELEASE: "released",
    Action.RETRY: "made due now",
    Action.BOUNCE: "given up, senders are told",
    Action.DELETE: "deleted",
}
ASK_BEFORE = {
    Action.BOUNCE: "Give up {count} and tell the senders?",
    Action.DELETE: "Delete {count} for good, telling nobody?",
}


@app.command("list")
def list_queues(
    domain: DomainOption = None,
    limit: LimitOption = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the queues, the longest first: how many wait, since when, until when, and what blocks a queue.

    A queue is named stream/pool/flow/domain. The flow is whose turn it is: a tenant, `tenant:campaign`, or either with
    a priority, as `tenant!high`. Why each recipient waits: `mailerd queue show`.

    \b
    Examples:
      mailerd queue list
      mailerd queue list --domain example.com
      mailerd queue list --json | jq 'select(.recipients > 1000) | .name'
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.settings import load

    queues = asyncio.run(_queues(load(config), domain, limit))
    if as_json:
        print_json_lines(queues)
    else:
        _draw_queues(queues, utc_now(), limit)


@app.command("show")
def show(
    queue: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="As `queue list` names it.")] = None,
    message: MessageOption = None,
    recipient: RecipientOption = None,
    domain: DomainOption = None,
    sender: SenderOption = None,
    stream: StreamOption = None,
    pool: PoolOption = None,
    credential: CredentialOption = None,
    tenant: TenantOption = None,
    campaign: CampaignOption = None,
    limit: LimitOption = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the recipients that wait, those due first at the top: why each waits, and until when.

    \b
    Examples:
      mailerd queue show
      mailerd queue show transactional/default/default/example.com
      mailerd queue show --campaign spring
      mailerd queue show --recipient ann@example.com
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.settings import load

    settings = load(config)
    selection = _selection(message, recipient, domain, sender, stream, pool, credential, tenant, campaign)
    waiting = asyncio.run(_waiting(settings, selection, queue, limit))
    if as_json:
        print_json_lines(map(_plain, waiting))
    else:
        _draw_waiting(waiting, utc_now(), limit)


HELP = {
    Action.HOLD: """Keep matching mail that waits now where it is until it is released. It still expires.

    Mail that comes later goes on: `mailerd effects add pause --domain example.com` stops that too.

    \b
    Examples:
      mailerd queue hold --domain example.com
      mailerd queue hold --stream marketing --pool mta2
    """,
    Action.RELEASE: """Let held mail go on.

    \b
    Examples:
      mailerd queue release --campaign spring
      mailerd queue release --all
    """,
    Action.RETRY: """Make waiting mail due now, also where its queue is blocked. Held mail stays held.

    \b
    Examples:
      mailerd queue retry --message msg_38g13rwt40000
      mailerd queue retry --domain example.com
    """,
    Action.BOUNCE: """Give up on matching mail; its senders get a report. Asks first.

    \b
    Examples:
      mailerd queue bounce --recipient nobody@example.com
      mailerd queue bounce --domain typo.example --yes
    """,
    Action.DELETE: """Delete matching mail; nobody is told. Asks first. What happened to it so far stays in its trace.

    \b
    Examples:
      mailerd queue delete --message msg_38g13rwt40000
      mailerd queue delete --credential stolen-key --yes
    """,
}


def _add_steering(action: Action) -> None:
    """The command for an action: all of them choose mail in the same way."""

    @app.command(action.value, help=HELP[action])
    def command(
        message: MessageOption = None,
        recipient: RecipientOption = None,
        domain: DomainOption = None,
        sender: SenderOption = None,
        stream: StreamOption = None,
        pool: PoolOption = None,
        credential: CredentialOption = None,
        tenant: TenantOption = None,
        campaign: CampaignOption = None,
        everything: AllOption = False,
        yes: YesOption = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        selection = _selection(message, recipient, domain, sender, stream, pool, credential, tenant, campaign)
        _steer(action, selection, config, everything=everything, yes=yes, as_json=as_json)


for each in Action:
    _add_steering(each)


def _selection(
    message: str | None,
    recipient: str | None,
    domain: str | None,
    sender: str | None,
    stream: str | None,
    pool: str | None,
    credential: str | None,
    tenant: str | None,
    campaign: str | None,
) -> "Selection":
    """What the options mean, with addresses and domains as the queue writes them."""
    from mailerd.queue.control import Selection

    return Selection(
        message=None if message is None else message_id(message),
        address=_address(recipient),
        domain=_domain(domain),
        sender=_address(sender) if sender else sender,
        stream=stream,
        pool=pool,
        credential=credential,
        tenant=tenant,
        campaign=campaign,
    )


def _address(text: str | None) -> str | None:
    from mailerd.wire.address import parse_mailbox

    try:
        return None if text is None else parse_mailbox(text).address
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _domain(text: str | None) -> str | None:
    from mailerd.wire.address import domain_to_ascii

    try:
        return text if text is None or text.startswith("[") else domain_to_ascii(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _steer(
    action: Action, selection: "Selection", config: Path | None, *, everything: bool, yes: bool, as_json: bool
) -> None:
    from mailerd.cli.output import count_of, print_json, say
    from mailerd.cli.settings import load
    from mailerd.queue.control import Selection

    if selection == Selection() and not everything:
        raise typer.BadParameter("Say which mail: --message, --domain, --recipient … or --all.")
    if selection != Selection() and everything:
        raise typer.BadParameter("--all means everything: leave out the other options, or --all.")
    settings = load(config)
    if action in ASK_BEFORE and not yes:
        count = asyncio.run(_count(settings, selection))
        if count:
            confirm(ASK_BEFORE[action].format(count=count_of(count, "waiting recipient")))
    steered = asyncio.run(_carry_out(settings, action, selection))
    if as_json:
        print_json({"action": action, "changed": steered.changed, "waiting": steered.waiting})
    else:
        print(f"{count_of(steered.changed, 'recipient')} {DONE[action]}; {steered.waiting:,} that fit wait.")
        if action == Action.HOLD and selection.message is None:
            command = f"mailerd effects add pause --domain {selection.domain or 'DOMAIN'} --reason …"
            say(f"Mail that comes later goes on: `{command}` stops it too.")
        if action == Action.RETRY and steered.waiting > steered.changed:
            say("What is held stays held until `mailerd queue release`.")


async def _queues(settings: "Settings", domain: str | None, limit: int) -> "list[QueueView]":
    from mailerd.cli.settings import database
    from mailerd.queue.trace import TraceStore

    async with database(settings) as pool:
        return await TraceStore(pool).queues(_domain(domain), limit)


async def _waiting(settings: "Settings", selection: "Selection", queue: str | None, limit: int) -> "list[WaitingView]":
    from mailerd.cli.settings import database
    from mailerd.queue.waiting import WaitingStore

    async with database(settings) as pool:
        return await WaitingStore(pool).list(selection, queue=queue, limit=limit)


async def _count(settings: "Settings", selection: "Selection") -> int:
    from mailerd.cli.settings import database
    from mailerd.queue.control import ControlStore

    async with database(settings) as pool:
        return await ControlStore(pool).count(selection)


async def _carry_out(settings: "Settings", action: Action, selection: "Selection") -> "Steered":
    from mailerd.cli.output import working
    from mailerd.cli.settings import database
    from mailerd.queue.control import ControlStore

    async with database(settings) as pool:
        store = ControlStore(pool, keep_bodies=settings.config.retention.bodies > 0, operator=True)
        count = await store.count(selection)
        with working(f"{action} of up to {count:,} recipients: workers put back what they have in memory"):
            return await _command(store, action)(selection, actor=actor(), now=utc_now())


def _command(store: "ControlStore", action: Action) -> "Steer":
    commands: dict[Action, Steer] = {
        Action.HOLD: store.hold,
        Action.RELEASE: store.release,
        Action.RETRY: store.retry,
        Action.BOUNCE: store.bounce,
        Action.DELETE: store.cancel,
    }
    return commands[action]


def actor() -> str:
    """Who acts, for the audit: the person that logged in, also behind sudo."""
    try:
        login = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        login = str(os.getuid())
    return f"cli:{login}"


def _plain(view: "WaitingView") -> dict[str, Any]:
    import msgspec

    from mailerd.queue.ids import format_message_id

    return msgspec.structs.asdict(view) | {"message_id": format_message_id(view.message_id)}


def _draw_queues(queues: "Sequence[QueueView]", now: datetime, limit: int) -> None:
    from mailerd.cli.output import clean, console, from_now, say, table

    if not queues:
        say("Nothing waits.")
        return
    columns: tuple[str, ...] = ("queue", "waiting", "held", "in memory", "oldest", "next", "why it waits")
    if not any(queue.reason for queue in queues):
        columns = columns[:-1]  # the reason is of the whole queue; each recipient's own is in `queue show`
    drawn = table(columns, numbers=("waiting", "held", "in memory"), whole=("oldest", "next"))
    for queue in queues:
        blocked = queue.blocked_until is not None and queue.blocked_until > now
        due = from_now(queue.blocked_until if blocked else queue.next_due, now)
        row = (
            clean(queue.name),
            f"{queue.recipients:,}",
            f"{queue.held:,}",
            f"{queue.in_memory:,}",
            from_now(queue.oldest, now),
            "when released" if queue.held == queue.recipients else due,
            clean(f"blocked: {queue.reason}" if blocked else queue.reason),
        )
        drawn.add_row(*row[: len(columns)])
    console().print(drawn)
    if len(queues) == limit:
        say(f"Only the {limit:,} longest: --limit shows more.")


def _draw_waiting(waiting: "Sequence[WaitingView]", now: datetime, limit: int) -> None:
    """As a table; on a narrow terminal, where its cells would be columns of syllables, as a few lines for each."""
    from rich.padding import Padding
    from rich.text import Text

    from mailerd.cli.output import clean, coloured, console, from_now, say, table
    from mailerd.queue.ids import format_message_id

    if not waiting:
        say("Nothing that fits waits.")
        return
    columns = ("message", "recipient", "state", "tries", "next", "until", "why it waits")
    drawn = table(columns, numbers=("tries",), whole=("message", "state", "next", "until"))
    screen = console()
    for view in waiting:
        message, address, state = format_message_id(view.message_id), clean(view.address), coloured(view.state)
        due = "when released" if view.state == "held" else from_now(view.due_at, now)
        until = from_now(view.expires_at, now)
        why = clean(view.reason or ("in memory, about to be sent" if view.in_memory else view.last_reply))
        if screen.width >= WIDE:
            drawn.add_row(message, address, state, str(view.attempts), due, until, why)
            continue
        tried = f", {view.attempts:,} {'try' if view.attempts == 1 else 'tries'}, next {due}, given up {until}"
        screen.print(Text(f"{message}  {address}"))
        screen.print(Padding(Text.assemble(state, tried), (0, 0, 0, 4)))
        screen.print(Padding(Text(why), (0, 0, 0, 4)))
    if screen.width >= WIDE:
        screen.print(drawn)
    if len(waiting) == limit:
        say(f"Only the first {limit:,}: --limit shows more.")
