-- Aggregate reports that others send about our mail: DMARC (RFC 7489 section 7.2) and TLS (RFC 8460).

CREATE TABLE dmarc_reports (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    org         text NOT NULL,                                -- who reports
    report_id   text NOT NULL,
    domain      text NOT NULL,                                -- about
    contact     text NOT NULL,
    begins_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL,
    policy      text NOT NULL,                                -- as it was published: `p=none sp=none pct=100`
    received_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX dmarc_reports_of ON dmarc_reports (org, report_id, domain);
CREATE INDEX dmarc_reports_begun ON dmarc_reports (begins_at, domain);

CREATE TABLE dmarc_records (
    report        bigint NOT NULL REFERENCES dmarc_reports ON DELETE CASCADE,
    source_ip     text NOT NULL,
    messages      bigint NOT NULL,
    disposition   text NOT NULL,                              -- none, quarantine, reject
    dkim          text NOT NULL,                              -- pass or fail: passed, and of the same domain
    spf           text NOT NULL,
    header_from   text NOT NULL,
    envelope_from text NOT NULL,
    dkim_results  text NOT NULL,                              -- `example.com/s1 pass, esp.example/k2 pass`
    spf_results   text NOT NULL,                              -- `bounce.example.com pass`
    reasons       text NOT NULL                               -- why the policy was not followed
);
CREATE INDEX dmarc_records_of ON dmarc_records (report);

CREATE TABLE tls_reports_received (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    org         text NOT NULL,
    report_id   text NOT NULL,
    contact     text NOT NULL,
    begins_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL,
    received_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX tls_reports_received_of ON tls_reports_received (org, report_id);
CREATE INDEX tls_reports_received_begun ON tls_reports_received (begins_at);

-- A row for each policy (its sessions), and one for each kind of failure under it.
CREATE TABLE tls_report_policies (
    report      bigint NOT NULL REFERENCES tls_reports_received ON DELETE CASCADE,
    domain      text NOT NULL,
    policy_type text NOT NULL,
    succeeded   bigint NOT NULL,
    failed      bigint NOT NULL
);
CREATE INDEX tls_report_policies_of ON tls_report_policies (report);
CREATE TABLE tls_report_failures (
    report      bigint NOT NULL REFERENCES tls_reports_received ON DELETE CASCADE,
    domain      text NOT NULL,
    policy_type text NOT NULL,
    result      text NOT NULL,                                -- of RFC 8460 section 4.3
    sessions    bigint NOT NULL,
    sending_ip  text NOT NULL,
    mx          text NOT NULL,
    detail      text NOT NULL
);
CREATE INDEX tls_report_failures_of ON tls_report_failures (report);
