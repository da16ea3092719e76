-- Whom to tell of events by HTTP, what is still to be told, and what was.

CREATE TABLE webhooks (
    id             bigint PRIMARY KEY,                        -- outside whk_ and base 32
    tenant         text NOT NULL,
    url            text NOT NULL,
    events         text[] NOT NULL,                           -- email.bounced, email.*, *
    streams        text[] NOT NULL DEFAULT '{}',              -- empty: any
    description    text NOT NULL DEFAULT '',
    batch_events   int NOT NULL DEFAULT 1,                    -- in one request, at most; 1: an object, else an array
    batch_wait     int NOT NULL DEFAULT 0,                    -- milliseconds that the first of a batch waits for more
    secret         bytea NOT NULL,
    old_secret     bytea,                                     -- signs too, until
    old_until      timestamptz,
    disabled_at    timestamptz,
    disabled_why   text NOT NULL DEFAULT '',
    failing_since  timestamptz,                               -- nothing but failures since
    txid           bigint NOT NULL,                           -- all events before and at it were told, or are pending
    seq            bigint NOT NULL,
    version        int NOT NULL DEFAULT 1,                    -- counts what those who use the API changed
    created_at     timestamptz NOT NULL,
    created_by     text NOT NULL
);
CREATE INDEX webhooks_of_tenant ON webhooks (tenant, id);

-- What an endpoint did not take yet; at most about a thousand rows for each. What was not tried yet stands in no row.
CREATE TABLE webhook_pending (
    webhook_id bigint NOT NULL,
    id         bigint NOT NULL,                               -- in the order of telling
    key        text NOT NULL,                                 -- the webhook-id of every attempt
    txids      bigint[] NOT NULL,                             -- the events
    seqs       bigint[] NOT NULL,
    types      text[] NOT NULL,
    subjects   bigint[] NOT NULL,                             -- what they are about: one after the other for each
    attempts   int NOT NULL,
    due_at     timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (webhook_id, id)
);

CREATE SEQUENCE webhook_log_id;
-- Attempts and their outcome, a partition a day.
CREATE TABLE webhook_log (
    at         timestamptz NOT NULL,
    id         bigint NOT NULL DEFAULT nextval('webhook_log_id'),
    webhook_id bigint NOT NULL,
    key        text NOT NULL,
    txids      bigint[] NOT NULL,
    seqs       bigint[] NOT NULL,
    types      text[] NOT NULL,
    subjects   bigint[] NOT NULL,
    attempt    int NOT NULL,
    outcome    text NOT NULL CHECK (outcome IN ('delivered', 'failed', 'dead')),
    status     int NOT NULL,                                  -- 0: there was no answer
    error      text NOT NULL,
    answer     text NOT NULL,                                 -- its beginning
    took       int NOT NULL,                                  -- milliseconds
    next_at    timestamptz
) PARTITION BY RANGE (at);
CREATE INDEX webhook_log_of ON webhook_log (webhook_id, id);
CREATE TABLE webhook_log_rest PARTITION OF webhook_log DEFAULT;

-- Events that are told once more.
CREATE TABLE webhook_replays (
    id          bigint PRIMARY KEY,
    webhook_id  bigint NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    since       timestamptz NOT NULL,
    until       timestamptz NOT NULL,
    types       text[] NOT NULL,                              -- empty: all that the endpoint wants
    txid        bigint NOT NULL,                              -- so far
    seq         bigint NOT NULL,
    told        bigint NOT NULL DEFAULT 0,                    -- events handed on
    created_at  timestamptz NOT NULL,
    created_by  text NOT NULL,
    finished_at timestamptz
);
CREATE INDEX webhook_replays_of ON webhook_replays (webhook_id, id);
