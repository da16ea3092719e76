"""The mail of a campaign as each contact gets it: its words, its links, its form; and who gets none after all."""

import asyncio
import email
import email.policy
import re
import time
from collections.abc import AsyncIterator, Generator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailerd.campaigns import mailing, mime, readers
from mailerd.campaigns.audience import Audience
from mailerd.campaigns.mailing import FAILURES, CampaignRenderer
from mailerd.campaigns.templates.pieces import body_of
from mailerd.campaigns.values import Options
from mailerd.config import Config, Http, SendingDomain, Tenant
from mailerd.delivery.rendering import Rendered, Withheld
from mailerd.queue.mail import Message
from mailerd.wire.compose import Address, text_field
from mailerd.wire.dkim import canonical_body
from mailerd.wire.preferences import PURPOSE, Preferences, read_preferences
from mailerd.wire.tokens import Tokens
from mailerd.wire.tracking import Click, Open, Tracking
from tests.campaigns.sending import TENANT, Sending, sending_on

SECRET = b"s" * 32
CONFIG = Config(
    http=Http(public_url="https://mail.example/"),
    tenants={TENANT: Tenant(postal_address="Acme Ltd, 1 Street")},
    domains={"tracked.example": SendingDomain(tracking_url="https://t.tracked.example")},
)


class Desk:
    """Renders what is handed over, and hears what is paused."""

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        self.paused: list[tuple[int, str, str]] = []
        self.renderer = CampaignRenderer(
            sending.config, sending.pool, sending.editions, secret=SECRET, pause=self._pause
        )

    async def _pause(self, campaign_id: int, tenant: str, reason: str) -> None:
        self.paused.append((campaign_id, tenant, reason))

    async def handed_over(self, audience: Audience | None = None, **campaign: Any) -> list[Message]:
        await self.sending.written(audience, **campaign)
        await self.sending.hand_over()
        return self.sending.shelf.kept

    async def render(self, message: Message) -> bytes | Withheld:
        rendered = await self.renderer.render(message, message.recipients[0])
        return rendered.content if isinstance(rendered, Rendered) else rendered

    async def mail(self, **campaign: Any) -> tuple[Message, EmailMessage, bytes]:
        """Of the one contact that there is."""
        [message] = await self.handed_over(**campaign)
        content = await self.render(message)
        assert isinstance(content, bytes), content
        return message, parsed(content), content


def parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def bodies(message: EmailMessage) -> tuple[str, str]:
    """Text and HTML."""
    assert message.get_content_type() == "multipart/alternative"
    plain, rich = message.iter_parts()
    assert (plain.get_content_type(), rich.get_content_type()) == ("text/plain", "text/html")
    assert isinstance(plain, EmailMessage)
    assert isinstance(rich, EmailMessage)
    return plain.get_content(), rich.get_content()


@pytest.fixture
async def desk(database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with sending_on(database, tmp_path, CONFIG) as sending:
        yield Desk(sending)


async def test_a_mail_has_the_words_of_its_contact_and_the_header_of_its_campaign(desk: Desk) -> None:
    await desk.sending.contacts(1, first_name="Zoë", last_name="Smith, Jr.")
    message, mail, content = await desk.mail(options=Options(topic="sale"))

    assert mail["From"] == '"Ann & Co." <news@sender.example>'
    assert mail["To"] == '"Zoë Smith, Jr." <reader1@Example.org>'.replace("Example", "example")
    assert mail["Subject"] == "Hello Zoë"
    assert mail["Message-ID"].startswith("<msg_")
    assert mail["Message-ID"].endswith(f".{message.campaign}@sender.example>")
    assert mail["Date"].datetime == message.accepted_at.replace(microsecond=0)
    assert mail["List-Id"] == "<sale.sender.example>"
    text, html = bodies(mail)
    assert "Dear Zoë, " in html
    assert "Dear Zoë, " in text
    assert "Acme Ltd, 1 Street" in html
    assert content == await desk.render(message), "the same whenever it is rendered"


async def test_links_and_pixel_lead_through_us_and_say_whose_they_are(desk: Desk) -> None:
    [contact] = await desk.sending.contacts(1)
    message, mail, _ = await desk.mail()
    campaign, tracking = int(message.render.split(":")[0]), Tracking(SECRET)

    text, html = bodies(mail)
    clicks = re.findall(r"https://mail\.example/c/([\w-]+)", html)
    assert [tracking.read_click(token) for token in clicks] == [
        Click(message.id, campaign, contact, 1, "https://shop.example/sale?a=1&b=2")
    ]
    assert re.findall(r"https://mail\.example/c/([\w-]+)", text) == clicks
    [pixel] = re.findall(r'src="https://mail\.example/o/([\w-]+)"', html)
    assert tracking.read_open(pixel) == Open(message.id, campaign, contact)
    assert desk.renderer._personal.link(message, message.recipients[0]) in html


async def test_the_link_to_preferences_says_whose_they_are(desk: Desk) -> None:
    [contact] = await desk.sending.contacts(1)
    html = "<p>{{ preferences_url }} {{ unsubscribe_url }} {{ postal_address }}</p>"
    message, mail, _ = await desk.mail(template=await desk.sending.template(html))

    [token] = re.findall(r"https://mail\.example/p/([\w-]+)", bodies(mail)[1])
    assert read_preferences(Tokens(SECRET, PURPOSE), token) == Preferences(
        TENANT, contact, message.campaign, message.id
    )


@pytest.mark.parametrize("how", ["campaign", "contact"])
async def test_nothing_is_tracked_where_the_campaign_or_the_contact_wants_none(desk: Desk, how: str) -> None:
    await desk.sending.contacts(1, tracking=how != "contact")
    options = Options(track_opens=False, track_clicks=False) if how == "campaign" else Options()
    _, mail, _ = await desk.mail(options=options)

    assert "/c/" not in bodies(mail)[1]
    assert "/o/" not in bodies(mail)[1]
    assert 'href="https://shop.example/sale?a=1&amp;b=2"' in bodies(mail)[1]


async def test_a_domain_may_have_a_tracking_host_of_its_own(desk: Desk) -> None:
    await desk.sending.contacts(1)
    await desk.sending.written()
    await desk.sending.pool.execute("UPDATE campaigns SET sender_email = 'a@news.tracked.example'")
    await desk.sending.hand_over()
    [message] = desk.sending.shelf.kept
    content = await desk.render(message)

    assert isinstance(content, bytes)
    assert content.count(b"https://t.tracked.example/c/") == 2


async def test_tags_and_custom_fields_of_a_contact_may_be_used(desk: Desk) -> None:
    [contact] = await desk.sending.contacts(1, custom_fields={"plan": "gold"})
    await desk.sending.pool.execute(
        "WITH tag AS (INSERT INTO tags (tenant, name) VALUES ('acme', 'vip'), ('acme', 'early') RETURNING id)"
        " INSERT INTO contact_tags (contact_id, tag_id) SELECT $1, id FROM tag",
        contact,
    )
    html = "<p>{{ contact.tags | join('+') }} {{ custom_fields.plan }} {{ unsubscribe_url }} {{ postal_address }}</p>"
    _, mail, _ = await desk.mail(template=await desk.sending.template(html))

    assert "early+vip gold" in bodies(mail)[1]


async def test_the_subject_of_the_campaign_stands_instead_of_that_of_the_template(desk: Desk) -> None:
    await desk.sending.contacts(1, first_name="Bo")
    _, mail, _ = await desk.mail(subject="Für {{ contact.first_name }}: " + "sehr " * 30)

    assert mail["Subject"] == ("Für Bo: " + "sehr " * 30).strip()


async def test_a_name_with_line_ends_makes_no_header_field(desk: Desk) -> None:
    await desk.sending.contacts(1, first_name="Eve\r\nBcc: all@example.org", last_name="\u2028X")
    _, mail, content = await desk.mail()

    assert mail["Bcc"] is None
    assert b"\r\nBcc:" not in content.partition(b"\r\n\r\n")[0]
    assert mail["Subject"] == "Hello Eve Bcc: all@example.org"


async def test_who_was_erased_or_left_or_withdrew_since_the_hand_over_gets_no_mail(desk: Desk) -> None:
    ids = await desk.sending.contacts(4)
    list_id = await desk.sending.list_of(ids)
    messages = await desk.handed_over(Audience(list_ids=[list_id]))
    pool = desk.sending.pool
    await pool.execute("DELETE FROM contacts WHERE id = $1", ids[0])
    await pool.execute("UPDATE list_contacts SET status = 'unsubscribed' WHERE contact_id = $1", ids[1])
    await pool.execute(
        "INSERT INTO consents (tenant, address, action, method, actor, at)"
        " VALUES ('acme', 'reader3@example.org', 'granted', 'form', 'test', now())"
    )
    tenants = {TENANT: Tenant(consent="required")}
    desk.renderer.reconfigure(msgspec.structs.replace(desk.sending.config, tenants=tenants))

    rendered = await asyncio.gather(*(desk.render(message) for message in messages))

    words = [each.reason if isinstance(each, Withheld) else "sent" for each in rendered]
    assert words == ["erased", "left_list", "sent", "no_consent"]


@pytest.mark.parametrize(("email", "sent"), [("READER1@EXAMPLE.ORG", True), ("moved@example.org", False)])
async def test_who_has_another_address_by_now_gets_no_mail_at_the_old_one(desk: Desk, email: str, sent: bool) -> None:
    """What he says from then on, such as that he wants no more, is said of the new one."""
    [contact] = await desk.sending.contacts(1)
    [message] = await desk.handed_over()
    assert isinstance(await desk.render(message), bytes)
    await desk.sending.pool.execute("UPDATE contacts SET email = $2, address = lower($2) WHERE id = $1", contact, email)

    rendered = await desk.render(message)
    still = await desk.renderer.still(message, message.recipients[0])
    assert isinstance(rendered, bytes) == sent == (still is None)
    assert sent or (isinstance(rendered, Withheld) and rendered.reason == "moved")


async def test_a_contact_of_another_tenant_is_nobody(desk: Desk) -> None:
    [other] = await desk.sending.contacts(1, tenant="other", prefix="other")
    await desk.sending.contacts(1)
    [message] = await desk.handed_over()
    message.render = ":".join([*message.render.split(":")[:2], str(other)])

    rendered = await desk.render(message)
    assert isinstance(rendered, Withheld)
    assert rendered.reason == "erased"


@pytest.mark.parametrize("over", ["DELETE FROM campaigns", "UPDATE campaigns SET status = 'cancelled'"])
async def test_no_mail_of_a_campaign_that_is_cancelled_or_deleted_is_rendered(desk: Desk, over: str) -> None:
    await desk.sending.contacts(2)
    first, second = await desk.handed_over()
    assert isinstance(await desk.render(first), bytes)

    await desk.sending.pool.execute(over)

    rendered = await desk.render(second)
    assert isinstance(rendered, Withheld)
    assert rendered.reason == "cancelled"


async def test_a_campaign_that_cannot_be_rendered_for_many_is_paused_once(desk: Desk) -> None:
    html = "<p>{{ 1 // contact.custom_fields.n }} {{ unsubscribe_url }} {{ postal_address }}</p>"
    await desk.sending.contacts(FAILURES + 5, custom_fields={"n": 0})
    messages = await desk.handed_over(template=await desk.sending.template(html), options=Options(pace=10_000_000))

    rendered = await asyncio.gather(*(desk.render(message) for message in messages))

    assert {each.reason for each in rendered if isinstance(each, Withheld)} == {"render_failed"}
    [(campaign, tenant, reason)] = desk.paused
    assert (f"cmp_{campaign}", tenant) == (messages[0].campaign, TENANT)
    assert reason.startswith(f"{FAILURES} of {FAILURES} mails could not be rendered")


async def test_of_mails_that_are_rendered_together_each_is_what_it_is_alone(desk: Desk) -> None:
    html = "<p>{{ 6 // contact.custom_fields.n }} {{ unsubscribe_url }} {{ postal_address }}</p>"
    contacts = [
        (await desk.sending.contacts(1, prefix=f"c{n}", first_name=f"Ann{n}", custom_fields={"n": n}))[0]
        for n in (1, 0, 2, 3)
    ]
    messages = await desk.handed_over(template=await desk.sending.template(html))
    await desk.sending.pool.execute("DELETE FROM contacts WHERE id = $1", contacts[2])

    together = await desk.renderer.render_row([(message, message.recipients[0]) for message in messages])

    words = [each.reason if isinstance(each, Withheld) else "sent" for each in together]
    assert words == ["sent", "render_failed", "erased", "sent"]
    for message, made in zip(messages, together, strict=True):
        alone = await desk.render(message)
        assert alone == (made.content if isinstance(made, Rendered) else made)


def test_works_in_step_do_each_step_for_all_and_may_have_different_numbers_of_them() -> None:
    done: list[tuple[str, int]] = []

    def work(name: str, steps: int) -> Generator[None, None, str]:
        for step in range(steps):
            done.append((name, step))
            yield
        return name * 2

    assert mailing.in_step([work("a", 2), work("b", 0), work("c", 1)]) == ["aa", "bb", "cc"]
    assert done == [("a", 0), ("c", 0), ("a", 1)]


HEAD = mime.head(Address("a@sender.example"), "b@sender.example", "", "")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain", "7bit"),
        ("zoë\nline", "8bit"),
        ("x" * 998 + "\n" + "y" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("ü" * 500, "quoted-printable"),
        ("one\r\ntwo\rthree\nfour = \t\n.\n..", "7bit"),
        (".one", "7bit"),
        ("one.\n two\n.", "7bit"),
        (("x" * 997 + "\n") * 3 + "x" * 998, "7bit"),
        (("x" * 997 + "\n") * 3 + "x" * 999, "quoted-printable"),
        ("", "7bit"),
    ],
)
def test_content_goes_out_as_it_is_unless_a_line_is_too_long(text: str, encoding: str) -> None:
    content, canonical = mime.mail(
        HEAD,
        mime.to_field("c@example.org", ""),
        text_field("Subject", "s"),
        "Mon, 07 Jun 2027 12:00:00 +0000",
        "<a@b>",
        html=body_of(text),
        text=body_of(text),
    )

    body = content.partition(b"\r\n\r\n")[2]
    assert canonical == (encoding != "quoted-printable" and canonical_body(body) == body)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    for part in parsed(content).iter_parts():
        assert part["Content-Transfer-Encoding"] == encoding
        assert isinstance(part, EmailMessage)
        wanted = text.replace("\r\n", "\n").replace("\r", "\n")
        assert part.get_content().replace("\r\n", "\n") == wanted + ("" if wanted.endswith("\n") else "\n")


async def test_what_looks_like_an_encoded_word_is_text_in_every_field(desk: Desk) -> None:
    word = "=?utf-8?Q?a=0D=0ABcc:_all@example.org?="
    await desk.sending.contacts(1, first_name=word)
    _, mail, content = await desk.mail()

    assert mail["Subject"] == f"Hello {word}"
    assert word.encode() not in content.partition(b"\r\n\r\n")[0]


async def test_only_of_so_many_campaigns_it_is_remembered_how_they_fare(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailing, "OUTCOMES", 2)
    await desk.sending.contacts(1)
    for _ in range(3):
        await desk.handed_over(options=Options(pace=10_000_000))
    for message in desk.sending.shelf.kept:
        assert isinstance(await desk.render(message), bytes)

    assert len(desk.renderer._outcomes) == 2


async def test_contacts_that_are_read_ahead_are_as_they_were_when_asked_and_not_for_long(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.sending.contacts(3)
    messages = await desk.handed_over()
    for message in messages:  # the edition is known from now on
        assert isinstance(await desk.render(message), bytes)

    begun = time.monotonic()
    desk.renderer.ahead([(message, message.recipients[0]) for message in messages])
    rendered = [await desk.renderer.render(message, message.recipients[0]) for message in messages]
    times = {each.asked_at for each in rendered if isinstance(each, Rendered)}
    assert len(times) == 1
    assert begun <= times.pop() <= time.monotonic()

    monkeypatch.setattr(readers, "STALE", 0.0)
    desk.renderer.ahead([(message, message.recipients[0]) for message in messages])
    await desk.sending.pool.execute("DELETE FROM contacts")
    for message in messages:
        assert await desk.render(message) == Withheld("erased", "the contact is not there any more")
