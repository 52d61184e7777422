package mysqlstore_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/mysqlstore"
)

// Whatever the store does among many tokens, MariaDB reads no rows but those that are
// asked for. TOKENS sets their number.
func TestMillionTokens(t *testing.T) {
	tokens := 20_000
	if n, err := strconv.Atoi(os.Getenv("TOKENS")); err == nil {
		tokens = n
	}
	_, dsn := testenv.MariaDB(t)
	s, watch := storeWithLease(t, dsn, 0).(*mysqlstore.Store), pool(t, dsn, 1)
	begun := time.Now().Unix()
	for _, statement := range []string{
		"INSERT INTO ganbauth_tokens (`key`, recorded, access_token, refresh_token, token_type, scope, id_token, subject," +
			" epoch, judged, fingerprint, issued_at, expires_at, due_at, touched_at)" +
			fmt.Sprintf(" SELECT concat('bank/', seq), 1, repeat('x', 700), 'r', 'Bearer', '', '', '', '', '', 'f', %d, %d + seq, %d + seq, %d FROM seq_1_to_%d", begun, begun, begun, begun, tokens),
		"ANALYZE TABLE ganbauth_tokens",
		"SET GLOBAL userstat = 1",
	} {
		_, err := watch.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}

	last := time.Duration(tokens) * time.Second
	var pages []time.Duration
	at := time.Unix(begun, 0)
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

	var read int
	require.NoError(t, watch.QueryRowContext(t.Context(),
		"SELECT rows_read FROM information_schema.table_statistics WHERE table_name = 'ganbauth_tokens'").Scan(&read))
	slices.Sort(pages)
	t.Attr("measured", fmt.Sprintf("%d tokens: %d rows read for 100 pages of 100 and 100 refreshes; a page takes %.1f ms",
		tokens, read, pages[50].Seconds()*1000))
	require.Greater(t, read, 100*100)
	require.Less(t, read, 100*100+2000)
}
