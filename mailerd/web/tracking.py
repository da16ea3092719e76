"""Where pixels (`/o/{token}`) and tracked links (`/c/{token}`) in mail lead: answered by the token alone.

A pixel is always answered with one, also by a token that is none of ours; but then nothing is kept. A link leads where
its token says, and one that was not made here leads nowhere. There are no forms with the target in a parameter
(`/click?url=…`): the token covers the target, so that nobody can have our host lead elsewhere.
"""

from base64 import b64decode
from ipaddress import ip_address

from aiohttp import web

from mailerd.web.operations import Call, Operation
from mailerd.web.pages import HTML, lost
from mailerd.wire.tracking import location

TEXT = "text/plain"
GIF = "image/gif"
# 43 bytes: one pixel, transparent.
PIXEL = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
ENDING = ".gif"
HEADERS = {
    "Cache-Control": "no-store, no-cache, must-revalidate, max-age=0, private",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}
PIXEL_HEADERS = HEADERS | {
    "Pragma": "no-cache",
    "Expires": "0",
    "Cross-Origin-Resource-Policy": "cross-origin",  # mail is shown on pages of others
}


async def pixel(call: Call) -> web.Response:
    request = call.request
    call.services.tracker.opened(
        request.match_info["token"].removesuffix(ENDING),
        method=request.method,
        ip=reader_of(call),
        user_agent=request.headers.get("User-Agent", ""),
    )
    return web.Response(body=PIXEL, content_type=GIF, headers=PIXEL_HEADERS)


async def follow(call: Call) -> web.Response:
    request = call.request
    url = call.services.tracker.clicked(
        request.match_info["token"],
        method=request.method,
        ip=reader_of(call),
        user_agent=request.headers.get("User-Agent", ""),
    )
    if url is None:
        return lost()
    # Not web.HTTPFound: that would write the URL anew, and what stood in the mail must arrive.
    return web.Response(status=302, text="Found\n", content_type=TEXT, headers=HEADERS | {"Location": location(url)})


def reader_of(call: Call) -> str:
    """The address that asks. Of a proxy on this machine, that which it names: the last one is its own word."""
    peer = call.peer.partition("%")[0]
    named = call.request.headers.getall("X-Forwarded-For", ())
    try:
        if not named or not ip_address(peer).is_loopback:
            return peer
        return str(ip_address(named[-1].rpartition(",")[2].strip()))
    except ValueError:
        return peer


OPERATIONS = (
    Operation(
        id="tracking.open",
        method="GET",
        path="/o/{token}",
        scope=None,
        summary="The pixel of a mail, also as `{token}.gif`",
        handler=pixel,
        answers={200: (GIF, bytes)},
        quiet=True,
    ),
    Operation(
        id="tracking.open_head",
        method="HEAD",
        path="/o/{token}",
        scope=None,
        summary="The header of the pixel of a mail",
        handler=pixel,
        answers={200: (GIF, bytes)},
        quiet=True,
    ),
    Operation(
        id="tracking.click",
        method="GET",
        path="/c/{token}",
        scope=None,
        summary="Follow a link of a mail",
        handler=follow,
        answers={302: (TEXT, str), 404: (HTML, str)},
        quiet=True,
    ),
    Operation(
        id="tracking.click_head",
        method="HEAD",
        path="/c/{token}",
        scope=None,
        summary="Where a link of a mail leads",
        handler=follow,
        answers={302: (TEXT, str), 404: (HTML, str)},
        quiet=True,
    ),
)
