-- Minutes of campaigns, summed by quarters of an hour: what reports of hours and longer read. All zones of this century
-- are whole quarter hours away from UTC.
CREATE TABLE campaign_quarter_hours (LIKE campaign_totals INCLUDING DEFAULTS, quarter_hour timestamptz NOT NULL)
  WITH (fillfactor = 50);
-- Nobody adds a minute behind our back; reports are read meanwhile.
LOCK TABLE campaign_minutes IN SHARE MODE;
SET LOCAL jit = off;
SET LOCAL work_mem = '64MB';
INSERT INTO campaign_quarter_hours
SELECT campaign_id, sum(queued), sum(suppressed), sum(cancelled), sum(recalled), sum(sent), sum(delivered), sum(bounced),
       sum(hard_bounced), sum(failed), sum(in_doubt), sum(deferred), sum(complained), sum(unsubscribed), sum(opened),
       sum(clicked), sum(opens), sum(clicks), sum(machine_opened), sum(machine_clicked), sum(machine_opens),
       sum(machine_clicks), date_bin('15 minutes', minute, 'epoch') AS quarter_hour
  FROM campaign_minutes GROUP BY campaign_id, quarter_hour ORDER BY campaign_id, quarter_hour;
-- Filled first: so the key is made at once.
ALTER TABLE campaign_quarter_hours ADD PRIMARY KEY (campaign_id, quarter_hour);
ANALYZE campaign_quarter_hours;

-- The same of tenants, who had whole hours of UTC: these begin half way through an hour of some zones. An hour that is
-- the sum of what its campaigns have, to the last count, is put there by quarters. Others stay whole, in their first
-- quarter: of campaigns that were deleted, or whose minutes were forgotten, nothing else is left.
CREATE TABLE tenant_quarter_hours (LIKE tenant_hours INCLUDING DEFAULTS) WITH (fillfactor = 50);
ALTER TABLE tenant_quarter_hours RENAME COLUMN hour TO quarter_hour;
INSERT INTO tenant_quarter_hours
WITH quarters AS MATERIALIZED (
    SELECT sum(own.queued) AS queued, sum(own.suppressed) AS suppressed, sum(own.cancelled) AS cancelled,
           sum(own.recalled) AS recalled, sum(own.sent) AS sent, sum(own.delivered) AS delivered,
           sum(own.bounced) AS bounced, sum(own.hard_bounced) AS hard_bounced, sum(own.failed) AS failed,
           sum(own.in_doubt) AS in_doubt, sum(own.deferred) AS deferred, sum(own.complained) AS complained,
           sum(own.unsubscribed) AS unsubscribed, sum(own.opened) AS opened, sum(own.clicked) AS clicked,
           sum(own.opens) AS opens, sum(own.clicks) AS clicks, sum(own.machine_opened) AS machine_opened,
           sum(own.machine_clicked) AS machine_clicked, sum(own.machine_opens) AS machine_opens,
           sum(own.machine_clicks) AS machine_clicks,
           c.tenant, own.quarter_hour
      FROM campaign_quarter_hours AS own JOIN campaigns AS c ON c.id = own.campaign_id
     GROUP BY c.tenant, own.quarter_hour
), summed AS (
    SELECT sum(queued) AS queued, sum(suppressed) AS suppressed, sum(cancelled) AS cancelled,
           sum(recalled) AS recalled, sum(sent) AS sent, sum(delivered) AS delivered, sum(bounced) AS bounced,
           sum(hard_bounced) AS hard_bounced, sum(failed) AS failed, sum(in_doubt) AS in_doubt,
           sum(deferred) AS deferred, sum(complained) AS complained, sum(unsubscribed) AS unsubscribed,
           sum(opened) AS opened, sum(clicked) AS clicked, sum(opens) AS opens, sum(clicks) AS clicks,
           sum(machine_opened) AS machine_opened, sum(machine_clicked) AS machine_clicked,
           sum(machine_opens) AS machine_opens, sum(machine_clicks) AS machine_clicks,
           tenant, date_bin('1 hour', quarter_hour, 'epoch') AS hour
      FROM quarters GROUP BY tenant, hour
), known AS MATERIALIZED (
    SELECT tenant, hour FROM tenant_hours NATURAL JOIN summed  -- of all columns
)
SELECT own.* FROM quarters AS own
  JOIN known ON known.tenant = own.tenant AND known.hour = date_bin('1 hour', own.quarter_hour, 'epoch')
UNION ALL
SELECT own.* FROM tenant_hours AS own LEFT JOIN known USING (tenant, hour) WHERE known.tenant IS NULL
 ORDER BY tenant, quarter_hour;
DROP TABLE tenant_hours;
ALTER TABLE tenant_quarter_hours ADD PRIMARY KEY (tenant, quarter_hour);
ANALYZE tenant_quarter_hours;
