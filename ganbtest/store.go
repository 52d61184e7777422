package ganbtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
)

// TestStore tests what every [ganbauth.TokenStore] promises, and every [ganbauth.Locker] and [ganbauth.ExpiryLister] if
// the store is one.
// The function newStore is called for each test and may return the same store each time: the keys differ.
func TestStore(t *testing.T, newStore func() ganbauth.TokenStore) {
	t.Helper()
	ctx := context.Background()

	t.Run("a key without a token", func(t *testing.T) {
		_, err := newStore().Load(ctx, uniqueKey())
		wantNotFound(t, err)
	})
	t.Run("what is saved is loaded", func(t *testing.T) {
		store, key, token := newStore(), uniqueKey(), sampleToken()
		save(t, store, key, token)
		wantToken(t, store, key, token)
		wantToken(t, store, key, token)
	})
	t.Run("a token with empty fields", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		token := &ganbauth.Token{AccessToken: "a", TokenType: "Bearer", ExpiresAt: sampleToken().ExpiresAt, IssuedAt: sampleToken().IssuedAt}
		save(t, store, key, token)
		wantToken(t, store, key, token)
	})
	t.Run("a token of the largest size", func(t *testing.T) {
		store, key, token := newStore(), uniqueKey(), sampleToken()
		token.AccessToken = strings.Repeat("a", 4096)
		token.RefreshToken = strings.Repeat("r", 4096)
		token.Scope = strings.Repeat("s", 4096)
		token.IDToken = strings.Repeat("i", 16<<10)
		token.Subject = strings.Repeat("u", 255)
		save(t, store, key, token)
		wantToken(t, store, key, token)
	})
	t.Run("a token past its expiry is kept", func(t *testing.T) {
		store, key, token := newStore(), uniqueKey(), sampleToken()
		token.ExpiresAt, token.IssuedAt = token.ExpiresAt.Add(-48*time.Hour), token.IssuedAt.Add(-48*time.Hour)
		save(t, store, key, token)
		wantToken(t, store, key, token)
	})
	t.Run("saving again replaces the whole token", func(t *testing.T) {
		store, key, token := newStore(), uniqueKey(), sampleToken()
		save(t, store, key, token)
		next := sampleToken()
		next.AccessToken, next.RefreshToken, next.Subject = "next", "", ""
		save(t, store, key, next)
		wantToken(t, store, key, next)
	})
	t.Run("deleting", func(t *testing.T) {
		store, key, other := newStore(), uniqueKey(), uniqueKey()
		save(t, store, key, sampleToken())
		save(t, store, other, sampleToken())
		for range 2 {
			if err := store.Delete(ctx, key); err != nil {
				t.Fatalf("Delete: %v", err)
			}
			_, err := store.Load(ctx, key)
			wantNotFound(t, err)
		}
		wantToken(t, store, other, sampleToken())
	})
	t.Run("keys of any content are told apart", func(t *testing.T) {
		store, base := newStore(), uniqueKey()
		keys := []string{
			base, base + " ", base + "/", base + "/../x", base + "%00", base + "\x00", base + "'", base + "\n", base + "*",
			base + "é", base + "e\u0301", base + "日本", base + "\xff", base + "A", base + "a",
			base + strings.Repeat("k", 900) + "1", base + strings.Repeat("k", 900) + "2",
		}
		for i, key := range keys {
			token := sampleToken()
			token.AccessToken = fmt.Sprint("token-", i)
			save(t, store, key, token)
		}
		for i, key := range keys {
			token := sampleToken()
			token.AccessToken = fmt.Sprint("token-", i)
			wantToken(t, store, key, token)
		}
	})
	t.Run("tokens do not share memory with the caller's", func(t *testing.T) {
		store, key, token := newStore(), uniqueKey(), sampleToken()
		save(t, store, key, token)
		token.AccessToken = "changed after Save"
		wantToken(t, store, key, sampleToken())
		loaded, err := store.Load(ctx, key)
		if err != nil {
			t.Fatalf("Load: %v", err)
		}
		loaded.AccessToken = "changed after Load"
		wantToken(t, store, key, sampleToken())
	})
	t.Run("concurrent use", func(t *testing.T) {
		store, base := newStore(), uniqueKey()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				key, token := fmt.Sprint(base, i), sampleToken()
				for n := range 20 {
					token.AccessToken = fmt.Sprint(i, "-", n)
					if err := store.Save(ctx, key, token); err != nil {
						t.Errorf("Save: %v", err)
						return
					}
					if got, err := store.Load(ctx, key); err != nil || got.AccessToken != token.AccessToken {
						t.Errorf("Load of a key that nobody else writes: error %v, or another token", err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
	t.Run("a context that has ended", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		save(t, store, key, sampleToken())
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := store.Load(ended, key); errors.Is(err, ganbauth.ErrTokenNotFound) {
			t.Error("Load with a context that has ended says that there is no token: the user would be logged out")
		}
		wantToken(t, store, key, sampleToken())
	})
	if _, ok := newStore().(ganbauth.Locker); ok {
		testLocker(t, newStore)
	}
	if _, ok := newStore().(ganbauth.ExpiryLister); ok {
		t.Run("ExpiryLister", func(t *testing.T) { testExpiryLister(t, newStore()) })
	}
}

func testExpiryLister(t *testing.T, store ganbauth.TokenStore) {
	expiring := func(before time.Time, candidates ...string) (found []string) {
		t.Helper()
		keys, err := store.(ganbauth.ExpiryLister).Expiring(context.Background(), before)
		if err != nil {
			t.Fatalf("Expiring: %v", err)
		}
		for _, key := range keys {
			if slices.Contains(candidates, key) {
				found = append(found, key)
			}
		}
		return found
	}
	want := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got keys %q, want %q", got, want)
		}
	}
	base := uniqueKey()
	late, early, odd, spent, gone := base+"late", base+"early", base+"\x00\xff日本", base+"spent", base+"gone"
	all := []string{late, early, odd, spent, gone}
	end := sampleToken().ExpiresAt
	for key, expiry := range map[string]time.Time{
		late: end.Add(2 * time.Hour), early: end, odd: end.Add(time.Hour), spent: end, gone: end,
	} {
		token := sampleToken()
		token.ExpiresAt = expiry
		if key == spent {
			token.RefreshToken = ""
		}
		save(t, store, key, token)
	}
	if err := store.Delete(context.Background(), gone); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	want(expiring(end, all...))
	want(expiring(end.Add(time.Hour), all...), early)
	want(expiring(end.Add(3*time.Hour), all...), early, odd, late)
	token := sampleToken()
	token.ExpiresAt = end.Add(4 * time.Hour)
	save(t, store, early, token)
	want(expiring(end.Add(3*time.Hour), all...), odd, late)
}

func testLocker(t *testing.T, newStore func() ganbauth.TokenStore) {
	lock := func(t *testing.T, l ganbauth.Locker, key string) func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		unlock, err := l.Lock(ctx, key)
		if err != nil {
			t.Fatalf("Lock: %v", err)
		}
		return unlock
	}
	t.Run("Locker: one at a time", func(t *testing.T) {
		locker, key := newStore().(ganbauth.Locker), uniqueKey()
		var inside, entered atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 5 {
					unlock, err := locker.Lock(context.Background(), key)
					if err != nil {
						t.Errorf("Lock: %v", err)
						return
					}
					if inside.Add(1) != 1 {
						t.Error("two hold the lock on one key")
					}
					entered.Add(1)
					inside.Add(-1)
					unlock()
				}
			})
		}
		wg.Wait()
		if entered.Load() != 40 {
			t.Errorf("got the lock %d times, want 40", entered.Load())
		}
	})
	t.Run("Locker: keys do not wait for each other", func(t *testing.T) {
		locker := newStore().(ganbauth.Locker)
		first, second := lock(t, locker, uniqueKey()), lock(t, locker, uniqueKey())
		second()
		first()
	})
	t.Run("Locker: waiting ends with the context", func(t *testing.T) {
		locker, key := newStore().(ganbauth.Locker), uniqueKey()
		unlock := lock(t, locker, key)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if release, err := locker.Lock(ctx, key); err == nil {
			release()
			t.Error("got a lock that somebody holds")
		}
		unlock()
		lock(t, locker, key)()
	})
	t.Run("Locker: a lock outlives the context that it was asked for with", func(t *testing.T) {
		locker, key := newStore().(ganbauth.Locker), uniqueKey()
		ctx, cancel := context.WithCancel(context.Background())
		unlock, err := locker.Lock(ctx, key)
		if err != nil {
			t.Fatalf("Lock: %v", err)
		}
		cancel()
		waiting, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer stop()
		if release, err := locker.Lock(waiting, key); err == nil {
			release()
			t.Error("the lock ended with its context")
		}
		unlock()
	})
}

var keys atomic.Int64

func uniqueKey() string { return fmt.Sprintf("ganbtest-%d-%d", time.Now().UnixNano(), keys.Add(1)) }

func sampleToken() *ganbauth.Token {
	issued := time.Date(2026, 4, 1, 9, 30, 0, 0, time.UTC)
	return &ganbauth.Token{
		AccessToken: "access", RefreshToken: "refresh", TokenType: "Bearer", Scope: "openid private:account",
		IDToken: "h.p.s", Subject: "user", IssuedAt: issued, ExpiresAt: issued.Add(time.Hour),
	}
}

func save(t *testing.T, store ganbauth.TokenStore, key string, token *ganbauth.Token) {
	t.Helper()
	if err := store.Save(context.Background(), key, token); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

func wantToken(t *testing.T, store ganbauth.TokenStore, key string, want *ganbauth.Token) {
	t.Helper()
	got, err := store.Load(context.Background(), key)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	g, w := *got, *want
	if !g.ExpiresAt.Equal(w.ExpiresAt) || !g.IssuedAt.Equal(w.IssuedAt) {
		t.Errorf("times: got %v and %v, want %v and %v", g.ExpiresAt, g.IssuedAt, w.ExpiresAt, w.IssuedAt)
	}
	g.ExpiresAt, g.IssuedAt = w.ExpiresAt, w.IssuedAt
	if g != w {
		t.Error("the token that was loaded is not the one that was saved")
	}
}

func wantNotFound(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ganbauth.ErrTokenNotFound) {
		t.Errorf("got error %v, want ErrTokenNotFound", err)
	}
}
