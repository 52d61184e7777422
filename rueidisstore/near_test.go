package rueidisstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/rueidisstore"
)

// trips counts what a client writes: a round trip each, as nothing is asked at the same
// time.
type trips struct{ n atomic.Int32 }

func (c *trips) count(o *rueidis.ClientOption) {
	o.Dialer.KeepAlive = time.Hour // no PING
	o.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		return &countingConn{conn, c}, err
	}
}

type countingConn struct {
	net.Conn
	*trips
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

func TestRoundTrips(t *testing.T) {
	counter := &trips{}
	c := client(t, []string{testenv.Redis(t).Addr}, counter.count)
	s := rueidisstore.New(c, rueidisstore.Options{})
	for range 100 { // all connections are made
		require.NoError(t, s.Delete(t.Context(), "k"))
	}
	storetest.RoundTrips(t, s, 1, func() int { return int(counter.n.Load()) })
}

func TestALiveTokenCostsNoRoundTrip(t *testing.T) {
	counter, addr, ctx := &trips{}, testenv.Redis(t).Addr, t.Context()
	s := rueidisstore.New(client(t, []string{addr}, counter.count), rueidisstore.Options{CacheTTL: time.Minute})
	require.NoError(t, stores(t, addr)().Save(ctx, "k", storetest.Token("a")))
	load := func() {
		got, err := s.Load(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, storetest.Token("a"), got)
		got.AccessToken = "changed by its owner"
	}
	load()
	before := counter.n.Load()
	for range 1000 {
		load()
	}
	// A timer allocates three times: see [redisstore.WithTimeout].
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _, _ = s.Load(ctx, "k") }), 18.0)
	require.Equal(t, before, counter.n.Load())
	never := rueidisstore.New(client(t, []string{addr}, counter.count), rueidisstore.Options{CacheTTL: -1})
	for range 10 {
		_, err := never.Load(ctx, "k")
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, counter.n.Load(), before+10)
}

// deaf is a process that Redis tells nothing: all messages are lost, while the connection
// is well.
func deaf(t *testing.T, addr string, ttl time.Duration) *rueidisstore.Store {
	c := client(t, []string{addr}, func(o *rueidis.ClientOption) { o.ClientTrackingOptions = []string{"PREFIX", "nothing", "BCAST"} })
	return rueidisstore.New(c, rueidisstore.Options{CacheTTL: ttl})
}

func requireToken(t *testing.T, s ganbauth.TokenStore, key, access string) {
	t.Helper()
	got, err := s.Load(t.Context(), key)
	if access == "" {
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
		return
	}
	require.NoError(t, err)
	require.Equal(t, access, got.AccessToken)
}

// Whatever a process writes or locks it reads from Redis afterwards, even if it has
// missed every message.
func TestOwnWritesAreSeen(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	other := stores(t, addr)()
	for name, test := range map[string]func(t *testing.T, s storetest.Store, key string){
		"Save": func(t *testing.T, s storetest.Store, key string) {
			require.NoError(t, s.Save(ctx, key, storetest.Token("mine")))
			requireToken(t, s, key, "mine")
		},
		"Delete": func(t *testing.T, s storetest.Store, key string) {
			require.NoError(t, s.Delete(ctx, key))
			requireToken(t, s, key, "")
		},
		"Swap": func(t *testing.T, s storetest.Store, key string) {
			require.NoError(t, s.Swap(ctx, key, storetest.Token("theirs"), storetest.Token("mine")))
			requireToken(t, s, key, "mine")
		},
		"Swap that is superseded": func(t *testing.T, s storetest.Store, key string) {
			require.ErrorIs(t, s.Swap(ctx, key, storetest.Token("old"), storetest.Token("mine")), ganbauth.ErrSuperseded)
			requireToken(t, s, key, "theirs")
		},
		"LockRecord": func(t *testing.T, s storetest.Store, key string) {
			fingerprint, unlock, err := s.LockRecord(ctx, key)
			require.NoError(t, err)
			require.Equal(t, storetest.Token("theirs").Fingerprint(), fingerprint)
			requireToken(t, s, key, "theirs")
			require.NoError(t, other.Swap(ctx, key, storetest.Token("theirs"), storetest.Token("theirs again")))
			requireToken(t, s, key, "theirs again")
			unlock()
			requireToken(t, s, key, "theirs again")
		},
		"Lock that fails": func(t *testing.T, s storetest.Store, key string) {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			_, err := s.Lock(ended, key)
			require.Error(t, err)
			requireToken(t, s, key, "theirs")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := deaf(t, addr, time.Minute)
			require.NoError(t, other.Save(ctx, name, storetest.Token("old")))
			requireToken(t, s, name, "old")
			require.NoError(t, other.Save(ctx, name, storetest.Token("theirs")))
			requireToken(t, s, name, "old") // it is deaf indeed
			test(t, s, name)
		})
	}
}

// "Nothing" and a mark are not believed: a login on another machine is seen at once, and
// a log-out here does not overlook it.
func TestOnlyTokensAreKept(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	s, other := deaf(t, addr, time.Minute), stores(t, addr)()
	requireToken(t, s, "k", "")
	require.NoError(t, other.Save(ctx, "k", storetest.Token("a")))
	requireToken(t, s, "k", "a")
	mark := &ganbauth.Token{Epoch: "e", IssuedAt: storetest.Token("").IssuedAt, ExpiresAt: storetest.Token("").ExpiresAt}
	require.NoError(t, other.Save(ctx, "marked", mark))
	got, err := s.Load(ctx, "marked")
	require.NoError(t, err)
	require.Equal(t, mark, got)
	require.NoError(t, other.Save(ctx, "marked", storetest.Token("b")))
	requireToken(t, s, "marked", "b")
}

// A kit that has missed every message logs out what is there, and when the bank refuses
// the token that it has, it takes the one that is there.
func TestDeafKit(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true})
	t.Cleanup(bank.Close)
	newKit := func(store ganbauth.TokenStore) *ganbauth.Kit {
		kit, err := ganbauth.New(bank.Connector(), nil, ganbauth.Options{
			RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: store,
			Key: func(*http.Request) (string, error) { return "", nil }, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		return kit
	}
	here, there := newKit(deaf(t, addr, time.Minute)), newKit(stores(t, addr)())
	access := func(kit *ganbauth.Kit, user string) string {
		token, err := kit.Token(ctx, user)
		require.NoError(t, err)
		return token.AccessToken
	}
	for _, user := range []string{"logs out", "calls the API"} {
		require.NoError(t, there.SetToken(ctx, user, bank.Token()))
		first := access(here, user)
		bank.ExpireAccessTokens()
		require.NoError(t, there.SetToken(ctx, user, bank.Token()))
		require.Equal(t, first, access(here, user))
	}
	require.NoError(t, here.Disconnect(ctx, "logs out"))
	_, err := there.Token(ctx, "logs out")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	resp, err := here.ClientFor("calls the API").Get(bank.APIBase() + "/accounts")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, access(there, "calls the API"), access(here, "calls the API"))
	require.Zero(t, bank.Refreshes())
}

// seen waits until s does not serve the token any more, and returns for how long it did.
func seen(t *testing.T, s ganbauth.TokenStore, key, access string) (hidden time.Duration) {
	t.Helper()
	began := time.Now()
	require.Eventually(t, func() bool {
		hidden = time.Since(began)
		got, err := s.Load(t.Context(), key)
		return err != nil || got.AccessToken != access
	}, 40*time.Second, time.Millisecond)
	return hidden.Round(time.Millisecond)
}

// What another process changes is hidden for CacheTTL at most, though no message arrives.
func TestCacheTTLBoundsWhatLostMessagesHide(t *testing.T) {
	addr := testenv.Redis(t).Addr
	s, other := deaf(t, addr, 2*time.Second), stores(t, addr)()
	require.NoError(t, other.Save(t.Context(), "k", storetest.Token("old")))
	requireToken(t, s, "k", "old")
	require.NoError(t, other.Delete(t.Context(), "k"))
	t.Attr("measured", fmt.Sprintf("a logout was hidden for %s, with a CacheTTL of 2 s", seen(t, s, "k", "old")))
	requireToken(t, s, "k", "")
}

// A connection that is killed takes with it what was learned over it.
func TestKilledConnection(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	s := rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{CacheTTL: time.Minute})
	watch := admin(t, addr)
	for i := range 20 {
		key := fmt.Sprint(i)
		other := stores(t, addr)()
		require.NoError(t, other.Save(ctx, key, storetest.Token("old")))
		requireToken(t, s, key, "old")
		// Everybody's but the killer's own: the message about what comes next has no way
		// to go.
		require.NoError(t, watch.Do(ctx, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err())
		name, err := watch.Keys(ctx, "*:token").Result()
		require.NoError(t, err)
		require.NotEmpty(t, name)
		for _, n := range name {
			require.NoError(t, watch.Del(ctx, n).Err())
		}
		seen(t, s, key, "old")
		requireToken(t, s, key, "")
	}
}

// A connection that is silent, as in a partition, is given up when it does not answer a
// PING.
func TestSilentConnection(t *testing.T) {
	addr := testenv.Redis(t).Addr
	p := storetest.NewProxy(t, addr)
	c := client(t, []string{p.Addr}, func(o *rueidis.ClientOption) { o.Dialer.KeepAlive, o.ConnWriteTimeout = time.Second, time.Second })
	s, other := rueidisstore.New(c, rueidisstore.Options{CacheTTL: time.Minute}), stores(t, addr)()
	require.NoError(t, other.Save(t.Context(), "k", storetest.Token("old")))
	requireToken(t, s, "k", "old")
	t.Cleanup(p.Silence())
	require.NoError(t, other.Delete(t.Context(), "k"))
	requireToken(t, s, "k", "old")
	t.Attr("measured", fmt.Sprintf("a partition hid a logout for %s, with KeepAlive and ConnWriteTimeout of 1 s",
		seen(t, s, "k", "old")))
}

// A log-out on another machine is seen when Redis's message arrives.
func TestLogoutElsewhereIsSeen(t *testing.T) {
	addr, ctx := testenv.Redis(t).Addr, t.Context()
	s, other := rueidisstore.New(client(t, []string{addr}), rueidisstore.Options{CacheTTL: time.Minute}), stores(t, addr)()
	var took []time.Duration
	for range 1000 {
		require.NoError(t, other.Save(ctx, "k", storetest.Token("a")))
		for {
			if _, err := s.Load(ctx, "k"); err == nil {
				break
			}
		}
		require.NoError(t, other.Delete(ctx, "k"))
		for began := time.Now(); ; {
			_, err := s.Load(ctx, "k")
			if errors.Is(err, ganbauth.ErrTokenNotFound) {
				took = append(took, time.Since(began))
				break
			}
			require.NoError(t, err)
		}
	}
	slices.Sort(took)
	t.Attr("measured", fmt.Sprintf("after the logout was answered: median %s, 99%% %s, longest %s of 1,000",
		took[500].Round(time.Microsecond), took[990].Round(time.Microsecond), took[999].Round(time.Microsecond)))
}

// What a read from memory costs: go test -bench Load
func BenchmarkLoad(b *testing.B) {
	addr := testenv.Redis(b).Addr
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	require.NoError(b, err)
	defer c.Close()
	require.NoError(b, rueidisstore.New(c, rueidisstore.Options{}).Save(b.Context(), "k", storetest.Token("a")))
	for name, ttl := range map[string]time.Duration{"from memory": time.Minute, "from Redis": -1} {
		b.Run(name, func(b *testing.B) {
			s := rueidisstore.New(c, rueidisstore.Options{CacheTTL: ttl})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Load(b.Context(), "k"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
