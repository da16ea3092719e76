"""Reports over HTTP: the documents' keys and formulas, whole periods, and nothing of other tenants."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

from mailerd import events
from mailerd.campaigns.analytics.follower import CampaignFollower
from mailerd.events import Event, Position, Recorded
from mailerd.feedback.following import Following
from tests.web.conftest import Api

HOUR = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
CAMPAIGN = """
    INSERT INTO campaigns (tenant, name, template_id, sender_email, created_by, status, created_at, started_at)
    VALUES ($1, $2, 1, 'news@example.com', 'test', 'sending', $3, $3) RETURNING id
"""
RUN = """
    INSERT INTO campaign_runs (campaign_id, tenant, version_id, written, total, next_at, started_at)
    VALUES ($1, $2, 1, true, $3, $4, $4)
"""
LEDGER = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, message_id)
    SELECT $1, $2::bigint + n, $4, false, 1, $1::bigint * 1000 + n FROM generate_series(1, $3::int) AS n
"""
CONTACT = "INSERT INTO contacts (tenant, email, address) VALUES ($1, $2, $2) RETURNING id"
WORDS = ("delivered",) * 6 + ("bounced", "expired")
PERSON = {"actor": "human"}


class Sent:
    """A campaign whose mail was handed over to contacts 1 to `mailed` behind `base`."""

    def __init__(self, api: Api, id_: int, tenant: str, base: int) -> None:
        self.api = api
        self.id = id_
        self.tenant = tenant
        self.base = base
        self.path = f"/api/v1/campaigns/cmp_{id_}"

    async def happened(self, *told: tuple[int, str, timedelta, dict[str, Any]]) -> None:
        """(contact, word, when after `HOUR`, data), counted at once."""
        follower = CampaignFollower(Following("", self.api.relay.pool))
        recorded = [
            Recorded(Position(1, n), self._event(contact, word, HOUR + after, data))
            for n, (contact, word, after, data) in enumerate(told)
        ]
        async with self.api.relay.pool.acquire() as connection, connection.transaction():
            await follower.read(recorded, connection)

    def _event(self, contact: int, word: str, at: datetime, data: dict[str, Any]) -> Event:
        message, address = self.id * 1000 + contact, f"u{contact}@{'g' if contact % 2 else 'd'}{contact % 3}.example"
        return Event(at, f"recipient.{word}", message, 1, address, self.tenant, data, "m", f"cmp_{self.id}")


async def sent(api: Api, *, tenant: str = "default", mailed: int = 10, base: int = 0, name: str = "News") -> Sent:
    pool = api.relay.pool
    id_ = await pool.fetchval(CAMPAIGN, tenant, name, HOUR)
    await pool.execute(RUN, id_, tenant, mailed + 5, HOUR)
    await pool.execute(LEDGER, id_, base, mailed, HOUR)
    await pool.execute("INSERT INTO campaign_totals (campaign_id, queued) VALUES ($1, $2)", id_, mailed)
    return Sent(api, id_, tenant, base)


async def story(api: Api) -> Sent:
    """8 of 10 have an outcome; 3 people open (one twice) and 2 click, a machine opens two."""
    campaign = await sent(api)
    await campaign.happened(
        *((n, word, timedelta(minutes=n), {"site": "mx.example"}) for n, word in enumerate(WORDS, 1)),
        *((n, "opened", timedelta(hours=1, minutes=n), PERSON) for n in (1, 2, 3, 1)),
        *((n, "opened", timedelta(minutes=20), {"actor": "prefetch"}) for n in (3, 4)),
        (1, "clicked", timedelta(hours=2), PERSON | {"link": 1, "url": "=cmd"}),
        (2, "clicked", timedelta(hours=2), PERSON | {"link": 1, "url": "other"}),
        (1, "clicked", timedelta(hours=26), PERSON | {"link": 2, "url": "https://x.example/"}),
        (5, "clicked", timedelta(hours=2), {"actor": "scanner", "link": 2, "url": "https://x.example/"}),
        (1, "unsubscribed", timedelta(hours=3), {}),
        (6, "bounced", timedelta(hours=27), {"kind": "invalid_recipient", "late": True}),
    )
    return campaign


async def test_analytics_have_the_documents_keys_and_formulas(api: Api) -> None:
    campaign = await story(api)

    answer = (await api.ask("GET", f"{campaign.path}/analytics", key="reader")).json

    expected = {
        "campaign_id": f"cmp_{campaign.id}", "status": "sending", "recipients": 15, "queued": 10, "sent": 8,
        "delivered": 5, "opened": 3, "clicked": 2, "bounced": 2, "hard_bounced": 1, "soft_bounced": 1, "failed": 1,
        "unsubscribed": 1, "complained": 0, "opens": 4, "clicks": 3,
        "open_rate": 60.0, "click_rate": 40.0, "click_to_open_rate": 66.67, "bounce_rate": 25.0,
        "unsubscribe_rate": 20.0, "complaint_rate": 0.0, "deliverability_rate": 62.5,
    }  # fmt: skip
    assert {name: answer[name] for name in expected} == expected
    assert answer["machine"] == {
        "opened": 1, "clicked": 1, "opens": 2, "clicks": 1, "open_rate": 20.0, "click_rate": 20.0
    }  # fmt: skip


async def test_a_campaign_that_nothing_happened_to_has_zeros(api: Api) -> None:
    id_ = await api.relay.pool.fetchval(CAMPAIGN, "default", "Draft", HOUR)
    path = f"/api/v1/campaigns/cmp_{id_}"

    answer = (await api.ask("GET", f"{path}/analytics")).json
    now = (await api.ask("GET", f"{path}/stats/realtime")).json

    assert (answer["sent"], answer["open_rate"], answer["click_to_open_rate"]) == (0, 0.0, 0.0)
    assert (now["waiting"], now["in_queue"], now["complete"], now["sent_per_minute"]) == (0, 0, False, 0.0)
    assert (await api.ask("GET", f"{path}/links")).json == {"data": []}
    assert (await api.ask("GET", f"{path}/providers")).json == {"data": []}
    assert (await api.ask("GET", f"{path}/domains")).json == {"data": [], "has_more": False, "next_cursor": None}


async def test_realtime_says_what_waits_and_how_fast_it_goes(api: Api) -> None:
    campaign = await story(api)
    api.relay.clock.now = HOUR + timedelta(minutes=8, seconds=30)

    answer = (await api.ask("GET", f"{campaign.path}/stats/realtime?minutes=7")).json

    assert (answer["waiting"], answer["in_queue"], answer["recipients"], answer["sent"]) == (5, 2, 15, 8)
    assert answer["complete"] is True
    assert answer["sent_per_minute"] == 1.0  # of the minutes 3 to 7
    assert [each["sent"] for each in answer["minutes"]] == [1] * 7
    assert answer["minutes"][0]["start"] == "2026-11-20T10:02:00Z"
    await campaign.happened((9, "withheld", timedelta(minutes=9), {}), (10, "cancelled", timedelta(minutes=9), {}))
    answer = (await api.ask("GET", f"{campaign.path}/stats/realtime")).json
    assert (answer["waiting"], answer["in_queue"], answer["suppressed"], answer["cancelled"]) == (5, 0, 1, 1)
    assert len(answer["minutes"]) == 30


async def test_a_time_series_has_every_period_and_sums_to_the_totals(api: Api) -> None:
    campaign = await story(api)
    api.relay.clock.now = HOUR + timedelta(hours=28)
    whole = (await api.ask("GET", f"{campaign.path}/analytics")).json

    for granularity, points in (("minute", 28 * 60), ("hour", 28), ("day", 2), ("week", 1), ("month", 1)):
        answer = (await api.ask("GET", f"{campaign.path}/stats/timeseries?granularity={granularity}")).json
        assert len(answer["data"]) == points
        for name in ("sent", "delivered", "opened", "clicked", "bounced", "opens", "clicks"):
            assert sum(each[name] for each in answer["data"]) == answer["totals"][name] == whole[name]
        assert answer["totals"]["open_rate"] == whole["open_rate"]
    hours = (await api.ask("GET", f"{campaign.path}/stats/timeseries?metrics=delivered,open_rate&metrics=opens")).json
    assert hours["granularity"] == "hour"
    assert hours["data"][0] == {
        "start": "2026-11-20T10:00:00Z", "local_start": "2026-11-20T10:00:00+00:00", "delivered": 6, "open_rate": 0.0,
        "opens": 0,
    }  # fmt: skip
    assert hours["data"][27]["delivered"] == -1  # the late bounce takes it back


async def test_periods_are_those_of_the_time_zone(api: Api) -> None:
    campaign = await story(api)
    midnight = timedelta(hours=8, minutes=30)  # in India
    for minutes in (-1, 0, 1):
        click = PERSON | {"link": 1, "url": "other"}
        await campaign.happened((3, "clicked", midnight + timedelta(minutes=minutes), click))
    query = "from=2026-11-20T10:00:00Z&to=2026-11-21T14:00:00Z&granularity=day&metrics=sent,clicks"

    kolkata = (await api.ask("GET", f"{campaign.path}/stats/timeseries?{query}&time_zone=asia/kolkata")).json
    report = (await api.ask("GET", f"/api/v1/analytics/reports?{query}&time_zone=Asia/Kolkata")).json

    assert kolkata["time_zone"] == "Asia/Kolkata"
    assert [each["start"] for each in kolkata["data"]] == ["2026-11-19T18:30:00Z", "2026-11-20T18:30:00Z"]
    days = ["2026-11-20T00:00:00+05:30", "2026-11-21T00:00:00+05:30"]
    assert [each["local_start"] for each in kolkata["data"]] == days
    assert [each["clicks"] for each in kolkata["data"]] == [3, 3]
    assert report["data"] == kolkata["data"]
    for path in (f"{campaign.path}/stats/timeseries.csv", "/api/v1/analytics/reports.csv"):
        file = (await api.ask("GET", f"{path}?{query}&time_zone=Asia/Kolkata")).text
        assert [each["local_start"] for each in csv.DictReader(io.StringIO(file))] == days


async def test_an_hour_that_comes_twice_is_told_by_its_offset(api: Api) -> None:
    query = "from=2026-10-25T00:00:00Z&to=2026-10-25T03:00:00Z&granularity=hour&time_zone=Europe/Berlin&metrics=sent"

    report = (await api.ask("GET", f"/api/v1/analytics/reports?{query}")).json

    assert [each["local_start"] for each in report["data"]] == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]


WRONG = (
    ("from=2026-11-20T10:00:00Z&to=2026-11-19T10:00:00Z", "to"),
    ("from=1970-01-01T10:00:00Z", "from"),
    ("to=9999-12-31T23:59:59Z", "to"),
    ("from=2026-01-01T00:00:00Z&to=2200-01-01T00:00:00Z", "to"),
    ("from=2000-01-01T00:00:00Z&to=2026-01-01T00:00:00Z&granularity=hour", "granularity"),
    ("from=2026-01-01T00:00:00", "from"),
    ("from=yesterday", "from"),
    ("granularity=second", "granularity"),
    ("time_zone=Europe/Atlantis", "time_zone"),
    ("time_zone=../../etc/passwd", "time_zone"),
    ("metrics=sent,sum(1)", "metrics"),
    ("mertics=sent", "mertics"),
)


async def test_what_cannot_be_a_time_series_is_refused_by_name(api: Api) -> None:
    id_ = await api.relay.pool.fetchval(CAMPAIGN, "default", "x", HOUR)

    for path in (f"/api/v1/campaigns/cmp_{id_}/stats/timeseries", "/api/v1/analytics/reports"):
        for suffix in ("", ".csv"):
            for query, parameter in WRONG:
                answer = await api.ask("GET", f"{path}{suffix}?{query}")
                assert answer.status == 422, query
                assert answer.problem.errors[0].parameter == parameter, query


async def test_links_domains_and_providers_add_up(api: Api) -> None:
    campaign = await story(api)

    links = (await api.ask("GET", f"{campaign.path}/links")).json["data"]
    assert links == [
        {"link": 1, "url": "=cmd", "clicks": 2, "unique_clicks": 2, "click_rate": 40.0, "machine_clicks": 0},
        {"link": 2, "url": "https://x.example/", "clicks": 1, "unique_clicks": 1, "click_rate": 20.0,
         "machine_clicks": 1},
    ]  # fmt: skip
    domains, query = [], "?limit=2&sort=opened"
    while query:
        page = (await api.ask("GET", f"{campaign.path}/domains{query}")).json
        domains += page["data"]
        query = f"?limit=2&sort=opened&cursor={page['next_cursor']}" if page["has_more"] else ""
    assert [each["domain"] for each in domains[:3]] == ["d2.example", "g0.example", "g1.example"]
    assert sum(each["sent"] for each in domains) == 8
    assert len(domains) == 6
    providers = (await api.ask("GET", f"{campaign.path}/providers")).json["data"]
    assert [(each["provider"], each["sent"], each["opened"]) for each in providers] == [
        ("default", 4, 1),
        ("google", 4, 2),
    ]
    wrong = await api.ask("GET", f"{campaign.path}/domains?sort=sent&cursor={'x' * 40}")
    assert (wrong.status, wrong.json["code"]) == (400, "invalid_cursor")


async def test_csv_has_the_same_figures_and_no_formula(api: Api) -> None:
    campaign = await story(api)
    query = "from=2026-11-20T10:00:00Z&to=2026-11-21T14:00:00Z&granularity=hour&metrics=delivered,open_rate"

    links = list(csv.DictReader(io.StringIO((await api.ask("GET", f"{campaign.path}/links.csv")).text)))
    series = await api.ask("GET", f"{campaign.path}/stats/timeseries.csv?{query}")
    rows = list(csv.reader(io.StringIO(series.text)))
    report = await api.ask("GET", f"/api/v1/analytics/reports.csv?{query}")

    assert (links[0]["url"], links[0]["clicks"]) == ("'=cmd", "2")
    assert rows[0] == ["start", "local_start", "delivered", "open_rate"]
    assert (rows[1], rows[28]) == (
        ["2026-11-20T10:00:00+00:00", "2026-11-20T10:00:00+00:00", "6", "0.0"],
        ["2026-11-21T13:00:00+00:00", "2026-11-21T13:00:00+00:00", "-1", "0.0"],
    )
    assert report.text == series.text
    assert "attachment" in series.headers["Content-Disposition"]


async def test_campaigns_stand_side_by_side(api: Api) -> None:
    first = await story(api)
    second = await sent(api, base=100, name="Other")
    await second.happened((1, "delivered", timedelta(0), {}), (1, "opened", timedelta(0), PERSON))
    query = "?from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z"

    by_sent = (await api.ask("GET", f"/api/v1/analytics/campaigns{query}&sort=sent")).json["data"]
    by_rate = (await api.ask("GET", f"/api/v1/analytics/campaigns{query}&sort=open_rate&limit=1")).json
    rest = (
        await api.ask(
            "GET", f"/api/v1/analytics/campaigns{query}&sort=open_rate&limit=1&cursor={by_rate['next_cursor']}"
        )
    ).json

    assert [each["campaign_id"] for each in by_sent] == [f"cmp_{first.id}", f"cmp_{second.id}"]
    assert [(each["name"], each["open_rate"]) for each in by_rate["data"]] == [("Other", 100.0)]
    assert [each["name"] for each in rest["data"]] == ["News"]
    assert rest["has_more"] is False
    none = await api.ask("GET", "/api/v1/analytics/campaigns?from=2025-01-01T00:00:00Z&to=2025-12-01T00:00:00Z")
    assert none.json["data"] == []
    assert (await api.ask("GET", "/api/v1/analytics/campaigns?from=0001-01-01T00:00:00%2B14:00")).status == 422


async def test_a_contact_shows_what_it_got_and_did_page_by_page(api: Api) -> None:
    id_ = await api.relay.pool.fetchval(CONTACT, "default", "u1@g1.example")
    for n, name in enumerate(("One", "Two")):
        campaign = await sent(api, mailed=1, base=id_ - 1, name=name)
        await campaign.happened(
            (1, "delivered", timedelta(days=n), {}),
            (1, "opened", timedelta(days=n, hours=1), {"actor": "prefetch"}),
            *[(1, "opened", timedelta(days=n, hours=2), PERSON)] * 3,
            (1, "clicked", timedelta(days=n, hours=2), PERSON | {"link": 4, "url": "https://x.example/"}),
        )
    path = f"/api/v1/contacts/con_{id_}/engagement"

    answer = (await api.ask("GET", path)).json
    pages, query = [], "?limit=2"
    while query:
        page = (await api.ask("GET", f"{path}{query}")).json
        pages += page["history"]
        query = f"?limit=2&cursor={page['next_cursor']}" if page["has_more"] else ""

    assert (answer["contact_id"], answer["total_emails_sent"]) == (f"con_{id_}", 2)
    assert (answer["total_opens"], answer["total_clicks"], answer["machine"]) == (6, 2, {"opens": 2, "clicks": 0})
    assert answer["last_opened"] == answer["last_clicked"] == "2026-11-21T12:00:00Z"
    assert (answer["campaigns_opened"], answer["campaigns_clicked"], answer["total_delivered"]) == (2, 2, 2)
    assert pages == answer["history"]
    assert len(pages) == 12
    told = [(each["type"], each["actor"], each["campaign_name"], each["url"]) for each in pages]
    assert told[:6] == [
        *[("opened", "human", "Two", None)] * 3, ("clicked", "human", "Two", "https://x.example/"),
        ("opened", "machine", "Two", None), ("delivered", None, "Two", None),
    ]  # fmt: skip
    assert (await api.ask("GET", f"{path}?cursor=AAAA")).json["code"] == "invalid_cursor"


async def test_a_contact_shows_that_it_said_no_and_when(api: Api) -> None:
    id_ = await api.relay.pool.fetchval(CONTACT, "default", "u9@g1.example")
    campaign = await sent(api, mailed=1, base=id_ - 1, name="One")
    await campaign.happened(
        (1, "delivered", timedelta(0), {}),
        (1, "unsubscribed", timedelta(hours=1), {}),
        (1, "complained", timedelta(hours=2), {}),
    )
    for hours, word in ((1, "unsubscribed"), (2, "complained")):
        event = campaign._event(1, word, HOUR + timedelta(hours=hours), {})
        await api.relay.pool.execute(events.APPEND, *events.parameters([event]))

    history = (await api.ask("GET", f"/api/v1/contacts/con_{id_}/engagement")).json["history"]

    assert [each["type"] for each in history] == ["complained", "unsubscribed", "delivered"]
    assert [each["at"][11:13] for each in history] == ["12", "11", "10"]


async def test_nobody_sees_figures_of_another_tenant(api: Api) -> None:
    campaign = await story(api)
    contact = await api.relay.pool.fetchval(CONTACT, "default", "u1@g1.example")
    own = ("analytics", "stats/realtime", "stats/timeseries", "stats/timeseries.csv", "links", "links.csv", "domains",
           "providers")  # fmt: skip

    for path in (*(f"{campaign.path}/{name}" for name in own), f"/api/v1/contacts/con_{contact}/engagement"):
        answer = await api.ask("GET", path, key="stranger")
        assert (answer.status, answer.json["code"]) == (404, "not_found")
        assert (await api.ask("GET", path, key="sender")).status == 403
        assert (await api.ask("GET", path.replace("_", "_0"))).status == 404
    span = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z"
    report = (await api.ask("GET", f"/api/v1/analytics/reports?{span}", key="stranger")).json
    assert set(report["totals"].values()) == {0}
    assert (await api.ask("GET", f"/api/v1/analytics/campaigns?{span}", key="stranger")).json["data"] == []
    assert (await api.ask("GET", f"/api/v1/analytics/reports?{span}")).json["totals"]["sent"] == 8
