// Package mysqlstore keeps ganbauth's tokens in MySQL or MariaDB, and makes refreshes
// exclusive across processes there.
//
//	connections, err := mysql.NewConnector(config)
//	db := sql.OpenDB(connections)
//	store := mysqlstore.New(db, mysqlstore.Options{Connector: connections})
//	err = store.Migrate(ctx)
//	go store.Cleanup(ctx, time.Hour)
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and everything that a store can be besides: a
// [ganbauth.Swapper], a [ganbauth.Locker], a [ganbauth.RecordLocker] and a
// [ganbauth.ExpiryPager]. Tokens are rows with columns. It needs MySQL 8 or MariaDB 10.6,
// and InnoDB.
//
// # How a record changes
//
// Beside a record stands its fingerprint. One statement compares it and replaces the
// record. A refresh takes five round trips: load, lock, which is two, swap, unlock.
//
// # How a lock is safe
//
// A lock is a random name in the token's row, with a count that its holder raises while
// it lives. A waiter takes the lock over only after it has seen the count stand still for
// a whole lease, by the waiter's own clock, while the server was answering. Nothing
// depends on a connection, as GET_LOCK would, or on a transaction. So neither a pooler
// nor an outage breaks a lock, and after an outage its holder can still save its token.
// Package lease has the details.
//
// # What is sent
//
// Every statement is one request of plain SQL whose values are hexadecimal literals: it
// needs no prepared statement and no option of the driver, and depends on no character
// set and no sql_mode. Autocommit must be on, as it is by default: every call fails where it
// is off. Reads must reach the primary: a proxy that sends SELECT to
// replicas must send those on ganbauth_tokens to the primary.
package mysqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

// Options configure a [Store]. Set Connector. The zero value of every other field is the
// right default.
type Options struct {
	// Connector makes connections to the database besides the pool's, two at most, over
	// which locks that are held for long are extended. They exist while the process holds
	// such locks. Default: none, and locks are extended over the pool. Then a lock is
	// lost if all of the pool's connections are in use for as long as a lease.
	Connector driver.Connector
	// TTL is how long a token is kept after it was last saved, in whole seconds. Default:
	// until it is deleted. Set it to the sessions' Lifetime where tokens belong to
	// sessions (without ganbauth's Options.Key). KeepAlive does not see tokens with a
	// TTL.
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it.
	// One to 20 seconds. Default: 10 seconds.
	Lease time.Duration
}

// Store keeps tokens in MySQL or MariaDB and locks them there, in the table
// ganbauth_tokens of the connection's database. It is safe for concurrent use.
//
// Every call but Migrate and Cleanup ends with its context, and after three seconds at
// most. A lock that somebody holds is waited for until the context ends. A statement that
// is on its way when the caller leaves is let finish: ending it would cost its
// connection. A list of tokens takes as many calls as it has pages.
type Store struct {
	db        *sql.DB
	connector driver.Connector
	ttl       time.Duration
	locker    *lease.Locker

	pooled, apart autocommit // of the pool's connections, and of those for beats

	mu    sync.Mutex
	beats *sql.DB // for beats alone, while this process holds locks; or nil
}

var (
	_ ganbauth.TokenStore   = (*Store)(nil)
	_ ganbauth.Swapper      = (*Store)(nil)
	_ ganbauth.Locker       = (*Store)(nil)
	_ ganbauth.RecordLocker = (*Store)(nil)
	_ ganbauth.ExpiryLister = (*Store)(nil)
	_ ganbauth.ExpiryPager  = (*Store)(nil)
)

// New returns a Store that uses db, a pool of go-sql-driver/mysql, which its owner
// closes. Call [Store.Migrate] before its first use.
func New(db *sql.DB, opts Options) *Store {
	s := &Store{db: db, connector: opts.Connector, ttl: opts.TTL}
	s.locker = lease.New(engine{s}, opts.Lease)
	return s
}

// Load implements [ganbauth.TokenStore].
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := call(ctx, s, func(ctx context.Context, conn *sql.Conn) (*ganbauth.Token, error) {
		var t ganbauth.Token
		var issued, expires int64
		err := conn.QueryRowContext(ctx, s.loadSQL(key)).Scan(&t.AccessToken, &t.RefreshToken, &t.TokenType,
			&t.Scope, &t.IDToken, &t.Subject, &t.Epoch, &t.Judged, &issued, &expires)
		t.IssuedAt, t.ExpiresAt = time.Unix(issued, 0).UTC(), time.Unix(expires, 0).UTC()
		return &t, err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, ganbauth.ErrTokenNotFound
	case err != nil:
		return nil, fmt.Errorf("mysqlstore: load: %w", err)
	}
	return t, nil
}

// EndsWithContext says that all methods end as soon as their context does: see
// [ganbauth.TokenStore].
func (*Store) EndsWithContext() bool { return true }

var (
	errNoToken = errors.New("mysqlstore: save: there is no token to save")
	errNoRow   = errors.New("its row comes and goes")
)

// Save implements [ganbauth.TokenStore].
func (s *Store) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	if t == nil {
		return errNoToken
	}
	done, err := s.put(ctx, key, t, "TRUE")
	if err == nil && !done {
		err = errNoRow
	}
	if err != nil {
		return fmt.Errorf("mysqlstore: save: %w", err)
	}
	return nil
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	if _, err := s.exec(ctx, emptySQL(key, "recorded = 1")); err != nil {
		return fmt.Errorf("mysqlstore: delete: %w", err)
	}
	return nil
}

// Swap implements [ganbauth.Swapper].
func (s *Store) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	var done bool
	var err error
	switch {
	case old == nil && new == nil:
		if _, err = s.Load(ctx, key); errors.Is(err, ganbauth.ErrTokenNotFound) {
			done, err = true, nil
		}
	case old == nil:
		done, err = s.put(ctx, key, new, "NOT ("+s.there()+")")
	case new == nil:
		done, err = s.exec(ctx, emptySQL(key, s.same(old)))
	default:
		done, err = s.exec(ctx, replaceSQL(key, new, s.same(old)))
	}
	if err != nil {
		return fmt.Errorf("mysqlstore: swap: %w", err)
	}
	if !done {
		return ganbauth.ErrSuperseded
	}
	return nil
}

// put puts t in the row of key where the condition holds, or in a new row, and reports
// whether it has. A row that another inserts in between is looked at again.
func (s *Store) put(ctx context.Context, key string, t *ganbauth.Token, condition string) (done bool, err error) {
	return call(ctx, s, func(ctx context.Context, conn *sql.Conn) (bool, error) {
		for range 2 {
			if done, err := exec(ctx, conn, replaceSQL(key, t, condition)); done || err != nil {
				return done, err
			}
			if done, err := exec(ctx, conn, insertSQL(key, t)); !isDuplicate(err) {
				return done, err
			}
		}
		return exec(ctx, conn, replaceSQL(key, t, condition))
	})
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
	page, err := call(ctx, s, func(ctx context.Context, conn *sql.Conn) (page []ganbauth.Expiry, err error) {
		rows, err := conn.QueryContext(ctx, pageSQL(after, before, limit))
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for rows.Next() {
			var e ganbauth.Expiry
			var due int64
			if err := rows.Scan(&due, &e.Key); err != nil {
				return nil, err
			}
			e.At = time.Unix(due, 0).UTC()
			page = append(page, e)
		}
		return page, rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("mysqlstore: list: %w", err)
	}
	return page, nil
}

// Cleanup deletes, now and at every interval, what is left of deleted tokens and, with
// Options.TTL, tokens that are older. It returns the context's error when ctx ends. A
// failure is tried again at the next interval, which has at least a second.
func (s *Store) Cleanup(ctx context.Context, every time.Duration) error {
	every = max(every, time.Second)
	for {
		s.deleteAll(ctx, buriedSQL(0, grave))
		if s.ttl > 0 {
			s.deleteAll(ctx, buriedSQL(1, s.ttl))
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deleteAll deletes in batches that hold up nobody.
func (s *Store) deleteAll(ctx context.Context, query string) {
	for {
		result, err := s.db.ExecContext(ctx, query)
		if err != nil {
			return
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return
		}
	}
}
