CREATE TABLE IF NOT EXISTS ganbauth_tokens (
    key           bytea PRIMARY KEY,

    access_token  text, -- NULL where there is no token: the row is a lock, or what is left of a token
    refresh_token text NOT NULL DEFAULT '',
    token_type    text NOT NULL DEFAULT '',
    scope         text NOT NULL DEFAULT '',
    id_token      text NOT NULL DEFAULT '',
    subject       text NOT NULL DEFAULT '',
    issued_at     timestamptz,
    expires_at    timestamptz,
    touched_at    timestamptz NOT NULL DEFAULT now(), -- when it was last saved, deleted, or locked without a token

    -- fence is the number of the last lock, saved the number that the last change came with. The holder of the lock, if
    -- there is one, counts up its beats while he lives.
    fence         bigint NOT NULL DEFAULT 0,
    saved         bigint NOT NULL DEFAULT 0,
    holder        text,
    beats         bigint NOT NULL DEFAULT 0
);

-- What Cleanup looks for.
CREATE INDEX IF NOT EXISTS ganbauth_tokens_touched_at ON ganbauth_tokens (touched_at);
CREATE INDEX IF NOT EXISTS ganbauth_tokens_buried ON ganbauth_tokens (touched_at) WHERE access_token IS NULL;

-- Whose token ends next.
CREATE INDEX IF NOT EXISTS ganbauth_tokens_expires_at ON ganbauth_tokens (expires_at) WHERE access_token IS NOT NULL;
