package pgxstore_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// Whatever the store does among many tokens, PostgreSQL never scans the table. TOKENS
// sets their number.
func TestMillionTokens(t *testing.T) {
	tokens := 20_000
	if n, err := strconv.Atoi(os.Getenv("TOKENS")); err == nil {
		tokens = n
	}
	_, dsn := testenv.Postgres(t)
	stores(t, dsn)()
	watch := pool(t, dsn+"&pool_max_conns=1")
	_, err := watch.Exec(t.Context(), `
		INSERT INTO ganbauth_tokens (key, access_token, refresh_token, issued_at, expires_at, fingerprint)
		SELECT convert_to('bank/' || n, 'UTF8'), repeat('x', 700), 'r', now(), now() + n * interval '1 second', 'f'
		FROM generate_series(1, $1::bigint) n`, tokens)
	require.NoError(t, err)
	_, err = watch.Exec(t.Context(), "VACUUM ANALYZE ganbauth_tokens")
	require.NoError(t, err)
	scans := func() (whole, byIndex int) {
		require.NoError(t, watch.QueryRow(t.Context(),
			"SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'ganbauth_tokens'").Scan(&whole, &byIndex))
		return whole, byIndex
	}
	time.Sleep(1100 * time.Millisecond) // PostgreSQL counts a second late, or when a connection ends
	whole, byIndex := scans()

	p, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	s, last := pgxstore.New(p, pgxstore.Options{}), time.Duration(tokens)*time.Second
	var pages []time.Duration
	at := time.Now()
	for i := range 100 {
		key := fmt.Sprint("bank/", 1+i*tokens/100)
		_, unlock, err := s.LockRecord(t.Context(), key)
		require.NoError(t, err)
		token, err := s.Load(t.Context(), key)
		require.NoError(t, err)
		require.ErrorIs(t, s.Swap(t.Context(), key, token, token), ganbauth.ErrSuperseded)
		unlock()
		require.NoError(t, s.Save(t.Context(), key, token))
		require.NoError(t, s.Swap(t.Context(), key, token, token))
		begun := time.Now()
		page, err := s.ExpiringAfter(t.Context(), ganbauth.Expiry{At: at.Add(last * time.Duration(i) / 101)}, at.Add(2*last), 100)
		require.NoError(t, err)
		require.Len(t, page, 100)
		pages = append(pages, time.Since(begun))
		require.NoError(t, s.Delete(t.Context(), key))
		require.NoError(t, s.Swap(t.Context(), fmt.Sprint("new/", i), nil, storetest.Token("a")))
	}
	ended, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, s.Cleanup(ended, time.Hour), context.DeadlineExceeded)
	p.Close()

	var nowWhole, nowByIndex int
	require.Eventually(t, func() bool {
		nowWhole, nowByIndex = scans()
		return nowByIndex >= byIndex+700
	}, 20*time.Second, 50*time.Millisecond)
	slices.Sort(pages)
	t.Attr("measured", fmt.Sprintf("%d tokens: %d scans by index, %d of the table; a page of 100 takes %.1f ms",
		tokens, nowByIndex-byIndex, nowWhole-whole, pages[50].Seconds()*1000))
	require.Equal(t, whole, nowWhole)
}
