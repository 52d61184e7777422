// Package pgxstore keeps ganbauth's tokens in PostgreSQL, and makes refreshes exclusive
// across processes there.
//
//	pool, err := pgxpool.New(ctx, "postgres://…")
//	store := pgxstore.New(pool, pgxstore.Options{})
//	err = store.Migrate(ctx)
//	go store.Cleanup(ctx, time.Hour)
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and everything that a store can be besides: a
// [ganbauth.Swapper], a [ganbauth.Locker], a [ganbauth.RecordLocker] and a
// [ganbauth.ExpiryPager]. Tokens are rows with columns.
//
// # How a record changes
//
// Beside a record stands its fingerprint. One statement compares it and replaces the
// record. A refresh takes four round trips: load, lock, swap, unlock.
//
// # How a lock is safe
//
// A lock is a random name in the token's row, with a count that its holder raises while
// it lives. A waiter takes the lock over only after it has seen the count stand still for
// a whole lease, by the waiter's own clock, while PostgreSQL was answering. No session or
// transaction has to stay open for it. So neither a pooler in transaction mode
// (PgBouncer) nor an outage breaks it, after which the holder can still save its token.
// Package lease has the details.
//
// A lock that is held for longer than a moment is extended over connections of the
// Store's own, two at most. They exist while the process holds such locks.
//
// # Behind a pooler
//
// Statements are sent as the pool is configured. A pooler that does not know prepared
// statements, PgBouncer before 1.21 for one, needs default_query_exec_mode=exec in the
// connection string, as for the application's own statements.
//
// Reads must reach the primary: a logout believes a read that finds no token. A connection
// string of several hosts needs target_session_attrs=read-write.
package pgxstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

// Options configure a [Store]. The zero value of each field is the right default.
type Options struct {
	// TTL is how long a token is kept after it was last saved. Default: until it is
	// deleted. Set it to the sessions' Lifetime where tokens belong to sessions (without
	// ganbauth's Options.Key). KeepAlive does not see tokens with a TTL.
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it.
	// One to 20 seconds. Default: 10 seconds.
	Lease time.Duration
}

// Store keeps tokens in PostgreSQL and locks them there, in the table ganbauth_tokens of
// the connection's search path. It is safe for concurrent use.
//
// Every call but Migrate and Cleanup ends with its context, and after four seconds at
// most. A lock that somebody holds is waited for until the context ends. A statement that
// is on its way when the caller leaves is let finish: ending it would cost its
// connection. A list of tokens takes as many calls as it has pages.
//
// Load saves a goroutine in a process that reads more than two hundred times a second. If
// PostgreSQL falls silent then, the reads that are on their way end after those four seconds.
type Store struct {
	pool   *pgxpool.Pool
	ttl    time.Duration
	sql    statements
	locker *lease.Locker
	bounds bounds
	pulse  pulse

	mu    sync.Mutex
	beats *pgxpool.Pool // for beats alone, while this process holds locks; or nil
}

var (
	_ ganbauth.TokenStore   = (*Store)(nil)
	_ ganbauth.Swapper      = (*Store)(nil)
	_ ganbauth.Locker       = (*Store)(nil)
	_ ganbauth.RecordLocker = (*Store)(nil)
	_ ganbauth.ExpiryLister = (*Store)(nil)
	_ ganbauth.ExpiryPager  = (*Store)(nil)
)

// New returns a Store that uses pool, which its owner closes. Call [Store.Migrate] before
// its first use.
func New(pool *pgxpool.Pool, opts Options) *Store {
	s := &Store{pool: pool, ttl: opts.TTL, sql: newStatements(opts.TTL)}
	s.locker = lease.New(engine{s}, opts.Lease)
	return s
}

var errNoToken = errors.New("pgxstore: save: there is no token to save")

// Load implements [ganbauth.TokenStore].
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := read(ctx, s, func(ctx context.Context, conn *pgxpool.Conn) (*ganbauth.Token, error) {
		t := new(ganbauth.Token)
		var issued, expires int64
		err := conn.QueryRow(ctx, s.sql.load, []byte(key)).Scan(&t.AccessToken, &t.RefreshToken, &t.TokenType,
			&t.Scope, &t.IDToken, &t.Subject, &t.Epoch, &t.Judged, &issued, &expires)
		t.IssuedAt, t.ExpiresAt = time.UnixMicro(issued).UTC(), time.UnixMicro(expires).UTC()
		return t, err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, ganbauth.ErrTokenNotFound
	case err != nil:
		return nil, fmt.Errorf("pgxstore: load: %w", err)
	}
	return t, nil
}

// EndsWithContext says that all methods end as soon as their context does: see
// [ganbauth.TokenStore].
func (*Store) EndsWithContext() bool { return true }

// Save implements [ganbauth.TokenStore].
func (s *Store) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	if t == nil {
		return errNoToken
	}
	if _, err := s.exec(ctx, s.sql.save, columns(key, t)...); err != nil {
		return fmt.Errorf("pgxstore: save: %w", err)
	}
	return nil
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	if _, err := s.exec(ctx, s.sql.delete, []byte(key)); err != nil {
		return fmt.Errorf("pgxstore: delete: %w", err)
	}
	return nil
}

// Swap implements [ganbauth.Swapper].
func (s *Store) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	var rows int64
	var err error
	switch {
	case old == nil && new == nil:
		rows, err = s.exec(ctx, s.sql.nothing, []byte(key))
	case old == nil:
		rows, err = s.exec(ctx, s.sql.fill, columns(key, new)...)
	case new == nil:
		rows, err = s.exec(ctx, s.sql.remove, []byte(key), old.Fingerprint())
	default:
		rows, err = s.exec(ctx, s.sql.replace, append(columns(key, new), old.Fingerprint())...)
	}
	if err != nil {
		return fmt.Errorf("pgxstore: swap: %w", err)
	}
	if rows == 0 {
		return ganbauth.ErrSuperseded
	}
	return nil
}

// columns are the parameters of a statement that writes t.
func columns(key string, t *ganbauth.Token) []any {
	return []any{[]byte(key), t.AccessToken, t.RefreshToken, t.TokenType, t.Scope, t.IDToken, t.Subject,
		t.Epoch, t.Judged, t.IssuedAt, t.ExpiresAt, t.Fingerprint()}
}

// Expiring implements [ganbauth.ExpiryLister]. With Options.TTL it lists nothing: such
// tokens are not kept alive. It reads page after page, and has all keys in memory at the
// end: prefer [Store.ExpiringAfter].
func (s *Store) Expiring(ctx context.Context, before time.Time) (keys []string, err error) {
	const page = 1000
	for after := (ganbauth.Expiry{}); ; {
		entries, err := s.ExpiringAfter(ctx, after, before, page)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			keys = append(keys, e.Key)
		}
		if len(entries) < page {
			return keys, nil
		}
		after = entries[len(entries)-1]
	}
}

// ExpiringAfter implements [ganbauth.ExpiryPager].
func (s *Store) ExpiringAfter(ctx context.Context, after ganbauth.Expiry, before time.Time, limit int) ([]ganbauth.Expiry, error) {
	if s.ttl > 0 {
		return nil, nil
	}
	entries, err := call(ctx, s, func(ctx context.Context, conn *pgxpool.Conn) ([]ganbauth.Expiry, error) {
		rows, _ := conn.Query(ctx, pageSQL, after.At, []byte(after.Key), before, limit) // CollectRows has its error
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e ganbauth.Expiry, err error) {
			var at int64
			var key string
			if err := row.Scan(&at, &key); err != nil {
				return e, err
			}
			bytes, err := hex.DecodeString(key)
			return ganbauth.Expiry{At: time.UnixMicro(at).UTC(), Key: string(bytes)}, err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("pgxstore: list: %w", err)
	}
	return entries, nil
}

// Cleanup deletes, now and at every interval, what is left of deleted tokens and, with
// Options.TTL, tokens that are older. It returns the context's error when ctx ends. A
// failure is tried again at the next interval, which has at least a second.
func (s *Store) Cleanup(ctx context.Context, every time.Duration) error {
	every = max(every, time.Second)
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
		tag, err := s.pool.Exec(ctx, sql, age.Milliseconds())
		if err != nil || tag.RowsAffected() == 0 {
			return
		}
	}
}
