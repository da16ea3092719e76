"""Sessions are tested on both event loops: uvloop's transports differ from asyncio's in what they call, and when."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    both = item.path.name in ("test_session.py", "test_tls_sessions.py")
    return {"asyncio": asyncio.new_event_loop, **({"uvloop": uvloop.new_event_loop} if both else {})}
