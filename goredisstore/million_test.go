package goredisstore_test

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// Pages of many tokens keep nobody else waiting for Redis. TOKENS sets their number.
func TestMillionTokens(t *testing.T) {
	tokens := 20_000
	if n, err := strconv.Atoi(os.Getenv("TOKENS")); err == nil {
		tokens = n
	}
	ctx, at := t.Context(), storetest.Token("").ExpiresAt
	c := redis.NewClient(&redis.Options{Addr: testenv.Redis(t, "--appendonly", "no").Addr})
	t.Cleanup(func() { c.Close() })
	s := goredisstore.New(c, goredisstore.Options{})
	const savers = 50
	var wg sync.WaitGroup
	for n := range savers {
		wg.Go(func() {
			for i := n; i < tokens; i += savers {
				if err := s.Save(ctx, fmt.Sprintf("bank/%07d", i), expiring("a", at.Add(time.Duration(i)*time.Second))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.ConfigResetStat(ctx).Err())

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

	info, err := c.Info(ctx, "commandstats").Result()
	require.NoError(t, err)
	_, stat, _ := strings.Cut(info, "cmdstat_evalsha:")
	var calls, total int
	var perScript float64
	_, err = fmt.Sscanf(stat, "calls=%d,usec=%d,usec_per_call=%g,", &calls, &total, &perScript)
	require.NoError(t, err)
	const together = 16 // scripts in a round trip
	t.Attr("measured", fmt.Sprintf("%d tokens, %d pages: Redis is busy with one for %.0f µs at a time",
		tokens, pages, math.Ceil(together*perScript)))
	require.Less(t, together*perScript, 1000.0)
}
