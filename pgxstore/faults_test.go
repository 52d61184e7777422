package pgxstore_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/lease"
	"github.com/ganbauth/ganbauth/pgxstore"
)

func TestDetails(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := stores(t, dsn)()
	storetest.Details(t, s, pgxstore.New(pool(t, dsn), pgxstore.Options{TTL: time.Hour}))
}

func TestFreshKeys(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	storetest.FreshKeys(t, stores(t, dsn)())
}

// PostgreSQL is well and refuses each statement.
func TestStatementsFail(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := stores(t, dsn)()
	_, err := pool(t, dsn).Exec(t.Context(), "DROP TABLE ganbauth_tokens")
	require.NoError(t, err)
	storetest.CallsFail(t, s)
	require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "pgxstore: save: ")
}

// A user that may not change the schema learns it from Migrate, and changes nothing.
func TestMigrateFails(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	owner := pool(t, dsn)
	exec := func(sql string) {
		t.Helper()
		_, err := owner.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	exec("CREATE ROLE clerk; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
	clerk := pgxstore.New(pool(t, dsn+"&role=clerk"), pgxstore.Options{})
	require.ErrorContains(t, clerk.Migrate(t.Context()), "pgxstore: migrate: ERROR: permission denied")

	exec("CREATE TABLE ganbauth_tokens (key bytea PRIMARY KEY)") // as of an earlier version
	require.ErrorContains(t, clerk.Migrate(t.Context()), "pgxstore: migrate: ERROR: must be owner")
	exec("DROP TABLE ganbauth_tokens")

	s := pgxstore.New(owner, pgxstore.Options{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Migrate(ended), context.Canceled)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, clerk.Migrate(t.Context()), "nothing is missing")
	exec("DROP INDEX ganbauth_tokens_buried")
	require.Error(t, clerk.Migrate(t.Context()))
	require.NoError(t, s.Migrate(t.Context()))
	var there bool
	require.NoError(t, owner.QueryRow(t.Context(), "SELECT to_regclass('ganbauth_tokens_buried') IS NOT NULL").Scan(&there))
	require.True(t, there, "what is missing is added")

	exec("REVOKE SELECT ON pg_attribute FROM PUBLIC")
	require.ErrorContains(t, clerk.Migrate(t.Context()), "permission denied for table pg_attribute")
	conn, err := owner.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "SELECT pg_advisory_lock($1)", int64(pgxstore.MigrationLock))
	require.NoError(t, err)
	waiting := pgxstore.New(pool(t, dsn+"&lock_timeout=50"), pgxstore.Options{})
	require.ErrorContains(t, waiting.Migrate(t.Context()), "lock timeout")
}

// What Migrate has added is not taken for done before it has seen it.
func TestMigrateCannotSeeWhatItDid(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.ConnConfig.Tracer = &lastLook{}
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	require.ErrorIs(t, pgxstore.New(p, pgxstore.Options{}).Migrate(t.Context()), context.Canceled)
}

// lastLook ends the second statement that looks for the indexes, before it is sent.
type lastLook struct{ looks int }

func (l *lastLook) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "pg_index") {
		l.looks++
		if l.looks == 2 {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			return ended
		}
	}
	return ctx
}

func (*lastLook) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A hook of the application's pool panics, or ends its goroutine. The call has an error, and
// the process lives.
func TestHooksOfThePool(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	for why, hook := range map[string]func(){
		"panic: a hook":                        func() { panic("a hook") },
		"the call has ended without an answer": runtime.Goexit,
	} {
		config, err := pgxpool.ParseConfig(dsn)
		require.NoError(t, err)
		config.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { hook(); return true, nil }
		p, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		s := pgxstore.New(p, pgxstore.Options{}) // the pool cannot be closed: it waits for the hook's connections
		require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "pgxstore: save: "+why)
		_, err = s.Load(t.Context(), "k")
		require.ErrorContains(t, err, "pgxstore: load: "+why)
	}
}

// A process is busy while reads are answered in quick succession.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pgxstore.Pulse
		beat := func(n int, gap time.Duration, err error) {
			for range n {
				time.Sleep(gap)
				p.Beat(err)
			}
		}
		p.Beat(nil)
		time.Sleep(time.Hour)
		beat(16, time.Millisecond, nil)
		require.False(t, p.Steady(), "the first one came after a pause")
		beat(1, time.Millisecond, pgx.ErrNoRows)
		require.True(t, p.Steady(), "that there is no such token is an answer")
		time.Sleep(5 * time.Millisecond)
		require.False(t, p.Steady())
		beat(16, 4*time.Millisecond, nil)
		require.False(t, p.Steady())
		beat(1, 4*time.Millisecond, nil)
		require.True(t, p.Steady())
		p.Beat(context.Canceled)
		require.False(t, p.Steady())
		beat(15, time.Millisecond, nil)
		require.False(t, p.Steady())
		beat(100, 5*time.Millisecond, nil)
		require.False(t, p.Steady())
	})
}

// A read of a busy process has no goroutine. A hook that panics is an error all the same, a
// caller that leaves gives up its place, and PostgreSQL that has fallen silent is left when
// the time of a call is over.
func TestBusyReads(t *testing.T) {
	server, dsn := testenv.Postgres(t)
	proxy := storetest.NewProxy(t, server.Addr)
	config, err := pgxpool.ParseConfig(strings.Replace(dsn, server.Addr, proxy.Addr, 1) + "&pool_max_conns=1")
	require.NoError(t, err)
	var hook func()
	var waiting context.Context
	config.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) { waiting = ctx; hook(); return true, nil }
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	s := pgxstore.New(p, pgxstore.Options{})
	hook = func() {}
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))

	busy := func(ctx context.Context) error {
		pgxstore.Busy(s)
		token, err := s.Load(ctx, "k")
		if err == nil {
			require.Equal(t, "a", token.AccessToken)
		}
		return err
	}
	here := goroutine()
	hook = func() { require.Equal(t, here, goroutine()) }
	ctx := &waited{Context: t.Context(), done: make(chan struct{})}
	require.NoError(t, busy(ctx))
	require.Zero(t, ctx.waits, "nothing is left at a context that lives for long")
	require.Error(t, waiting.Err(), "nor behind it")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	hook = func() { t.Error("a connection for a caller that has gone") }
	require.ErrorIs(t, busy(gone), context.Canceled)
	hook = func() { require.NotEqual(t, here, goroutine(), "a read without an answer") }
	_, err = s.Load(t.Context(), "k")
	require.NoError(t, err)

	hook = func() {}
	conn, err := p.Acquire(t.Context())
	require.NoError(t, err)
	leaving, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	released := make(chan struct{})
	go func() {
		defer close(released)
		<-leaving.Done()
		for deadline := time.Now().Add(2 * time.Second); p.Stat().CanceledAcquireCount() == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		conn.Release()
	}()
	require.ErrorIs(t, busy(leaving), context.DeadlineExceeded)
	<-released
	conn, err = p.Acquire(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, busy(t.Context()), context.DeadlineExceeded, "the time of a call is over")
	conn.Release()

	end := proxy.Silence()
	require.Error(t, busy(t.Context()))
	end()
	require.Eventually(t, func() bool { return busy(t.Context()) == nil }, 10*time.Second, 10*time.Millisecond)
	hook = func() { panic("a hook") }
	require.ErrorContains(t, busy(t.Context()), "pgxstore: load: panic: a hook")
}

// waited counts what waits for its end, which never comes.
type waited struct {
	context.Context
	done  chan struct{}
	waits int
}

func (w *waited) Done() <-chan struct{} { return w.done }

func (w *waited) Value(any) any { return nil }

func (w *waited) AfterFunc(func()) (stop func() bool) {
	w.waits++
	return func() bool { w.waits--; return true }
}

// goroutine names the goroutine that calls it.
func goroutine() string {
	name, _, _ := strings.Cut(string(debug.Stack()), " [")
	return name
}

// What PostgreSQL undoes for the sake of another is done in the end, or until the caller
// leaves. Nothing else is repeated.
func TestUndoneStatementsAreRepeated(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p := pool(t, dsn)
	s := stores(t, dsn)()
	// fail has the next statements that write fail so often. The count outlives what is undone.
	fail := func(times int, code string) {
		_, err := p.Exec(t.Context(), fmt.Sprintf(`CREATE OR REPLACE FUNCTION fail() RETURNS trigger AS $$ BEGIN
			IF nextval('tries') <= %d THEN RAISE EXCEPTION USING ERRCODE = '%s'; END IF;
			RETURN NEW; END $$ LANGUAGE plpgsql; ALTER SEQUENCE tries RESTART`, times, code))
		require.NoError(t, err)
	}
	tries := func() (n int) {
		require.NoError(t, p.QueryRow(t.Context(), "SELECT last_value FROM tries").Scan(&n))
		return n
	}
	_, err := p.Exec(t.Context(), "CREATE SEQUENCE tries")
	require.NoError(t, err)
	fail(0, "40001")
	_, err = p.Exec(t.Context(), "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON ganbauth_tokens FOR EACH ROW EXECUTE FUNCTION fail()")
	require.NoError(t, err)
	for _, code := range []string{"40001", "40P01"} {
		fail(3, code)
		require.NoError(t, s.Save(t.Context(), code, storetest.Token("a")))
		require.Equal(t, 4, tries())
	}
	fail(3, "53100") // the disk is full
	var refused *pgconn.PgError
	require.ErrorAs(t, s.Save(t.Context(), "k", storetest.Token("a")), &refused)
	require.Equal(t, "53100", refused.Code)
	require.Equal(t, 1, tries())

	fail(math.MaxInt32, "40001")
	storetest.RepeatedUntilLeft(t, s, tries)
}

// gone is the context of a caller that is just leaving.
type gone struct{ context.Context }

func (gone) Err() error { return context.Canceled }

// A caller that has gone sends nothing.
func TestCallerThatHasGone(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := stores(t, dsn)()
	require.ErrorIs(t, s.Save(gone{t.Context()}, "k", storetest.Token("a")), context.Canceled)
	_, err := s.Load(t.Context(), "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
}

// A record of a version without fingerprints is locked all the same, unless it cannot be
// read.
func TestLockOfARecordWithoutAFingerprint(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p := pool(t, dsn)
	exec := func(sql string) func() error {
		return func() error {
			_, err := p.Exec(t.Context(), sql)
			return err
		}
	}
	storetest.LockWithoutFingerprint(t, stores(t, dsn)(), exec("UPDATE ganbauth_tokens SET fingerprint = NULL"),
		exec("UPDATE ganbauth_tokens SET expires_at = 'infinity'"), "pgxstore: load: ") // it is no time.Time
	var holder *string
	require.NoError(t, p.QueryRow(t.Context(), "SELECT holder FROM ganbauth_tokens").Scan(&holder))
	require.Nil(t, holder, "the lock is given back")
}

// A call has three to four seconds. Those that begin in the same second share a timer, and
// nothing else.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b pgxstore.Bounds
		gone, cancel := context.WithCancel(context.WithValue(t.Context(), t, "value"))
		cancel()
		first, second := b.Join(gone), b.Join(t.Context())
		require.Same(t, pgxstore.Shared(first), pgxstore.Shared(second))
		require.NoError(t, first.Err(), "a statement is let finish")
		require.Equal(t, "value", first.Value(t))
		require.Nil(t, second.Value(t))
		for range 20 {
			begun := time.Now()
			before := runtime.NumGoroutine()
			child, cancel := context.WithCancel(b.Join(t.Context()))
			require.LessOrEqual(t, runtime.NumGoroutine(), before, "nothing watches it")
			go func() {
				<-child.Done()
				if took := time.Since(begun); took < 3*time.Second || took > 4*time.Second {
					t.Error("a call has ended after", took)
				}
				cancel()
			}()
			time.Sleep(300 * time.Millisecond)
		}
		require.NotSame(t, pgxstore.Shared(first), pgxstore.Shared(b.Join(t.Context())))
		time.Sleep(5 * time.Second)
	})
}

// A caller that leaves while all connections are in use gives up its place.
func TestPlaceInTheQueue(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p := pool(t, dsn+"&pool_max_conns=1")
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	conn, err := p.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- s.Save(ctx, "k", storetest.Token("a")) }()
	time.Sleep(50 * time.Millisecond) // it waits
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	require.Eventually(t, func() bool { return p.Stat().CanceledAcquireCount() == 1 }, 2*time.Second, time.Millisecond)
	conn.Release()
	_, err = s.Load(t.Context(), "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
}

// Locks are extended over two connections at most, which are made when they are needed, in
// the time of a call.
func TestConnectionsForBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := pgxpool.ParseConfig(dsn("127.0.0.1:1") + "&pool_max_conns=9")
		require.NoError(t, err)
		var dialed atomic.Int32
		took := make(chan time.Duration, 99)
		config.ConnConfig.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialed.Add(1)
			begun := time.Now()
			<-ctx.Done()
			took <- time.Since(begun)
			return nil, ctx.Err()
		}
		p, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		defer p.Close()
		e := pgxstore.EngineOf(pgxstore.New(p, pgxstore.Options{}))
		var beats sync.WaitGroup
		beat := func() { assert.Error(t, e.Extend(t.Context(), "k", "one")) }
		beats.Go(beat)
		synctest.Wait()
		require.Equal(t, int32(1), dialed.Load())
		for range 9 {
			beats.Go(beat)
		}
		synctest.Wait()
		require.Equal(t, int32(2), dialed.Load())
		require.Equal(t, 3*time.Second, <-took)
		beats.Wait()
		e.(lease.Rester).Rest()
	})
}
