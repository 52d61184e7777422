package storetest

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// scripts is what Redis has run by hash, as INFO commandstats says.
type scripts struct {
	calls, microseconds int
}

func readScripts(t *testing.T, commandstats string) (s scripts) {
	if _, stat, ok := strings.Cut(commandstats, "cmdstat_evalsha:"); ok {
		_, err := fmt.Sscanf(stat, "calls=%d,usec=%d,", &s.calls, &s.microseconds)
		require.NoError(t, err)
	}
	return s
}

// RedisPages tests that pages of many tokens keep nobody else waiting for Redis.
// TOKENS sets their number. The function commandstats returns the answer to INFO
// commandstats.
func RedisPages(t *testing.T, s Store, commandstats func() string) {
	tokens := 20_000
	if n, err := strconv.Atoi(os.Getenv("TOKENS")); err == nil {
		tokens = n
	}
	ctx, at := t.Context(), Token("").ExpiresAt
	const savers = 50
	var wg sync.WaitGroup
	for n := range savers {
		wg.Go(func() {
			for i := n; i < tokens; i += savers {
				token := Token("a")
				token.ExpiresAt = at.Add(time.Duration(i) * time.Second)
				if err := s.Save(ctx, fmt.Sprintf("bank/%07d", i), token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	before := readScripts(t, commandstats())
	listed, pages := 0, 0
	for after := (ganbauth.Expiry{}); ; pages++ {
		page, err := s.ExpiringAfter(ctx, after, at.Add(2*time.Duration(tokens)*time.Second), 100)
		require.NoError(t, err)
		if listed += len(page); len(page) < 100 {
			break
		}
		after = page[len(page)-1]
	}
	require.Equal(t, tokens, listed)

	now := readScripts(t, commandstats())
	require.Greater(t, now.calls, before.calls)
	const together = 16 // scripts in a round trip
	busy := math.Ceil(together * float64(now.microseconds-before.microseconds) / float64(now.calls-before.calls))
	t.Attr("measured", fmt.Sprintf("%d tokens, %d pages: Redis is busy with one for %.0f µs at a time", tokens, pages, busy))
	require.Less(t, busy, 1000.0)
}
