"""A template tried out on some contacts before all of them get it."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic, thread_time
from typing import Any

from msgspec import Struct

from mailerd.campaigns.templates.rendering import Prepared
from mailerd.campaigns.templates.values import RenderError

SAMPLE_SIZE = 100  # contacts that are worth trying
MOST_TIME = 5.0  # seconds
AT_ONCE = 0.02  # seconds of one stay in a thread


class Failure(Struct, frozen=True):
    """A contact who would get no mail, and why."""

    contact_id: str
    code: str
    detail: str


async def preflight(prepared: Prepared, contexts: Iterable[Mapping[str, Any]]) -> list[Failure]:
    """Render for each of these contexts (`contexts.of_person`); those that fail, and why.

    It stops after `MOST_TIME`: what was not tried by then has not failed.
    """
    failures: list[Failure] = []
    waiting = iter(contexts)
    began = monotonic()
    while monotonic() - began <= MOST_TIME and await asyncio.to_thread(_some, prepared, waiting, failures):
        pass
    return failures


def _some(prepared: Prepared, contexts: Iterator[Mapping[str, Any]], failures: list[Failure]) -> bool:
    """Render as many as go in `AT_ONCE`; False: those were all."""
    began = monotonic()
    for context in contexts:
        try:
            prepared.render(context, clock=thread_time)
        except RenderError as error:
            failures.append(Failure(str(context["contact"]["contact_id"]), error.code, error.detail))
        if monotonic() - began > AT_ONCE:
            return True
    return False
