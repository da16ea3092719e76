"""Campaigns as a worker holds them: what many have in common is there once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailerd.campaigns import edition
from mailerd.campaigns.audience_store import AudienceStore
from mailerd.campaigns.edition import Editions
from mailerd.campaigns.templates.rendering import PreparedCache
from mailerd.campaigns.templates.store import TemplateStore
from mailerd.campaigns.trial import Trial
from mailerd.config import Config
from tests.campaigns.sending import Sending, sending_on


@pytest.fixture
async def sending(database: str, tmp_path: Path) -> AsyncIterator[Sending]:
    async with sending_on(database, tmp_path, Config()) as sending:
        yield sending


async def version(sending: Sending, campaign_id: int) -> int:
    found: int = await sending.pool.fetchval("SELECT version_id FROM campaign_runs WHERE campaign_id = $1", campaign_id)
    return found


async def test_campaigns_of_one_version_and_subject_share_what_is_prepared(sending: Sending) -> None:
    template = await sending.template()
    first, second = [await sending.begin(template=template) for _ in range(2)]
    other = await sending.begin(template=template, subject="Another")
    pinned = await version(sending, first)

    one, two, three = [await sending.editions.load(id_, pinned) for id_ in (first, second, other)]

    assert one.prepared is two.prepared
    assert three.prepared is not one.prepared
    assert three.prepared.compiled.subject == "Another"
    assert (await sending.editions.load(first, pinned)).prepared is one.prepared


async def test_what_nobody_has_any_more_is_let_go(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    template = await sending.template()
    kept = [await sending.begin(template=template) for _ in range(2)]
    last = await sending.begin(template=template, subject="Another")
    pinned = await version(sending, last)
    editions = Editions(sending.campaigns, TemplateStore(sending.pool), PreparedCache())
    for id_ in kept:
        await editions.load(id_, pinned)
    monkeypatch.setattr(edition, "MOST_BYTES", 1)

    await editions.load(last, pinned)

    assert [editions.known(id_, pinned) for id_ in kept] == [None, None]
    assert editions.known(last, pinned) is not None
    again = await editions.load(kept[0], pinned)
    assert editions.known(last, pinned) is None
    assert (await editions.load(kept[0], pinned)).prepared is again.prepared


async def test_what_was_prepared_to_be_checked_is_what_is_sent(sending: Sending) -> None:
    ready = PreparedCache()
    id_ = await sending.begin(subject="A subject")
    campaign = await sending.campaigns.get(id_, None)
    assert campaign is not None
    await Trial(sending.pool, AudienceStore(sending.pool), sending.clock, ready).sample(campaign, "1 Main St")
    pinned = await version(sending, id_)

    loaded = await Editions(sending.campaigns, TemplateStore(sending.pool), ready).load(id_, pinned)

    assert loaded.prepared is ready.get(pinned, "A subject")
