"""README's own commands for a backup, restoring it and upgrading PostgreSQL, on a database with something of all."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from mailerd import db
from mailerd.db import embedded
from mailerd.db.embedded import AS_ORDINARY_USER, EmbeddedPostgres
from tests.faults.laboratory import Laboratory, Mailerd, laboratory
from tests.faults.test_kills import assert_kept
from tests.support.campaign_run import CampaignRun
from tests.support.submitters import Submitters

README = (Path(__file__).parents[2] / "README.md").read_text()
TABLES = """
    SELECT c.oid::regclass::text AS name FROM pg_class AS c
     WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY name
"""
SEQUENCES = "SELECT sequencename::text AS name, last_value FROM pg_sequences ORDER BY name"


def commands(heading: str) -> str:
    """What README says to type under `heading`."""
    section = README.partition(f"\n### {heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert blocks, heading
    return "".join(blocks)


def type_in(directory: Path, data_dir: Path, words: str) -> None:
    """In a shell such as README says, with the directories of this test."""
    words = re.sub(r"^(DATA|PG)=.*\n", "", words, flags=re.MULTILINE)
    shell = (*AS_ORDINARY_USER, "bash", "-e") if os.geteuid() == 0 else ("bash", "-e")
    environ = os.environ | {"DATA": str(data_dir), "PG": str(embedded._programs())}
    done = subprocess.run(
        [*shell, "-c", words], cwd=directory, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()


async def contents(data_dir: Path) -> dict[str, int]:
    """The rows of each table, partitions too, and where the sequences are; the daemon is stopped."""
    server = EmbeddedPostgres(data_dir)
    await server.start()
    try:
        async with db.connected(server.url, patience=20) as connection:
            counts = {
                row["name"]: await connection.fetchval(f"SELECT count(*) FROM {row['name']}")
                for row in await connection.fetch(TABLES)
            }
            return counts | {row["name"]: row["last_value"] for row in await connection.fetch(SEQUENCES)}
    finally:
        await server.stop()


async def queued(lab: Laboratory) -> Submitters:
    """A campaign was sent, mail was delivered, and some waits for an exchanger that takes nothing."""
    run = CampaignRun(lab, 300, pace=60_000, prefix="before-")
    await run.start()
    await run.finished(60)
    load = lab.load(smtp=4, http=2)
    load.start()
    await load.until_promised(100)
    await lab.mx.tell("reset mail 1000000")  # on connections that are kept, too
    await load.until_promised(100)
    await load.stop()
    return load


async def test_after_an_upgrade_of_postgresql_all_rows_are_there_and_queued_mail_is_delivered(tmp_path: Path) -> None:
    async with laboratory(tmp_path) as lab:
        load = await queued(lab)
        await lab.daemon.stop()
        before = await contents(lab.daemon.data_dir)
        assert before["recipients"] > 50
        assert sum(rows for table, rows in before.items() if re.fullmatch("campaign_contacts_[0-9]+", table)) == 300
        assert sum(rows for table, rows in before.items() if re.fullmatch("events_[0-9]{4}_[0-9]{2}", table)) > 600

        type_in(tmp_path, lab.daemon.data_dir, commands("Upgrading") + commands("Restoring"))
        assert await contents(lab.daemon.data_dir) == before

        await lab.mx.tell("normal")
        await lab.daemon.start()
        assert_kept(await lab.verdict(load))


async def test_a_backup_of_a_running_mailerd_lives_on_another_machine(tmp_path: Path) -> None:
    async with laboratory(tmp_path) as lab:
        load = await queued(lab)
        old = lab.daemon
        type_in(tmp_path, old.data_dir, commands("Backup"))
        await old.stop()

        (tmp_path / "other").mkdir()
        lab.daemon = Mailerd(tmp_path / "other", lab.mx.port)
        lab.daemon.data_dir.mkdir(mode=0o700)
        shutil.copy(old.data_dir / "api-key", lab.daemon.data_dir)
        type_in(tmp_path, lab.daemon.data_dir, commands("Restoring"))
        await lab.mx.tell("normal")
        try:
            await lab.daemon.start()
            assert lab.daemon.api_key == old.api_key
            assert_kept(await lab.verdict(load))
            more = lab.load(smtp=0, http=2)  # with the key of before
            more.start()
            await more.until_promised(120)
            await more.stop()
            assert_kept(await lab.verdict(more))
        finally:
            await lab.daemon.end()
