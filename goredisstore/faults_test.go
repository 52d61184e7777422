package goredisstore_test

import (
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

// Whichever round trip fails before a call has had its effect, the call does.
func TestEveryRoundTripThatFails(t *testing.T) {
	everywhere(t, func(t *testing.T, c redis.UniversalClient) {
		s, ctx, trips := goredisstore.New(c, goredisstore.Options{}), t.Context(), &tripCounter{}
		token := expiring("a", time.Now().Add(time.Hour).Truncate(time.Second))
		unlock, err := s.Lock(ctx, "k") // it has looked at Redis's memory, and found out about Clusters
		require.NoError(t, err)
		unlock()
		require.NoError(t, s.Save(ctx, "k", token))
		c.AddHook(hook(trips.trip))
		for name, call := range map[string]func() error{
			"Load":     func() error { _, err := s.Load(ctx, "k"); return err },
			"Save":     func() error { return s.Save(ctx, "k", token) },
			"Delete":   func() error { return s.Delete(ctx, "k") },
			"Swap":     func() error { return s.Swap(ctx, "k", token, expiring("b", token.ExpiresAt)) },
			"Expiring": func() error { _, err := s.Expiring(ctx, token.ExpiresAt.Add(time.Hour)); return err },
			"ExpiringAfter": func() error {
				_, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, token.ExpiresAt.Add(time.Hour), 10)
				return err
			},
		} {
			prepare := func(at int) {
				trips.begin(0)
				require.NoError(t, s.Save(ctx, "gone", token))
				forget(t, c) // its entry is to be put right
				require.NoError(t, s.Save(ctx, "k", token))
				trips.begin(at)
			}
			prepare(0)
			require.NoError(t, call()) // it knows the scripts
			prepare(0)
			require.NoError(t, call())
			for at := range int(trips.n.Load()) {
				prepare(at + 1)
				err := call()
				if written := name == "Save" || name == "Swap" || name == "Delete"; written && at > 0 {
					continue // in a Cluster: the record is written, and the index is put right later
				}
				require.ErrorIs(t, err, errCut, "%s, trip %d", name, at)
			}
		}
		trips.begin(1)
		fingerprint, unlock, err := s.LockRecord(ctx, "k")
		require.ErrorIs(t, err, errCut)
		require.Empty(t, fingerprint)
		require.Nil(t, unlock)
	})
}

// A record of an earlier version has no fingerprint beside it, and is locked all the same.
func TestLockOfARecordWithoutAFingerprint(t *testing.T) {
	c, ctx := client(t, testenv.Redis(t).Addr), t.Context()
	var names []string
	strip := func() (err error) {
		if names, err = c.Keys(ctx, "*:token").Result(); err != nil {
			return err
		}
		return c.HDel(ctx, names[0], "print").Err()
	}
	spoil := func() error { return c.HSet(ctx, names[0], "token", "spoilt").Err() }
	storetest.LockWithoutFingerprint(t, goredisstore.New(c, goredisstore.Options{}), strip, spoil, "redisstore: load: ")
	require.False(t, c.HExists(ctx, names[0], "holder").Val(), "the lock is given back")
}

func TestDetails(t *testing.T) {
	addr := testenv.Redis(t).Addr
	s := stores(t, addr)()
	storetest.Details(t, s, goredisstore.New(client(t, addr), goredisstore.Options{Prefix: "ends:", TTL: time.Hour}))
}

func TestFreshKeys(t *testing.T) { storetest.FreshKeys(t, stores(t, testenv.Redis(t).Addr)()) }

// With a TTL there is no index.
func TestTTLHasNoIndex(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	s, ctx := goredisstore.New(c, goredisstore.Options{TTL: time.Hour}), t.Context()
	token := storetest.Token("a")
	require.NoError(t, s.Save(ctx, "k", token))
	require.Empty(t, indexed(t, c))
	names, err := c.Keys(ctx, "*").Result()
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.False(t, c.HExists(ctx, names[0], "end").Val())
	without := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, without.Save(ctx, "other", token))
	page, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, token.ExpiresAt.Add(time.Hour), 10)
	require.NoError(t, err)
	require.Empty(t, page)
}

// Two processes write a token in a Cluster. The index says what the record does, though the
// first one comes to it last.
func TestTheIndexFollowsTheLastWriter(t *testing.T) {
	first, second := clusterClient(t), redis.UniversalClient(nil)
	second = redis.NewClusterClient(first.(*redis.ClusterClient).Options())
	t.Cleanup(func() { second.Close() })
	s, other, ctx := goredisstore.New(first, goredisstore.Options{}), goredisstore.New(second, goredisstore.Options{}), t.Context()
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	require.NoError(t, s.Save(ctx, "k", expiring("a", at)))
	for i, last := range []*ganbauth.Token{expiring("b", at.Add(time.Minute)), nil, expiring("c", at.Add(time.Hour))} {
		between := func() error {
			if last == nil {
				return other.Delete(ctx, "k")
			}
			return other.Save(ctx, "k", last)
		}
		var once sync.Once
		first.AddHook(hook(func(cmds []redis.Cmder) (err error) {
			if cmds[0].Args()[0] == "ZADD" {
				once.Do(func() { err = between() })
			}
			return err
		}))
		require.NoError(t, s.Save(ctx, "k", expiring("x", at.Add(time.Duration(i)*time.Second))))
		want := map[string]float64{}
		if last != nil {
			want["k"] = float64(last.ExpiresAt.Unix())
		}
		require.Equal(t, want, indexed(t, second))
	}
}

// In a Cluster the index is written before the record and after it. Where the second write
// fails, a token is not listed too late.
func TestATokenIsNotListedTooLate(t *testing.T) {
	c := clusterClient(t)
	s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), time.Now().Add(time.Hour).Truncate(time.Second)
	require.NoError(t, s.Save(ctx, "sooner", expiring("a", at.AddDate(0, 1, 0))))
	require.NoError(t, s.Save(ctx, "later", expiring("a", at)))
	failing := true
	c.AddHook(hook(func(cmds []redis.Cmder) error {
		if failing && cmds[0].Args()[0] == "ZADD" {
			return errCut
		}
		return nil
	}))
	require.NoError(t, s.Save(ctx, "sooner", expiring("b", at)))
	require.NoError(t, s.Save(ctx, "later", expiring("b", at.AddDate(0, 1, 0))))
	require.NoError(t, s.Save(ctx, "new", expiring("b", at)))
	listed := float64(at.Unix())
	require.Equal(t, map[string]float64{"sooner": listed, "later": listed, "new": listed}, indexed(t, c))
	failing = false
	keys, err := s.Expiring(ctx, at.Add(time.Second))
	require.NoError(t, err)
	require.Equal(t, []string{"new", "sooner"}, keys)
}

// Names in Redis are for good: another version must find what this one has kept.
func TestNamesInRedis(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	require.NoError(t, goredisstore.New(c, goredisstore.Options{}).Save(t.Context(), "bank/user-1", storetest.Token("a")))
	names, err := c.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"ganbauth:{mocCSGTm0aD1EGUfvfxvhW_yEkcnvSIPtPtaZoSPBkc}:token", "ganbauth:expiries:{26}"}, names)
}

// To list what is right changes nothing.
func TestAListWritesNothing(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	s, ctx, at := goredisstore.New(c, goredisstore.Options{}), t.Context(), storetest.Token("").ExpiresAt
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, s.Save(ctx, key, expiring("a", at)))
	}
	c.AddHook(hook(func(cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			require.NotContains(t, []any{"ZADD", "ZREM"}, cmd.Args()[0])
		}
		return nil
	}))
	page, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, at.Add(time.Hour), 10)
	require.NoError(t, err)
	require.Len(t, page, 3)
}
