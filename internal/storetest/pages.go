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

// redisStats is what Redis has done, as INFO all says.
type redisStats struct {
	calls, microseconds int // of scripts, by hash
	answered            int // bytes, of all commands
}

func readStats(t *testing.T, info string) (s redisStats) {
	if _, stat, ok := strings.Cut(info, "cmdstat_evalsha:"); ok {
		_, err := fmt.Sscanf(stat, "calls=%d,usec=%d,", &s.calls, &s.microseconds)
		require.NoError(t, err)
	}
	_, stat, _ := strings.Cut(info, "total_net_output_bytes:")
	_, err := fmt.Sscanf(stat, "%d", &s.answered)
	require.NoError(t, err)
	return s
}

// RedisPages tests that pages of many tokens keep nobody else waiting for Redis: what Redis
// answers for one does not grow with the number of tokens, which TOKENS sets. The function
// info returns the answer to INFO all.
func RedisPages(t *testing.T, s Store, info func() string) {
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

	before := readStats(t, info())
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

	now := readStats(t, info())
	require.Greater(t, now.calls, before.calls)
	require.Less(t, (now.answered-before.answered)/(pages+1), 64<<10, "bytes for a page")
	const together = 16 // scripts in a round trip
	busy := math.Ceil(together * float64(now.microseconds-before.microseconds) / float64(now.calls-before.calls))
	t.Attr("measured", fmt.Sprintf("%d tokens, %d pages: Redis is busy with one for %.0f µs at a time", tokens, pages, busy))
}
