package goredisstore_test

import (
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
		c.AddHook(trips)
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
	c := client(t, testenv.Redis(t).Addr)
	s, ctx := goredisstore.New(c, goredisstore.Options{}), t.Context()
	token := storetest.Token("a")
	require.NoError(t, s.Save(ctx, "k", token))
	names, err := c.Keys(ctx, "*:token").Result()
	require.NoError(t, err)
	require.NoError(t, c.HDel(ctx, names[0], "print").Err())
	fingerprint, unlock, err := s.LockRecord(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, token.Fingerprint(), fingerprint)
	unlock()

	require.NoError(t, c.HSet(ctx, names[0], "token", "spoilt").Err())
	fingerprint, unlock, err = s.LockRecord(ctx, "k")
	require.ErrorContains(t, err, "redisstore: load: ")
	require.Empty(t, fingerprint)
	require.Nil(t, unlock)
	require.False(t, c.HExists(ctx, names[0], "holder").Val(), "the lock is given back")
}

// With a TTL there is no index.
func TestTTLHasNoIndex(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	s, ctx := goredisstore.New(c, goredisstore.Options{TTL: time.Hour}), t.Context()
	token := storetest.Token("a")
	require.NoError(t, s.Save(ctx, "k", token))
	require.Empty(t, indexed(t, c))
	without := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, without.Save(ctx, "other", token))
	page, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, token.ExpiresAt.Add(time.Hour), 10)
	require.NoError(t, err)
	require.Empty(t, page)
}
