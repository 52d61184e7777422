package pgxstore_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// updates are PostgreSQL's own figures.
type updates struct{ all, hot, wal int64 }

func countUpdates(t *testing.T, p *pgxpool.Pool) (u updates) {
	t.Helper()
	conn, err := p.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "SELECT pg_stat_clear_snapshot()")
	require.NoError(t, err)
	require.NoError(t, conn.QueryRow(t.Context(), `
		SELECT n_tup_upd, n_tup_hot_upd, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
		FROM pg_stat_user_tables WHERE relname = 'ganbauth_tokens'`).Scan(&u.all, &u.hot, &u.wal))
	return u
}

// settled waits until that many updates are counted, which takes PostgreSQL some seconds.
func settled(t *testing.T, p *pgxpool.Pool, least int64) (u updates) {
	t.Helper()
	require.Eventually(t, func() bool { u = countUpdates(t, p); return u.all >= least }, 30*time.Second, 50*time.Millisecond)
	return u
}

// realistic is a token of the bank's size.
func realistic(n int) *ganbauth.Token {
	issued := time.Now().Add(time.Duration(n) * time.Second).Truncate(time.Second)
	return &ganbauth.Token{
		AccessToken:  fmt.Sprintf("%096d", n),
		RefreshToken: fmt.Sprintf("%096d", n+1),
		TokenType:    "Bearer",
		Scope:        "openid offline_access private:account private:transfer ab",
		IDToken:      strings.Repeat("abcdefghij", 60),
		Subject:      "0123456789",
		Epoch:        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		IssuedAt:     issued,
		ExpiresAt:    issued.Add(time.Hour),
	}
}

// Of the three updates of a refresh two touch no index, and all together write less than
// 2 kB.
func TestRefreshIsCheap(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s, p := stores(t, dsn)(), pool(t, dsn+"&pool_max_conns=1")
	for _, setting := range []string{"full_page_writes", "autovacuum"} { // what they write comes and goes
		_, err := p.Exec(t.Context(), "ALTER SYSTEM SET "+setting+" = off")
		require.NoError(t, err)
	}
	_, err := p.Exec(t.Context(), "SELECT pg_reload_conf()")
	require.NoError(t, err)
	const users, refreshes = 1000, 500
	key := func(i int) string { return fmt.Sprintf("bank/user-%08d", i*7919%users) }
	for i := range users {
		require.NoError(t, s.Save(t.Context(), key(i), realistic(i)))
	}
	before := settled(t, p, 0)
	for i := range refreshes {
		old := realistic(i)
		fingerprint, unlock, err := s.LockRecord(t.Context(), key(i))
		require.NoError(t, err)
		require.Equal(t, old.Fingerprint(), fingerprint)
		require.NoError(t, s.Swap(t.Context(), key(i), old, realistic(i+users)))
		unlock()
	}
	after := settled(t, p, before.all+3*refreshes)
	hot, wal := float64(after.hot-before.hot)/refreshes, (after.wal-before.wal)/refreshes
	t.Attr("measured", fmt.Sprintf("%.2f updates, %.2f of them HOT, %d bytes of WAL", float64(after.all-before.all)/refreshes, hot, wal))
	require.Equal(t, before.all+3*refreshes, after.all)
	require.Greater(t, hot, 1.9)
	require.Less(t, wal, int64(2000))
}

// A lock that is held for long touches no index.
func TestBeatsTouchNoIndex(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s, p := stores(t, dsn)(), pool(t, dsn+"&pool_max_conns=1")
	require.NoError(t, s.Save(t.Context(), "k", realistic(1)))
	before := settled(t, p, 0)
	var unlocks []func()
	for _, key := range []string{"k", "without a token"} {
		unlock, err := s.Lock(t.Context(), key)
		require.NoError(t, err)
		unlocks = append(unlocks, unlock)
	}
	beats := func() (n int) {
		require.NoError(t, p.QueryRow(t.Context(), "SELECT min(beats) FROM ganbauth_tokens").Scan(&n))
		return n
	}
	require.Eventually(t, func() bool { return beats() > 8 }, 20*time.Second, 20*time.Millisecond)
	for _, unlock := range unlocks {
		unlock()
	}
	after := settled(t, p, before.all+18)
	require.Equal(t, after.all-before.all, after.hot-before.hot)
}

// A lock without a token is not taken for one that was forgotten, however long it is held.
func TestC1LongLockIsNotCleaned(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s, p := storeWithLease(t, dsn, time.Second).(*pgxstore.Store), pool(t, dsn)
	unlock, err := s.Lock(t.Context(), "long")
	require.NoError(t, err)
	defer unlock()
	_, err = p.Exec(t.Context(), "UPDATE ganbauth_tokens SET touched_at = now() - interval '2 minutes'")
	require.NoError(t, err)
	require.Eventually(t, func() (touched bool) {
		require.NoError(t, p.QueryRow(t.Context(), "SELECT touched_at > now() - interval '1 minute' FROM ganbauth_tokens").Scan(&touched))
		return touched
	}, 20*time.Second, 20*time.Millisecond)
}

// The table of the version that compared nothing, with a token and a lock in it.
func TestMigrateFromTheFirstSchema(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p, ctx := pool(t, dsn), t.Context()
	first, err := os.ReadFile("testdata/schema-1.sql")
	require.NoError(t, err)
	for range 2 { // what PostgreSQL has planned for a connection it has planned for the old table
		conn, err := p.Acquire(ctx)
		require.NoError(t, err)
		_, err = conn.Conn().PgConn().Exec(ctx, string(first)).ReadAll()
		require.NoError(t, err)
		conn.Release()
	}
	want := realistic(1)
	want.Epoch = ""
	_, err = p.Exec(ctx, `
		INSERT INTO ganbauth_tokens (key, access_token, refresh_token, token_type, scope, id_token, subject, issued_at, expires_at, fence, saved)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 3, 3)`, []byte("k"),
		want.AccessToken, want.RefreshToken, want.TokenType, want.Scope, want.IDToken, want.Subject, want.IssuedAt, want.ExpiresAt)
	require.NoError(t, err)
	_, err = p.Exec(ctx, "DROP INDEX ganbauth_tokens_buried")
	require.NoError(t, err)
	s := pgxstore.New(p, pgxstore.Options{})
	for range 2 {
		require.NoError(t, s.Migrate(ctx))
		var there bool
		require.NoError(t, p.QueryRow(ctx, "SELECT to_regclass('ganbauth_tokens_buried') IS NOT NULL").Scan(&there))
		require.True(t, there, "what else is missing is added, too")
	}
	got, err := s.Load(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, want.Fingerprint(), got.Fingerprint())
	fingerprint, unlock, err := s.LockRecord(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, want.Fingerprint(), fingerprint)
	require.NoError(t, s.Swap(ctx, "k", got, realistic(2)))
	require.ErrorIs(t, s.Swap(ctx, "k", got, realistic(2)), ganbauth.ErrSuperseded)
	unlock()
	ganbtest.TestStore(t, func() ganbauth.TokenStore { return s })
	var columns int
	require.NoError(t, p.QueryRow(ctx, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'ganbauth_tokens'::regclass AND attname IN ('epoch', 'judged', 'fingerprint')").Scan(&columns))
	require.Equal(t, 3, columns)
}

// A start during a backup does not wait for it, and nobody waits behind the start.
func TestMigrateLocksNothing(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	s := storeWithLease(t, dsn, 0).(*pgxstore.Store)
	conn, err := pool(t, dsn).Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), "LOCK TABLE ganbauth_tokens IN ROW EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, s.Migrate(ctx))
}

// What an application runs whose migrations are its own.
func TestSchema(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	p := pool(t, dsn)
	for range 2 {
		conn, err := p.Acquire(t.Context())
		require.NoError(t, err)
		_, err = conn.Conn().PgConn().Exec(t.Context(), pgxstore.Schema).ReadAll()
		require.NoError(t, err)
		conn.Release()
	}
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Save(t.Context(), "k", storetest.Token("a")))
}

// Pages are read by the index, however the statement is planned.
func TestPagesUseTheIndex(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	p := pool(t, dsn+"&pool_max_conns=1")
	_, err := p.Exec(t.Context(), `
		INSERT INTO ganbauth_tokens (key, access_token, refresh_token, expires_at, fingerprint)
		SELECT convert_to('bank/' || n, 'UTF8'), repeat('x', 700), 'r', now() + (n / 10) * interval '1 second', 'f'
		FROM generate_series(1, 50000) n`)
	require.NoError(t, err)
	_, err = p.Exec(t.Context(), "ANALYZE ganbauth_tokens")
	require.NoError(t, err)
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		_, err = p.Exec(t.Context(), "SET plan_cache_mode = "+mode)
		require.NoError(t, err)
		_, err = p.Exec(t.Context(), "PREPARE "+mode+" (timestamptz, bytea, timestamptz, bigint) AS "+pgxstore.PageSQL)
		require.NoError(t, err)
		for _, after := range []string{"'0001-01-01', ''", "now() + interval '1 hour', 'bank/36000'"} {
			rows, err := p.Query(t.Context(), "EXPLAIN EXECUTE "+mode+"("+after+", now() + interval '1 day', 100)")
			require.NoError(t, err)
			plan := ""
			for rows.Next() {
				var line string
				require.NoError(t, rows.Scan(&line))
				plan += line + "\n"
			}
			require.NoError(t, rows.Err())
			require.Contains(t, plan, "Index Scan using ganbauth_tokens_expires_at", mode)
			require.NotContains(t, plan, "Seq Scan", mode)
		}
	}
}

// statementCounter counts the statements that a pool sends.
type statementCounter struct{ n atomic.Int32 }

func (c *statementCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}

func (c *statementCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestRoundTrips(t *testing.T) {
	_, dsn := testenv.Postgres(t)
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	counter := &statementCounter{}
	config.ConnConfig.Tracer = counter
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	s := pgxstore.New(p, pgxstore.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	storetest.RoundTrips(t, s, 1, func() int { return int(counter.n.Load()) })
}
