package goredisstore_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/lease"
)

func client(t *testing.T, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, ReadTimeout: 300 * time.Millisecond, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

func storeWithLease(t *testing.T, addr string, lease time.Duration) storetest.Store {
	return goredisstore.New(client(t, addr), goredisstore.Options{Lease: lease})
}

// stores makes stores with a connection of their own each, as processes have, and leases
// of a second.
func stores(t *testing.T, addr string) func() storetest.Store {
	return func() storetest.Store { return storeWithLease(t, addr, time.Second) }
}

func TestLostLease(t *testing.T) {
	addr := testenv.Redis(t).Addr
	c := client(t, addr)
	newStore := func() storetest.Store { return goredisstore.New(c, goredisstore.Options{}) }
	storetest.LostLease(t, newStore, func(t *testing.T) {
		names, err := c.Keys(t.Context(), "*:token").Result()
		require.NoError(t, err)
		taken := int64(0)
		for _, name := range names {
			n, err := c.HDel(t.Context(), name, "holder").Result()
			require.NoError(t, err)
			taken += n
		}
		require.NotZero(t, taken)
	})
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

func TestRedisGoesAway(t *testing.T) {
	server := testenv.Redis(t)
	storetest.EngineGoesAway(t, server, stores(t, server.Addr)())
}

func TestSentinel(t *testing.T) {
	addr, primary := testenv.RedisSentinel(t)
	opts := &redis.FailoverOptions{MasterName: "primary", SentinelAddrs: []string{addr}}
	store := func(c redis.UniversalClient) storetest.Store {
		t.Cleanup(func() { c.Close() })
		s := goredisstore.New(c, goredisstore.Options{Lease: time.Second})
		require.NoError(t, s.Check(t.Context()))
		return s
	}
	storetest.Failover(t, primary, store(redis.NewFailoverClient(opts)), store(redis.NewFailoverClusterClient(opts)))
}

func TestKits(t *testing.T) { storetest.Kits(t, stores(t, testenv.Redis(t).Addr)) }

func TestProcesses(t *testing.T) {
	engine := func() (*testenv.Process, string) {
		server := testenv.Redis(t)
		return server, server.Addr
	}
	storetest.Processes(t, engine, func(addr string) storetest.Store { return storeWithLease(t, addr, 3*time.Second) })
}

// The default store on scs's own goredisstore, with the Locker from here.
func TestSessions(t *testing.T) {
	addr := testenv.Redis(t).Addr
	storetest.Sessions(t,
		func() scs.Store { return scsredis.New(client(t, addr)) },
		func() ganbauth.Locker { return stores(t, addr)() })
}

func TestTTLAndPrefix(t *testing.T) {
	ctx := t.Context()
	c := client(t, testenv.Redis(t).Addr)
	forever, hour := goredisstore.New(c, goredisstore.Options{}), goredisstore.New(c, goredisstore.Options{Prefix: "p:", TTL: time.Hour})
	require.NoError(t, forever.Save(ctx, "k", storetest.Token("a")))
	require.NoError(t, hour.Save(ctx, "k", storetest.Token("b")))
	ttl := func(pattern string) time.Duration {
		names, err := c.Keys(ctx, pattern).Result()
		require.NoError(t, err)
		require.Len(t, names, 1)
		d, err := c.PTTL(ctx, names[0]).Result()
		require.NoError(t, err)
		return d
	}
	require.Equal(t, time.Duration(-1), ttl("ganbauth:{*"))
	require.InDelta(t, time.Hour, ttl("p:{*"), float64(time.Minute))
	unlock, err := forever.Lock(ctx, "k")
	require.NoError(t, err)
	unlock()
	require.Equal(t, time.Duration(-1), ttl("ganbauth:{*"), "a lock does not end the token")
	unlock, err = forever.Lock(ctx, "k")
	require.NoError(t, err)
	require.NoError(t, forever.Delete(ctx, "k"))
	require.InDelta(t, 10*time.Minute, ttl("ganbauth:{*"), float64(time.Minute), "a lock without a token goes, too")
	require.NoError(t, forever.Save(ctx, "k", storetest.Token("c")))
	require.Equal(t, time.Duration(-1), ttl("ganbauth:{*"))
	require.NoError(t, forever.Delete(ctx, "k"))
	unlock()
	n, err := c.Exists(ctx, "ganbauth:{*").Result()
	require.NoError(t, err)
	require.Zero(t, n, "nothing is left")
}

// A record that cannot be read is not "no token": the user is not logged out.
func TestUnreadableRecord(t *testing.T) {
	ctx := t.Context()
	c := client(t, testenv.Redis(t).Addr)
	s := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, s.Save(ctx, "k", storetest.Token("a")))
	names, err := c.Keys(ctx, "ganbauth:{*").Result()
	require.NoError(t, err)
	require.NoError(t, c.HSet(ctx, names[0], "token", "garbage").Err())
	_, err = s.Load(ctx, "k")
	require.Error(t, err)
	require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
	require.NotContains(t, err.Error(), "garbage")
	require.NoError(t, s.Delete(ctx, "k"))
	_, err = s.Load(ctx, "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
}

func TestB1Emptied(t *testing.T) {
	addr := testenv.Redis(t).Addr
	c := client(t, addr)
	storetest.Emptied(t, stores(t, addr), func(t *testing.T) { require.NoError(t, c.FlushAll(t.Context()).Err()) })
}

// The client has no timeouts and repeats what fails.
func TestF5SilentRedis(t *testing.T) {
	p := storetest.NewProxy(t, "")
	c := redis.NewClient(&redis.Options{Addr: p.Addr, ReadTimeout: -1, WriteTimeout: -1, DialTimeout: time.Hour})
	storetest.F5(t, p, goredisstore.New(c, goredisstore.Options{}))
}

func TestF6LockAnswerLost(t *testing.T) {
	addr := testenv.Redis(t).Addr
	script := func(string) string { return "evalsha" }
	for _, retries := range []int{-1, 3} {
		p := storetest.NewProxy(t, addr)
		c := redis.NewClient(&redis.Options{Addr: p.Addr, MaxRetries: retries})
		t.Cleanup(func() { c.Close() })
		storetest.F6(t, p, goredisstore.New(c, goredisstore.Options{Prefix: fmt.Sprint(retries)}),
			goredisstore.New(client(t, addr), goredisstore.Options{Prefix: fmt.Sprint(retries)}), script)
	}
}

func TestF7CallersThatLeave(t *testing.T) {
	p := storetest.NewProxy(t, testenv.Redis(t).Addr)
	c := redis.NewClient(&redis.Options{Addr: p.Addr, PoolSize: 4})
	t.Cleanup(func() { c.Close() })
	storetest.F7(t, p, goredisstore.New(c, goredisstore.Options{}), 4)
}

// The application's only connection waits for a list that nobody fills.
func TestF8StarvedClient(t *testing.T) {
	addr := testenv.Redis(t).Addr
	c := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1, ReadTimeout: 300 * time.Millisecond})
	t.Cleanup(func() { c.Close() })
	watch := client(t, addr)
	starve := func(t *testing.T) (feed func()) {
		waiting := make(chan error)
		go func() { waiting <- c.BLPop(context.Background(), time.Minute, "starving").Err() }()
		return func() {
			require.NoError(t, watch.LPush(t.Context(), "starving", "x").Err())
			require.NoError(t, <-waiting)
		}
	}
	connections := func() int {
		list, err := watch.ClientList(t.Context()).Result()
		require.NoError(t, err)
		return strings.Count(list, "addr=")
	}
	one, other := goredisstore.New(c, goredisstore.Options{Lease: time.Second}), stores(t, addr)()
	for _, s := range []storetest.Store{one, other} { // both are connected
		_, err := s.Load(t.Context(), "starved")
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	}
	storetest.F8(t, one, other, starve, connections)
}

func TestF8FullRedis(t *testing.T) {
	addr := testenv.Redis(t).Addr
	p := storetest.NewProxy(t, addr)
	storetest.F8Full(t, p, stores(t, p.Addr)(), stores(t, addr)())
}

// A connection more hangs, as at a proxy that lets it wait: a lock is extended over the
// application's.
func TestF8BeatsThatHang(t *testing.T) {
	addr := testenv.Redis(t).Addr
	other := storeWithLease(t, addr, 2*time.Second)
	c := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1, Dialer: storetest.DialOnce()})
	t.Cleanup(func() { c.Close() })
	storetest.LockIsKept(t, goredisstore.New(c, goredisstore.Options{Lease: 2 * time.Second}), other, 6*time.Second)
}

// While Redis takes no writes the holder cannot beat. A waiter fails then, and does not take
// it for dead.
func TestLockFailsWhereBeatsDo(t *testing.T) {
	addr := testenv.Redis(t).Addr
	admin, ctx := client(t, addr), t.Context()
	holder, waiter := storeWithLease(t, addr, 0), storeWithLease(t, addr, 0)
	unlock, err := holder.Lock(ctx, "k")
	require.NoError(t, err)
	defer unlock()
	config := func(name, value string) func() error {
		return func() error { return admin.ConfigSet(ctx, name, value).Err() }
	}
	replicaOf := func(host, port string) func() error {
		return func() error { return admin.ReplicaOf(ctx, host, port).Err() }
	}
	for code, writes := range map[string]struct{ end, begin func() error }{
		"NOREPLICAS": {config("min-replicas-to-write", "1"), config("min-replicas-to-write", "0")},
		"OOM":        {config("maxmemory", "1"), config("maxmemory", "0")},
		"READONLY":   {replicaOf("127.0.0.1", "1"), replicaOf("no", "one")},
	} {
		require.NoError(t, writes.end())
		storetest.LockFails(t, waiter, "k", code)
		require.NoError(t, writes.begin())
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = waiter.Lock(ctx, "k")
	require.ErrorIs(t, err, lease.ErrHeld)
}

func TestI16README(t *testing.T) {
	storetest.README(t, []string{"github.com/redis/go-redis/v9", "github.com/ganbauth/ganbauth/goredisstore"})
}
