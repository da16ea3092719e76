"""Is it alive, is it ready, how is it doing."""

import asyncio

import structlog
from aiohttp import web

from mailerd import metrics
from mailerd.web.bodies import Health
from mailerd.web.callers import authorize, is_local
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import ProblemError

log = structlog.get_logger()

PING = 2.0  # seconds the database has to answer
METRICS_TYPE = "text/plain"


async def alive(call: Call) -> web.Response:
    """The process answers. Nothing else is looked at: a restart would not bring back a database."""
    return json_answer(200, Health(status="ok"))


async def ready(call: Call) -> web.Response:
    """Mail can be taken now: the database answers and nobody is stopping us."""
    if call.services.stopping():
        raise ProblemError(503, "not_ready", "The daemon is being stopped.", retry_after=30)
    try:
        async with asyncio.timeout(PING):
            await call.services.ping()
    except Exception as error:  # whatever the driver raises: the answer is no
        log.warning("readiness.missed", error=repr(error))
        raise ProblemError(503, "not_ready", "The database does not answer.", retry_after=5) from None
    return json_answer(200, Health(status="ready"))


async def show_metrics(call: Call) -> web.Response:
    """Prometheus metrics: without a key for this machine only, since site names tell whom we write to."""
    if not is_local(call):
        call.credential = await authorize(call, "read")
    body = await asyncio.to_thread(metrics.render)  # reads files when there are several processes
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})


OPERATIONS = (
    Operation(
        id="health.live",
        method="GET",
        path="/healthz",
        scope=None,
        summary="Whether the process answers",
        handler=alive,
        answers={200: (JSON, Health)},
    ),
    Operation(
        id="health.ready",
        method="GET",
        path="/readyz",
        scope=None,
        summary="Whether mail can be taken now",
        handler=ready,
        answers={200: (JSON, Health)},
        problems=(503,),
    ),
    Operation(
        id="metrics.show",
        method="GET",
        path="/metrics",
        scope=None,
        summary="Prometheus metrics: from this machine, or with an API key with the scope read",
        handler=show_metrics,
        answers={200: (METRICS_TYPE, str)},
        problems=(401, 403, 429, 503),
    ),
)
