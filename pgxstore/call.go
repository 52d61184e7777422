package pgxstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How long one call may take, the wait for a connection included: pgx itself waits forever.
// It is up to a second more.
const callTimeout = 3 * time.Second

// Codes of PostgreSQL's.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
)

// statement runs on a connection of the pool.
type statement[T any] func(context.Context, *pgxpool.Conn) (T, error)

// call runs fn, and leaves it when ctx ends. A caller that leaves while it waits for a
// connection gives up its place. A statement that is on its way is let finish in the
// background, in the time that a call has: to cancel it would cost its connection, and a
// new one is the last thing that a server needs from which many callers are leaving.
func call[T any](ctx context.Context, s *Store, fn statement[T]) (T, error) {
	if err := ctx.Err(); err != nil {
		return *new(T), err
	}
	type answer struct {
		value T
		err   error
	}
	bounded := s.bounds.join(ctx)
	waiting, leave := context.WithCancel(bounded)
	defer leave()
	answered := make(chan answer, 1)
	go func() {
		a := answer{err: errUnanswered}
		defer func() { answered <- a }()
		a.value, a.err = run(bounded, waiting, s, fn)
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return *new(T), ctx.Err()
	}
}

// read is call for what every request reads. In a busy process a goroutine would take a
// fifth of the time, so there is none: when PostgreSQL falls silent, the callers of that
// moment wait until the time of a call is over.
func read[T any](ctx context.Context, s *Store, fn statement[T]) (value T, err error) {
	defer func() { s.pulse.beat(err) }()
	if !s.pulse.steady() || ctx.Err() != nil {
		return call(ctx, s, fn)
	}
	bounded := s.bounds.join(ctx)
	waiting, leave := context.WithCancel(bounded)
	defer leave()
	stop := context.AfterFunc(ctx, leave)
	defer stop()
	value, err = run(bounded, waiting, s, fn)
	return value, cmp.Or(ctx.Err(), err)
}

// pulse knows whether a process is busy: steadyBeats reads in a row have been answered, each
// within maxGap of the one before, and the last one just now.
type pulse struct {
	beats atomic.Int64
	last  atomic.Int64 // since epoch
}

const (
	steadyBeats = 16
	maxGap      = 5 * time.Millisecond
)

var epoch = time.Now()

func (p *pulse) steady() bool {
	return p.beats.Load() >= steadyBeats && time.Since(epoch)-time.Duration(p.last.Load()) < maxGap
}

// beat tells how a read has ended.
func (p *pulse) beat(err error) {
	now := time.Since(epoch)
	answered := err == nil || errors.Is(err, pgx.ErrNoRows)
	if last := p.last.Swap(int64(now)); answered && now-time.Duration(last) < maxGap {
		p.beats.Add(1)
	} else {
		p.beats.Store(0)
	}
}

// run runs fn with a connection of the pool, for which it waits until waiting ends. A panic
// of a hook of the pool's is an error.
func run[T any](bounded, waiting context.Context, s *Store, fn statement[T]) (value T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	conn, err := s.pool.Acquire(waiting)
	if err != nil {
		return value, err
	}
	defer conn.Release()
	return untilDone(waiting, func() (T, error) { return fn(bounded, conn) })
}

// errUnanswered is what is left of a call that a hook of the pool's has ended, with
// runtime.Goexit.
var errUnanswered = errors.New("the call has ended without an answer")

// untilDone repeats a statement, until ctx ends, that PostgreSQL has undone for the sake of
// another: because of a default isolation above read committed, or of a deadlock.
func untilDone[T any](ctx context.Context, fn func() (T, error)) (value T, err error) {
	for {
		value, err = fn()
		var e *pgconn.PgError
		if !errors.As(err, &e) || e.Code != serializationFailure && e.Code != deadlockDetected || ctx.Err() != nil {
			return value, err
		}
	}
}

// exec runs a statement and returns how many rows it has met.
func (s *Store) exec(ctx context.Context, sql string, args ...any) (rows int64, err error) {
	return call(ctx, s, func(ctx context.Context, conn *pgxpool.Conn) (int64, error) {
		tag, err := conn.Exec(ctx, sql, args...)
		return tag.RowsAffected(), err
	})
}

// bounds makes contexts that end callTimeout from now, or up to a second later. All calls
// of a second share one timer: a timer for each would cost as much as the whole of what
// ganbauth adds to the statement.
type bounds struct {
	mu    sync.Mutex
	last  context.Context
	ended context.CancelFunc
	begun time.Time
}

// join returns such a context with the values of ctx, and without its end.
func (b *bounds) join(ctx context.Context) context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.begun) > time.Second { // or none has begun
		b.begun = time.Now()
		b.last, b.ended = context.WithTimeout(context.Background(), callTimeout+time.Second)
	}
	return boundedContext{b.last, ctx}
}

// boundedContext ends like one context and has the values of another. It asks the first one
// first, by which package context knows that it need not watch it with a goroutine.
type boundedContext struct {
	context.Context
	values context.Context
}

func (c boundedContext) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}
