"""Fixtures that every test may use."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.postgres import TestPostgres, fast_directory


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPostgres]:
    """One embedded PostgreSQL for the test session, with a migrated template database."""
    with fast_directory(tmp_path_factory.mktemp("postgres")) as directory:
        server = TestPostgres(directory)
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def database(postgres: TestPostgres) -> AsyncIterator[str]:
    """The URL of a fresh database with the current schema."""
    name = await postgres.fresh()
    yield postgres.url_of(name)
    await postgres.drop(name)
