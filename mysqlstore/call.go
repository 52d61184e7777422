package mysqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// How long one call may take, the wait for a connection included: database/sql waits
// forever.
const callTimeout = 3 * time.Second

// call runs fn with a connection of the pool, and leaves it when ctx ends. Until then it
// repeats what the server has undone for the sake of another, as in a deadlock. A statement
// that is on its way is let finish in the background, in the time that a call has: to
// cancel it would cost its connection, and a new one is the last thing that a server
// needs from which many callers are leaving.
func call[T any](ctx context.Context, s *Store, fn func(context.Context, *sql.Conn) (T, error)) (T, error) {
	if err := ctx.Err(); err != nil {
		return *new(T), err
	}
	type answer struct {
		value T
		err   error
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	waiting, leave := s.queue(bounded)
	defer leave()
	answered := make(chan answer, 1)
	go func() {
		a := answer{err: errUnanswered}
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			cancel()
			answered <- a
		}()
		conn, err := s.db.Conn(waiting)
		if err != nil {
			a.err = err
			return
		}
		defer conn.Close()
		if err = ctx.Err(); err == nil {
			err = s.pooled.look(bounded, conn)
		}
		if err != nil {
			a.err = err
			return
		}
		for {
			a.value, a.err = fn(bounded, conn)
			if !isUndone(a.err) || ctx.Err() != nil {
				return
			}
		}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return *new(T), ctx.Err()
	}
}

// errUnanswered is what is left of a call that the connector has ended, with
// runtime.Goexit.
var errUnanswered = errors.New("the call has ended without an answer")

var errNoAutocommit = errors.New("the connections have autocommit off, with which nothing is stored: leave it on")

// autocommit is whether connections have autocommit on. Without it a statement seems done,
// and is undone when its connection ends. One look is enough: connections are made alike.
type autocommit struct{ on atomic.Bool }

// look fails if the connection has autocommit off. Once one was found on, it asks no more.
func (a *autocommit) look(ctx context.Context, conn interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}) error {
	if a.on.Load() {
		return nil
	}
	var on bool
	if err := conn.QueryRowContext(ctx, "SELECT @@autocommit").Scan(&on); err != nil {
		return err
	}
	if !on {
		return errNoAutocommit
	}
	a.on.Store(true)
	return nil
}

// queue returns the context with which a call waits for a connection. Where all
// connections are in use, a caller that leaves gives up its place in the queue. Otherwise
// one may have to be made: it is not given up with the caller, and serves the next one.
func (s *Store) queue(bounded context.Context) (waiting context.Context, leave context.CancelFunc) {
	if pool := s.db.Stats(); pool.OpenConnections < pool.MaxOpenConnections || pool.MaxOpenConnections == 0 {
		return bounded, func() {}
	}
	return context.WithCancel(bounded)
}

// exec runs a statement on a connection, and reports whether it has changed anything.
func exec(ctx context.Context, conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, query string) (changed bool, err error) {
	result, err := conn.ExecContext(ctx, query)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// exec runs a statement, and reports whether it has changed anything.
func (s *Store) exec(ctx context.Context, query string) (changed bool, err error) {
	return call(ctx, s, func(ctx context.Context, conn *sql.Conn) (bool, error) { return exec(ctx, conn, query) })
}
