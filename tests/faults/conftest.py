"""A laboratory that the tests of this package use one after the other, because making one takes seconds."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.laboratory import Laboratory, laboratory


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Laboratory]:
    async with laboratory(tmp_path_factory.mktemp("laboratory")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="package")
async def lab(shared: Laboratory) -> Laboratory:
    """With the daemon running and the exchanger well, whatever the test before left."""
    await shared.mx.tell("normal")
    if shared.daemon.process.returncode is not None:
        await shared.daemon.start()
    return shared
