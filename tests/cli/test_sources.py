"""`mailerd sources`, with a real name server and the database that nodes write to."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.db import connect_pool
from mailerd.delivery.source_checks import Check, State
from mailerd.delivery.source_watch import SourceStore
from tests.cli.conftest import lines
from tests.support.dns_server import DnsServer
from tests.support.live import command

CONFIG = """
hostname: mail.test
database: {{url: "{database}"}}
resolver: {{nameservers: ["{dns}"], timeout: 2s}}
sources:
  mta1: {{address: 127.0.0.5, ehlo: mta1.example.com}}
  mta2: {{address: {second}}}
  system: {{}}
pools:
  default: {{sources: [{{name: mta1}}, {{name: mta2}}]}}
  marketing: {{sources: [{{name: mta2}}]}}
"""


@pytest.fixture
def run(tmp_path, database):
    file = tmp_path / "mailerd.yaml"

    async def run(*arguments, dns="127.0.0.1:9", second="127.0.0.6", config=CONFIG):
        file.write_text(config.format(database=database, dns=dns, second=second))
        return await asyncio.to_thread(command, "sources", *arguments, "--config", str(file))

    return run


@pytest.fixture
async def store(database):
    async with await connect_pool(database, min=1, max=1) as pool:
        yield SourceStore(pool)


def check(source, name, state, text, *, minutes):
    since = datetime.now(UTC) - timedelta(minutes=minutes)
    return Check(source, name, State(state), text, since, since)


async def test_sources_are_listed_with_pools_state_and_what_is_wrong(run, store):
    await store.write(
        "here",
        [
            check("mta1", "bound", "ok", "127.0.0.5 is bound here", minutes=300),
            check("mta1", "spf", "warning", "example.com: softfail", minutes=200),
            check("mta1", "ptr", "failing", "127.0.0.5 has no PTR record", minutes=125),
            check("mta2", "bound", "ok", "127.0.0.6 is bound here", minutes=300),
        ],
    )

    told = lines(await run("--json"))
    assert [(each["source"], each["state"], each["pools"]) for each in told] == [
        ("mta1", "failing", ["default"]),
        ("mta2", "ok", ["default", "marketing"]),
        ("system", "unknown", []),
    ]
    assert told[0]["reason"] == "127.0.0.5 has no PTR record"
    assert [each["name"] for each in told[0]["checks"]] == ["bound", "ptr", "spf"]

    people = (await run()).out
    assert "2 h ago" in people
    assert "has no PTR record" in people
    assert "spf: example.com: softfail" in people
    assert "no node has looked yet" in people


async def test_with_several_nodes_a_source_is_shown_where_its_address_is(run, store):
    for node, state in (("here", "ok"), ("there", "failing")):
        await store.write(node, [check("mta1", "bound", state, f"bound on {node}", minutes=1)])
    await store.write("there", [check("mta2", "bound", "ok", "bound", minutes=1)])

    assert [(each["source"], each["node"]) for each in lines(await run("--json"))][:2] == [
        ("mta1", "here"),
        ("mta1", "there"),
    ]
    people = (await run()).out
    assert "bound on there" not in people
    assert people.count("mta1") == 1


async def test_nodes_that_are_gone_are_shown_only_when_no_node_runs(run, store, database):
    for node in ("gone", "here"):
        await store.write(node, [check("mta1", "bound", "ok", "bound", minutes=1)])
    done = await run("--json")
    assert [each["node"] for each in lines(done)][:2] == ["gone", "here"]
    assert "No daemon runs: as of 20" in done.err

    async with await connect_pool(database, min=1, max=1) as pool:
        await pool.execute("INSERT INTO workers (number, node, pid) VALUES (1, 'here', 1)")
    done = await run("--json")
    assert [each["node"] for each in lines(done) if each["source"] == "mta1"] == ["here"]
    assert done.err == ""


async def test_checking_now_needs_no_daemon_and_says_what_would_fail(run):
    async with DnsServer() as dns:
        done = await run("check", "--json", dns=dns.address, second="93.184.216.34")
    mta1, mta2, system = lines(done)
    assert done.status == os.EX_UNAVAILABLE
    assert (mta1["state"], system["state"]) == ("ok", "ok")
    assert {each["name"]: each["state"] for each in mta2["checks"]} == {
        "bound": "failing",
        "ptr": "failing",
        "ehlo": "failing",
    }

    people = await run("check", second="127.0.0.6")
    assert people.status == 0
    assert "127.0.0.6 is bound here" in people.out


async def test_without_sources_the_system_chooses(run):
    done = await run(config='database: {{url: "{database}"}}')
    assert done.status == 0
    assert "the system chooses" in done.err
