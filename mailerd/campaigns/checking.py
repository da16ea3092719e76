"""Gathers what the checks of a campaign look at (`compliance`): its template, its sender, the configuration."""

from collections.abc import Callable, Sequence
from datetime import datetime

from mailerd.campaigns.audience import Audience, AudienceError, read_audience
from mailerd.campaigns.audience_store import AudienceStore
from mailerd.campaigns.compliance import Facts, Finding, Past, Sample, errors, findings
from mailerd.campaigns.segments.conditions import Fault
from mailerd.campaigns.timing import past_zones
from mailerd.campaigns.trial import Trial
from mailerd.campaigns.values import Campaign
from mailerd.config import Config
from mailerd.intake.credentials import Credential, CredentialStore
from mailerd.wire.address import domain_to_ascii, parse_mailbox, with_parents


class Checker:
    """`thorough` counts the audience too: that takes up to a second, where the rest takes milliseconds."""

    def __init__(
        self,
        config: Callable[[], Config],
        trial: Trial,
        audiences: AudienceStore,
        credentials: CredentialStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._trial = trial
        self._audiences = audiences
        self._credentials = credentials
        self._clock = clock

    async def check(
        self, campaign: Campaign, credential: Credential | None, *, thorough: bool = False
    ) -> list[Finding]:
        """All that is found wrong or doubtful; `credential` is whose who sends it, None: any may."""
        config = self._config()
        address = self.postal_address(campaign)
        sample, failures = await self._trial.sample(campaign, address)
        audience = read_audience(campaign.audience)
        named = campaign.options.resend is not None or not audience.is_empty
        size, past = None, None
        if thorough and named and campaign.options.resend is None:
            try:
                if not errors(failures):
                    failures = [*failures, *await self._trial.preflight(campaign, address)]
                size = await self._size(campaign, audience)
                past = await self._past(campaign, audience)
            except AudienceError as error:
                failures = [*failures, *(_of_fault(fault) for fault in error.problems)]
        domain = _domain(campaign.sender_email)
        settings = next((config.domains[name] for name in with_parents(domain) if name in config.domains), None)
        return findings(
            Facts(
                sender_email=campaign.sender_email,
                reply_to=campaign.reply_to,
                stream=campaign.options.stream,
                pool=campaign.options.pool,
                postal_address=address,
                sample=sample,
                failures=failures,
                may_send_as=credential is None or credential.may_send_as(domain),
                domains=bool(config.domains),
                configured=settings is not None,
                signed=settings is not None and bool(settings.dkim),
                public_url=config.http.public_url if config.http is not None else None,
                streams=sorted(config.streams),
                pools=sorted(config.pools),
                audience=size,
                audience_named=named,
                past=past,
            )
        )

    async def _size(self, campaign: Campaign, audience: Audience) -> int | None:
        """About how many, and 0 only when there is nobody; None: nobody was found in time."""
        now = self._clock()
        found = await self._audiences.estimate(campaign.tenant, audience, now)
        if found.estimate or found.method == "exact":
            return found.estimate
        there = await self._audiences.anybody(campaign.tenant, audience, now)
        return None if there is None else int(there)

    async def _past(self, campaign: Campaign, audience: Audience) -> Past | None:
        """Those for whom the hour of the schedule is past when it begins; None: nobody."""
        at, now = campaign.schedule_time, self._clock()
        zones = past_zones(campaign.timing, at, now) if at is not None and campaign.status == "scheduled" else None
        if not zones:
            return None
        found = await self._audiences.estimate(campaign.tenant, audience, now, zones=sorted(zones))
        return Past(found.estimate, found.method == "exact", campaign.timing.past)

    async def at_schedule(self, campaign: Campaign) -> Sequence[Finding]:
        """The same when its time has come: whoever scheduled it may have lost the key meanwhile."""
        stored = await self._credentials.find_by_name(campaign.created_by)
        if stored is not None and stored.credential.disabled_at is not None:
            detail = f"The API key {campaign.created_by} that it was made with is disabled."
            return [Finding("credential_disabled", "error", detail)]
        return await self.check(campaign, None if stored is None else stored.credential)

    async def sample(self, campaign: Campaign, contact_id: int | None = None) -> tuple[Sample | None, list[Finding]]:
        """The mail as a made-up contact would get it, or that one, or why it cannot be rendered.

        Raises `trial.UnknownContactError`.
        """
        return await self._trial.sample(campaign, self.postal_address(campaign), contact_id)

    def postal_address(self, campaign: Campaign) -> str:
        """What the campaign says, or else its tenant."""
        tenant = self._config().tenants.get(campaign.tenant)
        return campaign.options.postal_address or (tenant.postal_address if tenant is not None else "")


def _of_fault(fault: Fault) -> Finding:
    return Finding(fault.code, "error", fault.detail, f"/audience{fault.pointer}")


def _domain(address: str) -> str:
    try:
        return domain_to_ascii(parse_mailbox(address).domain)
    except ValueError:
        return ""
