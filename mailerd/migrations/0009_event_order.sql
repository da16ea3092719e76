-- The order of events outlives a dump and its restoration into another cluster, where transactions are numbered anew:
-- the number of an event is that of its transaction above this one, which is put up when that has happened.
CREATE FUNCTION events_era() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 0::bigint';
ALTER TABLE events ALTER txid SET DEFAULT pg_current_xact_id()::text::bigint + events_era();
-- What is about an address and no message, for its history; and what happened to an address at all.
CREATE INDEX events_of_address ON events (address, txid, seq) WHERE message_id = 0;
