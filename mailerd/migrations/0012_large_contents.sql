-- Large contents, cut into rows that fill a page each: a quarter of the rows, index entries and log records that TOAST
-- makes of them, and COPY writes them as they come. The content of their message is NULL.
ALTER TABLE messages ALTER content DROP NOT NULL;
CREATE TABLE large_contents (
    message_id bigint NOT NULL,
    part       int NOT NULL,                                  -- counted from 0
    bytes      bytea NOT NULL,
    PRIMARY KEY (message_id, part)
);
ALTER TABLE large_contents ALTER COLUMN bytes SET STORAGE PLAIN;
-- As for `messages`: one row for each 8 KB.
ALTER TABLE large_contents SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_limit = 2000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);

-- They go with their message, whoever deletes it.
CREATE FUNCTION forget_large_content() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM large_contents WHERE message_id = OLD.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER messages_forget_large_content AFTER DELETE ON messages
   FOR EACH ROW WHEN (OLD.content IS NULL) EXECUTE FUNCTION forget_large_content();
