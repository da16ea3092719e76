"""The database: the embedded server through every kind of bad luck, a server of one's own, the schema."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from mailerd import db
from mailerd.db import embedded
from mailerd.db.embedded import EmbeddedPostgres, running_url
from mailerd.db.migrate import Migration, drop_event_partitions, ensure_event_partitions, migrate, shipped
from mailerd.errors import DatabaseError
from tests.support.postgres import SMALL, ExternalPostgres, TestPostgres

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
within_reach = pytest.mark.skipif(
    not all(directory.stat().st_mode & 0o001 for directory in Path(sys.prefix).parents),
    reason="the programs of PostgreSQL stand in a directory that only its owner can enter",
)
Make = Callable[[Path], EmbeddedPostgres]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make embedded servers; all are stopped at the end of the test."""
    made: list[EmbeddedPostgres] = []

    def make(data_dir: Path) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(data_dir, SMALL))
        return made[-1]

    yield make
    for server in made:
        await server.stop()


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user can reach; pytest's are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="mailerd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def unused_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
async def empty(postgres: TestPostgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database without a schema."""
    name = await postgres.fresh(migrated=False)
    async with db.connected(postgres.url_of(name)) as connection:
        yield connection
    await postgres.drop(name)


async def value(url: str, query: str) -> object:
    async with db.connected(url) as connection:
        return await connection.fetchval(query)


# -- the embedded server


async def test_it_keeps_what_was_committed_over_stop_and_start_and_is_durable(make, tmp_path):
    first = make(tmp_path)
    await first.start()
    await value(first.url, "CREATE TABLE kept AS SELECT 42 AS n")
    assert [await value(first.url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == [
        "on",
        "on",
        "on",
    ]
    assert await value(first.url, "SHOW listen_addresses") == ""
    assert b"MALLOC_TRIM_THRESHOLD_=131072" in Path(f"/proc/{first.pid}/environ").read_bytes().split(b"\0")
    await first.stop()
    assert running_url(tmp_path) is None

    second = make(tmp_path)
    await second.start()
    assert await value(second.url, "SELECT n FROM kept") == 42
    assert running_url(tmp_path) == second.url


async def test_killed_while_watched_it_comes_back_at_the_same_url(make, tmp_path):
    server = make(tmp_path)
    await server.start()
    url, pid = server.url, server.pid
    await value(url, "CREATE TABLE kept AS SELECT 42 AS n")
    watch = asyncio.create_task(server.watch())

    os.kill(pid, signal.SIGKILL)
    while server.pid == pid or running_url(tmp_path) is None:
        await asyncio.sleep(0.02)

    assert server.url == url
    assert await value(url, "SELECT n FROM kept") == 42
    watch.cancel()


async def test_an_orphan_of_a_killed_daemon_is_ended_before_the_new_server_starts(make, tmp_path):
    orphan, server = make(tmp_path), make(tmp_path)
    await orphan.start()
    await value(orphan.url, "CREATE TABLE kept AS SELECT 42 AS n")
    held = await db.connect(orphan.url)  # a worker that still runs

    await server.start()

    assert await value(server.url, "SELECT n FROM kept") == 42
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await held.fetch("SELECT 1")


async def test_it_starts_although_the_pid_in_a_stale_lock_file_is_anothers_by_now(make, tmp_path):
    dead, server = make(tmp_path), make(tmp_path)
    await dead.start()
    await value(dead.url, "CREATE TABLE kept AS SELECT 42 AS n")
    os.kill(dead.pid, signal.SIGKILL)
    await dead.stop()
    lock = tmp_path / "postgres" / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    (tmp_path / "run" / f"{embedded.SOCKET}.lock").write_text(lock.read_text())
    assert running_url(tmp_path) is None

    await server.start()
    assert await value(server.url, "SELECT n FROM kept") == 42


async def test_a_cluster_that_was_half_made_is_made_again(make, tmp_path):
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    server = make(tmp_path)
    await server.start()
    assert await value(server.url, "SELECT 1") == 1


async def test_a_data_directory_deeper_than_a_socket_address_works_and_leaves_nothing_behind(make, tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = make(deep)
    await server.start()
    assert await value(server.url, "SELECT 1") == 1
    sockets = Path(server.url.partition("host=")[2].replace("%2F", "/"))
    assert sockets.stat().st_mode & 0o777 == 0o700
    await server.stop()
    assert not sockets.exists()


async def test_nobody_else_may_reach_the_socket(make, tmp_path):
    await make(tmp_path).start()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


async def test_a_cluster_of_another_version_is_refused_untouched_with_the_way_on(make, tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match=r"made by PostgreSQL 16.*brings PostgreSQL 18.*pg_dump.*pg_upgrade"):
        await make(tmp_path).start()
    assert [file.name for file in (tmp_path / "postgres").iterdir()] == ["PG_VERSION"]


async def test_a_directory_of_something_else_is_refused_untouched(make, tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "holiday.jpg").touch()
    with pytest.raises(DatabaseError, match="not a PostgreSQL cluster"):
        await make(tmp_path).start()
    assert (tmp_path / "postgres" / "holiday.jpg").exists()


async def test_a_server_that_cannot_start_says_why(tmp_path):
    server = EmbeddedPostgres(tmp_path, SMALL, settings={"shared_buffers": "100000GB"})
    with pytest.raises(DatabaseError, match=r"did not start: .*shared_buffers"):
        await server.start()
    await server.stop()


@as_root
@within_reach
async def test_root_runs_it_as_the_owner_of_the_data_directory(make, open_dir):
    data_dir = open_dir / "data"
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, 65_534, 65_534)
    server = make(data_dir)
    await server.start()
    assert Path(f"/proc/{server.pid}").stat().st_uid == 65_534
    assert (data_dir / "postgres" / "base").stat().st_uid == 65_534
    assert await value(server.url, "SELECT 1") == 1


@as_root
async def test_root_is_told_when_the_owner_cannot_reach_the_data_directory(make, tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "data").mkdir(parents=True)
    hidden.chmod(0o700)
    os.chown(hidden / "data", 65_534, 65_534)
    with pytest.raises(DatabaseError, match=r"user 65534 cannot reach.*run mailerd as an ordinary user"):
        await make(hidden / "data").start()


@as_root
@within_reach
async def test_root_without_user_namespaces_gives_the_cluster_to_nobody(make, open_dir, monkeypatch):
    before = make(open_dir)
    await before.start()
    await value(before.url, "CREATE TABLE kept AS SELECT 42 AS n")
    await before.stop()

    monkeypatch.setattr(embedded, "AS_ORDINARY_USER", ("/bin/false",))
    server = make(open_dir)
    await server.start()
    assert Path(f"/proc/{server.pid}").stat().st_uid == 65_534
    assert await value(server.url, "SELECT n FROM kept") == 42


async def test_the_log_is_turned_over_while_the_server_runs(make, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LOG_SIZE", 10)
    server = make(tmp_path)
    await server.start()
    with pytest.raises(asyncpg.PostgresError):
        await value(server.url, "SELECT 1 / 0 AS first")
    await server.turn_log_over()
    with pytest.raises(asyncpg.PostgresError):
        await value(server.url, "SELECT nonsense")
    assert "division by zero" in (tmp_path / "postgresql.log.1").read_text()
    log = (tmp_path / "postgresql.log").read_text()
    assert "nonsense" in log
    assert "division" not in log


# -- a server of one's own


async def test_a_server_on_tcp_with_a_password_is_used(tmp_path):
    with ExternalPostgres(tmp_path / "external", password="s3cr3t") as external:
        async with db.connected(external.url(), patience=20) as connection:
            await migrate(connection)
            await ensure_event_partitions(connection, datetime.now(UTC))
        pool = await db.connect_pool(external.url(), min=1, max=2)
        assert await pool.fetchval("SELECT count(*) FROM events") == 0
        await pool.close()

        with pytest.raises(DatabaseError, match="password authentication failed") as caught:
            await db.connect(external.url(password="wr0ng"))
        assert "wr0ng" not in str(caught.value)


async def test_a_server_that_is_not_there_is_named_without_the_password(unused_port):
    with pytest.raises(
        DatabaseError, match=f"cannot reach the database postgresql://127.0.0.1:{unused_port}/mail"
    ) as e:
        await db.connect(f"postgresql://ann:s3cr3t@127.0.0.1:{unused_port}/mail")
    assert "s3cr3t" not in str(e.value)


@pytest.mark.parametrize("url", ["", "nonsense", "postgresql://ann:s3cr3t@[/mail", "postgresql://h:port/mail"])
async def test_a_malformed_url_is_refused_without_the_password(url):
    with pytest.raises(DatabaseError) as caught:
        await db.connect(url)
    assert "s3cr3t" not in str(caught.value)


async def test_a_server_that_is_too_old_is_refused(database, monkeypatch):
    monkeypatch.setattr(db, "OLDEST", 990_000)
    with pytest.raises(DatabaseError, match="is PostgreSQL 18; mailerd needs 99 or later"):
        await db.connect_pool(database)


async def test_json_columns_are_plain_values_also_in_copy(database):
    pool = await db.connect_pool(database)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("CREATE TEMP TABLE t (a jsonb, b json) ON COMMIT DROP")
        rows = [({"ä": [1, None]}, "x"), (None, {"y": 1.5})]
        await connection.copy_records_to_table("t", records=rows)
        assert [tuple(row) for row in await connection.fetch("SELECT a, b FROM t")] == rows
    await pool.close()


async def test_a_transaction_left_open_does_not_reach_the_next_borrower(database):
    pool = await db.connect_pool(database, min=1, max=1)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # asyncpg complains there, rightly
    async with pool.acquire() as connection:
        await connection.execute("BEGIN; CREATE TABLE lost (n int)")
    assert await pool.fetchval("SELECT to_regclass('lost')") is None
    await pool.close()


# -- the schema

ONE = Migration(1, "one", "CREATE TABLE one (n int)")
TWO = Migration(2, "two", "CREATE TABLE two (n int); INSERT INTO two VALUES (2)")


async def test_migrations_are_applied_once_each_in_order(empty):
    assert await migrate(empty, [ONE]) == 1
    assert await migrate(empty, [ONE, TWO]) == 1
    assert await migrate(empty, [ONE, TWO]) == 0
    assert await empty.fetchval("SELECT n FROM two") == 2
    assert await empty.fetch("SELECT version, name FROM schema_migrations ORDER BY 1") == [(1, "one"), (2, "two")]


async def test_nodes_that_start_together_apply_each_migration_once(postgres):
    name = await postgres.fresh(migrated=False)
    connections = [await db.connect(postgres.url_of(name)) for _ in range(4)]
    counts = await asyncio.gather(*(migrate(connection) for connection in connections))
    assert sum(counts) == len(shipped())
    for connection in connections:
        await connection.close()
    await postgres.drop(name)


async def test_a_schema_newer_than_the_code_is_refused(empty):
    await migrate(empty, [ONE, TWO])
    with pytest.raises(DatabaseError, match=r"migrated by a newer mailerd.*version 2, this mailerd knows 1"):
        await migrate(empty, [ONE])


async def test_the_schema_is_not_changed_under_an_older_mailerd_that_works_but_under_what_a_crash_left(
    database, monkeypatch
):
    monkeypatch.setattr("mailerd.db.migrate.WATCHED", 1.0)
    newer = [*shipped(), Migration(9_999, "later", "CREATE TABLE later ()")]
    async with db.connected(database) as connection, db.connected(database) as other:
        await other.execute("INSERT INTO workers (number, node, pid) VALUES (1, 'old', 4711)")

        crashed = asyncio.Event()

        async def beat():
            while not crashed.is_set():
                await other.execute("UPDATE workers SET beat = beat + 1")
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(beat())
        with pytest.raises(DatabaseError, match=r"older mailerd still works with it \(node old\): stop mailerd"):
            await migrate(connection, newer)
        assert await migrate(connection) == 0  # nothing to change, nothing to refuse
        crashed.set()
        await beating

        assert await migrate(connection, newer) == 1


async def test_an_edited_migration_is_refused(empty):
    await migrate(empty, [ONE])
    with pytest.raises(DatabaseError, match="0001_one was changed after it was applied"):
        await migrate(empty, [Migration(1, "one", "CREATE TABLE one (n bigint)"), TWO])
    assert await empty.fetchval("SELECT to_regclass('two')") is None


async def test_a_failed_migration_is_named_and_leaves_nothing(empty):
    broken = Migration(2, "broken", "CREATE TABLE half (n int); SELECT nonsense")
    with pytest.raises(DatabaseError, match='0002_broken failed: column "nonsense"'):
        await migrate(empty, [ONE, broken])
    assert await empty.fetchval("SELECT to_regclass('half')") is None
    assert await empty.fetchval("SELECT max(version) FROM schema_migrations") == 1


INSERT_EVENT = "INSERT INTO events (at, type, message_id, n, address, tenant) VALUES ($1, 'x', 1, 1, 'a@b', 't')"


async def test_partitions_are_ready_for_this_month_and_the_next_two_over_the_turn_of_the_year(database):
    async with db.connected(database) as connection:
        now = datetime(2031, 11, 30, 23, 59, 59, tzinfo=UTC)
        assert await ensure_event_partitions(connection, now) == ["events_2031_11", "events_2031_12", "events_2032_01"]
        assert await ensure_event_partitions(connection, now) == []
        await connection.execute(INSERT_EVENT, datetime(2032, 1, 31, 23, 59, 59, tzinfo=UTC))
        assert await connection.fetchval("SELECT count(*) FROM events_2032_01") == 1


async def test_events_that_had_no_partition_move_into_the_new_one(database):
    async with db.connected(database) as connection:
        inside, outside = datetime(2031, 5, 7, tzinfo=UTC), datetime(2033, 5, 7, tzinfo=UTC)
        for at in (inside, outside):
            await connection.execute(INSERT_EVENT, at)
        await ensure_event_partitions(connection, inside)
        assert await connection.fetchval("SELECT at FROM events_2031_05") == inside
        assert await connection.fetchval("SELECT at FROM ONLY events_rest") == outside
        assert await connection.fetchval("SELECT count(*) FROM events") == 2


async def test_months_that_are_over_are_dropped_as_a_whole(database):
    async with db.connected(database) as connection:
        await ensure_event_partitions(connection, datetime(2031, 11, 20, tzinfo=UTC))
        before = datetime(2032, 1, 5, tzinfo=UTC)
        assert "events_2031_11" in await drop_event_partitions(connection, before)
        assert await connection.fetchval("SELECT to_regclass('events_2031_12')") is None
        assert await connection.fetchval("SELECT to_regclass('events_2032_01')") is not None
        assert await connection.fetchval("SELECT to_regclass('events_rest')") is not None
