"""A pool on a fresh database, and a directory of hit files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailerd.campaigns.tracking.files import DIRECTORY
from mailerd.db import Pool, connect_pool


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, max=4)
    yield pool
    pool.terminate()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / DIRECTORY
