package mysqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

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
	unlock, err = s.locker.LockWith(ctx, key, func(ctx context.Context, holder string, dead lease.Hold) (lease.Hold, error) {
		found, err := s.tryLock(ctx, key, holder, dead)
		fingerprint = found.fingerprint
		return found.hold, err
	})
	if err != nil {
		return "", nil, fmt.Errorf("mysqlstore: %w", err)
	}
	return fingerprint, unlock, nil
}

// record is what is known of a record that was to be locked.
type record struct {
	hold        lease.Hold
	fingerprint string
}

// tryLock takes the lock if it can, and then looks who has it. No statement of MySQL's
// does both. Where there is no row, it inserts one.
func (s *Store) tryLock(ctx context.Context, key, holder string, dead lease.Hold) (record, error) {
	return call(ctx, s, func(ctx context.Context, conn *sql.Conn) (found record, err error) {
		if _, err := exec(ctx, conn, takeSQL(key, holder, dead.Holder, dead.Beats)); err != nil {
			return record{}, err
		}
		err = conn.QueryRowContext(ctx, s.heldSQL(key)).Scan(&found.hold.Holder, &found.hold.Beats, &found.fingerprint)
		if !errors.Is(err, sql.ErrNoRows) {
			return found, err
		}
		if _, err := exec(ctx, conn, insertLockSQL(key, holder)); err != nil {
			if isDuplicate(err) { // somebody was quicker: the next try sees who
				err = nil
			}
			return record{}, err
		}
		return record{hold: lease.Hold{Holder: holder}}, nil
	})
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	found, err := e.tryLock(ctx, key, holder, dead)
	return found.hold, err
}

// Extend goes over the connections for beats, if there are any, or else over the pool.
func (e engine) Extend(ctx context.Context, key, holder string) error {
	shared := func(ctx context.Context) error {
		_, err := e.exec(ctx, extendSQL(key, holder))
		return err
	}
	beats := e.beatPool()
	if beats == nil {
		return shared(ctx)
	}
	return lease.Extend(ctx, func(ctx context.Context) error {
		if err := e.apart.look(ctx, beats); err != nil {
			return err
		}
		_, err := exec(ctx, beats, extendSQL(key, holder))
		return err
	}, shared)
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	_, err := e.exec(ctx, unlockSQL(key, holder))
	return err
}

const maxBeatConns = 2

// beatPool returns the pool for beats, and makes it if there is none. Without
// Options.Connector it is nil.
func (s *Store) beatPool() *sql.DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beats == nil && s.connector != nil {
		s.beats = sql.OpenDB(s.connector)
		s.beats.SetMaxOpenConns(maxBeatConns)
	}
	return s.beats
}

// Rest implements [lease.Rester]: it closes the pool for beats.
func (e engine) Rest() {
	e.mu.Lock()
	beats := e.beats
	e.beats = nil
	e.mu.Unlock()
	if beats != nil {
		_ = beats.Close()
	}
}
