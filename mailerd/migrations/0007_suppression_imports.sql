-- Files of suppressions that were sent to the API: how far each has come.

CREATE TABLE suppression_imports (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    tenant      text NOT NULL,
    actor       text NOT NULL,
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed')),
    bytes       bigint NOT NULL,
    read        bigint NOT NULL DEFAULT 0,                    -- lines so far
    added       bigint NOT NULL DEFAULT 0,                    -- entries that were not there
    refused     bigint NOT NULL DEFAULT 0,                    -- lines
    problems    jsonb NOT NULL DEFAULT '[]',                  -- the first of the refused lines
    error       text NOT NULL DEFAULT '',
    started_at  timestamptz NOT NULL DEFAULT now(),
    moved_at    timestamptz NOT NULL DEFAULT now()            -- a running one that does not move was cut off
);
