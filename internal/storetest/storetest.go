// Package storetest is what the tests of the stores on real engines have in common.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/lease"
)

// Store is a store that can do everything that a store can.
type Store interface {
	ganbauth.TokenStore
	ganbauth.Swapper
	ganbauth.Locker
	ganbauth.RecordLocker
	ganbauth.ExpiryLister
	ganbauth.ExpiryPager
}

// past is token as if it had expired.
func past(token *ganbauth.Token) *ganbauth.Token {
	token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(-time.Hour), token.IssuedAt
	return token
}

// Token is some token.
func Token(access string) *ganbauth.Token {
	issued := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	return &ganbauth.Token{AccessToken: access, RefreshToken: "r", TokenType: "Bearer", IssuedAt: issued, ExpiresAt: issued.Add(time.Hour)}
}

// LostLease tests a process that has lost its lock, because it was suspended for
// instance. Its swap succeeds only if nobody has changed the record since. The function
// expire ends all leases.
func LostLease(t *testing.T, newStore func() Store, expire func(*testing.T)) {
	ctx := t.Context()
	lost := func(t *testing.T, key string) (stale, other Store, unlock func()) {
		stale, other = newStore(), newStore()
		require.NoError(t, stale.Save(ctx, key, Token("old")))
		unlock, err := stale.Lock(ctx, key)
		require.NoError(t, err)
		expire(t)
		unlockOther, err := other.Lock(ctx, key)
		require.NoError(t, err)
		t.Cleanup(unlockOther)
		return stale, other, unlock
	}
	t.Run("another has saved", func(t *testing.T) {
		stale, other, unlock := lost(t, "saved")
		require.NoError(t, other.Swap(ctx, "saved", Token("old"), Token("newer")))
		require.ErrorIs(t, stale.Swap(ctx, "saved", Token("old"), Token("stale")), ganbauth.ErrSuperseded)
		unlock()
		got, err := other.Load(ctx, "saved")
		require.NoError(t, err)
		require.Equal(t, "newer", got.AccessToken)
	})
	t.Run("another has deleted", func(t *testing.T) {
		stale, other, unlock := lost(t, "deleted")
		require.NoError(t, other.Swap(ctx, "deleted", Token("old"), nil))
		require.ErrorIs(t, stale.Swap(ctx, "deleted", Token("old"), Token("stale")), ganbauth.ErrSuperseded)
		unlock()
		_, err := other.Load(ctx, "deleted")
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	})
	t.Run("nobody has done anything", func(t *testing.T) {
		stale, _, unlock := lost(t, "alone")
		require.NoError(t, stale.Swap(ctx, "alone", Token("old"), Token("late")))
		unlock()
	})
	t.Run("the unlock of a lost lock leaves the next holder's", func(t *testing.T) {
		stale, _, unlock := lost(t, "next")
		unlock()
		requireLocked(t, stale, "next", 200*time.Millisecond)
	})
}

// Emptied tests an engine that loses everything under a lock: no lock is refused forever.
// The function empty does what a flush or a failover does.
func Emptied(t *testing.T, newStore func() Store, empty func(*testing.T)) {
	ctx := t.Context()
	s, other := newStore(), newStore()
	for range 5 {
		unlock, err := s.Lock(ctx, "emptied")
		require.NoError(t, err)
		require.NoError(t, s.Save(ctx, "emptied", Token("old")))
		unlock()
	}
	unlock, err := s.Lock(ctx, "emptied")
	require.NoError(t, err)
	empty(t)
	require.ErrorIs(t, s.Swap(ctx, "emptied", Token("old"), Token("new")), ganbauth.ErrSuperseded, "as after a log-out")
	unlock()
	require.NoError(t, s.Swap(ctx, "emptied", nil, Token("1")))
	for i := range 5 {
		for _, s := range []Store{s, other} {
			fingerprint, unlock, err := s.LockRecord(ctx, "emptied")
			require.NoError(t, err)
			current, err := s.Load(ctx, "emptied")
			require.NoError(t, err)
			require.Equal(t, current.Fingerprint(), fingerprint)
			require.NoError(t, s.Swap(ctx, "emptied", current, Token(fmt.Sprint("next ", i))))
			unlock()
		}
	}
}

func requireLocked(t *testing.T, s Store, key string, wait time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	_, err := s.Lock(ctx, key)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, lease.ErrHeld)
}

// Details tests what other tests have no eye for: what is no token; lists of as many tokens
// as a page has, and one more, and until the middle of a second; times in UTC; and that
// ending, a store with a TTL, lists nothing.
func Details(t *testing.T, s, ending Store) {
	ctx := t.Context()
	require.True(t, s.(interface{ EndsWithContext() bool }).EndsWithContext())
	require.ErrorContains(t, s.Save(ctx, "k", nil), "no token to save")
	_, err := s.Load(ctx, "k")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)

	due := time.Now().Add(time.Hour).Truncate(time.Second)
	want := make([]string, 1001)
	var saving sync.WaitGroup
	const savers = 4
	for first := range savers {
		saving.Go(func() {
			for i := first; i < len(want); i += savers {
				token := Token("a")
				token.ExpiresAt = due.Add(time.Duration(i) * time.Second).UTC()
				want[i] = fmt.Sprintf("k%04d", i)
				if err := s.Save(ctx, want[i], token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	saving.Wait()
	for _, n := range []int{999, 1000, 1001} {
		keys, err := s.Expiring(ctx, due.Add(time.Duration(n)*time.Second))
		require.NoError(t, err)
		require.Equal(t, want[:n], keys)
	}
	keys, err := s.Expiring(ctx, due.Add(time.Millisecond))
	require.NoError(t, err)
	require.Equal(t, want[:1], keys)
	page, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, due.Add(time.Hour), 2)
	require.NoError(t, err)
	require.Equal(t, []ganbauth.Expiry{{At: due.UTC(), Key: "k0000"}, {At: due.Add(time.Second).UTC(), Key: "k0001"}}, page)
	got, err := s.Load(ctx, "k0000")
	require.NoError(t, err)
	saved := Token("a")
	saved.ExpiresAt = due.UTC()
	require.Equal(t, saved, got)

	require.NoError(t, ending.Save(ctx, "ends", Token("a")))
	keys, err = ending.Expiring(ctx, due.Add(time.Hour))
	require.NoError(t, err)
	require.Empty(t, keys)
	page, err = ending.ExpiringAfter(ctx, ganbauth.Expiry{}, due.Add(time.Hour), 2)
	require.NoError(t, err)
	require.Empty(t, page)
}

// RepeatedUntilLeft tests a write that the engine undoes each time: it is repeated until its
// caller leaves. The function tries says how often it was sent.
func RepeatedUntilLeft(t *testing.T, s Store, tries func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- s.Save(ctx, "k", Token("a")) }()
	require.Eventually(t, func() bool { return tries() > 10 }, 20*time.Second, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	before := -1
	require.Eventually(t, func() bool { // the last one may be on its way
		n := tries()
		ended := n == before
		before = n
		return ended
	}, 2*time.Second, 100*time.Millisecond)
}

// FreshKeys tests callers that come at once where there is nothing yet: each gets the lock in
// its turn, and of those that fill a place one does.
func FreshKeys(t *testing.T, s Store) {
	for i := range 4 {
		key := fmt.Sprint("fresh", i)
		var callers sync.WaitGroup
		var holders, filled atomic.Int32
		for range 8 {
			callers.Go(func() {
				unlock, err := s.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Error("holders:", n)
				}
				holders.Add(-1)
				unlock()
			})
			callers.Go(func() {
				switch err := s.Swap(t.Context(), key+"filled", nil, Token("a")); {
				case err == nil:
					filled.Add(1)
				case !errors.Is(err, ganbauth.ErrSuperseded):
					t.Error(err)
				}
			})
			callers.Go(func() {
				if err := s.Save(t.Context(), key+"saved", Token("a")); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		require.Equal(t, int32(1), filled.Load())
	}
	require.NoError(t, s.Swap(t.Context(), "fresh0", nil, Token("a")), "beside what is left of a lock")
	require.ErrorIs(t, s.Swap(t.Context(), "fresh0filled", nil, nil), ganbauth.ErrSuperseded)
	require.NoError(t, s.Swap(t.Context(), "nothing", nil, nil))
}

// Engine tests what a store's locks are made of, and its connections for beats, two at most,
// which own counts among others. At last it tests that every statement fails when the table is gone.
func Engine(t *testing.T, e lease.Engine, own func() int, drop func()) {
	ctx := t.Context()
	try := func(holder string, dead lease.Hold) lease.Hold {
		t.Helper()
		hold, err := e.TryLock(ctx, "k", holder, dead)
		require.NoError(t, err)
		return hold
	}
	one, two := lease.Hold{Holder: "one"}, lease.Hold{Holder: "two"}
	require.Equal(t, one, try("one", lease.Hold{}))
	require.Equal(t, one, try("two", lease.Hold{}))
	others := own()
	for range 2 { // they are made again
		var beats sync.WaitGroup
		for range 10 {
			beats.Go(func() { assert.NoError(t, e.Extend(ctx, "k", "one")) })
		}
		beats.Wait()
		require.Greater(t, own(), others)
		require.LessOrEqual(t, own(), others+2)
		e.(lease.Rester).Rest()
		require.Eventually(t, func() bool { return own() <= others }, 20*time.Second, 10*time.Millisecond)
	}
	e.(lease.Rester).Rest() // with nothing to close
	require.NoError(t, e.Extend(ctx, "k", "two"), "which does not hold it")
	require.Equal(t, lease.Hold{Holder: "one", Beats: 20}, try("two", lease.Hold{Holder: "one", Beats: 19}))
	require.Equal(t, two, try("two", lease.Hold{Holder: "one", Beats: 20}))
	require.NoError(t, e.Unlock(ctx, "k", "one"))
	require.Equal(t, two, try("one", lease.Hold{}))
	require.NoError(t, e.Unlock(ctx, "k", "two"))
	require.Equal(t, one, try("one", lease.Hold{}))
	drop()
	hold, err := e.TryLock(ctx, "k", "one", lease.Hold{})
	require.Error(t, err)
	require.Zero(t, hold)
	require.Error(t, e.Extend(ctx, "k", "one"))
	require.Error(t, e.Unlock(ctx, "k", "one"))
	e.(lease.Rester).Rest()
}

// LockIsKept tests that other does not get a lock of s's, for that long, and gets it when it
// is released.
func LockIsKept(t *testing.T, s, other Store, wait time.Duration) {
	t.Helper()
	unlock, err := s.Lock(t.Context(), "kept")
	require.NoError(t, err)
	requireLocked(t, other, "kept", wait)
	unlock()
	unlock() // once more does no harm
	unlock, err = other.Lock(t.Context(), "kept")
	require.NoError(t, err)
	unlock()
}

// LockFails tests that a waiter for a lock that somebody holds is told why the engine fails,
// and that it does not take the holder for dead.
func LockFails(t *testing.T, waiter Store, key, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := waiter.Lock(ctx, key)
	require.ErrorContains(t, err, why)
	require.NotErrorIs(t, err, lease.ErrHeld)
}

// LockWithoutFingerprint tests the lock of a record of a version that kept no fingerprint:
// strip takes it away. When spoil has made the record one that cannot be read, the error says
// why.
func LockWithoutFingerprint(t *testing.T, s Store, strip, spoil func() error, why string) {
	t.Helper()
	token := Token("a")
	require.NoError(t, s.Save(t.Context(), "k", token))
	require.NoError(t, strip())
	fingerprint, unlock, err := s.LockRecord(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, token.Fingerprint(), fingerprint)
	unlock()
	require.NoError(t, spoil())
	fingerprint, unlock, err = s.LockRecord(t.Context(), "k")
	require.ErrorContains(t, err, why)
	require.Empty(t, fingerprint)
	require.Nil(t, unlock)
}

// DialOnce returns a dialer that connects once, and then lets everybody wait.
func DialOnce() func(ctx context.Context, network, addr string) (net.Conn, error) {
	var opened atomic.Bool
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if opened.Swap(true) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// LeaseIsExtended tests that a lock that is held for longer than its lease is kept. The
// stores' leases are a second.
func LeaseIsExtended(t *testing.T, newStore func() Store) {
	LockIsKept(t, newStore(), newStore(), 2500*time.Millisecond)
}

// HolderIsKilled tests kill -9 of the process that holds the lock: the others go on when
// its lease, a second, has run out. It runs the calling test again in a process of its
// own, with addr in the environment: there newStore gets it.
func HolderIsKilled(t *testing.T, addr string, newStore func(addr string) Store) {
	const variable = "STORETEST_HOLD_LOCK"
	if held := os.Getenv(variable); held != "" {
		_, err := newStore(held).Lock(t.Context(), "killed")
		require.NoError(t, err)
		fmt.Println("locked")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), variable+"="+addr)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line := make([]byte, len("locked"))
	_, err = out.Read(line)
	require.NoError(t, err)
	require.Equal(t, "locked", string(line))

	s := newStore(addr)
	requireLocked(t, s, "killed", 1500*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err := s.Lock(ctx, "killed")
	require.NoError(t, err)
	unlock()
}

// IsChild reports whether the test is HolderIsKilled's second process, which starts no
// engine.
func IsChild() bool { return os.Getenv("STORETEST_HOLD_LOCK") != "" }

// CallsFail tests that every call fails, and returns nothing else, at an engine that does
// not do what it is asked for. It takes two seconds at most.
func CallsFail(t *testing.T, s Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	failed := func(err error) {
		t.Helper()
		require.Error(t, err)
		require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
		require.NotErrorIs(t, err, ganbauth.ErrSuperseded)
		require.NotContains(t, err.Error(), "S3CRET")
		require.NotContains(t, err.Error(), "panic")
	}
	got, err := s.Load(ctx, "away")
	failed(err)
	require.Nil(t, got)
	a, secret := Token("a"), Token("S3CRET")
	failed(s.Delete(ctx, "away"))
	failed(s.Save(ctx, "away", secret))
	failed(s.Swap(ctx, "away", a, secret))
	failed(s.Swap(ctx, "away", nil, secret))
	failed(s.Swap(ctx, "away", a, nil))
	failed(s.Swap(ctx, "away", nil, nil))
	keys, err := s.Expiring(ctx, a.ExpiresAt)
	failed(err)
	require.Empty(t, keys)
	page, err := s.ExpiringAfter(ctx, ganbauth.Expiry{}, a.ExpiresAt, 1)
	failed(err)
	require.Empty(t, page)
	fingerprint, unlock, err := s.LockRecord(ctx, "away")
	failed(err)
	require.Empty(t, fingerprint)
	require.Nil(t, unlock)
	unlock, err = s.Lock(ctx, "away")
	failed(err)
	require.Nil(t, unlock)
}

// EngineGoesAway tests an engine that is paused, stopped and started again: errors that
// are no logout, contexts obeyed, no secret told, and recovery without a restart.
func EngineGoesAway(t *testing.T, engine *testenv.Process, s Store) {
	require.NoError(t, s.Save(t.Context(), "away", Token("a")))
	comesBack := func(want string) {
		require.Eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := s.Load(ctx, "away")
			return err == nil && got.AccessToken == want
		}, 20*time.Second, 10*time.Millisecond)
	}
	engine.Stop()
	CallsFail(t, s)
	engine.Start(t)
	comesBack("a")
	require.NoError(t, s.Save(t.Context(), "away", Token("b")))
	engine.Pause()
	CallsFail(t, s)
	engine.Resume()
	require.Eventually(t, func() bool { return s.Save(t.Context(), "away", Token("c")) == nil }, 20*time.Second, 10*time.Millisecond)
	comesBack("c")
}

// Failover tests a lock that is held while a replica becomes the primary. It is held on, and
// the holder can save its token. The stores' leases are a second.
func Failover(t *testing.T, primary *testenv.Process, s, other Store) {
	ctx := t.Context()
	require.NoError(t, s.Save(ctx, "k", Token("old")))
	unlock, err := s.Lock(ctx, "k")
	require.NoError(t, err)
	time.Sleep(time.Second) // the replica has them
	primary.Stop()
	for _, s := range []Store{s, other} {
		require.Eventually(t, func() bool { return s.Save(ctx, "probe", Token("a")) == nil }, time.Minute, 10*time.Millisecond)
	}
	requireLocked(t, other, "k", 3*time.Second)
	require.NoError(t, s.Swap(ctx, "k", Token("old"), Token("new")))
	unlock()
	fingerprint, unlock, err := other.LockRecord(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, Token("new").Fingerprint(), fingerprint)
	unlock()
}

// Kits tests kits with a store each, as in several processes, at a bank that ends the
// grant when a refresh token is used twice: one token request for each user, however many
// kits ask.
func Kits(t *testing.T, newStore func() Store) {
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true, Latency: 20 * time.Millisecond})
	t.Cleanup(bank.Close)
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	kits := make([]*ganbauth.Kit, 2)
	for i := range kits {
		kits[i], err = ganbauth.New(c, nil, ganbauth.Options{
			RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: newStore(),
			Key: func(*http.Request) (string, error) { return "", nil }, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
	}
	const users = 20
	for range 3 {
		for u := range users {
			require.NoError(t, kits[0].SetToken(t.Context(), fmt.Sprint(u), past(bank.Token())))
		}
		before := bank.Refreshes()
		var wg sync.WaitGroup
		for i := range 10 * users {
			wg.Go(func() {
				resp, err := kits[i%2].ClientFor(fmt.Sprint(i % users)).Get(bank.APIBase() + "/accounts")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Error(resp.Status)
				}
			})
		}
		wg.Wait()
		require.Equal(t, users, bank.Refreshes()-before)
	}
}

// Sessions tests the default store on an engine of scs's that two instances of an
// application share, with a Locker: a login at one is one at both, and so is a logout,
// and a refresh happens once.
func Sessions(t *testing.T, newEngine func() scs.Store, newLocker func() ganbauth.Locker) {
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true, Latency: 20 * time.Millisecond, Lifetime: 4 * time.Second})
	t.Cleanup(bank.Close)
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	var instances [2]http.Handler
	for i := range instances {
		sessions := scs.New()
		sessions.Store = newEngine()
		kit, err := ganbauth.New(c, sessions, ganbauth.Options{
			RedirectURI: "http://127.0.0.1/callback", Scopes: []string{"openid", "offline_access"}, Locker: newLocker(),
			Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		mux := http.NewServeMux()
		mux.Handle("/callback", kit.CallbackHandler())
		mux.Handle("/logout", kit.LogoutHandler())
		mux.Handle("/p", kit.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		instances[i] = sessions.LoadAndSave(mux)
	}
	cookies := ""
	request := func(instance int, method, target, accept string) *http.Response {
		r, w := httptest.NewRequest(method, target, nil), httptest.NewRecorder()
		r.Header.Set("Accept", accept)
		r.Header.Set("Cookie", cookies)
		instances[instance].ServeHTTP(w, r)
		return w.Result()
	}
	keep := func(resp *http.Response) {
		for _, c := range resp.Cookies() {
			cookies += c.Name + "=" + c.Value + "; "
		}
	}
	begun := request(0, "GET", "/p", "text/html")
	require.Equal(t, http.StatusSeeOther, begun.StatusCode)
	keep(begun)
	done := request(1, "GET", bank.Approve(begun.Header.Get("Location")), "text/html")
	require.Equal(t, http.StatusSeeOther, done.StatusCode, "begun at one, finished at the other")
	cookies = ""
	keep(done)
	for range 2 {
		time.Sleep(4 * time.Second)
		before := bank.Refreshes()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if resp := request(i%2, "GET", "/p", ""); resp.StatusCode != http.StatusOK {
					t.Error(resp.Status)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, bank.Refreshes()-before)
	}
	require.Equal(t, http.StatusSeeOther, request(0, "POST", "/logout", "").StatusCode)
	for i := range instances {
		require.Equal(t, http.StatusUnauthorized, request(i, "GET", "/p", "").StatusCode)
	}
}

// RoundTrips tests that each step of a refresh is one round trip, of which count returns
// how many there have been. The lock may be more.
func RoundTrips(t *testing.T, s Store, lock int, count func() int) {
	ctx := t.Context()
	var unlock func()
	steps := func(name string, trips int, do func() error) {
		t.Helper()
		before := count()
		require.NoError(t, do())
		require.Equal(t, trips, count()-before, name)
	}
	step := func(name string, do func() error) { t.Helper(); steps(name, 1, do) }
	for i := range 3 {
		old, next := Token(fmt.Sprint(i)), Token(fmt.Sprint(i+1))
		if i == 0 {
			require.NoError(t, s.Save(ctx, "k", old))
			unlock, err := s.Lock(ctx, "k")
			require.NoError(t, err)
			unlock() // scripts and statements are prepared
		}
		step("Load", func() error { _, err := s.Load(ctx, "k"); return err })
		steps("LockRecord", lock, func() (err error) { _, unlock, err = s.LockRecord(ctx, "k"); return err })
		step("Swap", func() error { return s.Swap(ctx, "k", old, next) })
		step("unlock", func() error { unlock(); return nil })
		step("Save", func() error { return s.Save(ctx, "k", next) })
	}
	step("Delete", func() error { return s.Delete(ctx, "k") })
}
