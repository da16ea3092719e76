"""The preference centre of a contact, `/p/{token}`, and the documents' `POST /api/v1/public/unsubscribe`.

GET shows and changes nothing. POST is what the page's form sends: the lists to be on, or no mail at all.
"""

import html
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta

from mailerd.campaigns.contacts.preferences import Choices
from mailerd.errors import Refused
from mailerd.queue.ids import LIST, format_id, parse_id
from mailerd.queue.suppression import normalised
from mailerd.web import problems
from mailerd.web.bodies import Answer, Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.pages import FORM, HTML, form, lost, page
from mailerd.web.problems import ProblemError
from mailerd.wire.preferences import Preferences

BY_PAGE = ("by", "page")
LEAVE_ALL = ("all", "leave")
COME_BACK = ("all", "again")
TRACKING = ("tracking", "yes")
BY = '<input type="hidden" name="by" value="page">'
SAVED = "<p><strong>Saved.</strong></p>"
STATES = {
    "unsubscribed": "You get no mail from us now.",
    "bounced": "Mail to this address came back, so we send none.",
    "complained": "You marked our mail as spam, so we send none.",
    "suppressed": "We send no mail to this address.",
}


class PublicUnsubscribe(Request, frozen=True, kw_only=True):
    """`token` is what stands behind `/u/` in the mail's link: it has to be that of the address (and the campaign)."""

    email: Annotated[str, Meta(max_length=1000)]
    token: Annotated[str, Meta(max_length=2000)]
    campaign_id: Annotated[str, Meta(max_length=100)] = ""


class PublicUnsubscribed(Answer, frozen=True, kw_only=True):
    """It holds already when this is answered."""

    status: Literal["unsubscribed"]


async def show(call: Call) -> web.Response:
    who = _who(call)
    if who is None:
        return lost()
    choices = await call.services.preferences.choices(who)
    return _forgotten() if choices is None else _page(choices, "", call.services.sender(who.tenant))


async def save(call: Call) -> web.Response:
    """Do what the form says. Whatever comes without its fields changes nothing: machines follow links."""
    fields = await form(call)
    who = _who(call)
    if who is None:
        return lost()
    store = call.services.preferences
    done, status = SAVED, 200
    try:
        if BY_PAGE not in fields:
            done = ""
        elif LEAVE_ALL in fields:
            await store.leave_all(who)
        elif COME_BACK in fields:
            await store.come_back(who, ip=call.peer)
        else:
            await store.choose(who, _lists(fields), tracking=TRACKING in fields, ip=call.peer)
    except Refused as refusal:
        done = f"<p>That did not work: {html.escape(refusal.text)}</p>"
        status = refusal.http if refusal.http == HTTPStatus.TOO_MANY_REQUESTS else 200
    choices = await store.choices(who)
    if choices is None:
        return _forgotten()
    answer = _page(choices, done, call.services.sender(who.tenant))
    answer.set_status(status)
    return answer


async def unsubscribe(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, PublicUnsubscribe)
    subscription = call.services.unsubscribes.read(asked.token)
    if (
        subscription is None
        or normalised(subscription.address) != normalised(asked.email)
        or asked.campaign_id not in ("", subscription.campaign)
    ):
        raise ProblemError(403, "invalid_token", "The token is not that of a mail to this address.")
    await call.services.unsubscribes.leave(subscription, source="page")
    return json_answer(200, PublicUnsubscribed(status="unsubscribed"))


def _who(call: Call) -> Preferences | None:
    return call.services.preferences.read(call.request.match_info["token"])


def _lists(fields: Sequence[tuple[str, str]]) -> set[int]:
    found = set()
    for name, value in fields:
        if name == "list":
            try:
                found.add(parse_id(LIST, value))
            except ValueError:  # not of our form
                continue
    return found


def _forgotten() -> web.Response:
    text = "<p>The address that this link was sent to is not stored here any more: there is nothing left to choose.</p>"
    return page(404, "Your address is not stored any more", text)


def _page(choices: Choices, done: str, sender: str) -> web.Response:
    state = STATES.get(choices.status, "")
    of = f"Mail from <strong>{html.escape(sender)}</strong> to" if sender else "For"
    parts = [done, f"<p>{of} <strong>{html.escape(choices.email)}</strong>. {state}</p>"]
    if choices.status in ("active", "unsubscribed"):
        parts.append(_form(choices))
    return page(200, "Your mail preferences", "\n".join(parts))


def _form(choices: Choices) -> str:
    gone = choices.status == "unsubscribed"
    boxes = "\n".join(
        f'<p><label><input type="checkbox" name="list" value="{format_id(LIST, each.id)}"'
        f"{' checked' if each.subscribed and not gone else ''}> {html.escape(each.name)}</label>"
        f"{'<br><small>' + html.escape(each.description) + '</small>' if each.description else ''}</p>"
        for each in choices.lists
    )
    tracking = (
        f'<p><label><input type="checkbox" name="tracking" value="yes"{" checked" if choices.tracking else ""}> '
        "Count what I open and click</label></p>"
    )
    ways = [f'<form method="post">{BY}{boxes}{tracking}<button>Save</button></form>']
    if gone and not choices.lists:
        ways = [_button(COME_BACK, "Subscribe again")]
    elif not gone:
        ways.append(_button(LEAVE_ALL, "Unsubscribe from everything"))
    return "\n".join(ways)


def _button(field: tuple[str, str], text: str) -> str:
    name, value = field
    return f'<form method="post">{BY}<input type="hidden" name="{name}" value="{value}"><button>{text}</button></form>'


OPERATIONS = (
    Operation(
        id="preferences.show",
        method="GET",
        path="/p/{token}",
        scope=None,
        summary="The preference centre of a contact; it changes nothing",
        handler=show,
        answers={200: (HTML, str), 404: (HTML, str)},
    ),
    Operation(
        id="preferences.head",
        method="HEAD",
        path="/p/{token}",
        scope=None,
        summary="Whether a link to preferences works",
        handler=show,
        answers={200: (HTML, str), 404: (HTML, str)},
    ),
    Operation(
        id="preferences.save",
        method="POST",
        path="/p/{token}",
        scope=None,
        summary="What the form of the preference centre sends: by=page with list=lst_1 …, tracking=yes, or all=leave",
        handler=save,
        bodies={FORM: str},
        answers={200: (HTML, str), 404: (HTML, str), 429: (HTML, str)},
        problems=(408, 413, 415),
    ),
    Operation(
        id="public.unsubscribe",
        method="POST",
        path="/api/v1/public/unsubscribe",
        scope=None,
        summary="Unsubscribe at once, with the token of a mail's unsubscribe link",
        handler=unsubscribe,
        bodies={JSON: PublicUnsubscribe},
        example={"email": "ann@example.com", "campaign_id": "cmp_17", "token": "0123"},
        answers={200: (JSON, PublicUnsubscribed)},
        problems=(400, 403, 408, 413, 415, 422),
    ),
)
