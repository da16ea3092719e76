"""Threads for slow work on templates: one at a time, to its end, and few of each tenant wait."""

import asyncio
import threading
from typing import cast

import pytest

from mailerd.campaigns.templates.desk import PER_TENANT, TemplateDesk, TooManyError
from mailerd.db import Pool


@pytest.fixture
def desk() -> TemplateDesk:
    return TemplateDesk(cast(Pool, None))  # the database is not asked


async def test_a_thread_that_has_begun_keeps_its_turn_when_nobody_waits_for_it(desk: TemplateDesk) -> None:
    begun, may_end, order = threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        may_end.wait(10)
        order.append("first")

    first = asyncio.create_task(desk.in_thread("a", slow))
    await asyncio.to_thread(begun.wait, 10)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(desk.in_thread("b", order.append, "second"))
    await asyncio.sleep(0)
    may_end.set()
    await second

    assert order == ["first", "second"]


async def test_a_tenant_that_has_much_under_way_is_told_to_wait(desk: TemplateDesk) -> None:
    may_end = threading.Event()
    waiting = [asyncio.create_task(desk.in_thread("a", may_end.wait, 10)) for _ in range(PER_TENANT)]
    await asyncio.sleep(0)

    with pytest.raises(TooManyError):
        await desk.in_thread("a", str)
    other = asyncio.create_task(desk.in_thread("b", str))
    waiting[-1].cancel()
    await asyncio.gather(waiting[-1], return_exceptions=True)
    waiting[-1] = asyncio.create_task(desk.in_thread("a", may_end.wait, 10))
    may_end.set()
    await asyncio.gather(other, *waiting)
    await desk.in_thread("a", str)
