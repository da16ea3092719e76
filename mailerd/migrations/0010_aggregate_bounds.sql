-- Anybody may send us reports: how many rows those of one day (UTC) have brought, and whether one was cut.
CREATE TABLE aggregate_days (
    day  date PRIMARY KEY,
    rows bigint NOT NULL
);
ALTER TABLE dmarc_reports ADD truncated boolean NOT NULL DEFAULT false;
ALTER TABLE tls_reports_received ADD truncated boolean NOT NULL DEFAULT false;
-- They are forgotten by when they came, too: what they say of their own time may be wrong.
CREATE INDEX dmarc_reports_received ON dmarc_reports (received_at);
CREATE INDEX tls_reports_received_received ON tls_reports_received (received_at);
