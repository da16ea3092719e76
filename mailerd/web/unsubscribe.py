"""Where the links in mail lead by which readers unsubscribe: `/u/{token}`.

GET shows a page and changes nothing, because mail scanners follow every link. POST acts at once, whatever its body: it
is what mail programs send for their own button (RFC 8058), and what the page's button sends. Whoever has left by
mistake may come back for an hour, by another button; that needs what a browser sends of the page's form.
"""

import html
from datetime import timedelta

from aiohttp import web

from mailerd.queue.suppression import Reason, Suppression
from mailerd.web.operations import Call, Operation
from mailerd.web.pages import FORM, HTML, MULTIPART, form, lost, page
from mailerd.wire.unsubscribe import Subscription

BY_PAGE = ("by", "page")
AGAIN = ("again", "yes")
UNDO = timedelta(hours=1)  # for so long whoever left may come back here
BACK_AT_MOST = 5  # times by the link of one mail: each makes records
HERE = ("page", "one-click")  # sources of entries that were made by these links
BUTTON = """<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">
<input type="hidden" name="by" value="page"><button>Unsubscribe</button></form>"""


BACK = """<form method="post"><input type="hidden" name="by" value="page">
<input type="hidden" name="again" value="yes"><p>Was that a mistake?</p><button>Subscribe again</button></form>"""


async def show(call: Call) -> web.Response:
    subscription = _subscription(call)
    if subscription is None:
        return lost()
    entry = await _entry(call, subscription)
    if entry is None:
        return _ask(call, subscription)
    return await _left(call, subscription, entry, "You are unsubscribed already")


async def act(call: Call) -> web.Response:
    """Leave; or come back, when a browser says so."""
    fields = await form(call)
    subscription = _subscription(call)
    if subscription is None:
        return lost()
    if AGAIN in fields and BY_PAGE in fields:
        return await _come_back(call, subscription)
    source = "page" if BY_PAGE in fields else "one-click"
    new = await call.services.unsubscribes.leave(subscription, source=source)
    entry = await _entry(call, subscription)
    return await _left(call, subscription, entry, "You are unsubscribed" if new else "You are unsubscribed already")


async def _come_back(call: Call, subscription: Subscription) -> web.Response:
    """Take away the one entry that these links have just made, and nothing else that stops mail."""
    entry = await _entry(call, subscription)
    if entry is None:
        return _ask(call, subscription)
    now = call.services.now()
    if not await _may_come_back(call, entry):
        return await _left(call, subscription, entry, "You are unsubscribed already")
    await call.services.suppressions.remove(entry.id, tenant=subscription.tenant, actor="page", now=now)
    done = f"<p><strong>{html.escape(subscription.address)}</strong> gets {_what(call, subscription)} again.</p>"
    return page(200, "You are subscribed again", done)


async def _entry(call: Call, subscription: Subscription) -> Suppression | None:
    """By which the reader has left exactly this."""
    found = await call.services.suppressions.list(
        tenant=subscription.tenant,
        limit=1,
        address=subscription.address,
        reason=Reason.UNSUBSCRIBE,
        stream=subscription.stream,
        topic=subscription.topic,
        holding_at=call.services.now(),
    )
    return found[0] if found else None


async def _may_come_back(call: Call, entry: Suppression) -> bool:
    if entry.source not in HERE or entry.message_id is None or call.services.now() - entry.created_at >= UNDO:
        return False
    return await call.services.unsubscribes.came_back(entry.message_id, entry.address) < BACK_AT_MOST


def _ask(call: Call, subscription: Subscription) -> web.Response:
    what = _what(call, subscription)
    question = f"<p>Shall <strong>{html.escape(subscription.address)}</strong> get no more {what}?</p>"
    return page(200, "Unsubscribe", question + BUTTON)


async def _left(call: Call, subscription: Subscription, entry: Suppression | None, title: str) -> web.Response:
    done = f"<p><strong>{html.escape(subscription.address)}</strong> gets no more {_what(call, subscription)}.</p>"
    back = entry is not None and await _may_come_back(call, entry)
    return page(200, title, done + (BACK if back else ""))


def _subscription(call: Call) -> Subscription | None:
    return call.services.unsubscribes.read(call.request.match_info["token"])


def _what(call: Call, subscription: Subscription) -> str:
    """In words: the kind of mail, from whom as far as the configuration says it, and the topic when there is one."""
    name = call.services.sender(subscription.tenant)
    sender = f"<strong>{html.escape(name)}</strong>" if name else "this sender"
    kind = f"<strong>{html.escape(subscription.stream)}</strong> mail from {sender}"
    return f"{kind} about <strong>{html.escape(subscription.topic)}</strong>" if subscription.topic else kind


OPERATIONS = (
    Operation(
        id="unsubscribe.show",
        method="GET",
        path="/u/{token}",
        scope=None,
        summary="The page of an unsubscribe link; it changes nothing",
        handler=show,
        answers={200: (HTML, str), 404: (HTML, str)},
    ),
    Operation(
        id="unsubscribe.head",
        method="HEAD",
        path="/u/{token}",
        scope=None,
        summary="Whether an unsubscribe link works",
        handler=show,
        answers={200: (HTML, str), 404: (HTML, str)},
    ),
    Operation(
        id="unsubscribe.leave",
        method="POST",
        path="/u/{token}",
        scope=None,
        summary="Unsubscribe at once (RFC 8058), whatever the body; or come back within the hour (by=page&again=yes)",
        handler=act,
        bodies={FORM: str, MULTIPART: str},
        answers={200: (HTML, str), 404: (HTML, str)},
        problems=(408, 413),
    ),
)
