"""Where the links in mail lead by which readers unsubscribe: `/u/{token}`.

GET shows a page and changes nothing, because mail scanners follow every link. POST acts at once, whatever its body: it
is what mail programs send for their own button (RFC 8058), and what the page's button sends. Whoever has left by
mistake may come back for an hour, by another button; that needs what a browser sends of the page's form.
"""

import html
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import parse_qsl

from aiohttp import web

from mailerd.queue.suppression import Reason, Suppression
from mailerd.web.operations import Call, Operation
from mailerd.web.problems import ProblemError
from mailerd.wire.unsubscribe import Subscription

HTML = "text/html"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"  # RFC 8058 section 3.2 allows both
BY_PAGE = ("by", "page")
MAX_FORM = 10_000  # bytes: ours has 60
AGAIN = ("again", "yes")
UNDO = timedelta(hours=1)  # for so long whoever left may come back here
HERE = ("page", "one-click")  # sources of entries that were made by these links
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 15vh auto; padding: 0 1rem; }}
button {{ font: inherit; padding: .6rem 1.4rem; border: 0; border-radius: .4rem; background: #14532d; color: #fff; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee; }} }}
</style>
<main>
<h1>{title}</h1>
{body}
</main>
</html>
"""
BUTTON = """<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">
<input type="hidden" name="by" value="page"><button>Unsubscribe</button></form>"""


BACK = """<form method="post"><input type="hidden" name="by" value="page">
<input type="hidden" name="again" value="yes"><p>Was that a mistake?</p><button>Subscribe again</button></form>"""


async def show(call: Call) -> web.Response:
    subscription = _subscription(call)
    if subscription is None:
        return lost()
    entry = await _entry(call, subscription)
    return _ask(subscription) if entry is None else _left(call, subscription, entry, "You are unsubscribed already")


async def act(call: Call) -> web.Response:
    """Leave; or come back, when a browser says so."""
    form = await _form(call)
    subscription = _subscription(call)
    if subscription is None:
        return lost()
    if AGAIN in form and BY_PAGE in form:
        return await _come_back(call, subscription)
    source = "page" if BY_PAGE in form else "one-click"
    new = await call.services.unsubscribes.leave(subscription, source=source)
    entry = await _entry(call, subscription)
    return _left(call, subscription, entry, "You are unsubscribed" if new else "You are unsubscribed already")


async def _come_back(call: Call, subscription: Subscription) -> web.Response:
    """Take away the one entry that these links have just made, and nothing else that stops mail."""
    entry = await _entry(call, subscription)
    if entry is None:
        return _ask(subscription)
    now = call.services.now()
    if not _may_come_back(call, entry):
        return _left(call, subscription, entry, "You are unsubscribed already")
    await call.services.suppressions.remove(entry.id, tenant=subscription.tenant, actor="page", now=now)
    done = f"<p><strong>{html.escape(subscription.address)}</strong> gets {_what(subscription)} again.</p>"
    return _page(200, "You are subscribed again", done)


async def _form(call: Call) -> list[tuple[str, str]]:
    """The fields of a form as browsers send it; of anything else none: it means to leave all the same."""
    try:
        async with call.body() as body:
            is_form = call.request.content_type == FORM
            return parse_qsl(body.decode("latin-1")) if is_form and len(body) < MAX_FORM else []
    except ProblemError as error:
        if error.status != HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            raise
        return []


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


def _may_come_back(call: Call, entry: Suppression) -> bool:
    return entry.source in HERE and call.services.now() - entry.created_at < UNDO


def _ask(subscription: Subscription) -> web.Response:
    question = f"<p>Shall <strong>{html.escape(subscription.address)}</strong> get no more {_what(subscription)}?</p>"
    return _page(200, "Unsubscribe", question + BUTTON)


def _left(call: Call, subscription: Subscription, entry: Suppression | None, title: str) -> web.Response:
    done = f"<p><strong>{html.escape(subscription.address)}</strong> gets no more {_what(subscription)}.</p>"
    return _page(200, title, done + (BACK if entry is not None and _may_come_back(call, entry) else ""))


def _subscription(call: Call) -> Subscription | None:
    return call.services.unsubscribes.read(call.request.match_info["token"])


def _what(subscription: Subscription) -> str:
    """In words: the kind of mail, and the topic when there is one. The link does not say who sent it."""
    kind = f"<strong>{html.escape(subscription.stream)}</strong> mail from this sender"
    return f"{kind} about <strong>{html.escape(subscription.topic)}</strong>" if subscription.topic else kind


def lost() -> web.Response:
    """The page for links that are not ours, or not whole."""
    text = "<p>Perhaps a part of it got lost: please use the link as it stands in the mail.</p>"
    return _page(404, "This link does not work", text)


def _page(status: int, title: str, body: str) -> web.Response:
    text = PAGE.format(title=title, body=body)
    return web.Response(status=status, text=text, content_type=HTML, headers=HEADERS)


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
