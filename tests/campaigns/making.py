"""Templates, lists and campaigns in the database, by as little as it takes."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from mailerd.campaigns.store import CampaignStore
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.timing import Timing
from mailerd.campaigns.values import Campaign, Options
from mailerd.db import Pool

HTML = '<p>News for {{ contact.first_name }}</p><p>{{ postal_address }}</p><a href="{{ unsubscribe_url }}">out</a>'
TEXT = "News\n{{ unsubscribe_url }}\n{{ postal_address }}"
DRAFT = Campaign(
    id=0,
    tenant="default",
    name="Spring",
    subject="",
    template_id=0,
    sender_email="news@shop.example",
    sender_name="Shop",
    reply_to="",
    status="draft",
    status_reason="",
    audience={},
    schedule_time=None,
    timing=Timing(),
    recurrence=None,
    parent_id=None,
    options=Options(),
    ab_test_config=None,
    revision=1,
    created_by="all",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    started_at=None,
    finished_at=None,
)


async def make_template(
    pool: Pool,
    *,
    tenant: str = "default",
    subject: str = "News",
    html: str = HTML,
    text: str = TEXT,
    variables: Sequence[str] = (),
) -> int:
    """The id of a new template with one version."""
    compiled = msgspec.to_builtins(compile_template(subject, html, text, variables=variables))
    id_ = await pool.fetchval(
        "INSERT INTO templates (tenant, name, created_by) VALUES ($1, 'news', 'all') RETURNING id", tenant
    )
    await pool.execute(
        "INSERT INTO template_versions (template_id, version, subject, html_content, text_content, compiled,"
        " created_by) VALUES ($1, 1, $2, $3, $4, $5, 'all')",
        id_,
        subject,
        html,
        text,
        compiled,
    )
    return int(id_)


async def make_list(pool: Pool, *names: str, tenant: str = "default") -> int:
    """The id of a new list with a contact NAME@example.net for each name."""
    id_ = await pool.fetchval(
        "INSERT INTO contact_lists (tenant, name, created_by) VALUES ($1, 'readers', 'all') RETURNING id", tenant
    )
    for name in names:
        address = f"{name}@example.net"
        contact = await pool.fetchval(
            "INSERT INTO contacts (tenant, email, address, first_name) VALUES ($1, $2, $2, $3)"
            " ON CONFLICT (tenant, address) DO UPDATE SET first_name = EXCLUDED.first_name RETURNING id",
            tenant,
            address,
            name,
        )
        await pool.execute(
            "INSERT INTO list_contacts (list_id, contact_id, source) VALUES ($1, $2, 'test')", id_, contact
        )
    return int(id_)


async def make_campaign(pool: Pool, **changes: Any) -> Campaign:
    """A stored campaign; with a template of its own if none is given."""
    if "template_id" not in changes:
        changes["template_id"] = await make_template(pool, tenant=changes.get("tenant", "default"))
    async with pool.acquire() as connection:
        made = await CampaignStore(pool).create(replace(DRAFT, **changes), connection)
    assert made is not None
    return made
