-- The queue, the events, the credentials.

CREATE TABLE installation (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    secret   bytea NOT NULL,                                  -- keys the hashes of API tokens and signed cursors
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE SEQUENCE worker_numbers AS int MINVALUE 0 MAXVALUE 2047 CYCLE;  -- 11 bits of every id

CREATE TABLE workers (
    number     int PRIMARY KEY,
    node       text NOT NULL,
    pid        int NOT NULL,
    beat       bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE messages (
    id          bigint PRIMARY KEY,
    sender      text NOT NULL,                                -- '' is the null sender
    stream      text NOT NULL,
    pool        text NOT NULL,
    credential  text NOT NULL,
    tenant      text NOT NULL,
    size        int NOT NULL,
    accepted_at timestamptz NOT NULL,
    smtputf8    bool NOT NULL,
    eight_bit   bool NOT NULL,
    ret         text NOT NULL,
    envid       text NOT NULL,
    labels      jsonb,
    total       int NOT NULL,
    pending     int NOT NULL,                                 -- recipients without a final verdict
    content     bytea NOT NULL
);
ALTER TABLE messages ALTER COLUMN content SET STORAGE EXTERNAL; -- mail does not compress well enough to pay for the CPU

CREATE TABLE recipients (
    message_id     bigint NOT NULL,
    n              int NOT NULL,
    address        text NOT NULL,
    domain         text NOT NULL,
    queue          text NOT NULL,                             -- stream/pool/domain
    owner          int,                                       -- the worker that holds it in memory
    held           bool NOT NULL DEFAULT false,
    due_at         timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    attempts       int NOT NULL DEFAULT 0,
    notify         text NOT NULL DEFAULT '',
    orcpt          text NOT NULL DEFAULT '',
    in_doubt       bool NOT NULL DEFAULT false,
    delay_notified bool NOT NULL DEFAULT false,
    returned       bool NOT NULL DEFAULT false,               -- given up on an operator's word
    last_reply     text NOT NULL DEFAULT '',
    reason         text NOT NULL DEFAULT '',                  -- why it waits
    PRIMARY KEY (message_id, n)
);
-- Both indexes hold only what nobody has in memory, so mail that leaves at its first attempt never touches them.
CREATE INDEX recipients_due ON recipients (queue, due_at) WHERE owner IS NULL AND NOT held;
CREATE INDEX recipients_expiry ON recipients (expires_at) WHERE owner IS NULL;

CREATE TABLE queues (
    name          text PRIMARY KEY,
    next_due      timestamptz NOT NULL,                       -- no recipient of it without an owner is due before
    blocked_until timestamptz,
    reason        text NOT NULL DEFAULT ''
);
CREATE INDEX queues_next_due ON queues (next_due);

CREATE TABLE events (
    at         timestamptz NOT NULL,
    type       text NOT NULL,                                 -- message.accepted, recipient.delivered, ...
    message_id bigint NOT NULL,
    n          int NOT NULL,                                  -- the recipient
    address    text NOT NULL,
    tenant     text NOT NULL,
    data       jsonb
) PARTITION BY RANGE (at);
CREATE INDEX events_message ON events (message_id);
CREATE INDEX events_address ON events (address, message_id) WHERE type = 'message.accepted';
CREATE TABLE events_rest PARTITION OF events DEFAULT;         -- nothing is lost if a month's partition is missing

CREATE TABLE credentials (
    name            text PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('password', 'token')),
    secret_hash     text NOT NULL,
    tenant          text NOT NULL DEFAULT 'default',
    scopes          text[] NOT NULL DEFAULT '{send}',         -- send, read, manage
    sender_domains  text[] NOT NULL DEFAULT '{}',             -- empty: any
    stream          text,                                     -- null: transactional, and the submitter may choose
    pool            text,
    message_rate    text,                                     -- such as 1000/h
    recipient_rate  text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    disabled_at     timestamptz
);

CREATE UNIQUE INDEX credentials_token ON credentials (secret_hash) WHERE kind = 'token';

CREATE TABLE idempotency_keys (
    owner       text NOT NULL,                                -- the credential
    path        text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    status      int NOT NULL,
    response    bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, path, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE audit (
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,
    action text NOT NULL,
    data   jsonb NOT NULL
);
