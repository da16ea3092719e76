"""An edition: a campaign that has begun, as all its recipients share it, with the version of its template it keeps.

What it says does not change while it is sent, but for its name, its pace and the like, which come with another
revision: whoever knows of a newer one has it read again, everybody else after `KEPT`.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from mailerd.campaigns.audience import Audience, read_audience
from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.rendering import Prepared, PreparedCache
from mailerd.campaigns.templates.store import TemplateStore
from mailerd.campaigns.values import Campaign
from mailerd.errors import MailerdError

KEPT = 60.0  # seconds
MOST_BYTES = 64_000_000  # of editions in memory of a worker
OWN_BYTES = 4_000  # of one, about, without its template
Look = tuple[int, str]  # a version of a template and the subject, which may be the campaign's


class NoEditionError(MailerdError):
    """It cannot be sent: the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Edition:
    """`lists` are those of the audience, `alone` when nothing else reaches its contacts. `name` is `cmp_17`."""

    campaign: Campaign
    version_id: int
    prepared: Prepared
    lists: tuple[int, ...]
    alone: bool
    name: str
    loaded: float

    @property
    def size(self) -> int:
        """Bytes that one mail of it will have, about."""
        compiled = self.prepared.compiled
        return compiled.size + len(compiled.text) + 1_000


class Editions:
    """Those that this worker has in hand. Campaigns of one version with one subject share what is prepared of it."""

    def __init__(
        self,
        campaigns: CampaignStore,
        templates: TemplateStore,
        ready: PreparedCache,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._campaigns = campaigns
        self._templates = templates
        self._ready = ready
        self._monotonic = monotonic
        self._kept: OrderedDict[tuple[int, int], Edition] = OrderedDict()
        self._prepared: dict[Look, Prepared] = {}
        self._users: Counter[Look] = Counter()  # editions that have it
        self._preparing = asyncio.Lock()
        self._bytes = 0

    def known(self, campaign_id: int, version_id: int, revision: int | None = None) -> Edition | None:
        """The edition, if it is here and not too old; of that revision of the campaign, if that is known."""
        edition = self._kept.get((campaign_id, version_id))
        if edition is None:
            return None
        if edition.campaign.revision != revision if revision is not None else self._monotonic() > edition.loaded + KEPT:
            return None
        self._kept.move_to_end((campaign_id, version_id))
        return edition

    async def load(self, campaign_id: int, version_id: int) -> Edition:
        """Read it. Raises NoEditionError when it is not there, or nothing that can be sent."""
        campaign = await self._campaigns.get(campaign_id, None)
        if campaign is None:
            raise NoEditionError("the campaign is not there any more")
        try:
            audience = await self._audience(campaign)
        except msgspec.ValidationError as error:
            raise NoEditionError(f"the audience cannot be read: {error}") from error
        prepared = await self._prepare(campaign, version_id)
        lists = (*audience.list_ids, *audience.segment_ids)  # either may name segments: of those nobody is asked
        edition = Edition(
            campaign,
            version_id,
            prepared,
            lists,
            bool(lists) and not audience.everyone and audience.conditions is None,
            campaign.name_outside,
            self._monotonic(),
        )
        self._keep(edition)
        return edition

    def _keep(self, edition: Edition) -> None:
        key, look = (edition.campaign.id, edition.version_id), _look(edition.campaign, edition.version_id)
        self._users[look] += 1  # before the old one goes, which may have been the last that had it
        self._bytes += OWN_BYTES
        if self._users[look] == 1:
            self._prepared[look] = edition.prepared
            self._bytes += edition.prepared.size
        if (old := self._kept.pop(key, None)) is not None:
            self._drop(old)
        self._kept[key] = edition
        while self._bytes > MOST_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._drop(oldest)

    def _drop(self, edition: Edition) -> None:
        look = _look(edition.campaign, edition.version_id)
        self._users[look] -= 1
        self._bytes -= OWN_BYTES
        if not self._users[look]:
            del self._users[look]
            self._bytes -= self._prepared.pop(look).size

    async def _audience(self, campaign: Campaign) -> Audience:
        """Of one that goes to those of another again that of the first, as far as it is known: its lists bind still."""
        known = {campaign.id}
        first = campaign
        while (resend := first.options.resend) is not None and resend.campaign not in known:
            known.add(resend.campaign)
            earlier = await self._campaigns.get(resend.campaign, campaign.tenant)
            if earlier is None:
                break
            first = earlier
        return read_audience(first.audience)

    async def _prepare(self, campaign: Campaign, version_id: int) -> Prepared:
        look = _look(campaign, version_id)
        async with self._preparing:  # one at a time: the others may want the same
            if (found := self._prepared.get(look)) is not None:
                return found
            if (found := self._ready.get(*look)) is not None:
                return found
            version = await self._templates.version(version_id)
            if version is None:
                raise NoEditionError("its version of the template is not there any more")
            compiled = version.compiled
            if campaign.subject:
                compiled = msgspec.structs.replace(compiled, subject=campaign.subject)
            try:
                prepared = await asyncio.to_thread(Prepared, compiled)  # a large one takes some 100 ms
            except Exception as error:  # it was checked when it was saved, but maybe by other rules
                raise NoEditionError(f"the template cannot be used: {error}"[:300]) from error
            self._ready.put(version_id, prepared, campaign.subject)
            return prepared


def _look(campaign: Campaign, version_id: int) -> Look:
    return version_id, campaign.subject
