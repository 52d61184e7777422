// Package storetest is what the tests of the stores on real engines have in common.
package storetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// Store is a store that is its own Locker.
type Store interface {
	ganbauth.TokenStore
	ganbauth.Locker
}

// Token is some token.
func Token(access string) *ganbauth.Token {
	issued := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	return &ganbauth.Token{AccessToken: access, RefreshToken: "r", TokenType: "Bearer", IssuedAt: issued, ExpiresAt: issued.Add(time.Hour)}
}

// LostLease tests that a process that lost its lease, suspended for instance, cannot overwrite what another has saved
// or deleted since. The function expire ends all leases.
func LostLease(t *testing.T, newStore func() Store, expire func(*testing.T)) {
	ctx := t.Context()
	n := 0
	for name, change := range map[string]func(Store, string) error{
		"saved":   func(s Store, key string) error { return s.Save(ctx, key, Token("newer")) },
		"deleted": func(s Store, key string) error { return s.Delete(ctx, key) },
	} {
		for _, locked := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", locked ", locked), func(t *testing.T) {
				n++
				key := fmt.Sprint("lost-", n)
				stale, other := newStore(), newStore()
				require.NoError(t, stale.Save(ctx, key, Token("old")))
				unlock, err := stale.Lock(ctx, key)
				require.NoError(t, err)
				expire(t)
				if locked {
					unlockOther, err := other.Lock(ctx, key)
					require.NoError(t, err)
					require.NoError(t, change(other, key))
					unlockOther()
				} else {
					require.NoError(t, change(other, key))
				}
				require.ErrorIs(t, stale.Save(ctx, key, Token("stale")), ganbauth.ErrSuperseded)
				unlock()
				got, err := other.Load(ctx, key)
				if name == "deleted" {
					require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
				} else {
					require.NoError(t, err)
					require.Equal(t, "newer", got.AccessToken)
				}
				unlock, err = stale.Lock(ctx, key)
				require.NoError(t, err)
				require.NoError(t, stale.Save(ctx, key, Token("after a new lock")))
				unlock()
			})
		}
	}
	t.Run("nobody else came: the token is not lost", func(t *testing.T) {
		s := newStore()
		unlock, err := s.Lock(ctx, "alone")
		require.NoError(t, err)
		expire(t)
		require.NoError(t, s.Save(ctx, "alone", Token("late")))
		unlock()
	})
	t.Run("the unlock of a lost lock leaves the next holder's", func(t *testing.T) {
		stale, other := newStore(), newStore()
		unlock, err := stale.Lock(ctx, "next")
		require.NoError(t, err)
		expire(t)
		unlockOther, err := other.Lock(ctx, "next")
		require.NoError(t, err)
		unlock()
		requireLocked(t, stale, "next", 50*time.Millisecond)
		unlockOther()
	})
}

func requireLocked(t *testing.T, s Store, key string, wait time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	_, err := s.Lock(ctx, key)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// LeaseIsExtended tests that a lock that is held for longer than its lease is kept. The stores' leases are a second.
func LeaseIsExtended(t *testing.T, newStore func() Store) {
	one, two := newStore(), newStore()
	unlock, err := one.Lock(t.Context(), "extended")
	require.NoError(t, err)
	requireLocked(t, two, "extended", 2500*time.Millisecond)
	unlock()
	unlock() // once more does no harm
	unlock, err = two.Lock(t.Context(), "extended")
	require.NoError(t, err)
	unlock()
}

// HolderIsKilled tests kill -9 of the process that holds the lock: the others go on when its lease, a second, has run
// out. It runs the calling test again in a process of its own, with addr in the environment: there newStore gets it.
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

// IsChild reports whether the test is HolderIsKilled's second process, which starts no engine.
func IsChild() bool { return os.Getenv("STORETEST_HOLD_LOCK") != "" }

// EngineGoesAway tests an engine that is paused, stopped and started again: errors that are no logout, contexts
// obeyed, no secret told, and recovery without a restart.
func EngineGoesAway(t *testing.T, engine *testenv.Process, s Store) {
	require.NoError(t, s.Save(t.Context(), "away", Token("a")))
	fails := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := s.Load(ctx, "away")
		require.Error(t, err)
		require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
		err = s.Save(ctx, "away", Token("S3CRET"))
		require.Error(t, err)
		require.NotContains(t, err.Error(), "S3CRET")
		require.Error(t, s.Delete(ctx, "away"))
		_, err = s.Lock(ctx, "away")
		require.Error(t, err)
	}
	comesBack := func(want string) {
		require.Eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := s.Load(ctx, "away")
			return err == nil && got.AccessToken == want
		}, 20*time.Second, 10*time.Millisecond)
	}
	engine.Stop()
	fails()
	engine.Start(t)
	comesBack("a")
	require.NoError(t, s.Save(t.Context(), "away", Token("b")))
	engine.Pause()
	fails()
	engine.Resume()
	require.Eventually(t, func() bool { return s.Save(t.Context(), "away", Token("c")) == nil }, 20*time.Second, 10*time.Millisecond)
	comesBack("c")
}

// Kits tests kits with a store each, as in several processes, at a bank that ends the grant when a refresh token is
// used twice: one token request for each user, whoever asks.
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
	store := newStore()
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
				if resp.StatusCode != http.StatusOK {
					t.Error(resp.Status)
				}
			})
		}
		wg.Wait()
		require.Equal(t, users, bank.Refreshes()-before)
	}
}

// Sessions tests the default store on an engine of scs's that two instances of an application share, with a Locker:
// a login at one is one at both, and so is a logout, and a refresh happens once.
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
