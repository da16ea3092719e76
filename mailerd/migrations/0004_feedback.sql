-- What comes back: whom not to mail, events in an order that others can follow, and by which topic a message may be left.

ALTER TABLE messages
    ADD topic       text NOT NULL DEFAULT '',                 -- what its reader may unsubscribe from, within the stream
    ADD unsubscribe bool NOT NULL DEFAULT false;              -- it goes out with List-Unsubscribe fields of ours

-- Events in an order: transactions by their number, within one by `seq`. Whoever follows reads up to the oldest
-- transaction that is still under way, so nothing appears behind a follower's back.
CREATE SEQUENCE events_seq CACHE 100;
ALTER TABLE events
    ADD stream   text NOT NULL DEFAULT '',
    ADD campaign text NOT NULL DEFAULT '',
    ADD txid     bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    ADD seq      bigint NOT NULL DEFAULT nextval('events_seq');
CREATE INDEX events_order ON events (txid, seq);
-- To find mail by the Message-ID that a report quotes.
CREATE INDEX events_message_id ON events (hashtextextended(data->>'message_id', 0))
 WHERE type = 'message.accepted' AND n = 1;

CREATE TABLE followers (
    name     text PRIMARY KEY,
    txid     bigint NOT NULL,                                 -- of the last event that is done with
    seq      bigint NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now()
);

-- Addresses that must not be mailed. An empty column of the scope means any.
CREATE TABLE suppressions (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    address    text NOT NULL,                                 -- lower case; @example.com: the whole domain
    tenant     text NOT NULL DEFAULT '',
    stream     text NOT NULL DEFAULT '',
    topic      text NOT NULL DEFAULT '',
    reason     text NOT NULL CHECK (reason IN ('bounce', 'soft_bounce', 'complaint', 'unsubscribe', 'manual')),
    source     text NOT NULL,                                 -- smtp, report, one-click, mailto, api, import, ...: who says so
    detail     text NOT NULL DEFAULT '',                      -- the reply, the file
    message_id bigint,                                        -- that led to it
    created_at timestamptz NOT NULL,
    expires_at timestamptz
);
CREATE UNIQUE INDEX suppressions_of ON suppressions (address, tenant, stream, topic, reason);
CREATE INDEX suppressions_of_tenant ON suppressions (tenant, id);

-- Soft bounces so far of addresses that took nothing since.
CREATE TABLE soft_bounces (
    address  text NOT NULL,
    tenant   text NOT NULL,
    bounces  int NOT NULL,
    first_at timestamptz NOT NULL,
    last_at  timestamptz NOT NULL,
    PRIMARY KEY (address, tenant)
);
