-- Traffic: fair turns, named brakes, sources and their state, warm-up, TLS policies and reports, several nodes.

ALTER TABLE messages
    ADD campaign    text NOT NULL DEFAULT '',
    ADD lane        smallint NOT NULL DEFAULT 4,              -- precedence of the stream * 3 + priority; low goes first
    ADD require_tls bool;                                     -- RFC 8689: true REQUIRETLS, false "TLS-Required: No"

-- Who competes for a turn: the messages of one tenant, campaign and priority are a flow; queues are named
-- `stream/pool/flow/domain`.
UPDATE messages SET lane = CASE stream WHEN 'transactional' THEN 1 ELSE 4 END;
UPDATE recipients SET queue = m.stream || '/' || m.pool || '/' || replace(m.tenant, '/', '_') || '/' || recipients.domain
  FROM messages AS m WHERE m.id = message_id;
DROP TABLE queues;
CREATE TABLE queues (
    name          text PRIMARY KEY,
    lane          smallint NOT NULL,
    flow          text NOT NULL,
    pool          text NOT NULL,
    next_due      timestamptz NOT NULL,                       -- no recipient of it without an owner is due before
    blocked_until timestamptz,
    reason        text NOT NULL DEFAULT '',
    ready_at      timestamptz GENERATED ALWAYS AS (GREATEST(next_due, COALESCE(blocked_until, next_due))) STORED
);
CREATE INDEX queues_turns ON queues (lane, flow, ready_at);
CREATE INDEX queues_empty ON queues (name) WHERE next_due = 'infinity';  -- to forget them without reading the others
ALTER TABLE queues SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
INSERT INTO queues (name, lane, flow, pool, next_due)
SELECT r.queue, min(m.lane), replace(min(m.tenant), '/', '_'), min(m.pool), min(r.due_at)
  FROM recipients AS r JOIN messages AS m ON m.id = r.message_id WHERE r.owner IS NULL AND NOT r.held GROUP BY r.queue;

-- Brakes: made by rules for replies, or by operators. An empty column means any.
CREATE TABLE effects (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    kind       text NOT NULL,                                 -- pause, slow, connections, avoid
    source     text NOT NULL DEFAULT '',
    provider   text NOT NULL DEFAULT '',
    site       text NOT NULL DEFAULT '',
    tenant     text NOT NULL DEFAULT '',
    campaign   text NOT NULL DEFAULT '',
    value      double precision NOT NULL DEFAULT 0,           -- slow: messages a second; connections: how many
    reason     text NOT NULL,
    rule       text NOT NULL,                                 -- file:line, or who made it
    since      timestamptz NOT NULL,
    until      timestamptz NOT NULL
);
CREATE INDEX effects_until ON effects (until);

-- An address sends from one node at a time, or its limits could not be kept.
CREATE TABLE source_holders (
    address text PRIMARY KEY,
    node    text NOT NULL,
    since   timestamptz NOT NULL DEFAULT now()
);
-- What the checks found, by node and source; `failing` sources are out of their pools.
CREATE TABLE source_checks (
    node       text NOT NULL,
    source     text NOT NULL,
    name       text NOT NULL,                                 -- bound, held, ptr, ehlo, spf, or the zone of a block list
    state      text NOT NULL,                                 -- ok, failing, warning, unknown
    text       text NOT NULL,
    since      timestamptz NOT NULL,
    checked_at timestamptz NOT NULL,
    PRIMARY KEY (node, source, name)
);

CREATE TABLE warmups (
    source     text NOT NULL,
    provider   text NOT NULL,
    plan       text NOT NULL,
    stage      int NOT NULL,                                  -- counted from 0; the number of stages: warm
    stage_since date NOT NULL,
    last_day   date,                                          -- that sent something
    verdict    text NOT NULL DEFAULT '',                      -- of the last day that was judged
    PRIMARY KEY (source, provider)
);
-- What was drawn of a window's budget: before it is used, so that a crash errs to the safe side.
CREATE TABLE warmup_windows (
    source   text NOT NULL,
    provider text NOT NULL,
    window_start timestamptz NOT NULL,
    drawn    int NOT NULL,
    PRIMARY KEY (source, provider, window_start)
);
-- What became of a day's recipients, by source and provider.
CREATE TABLE traffic_days (
    day        date NOT NULL,
    source     text NOT NULL,
    provider   text NOT NULL,
    delivered  int NOT NULL DEFAULT 0,
    deferred   int NOT NULL DEFAULT 0,                        -- by throttling, blocks and failed connections
    bounced    int NOT NULL DEFAULT 0,
    complained int NOT NULL DEFAULT 0,
    PRIMARY KEY (day, source, provider)
);

CREATE TABLE sts_policies (
    domain     text PRIMARY KEY,
    id         text NOT NULL,                                 -- of the TXT record
    mode       text NOT NULL,
    mx         text[] NOT NULL,
    text       text NOT NULL,                                 -- as it was served, for reports
    fetched_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE TABLE tls_results (
    day         date NOT NULL,
    domain      text NOT NULL,
    policy_type text NOT NULL,                                -- sts, tlsa, no-policy-found
    policy      text NOT NULL,                                -- its lines
    mx          text NOT NULL,
    source_ip   text NOT NULL,
    result      text NOT NULL,                                -- success, or a result type of RFC 8460 section 4.3
    detail      text NOT NULL,
    sessions    bigint NOT NULL,
    PRIMARY KEY (day, domain, policy_type, policy, mx, source_ip, result, detail)
);
CREATE TABLE tls_reports_sent (
    day    date NOT NULL,
    domain text NOT NULL,
    state  text NOT NULL,                                     -- sent, unwanted, failed
    PRIMARY KEY (day, domain)
);

-- Limits that hold over all nodes: who may use how much of them.
CREATE TABLE grants (
    meter   text NOT NULL,
    node    text NOT NULL,
    wanted  double precision NOT NULL,
    granted double precision NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (meter, node)
);
