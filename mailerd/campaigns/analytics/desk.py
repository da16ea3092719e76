"""What reports are made of, for whoever answers them: by the caller's own words, and with the names of providers."""

import asyncio
from collections.abc import Callable, Sequence

from mailerd.campaigns.analytics.contact_engagement import ContactEngagementStore
from mailerd.campaigns.analytics.counts import Counts
from mailerd.campaigns.analytics.reading import Reading
from mailerd.campaigns.analytics.reports import REST, ReportStore
from mailerd.config.shaping import DEFAULT
from mailerd.delivery.explain import hosts_of

STEP = 500  # sites after which others have their turn
OF_PROVIDERS = (
    "sent",
    "delivered",
    "bounced",
    "hard_bounced",
    "failed",
    "in_doubt",
    "deferred",
    "complained",
    "unsubscribed",
    "opened",
    "clicked",
    "machine_opened",
)
UNKNOWN = "unknown"  # of domains that nobody answered for

ProviderOf = Callable[[str, Sequence[str]], str]  # of a domain and the hosts that take its mail


class AnalyticsDesk:
    """`reports` and `contacts` read; `provider_of` is that of the shaping rules in force."""

    def __init__(self, reading: Reading, provider_of: ProviderOf) -> None:
        self.reports = ReportStore(reading)
        self.contacts = ContactEngagementStore(reading)
        self._reading = reading
        self._provider_of = provider_of

    async def providers(self, campaign_id: int) -> dict[str, Counts]:
        """The counts of `OF_PROVIDERS` by mailbox provider, as the shaping rules name them now.

        All other sites are `default`. Of small domains only the hosts tell, and the smallest of very many sites are
        `default` whoever they are.
        """
        found: dict[str, list[int]] = {}
        for n, (domain, site, counts) in enumerate(await self.reports.sites(campaign_id, OF_PROVIDERS)):
            if n % STEP == 0:
                await asyncio.sleep(0)
            sums = found.setdefault(self._provider(domain, site), [0] * len(counts))
            for place, count in enumerate(counts):
                sums[place] += count
        return {provider: dict(zip(OF_PROVIDERS, sums, strict=True)) for provider, sums in found.items()}

    def _provider(self, domain: str, site: str) -> str:
        if not site:
            return UNKNOWN
        return DEFAULT if site == REST else self._provider_of(domain, hosts_of(site))

    async def close(self) -> None:
        await self._reading.close()
