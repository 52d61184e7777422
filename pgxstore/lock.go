package pgxstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ganbauth/ganbauth/lease"
)

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so
// that it outlives any refresh. After the death of its process it lasts for
// Options.Lease.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	_, unlock, err = s.LockRecord(ctx, key)
	return unlock, err
}

// LockRecord implements [ganbauth.RecordLocker]. It is [Store.Lock], and costs no more.
func (s *Store) LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error) {
	var found record
	unlock, err = s.locker.LockWith(ctx, key, func(ctx context.Context, holder string, dead lease.Hold) (lease.Hold, error) {
		last, err := s.tryLock(ctx, key, holder, dead)
		found = last
		return found.hold, err
	})
	if err != nil {
		return "", nil, fmt.Errorf("pgxstore: %w", err)
	}
	switch {
	case !found.there:
		return "", unlock, nil
	case found.fingerprint != nil:
		return *found.fingerprint, unlock, nil
	}
	t, err := s.Load(ctx, key) // of an earlier version
	if err != nil {
		unlock()
		return "", nil, err
	}
	return t.Fingerprint(), unlock, nil
}

// record is what is known of a record that was to be locked.
type record struct {
	hold        lease.Hold
	there       bool
	fingerprint *string
}

func (s *Store) tryLock(ctx context.Context, key, holder string, dead lease.Hold) (record, error) {
	found, err := call(ctx, s, func(ctx context.Context, conn *pgxpool.Conn) (found record, err error) {
		err = conn.QueryRow(ctx, s.sql.lock, []byte(key), holder, dead.Holder, dead.Beats).
			Scan(&found.hold.Holder, &found.hold.Beats, &found.there, &found.fingerprint)
		return found, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return record{}, nil // it was unlocked in the middle of the statement
	}
	return found, err
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	found, err := e.tryLock(ctx, key, holder, dead)
	return found.hold, err
}

// Extend goes over the connections for beats, or else over the pool.
func (e engine) Extend(ctx context.Context, key, holder string) error {
	return lease.Extend(ctx, func(ctx context.Context) error {
		beats, err := e.beatPool()
		if err == nil {
			_, err = untilDone(ctx, func() (pgconn.CommandTag, error) {
				return beats.Exec(ctx, extendSQL, []byte(key), holder)
			})
		}
		return err
	}, func(ctx context.Context) error {
		_, err := e.exec(ctx, extendSQL, []byte(key), holder)
		return err
	})
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	_, err := e.exec(ctx, unlockSQL, []byte(key), holder)
	return err
}

const maxBeatConns = 2

// beatPool returns the pool for beats, and makes it if there is none.
func (s *Store) beatPool() (*pgxpool.Pool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beats != nil {
		return s.beats, nil
	}
	config := s.pool.Config()
	config.MaxConns, config.MinConns, config.MinIdleConns = maxBeatConns, 0, 0
	config.ConnConfig.ConnectTimeout = callTimeout
	beats, err := pgxpool.NewWithConfig(context.Background(), config)
	s.beats = beats
	return beats, err
}

// Rest implements [lease.Rester]: it closes the pool for beats.
func (e engine) Rest() {
	e.mu.Lock()
	beats := e.beats
	e.beats = nil
	e.mu.Unlock()
	if beats != nil {
		beats.Close()
	}
}
