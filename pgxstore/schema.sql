CREATE TABLE IF NOT EXISTS ganbauth_tokens (
    key           bytea PRIMARY KEY,

    access_token  text, -- NULL where there is no record: the row is a lock, or what is left of a record
    refresh_token text NOT NULL DEFAULT '',
    token_type    text NOT NULL DEFAULT '',
    scope         text NOT NULL DEFAULT '',
    id_token      text NOT NULL DEFAULT '',
    subject       text NOT NULL DEFAULT '',
    epoch         text NOT NULL DEFAULT '',
    judged        text NOT NULL DEFAULT '',
    fingerprint   text, -- of the record: what a swap compares
    issued_at     timestamptz,
    expires_at    timestamptz,
    touched_at    timestamptz NOT NULL DEFAULT now(), -- when it was last saved or deleted; without a record, locked

    -- The lock. Its holder raises the beats while it lives.
    holder        text,
    beats         bigint NOT NULL DEFAULT 0
)
-- Room on each page for the next version of a row: locking and unlocking then touch no index.
WITH (fillfactor = 70);

-- What Cleanup looks for.
CREATE INDEX IF NOT EXISTS ganbauth_tokens_touched_at ON ganbauth_tokens (touched_at);
CREATE INDEX IF NOT EXISTS ganbauth_tokens_buried ON ganbauth_tokens (touched_at) WHERE access_token IS NULL;

-- Whose token expires next.
CREATE INDEX IF NOT EXISTS ganbauth_tokens_expires_at ON ganbauth_tokens (expires_at) WHERE access_token IS NOT NULL;
