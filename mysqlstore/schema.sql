CREATE TABLE IF NOT EXISTS ganbauth_tokens (
    `key`         VARBINARY(1024) NOT NULL PRIMARY KEY,

    -- Whether there is a record. If not, the row is a lock, or what is left of a record.
    recorded      TINYINT NOT NULL DEFAULT 0,
    access_token  MEDIUMBLOB,
    refresh_token MEDIUMBLOB,
    token_type    VARBINARY(255),
    scope         MEDIUMBLOB,
    id_token      MEDIUMBLOB,
    subject       VARBINARY(1024),
    epoch         VARBINARY(255),
    judged        VARBINARY(255),
    fingerprint   VARBINARY(255), -- of the record: what a swap compares
    issued_at     BIGINT,         -- this and all other times are seconds since 1970
    expires_at    BIGINT,
    due_at        BIGINT,         -- expires_at, if the token can be refreshed

    touched_at    BIGINT NOT NULL,           -- when it was last saved or deleted; without a record, locked
    writes        BIGINT NOT NULL DEFAULT 0, -- counts, so that each write changes the row

    -- The lock. Its holder raises the beats while it lives.
    holder        VARBINARY(255),
    beats         BIGINT NOT NULL DEFAULT 0,

    KEY ganbauth_tokens_due (due_at, `key`),                -- whose token expires next
    KEY ganbauth_tokens_touched (recorded, touched_at)      -- what Cleanup looks for
) ENGINE = InnoDB
