package mysqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"
	"testing"
	"time"

	scsmysql "github.com/alexedwards/scs/mysqlstore"
	"github.com/alexedwards/scs/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/lease"
	"github.com/ganbauth/ganbauth/mysqlstore"
)

func TestMain(m *testing.M) {
	_ = mysql.SetLogger(mysql.Logger(&mysql.NopLogger{})) // it tells of connections that tests cut
	m.Run()
}

func connector(t *testing.T, dsn string) driver.Connector {
	t.Helper()
	config, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	c, err := mysql.NewConnector(config)
	require.NoError(t, err)
	return c
}

// pool has at most conns connections.
func pool(t *testing.T, dsn string, conns int) *sql.DB {
	t.Helper()
	db := sql.OpenDB(connector(t, dsn))
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	t.Cleanup(func() { db.Close() })
	return db
}

func storeWithLease(t *testing.T, dsn string, lease time.Duration) storetest.Store {
	s := mysqlstore.New(pool(t, dsn, 10), mysqlstore.Options{Lease: lease, Connector: connector(t, dsn)})
	require.NoError(t, s.Migrate(context.Background()))
	return s
}

// stores makes stores with a pool of their own each, as processes have, and leases of a
// second.
func stores(t *testing.T, dsn string) func() storetest.Store {
	return func() storetest.Store { return storeWithLease(t, dsn, time.Second) }
}

// The store asks nothing of the driver's options, nor of the server's.
func TestStore(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	for name, params := range map[string]string{
		"defaults":          "",
		"found rows":        "?clientFoundRows=true&interpolateParams=true",
		"not strict":        "?sql_mode=%27%27&time_zone=%27%2B09%3A00%27",
		"strict and quoted": "?sql_mode=%27TRADITIONAL,ANSI_QUOTES,NO_BACKSLASH_ESCAPES%27&collation=latin1_swedish_ci",
		"serializable":      "?tx_isolation=%27SERIALIZABLE%27",
	} {
		t.Run(name, func(t *testing.T) {
			newStore := stores(t, dsn+params)
			ganbtest.TestStore(t, func() ganbauth.TokenStore { return newStore() })
		})
	}
}

// Without autocommit nothing would be stored, and no call seems to succeed.
func TestAutocommitIsOff(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	on, ctx := storeWithLease(t, dsn, time.Second), t.Context()
	require.NoError(t, on.Save(ctx, "k", storetest.Token("a")))
	off := mysqlstore.New(pool(t, dsn+"?autocommit=0", 2), mysqlstore.Options{})
	for name, call := range map[string]func() error{
		"Migrate":  func() error { return off.Migrate(ctx) },
		"Load":     func() error { _, err := off.Load(ctx, "k"); return err },
		"Save":     func() error { return off.Save(ctx, "k", storetest.Token("b")) },
		"Swap":     func() error { return off.Swap(ctx, "k", storetest.Token("a"), storetest.Token("b")) },
		"Delete":   func() error { return off.Delete(ctx, "k") },
		"Lock":     func() error { _, err := off.Lock(ctx, "k"); return err },
		"Expiring": func() error { _, err := off.Expiring(ctx, time.Now()); return err },
	} {
		require.ErrorContains(t, call(), "autocommit", name)
	}
	_, err := on.Load(ctx, "k")
	require.NoError(t, err)
}

// Only the connections for beats have it off: a lock is extended over the pool.
func TestAutocommitIsOffForBeats(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	other := stores(t, dsn)()
	s := mysqlstore.New(pool(t, dsn, 1), mysqlstore.Options{Lease: time.Second, Connector: connector(t, dsn+"?autocommit=0")})
	storetest.LockIsKept(t, s, other, 4*time.Second)
}

func TestMigrate(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	var wg sync.WaitGroup
	for range 8 {
		s := mysqlstore.New(pool(t, dsn, 1), mysqlstore.Options{})
		wg.Go(func() {
			if err := s.Migrate(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := mysqlstore.New(pool(t, dsn, 1), mysqlstore.Options{})
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))
	require.NoError(t, s.Migrate(t.Context()))
	_, err := s.Load(t.Context(), "k")
	require.NoError(t, err)
}

func TestLostLease(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	newStore, db := stores(t, dsn), pool(t, dsn, 1)
	storetest.LostLease(t, newStore, func(t *testing.T) {
		result, err := db.ExecContext(t.Context(), "UPDATE ganbauth_tokens SET holder = NULL WHERE holder IS NOT NULL")
		require.NoError(t, err)
		n, err := result.RowsAffected()
		require.NoError(t, err)
		require.NotZero(t, n)
	})
}

func TestB1Emptied(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	newStore, db := stores(t, dsn), pool(t, dsn, 1)
	storetest.Emptied(t, newStore, func(t *testing.T) {
		_, err := db.ExecContext(t.Context(), "TRUNCATE ganbauth_tokens")
		require.NoError(t, err)
	})
}

func TestLeaseIsExtended(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	storetest.LeaseIsExtended(t, stores(t, dsn))
}

func TestHolderIsKilled(t *testing.T) {
	dsn := ""
	if !storetest.IsChild() {
		_, dsn = testenv.MariaDB(t)
	}
	storetest.HolderIsKilled(t, dsn, func(dsn string) storetest.Store { return stores(t, dsn)() })
}

func TestMariaDBGoesAway(t *testing.T) {
	server, dsn := testenv.MariaDB(t)
	storetest.EngineGoesAway(t, server, stores(t, dsn)())
}

func TestKits(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	storetest.Kits(t, stores(t, dsn))
}

func TestProcesses(t *testing.T) {
	engine := func() (*testenv.Process, string) { return testenv.MariaDB(t) }
	storetest.Processes(t, engine, func(dsn string) storetest.Store { return storeWithLease(t, dsn, 3*time.Second) })
}

func dsn(addr string) string { return "root@tcp(" + addr + ")/app" }

func TestF5SilentMariaDB(t *testing.T) {
	p := storetest.NewProxy(t, "")
	storetest.F5(t, p, mysqlstore.New(pool(t, dsn(p.Addr), 10), mysqlstore.Options{}))
}

// It is silent on connections that have been made.
func TestF5MariaDBFallsSilent(t *testing.T) {
	server, _ := testenv.MariaDB(t)
	p := storetest.NewProxy(t, server.Addr)
	s := mysqlstore.New(pool(t, dsn(p.Addr), 50), mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { _, _ = s.Load(t.Context(), "k") })
	}
	wg.Wait()
	t.Cleanup(p.Silence())
	storetest.F5(t, p, s)
}

func TestF6LockAnswerLost(t *testing.T) {
	server, direct := testenv.MariaDB(t)
	p := storetest.NewProxy(t, server.Addr)
	here, there := storeWithLease(t, dsn(p.Addr), 0), storeWithLease(t, direct, 0)
	storetest.F6(t, p, here, there, func(string) string { return "update ganbauth_tokens" })
}

func TestF7CallersThatLeave(t *testing.T) {
	server, _ := testenv.MariaDB(t)
	p := storetest.NewProxy(t, server.Addr)
	s := mysqlstore.New(pool(t, dsn(p.Addr), 4), mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	storetest.F7(t, p, s, 4)
}

// connections counts those of all clients.
func connections(t *testing.T, watch *sql.DB) (n int) {
	require.NoError(t, watch.QueryRowContext(t.Context(), "SELECT count(*) FROM information_schema.processlist WHERE user = 'root'").Scan(&n))
	return n
}

func TestEngine(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	db, watch := pool(t, dsn, 1), pool(t, dsn, 1)
	s := mysqlstore.New(db, mysqlstore.Options{Connector: connector(t, dsn)})
	require.NoError(t, s.Migrate(t.Context()))
	storetest.Engine(t, mysqlstore.EngineOf(s), func() int { return connections(t, watch) }, func() {
		_, err := watch.ExecContext(t.Context(), "DROP TABLE ganbauth_tokens")
		require.NoError(t, err)
	})
}

// Without a Connector locks are extended over the pool, which stays as it is.
func TestBeatsOverThePool(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	db, watch := pool(t, dsn, 1), pool(t, dsn, 1)
	s := mysqlstore.New(db, mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	e := mysqlstore.EngineOf(s)
	_, err := e.TryLock(t.Context(), "k", "one", lease.Hold{})
	require.NoError(t, err)
	before := connections(t, watch)
	require.NoError(t, e.Extend(t.Context(), "k", "one"))
	require.Equal(t, before, connections(t, watch))
	hold, err := e.TryLock(t.Context(), "k", "two", lease.Hold{})
	require.NoError(t, err)
	require.Equal(t, lease.Hold{Holder: "one", Beats: 1}, hold)
	e.(lease.Rester).Rest()
	_, err = watch.ExecContext(t.Context(), "DROP TABLE ganbauth_tokens")
	require.NoError(t, err)
	require.Error(t, e.Extend(t.Context(), "k", "one"))
}

// The application uses all of its connections.
func TestF8StarvedPool(t *testing.T) {
	_, direct := testenv.MariaDB(t)
	starved, watch := pool(t, direct, 2), pool(t, direct, 1)
	one := mysqlstore.New(starved, mysqlstore.Options{Lease: time.Second, Connector: connector(t, direct)})
	other := stores(t, direct)()
	starve := func(t *testing.T) (feed func()) {
		var conns []*sql.Conn
		for range 2 {
			conn, err := starved.Conn(t.Context())
			require.NoError(t, err)
			conns = append(conns, conn)
		}
		return func() {
			for _, conn := range conns {
				require.NoError(t, conn.Close())
			}
		}
	}
	starve(t)() // both are connected
	storetest.F8(t, one, other, starve, func() int { return connections(t, watch) })
}

func TestF8FullMariaDB(t *testing.T) {
	server, direct := testenv.MariaDB(t)
	p := storetest.NewProxy(t, server.Addr)
	storetest.F8Full(t, p, stores(t, dsn(p.Addr))(), stores(t, direct)())
}

// A connection more hangs, as at a proxy that lets it wait: a lock is extended over one of
// the application's.
func TestF8BeatsThatHang(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	other := storeWithLease(t, dsn, 2*time.Second)
	s := mysqlstore.New(pool(t, dsn, 1), mysqlstore.Options{Lease: 2 * time.Second, Connector: waiting{}})
	storetest.LockIsKept(t, s, other, 6*time.Second)
}

// waiting connects nobody, and refuses nobody.
type waiting struct{ driver.Connector }

func (waiting) Connect(ctx context.Context) (driver.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// While MariaDB takes no writes the holder cannot beat. A waiter fails then, and does not
// take it for dead.
func TestLockFailsWhereBeatsDo(t *testing.T) {
	server, dsn := testenv.MariaDB(t)
	unlock, err := stores(t, dsn)().Lock(t.Context(), "k")
	require.NoError(t, err)
	defer unlock()
	admin := pool(t, dsn, 1) // to whom read_only does not apply
	for _, sql := range []string{"CREATE USER app@'%'", "GRANT ALL ON app.* TO app@'%'", "SET GLOBAL read_only = 1"} {
		_, err := admin.ExecContext(t.Context(), sql)
		require.NoError(t, err)
	}
	waiter := mysqlstore.New(pool(t, "app@tcp("+server.Addr+")/app", 1), mysqlstore.Options{})
	storetest.LockFails(t, waiter, "k", "read-only")
}

// What MariaDB undoes because of somebody else's locks is done in the end.
func TestUndoneStatementsAreRepeated(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s := mysqlstore.New(pool(t, dsn+"?innodb_lock_wait_timeout=1", 1), mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))
	db := pool(t, dsn, 2)
	exec := func(tx *sql.Tx, query string) {
		_, err := tx.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	const (
		row   = "SELECT 1 FROM ganbauth_tokens WHERE `key` = 'k' FOR UPDATE"
		index = "SELECT recorded FROM ganbauth_tokens FORCE INDEX (ganbauth_tokens_touched) WHERE recorded = 1 LOCK IN SHARE MODE"
		// The server undoes the transaction that has changed less.
		heavy = "INSERT INTO ganbauth_tokens (`key`, touched_at) SELECT concat('x', seq), 0 FROM seq_1_to_100"
	)
	for name, test := range map[string]struct {
		before []string // while the store writes: locks of another transaction
		after  string   // when the store waits
		held   time.Duration
	}{
		"lock wait timeout": {[]string{row}, row, 1500 * time.Millisecond},
		"deadlock":          {[]string{heavy, index}, row, 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := db.ExecContext(t.Context(), "UPDATE ganbauth_tokens SET touched_at = 0") // so that a save changes the index
			require.NoError(t, err)
			tx, err := db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			for _, query := range test.before {
				exec(tx, query)
			}
			saved := make(chan error)
			go func() { saved <- s.Save(t.Context(), "k", storetest.Token("b")) }()
			require.Eventually(t, func() (waits bool) {
				require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'").Scan(&waits))
				return waits
			}, 20*time.Second, 150*time.Millisecond) // the server looks no sooner
			exec(tx, test.after)
			time.Sleep(test.held)
			require.NoError(t, tx.Rollback())
			require.NoError(t, <-saved)
		})
	}
}

func TestRoundTrips(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	db := pool(t, dsn, 1)
	s := mysqlstore.New(db, mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	count := func() (n int) {
		var name string
		require.NoError(t, db.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Questions'").Scan(&name, &n))
		return n
	}
	asked := 0
	storetest.RoundTrips(t, s, 2, func() int { asked++; return count() - asked })
}

func TestCleanup(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	stores(t, dsn)()
	db, ctx := pool(t, dsn, 4), t.Context()
	count := func() (n int) {
		require.NoError(t, db.QueryRowContext(ctx, "SELECT count(*) FROM ganbauth_tokens").Scan(&n))
		return n
	}
	age := func(key string, seconds int) {
		_, err := db.ExecContext(ctx, "UPDATE ganbauth_tokens SET touched_at = UNIX_TIMESTAMP() - ? WHERE `key` = ?", seconds, []byte(key))
		require.NoError(t, err)
	}
	clean := func(s *mysqlstore.Store, want int) {
		ended, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- s.Cleanup(ended, time.Hour) }()
		require.Eventually(t, func() bool { return count() == want }, 20*time.Second, 10*time.Millisecond)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled, "the loop stops")
	}
	require.EqualValues(t, 2, mysqlstore.Seconds(1001*time.Millisecond), "no token goes early")
	require.EqualValues(t, 1, mysqlstore.Seconds(time.Second))
	forever, hour := mysqlstore.New(db, mysqlstore.Options{}), mysqlstore.New(db, mysqlstore.Options{TTL: time.Hour})
	for _, key := range []string{"live", "old", "deleted", "just deleted"} {
		require.NoError(t, forever.Save(ctx, key, storetest.Token("a")))
	}
	require.NoError(t, forever.Delete(ctx, "deleted"))
	require.NoError(t, forever.Delete(ctx, "just deleted"))
	age("old", 7200)
	age("deleted", 630)
	age("just deleted", 570)
	clean(forever, 3)
	_, err := hour.Load(ctx, "old")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	require.ErrorIs(t, hour.Swap(ctx, "old", storetest.Token("a"), storetest.Token("b")), ganbauth.ErrSuperseded)
	_, err = forever.Load(ctx, "old")
	require.NoError(t, err)
	clean(hour, 2)
	_, err = hour.Load(ctx, "live")
	require.NoError(t, err)
	require.NoError(t, hour.Swap(ctx, "old", nil, storetest.Token("b")))

	_, err = db.ExecContext(ctx, "INSERT INTO ganbauth_tokens (`key`, touched_at) SELECT concat('x', seq), 0 FROM seq_1_to_2500")
	require.NoError(t, err)
	clean(forever, 3) // in as many batches as it takes
	statements := func() (n int) {
		require.NoError(t, db.QueryRowContext(ctx, "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'COM_DELETE'").Scan(&n))
		return n
	}
	ended, cancel := context.WithCancel(ctx)
	done := make(chan error)
	before := statements()
	go func() { done <- forever.Cleanup(ended, 0) }()
	time.Sleep(200 * time.Millisecond)
	require.LessOrEqual(t, statements(), before+2, "once a second at most")
	_, err = db.ExecContext(ctx, "INSERT INTO ganbauth_tokens (`key`, touched_at) VALUES ('k', 0)")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return count() == 3 }, 20*time.Second, 10*time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// Nothing is left of a token that is deleted, though its row is.
func TestDeletedTokens(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s, db := stores(t, dsn)(), pool(t, dsn, 1)
	token := storetest.Token("a")
	token.Scope, token.IDToken, token.Subject, token.Epoch, token.Judged = "openid", "i", "s", "e", "j"
	for _, key := range []string{"deleted", "swapped"} {
		require.NoError(t, s.Save(t.Context(), key, token))
	}
	left := func() (n int) {
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM ganbauth_tokens WHERE COALESCE(access_token,
			refresh_token, token_type, scope, id_token, subject, epoch, judged, fingerprint, issued_at, expires_at, due_at) IS NOT NULL`).Scan(&n))
		return n
	}
	require.Equal(t, 2, left())
	require.NoError(t, s.Delete(t.Context(), "deleted"))
	require.NoError(t, s.Swap(t.Context(), "swapped", token, nil))
	require.Zero(t, left())
}

// A lock without a token is not taken for one that was forgotten, however long it is held.
func TestC1LongLockIsNotCleaned(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s, db := stores(t, dsn)(), pool(t, dsn, 1)
	unlock, err := s.Lock(t.Context(), "long")
	require.NoError(t, err)
	defer unlock()
	_, err = db.ExecContext(t.Context(), "UPDATE ganbauth_tokens SET touched_at = touched_at - 120")
	require.NoError(t, err)
	require.Eventually(t, func() (touched bool) {
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT touched_at > UNIX_TIMESTAMP() - 60 FROM ganbauth_tokens").Scan(&touched))
		return touched
	}, 20*time.Second, 20*time.Millisecond)
}

// Pages are read by the index alone, in its order.
func TestPagesUseTheIndex(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s, db := stores(t, dsn)(), pool(t, dsn, 1)
	_, err := db.ExecContext(t.Context(), "INSERT INTO ganbauth_tokens (`key`, recorded, access_token, refresh_token, due_at, touched_at)"+
		" SELECT concat('bank/', seq), 1, repeat('x', 700), 'r', 1000000 + seq DIV 10, 0 FROM seq_1_to_20000")
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), "ANALYZE TABLE ganbauth_tokens")
	require.NoError(t, err)
	for _, after := range []ganbauth.Expiry{{}, {At: time.Unix(1001000, 0), Key: "bank/10005"}} {
		var id, table, kind, used, extra string
		var rest [5]sql.RawBytes
		rows, err := db.QueryContext(t.Context(), "EXPLAIN "+mysqlstore.PageSQL(after, time.Unix(1900000, 0), 100))
		require.NoError(t, err)
		require.True(t, rows.Next())
		require.NoError(t, rows.Scan(&id, &rest[0], &table, &kind, &rest[1], &used, &rest[2], &rest[3], &rest[4], &extra))
		require.NoError(t, rows.Close())
		require.Equal(t, "ganbauth_tokens_due", used)
		require.Equal(t, "range", kind)
		require.Contains(t, extra, "Using index")
		require.NotContains(t, extra, "filesort")
	}
	page, err := s.ExpiringAfter(t.Context(), ganbauth.Expiry{At: time.Unix(1001000, 0), Key: "bank/10005"}, time.Unix(1900000, 0), 3)
	require.NoError(t, err)
	require.Equal(t, "bank/10006", page[0].Key)
}

func TestI16README(t *testing.T) {
	storetest.README(t, []string{"database/sql", "github.com/go-sql-driver/mysql", "github.com/ganbauth/ganbauth/mysqlstore"})
}

// The default store on scs's own mysqlstore, with the Locker from here.
func TestSessions(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	newStore, db := stores(t, dsn), pool(t, dsn+"?parseTime=true", 10)
	_, err := db.ExecContext(t.Context(), "CREATE TABLE sessions (token CHAR(43) PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP(6) NOT NULL)")
	require.NoError(t, err)
	storetest.Sessions(t,
		func() scs.Store { return scsmysql.NewWithCleanupInterval(db, 0) },
		func() ganbauth.Locker { return newStore() })
}
