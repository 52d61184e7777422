package pgxstore

import (
	"fmt"
	"strings"
	"time"
)

// statements are those that depend on Options.TTL.
type statements struct {
	load, nothing, save, fill, replace, remove, delete, lock string
}

// newStatements writes into the statements what a record that is there is: one that is
// younger than the TTL, if there is one.
func newStatements(ttl time.Duration) statements {
	there := "t.access_token IS NOT NULL"
	if ttl > 0 {
		there += fmt.Sprintf(" AND t.touched_at > now() - %d * interval '1 millisecond'", ttl.Milliseconds())
	}
	with := func(sql string) string { return strings.ReplaceAll(sql, "{there}", there) }
	return statements{
		load:    with(loadSQL),
		nothing: with(nothingSQL),
		save:    putSQL,
		fill:    with(fillSQL),
		replace: with(replaceSQL),
		remove:  with(removeSQL),
		delete:  deleteSQL,
		lock:    with(lockSQL),
	}
}

// Times are read in microseconds and keys in hexadecimal: where the pool has its answers in
// text, PostgreSQL would write both as the session's DateStyle and bytea_output say.
const (
	loadSQL = `
SELECT access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged,
    (extract(epoch FROM issued_at) * 1000000)::bigint, (extract(epoch FROM expires_at) * 1000000)::bigint
FROM ganbauth_tokens t WHERE key = $1 AND {there}`

	nothingSQL = `SELECT WHERE NOT EXISTS (SELECT FROM ganbauth_tokens t WHERE key = $1 AND {there})`

	setSQL = `
    access_token = $2, refresh_token = $3, token_type = $4, scope = $5, id_token = $6, subject = $7, epoch = $8,
    judged = $9, issued_at = $10, expires_at = $11, fingerprint = $12, touched_at = now()`

	putSQL = `
INSERT INTO ganbauth_tokens AS t (key, access_token, refresh_token, token_type, scope, id_token, subject, epoch,
    judged, issued_at, expires_at, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (key) DO UPDATE SET` + setSQL

	fillSQL = putSQL + ` WHERE NOT ({there})`

	// A record without a fingerprint, of an earlier version, is the same as any.
	replaceSQL = `
UPDATE ganbauth_tokens t SET` + setSQL + `
WHERE key = $1 AND {there} AND coalesce(fingerprint, $13) = $13`

	emptySQL = `
UPDATE ganbauth_tokens t SET
    access_token = NULL, refresh_token = '', token_type = '', scope = '', id_token = '', subject = '', epoch = '',
    judged = '', issued_at = NULL, expires_at = NULL, fingerprint = NULL, touched_at = now()
WHERE key = $1 AND `

	removeSQL = emptySQL + `{there} AND coalesce(fingerprint, $2) = $2`
	deleteSQL = emptySQL + `access_token IS NOT NULL`

	// The lock is taken if it is free, or the caller's own, or held as by the dead. The
	// answer is who holds it then, whether there is a record, and its fingerprint.
	lockSQL = `
WITH taken AS (
    INSERT INTO ganbauth_tokens AS t (key, holder) VALUES ($1, $2)
    ON CONFLICT (key) DO UPDATE SET holder = EXCLUDED.holder, beats = 0,
        touched_at = CASE WHEN t.access_token IS NULL THEN now() ELSE t.touched_at END
    WHERE t.holder IS NULL OR t.holder = $2 OR (t.holder = $3 AND t.beats = $4)
    RETURNING holder, beats, {there} AS there, fingerprint
)
SELECT holder, beats, there, fingerprint FROM taken
UNION ALL
SELECT holder, beats, false, NULL FROM ganbauth_tokens
WHERE key = $1 AND holder IS NOT NULL AND NOT EXISTS (SELECT FROM taken)`

	// Where there is no record, a lock that is held for long must not look like one that
	// was forgotten. It is touched once a minute, as touching it changes the indexes.
	extendSQL = `
UPDATE ganbauth_tokens SET beats = beats + 1,
    touched_at = CASE WHEN access_token IS NULL AND touched_at < now() - interval '1 minute' THEN now() ELSE touched_at END
WHERE key = $1 AND holder = $2`

	unlockSQL = `UPDATE ganbauth_tokens SET holder = NULL WHERE key = $1 AND holder = $2`

	// The index on expires_at gives the order; rows of the same second are sorted by key.
	pageSQL = `
SELECT (extract(epoch FROM expires_at) * 1000000)::bigint, encode(key, 'hex') FROM ganbauth_tokens
WHERE access_token IS NOT NULL AND refresh_token <> '' AND expires_at < $3
    AND expires_at >= $1 AND (expires_at, key) > ($1, $2)
ORDER BY expires_at, key LIMIT $4`

	// Rows without a record, and rows that nobody has saved for the TTL.
	buriedSQL = `
DELETE FROM ganbauth_tokens WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ganbauth_tokens
    WHERE access_token IS NULL AND touched_at < now() - $1::bigint * interval '1 millisecond'
    LIMIT 1000 FOR UPDATE SKIP LOCKED))`
	oldSQL = `
DELETE FROM ganbauth_tokens WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ganbauth_tokens
    WHERE touched_at < now() - $1::bigint * interval '1 millisecond'
    LIMIT 1000 FOR UPDATE SKIP LOCKED))`

	// How old a row without a record must be. A lock that is held is touched in that time.
	grave = 10 * time.Minute
)
