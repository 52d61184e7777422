package pgxstore_test

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	scspgx "github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

func pool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(context.Background(), dsn)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

func storeWithLease(t *testing.T, dsn string, lease time.Duration) storetest.Store {
	s := pgxstore.New(pool(t, dsn), pgxstore.Options{Lease: lease})
	require.NoError(t, s.Migrate(context.Background()))
	return s
}

// stores makes stores with a pool of their own each, as processes have, and leases of a
// second.
func stores(t *testing.T, dsn string) func() storetest.Store {
	return func() storetest.Store { return storeWithLease(t, dsn, time.Second) }
}

func TestStore(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := stores(t, dsn)()
	ganbtest.TestStore(t, func() ganbauth.TokenStore { return s })
}

// The application's default isolation may be stricter than a single statement needs.
func TestIsolation(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	for _, level := range []string{"repeatable%20read", "serializable"} {
		s := pgxstore.New(pool(t, dsn+"&pool_max_conns=8&default_transaction_isolation="+level), pgxstore.Options{})
		require.NoError(t, s.Migrate(t.Context()))
		require.NoError(t, s.Save(t.Context(), level, storetest.Token("0")))
		refresh := func(access string) error {
			unlock, err := s.Lock(t.Context(), level)
			if err != nil {
				return err
			}
			defer unlock()
			old, err := s.Load(t.Context(), level)
			if err != nil {
				return err
			}
			return s.Swap(t.Context(), level, old, storetest.Token(access))
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 10 {
					if err := refresh(fmt.Sprint(i, j)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// The application's sessions may have any settings. They change what is sent as text, as it
// is behind a pooler that knows no prepared statements.
func TestSettings(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	for name, params := range map[string]string{
		"exec":            "exec&DateStyle=German&bytea_output=escape",
		"simple protocol": "simple_protocol&DateStyle=SQL,DMY&bytea_output=escape&timezone=Asia/Tokyo",
	} {
		t.Run(name, func(t *testing.T) {
			s := stores(t, dsn+"&default_query_exec_mode="+params)()
			ganbtest.TestStore(t, func() ganbauth.TokenStore { return s })
		})
	}
}

// Several processes that start together migrate together, and a second start changes
// nothing.
func TestMigrate(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	var wg sync.WaitGroup
	for range 8 {
		s := pgxstore.New(pool(t, dsn), pgxstore.Options{})
		wg.Go(func() {
			if err := s.Migrate(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p := pool(t, dsn)
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))
	require.NoError(t, s.Migrate(t.Context()))
	_, err := s.Load(t.Context(), "k")
	require.NoError(t, err)

	_, err = p.Exec(t.Context(), "ALTER TABLE ganbauth_tokens RENAME TO kept") // whose indexes keep their names
	require.NoError(t, err)
	for range 2 {
		require.ErrorContains(t, s.Migrate(t.Context()), "pgxstore: migrate: an index of another table has the name")
	}
	for _, index := range []string{"touched_at", "buried", "expires_at"} {
		_, err = p.Exec(t.Context(), fmt.Sprintf("ALTER INDEX ganbauth_tokens_%s RENAME TO kept_%[1]s", index))
		require.NoError(t, err)
	}
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))
}

// A table in a later schema of the search path is another application's, whose users have
// the same keys.
func TestMigrateInASchema(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	other, p := stores(t, dsn)(), pool(t, dsn)
	require.NoError(t, other.Save(t.Context(), "bank/1", storetest.Token("other")))
	_, err := p.Exec(t.Context(), `CREATE SCHEMA "the app's"`)
	require.NoError(t, err)
	newStore := stores(t, dsn+"&search_path="+url.PathEscape(`"the app's",public`))
	_, err = newStore().Load(t.Context(), "bank/1")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	require.NoError(t, newStore().Save(t.Context(), "bank/1", storetest.Token("own")))
	for s, access := range map[storetest.Store]string{other: "other", newStore(): "own"} {
		got, err := s.Load(t.Context(), "bank/1")
		require.NoError(t, err)
		require.Equal(t, access, got.AccessToken)
	}

	nowhere := pgxstore.New(pool(t, dsn+"&search_path=missing"), pgxstore.Options{})
	require.ErrorContains(t, nowhere.Migrate(t.Context()), "pgxstore: migrate: ")
}

func TestLostLease(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	p := pool(t, dsn)
	newStore := func() storetest.Store { return pgxstore.New(p, pgxstore.Options{}) }
	storetest.LostLease(t, newStore, func(t *testing.T) {
		tag, err := p.Exec(t.Context(), "UPDATE ganbauth_tokens SET holder = NULL WHERE holder IS NOT NULL")
		require.NoError(t, err)
		require.NotZero(t, tag.RowsAffected())
	})
}

func TestB1Emptied(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	newStore, p := stores(t, dsn), pool(t, dsn)
	storetest.Emptied(t, newStore, func(t *testing.T) {
		_, err := p.Exec(t.Context(), "DELETE FROM ganbauth_tokens")
		require.NoError(t, err)
	})
}

func TestLeaseIsExtended(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	storetest.LeaseIsExtended(t, stores(t, dsn))
}

func TestHolderIsKilled(t *testing.T) {
	dsn := ""
	if !storetest.IsChild() {
		_, dsn = testenv.Postgres(t)
	}
	storetest.HolderIsKilled(t, dsn, func(dsn string) storetest.Store { return stores(t, dsn)() })
}

func TestPostgresGoesAway(t *testing.T) {
	server, dsn := testenv.Postgres(t)
	storetest.EngineGoesAway(t, server, stores(t, dsn)())
}

func TestKits(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	storetest.Kits(t, stores(t, dsn))
}

func TestProcesses(t *testing.T) {
	engine := func() (*testenv.Process, string) { return testenv.Postgres(t) }
	storetest.Processes(t, engine, func(dsn string) storetest.Store { return storeWithLease(t, dsn, 3*time.Second) })
}

// The default store on scs's own pgxstore, with the Locker from here.
func TestSessions(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	newStore, p := stores(t, dsn), pool(t, dsn)
	_, err := p.Exec(t.Context(), "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)")
	require.NoError(t, err)
	storetest.Sessions(t,
		func() scs.Store { return scspgx.NewWithCleanupInterval(pool(t, dsn), 0) },
		func() ganbauth.Locker { return newStore() })
}

func TestCleanup(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	p := pool(t, dsn)
	ctx := t.Context()
	count := func() (n int) {
		require.NoError(t, p.QueryRow(ctx, "SELECT count(*) FROM ganbauth_tokens").Scan(&n))
		return n
	}
	age := func(key, interval string) {
		_, err := p.Exec(ctx, "UPDATE ganbauth_tokens SET touched_at = now() - $2::interval WHERE key = $1", []byte(key), interval)
		require.NoError(t, err)
	}
	clean := func(s *pgxstore.Store) {
		ended, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- s.Cleanup(ended, time.Hour) }()
		time.Sleep(200 * time.Millisecond)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled, "the loop stops")
	}
	forever, hour := pgxstore.New(p, pgxstore.Options{}), pgxstore.New(p, pgxstore.Options{TTL: time.Hour})
	for _, key := range []string{"live", "old", "deleted", "just deleted"} {
		require.NoError(t, forever.Save(ctx, key, storetest.Token("a")))
	}
	require.NoError(t, forever.Delete(ctx, "deleted"))
	require.NoError(t, forever.Delete(ctx, "just deleted"))
	age("old", "2 hours")
	age("deleted", "630 seconds")
	age("just deleted", "570 seconds")
	clean(forever)
	require.Equal(t, 3, count(), "what is left of a deleted token goes, a token does not")
	_, err := hour.Load(ctx, "old")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	_, err = forever.Load(ctx, "old")
	require.NoError(t, err)
	clean(hour)
	require.Equal(t, 2, count())
	_, err = hour.Load(ctx, "live")
	require.NoError(t, err)
	_, err = p.Exec(ctx, "INSERT INTO ganbauth_tokens (key, touched_at) SELECT convert_to('k' || n, 'UTF8'), now() - interval '1 hour' FROM generate_series(1, 2500) n")
	require.NoError(t, err)
	clean(forever)
	require.Equal(t, 2, count(), "in as many batches as it takes")

	ended, cancel := context.WithCancel(ctx)
	done := make(chan error)
	before := p.Stat().AcquireCount()
	go func() { done <- forever.Cleanup(ended, 0) }()
	time.Sleep(200 * time.Millisecond)
	require.LessOrEqual(t, p.Stat().AcquireCount(), before+2, "once a second at most")
	_, err = p.Exec(ctx, "INSERT INTO ganbauth_tokens (key, touched_at) VALUES ('k', now() - interval '1 hour')")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return count() == 2 }, 20*time.Second, 10*time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// PostgreSQL counts the rows that are deleted, and undoes it at the end. It is not tried
// again before the next interval.
func TestCleanupFails(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s, p := storeWithLease(t, dsn, 0).(*pgxstore.Store), pool(t, dsn)
	conn, err := p.Acquire(t.Context())
	require.NoError(t, err)
	_, err = conn.Conn().PgConn().Exec(t.Context(), `CREATE SEQUENCE tries;
		CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'try %', nextval('tries'); END $$ LANGUAGE plpgsql;
		CREATE CONSTRAINT TRIGGER fail AFTER DELETE ON ganbauth_tokens DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail();
		INSERT INTO ganbauth_tokens (key, touched_at) VALUES ('k', now() - interval '1 hour')`).ReadAll()
	require.NoError(t, err)
	conn.Release()
	ended, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Cleanup(ended, time.Hour) }()
	tries := func() (n int) {
		require.NoError(t, p.QueryRow(t.Context(), "SELECT last_value FROM tries WHERE is_called UNION ALL SELECT 0 LIMIT 1").Scan(&n))
		return n
	}
	require.Eventually(t, func() bool { return tries() > 0 }, 20*time.Second, time.Millisecond)
	time.Sleep(100 * time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, 1, tries())
}

// A pooler in transaction mode gives a statement any connection: nothing may hang on one.
func TestPgBouncer(t *testing.T) {
	server, _ := testenv.Postgres(t)
	s := stores(t, server.PgBouncer(t)+"&default_query_exec_mode=exec")()
	ganbtest.TestStore(t, func() ganbauth.TokenStore { return s })
}

func TestF5SilentPostgres(t *testing.T) {
	p := storetest.NewProxy(t, "")
	storetest.F5(t, p, pgxstore.New(pool(t, dsn(p.Addr)), pgxstore.Options{}))
}

// It is silent on connections that have been made.
func TestF5PostgresFallsSilent(t *testing.T) {
	server, _ := testenv.Postgres(t)
	proxy := storetest.NewProxy(t, server.Addr)
	s := stores(t, dsn(proxy.Addr)+"&pool_max_conns=50")()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { _, _ = s.Load(t.Context(), "k") })
	}
	wg.Wait()
	t.Cleanup(proxy.Silence())
	storetest.F5(t, proxy, s)
}

func dsn(addr string) string { return "postgres://postgres@" + addr + "/postgres?sslmode=disable" }

func TestF6LockAnswerLost(t *testing.T) {
	server, direct := testenv.Postgres(t)
	p := storetest.NewProxy(t, server.Addr)
	here, there := storeWithLease(t, dsn(p.Addr), 0), storeWithLease(t, direct, 0)
	storetest.F6(t, p, here, there, func(key string) string { return key })
}

func TestF7CallersThatLeave(t *testing.T) {
	server, _ := testenv.Postgres(t)
	p := storetest.NewProxy(t, server.Addr)
	storetest.F7(t, p, stores(t, dsn(p.Addr)+"&pool_max_conns=4")(), 4)
}

// connections counts those of all clients.
func connections(t *testing.T, watch *pgxpool.Pool) (n int) {
	require.NoError(t, watch.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").Scan(&n))
	return n
}

func TestEngine(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p, watch := pool(t, dsn+"&pool_max_conns=5&pool_min_conns=4"), pool(t, dsn+"&pool_max_conns=1")
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	require.Eventually(t, func() bool { return p.Stat().TotalConns() >= 4 && p.Stat().ConstructingConns() == 0 }, 20*time.Second, 10*time.Millisecond)
	storetest.Engine(t, pgxstore.EngineOf(s), func() int { return connections(t, watch) }, func() {
		_, err := watch.Exec(t.Context(), "DROP TABLE ganbauth_tokens")
		require.NoError(t, err)
	})
}

// The application uses all of its connections.
func TestF8StarvedPool(t *testing.T) {
	_, direct := testenv.Postgres(t)
	starved, watch := pool(t, direct+"&pool_max_conns=2"), pool(t, direct+"&pool_max_conns=1")
	one, other := pgxstore.New(starved, pgxstore.Options{Lease: time.Second}), stores(t, direct)()
	starve := func(t *testing.T) (feed func()) {
		var conns []*pgxpool.Conn
		for range 2 {
			conn, err := starved.Acquire(t.Context())
			require.NoError(t, err)
			conns = append(conns, conn)
		}
		return func() {
			for _, conn := range conns {
				conn.Release()
			}
		}
	}
	starve(t)() // both are connected
	storetest.F8(t, one, other, starve, func() int { return connections(t, watch) })
}

func TestF8FullPostgres(t *testing.T) {
	server, direct := testenv.Postgres(t)
	p := storetest.NewProxy(t, server.Addr)
	storetest.F8Full(t, p, stores(t, dsn(p.Addr))(), stores(t, direct)())
}

// A connection more hangs, as at a pooler that lets it wait: a lock is extended over one of
// the application's.
func TestF8BeatsThatHang(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	other := storeWithLease(t, dsn, 2*time.Second)
	config, err := pgxpool.ParseConfig(dsn + "&pool_max_conns=1")
	require.NoError(t, err)
	config.ConnConfig.DialFunc = storetest.DialOnce()
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	storetest.LockIsKept(t, pgxstore.New(p, pgxstore.Options{Lease: 2 * time.Second}), other, 6*time.Second)
}

// While PostgreSQL takes no writes the holder cannot beat. A waiter fails then, and does not
// take it for dead.
func TestLockFailsWhereBeatsDo(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	unlock, err := stores(t, dsn)().Lock(t.Context(), "k")
	require.NoError(t, err)
	defer unlock()
	waiter := pgxstore.New(pool(t, dsn+"&default_transaction_read_only=on"), pgxstore.Options{})
	storetest.LockFails(t, waiter, "k", "read-only transaction")
}

func TestI16README(t *testing.T) {
	storetest.README(t, []string{"github.com/jackc/pgx/v5/pgxpool", "github.com/ganbauth/ganbauth/pgxstore"})
}
