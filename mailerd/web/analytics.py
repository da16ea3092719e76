"""Reports: what became of campaigns, `/api/v1/campaigns/{campaign_id}/analytics` and its kin, and of all mail.

They are read from roll-ups, which are as exact as the ledger; `stats/realtime` is of this moment, all others may be as
late as the replica that they are read on.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from aiohttp import web

from mailerd.campaigns.analytics.contact_engagement import Entry, Place, behind
from mailerd.campaigns.analytics.counts import COUNTS, Counts, added, in_queue
from mailerd.campaigns.analytics.periods import MAX_PERIODS, Granularity, TooManyPeriodsError, fitting, periods
from mailerd.campaigns.analytics.rates import RATES, percent, rate, rates
from mailerd.campaigns.analytics.reports import Subject
from mailerd.campaigns.contacts.csv_reading import without_formula
from mailerd.campaigns.zones import canonical_zone
from mailerd.queue.ids import CAMPAIGN, CONTACT, format_id, format_message_id, parse_id
from mailerd.web import problems
from mailerd.web.analytics_answers import (
    CampaignAnalytics,
    CampaignFigures,
    CampaignFiguresPage,
    CampaignRealtime,
    ContactEngagement,
    DomainFigures,
    DomainPage,
    DomainQuery,
    Figures,
    HistoryEntry,
    HistoryQuery,
    LinkFigures,
    LinkList,
    MachineFigures,
    MachineHits,
    MinuteFigures,
    PeriodFigures,
    ProviderFigures,
    ProviderList,
    RealtimeQuery,
    Report,
    ReportQuery,
    SeriesQuery,
    TopQuery,
)
from mailerd.web.bodies import Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

CSV = "text/csv"
PATH = "/api/v1/campaigns/{campaign_id}"
MAX_LINKS = 1_000
MAX_OFFSET = 1_000_000
MEAN = 5  # minutes
DEFAULT_RANGE = timedelta(days=30)
YEARS = range(2000, 2200)
METRICS = (*COUNTS, *RATES)
MINUTE_COUNTS = ("queued", "sent", "delivered", "bounced", "deferred", "opened", "clicked")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SKIP_BITS = 20
MAX_MICROSECONDS = int(timedelta(days=365 * 200) / MICROSECOND)


class Asked(NamedTuple):
    """A time series: its bounds, and what is shown of each period."""

    bounds: list[datetime]
    granularity: Granularity
    time_zone: str
    metrics: Sequence[str]

    @property
    def counts(self) -> list[str]:
        """That the metrics are made of."""
        parts = {name for metric in self.metrics for name in RATES.get(metric, (metric,))}
        return [name for name in COUNTS if name in parts]

    def local(self, at: datetime) -> str:
        """It by the clocks of the zone that was asked for, with their offset."""
        return at.astimezone(ZoneInfo(self.time_zone)).isoformat()


# -- a campaign


async def _subject(call: Call) -> Subject:
    """The campaign of the path; raises `ProblemError` (404)."""
    try:
        id_ = parse_id(CAMPAIGN, call.request.match_info["campaign_id"])
    except ValueError:
        id_ = 0
    found = await call.services.analytics.reports.campaign(id_, call.caller.tenant) if id_ else None
    if found is None:
        raise ProblemError(404, "not_found", "There is no such campaign of yours.")
    return found


async def show(call: Call) -> web.Response:
    subject = await _subject(call)
    counts = (await call.services.analytics.reports.totals([subject.id], late=True))[subject.id]
    machine = MachineFigures(
        opened=counts["machine_opened"],
        clicked=counts["machine_clicked"],
        opens=counts["machine_opens"],
        clicks=counts["machine_clicks"],
        open_rate=rate("machine_open_rate", counts),
        click_rate=rate("machine_click_rate", counts),
    )
    soft_bounced = counts["bounced"] - counts["hard_bounced"]
    more = {"soft_bounced": soft_bounced, "in_queue": in_queue(counts)}
    own = _shown(CampaignAnalytics, counts | rates(counts) | _facts(subject) | more)
    return json_answer(200, CampaignAnalytics(**own | {"machine": machine}))


async def realtime(call: Call) -> web.Response:
    query = call.query(RealtimeQuery)
    subject = await _subject(call)
    reports, now = call.services.analytics.reports, call.services.now()
    counts = (await reports.totals([subject.id]))[subject.id]
    bounds = periods(now - timedelta(minutes=max(query.minutes - 1, MEAN)), now + timedelta(seconds=1), "minute", UTC)
    series = await reports.series(subject.id, bounds, MINUTE_COUNTS, late=False)
    full = added(series[-1 - MEAN : -1])  # the last one is still going on
    before = counts["suppressed"] + counts["cancelled"] - counts["recalled"]
    minutes = [MinuteFigures(start=start, **each) for start, each in zip(bounds, series, strict=False)]
    pace = {f"{name}_per_minute": round(full.get(name, 0) / MEAN, 1) for name in ("queued", "sent", "delivered")}
    facts = {
        "at": now,
        "complete": subject.written,
        "waiting": max(0, subject.audience - counts["queued"] - before),
        "in_queue": in_queue(counts),
        "minutes": minutes[-query.minutes :],
    }
    return json_answer(200, CampaignRealtime(**_shown(CampaignRealtime, counts | pace | _facts(subject) | facts)))


def _facts(subject: Subject) -> dict[str, Any]:
    return {
        "campaign_id": format_id(CAMPAIGN, subject.id),
        "status": subject.status,
        "started_at": subject.started_at,
        "finished_at": subject.finished_at,
        "recipients": subject.audience,
    }


def _shown(type_: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the facts that the answer has."""
    return {name: facts[name] for name in type_.__struct_fields__ if name in facts}


# -- time series


async def timeseries(call: Call) -> web.Response:
    return json_answer(200, _report(*await _series(call)))


async def timeseries_csv(call: Call) -> web.Response:
    return _series_csv(*await _series(call), "timeseries.csv")


async def _series(call: Call) -> tuple[Asked, list[dict[str, int]]]:
    query = call.query(SeriesQuery)
    subject = await _subject(call)
    now = call.services.now()
    start = query.from_ or subject.started_at or subject.created_at
    asked = _asked(query, start, query.to or max(now, start))
    return asked, await call.services.analytics.reports.series(subject.id, asked.bounds, asked.counts)


async def reports(call: Call) -> web.Response:
    return json_answer(200, _report(*await _tenant_series(call)))


async def reports_csv(call: Call) -> web.Response:
    return _series_csv(*await _tenant_series(call), "report.csv")


async def _tenant_series(call: Call) -> tuple[Asked, list[dict[str, int]]]:
    query = call.query(ReportQuery)
    start, end = _range(call, query.from_, query.to)
    asked = _asked(query, start, end)
    return asked, await call.services.analytics.reports.tenant_series(call.caller.tenant, asked.bounds, asked.counts)


def _range(call: Call, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    end = _near("to", end or call.services.now())
    return _near("from", start or end - DEFAULT_RANGE), end


def _near(parameter: str, at: datetime) -> datetime:
    """It, if nothing that is done with it leaves the calendar."""
    if at.year not in YEARS:
        raise _wrong(parameter, "That is too far away.")
    return at


def _asked(query: SeriesQuery | ReportQuery, start: datetime, end: datetime) -> Asked:
    """What the query means. Raises `ProblemError` (422)."""
    if _near("to", end) < _near("from", start):
        raise _wrong("to", "It is before `from`.")
    try:
        zone = canonical_zone(query.time_zone)
    except ValueError as error:
        raise _wrong("time_zone", f"{error}.") from None
    granularity = query.granularity or fitting(start, end)
    if query.granularity is None and isinstance(query, ReportQuery) and granularity == "minute":
        granularity = "hour"
    try:
        bounds = periods(start, end, granularity, ZoneInfo(zone))
    except TooManyPeriodsError:
        detail = (
            f"That is more than {MAX_PERIODS:,} periods of one {granularity}: ask for a shorter range, or longer ones."
        )
        raise _wrong("granularity", detail) from None
    return Asked(bounds, granularity, zone, _metrics(query.metrics))


def _metrics(given: Sequence[str]) -> Sequence[str]:
    wanted = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in METRICS]:
        raise _wrong("metrics", f"There is no metric {unknown[0][:64]!r}; there are {', '.join(METRICS)}.")
    return list(dict.fromkeys(wanted)) or METRICS


def _wrong(parameter: str, detail: str) -> ProblemError:
    return problems.invalid([FieldError("invalid_value", detail, parameter=parameter)])


def _report(asked: Asked, series: Sequence[Counts]) -> Report:
    return Report(
        from_=asked.bounds[0],
        to=asked.bounds[-1],
        granularity=asked.granularity,
        time_zone=asked.time_zone,
        totals=Figures(**_figures(asked.metrics, added(series))),
        data=[
            PeriodFigures(start=start, local_start=asked.local(start), **_figures(asked.metrics, counts))
            for start, counts in zip(asked.bounds, series, strict=False)
        ],
    )


def _figures(metrics: Collection[str], counts: Counts) -> dict[str, Any]:
    return {name: rate(name, counts) if name in RATES else counts.get(name, 0) for name in metrics}


def _series_csv(asked: Asked, series: Sequence[Counts], name: str) -> web.Response:
    rows = [
        [start.isoformat(), asked.local(start), *_figures(asked.metrics, counts).values()]
        for start, counts in zip(asked.bounds, series, strict=False)
    ]
    return _csv(["start", "local_start", *asked.metrics], rows, name)


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]], name: str) -> web.Response:
    """No cell is taken for a formula; numbers stay numbers, also those below zero."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(heads)
    writer.writerows([without_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(text=out.getvalue(), content_type=CSV, charset="utf-8", headers=headers)


# -- by link, domain and provider


async def links(call: Call) -> web.Response:
    return json_answer(200, LinkList(data=await _links(call)))


async def links_csv(call: Call) -> web.Response:
    heads = list(LinkFigures.__struct_fields__)
    rows = [[getattr(each, name) for name in heads] for each in await _links(call)]
    return _csv(heads, rows, "links.csv")


async def _links(call: Call) -> list[LinkFigures]:
    subject = await _subject(call)
    reports = call.services.analytics.reports
    delivered = (await reports.totals([subject.id], late=True))[subject.id]["delivered"]
    return [
        LinkFigures(
            link=each.link,
            url=each.url,
            clicks=each.clicks,
            unique_clicks=each.clicked,
            click_rate=percent(each.clicked, delivered),
            machine_clicks=each.machine_clicks,
        )
        for each in await reports.links(subject.id, MAX_LINKS)
    ]


class _Sorted(Request, frozen=True):
    """What a cursor into sorted figures is good for."""

    what: str
    tenant: str
    of: str
    sort: str


async def domains(call: Call) -> web.Response:
    query = call.query(DomainQuery)
    subject = await _subject(call)
    filters = _Sorted("domains", call.caller.tenant, str(subject.id), query.sort)
    offset = _read_cursor(call, filters, query.cursor)
    found = await call.services.analytics.reports.domains(
        subject.id, sort=query.sort, limit=query.limit + 1, offset=offset
    )
    data = [
        DomainFigures(**_shown(DomainFigures, {"domain": each.domain, **each.counts, **rates(each.counts)}))
        for each in found[: query.limit]
    ]
    more, cursor = _next(call, filters, offset, len(found), query.limit)
    return json_answer(200, DomainPage(data=data, has_more=more, next_cursor=cursor))


async def providers(call: Call) -> web.Response:
    subject = await _subject(call)
    found = await call.services.analytics.providers(subject.id)
    data = [
        ProviderFigures(**_shown(ProviderFigures, {"provider": provider, **counts, **rates(counts)}))
        for provider, counts in found.items()
    ]
    return json_answer(200, ProviderList(data=sorted(data, key=lambda each: (-each.sent, each.provider))))


# -- all campaigns


async def campaigns(call: Call) -> web.Response:
    query = call.query(TopQuery)
    start, end = _range(call, query.from_, query.to)
    tenant = call.caller.tenant
    filters = _Sorted("campaigns", tenant, f"{query.from_} {query.to}", query.sort)
    offset = _read_cursor(call, filters, query.cursor)
    found = await call.services.analytics.reports.campaigns(
        tenant, start, end, sort=query.sort, limit=query.limit + 1, offset=offset
    )
    data = []
    for each in found[: query.limit]:
        facts = {
            "campaign_id": format_id(CAMPAIGN, each.campaign_id),
            "name": each.name,
            "status": each.status,
            "started_at": each.started_at,
        }
        data.append(CampaignFigures(**_shown(CampaignFigures, {**facts, **each.counts, **rates(each.counts)})))
    more, cursor = _next(call, filters, offset, len(found), query.limit)
    return json_answer(200, CampaignFiguresPage(data=data, has_more=more, next_cursor=cursor))


def _read_cursor(call: Call, filters: Request, cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        return call.tools.cursors.read(filters, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


def _next(call: Call, filters: Request, offset: int, found: int, limit: int) -> tuple[bool, str | None]:
    more = found > limit and offset + limit <= MAX_OFFSET
    return more, call.tools.cursors.make(filters, offset + limit) if more else None


# -- a contact


class _History(Request, frozen=True):
    """What a cursor into a history is good for."""

    tenant: str
    contact_id: int


async def engagement(call: Call) -> web.Response:
    query = call.query(HistoryQuery)
    try:
        id_ = parse_id(CONTACT, call.request.match_info["contact_id"])
    except ValueError:
        id_ = 0
    contacts = call.services.analytics.contacts
    found = await contacts.of(id_, call.caller.tenant) if id_ else None
    if found is None:
        raise ProblemError(404, "not_found", "There is no such contact of yours.")
    filters = _History(call.caller.tenant, id_)
    place = Place(EPOCH + MAX_MICROSECONDS * MICROSECOND, 0)
    if query.cursor is not None:
        moment, skip = divmod(_read_cursor(call, filters, query.cursor), 1 << SKIP_BITS)
        place = Place(EPOCH + moment * MICROSECOND, skip)
    entries = await contacts.history(id_, place, query.limit + 1)
    shown, more = entries[: query.limit], len(entries) > query.limit
    cursor = None
    if more:
        at, skip = behind(place, shown)
        cursor = call.tools.cursors.make(filters, ((at - EPOCH) // MICROSECOND) << SKIP_BITS | skip)
    answer = ContactEngagement(
        contact_id=format_id(CONTACT, id_),
        total_emails_sent=found.sent,
        total_opens=found.opens,
        total_clicks=found.clicks,
        last_opened=found.last_opened,
        last_clicked=found.last_clicked,
        last_sent=found.last_sent,
        total_delivered=found.delivered,
        total_bounced=found.bounced,
        campaigns_opened=found.campaigns_opened,
        campaigns_clicked=found.campaigns_clicked,
        machine=MachineHits(opens=found.machine_opens, clicks=found.machine_clicks),
        history=[_entry(entry) for entry in shown],
        has_more=more,
        next_cursor=cursor,
    )
    return json_answer(200, answer)


def _entry(entry: Entry) -> HistoryEntry:
    hit, clicked = entry.what in ("opened", "clicked"), entry.what == "clicked"
    return HistoryEntry(
        at=entry.at,
        type=entry.what,
        campaign_id=format_id(CAMPAIGN, entry.campaign_id),
        campaign_name=entry.campaign,
        email_id=None if entry.message_id is None else format_message_id(entry.message_id),
        actor=None if not hit else "machine" if entry.machine else "human",
        link=entry.link if clicked else None,
        url=entry.url if clicked else None,
    )


def _get(
    name: str, path: str, summary: str, handler: Any, answer: type, query: type[Request] | None = None
) -> Operation:
    return Operation(
        id=f"analytics.{name}",
        method="GET",
        path=path,
        scope="read",
        summary=summary,
        handler=handler,
        query=query,
        answers={200: (CSV if answer is str else JSON, answer)},
        problems=(404, 422),
    )


OPERATIONS = (
    _get("campaign", f"{PATH}/analytics", "What became of a campaign, in counts and rates", show, CampaignAnalytics),
    _get(
        "realtime",
        f"{PATH}/stats/realtime",
        "Where a campaign is now, and its last minutes",
        realtime,
        CampaignRealtime,
        RealtimeQuery,
    ),
    _get("timeseries", f"{PATH}/stats/timeseries", "A campaign over time", timeseries, Report, SeriesQuery),
    _get("timeseries_csv", f"{PATH}/stats/timeseries.csv", "The same as CSV", timeseries_csv, str, SeriesQuery),
    _get("links", f"{PATH}/links", "The links of a campaign, and who clicked them", links, LinkList),
    _get("links_csv", f"{PATH}/links.csv", "The same as CSV", links_csv, str),
    _get("domains", f"{PATH}/domains", "A campaign by the domains of its addresses", domains, DomainPage, DomainQuery),
    _get("providers", f"{PATH}/providers", "A campaign by mailbox providers", providers, ProviderList),
    _get(
        "engagement",
        "/api/v1/contacts/{contact_id}/engagement",
        "What a contact got from campaigns and did with them, with its history",
        engagement,
        ContactEngagement,
        HistoryQuery,
    ),
    _get("reports", "/api/v1/analytics/reports", "All campaigns over time", reports, Report, ReportQuery),
    _get("reports_csv", "/api/v1/analytics/reports.csv", "The same as CSV", reports_csv, str, ReportQuery),
    _get(
        "campaigns", "/api/v1/analytics/campaigns", "Campaigns side by side", campaigns, CampaignFiguresPage, TopQuery
    ),
)
