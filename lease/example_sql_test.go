package lease_test

import (
	"context"
	"database/sql"
	"errors"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

// sqlLocks is an engine in a table of any database that knows ON CONFLICT, SQLite for one:
//
//	CREATE TABLE bank_locks (
//	    name   blob PRIMARY KEY,
//	    holder text NOT NULL,
//	    beats  integer NOT NULL
//	)
//
// No connection is held while a lock is held.
type sqlLocks struct{ db *sql.DB }

func (e sqlLocks) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (held lease.Hold, err error) {
	_, err = e.db.ExecContext(ctx, `
		INSERT INTO bank_locks (name, holder, beats) VALUES ($1, $2, 0)
		ON CONFLICT (name) DO UPDATE SET holder = $2, beats = 0
		WHERE bank_locks.holder = $2 OR (bank_locks.holder = $3 AND bank_locks.beats = $4)`,
		[]byte(key), holder, dead.Holder, dead.Beats)
	if err != nil {
		return lease.Hold{}, err
	}
	err = e.db.QueryRowContext(ctx, `SELECT holder, beats FROM bank_locks WHERE name = $1`, []byte(key)).Scan(&held.Holder, &held.Beats)
	if errors.Is(err, sql.ErrNoRows) {
		return lease.Hold{}, nil // unlocked in between
	}
	return held, err
}

func (e sqlLocks) Extend(ctx context.Context, key, holder string) error {
	_, err := e.db.ExecContext(ctx, `UPDATE bank_locks SET beats = beats + 1 WHERE name = $1 AND holder = $2`, []byte(key), holder)
	return err
}

func (e sqlLocks) Unlock(ctx context.Context, key, holder string) error {
	_, err := e.db.ExecContext(ctx, `DELETE FROM bank_locks WHERE name = $1 AND holder = $2`, []byte(key), holder)
	return err
}

// A Locker in a table, beside a default store on any engine of scs.
func ExampleNew_sql() {
	var db *sql.DB // yours
	_ = ganbauth.Options{Locker: lease.New(sqlLocks{db}, 0)}
}
