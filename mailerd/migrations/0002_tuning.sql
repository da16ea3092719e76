-- Storage settings of the tables that turn over. Defaults wait for a fifth of a table to be dead: with a backlog of a
-- million that is 200,000 rows of garbage, and with an empty queue the fixed part (50 rows) would vacuum all the time.

-- Dead rows by count, not by share; often enough that their space is reused before the files grow. Vacuum may work ten
-- times as fast as by default (200): at 40 MB/s of mail it would fall behind. Inserts alone need no vacuum here, the
-- rows are gone soon. Statistics matter little (every access is by a key), so they are refreshed seldom.
ALTER TABLE messages SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_limit = 2000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    -- The contents: one row for each 2 KB.
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 25000,
    toast.autovacuum_vacuum_insert_threshold = -1,
    toast.autovacuum_vacuum_cost_limit = 2000,
    -- Room on the page for the count of pending recipients, so that the update of a message touches no index.
    fillfactor = 90
);

-- No room left on the pages: an update changes a column of an index, and so can never stay on its page.
ALTER TABLE recipients SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_limit = 2000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);

-- Few rows, updated all the time and read as a whole: keep them on few pages, in place.
ALTER TABLE queues SET (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500
);
ALTER TABLE workers SET (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
