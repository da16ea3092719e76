"""Rendering the mail of campaigns right before it is sent: what the relay calls for messages that we handed over.

Who has been erased meanwhile, has left the lists, or has withdrawn consent gets none; suppressions are asked for by the
relay. What cannot be rendered is withheld from that contact; when it is more than a few, the campaign pauses.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Any, NamedTuple, TypeVar

import structlog

from mailerd.campaigns import mime
from mailerd.campaigns.edition import Edition, Editions, NoEditionError
from mailerd.campaigns.readers import Reader, ReaderStore, Wanted
from mailerd.campaigns.templates.contexts import of_person
from mailerd.campaigns.templates.sandbox import MOST_TIME
from mailerd.campaigns.templates.values import RenderError
from mailerd.campaigns.tracking.links import tracking_base
from mailerd.config import Config
from mailerd.db import Pool
from mailerd.delivery.personal import Personal
from mailerd.delivery.rendering import Rendered, Withheld
from mailerd.intake.hand_over import message_id_field
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.suppression import normalised
from mailerd.wire.address import domain_to_ascii
from mailerd.wire.compose import Address, FieldError, text_field
from mailerd.wire.message import format_date
from mailerd.wire.preferences import PURPOSE, Preferences
from mailerd.wire.tokens import Tokens
from mailerd.wire.tracking import Target, Tracking, is_target

log = structlog.get_logger()

FAILURES, SHARE = 100, 0.01  # a campaign pauses when more cannot be rendered than both of these
OUTCOMES = 1_000  # campaigns of which it is known
FAILED = "render_failed"
Pause = Callable[[int, str, str], Awaitable[object]]  # campaign id, tenant, reason
T = TypeVar("T")


@dataclass(slots=True)
class _Outcome:
    """Of a campaign, in this worker."""

    rendered: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Letterhead:
    """What all mails of an edition share, made once."""

    edition: Edition
    head: mime.Head
    campaign: Mapping[str, Any]  # as templates see it
    postal_address: str
    tracking: str  # the base of tracked links; "": nothing is tracked
    consent: bool
    tags: bool
    targets: Mapping[int, Target]  # of its links, by slot


class _Sheet(NamedTuple):
    """All that is needed to write one mail. `asked_at`: when the reader was asked for."""

    paper: _Letterhead
    reader: Reader
    asked_at: float
    message: Message
    recipient: Recipient


class CampaignRenderer:
    """A delivery.rendering.Renderer. `pause(campaign_id, tenant, reason)` is called when a campaign fails, and
    again when it still does.

    `secret` is the installation's.
    """

    def __init__(self, config: Config, pool: Pool, editions: Editions, *, secret: bytes, pause: Pause) -> None:
        self._editions = editions
        self._readers = ReaderStore(pool)
        self._tracking = Tracking(secret)
        self._preferences = Tokens(secret, PURPOSE)
        self._personal = Personal(config, secret)
        self._pause = pause
        self._outcomes: dict[int, _Outcome] = {}
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What is rendered from now on follows `config`."""
        self._config = config
        self._personal.reconfigure(config)
        self._url = (config.http.public_url or "").rstrip("/") if config.http else ""
        self._letterheads: dict[tuple[int, int], _Letterhead] = {}

    def ahead(self, mails: Sequence[tuple[Message, Recipient]]) -> None:
        """Read the contacts of these together."""
        wanted = []
        for message, _ in mails:
            campaign_id, version_id, contact_id = map(int, message.render.split(":"))
            paper = self._letterheads.get((campaign_id, version_id))
            if paper is not None and paper.edition is self._editions.known(campaign_id, version_id):
                wanted.append(self._wanted(paper, contact_id, message.tenant))
        self._readers.ahead(wanted)

    async def render(self, message: Message, recipient: Recipient) -> Rendered | Withheld:
        """The mail as this contact gets it, or why he gets none. May raise what asking the database raises."""
        (made,) = await self.render_row([(message, recipient)])
        return made

    async def render_row(self, mails: Sequence[tuple[Message, Recipient]]) -> list[Rendered | Withheld]:
        """What `render` makes of each, all of them going through the same step before any goes on to the next."""
        sheets = [await self._sheet(*mail) for mail in mails]
        written = iter(in_step([self._write(sheet) for sheet in sheets if isinstance(sheet, _Sheet)]))
        return [sheet if isinstance(sheet, Withheld) else await self._made(sheet, next(written)) for sheet in sheets]

    async def _sheet(self, message: Message, recipient: Recipient) -> _Sheet | Withheld:
        campaign_id, version_id, contact_id = map(int, message.render.split(":"))
        try:
            paper = await self._letterhead(campaign_id, version_id)
        except NoEditionError as error:
            return Withheld(FAILED, str(error))
        reader, asked_at = await self._readers.read_ahead(self._wanted(paper, contact_id, message.tenant))
        if withheld := _withheld(reader, recipient.address):
            return withheld
        assert reader is not None
        return _Sheet(paper, reader, asked_at, message, recipient)

    async def _made(self, sheet: _Sheet, written: mime.Made | RenderError | FieldError) -> Rendered | Withheld:
        """The same for the delivery, and counted."""
        campaign_id = sheet.paper.edition.campaign.id
        outcome = self._outcome(campaign_id)
        outcome.rendered += 1
        if isinstance(written, mime.Made):
            return Rendered(written.content, sheet.asked_at, written.canonical)
        outcome.failed += 1
        await self._look_at(outcome, campaign_id, sheet.message.tenant, str(written))
        return Withheld(FAILED, str(written)[:300])

    def _wanted(self, paper: _Letterhead, contact_id: int, tenant: str) -> Wanted:
        edition = paper.edition
        return Wanted(edition.campaign.id, contact_id, tenant, paper.consent, edition.lists, edition.alone, paper.tags)

    async def still(self, message: Message, recipient: Recipient) -> Withheld | None:
        """Has the contact been erased, or left, since this was rendered? May raise what asking the database raises."""
        campaign_id, version_id, contact_id = map(int, message.render.split(":"))
        try:
            paper = await self._letterhead(campaign_id, version_id)
        except NoEditionError as error:
            return Withheld(FAILED, str(error))
        answer = await self._readers.read(self._wanted(paper, contact_id, message.tenant))
        return _withheld(answer.reader, recipient.address)

    async def _letterhead(self, campaign_id: int, version_id: int) -> _Letterhead:
        edition = self._editions.known(campaign_id, version_id)
        if edition is None:
            edition = await self._editions.load(campaign_id, version_id)
        paper = self._letterheads.get((campaign_id, version_id))
        if paper is None or paper.edition is not edition:
            if len(self._letterheads) > 1_000:
                self._letterheads.clear()
            paper = self._letterheads[campaign_id, version_id] = self._new_letterhead(edition)
        return paper

    def _new_letterhead(self, edition: Edition) -> _Letterhead:
        campaign = edition.campaign
        options = campaign.options
        tenant = self._config.tenants.get(campaign.tenant)
        domain = domain_to_ascii(campaign.sender_email.rpartition("@")[2])
        try:
            head = mime.head(
                Address(campaign.sender_email, campaign.sender_name),
                campaign.reply_to,
                f"<{options.topic or options.stream}.{domain}>" if _is_label(options.topic or options.stream) else "",
                f"{edition.name}:{campaign.tenant}:{options.stream}:mailerd" if campaign.tenant.isascii() else "",
            )
        except FieldError as error:
            raise NoEditionError(f"its header cannot be written: {error}") from error
        return _Letterhead(
            edition,
            head,
            {
                "campaign_id": edition.name,
                "name": campaign.name,
                "subject": campaign.subject or edition.prepared.compiled.subject,
                "sender_name": campaign.sender_name,
                "sender_email": campaign.sender_email,
            },
            options.postal_address or (tenant.postal_address if tenant else ""),
            tracking_base(self._config, domain),
            tenant is not None and tenant.consent == "required",
            any(name.startswith("contact.tags") or name == "contact" for name in edition.prepared.compiled.used),
            {slot: Target.of(slot, url) for slot, url in edition.prepared.fixed if is_target(url)},
        )

    def _write(self, sheet: _Sheet) -> Generator[None, None, mime.Made | RenderError | FieldError]:
        """The mail, or what is wrong with it, in steps (`in_step`)."""
        paper, reader, _, message, recipient = sheet
        edition = paper.edition
        campaign_id, options = edition.campaign.id, edition.campaign.options
        base = paper.tracking if reader.tracking else ""

        def link(slot: int, url: str) -> str | None:
            if not is_target(url):
                return None
            token = self._tracking.click_token(message.id, campaign_id, reader.person.id, slot, url)
            return f"{base}/c/{token}"

        context = self._context(paper, reader, message, recipient)
        yield
        pixel = ""
        if base and options.track_opens:
            pixel = f"{base}/o/{self._tracking.open_token(message.id, campaign_id, reader.person.id)}"
        tracks = bool(base) and options.track_clicks
        fixed = self._fixed(paper, reader, message) if tracks else None
        yield
        try:
            gathered = edition.prepared.gather(
                context, link=link if tracks else None, fixed=fixed, pixel=pixel, clock=_Clock()
            )
            yield
            written = gathered.written()
            yield
            to = mime.to_field(recipient.address, f"{reader.person.first_name} {reader.person.last_name}")
            subject = text_field("Subject", written.subject, literal=True)
            date = format_date(message.accepted_at)
            message_id = message_id_field(message.id, message.campaign, message.sender)
            yield
            return mime.mail(paper.head, to, subject, date, message_id, html=written.html, text=written.text)
        except (RenderError, FieldError) as error:
            return error

    def _fixed(self, paper: _Letterhead, reader: Reader, message: Message) -> dict[int, str]:
        """The tracked URLs of the links that are the same for all."""
        campaign_id, base = paper.edition.campaign.id, paper.tracking
        tokens = self._tracking.click_tokens(message.id, campaign_id, reader.person.id, paper.targets.values())
        return {slot: f"{base}/c/{token}" for slot, token in zip(paper.targets, tokens, strict=True)}

    def _context(self, paper: _Letterhead, reader: Reader, message: Message, recipient: Recipient) -> dict[str, Any]:
        preferences = Preferences(message.tenant, reader.person.id, message.campaign, message.id)
        links = {
            "unsubscribe_url": self._personal.link(message, recipient),
            "preferences_url": f"{self._url}/p/{preferences.seal(self._preferences)}" if self._url else "",
            "view_url": "",
            "postal_address": paper.postal_address,  # nobody's rather than that of a sample
            "sender_name": paper.edition.campaign.sender_name,
        }
        return of_person(reader.person, paper.campaign) | links

    def _outcome(self, campaign_id: int) -> _Outcome:
        outcome = self._outcomes[campaign_id] = self._outcomes.pop(campaign_id, _Outcome())
        while len(self._outcomes) > OUTCOMES:  # the one that rendered nothing for longest
            self._outcomes.pop(next(iter(self._outcomes)))
        return outcome

    async def _look_at(self, outcome: _Outcome, campaign_id: int, tenant: str, error: str) -> None:
        """Does the campaign fail, rather than a contact?"""
        if outcome.failed < FAILURES or outcome.failed <= outcome.rendered * SHARE:
            return
        failed, rendered = outcome.failed, outcome.rendered
        outcome.failed = outcome.rendered = 0  # should it go on, or not be paused yet, it is counted anew
        log.warning("campaign.render_failures", campaign=campaign_id, failed=failed, of=rendered)
        reason = f"{failed} of {rendered} mails could not be rendered, the last one: {error}"[:500]
        await self._pause(campaign_id, tenant, reason)


def in_step(works: Sequence[Generator[None, None, T]]) -> list[T]:
    """What these return, each of their steps done for all of them before the next.

    A step that comes many times in a row takes less: the processor has its code and its data at hand.
    """
    results: dict[Generator[None, None, T], T] = {}
    while len(results) < len(works):
        for work in works:
            if work not in results:
                try:
                    next(work)
                except StopIteration as end:
                    results[work] = end.value
    return [results[work] for work in works]


class _Clock:
    """Seconds of processor time of this thread, but none for as long as hardly any time at all has gone by.

    To ask for it is a system call, at which a kernel with others to run likes to switch to them.
    """

    __slots__ = ("_begun", "_from")

    def __init__(self) -> None:
        self._begun = monotonic()
        self._from: float | None = None

    def __call__(self) -> float:
        if self._from is None:
            if monotonic() < self._begun + MOST_TIME:
                return 0.0
            self._from = thread_time()
        return thread_time() - self._from


def _withheld(reader: Reader | None, address: str) -> Withheld | None:
    """Why the contact gets no mail at the address that the mail was queued for."""
    if reader is None:
        return Withheld("erased", "the contact is not there any more")
    if reader.person.email != address and normalised(reader.person.email) != normalised(address):
        # Whatever the contact says from now on, or has said, is said of that one.
        return Withheld("moved", "the contact has another address by now")
    if reader.is_over:
        return Withheld("cancelled", "the campaign was cancelled or deleted")
    if reader.has_left:
        return Withheld("left_list", "the contact has left the lists that the campaign goes to")
    if reader.lacks_consent:
        return Withheld("no_consent", "there is no record of consent")
    return None


def _is_label(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("_", "").isalnum()
