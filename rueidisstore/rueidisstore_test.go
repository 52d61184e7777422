package rueidisstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/rueidisstore"
)

// client returns a client with small buffers, as there are many in a test.
func client(t *testing.T, addrs []string, configure ...func(*rueidis.ClientOption)) rueidis.Client {
	t.Helper()
	opts := rueidis.ClientOption{
		InitAddress: addrs, RingScaleEachConn: 8, ReadBufferEachConn: 1 << 14, WriteBufferEachConn: 1 << 14, ConnWriteTimeout: 2 * time.Second,
	}
	for _, c := range configure {
		c(&opts)
	}
	c, err := rueidis.NewClient(opts)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// admin is a client that looks at Redis from outside.
func admin(t *testing.T, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { c.Close() })
	return c
}

func storeWithLease(t *testing.T, addr string, lease time.Duration) storetest.Store {
	return rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{Lease: lease})
}

// stores makes stores with connections of their own each, as processes have, and leases
// of a second.
func stores(t *testing.T, addr string) func() storetest.Store {
	return func() storetest.Store { return storeWithLease(t, addr, time.Second) }
}

func TestStore(t *testing.T) {
	for name, addrs := range map[string][]string{
		"server": {testenv.Redis(t).Addr}, "Cluster": testenv.RedisCluster(t, 2),
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, addrs)
			ganbtest.TestStore(t, func() ganbauth.TokenStore { return rueidisstore.New(c, rueidisstore.Options{}) })
		})
	}
}

func TestDetails(t *testing.T) {
	addr := testenv.Redis(t).Addr
	s := stores(t, addr)()
	storetest.Details(t, s, rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{Prefix: "ends:", TTL: time.Hour}))
}

// Instances whose clients differ work together.
func TestSharesRecordsWithGoRedis(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	one := rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{})
	two := goredisstore.New(admin(t, addr), goredisstore.Options{})
	require.NoError(t, one.Save(ctx, "k", storetest.Token("1")))
	require.NoError(t, two.Swap(ctx, "k", storetest.Token("1"), storetest.Token("2")))
	require.NoError(t, one.Swap(ctx, "k", storetest.Token("2"), storetest.Token("3")))
	got, err := two.Load(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, "3", got.AccessToken)
	for _, pair := range [][2]storetest.Store{{one, two}, {two, one}} {
		fingerprint, unlock, err := pair[0].LockRecord(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, got.Fingerprint(), fingerprint)
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err = pair[1].Lock(short, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
		unlock()
		keys, err := pair[0].Expiring(ctx, got.ExpiresAt.Add(time.Second))
		require.NoError(t, err)
		require.Equal(t, []string{"k"}, keys)
	}
}

func TestLostLease(t *testing.T) {
	addr := testenv.Redis(t).Addr
	c, watch := client(t, []string{addr}), admin(t, addr)
	newStore := func() storetest.Store { return rueidisstore.New(c, rueidisstore.Options{}) }
	storetest.LostLease(t, newStore, func(t *testing.T) {
		names, err := watch.Keys(t.Context(), "*:token").Result()
		require.NoError(t, err)
		taken := int64(0)
		for _, name := range names {
			n, err := watch.HDel(t.Context(), name, "holder").Result()
			require.NoError(t, err)
			taken += n
		}
		require.NotZero(t, taken)
	})
}

func TestB1Emptied(t *testing.T) {
	addr := testenv.Redis(t).Addr
	watch := admin(t, addr)
	storetest.Emptied(t, stores(t, addr), func(t *testing.T) { require.NoError(t, watch.FlushAll(t.Context()).Err()) })
}

func TestLeaseIsExtended(t *testing.T) {
	storetest.LeaseIsExtended(t, stores(t, testenv.Redis(t).Addr))
}

func TestHolderIsKilled(t *testing.T) {
	addr := ""
	if !storetest.IsChild() {
		addr = testenv.Redis(t).Addr
	}
	storetest.HolderIsKilled(t, addr, func(addr string) storetest.Store { return stores(t, addr)() })
}

// Nothing is answered from memory here, as what is there survives Redis for a while.
func TestRedisGoesAway(t *testing.T) {
	server := testenv.Redis(t)
	never := rueidisstore.New(client(t, []string{server.Addr}), rueidisstore.Options{Lease: time.Second, CacheTTL: -1})
	storetest.EngineGoesAway(t, server, never)
}

func TestSentinel(t *testing.T) {
	addr, primary := testenv.RedisSentinel(t)
	store := func() storetest.Store {
		c := client(t, []string{addr}, func(o *rueidis.ClientOption) {
			o.Sentinel = rueidis.SentinelOption{MasterSet: "primary", TopologyRefreshInterval: time.Second}
		})
		s := rueidisstore.New(c, rueidisstore.Options{Lease: time.Second})
		require.NoError(t, s.Check(t.Context()))
		return s
	}
	storetest.Failover(t, primary, store(), store())
}

func TestKits(t *testing.T) { storetest.Kits(t, stores(t, testenv.Redis(t).Addr)) }

// engine starts a Redis that is killed and paused.
func engine(t *testing.T) func() (*testenv.Process, string) {
	return func() (*testenv.Process, string) {
		server := testenv.Redis(t)
		return server, server.Addr
	}
}

func TestProcesses(t *testing.T) {
	storetest.Processes(t, engine(t), func(addr string) storetest.Store { return storeWithLease(t, addr, 3*time.Second) })
}

func TestKeepAlive(t *testing.T) {
	newStore := func(addr string) storetest.Store { return storeWithLease(t, addr, 3*time.Second) }
	storetest.KeepAlive(t, engine(t), newStore, "bank/user-")
}

func TestMillionTokens(t *testing.T) {
	addr := testenv.Redis(t, "--appendonly", "no").Addr
	watch := admin(t, addr)
	storetest.RedisPages(t, rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{}), func() string {
		info, err := watch.Info(t.Context(), "all").Result()
		require.NoError(t, err)
		return info
	})
}

// The default store on an engine of scs's, with the Locker from here.
func TestSessions(t *testing.T) {
	addr := testenv.Redis(t).Addr
	storetest.Sessions(t,
		func() scs.Store { return scsredis.New(admin(t, addr)) },
		func() ganbauth.Locker { return stores(t, addr)() })
}

// Redis falls silent on connections that have been made.
func TestF5SilentRedis(t *testing.T) {
	p := storetest.NewProxy(t, testenv.Redis(t).Addr)
	s := rueidisstore.New(client(t, []string{p.Addr}, func(o *rueidis.ClientOption) { o.ConnWriteTimeout = time.Hour }), rueidisstore.Options{})
	_, err := s.Load(t.Context(), "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	t.Cleanup(p.Silence())
	storetest.F5(t, p, s)
}

// Its connections are cut, and new ones get no answer. The client waits for them without a
// context.
func TestF5SilentAfterACut(t *testing.T) {
	p := storetest.NewProxy(t, testenv.Redis(t).Addr)
	s := rueidisstore.New(client(t, []string{p.Addr}, func(o *rueidis.ClientOption) {
		o.ConnWriteTimeout, o.Dialer.Timeout = time.Hour, time.Hour
	}), rueidisstore.Options{})
	_, err := s.Load(t.Context(), "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	t.Cleanup(p.Silence())
	p.Cut()
	time.Sleep(20 * time.Millisecond) // what comes sooner may wait with the client
	storetest.F5(t, p, s)
}

func TestF6LockAnswerLost(t *testing.T) {
	addr := testenv.Redis(t).Addr
	p := storetest.NewProxy(t, addr)
	here := rueidisstore.New(client(t, []string{p.Addr}), rueidisstore.Options{})
	there := rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{})
	storetest.F6(t, p, here, there, func(string) string { return "evalsha" })
}

func TestF7CallersThatLeave(t *testing.T) {
	p := storetest.NewProxy(t, testenv.Redis(t).Addr)
	c := client(t, []string{p.Addr}, func(o *rueidis.ClientOption) { o.ConnWriteTimeout = time.Minute })
	storetest.F7(t, p, rueidisstore.New(c, rueidisstore.Options{}), 4)
}

// The application waits for lists that nobody fills, with as many connections as it may
// have.
func TestF8StarvedClient(t *testing.T) {
	addr := testenv.Redis(t).Addr
	c := client(t, []string{addr}, func(o *rueidis.ClientOption) { o.BlockingPoolSize = 1 })
	watch := admin(t, addr)
	starve := func(t *testing.T) (feed func()) {
		waiting := make(chan error)
		go func() {
			waiting <- c.Do(context.Background(), c.B().Blpop().Key("starving").Timeout(60).Build()).Error()
		}()
		return func() {
			require.NoError(t, watch.LPush(t.Context(), "starving", "x").Err())
			require.NoError(t, <-waiting)
		}
	}
	starve(t)() // its connection is made
	connections := func() int {
		list, err := watch.ClientList(t.Context()).Result()
		require.NoError(t, err)
		return strings.Count(list, "addr=")
	}
	one, other := rueidisstore.New(c, rueidisstore.Options{Lease: time.Second}), stores(t, addr)()
	for range 100 { // so are the others, one after the other
		for _, s := range []storetest.Store{one, other} {
			_, err := s.Load(t.Context(), "starved")
			require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
		}
	}
	storetest.F8(t, one, other, starve, connections)
}

// A Redis that evicts logs users out without a word. It is told at the start, and in the
// log.
func TestCheck(t *testing.T) {
	for policy, fit := range map[string]bool{"noeviction": true, "allkeys-lru": false} {
		t.Run(policy, func(t *testing.T) {
			c := client(t, []string{testenv.Redis(t, "--maxmemory", "100mb", "--maxmemory-policy", policy).Addr})
			log := &strings.Builder{}
			s := rueidisstore.New(c, rueidisstore.Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
			err := s.Check(t.Context())
			for i := range 2 {
				unlock, err := s.Lock(t.Context(), fmt.Sprint(i))
				require.NoError(t, err)
				unlock()
			}
			if fit {
				require.NoError(t, err)
				require.Empty(t, log.String())
				return
			}
			require.ErrorContains(t, err, policy)
			require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), "once")
		})
	}
	t.Run("in a Cluster", func(t *testing.T) {
		addrs := testenv.RedisCluster(t, 2)
		s := rueidisstore.New(client(t, addrs), rueidisstore.Options{})
		require.NoError(t, s.Check(t.Context()))
		evil := admin(t, addrs[1])
		require.NoError(t, evil.ConfigSet(t.Context(), "maxmemory", "100mb").Err())
		require.NoError(t, evil.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lfu").Err())
		require.ErrorContains(t, s.Check(t.Context()), "allkeys-lfu")
	})
	t.Run("away", func(t *testing.T) {
		server := testenv.Redis(t)
		s := rueidisstore.New(client(t, []string{server.Addr}), rueidisstore.Options{})
		server.Stop()
		require.Error(t, s.Check(t.Context()))
		server.Start(t)
		require.NoError(t, s.Check(t.Context()))
	})
}

func TestI16README(t *testing.T) {
	storetest.README(t, []string{"github.com/redis/rueidis", "github.com/ganbauth/ganbauth/rueidisstore"})
}
