"""Webhooks of a real daemon that is killed, under load: each event at least once, in order for each message."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
import pytest_asyncio

from tests.faults.laboratory import Laboratory, Mailerd, kill
from tests.faults.steps import OF_FOLLOWERS
from tests.support.ledger_mx import LedgerMx
from tests.support.webhook_receiver import Receiver

pytestmark = pytest.mark.asyncio(loop_scope="module")
MORE = "webhooks: {{allow_private: [localhost], timeout: 2s}}\nsinks: {{log: {{kind: jsonl, directory: {sink}}}}}\n"
COUNT = "SELECT count(*) FROM events WHERE type IN ('message.accepted', 'recipient.delivered')"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Laboratory]:
    directory: Path = tmp_path_factory.mktemp("webhooks")
    async with LedgerMx(directory) as mx:
        daemon = Mailerd(directory, mx.port)
        daemon.file.write_text(daemon.file.read_text() + MORE.format(sink=directory / "sink"))
        try:
            await daemon.start()
            yield Laboratory(directory, mx, daemon)
        finally:
            await daemon.end()


async def add(lab: Laboratory, url: str) -> str:
    """Make an endpoint for all events; its secret."""
    headers = {"Authorization": f"Bearer {lab.daemon.api_key}"}
    hooks = f"http://127.0.0.1:{lab.daemon.http_port}/api/v1/webhooks"
    body = {"url": url, "events": ["email.*"]}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(hooks, json=body) as response,
    ):
        made = await response.json()
        assert response.status == 201, made
    return str(made["secret"])


async def all_told(lab: Laboratory, receiver: Receiver) -> None:
    """Wait until each event of the database has come."""
    connection = await lab.daemon.connection()
    try:
        await lab.daemon.drained()
        count = await connection.fetchval(COUNT)
    finally:
        await connection.close()
    await receiver.until(lambda: len({taken.key for taken in receiver.taken}) >= count, 60)
    assert len({taken.key for taken in receiver.taken}) == count


def in_order(receiver: Receiver) -> bool:
    """Were events of a message first taken in their order? After a crash some come again."""
    firsts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for taken in receiver.taken:
        if taken.key not in seen:
            seen.add(taken.key)
            firsts.setdefault(taken.json["data"]["email_id"], []).append(taken.key)
    return all(keys == sorted(keys) for keys in firsts.values())


async def test_every_event_comes_in_order_though_the_daemon_is_killed_again_and_again(lab: Laboratory) -> None:
    async with Receiver(None) as receiver:
        receiver.secrets["/k"] = await add(lab, receiver.url("/k", host="localhost"))
        load = lab.load(smtp=4, http=0)
        load.start()
        for number in range(4):
            promised = len(load.promises.promised)
            await load.until_promised(promised + 150)
            if number % 2:
                await lab.daemon.kill()
            else:
                kill(lab.daemon.workers()[0], signal.SIGKILL)
                await asyncio.sleep(0.5)
            if lab.daemon.process.returncode is not None:
                await lab.daemon.start()
        await load.until_promised(len(load.promises.promised) + 100)
        await load.stop()
        await all_told(lab, receiver)
        assert in_order(receiver)


async def test_endpoint_and_sink_hear_all_in_order_though_their_process_is_killed_at_each_step(lab: Laboratory) -> None:
    async with Receiver(None) as receiver:
        receiver.secrets["/s"] = await add(lab, receiver.url("/s", host="localhost"))
        load = lab.load(smtp=4, http=0)
        load.start()
        for step in OF_FOLLOWERS:
            lab.daemon.arm(f"{step}=kill")
            await lab.daemon.fired()
            await load.until_promised(50)
        await load.stop()
        await lab.daemon.drained()
        told = load.promises.promised
        await receiver.until(lambda: {e["data"]["to"] for e in ended(receiver.events)} >= told, 60)
        assert in_order(receiver)
        async with asyncio.timeout(60):
            while not {line["data"]["to"] for line in ended(sink_lines(lab))} >= told:
                await asyncio.sleep(0.1)
        ids = [line["id"] for line in sink_lines(lab)]
        assert len(set(ids)) == len(ids)
        assert ids == sorted(ids)


def ended(events: list[Any]) -> list[Any]:
    return [event for event in events if event["type"] == "email.delivered"]


def sink_lines(lab: Laboratory) -> list[Any]:
    """What the sink has written, each line whole."""
    text = (lab.directory / "sink" / "log.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n")].splitlines()]


async def test_mail_goes_on_while_an_endpoint_hangs_and_it_gets_all_when_it_is_well(lab: Laboratory) -> None:
    forever = asyncio.Event()

    async with Receiver(None) as receiver:

        async def hang(_request: object) -> aiohttp.web.StreamResponse:
            await forever.wait()
            return aiohttp.web.Response()

        receiver.answer = hang
        receiver.secrets["/h"] = await add(lab, receiver.url("/h", host="localhost"))
        load = lab.load(smtp=4, http=0)
        load.start()
        await load.until_promised(300)
        await load.stop()
        await lab.daemon.drained()
        assert receiver.most_open <= 4
        assert not receiver.taken
        forever.set()
        receiver.answer = 200
        await receiver.until(lambda: len({taken.key for taken in receiver.taken}) >= 600, 60)
        assert in_order(receiver)
