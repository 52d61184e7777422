package goredisstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/redisstore"
)

// hook is called before each round trip of a client, which fails if it says so.
type hook func(cmds []redis.Cmder) error

func (h hook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := h([]redis.Cmder{cmd}); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := h(cmds); err != nil {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		return next(ctx, cmds)
	}
}

// tripCounter counts the round trips of a client, and fails one before its effect.
type tripCounter struct{ n, fails atomic.Int32 }

var errCut = errors.New("the connection is cut")

// begin counts from here on, and fails the trip that is given; 0 is none.
func (c *tripCounter) begin(fails int) {
	c.n.Store(0)
	c.fails.Store(int32(fails))
}

// trip is a hook.
func (c *tripCounter) trip([]redis.Cmder) error {
	if c.n.Add(1) == c.fails.Load() {
		return errCut
	}
	return nil
}

func TestRoundTrips(t *testing.T) {
	c, counter := client(t, testenv.Redis(t).Addr), &tripCounter{}
	s := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, s.Delete(t.Context(), "k")) // the connection is made
	c.AddHook(hook(counter.trip))
	storetest.RoundTrips(t, s, 1, func() int { return int(counter.n.Load()) })
}

func clusterClient(t *testing.T) redis.UniversalClient {
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: testenv.RedisCluster(t, 2)})
	t.Cleanup(func() { c.Close() })
	return c
}

// everywhere runs a test on a single server, in a Cluster, and in a Cluster whose client
// takes it for a single server, as it is behind a proxy.
func everywhere(t *testing.T, test func(t *testing.T, c redis.UniversalClient)) {
	t.Run("server", func(t *testing.T) { test(t, client(t, testenv.Redis(t).Addr)) })
	t.Run("Cluster", func(t *testing.T) { test(t, clusterClient(t)) })
	t.Run("Cluster behind a proxy", func(t *testing.T) {
		test(t, client(t, testenv.RedisCluster(t, 1)[0]))
	})
}

func TestStore(t *testing.T) {
	everywhere(t, func(t *testing.T, c redis.UniversalClient) {
		ganbtest.TestStore(t, func() ganbauth.TokenStore { return goredisstore.New(c, goredisstore.Options{}) })
	})
}

// A Cluster has the tokens and their index on all of its nodes.
func TestClusterIsSpread(t *testing.T) {
	c := clusterClient(t).(*redis.ClusterClient)
	s := goredisstore.New(c, goredisstore.Options{})
	for i := range 200 {
		require.NoError(t, s.Save(t.Context(), fmt.Sprint(i), storetest.Token("a")))
	}
	require.NoError(t, c.ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error {
		for _, pattern := range []string{"*:token", "*expiries*"} {
			keys, err := node.Keys(ctx, pattern).Result()
			if err != nil {
				return err
			}
			require.Greater(t, len(keys), 20, pattern)
		}
		return nil
	}))
}

// indexed returns what the index has, by key.
func indexed(t *testing.T, c redis.UniversalClient) map[string]float64 {
	entries := map[string]float64{}
	for i := range 64 {
		shard, err := c.ZRangeWithScores(t.Context(), fmt.Sprintf("ganbauth:expiries:{%d}", i), 0, -1).Result()
		require.NoError(t, err)
		for _, z := range shard {
			entries[z.Member.(string)] = z.Score
		}
	}
	return entries
}

// forget deletes the tokens, as a Redis does that evicts, and leaves the index.
func forget(t *testing.T, c redis.UniversalClient) {
	del := func(ctx context.Context, node redis.UniversalClient) error {
		names, err := node.Keys(ctx, "*:token").Result()
		for _, name := range names {
			if err == nil {
				err = node.Del(ctx, name).Err()
			}
		}
		return err
	}
	if many, ok := c.(*redis.ClusterClient); ok {
		require.NoError(t, many.ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error { return del(ctx, node) }))
	} else {
		require.NoError(t, del(t.Context(), c))
	}
}

func expiring(access string, at time.Time) *ganbauth.Token {
	t := storetest.Token(access)
	t.ExpiresAt = at
	return t
}

// B6: a swap that is refused has not moved the index.
func TestB6TheIndexFollowsTheRecord(t *testing.T) {
	everywhere(t, func(t *testing.T, c redis.UniversalClient) {
		s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), storetest.Token("").ExpiresAt
		old, next := expiring("old", at), expiring("next", at.Add(time.Hour))
		require.NoError(t, s.Save(ctx, "k", old))
		want := map[string]float64{"k": float64(at.Unix())}
		require.Equal(t, want, indexed(t, c))
		require.ErrorIs(t, s.Swap(ctx, "k", next, next), ganbauth.ErrSuperseded)
		require.ErrorIs(t, s.Swap(ctx, "k", nil, next), ganbauth.ErrSuperseded)
		require.ErrorIs(t, s.Swap(ctx, "k", next, nil), ganbauth.ErrSuperseded)
		require.Equal(t, want, indexed(t, c))
		require.NoError(t, s.Swap(ctx, "k", old, next))
		require.Equal(t, map[string]float64{"k": float64(at.Add(time.Hour).Unix())}, indexed(t, c))
		require.NoError(t, s.Swap(ctx, "k", next, &ganbauth.Token{Epoch: "e", Judged: "j", ExpiresAt: at}))
		require.Empty(t, indexed(t, c))
		require.NoError(t, s.Save(ctx, "k", old))
		require.NoError(t, s.Delete(ctx, "k"))
		require.Empty(t, indexed(t, c))
	})
}

// Entries without a token, as eviction and failovers leave them, stand before the living.
// They are met once.
func TestEntriesWithoutATokenLeaveTheIndex(t *testing.T) {
	everywhere(t, func(t *testing.T, c redis.UniversalClient) {
		s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), storetest.Token("").ExpiresAt
		for i := range 1000 {
			require.NoError(t, s.Save(ctx, fmt.Sprint("gone ", i), expiring("a", at.Add(-time.Minute))))
		}
		forget(t, c)
		var want []ganbauth.Expiry
		for i := range 3 {
			e := ganbauth.Expiry{At: at.Add(time.Duration(i) * time.Second), Key: fmt.Sprint("alive ", i)}
			require.NoError(t, s.Save(ctx, e.Key, expiring("a", e.At)))
			want = append(want, e)
		}
		got, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, at.Add(time.Hour), 100)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, 3, len(indexed(t, c)))
	})
}

// An entry that a crash left behind in a Cluster.
func TestEntriesArePutRight(t *testing.T) {
	everywhere(t, func(t *testing.T, c redis.UniversalClient) {
		s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), storetest.Token("").ExpiresAt
		require.NoError(t, s.Save(ctx, "k", expiring("a", at.Add(time.Hour))))
		for i := range 64 {
			name := fmt.Sprintf("ganbauth:expiries:{%d}", i)
			if err := c.ZScore(ctx, name, "k").Err(); err == nil {
				require.NoError(t, c.ZAdd(ctx, name, redis.Z{Score: float64(at.Unix()), Member: "k"}).Err())
			}
		}
		require.Equal(t, map[string]float64{"k": float64(at.Unix())}, indexed(t, c))
		got, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, at.Add(time.Minute), 10)
		require.NoError(t, err)
		require.Empty(t, got)
		require.Equal(t, map[string]float64{"k": float64(at.Add(time.Hour).Unix())}, indexed(t, c))
	})
}

// Thousands that expire in the same second, as after a migration, and thousands that do
// not, in pages. No script takes many steps.
func TestPagesOfMany(t *testing.T) {
	c := client(t, testenv.Redis(t, "--appendonly", "no").Addr)
	s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), storetest.Token("").ExpiresAt
	const many = 20_000
	for i := range many {
		require.NoError(t, s.Save(ctx, fmt.Sprintf("%05d", i), expiring("a", at.Add(time.Duration(max(0, i-many/2))*time.Second))))
	}
	require.NoError(t, c.ConfigResetStat(ctx).Err())
	n := 0
	for after := (ganbauth.Expiry{}); ; {
		page, err := s.ExpiringAfter(ctx, after, at.Add(many*time.Second), 100)
		require.NoError(t, err)
		for _, e := range page {
			require.Equal(t, fmt.Sprintf("%05d", n), e.Key)
			n++
		}
		if len(page) < 100 {
			break
		}
		after = page[len(page)-1]
	}
	require.Equal(t, many, n)
	info, err := c.Info(ctx, "commandstats").Result()
	require.NoError(t, err)
	calls := func(command string) int {
		_, stat, _ := strings.Cut(info, "cmdstat_"+command+":calls=")
		stat, _, _ = strings.Cut(stat, ",")
		n, err := strconv.Atoi(stat)
		require.NoError(t, err)
		return n
	}
	require.LessOrEqual(t, calls("zrange"), 10*calls("evalsha"), "a place among hundreds is found by halving")
}

// A Redis that evicts logs users out without a word. It is told at the start, and in the
// log.
func TestCheck(t *testing.T) {
	for _, test := range []struct {
		maxmemory, policy string
		ttl               time.Duration
		fit               bool
	}{
		{"100mb", "noeviction", 0, true},
		{"100mb", "volatile-lru", 0, true},
		{"100mb", "volatile-lru", time.Hour, false},
		{"100mb", "noeviction", time.Hour, true},
		{"100mb", "allkeys-lru", 0, false},
		{"100mb", "allkeys-random", 0, false},
		{"0", "allkeys-lru", 0, true},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			c := client(t, testenv.Redis(t, "--maxmemory", test.maxmemory, "--maxmemory-policy", test.policy).Addr)
			log := &strings.Builder{}
			s := goredisstore.New(c, goredisstore.Options{TTL: test.ttl, Logger: slog.New(slog.NewTextHandler(log, nil))})
			err := s.Check(t.Context())
			for range 2 {
				unlock, err := s.Lock(t.Context(), "k")
				require.NoError(t, err)
				unlock()
			}
			if test.fit {
				require.NoError(t, err)
				require.Empty(t, log.String())
				return
			}
			require.ErrorIs(t, err, redisstore.ErrUnfit)
			require.ErrorContains(t, err, test.policy)
			require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), "once")
			require.Contains(t, log.String(), test.policy)
		})
	}
	t.Run("in a Cluster", func(t *testing.T) {
		c := clusterClient(t).(*redis.ClusterClient)
		s := goredisstore.New(c, goredisstore.Options{})
		require.NoError(t, s.Check(t.Context()))
		evil, err := c.MasterForKey(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, evil.ConfigSet(t.Context(), "maxmemory", "100mb").Err())
		require.NoError(t, evil.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lfu").Err())
		err = s.Check(t.Context())
		require.ErrorIs(t, err, redisstore.ErrUnfit)
		require.ErrorContains(t, err, "allkeys-lfu")
	})
	t.Run("replicas are read", func(t *testing.T) {
		c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: testenv.RedisCluster(t, 2), ReadOnly: true})
		t.Cleanup(func() { c.Close() })
		err := goredisstore.New(c, goredisstore.Options{}).Check(t.Context())
		require.ErrorIs(t, err, redisstore.ErrUnfit)
		require.ErrorContains(t, err, "replicas")
	})
	t.Run("away", func(t *testing.T) {
		server := testenv.Redis(t)
		s := goredisstore.New(client(t, server.Addr), goredisstore.Options{})
		server.Stop()
		err := s.Check(t.Context())
		require.ErrorContains(t, err, "redisstore: check: ")
		require.NotErrorIs(t, err, redisstore.ErrUnfit)
		server.Start(t)
		require.NoError(t, s.Check(t.Context()))
	})
}

// A lock without a token is kept for as long as its holder lives, and no longer.
func TestC1LongLockIsKept(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	s := goredisstore.New(c, goredisstore.Options{Lease: time.Second})
	unlock, err := s.Lock(t.Context(), "long")
	require.NoError(t, err)
	names, err := c.Keys(t.Context(), "*:token").Result()
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.InDelta(t, 600, c.TTL(t.Context(), names[0]).Val().Seconds(), 60)
	require.NoError(t, c.Expire(t.Context(), names[0], time.Minute).Err())
	require.Eventually(t, func() bool { return c.TTL(t.Context(), names[0]).Val() > 9*time.Minute }, 20*time.Second, 20*time.Millisecond)
	unlock()
	require.Zero(t, c.Exists(t.Context(), names[0]).Val())
}
