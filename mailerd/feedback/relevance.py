"""Which aggregate reports are worth keeping: those about our domains and about our time (pure).

Nobody vouches for a report, and its sender chooses what it is about.
"""

from datetime import datetime, timedelta

import msgspec

from mailerd.config import Config
from mailerd.feedback.dmarc import DmarcReport
from mailerd.wire.address import domain_to_ascii, with_parents
from mailerd.wire.tls_report import Report as TlsReport

AHEAD = timedelta(days=1)  # that a clock may be, or a zone that was left out


class Relevance:
    """What `config` makes ours: `domains`, and the domains that their bounces and those of tenants come back to.

    A policy is published for a domain or one above it, and mail is sent from domains below: these are ours as well. A
    configuration without `domains` has none.
    """

    def __init__(self, config: Config) -> None:
        names = [*config.domains]
        names += [each.return_path for each in config.domains.values() if each.return_path]
        names += [each.return_path for each in config.tenants.values() if each.return_path]
        self._ours = frozenset(filter(None, map(_folded, names))) if config.domains else frozenset()
        self._above = frozenset(above for name in self._ours for above in with_parents(name) if "." in above)
        self._memory = timedelta(seconds=config.retention.events)

    def dmarc(self, report: DmarcReport, now: datetime) -> DmarcReport | None:
        """The report, if it is relevant."""
        return report if self._covers(report.domain) and self._timely(report.begins_at, report.ends_at, now) else None

    def tls(self, report: TlsReport, now: datetime) -> TlsReport | None:
        """What of the report is relevant."""
        policies = tuple(each for each in report.policies if self._covers(each.policy.policy_domain))
        dates = report.date_range
        if not policies or not self._timely(dates.start_datetime, dates.end_datetime, now):
            return None
        return msgspec.structs.replace(report, policies=policies)

    def _covers(self, domain: str) -> bool:
        name = _folded(domain)
        return name in self._above or any(above in self._ours for above in with_parents(name))

    def _timely(self, begins_at: datetime, ends_at: datetime, now: datetime) -> bool:
        """Without a zone, they are in UTC."""
        begin, end = (at if at.tzinfo is not None else at.replace(tzinfo=now.tzinfo) for at in (begins_at, ends_at))
        return now - self._memory <= begin and max(begin, end) <= now + AHEAD


def _folded(domain: str) -> str:
    try:
        return domain_to_ascii(domain.strip().rstrip("."))
    except ValueError:
        return ""
