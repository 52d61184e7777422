package pgxstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// PostgreSQL is well and refuses each statement.
func TestStatementsFail(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := stores(t, dsn)()
	_, err := pool(t, dsn).Exec(t.Context(), "DROP TABLE ganbauth_tokens")
	require.NoError(t, err)
	storetest.CallsFail(t, s)
	require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "pgxstore: save: ")
}

// A hook of the application's pool panics. The call has an error, and the process lives.
func TestPoolPanics(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { panic("a hook") }
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	s := pgxstore.New(p, pgxstore.Options{}) // the pool cannot be closed: it waits for the connection of the panic
	require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "pgxstore: save: panic: a hook")
}

// A caller that has gone sends nothing.
func TestCallerThatHasGone(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p := pool(t, dsn)
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	before := p.Stat().AcquireCount()
	for range 100 {
		require.ErrorIs(t, s.Save(gone, "k", storetest.Token("a")), context.Canceled)
	}
	time.Sleep(50 * time.Millisecond)
	require.Equal(t, before, p.Stat().AcquireCount())
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
