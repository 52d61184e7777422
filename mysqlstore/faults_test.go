package mysqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/mysqlstore"
)

func TestDetails(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s := stores(t, dsn)()
	storetest.Details(t, s, mysqlstore.New(pool(t, dsn, 2), mysqlstore.Options{TTL: time.Hour}))
}

func TestFreshKeys(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	storetest.FreshKeys(t, stores(t, dsn)())
}

// A user that may not change the schema learns it from Migrate, where something is missing.
// Where nothing is, Migrate does not wait for a backup either.
func TestMigrateFails(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	owner := pool(t, dsn, 2)
	conn, err := owner.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	exec := func(query string) {
		t.Helper()
		_, err := conn.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	exec("CREATE USER clerk")
	exec("GRANT SELECT, INSERT, UPDATE, DELETE ON app.* TO clerk")
	clerk := mysqlstore.New(pool(t, strings.Replace(dsn, "root@", "clerk@", 1), 1), mysqlstore.Options{})
	require.ErrorContains(t, clerk.Migrate(t.Context()), "mysqlstore: migrate: Error 1142")

	s := mysqlstore.New(owner, mysqlstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	exec("FLUSH TABLES WITH READ LOCK")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, clerk.Migrate(ctx))
	require.NoError(t, s.Migrate(ctx))
	exec("UNLOCK TABLES")
	require.NoError(t, clerk.Save(t.Context(), "k", storetest.Token("a")))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Migrate(ended), context.Canceled)
}

// MariaDB is well and refuses each statement.
func TestStatementsFail(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s := stores(t, dsn)()
	_, err := pool(t, dsn, 1).ExecContext(t.Context(), "DROP TABLE ganbauth_tokens")
	require.NoError(t, err)
	storetest.CallsFail(t, s)
	require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "mysqlstore: save: ")
}

// What the server undoes is repeated until the caller leaves, and nothing else is repeated.
func TestOnlyUndoneStatementsAreRepeated(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s, db := stores(t, dsn)(), pool(t, dsn, 1)
	exec := func(query string) {
		t.Helper()
		_, err := db.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	exec("CREATE TABLE tries (n INT NOT NULL) ENGINE = MyISAM") // the count outlives what is undone
	exec("INSERT INTO tries VALUES (0)")
	fail := func(number int) {
		exec("UPDATE tries SET n = 0")
		exec(fmt.Sprintf(`CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON ganbauth_tokens FOR EACH ROW BEGIN
			UPDATE tries SET n = n + 1; SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = %d; END`, number))
	}
	tries := func() (n int) {
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT n FROM tries").Scan(&n))
		return n
	}
	fail(1644)
	var refused *mysql.MySQLError
	require.ErrorAs(t, s.Save(t.Context(), "k", storetest.Token("a")), &refused)
	require.Equal(t, uint16(1644), refused.Number)
	require.Equal(t, 1, tries())

	fail(1213)
	storetest.RepeatedUntilLeft(t, s, tries)
}

// A caller that has gone sends nothing.
func TestCallerThatHasGone(t *testing.T) {
	s := &server{}
	s.bubble(t, func(t *testing.T, db *sql.DB) {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, mysqlstore.New(db, mysqlstore.Options{}).Save(gone, "k", storetest.Token("a")), context.Canceled)
		synctest.Wait()
		require.Zero(t, db.Stats().OpenConnections)
	})
}

// hooked is a connector that runs a function first.
type hooked struct {
	driver.Connector
	before func()
}

func (h hooked) Connect(ctx context.Context) (driver.Conn, error) {
	h.before()
	return h.Connector.Connect(ctx)
}

// The connector panics, or ends its goroutine. The call has an error, and the process lives.
func TestConnectorFails(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	for why, before := range map[string]func(){
		"panic: a connector":                   func() { panic("a connector") },
		"the call has ended without an answer": runtime.Goexit,
	} {
		s := mysqlstore.New(sql.OpenDB(hooked{connector(t, dsn), before}), mysqlstore.Options{})
		require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "mysqlstore: save: "+why)
		_, err := s.Load(t.Context(), "k")
		require.ErrorContains(t, err, "mysqlstore: load: "+why)
	}
}

// A caller that leaves while a connection is made sends nothing over it, and leaves it to the
// next one.
func TestCallerThatLeavesWhileItIsConnected(t *testing.T) {
	for _, limit := range []int{0, 2} {
		s := &server{}
		s.bubble(t, func(t *testing.T, _ *sql.DB) {
			connected := make(chan bool)
			db := sql.OpenDB(hooked{s, func() { <-connected }})
			defer db.Close()
			db.SetMaxOpenConns(limit)
			store := mysqlstore.New(db, mysqlstore.Options{})
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan error)
			go func() { left <- store.Save(ctx, "k", storetest.Token("a")) }()
			synctest.Wait()
			cancel()
			require.ErrorIs(t, <-left, context.Canceled)
			close(connected)
			synctest.Wait()
			require.Equal(t, 1, db.Stats().Idle)
			require.Empty(t, s.sent)
			require.NoError(t, store.Save(t.Context(), "k", storetest.Token("a")))
			require.Equal(t, 1, db.Stats().OpenConnections)
		})
	}
}

// A caller that leaves while all connections are in use gives up its place.
func TestPlaceInTheQueue(t *testing.T) {
	s := &server{}
	s.bubble(t, func(t *testing.T, db *sql.DB) {
		db.SetMaxOpenConns(1)
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { left <- mysqlstore.New(db, mysqlstore.Options{}).Save(ctx, "k", storetest.Token("a")) }()
		synctest.Wait()
		require.Equal(t, int64(1), db.Stats().WaitCount)
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		synctest.Wait()
		require.NoError(t, conn.Close())
		require.Equal(t, 1, db.Stats().Idle)
	})
}

// The lock on a key that has no row yet inserts one, and says so where it may not.
func TestLockFailsWhereNoRowCanBeMade(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	stores(t, dsn)()
	owner := pool(t, dsn, 1)
	for _, query := range []string{"CREATE USER clerk", "GRANT SELECT, UPDATE ON app.* TO clerk"} {
		_, err := owner.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	clerk := mysqlstore.New(pool(t, strings.Replace(dsn, "root@", "clerk@", 1), 1), mysqlstore.Options{})
	storetest.LockFails(t, clerk, "k", "INSERT command denied")
}
