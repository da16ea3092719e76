"""Pages for readers of mail: plain HTML that needs no script and loads nothing, and the forms that they send."""

from http import HTTPStatus
from urllib.parse import parse_qsl

from aiohttp import web

from mailerd.web.operations import Call
from mailerd.web.problems import ProblemError

HTML = "text/html"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"  # RFC 8058 section 3.2 allows both
MAX_FORM = 10_000  # bytes
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


def page(status: int, title: str, body: str) -> web.Response:
    """`title` and `body` are HTML: what comes from elsewhere is escaped by the caller."""
    text = PAGE.format(title=title, body=body)
    return web.Response(status=status, text=text, content_type=HTML, headers=HEADERS)


def lost() -> web.Response:
    """The page for links that are not ours, or not whole."""
    text = "<p>Perhaps a part of it got lost: please use the link as it stands in the mail.</p>"
    return page(404, "This link does not work", text)


async def form(call: Call) -> list[tuple[str, str]]:
    """The fields of a form as browsers send it; of anything else none."""
    try:
        async with call.body() as body:
            is_form = call.request.content_type == FORM
            return parse_qsl(body.decode("latin-1")) if is_form and len(body) < MAX_FORM else []
    except ProblemError as error:
        if error.status != HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            raise
        return []
