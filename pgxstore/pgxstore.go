// Package pgxstore keeps ganbauth's tokens in PostgreSQL, and makes refreshes exclusive across processes there.
//
//	pool, err := pgxpool.New(ctx, "postgres://…")
//	store := pgxstore.New(pool, pgxstore.Options{})
//	err = store.Migrate(ctx)
//	go store.Cleanup(ctx, time.Hour)
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and a [ganbauth.Locker]. Tokens are rows with columns.
//
// # How a lock is safe
//
// A lock is a random name in the token's row. Its holder counts it up while he lives; who waits takes it over when it has
// stood still for a lease, as seen by his own clock while PostgreSQL answers. No session or transaction has to stay open
// for it, so that a pooler in transaction mode, PgBouncer for one, does not break it, and neither does an outage, after
// which the holder still can save the token that he has got. Each lock also has the next number of its key (a fencing
// token), and a Save with a number lower than the one that was saved last is refused: a process that was suspended for
// longer cannot overwrite a newer token.
//
// # Behind a pooler
//
// Statements are sent as the pool is configured. A pooler that does not know prepared statements, PgBouncer before 1.21
// for one, needs default_query_exec_mode=exec in the connection string, as for the application's own statements.
package pgxstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/lease"
)

// Options configure a [Store]. The zero value of each field is the right default.
type Options struct {
	// TTL is how long a token is kept after it was last saved. Default: until it is deleted. Set it to the
	// sessions' Lifetime where tokens belong to sessions (without ganbauth's Options.Key).
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it. One to 20 seconds.
	// Default: 10 seconds.
	Lease time.Duration
}

// Store is a [ganbauth.TokenStore] and a [ganbauth.Locker] in PostgreSQL, in the table ganbauth_tokens of the
// connection's search path. It is safe for concurrent use.
type Store struct {
	pool  *pgxpool.Pool
	ttl   time.Duration
	locks *lease.Locks
}

var (
	_ ganbauth.TokenStore = (*Store)(nil)
	_ ganbauth.Locker     = (*Store)(nil)

	_ ganbauth.ExpiryLister = (*Store)(nil)
)

// New returns a Store. Call [Store.Migrate] before its first use. A call ends with its context, and after three seconds at
// most, the listing and the cleaning excepted.
func New(pool *pgxpool.Pool, opts Options) *Store {
	s := &Store{pool: pool, ttl: opts.TTL}
	s.locks = lease.New(engine{s}, opts.Lease)
	return s
}

//go:embed schema.sql
var schema string

// migrationLock keeps processes that start together from creating the table twice. The number is arbitrary.
const migrationLock = 0x67616e6261757468

// Migrate creates the table and its indexes where they are missing. It may run at every start, in several processes
// at once.
func (s *Store) Migrate(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrationLock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema, pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return fmt.Errorf("pgxstore: migrate: %w", err)
	}
	return nil
}

const (
	// How long a statement may take, the wait for a connection included: pgx itself waits for ever.
	callTimeout = 3 * time.Second

	// Whatever is in a row without a token, no lock and no Save refers to it after this time.
	grave = 10 * time.Minute

	loadSQL = `
SELECT access_token, refresh_token, token_type, scope, id_token, subject, issued_at, expires_at
FROM ganbauth_tokens
WHERE key = $1 AND access_token IS NOT NULL AND ($2::bigint = 0 OR touched_at > now() - $2::bigint * interval '1 second')`

	// A change without a lock, number 0, gets the number of the next lock.
	saveSQL = `
INSERT INTO ganbauth_tokens AS t
    (key, access_token, refresh_token, token_type, scope, id_token, subject, issued_at, expires_at, touched_at, saved)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now(), greatest($10::bigint, 1))
ON CONFLICT (key) DO UPDATE SET
    access_token = EXCLUDED.access_token, refresh_token = EXCLUDED.refresh_token, token_type = EXCLUDED.token_type,
    scope = EXCLUDED.scope, id_token = EXCLUDED.id_token, subject = EXCLUDED.subject,
    issued_at = EXCLUDED.issued_at, expires_at = EXCLUDED.expires_at, touched_at = now(),
    saved = CASE $10::bigint WHEN 0 THEN t.fence + 1 ELSE $10::bigint END
WHERE $10::bigint = 0 OR t.saved <= $10::bigint`

	deleteSQL = `
UPDATE ganbauth_tokens SET
    access_token = NULL, refresh_token = '', token_type = '', scope = '', id_token = '', subject = '',
    issued_at = NULL, expires_at = NULL, touched_at = now(),
    saved = CASE $2::bigint WHEN 0 THEN fence + 1 ELSE $2::bigint END
WHERE key = $1`

	lockSQL = `
INSERT INTO ganbauth_tokens AS t (key, fence, holder) VALUES ($1, 1, $2)
ON CONFLICT (key) DO UPDATE SET fence = t.fence + 1, holder = EXCLUDED.holder, beats = 0,
    touched_at = CASE WHEN t.access_token IS NULL THEN now() ELSE t.touched_at END
WHERE t.holder IS NULL OR (t.holder = $3 AND t.beats = $4)
RETURNING fence`

	heldSQL = `SELECT holder, beats FROM ganbauth_tokens WHERE key = $1 AND holder IS NOT NULL`

	extendSQL = `UPDATE ganbauth_tokens SET beats = beats + 1 WHERE key = $1 AND holder = $2`

	unlockSQL = `UPDATE ganbauth_tokens SET holder = NULL WHERE key = $1 AND holder = $2`

	expiringSQL = `
SELECT key FROM ganbauth_tokens
WHERE access_token IS NOT NULL AND refresh_token <> '' AND expires_at < $1 AND $2::bigint = 0
ORDER BY expires_at`

	// Rows without a token, and rows that nobody has saved for the TTL.
	buriedSQL = `
DELETE FROM ganbauth_tokens WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ganbauth_tokens
    WHERE access_token IS NULL AND touched_at < now() - $1::bigint * interval '1 second'
    LIMIT 1000 FOR UPDATE SKIP LOCKED))`
	oldSQL = `
DELETE FROM ganbauth_tokens WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ganbauth_tokens
    WHERE touched_at < now() - $1::bigint * interval '1 second'
    LIMIT 1000 FOR UPDATE SKIP LOCKED))`
)

// Load implements [ganbauth.TokenStore].
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var t ganbauth.Token
	err := s.pool.QueryRow(ctx, loadSQL, []byte(key), s.ttlSeconds()).Scan(
		&t.AccessToken, &t.RefreshToken, &t.TokenType, &t.Scope, &t.IDToken, &t.Subject, &t.IssuedAt, &t.ExpiresAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, ganbauth.ErrTokenNotFound
	case err != nil:
		return nil, fmt.Errorf("pgxstore: load: %w", err)
	}
	t.IssuedAt, t.ExpiresAt = t.IssuedAt.UTC(), t.ExpiresAt.UTC()
	return &t, nil
}

// Save implements [ganbauth.TokenStore]. It fails with [ganbauth.ErrSuperseded] if this process has lost its lock on
// key and another has changed the token since.
func (s *Store) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tag, err := s.pool.Exec(ctx, saveSQL, []byte(key), t.AccessToken, t.RefreshToken, t.TokenType,
		t.Scope, t.IDToken, t.Subject, t.IssuedAt, t.ExpiresAt, s.locks.Fence(key))
	if err != nil {
		return fmt.Errorf("pgxstore: save: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ganbauth.ErrSuperseded
	}
	return nil
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, deleteSQL, []byte(key), s.locks.Fence(key)); err != nil {
		return fmt.Errorf("pgxstore: delete: %w", err)
	}
	return nil
}

// Expiring implements [ganbauth.ExpiryLister]. With Options.TTL it lists nothing: such tokens are not kept alive.
func (s *Store) Expiring(ctx context.Context, before time.Time) ([]string, error) {
	rows, err := s.pool.Query(ctx, expiringSQL, before, s.ttlSeconds())
	if err != nil {
		return nil, fmt.Errorf("pgxstore: list: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var key []byte
		err := row.Scan(&key)
		return string(key), err
	})
	if err != nil {
		return nil, fmt.Errorf("pgxstore: list: %w", err)
	}
	return keys, nil
}

func (s *Store) ttlSeconds() int64 { return int64(s.ttl / time.Second) }

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so that it outlives any refresh;
// after the death of its process it lasts for Options.Lease at most.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	unlock, err = s.locks.Lock(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("pgxstore: %w", err)
	}
	return unlock, nil
}

// Cleanup deletes, now and at every interval, what is left of deleted tokens and, with Options.TTL, tokens that are
// older. It returns the context's error when ctx ends. A failure is tried again at the next interval.
func (s *Store) Cleanup(ctx context.Context, every time.Duration) error {
	for {
		s.deleteAll(ctx, buriedSQL, grave)
		if s.ttl > 0 {
			s.deleteAll(ctx, oldSQL, s.ttl)
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deleteAll deletes what is older than age, in batches that hold up nobody.
func (s *Store) deleteAll(ctx context.Context, sql string, age time.Duration) {
	for {
		tag, err := s.pool.Exec(ctx, sql, int64(age/time.Second))
		if err != nil || tag.RowsAffected() == 0 {
			return
		}
	}
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (fence int64, held lease.Hold, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = e.pool.QueryRow(ctx, lockSQL, []byte(key), holder, dead.Holder, dead.Beats).Scan(&fence)
	if !errors.Is(err, pgx.ErrNoRows) {
		return fence, held, err
	}
	err = e.pool.QueryRow(ctx, heldSQL, []byte(key)).Scan(&held.Holder, &held.Beats)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil // released meanwhile
	}
	return 0, held, err
}

func (e engine) Extend(ctx context.Context, key, holder string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := e.pool.Exec(ctx, extendSQL, []byte(key), holder)
	return err
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := e.pool.Exec(ctx, unlockSQL, []byte(key), holder)
	return err
}
