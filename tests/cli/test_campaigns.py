"""`mailerd campaigns`, called in this process, on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.store import CampaignStore
from mailerd.cli import campaigns, output
from mailerd.cli.app import run as run_command
from mailerd.cli.campaign_drawing import draw_list
from mailerd.db import Pool, connect_pool
from tests.campaigns.making import make_campaign, make_list, make_template
from tests.support.live import Finished

Run = Callable[..., Awaitable[Finished]]
CONFIG = """
hostname: mail.test
database: {{url: "{url}"}}
http: {{public_url: "https://mail.example.com"}}
tenants: {{default: {{postal_address: 1 Main Street}}}}
"""


@pytest.fixture
def run(tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]) -> Run:
    file = tmp_path / "mailerd.yaml"
    file.write_text(CONFIG.format(url=database))

    async def run(*arguments: str) -> Finished:
        status = await asyncio.to_thread(run_command, ["campaigns", *arguments, "--config", str(file)])
        out, err = capsys.readouterr()
        return Finished(status, out, err)

    return run


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=2)
    yield pool
    await pool.close()


async def shown(run: Run, campaign: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await run("show", campaign, "--json")).out)
    return found


async def test_a_campaign_is_sent_shown_steered_and_ends(run: Run, pool: Pool) -> None:
    campaign = (await make_campaign(pool, audience={"list_ids": [await make_list(pool, "ann")]})).name_outside

    assert "is sending" in (await run("send", campaign, "--yes")).out
    assert (await shown(run, campaign))["status"] == "sending"
    assert (await run("pause", campaign, "--reason", "typo")).status == 0
    told = (await run("show", campaign)).out
    assert "typo" in told
    assert "it is paused" in told
    assert (await run("resume", campaign)).status == 0
    assert "is cancelled" in (await run("cancel", campaign, "--yes")).out
    refused = await run("resume", campaign)
    assert refused.status != 0
    assert "is cancelled and cannot be resumed" in refused.err
    actors = await pool.fetch("SELECT DISTINCT actor FROM audit WHERE action LIKE 'campaign.%'")
    assert [row["actor"].partition(":")[0] for row in actors] == ["cli"]


async def test_what_keeps_it_from_being_sent_is_told_instead(run: Run, pool: Pool) -> None:
    template = await make_template(pool, html="<p>News</p>", text="News")
    campaign = await make_campaign(pool, template_id=template)

    refused = await run("send", campaign.name_outside, "--yes")

    assert refused.status != 0
    assert "unsubscribe_url" in refused.err
    assert (await shown(run, campaign.name_outside))["status"] == "draft"


async def test_before_it_asks_it_checks_and_says_to_how_many(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(campaigns, "confirm", asked.append)
    audience = {"list_ids": [await make_list(pool, "ann", "bob")]}
    good = await make_campaign(pool, audience=audience)
    over = await make_campaign(pool, audience=audience, status="sent")
    nobody = await make_campaign(pool)

    for campaign in (over, nobody):
        assert (await run("send", campaign.name_outside)).status != 0
    assert (await run("cancel", over.name_outside)).status != 0
    assert (await run("send", "cmp_999")).status != 0
    assert asked == []
    assert (await run("send", good.name_outside)).status == 0
    assert (await run("cancel", good.name_outside)).status == 0
    assert asked == [
        f"Send {good.name_outside} (Spring) to 2 contacts now?",
        f"Cancel {good.name_outside} (Spring) for good?",
    ]


async def test_a_campaign_is_checked_copied_and_scheduled(run: Run, pool: Pool) -> None:
    audience = {"list_ids": [await make_list(pool, "ann")]}
    bare = await make_campaign(pool)
    good = (await make_campaign(pool, audience=audience)).name_outside

    checked = await run("check", bare.name_outside)
    assert (checked.status, "Say in" in checked.out) == (1, True)
    assert (await run("check", good)).status == 0
    copied = json.loads((await run("duplicate", good, "--name", "Again", "--json")).out)
    assert (copied["status"], (await shown(run, copied["campaign_id"]))["name"]) == ("draft", "Again")
    done = await run("schedule", good, "--at", "2097-01-01T09:00:00Z")
    assert (done.status, "2097-01-01 09:00:00Z" in done.out) == (0, True)
    assert (await shown(run, good))["status"] == "scheduled"
    assert "over already" in (await run("schedule", good, "--at", "2020-01-01")).err


async def test_what_came_of_a_campaign_is_shown(run: Run, pool: Pool) -> None:
    campaign = await make_campaign(pool, status="sent")
    await pool.execute(
        "INSERT INTO campaign_totals (campaign_id, queued, sent, delivered, opened, deferred, recalled)"
        " VALUES ($1, 1019, 10, 8, 2, 1234, 2)",
        campaign.id,
    )

    told = json.loads((await run("analytics", campaign.name_outside, "--json")).out)
    assert (told["delivered"], told["open_rate"], told["deferred"], told["in_queue"]) == (8, 25.0, 1234, 1007)
    lines = [line.split() for line in (await run("analytics", campaign.name_outside)).out.splitlines()]
    assert ["open", "rate", "25.00", "%"] in lines
    assert ["in", "queue", "1,007"] in lines
    assert ["deferred", "1,234"] in lines


async def test_a_test_mail_is_asked_of_the_daemon(
    run: Run, tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers["Authorization"], await request.json()))
        if request.path.endswith("cmp_2/test"):
            return web.json_response({"detail": "There is no such campaign of yours."}, status=404)
        return web.json_response({"data": [{"to": "me@shop.example", "email_id": "msg_1", "detail": ""}]}, status=202)

    app = web.Application()
    app.router.add_post("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    monkeypatch.setenv("MAILERD_API_KEY", "secret")
    file = tmp_path / "mailerd.yaml"
    file.write_text(file.read_text().replace("http: {", f'http: {{bind: "127.0.0.1:{unused_tcp_port}", '))

    sent = await run("test", "cmp_1", "--to", "me@shop.example", "--contact", "con_7")
    refused = await run("test", "cmp_2", "--to", "me@shop.example")
    await runner.cleanup()

    assert "me@shop.example: msg_1" in sent.out
    wanted = {"to": ["me@shop.example"], "contact_id": "con_7"}
    assert asked[0] == ("/api/v1/campaigns/cmp_1/test", "Bearer secret", wanted)
    assert "no such campaign" in refused.err
    assert "does not answer" in (await run("test", "cmp_1", "--to", "me@shop.example")).err


async def test_a_terminal_of_80_columns_shows_a_campaign_a_line(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    template = await make_template(pool)
    rule = Recurrence(every="week", at="09:00", days=["mon"])
    for name in ("Autumn offers for our readers", "Spring"):
        await make_campaign(pool, template_id=template, name=name, status="scheduled", recurrence=rule)
    told = StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(file=told, width=80, markup=False, highlight=False))

    draw_list(await CampaignStore(pool).list("default", statuses=None, limit=9, before=None), as_json=False)

    lines = told.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("cmp_" in line and "scheduled" in line for line in lines) == 2
    assert "every week" in told.getvalue()


async def test_campaigns_are_listed_and_so_are_their_recipients(run: Run, pool: Pool) -> None:
    await make_list(pool, "ann", "bob")
    template = await make_template(pool)
    await make_campaign(pool, template_id=template)
    over = await make_campaign(pool, template_id=template, name="Winter", status="sent")
    await pool.execute(
        "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, reason)"
        " SELECT $1, id, now(), false, CASE first_name WHEN 'ann' THEN 2 ELSE 5 END,"
        " CASE first_name WHEN 'ann' THEN '' ELSE 'unsubscribed' END FROM contacts",
        over.id,
    )

    assert "Winter" in (await run("list")).out
    only = json.loads((await run("list", "--status", "sent", "--json")).out)
    assert (only["campaign_id"], only["status"]) == (over.name_outside, "sent")
    not_reached = await run("recipients", over.name_outside, "--status", "suppressed", "--json")
    assert [json.loads(not_reached.out)[name] for name in ("email", "reason")] == ["bob@example.net", "unsubscribed"]
    assert "ann@example.net" in (await run("recipients", over.name_outside)).out


async def test_recipients_are_asked_for_by_what_they_did(run: Run, pool: Pool) -> None:
    """The words are those of the API; what machines did is told, and is not what people did."""
    await make_list(pool, "ann", "bob", "cid", "dan")
    over = await make_campaign(pool, status="sent")
    await pool.execute(
        "INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, marks)"
        " SELECT $1, id, now(), false, CASE first_name WHEN 'dan' THEN 3 ELSE 2 END,"
        " CASE first_name WHEN 'ann' THEN 1 | 4 | 8 WHEN 'bob' THEN 1 | 16 WHEN 'cid' THEN 2 | 8 | 32 ELSE 0 END"
        " FROM contacts",
        over.id,
    )

    async def found(*options: str) -> list[str]:
        told = await run("recipients", over.name_outside, *options, "--json")
        assert told.status == 0, told.err
        return [json.loads(line)["email"][:3] for line in told.out.splitlines()]

    assert await found("--opened") == ["ann", "bob"]
    assert await found("--not-opened") == ["cid", "dan"]
    assert await found("--opened", "--not-clicked") == ["bob"]
    assert await found("--clicked") == ["ann"]
    assert await found("--unsubscribed") == ["bob"]
    assert await found("--not-unsubscribed", "--status", "delivered") == ["ann", "cid"]
    assert await found("--complained") == ["cid"]
    assert await found("--not-complained") == ["ann", "bob", "dan"]
    rows = [json.loads(line) for line in (await run("recipients", over.name_outside, "--json")).out.splitlines()]
    assert [(row["clicked"], row["machine_clicked"]) for row in rows] == [
        (True, False), (False, False), (False, True), (False, False)
    ]  # fmt: skip


async def test_a_campaign_of_another_tenant_is_none(run: Run, pool: Pool) -> None:
    campaign = await make_campaign(pool, tenant="other")

    refused = await run("show", campaign.name_outside)

    assert (refused.status != 0, "has no campaign" in refused.err) == (True, True)
    assert (await run("show", campaign.name_outside, "--tenant", "other")).status == 0
    assert (await run("show", "17")).status != 0
