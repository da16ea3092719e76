"""A running laboratory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.laboratory import Laboratory, laboratory


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Laboratory]:
    async with laboratory(tmp_path) as running:
        yield running
