package goredisstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

func client(t *testing.T, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { c.Close() })
	return c
}

func token(access string) *ganbauth.Token {
	issued := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	return &ganbauth.Token{AccessToken: access, RefreshToken: "r", TokenType: "Bearer", IssuedAt: issued, ExpiresAt: issued.Add(time.Hour)}
}

func TestStore(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	ganbtest.TestStore(t, func() ganbauth.TokenStore { return goredisstore.New(c, goredisstore.Options{}) })
}

// A process that lost its lease, suspended for instance, cannot overwrite what another has saved or deleted since.
func TestLostLease(t *testing.T) {
	ctx := t.Context()
	c := client(t, testenv.Redis(t).Addr)
	for name, test := range map[string]struct {
		change func(*testing.T, *goredisstore.Store)
		want   string // "" if there must be no token
	}{
		"saved":   {func(t *testing.T, s *goredisstore.Store) { require.NoError(t, s.Save(ctx, "k", token("newer"))) }, "newer"},
		"deleted": {func(t *testing.T, s *goredisstore.Store) { require.NoError(t, s.Delete(ctx, "k")) }, ""},
	} {
		for _, locked := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", locked ", locked), func(t *testing.T) {
				require.NoError(t, c.FlushAll(ctx).Err())
				stale, other := goredisstore.New(c, goredisstore.Options{}), goredisstore.New(c, goredisstore.Options{})
				require.NoError(t, stale.Save(ctx, "k", token("old")))
				unlock, err := stale.Lock(ctx, "k")
				require.NoError(t, err)
				expireLocks(t, c)
				if locked {
					unlockOther, err := other.Lock(ctx, "k")
					require.NoError(t, err)
					test.change(t, other)
					unlockOther()
				} else {
					test.change(t, other)
				}
				require.ErrorIs(t, stale.Save(ctx, "k", token("stale")), ganbauth.ErrSuperseded)
				unlock()
				got, err := other.Load(ctx, "k")
				if test.want == "" {
					require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
				} else {
					require.NoError(t, err)
					require.Equal(t, test.want, got.AccessToken)
				}
				unlock, err = stale.Lock(ctx, "k")
				require.NoError(t, err)
				require.NoError(t, stale.Save(ctx, "k", token("after a new lock")))
				unlock()
			})
		}
	}
	t.Run("nobody else came: the token is not lost", func(t *testing.T) {
		s := goredisstore.New(c, goredisstore.Options{})
		unlock, err := s.Lock(ctx, "k2")
		require.NoError(t, err)
		expireLocks(t, c)
		require.NoError(t, s.Save(ctx, "k2", token("late")))
		unlock()
	})
	t.Run("the unlock of a lost lock leaves the next holder's", func(t *testing.T) {
		stale, other := goredisstore.New(c, goredisstore.Options{}), goredisstore.New(c, goredisstore.Options{})
		unlock, err := stale.Lock(ctx, "k3")
		require.NoError(t, err)
		expireLocks(t, c)
		unlockOther, err := other.Lock(ctx, "k3")
		require.NoError(t, err)
		unlock()
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = stale.Lock(short, "k3")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		unlockOther()
	})
}

// expireLocks ends all leases at once.
func expireLocks(t *testing.T, c *redis.Client) {
	t.Helper()
	names, err := c.Keys(t.Context(), "*:lock").Result()
	require.NoError(t, err)
	require.NotEmpty(t, names)
	require.NoError(t, c.Del(t.Context(), names...).Err())
}

// A lock that is held for longer than its lease is extended.
func TestLeaseIsExtended(t *testing.T) {
	c := client(t, testenv.Redis(t).Addr)
	one, two := goredisstore.New(c, goredisstore.Options{Lease: time.Second}), goredisstore.New(c, goredisstore.Options{Lease: time.Second})
	unlock, err := one.Lock(t.Context(), "k")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	_, err = two.Lock(ctx, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	unlock()
	unlock() // once more does no harm
	unlock, err = two.Lock(t.Context(), "k")
	require.NoError(t, err)
	unlock()
}

// kill -9 of the process that holds the lock: the others go on when the lease has run out.
func TestHolderIsKilled(t *testing.T) {
	if addr := os.Getenv("HOLD_LOCK"); addr != "" {
		_, err := goredisstore.New(client(t, addr), goredisstore.Options{Lease: time.Second}).Lock(t.Context(), "k")
		require.NoError(t, err)
		fmt.Println("locked")
		select {}
	}
	addr := testenv.Redis(t).Addr
	cmd := exec.Command(os.Args[0], "-test.run=^TestHolderIsKilled$")
	cmd.Env = append(os.Environ(), "HOLD_LOCK="+addr)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line := make([]byte, len("locked"))
	_, err = out.Read(line)
	require.NoError(t, err)
	require.Equal(t, "locked", string(line))

	s := goredisstore.New(client(t, addr), goredisstore.Options{})
	short, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err = s.Lock(short, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded, "while it lives")
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err := s.Lock(ctx, "k")
	require.NoError(t, err)
	unlock()
}

// Redis away, slow, and back: errors that are no logout, contexts obeyed, and recovery without a restart.
func TestRedisGoesAway(t *testing.T) {
	server := testenv.Redis(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr, ReadTimeout: 200 * time.Millisecond, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	s := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, s.Save(t.Context(), "k", token("a")))
	failing := func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Load(ctx, "k")
		require.Error(t, err)
		require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
		require.Error(t, s.Save(ctx, "k", token("S3CRET")))
		require.NotContains(t, fmt.Sprint(s.Save(ctx, "k", token("S3CRET"))), "S3CRET")
		require.Error(t, s.Delete(ctx, "k"))
		_, err = s.Lock(ctx, "k")
		require.Error(t, err)
	}
	server.Pause()
	failing()
	server.Resume()
	require.Eventually(t, func() bool { _, err := s.Load(t.Context(), "k"); return err == nil }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, s.Save(t.Context(), "k", token("b")))
	server.Stop()
	failing()
	server.Start(t)
	require.Eventually(t, func() bool {
		got, err := s.Load(t.Context(), "k")
		return err == nil && got.AccessToken == "b"
	}, 10*time.Second, 10*time.Millisecond)
}

func TestTTLAndPrefix(t *testing.T) {
	ctx := t.Context()
	c := client(t, testenv.Redis(t).Addr)
	forever, hour := goredisstore.New(c, goredisstore.Options{}), goredisstore.New(c, goredisstore.Options{Prefix: "p:", TTL: time.Hour})
	require.NoError(t, forever.Save(ctx, "k", token("a")))
	require.NoError(t, hour.Save(ctx, "k", token("b")))
	ttl := func(pattern string) time.Duration {
		names, err := c.Keys(ctx, pattern).Result()
		require.NoError(t, err)
		require.Len(t, names, 1)
		d, err := c.PTTL(ctx, names[0]).Result()
		require.NoError(t, err)
		return d
	}
	require.Equal(t, time.Duration(-1), ttl("ganbauth:*"))
	require.InDelta(t, time.Hour, ttl("p:*"), float64(time.Minute))
	unlock, err := forever.Lock(ctx, "k")
	require.NoError(t, err)
	unlock()
	require.Equal(t, time.Duration(-1), ttl("ganbauth:*"), "a lock does not end the token")
	require.NoError(t, forever.Delete(ctx, "k"))
	require.LessOrEqual(t, ttl("ganbauth:*"), 10*time.Minute, "what is left of a deleted token goes, too")
}

func TestUnreadableRecord(t *testing.T) {
	ctx := t.Context()
	c := client(t, testenv.Redis(t).Addr)
	s := goredisstore.New(c, goredisstore.Options{})
	require.NoError(t, s.Save(ctx, "k", token("a")))
	names, err := c.Keys(ctx, "*").Result()
	require.NoError(t, err)
	require.NoError(t, c.HSet(ctx, names[0], "token", "garbage").Err())
	_, err = s.Load(ctx, "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	require.NoError(t, s.Save(ctx, "k", token("b")))
	_, err = s.Load(ctx, "k")
	require.NoError(t, err)
}

// Two kits with a store each, as in two processes, at a bank that ends the grant when a refresh token is used twice.
func TestKits(t *testing.T) {
	addr := testenv.Redis(t).Addr
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true, Latency: 20 * time.Millisecond})
	t.Cleanup(bank.Close)
	kits := make([]*ganbauth.Kit, 2)
	for i := range kits {
		kits[i] = newKit(t, bank, goredisstore.New(client(t, addr), goredisstore.Options{}))
	}
	const users = 20
	store := goredisstore.New(client(t, addr), goredisstore.Options{})
	for u := range users {
		require.NoError(t, store.Save(t.Context(), fmt.Sprint(u), bank.Token()))
	}
	for range 3 {
		before := bank.Refreshes()
		bank.ExpireAccessTokens()
		var wg sync.WaitGroup
		for i := range 10 * users {
			wg.Go(func() {
				resp, err := kits[i%2].ClientFor(fmt.Sprint(i % users)).Get(bank.APIBase() + "/accounts")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Error(resp.Status)
				}
			})
		}
		wg.Wait()
		require.Equal(t, users, bank.Refreshes()-before)
	}
}

func newKit(t *testing.T, bank *ganbtest.Server, store *goredisstore.Store) *ganbauth.Kit {
	t.Helper()
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	kit, err := ganbauth.New(c, nil, ganbauth.Options{
		RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: store,
		Key: func(*http.Request) (string, error) { return "", nil }, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	return kit
}
