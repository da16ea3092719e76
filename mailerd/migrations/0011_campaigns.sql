-- Campaigns: contacts, lists and segments, templates, campaigns and their ledger, tracking, analytics.
-- No foreign keys: rows come by the hundred thousand, and what belongs together is written and deleted together by the
-- stores. Ids are numbers here, `con_17` outside.

-- What is rendered right before it is sent, in the words of whoever renders; its content is empty then.
ALTER TABLE messages ADD render text NOT NULL DEFAULT '';

CREATE TABLE contacts (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant             text NOT NULL,
    email              text NOT NULL,                         -- as it was given
    address            text NOT NULL,                         -- normalised as in `suppressions`
    first_name         text NOT NULL DEFAULT '',
    last_name          text NOT NULL DEFAULT '',
    phone              text NOT NULL DEFAULT '',
    time_zone          text NOT NULL DEFAULT '',              -- IANA; '': that of the campaign
    custom_fields      jsonb NOT NULL DEFAULT '{}',
    tracking           boolean NOT NULL DEFAULT true,         -- false: the person wants no opens and clicks kept
    unsubscribe_reason text NOT NULL DEFAULT '',
    subscribed_at      timestamptz NOT NULL DEFAULT now(),
    unsubscribed_at    timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX contacts_address ON contacts (tenant, address);
CREATE INDEX contacts_tenant ON contacts (tenant, id);

CREATE TABLE custom_field_definitions (
    tenant     text NOT NULL,
    name       text NOT NULL,
    type       text NOT NULL CHECK (type IN ('text', 'number', 'boolean', 'date', 'datetime', 'list')),
    label      text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name)
);

CREATE TABLE tags (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text NOT NULL,
    name       text NOT NULL,
    color      text NOT NULL DEFAULT '#888888',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);
CREATE TABLE contact_tags (
    contact_id bigint NOT NULL,
    tag_id     bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (contact_id, tag_id)
);
CREATE INDEX contact_tags_tag ON contact_tags (tag_id, contact_id);

-- Static lists have rows in `list_contacts`; dynamic ones, which are segments, have conditions and no rows.
CREATE TABLE contact_lists (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant             text NOT NULL,
    name               text NOT NULL,
    description        text NOT NULL DEFAULT '',
    type               text NOT NULL DEFAULT 'static' CHECK (type IN ('static', 'dynamic')),
    segment_conditions jsonb,
    contact_count      bigint NOT NULL DEFAULT 0,             -- subscribed; of a segment: when it was counted last
    counted_at         timestamptz,
    created_by         text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX contact_lists_tenant ON contact_lists (tenant, type, id);

CREATE TABLE list_contacts (
    list_id    bigint NOT NULL,
    contact_id bigint NOT NULL,
    status     text NOT NULL DEFAULT 'subscribed' CHECK (status IN ('subscribed', 'unsubscribed', 'unconfirmed')),
    source     text NOT NULL,                                 -- of the status: api:NAME, import:imp_1, page …
    added_at   timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (list_id, contact_id)
);
CREATE INDEX list_contacts_contact ON list_contacts (contact_id);
-- What a subscription was before: each change of a row above, but not its coming.
CREATE TABLE subscription_history (
    contact_id bigint NOT NULL,
    list_id    bigint NOT NULL,
    was        text NOT NULL,
    became     text NOT NULL,                                 -- also 'removed'
    source     text NOT NULL,
    detail     text NOT NULL DEFAULT '',
    at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX subscription_history_contact ON subscription_history (contact_id, at);

CREATE TABLE consents (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant       text NOT NULL,
    address      text NOT NULL,
    contact_id   bigint,
    list_id      bigint,                                      -- null: mail of this tenant at all
    action       text NOT NULL CHECK (action IN ('granted', 'withdrawn')),
    method       text NOT NULL,                               -- form, import, api, page, one-click …
    text_version text NOT NULL DEFAULT '',                    -- what the person was told
    ip           text NOT NULL DEFAULT '',
    actor        text NOT NULL,                               -- who recorded it
    at           timestamptz NOT NULL
);
CREATE INDEX consents_address ON consents (tenant, address, at);
CREATE INDEX consents_contact ON consents (contact_id);

CREATE TABLE erasures (
    tenant    text NOT NULL,
    hash      bytea NOT NULL,                                 -- of the address, keyed with the installation's secret
    erased_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, hash)
);

CREATE TABLE contact_imports (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant       text NOT NULL,
    state        text NOT NULL DEFAULT 'receiving'
                 CHECK (state IN ('receiving', 'processing', 'completed', 'failed', 'cancelled')),
    mode         text NOT NULL DEFAULT 'upsert' CHECK (mode IN ('upsert', 'skip', 'unsubscribe')),
    dry_run      boolean NOT NULL DEFAULT false,
    list_id      bigint,
    settings     jsonb NOT NULL DEFAULT '{}',                 -- mapping of columns, tags, consent, encoding, delimiter
    bytes        bigint NOT NULL DEFAULT 0,                   -- of the file
    bytes_done   bigint NOT NULL DEFAULT 0,                   -- up to here it is imported: where to go on
    position     jsonb NOT NULL DEFAULT '{}',                 -- what else going on needs
    rows         bigint NOT NULL DEFAULT 0,                   -- of the counts below, those read so far
    created      bigint NOT NULL DEFAULT 0,
    updated      bigint NOT NULL DEFAULT 0,
    unchanged    bigint NOT NULL DEFAULT 0,
    skipped      bigint NOT NULL DEFAULT 0,                   -- there already (mode skip), or must not come back
    refused      bigint NOT NULL DEFAULT 0,                   -- not valid: see contact_import_errors
    error        text NOT NULL DEFAULT '',
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz
);
CREATE INDEX contact_imports_tenant ON contact_imports (tenant, id);
CREATE INDEX contact_imports_open ON contact_imports (id) WHERE state = 'processing';
CREATE TABLE contact_import_parts (
    import_id bigint NOT NULL,
    n         int NOT NULL,
    bytes     bytea NOT NULL,
    PRIMARY KEY (import_id, n)
);
ALTER TABLE contact_import_parts ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE contact_import_errors (
    import_id bigint NOT NULL,
    line      bigint NOT NULL,
    code      text NOT NULL,
    detail    text NOT NULL,
    content   text NOT NULL,                                  -- the row as it came, cut
    PRIMARY KEY (import_id, line)
);

CREATE TABLE templates (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text NOT NULL,
    name       text NOT NULL,
    version    int NOT NULL DEFAULT 1,                        -- the one in force
    is_active  boolean NOT NULL DEFAULT true,                 -- false: deleted; what refers to it goes on
    revision   bigint NOT NULL DEFAULT 1,                     -- for the ETag
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX templates_tenant ON templates (tenant, id) WHERE is_active;
-- A version never changes.
CREATE TABLE template_versions (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    template_id  bigint NOT NULL,
    version      int NOT NULL,
    format       text NOT NULL DEFAULT 'html' CHECK (format IN ('html', 'mjml')),
    subject      text NOT NULL,
    html_content text NOT NULL,                               -- as it was written
    text_content text NOT NULL,                               -- '': made from the HTML
    variables    jsonb NOT NULL DEFAULT '[]',                 -- that must be there
    compiled     jsonb NOT NULL,                              -- see campaigns.templates.compiling
    restored     int,                                         -- the version this is a copy of
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (template_id, version)
);

CREATE TABLE campaigns (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant         text NOT NULL,
    name           text NOT NULL,
    subject        text NOT NULL DEFAULT '',                  -- '': that of the template
    template_id    bigint NOT NULL,
    sender_email   text NOT NULL,
    sender_name    text NOT NULL DEFAULT '',
    reply_to       text NOT NULL DEFAULT '',
    status         text NOT NULL DEFAULT 'draft'
                   CHECK (status IN ('draft', 'scheduled', 'sending', 'sent', 'paused', 'cancelled', 'failed')),
    status_reason  text NOT NULL DEFAULT '',                  -- why it is paused, cancelled or failed
    audience       jsonb NOT NULL DEFAULT '{}',               -- campaigns.audience.Audience
    schedule_time  timestamptz,
    timing         jsonb NOT NULL DEFAULT '{}',               -- campaigns.timing.Timing
    recurrence     jsonb,                                     -- campaigns.recurrence.Recurrence
    parent_id      bigint,                                    -- the recurring campaign that this is one time of
    options        jsonb NOT NULL DEFAULT '{}',               -- campaigns.values.Options
    ab_test_config jsonb,
    revision       bigint NOT NULL DEFAULT 1,                 -- for the ETag
    created_by     text NOT NULL,                             -- the credential
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    started_at     timestamptz,
    finished_at    timestamptz
);
CREATE INDEX campaigns_tenant ON campaigns (tenant, id);
CREATE INDEX campaigns_scheduled ON campaigns (schedule_time) WHERE status = 'scheduled';
CREATE UNIQUE INDEX campaigns_occurrence ON campaigns (parent_id, schedule_time) WHERE parent_id IS NOT NULL;

-- A campaign that has begun: how far its audience is written, and when its turn is.
CREATE TABLE campaign_runs (
    campaign_id bigint PRIMARY KEY,
    tenant      text NOT NULL,
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'ended')),
    version_id  bigint NOT NULL,                              -- of the template, from the beginning to the end
    written_to  bigint NOT NULL DEFAULT 0,                    -- contact id up to which the ledger is written
    written     boolean NOT NULL DEFAULT false,               -- all of it
    total       bigint NOT NULL DEFAULT 0,                    -- rows of the ledger
    next_at     timestamptz NOT NULL,                         -- nothing is handed over before
    moved_at    timestamptz,                                  -- what the clock said when that was found
    waits       boolean NOT NULL DEFAULT false,               -- there may be rows of the ledger that wait
    started_at  timestamptz NOT NULL,
    steering    text NOT NULL DEFAULT '' CHECK (steering IN ('', 'hold', 'release', 'cancel', 'forget')),  -- is to be done
    wishes      bigint NOT NULL DEFAULT 0,                    -- so often something else was to be done
    steering_until timestamptz                                -- by whoever has it in hand; others may take it then
) WITH (fillfactor = 50);
CREATE INDEX campaign_runs_next ON campaign_runs (next_at) WHERE state = 'running' AND waits;
CREATE INDEX campaign_runs_left ON campaign_runs (campaign_id) WHERE state = 'ended' AND waits;
CREATE INDEX campaign_runs_steering ON campaign_runs (campaign_id) WHERE steering <> '';
CREATE INDEX campaign_runs_unwritten ON campaign_runs (campaign_id) WHERE NOT written AND state <> 'ended';

-- The ledger: one row for each (campaign, contact). `waiting` until it is handed over, `status` is
-- 0 pending, 1 queued, 2 delivered, 3 bounced, 4 failed, 5 suppressed, 6 cancelled, 7 in_doubt (campaigns.ledger).
CREATE TABLE campaign_contacts (
    campaign_id bigint NOT NULL,
    contact_id  bigint NOT NULL,
    due_at      timestamptz NOT NULL,
    waiting     boolean NOT NULL DEFAULT true,
    status      smallint NOT NULL DEFAULT 0,
    marks       smallint NOT NULL DEFAULT 0,                  -- bits: what the contact has done (campaigns.ledger)
    variant     smallint NOT NULL DEFAULT 0,
    message_id  bigint,
    changed_at  timestamptz,
    reason      text NOT NULL DEFAULT '',                     -- why it was not reached
    PRIMARY KEY (campaign_id, contact_id)
) PARTITION BY HASH (campaign_id);
-- `waiting` and not `status`: what comes after the handing over must not touch an index (HOT).
CREATE INDEX campaign_contacts_due ON campaign_contacts (campaign_id, due_at, contact_id) WHERE waiting;
CREATE INDEX campaign_contacts_message ON campaign_contacts (message_id, campaign_id) WHERE message_id IS NOT NULL;
CREATE INDEX campaign_contacts_contact ON campaign_contacts (contact_id);
DO $$ BEGIN
    FOR n IN 0..15 LOOP
        EXECUTE format('CREATE TABLE campaign_contacts_%s PARTITION OF campaign_contacts
                        FOR VALUES WITH (MODULUS 16, REMAINDER %s) WITH (fillfactor = 70)', n, n);
    END LOOP;
END $$;

-- Opens and clicks as they came, until it is known who made them.
CREATE TABLE hits (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('opened', 'clicked')),
    message_id  bigint NOT NULL,
    campaign_id bigint NOT NULL,
    contact_id  bigint NOT NULL,
    link        int NOT NULL DEFAULT 0,                       -- the slot of the template, 0 of opens
    url         text NOT NULL DEFAULT '',
    method      text NOT NULL DEFAULT 'GET',
    ip          text NOT NULL DEFAULT '',
    user_agent  text NOT NULL DEFAULT '',
    times       int NOT NULL DEFAULT 1                        -- so many of the same within a moment
);
CREATE INDEX hits_message ON hits (message_id, at);
-- How far the files are stored into which workers write hits before they answer.
CREATE TABLE hit_files (
    name  text PRIMARY KEY,
    bytes bigint NOT NULL
);

-- What contacts did, one row for each open and click; forgotten with the events.
CREATE TABLE engagements (
    at          timestamptz NOT NULL,
    contact_id  bigint NOT NULL,
    campaign_id bigint NOT NULL,
    message_id  bigint NOT NULL,
    kind        smallint NOT NULL,                            -- 1 opened, 2 clicked
    machine     boolean NOT NULL,
    link        int NOT NULL DEFAULT 0
);
CREATE INDEX engagements_contact ON engagements (contact_id, kind, at);
CREATE INDEX engagements_at ON engagements USING brin (at);

-- Roll-ups: each has the same counts.
CREATE TABLE campaign_totals (
    campaign_id     bigint PRIMARY KEY,
    queued          bigint NOT NULL DEFAULT 0,                -- handed over
    suppressed      bigint NOT NULL DEFAULT 0,
    cancelled       bigint NOT NULL DEFAULT 0,
    recalled        bigint NOT NULL DEFAULT 0,                -- of both: after they were handed over
    sent            bigint NOT NULL DEFAULT 0,                -- delivered, bounced, failed or in doubt
    delivered       bigint NOT NULL DEFAULT 0,
    bounced         bigint NOT NULL DEFAULT 0,
    hard_bounced    bigint NOT NULL DEFAULT 0,                -- of these
    failed          bigint NOT NULL DEFAULT 0,
    in_doubt        bigint NOT NULL DEFAULT 0,
    deferred        bigint NOT NULL DEFAULT 0,                -- attempts
    complained      bigint NOT NULL DEFAULT 0,                -- contacts, as the next three
    unsubscribed    bigint NOT NULL DEFAULT 0,
    opened          bigint NOT NULL DEFAULT 0,
    clicked         bigint NOT NULL DEFAULT 0,
    opens           bigint NOT NULL DEFAULT 0,                -- hits, by people
    clicks          bigint NOT NULL DEFAULT 0,
    machine_opened  bigint NOT NULL DEFAULT 0,                -- contacts whose mail only machines have opened so far
    machine_clicked bigint NOT NULL DEFAULT 0,
    machine_opens   bigint NOT NULL DEFAULT 0,                -- hits, by machines
    machine_clicks  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE campaign_minutes (LIKE campaign_totals INCLUDING DEFAULTS, minute timestamptz NOT NULL,
    PRIMARY KEY (campaign_id, minute)) WITH (fillfactor = 70);
CREATE TABLE campaign_domains (LIKE campaign_totals INCLUDING DEFAULTS, domain text NOT NULL, site text NOT NULL DEFAULT '',
    PRIMARY KEY (campaign_id, domain)) WITH (fillfactor = 70);
CREATE TABLE tenant_hours (LIKE campaign_totals INCLUDING DEFAULTS, tenant text NOT NULL, hour timestamptz NOT NULL,
    PRIMARY KEY (tenant, hour)) WITH (fillfactor = 50);
ALTER TABLE tenant_hours DROP COLUMN campaign_id;
CREATE TABLE campaign_links (
    campaign_id    bigint NOT NULL,
    link           int NOT NULL,
    url            text NOT NULL,
    clicks         bigint NOT NULL DEFAULT 0,
    clicked        bigint NOT NULL DEFAULT 0,                 -- contacts
    machine_clicks bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign_id, link)
);
