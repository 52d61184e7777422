package ganbtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
)

// TestStore tests what every [ganbauth.TokenStore] promises, and what the optional
// interfaces promise, if the store has them: [ganbauth.Swapper], [ganbauth.Locker],
// [ganbauth.RecordLocker], [ganbauth.ExpiryLister] and [ganbauth.ExpiryPager].
//
// It takes a few seconds, and no longer, so it does not see whether a lock is kept for as
// long as its process lives, nor whether it ends after the process has died. Package
// [github.com/ganbauth/ganbauth/lease] makes a Locker that does both. To test a Locker
// alone, put it into a struct beside a store: struct{ganbauth.TokenStore; ganbauth.Locker}.
//
// The function newStore is called several times in each test. It may return the same
// store each time, and stores of a Locker must share their engine, as those of several
// processes do: locks are taken through two of them. Keys differ in each test and each
// run, and what is under them is left behind.
func TestStore(t *testing.T, newStore func() ganbauth.TokenStore) {
	t.Helper()
	testTokens(t, newStore)
	testKeys(t, newStore)
	testContexts(t, newStore)
	t.Run("sealed tokens", func(t *testing.T) { testSealed(t, newStore) })
	store := newStore()
	if _, ok := store.(ganbauth.Swapper); ok {
		t.Run("Swapper", func(t *testing.T) { testSwapper(t, newStore) })
	}
	if _, ok := store.(ganbauth.Locker); ok {
		t.Run("Locker", func(t *testing.T) { testLocker(t, newStore) })
	}
	if _, ok := store.(ganbauth.RecordLocker); ok {
		t.Run("RecordLocker", func(t *testing.T) { testRecordLocker(t, newStore) })
	}
	if _, ok := store.(ganbauth.ExpiryLister); ok {
		t.Run("ExpiryLister", func(t *testing.T) { testExpiryLister(t, newStore()) })
	}
	if _, ok := store.(ganbauth.ExpiryPager); ok {
		t.Run("ExpiryPager", func(t *testing.T) { testExpiryPager(t, newStore()) })
	}
}

// testTokens tests that a store keeps a record as it is.
func testTokens(t *testing.T, newStore func() ganbauth.TokenStore) {
	ctx := context.Background()
	t.Run("a key without a token", func(t *testing.T) {
		_, err := newStore().Load(ctx, uniqueKey())
		wantNotFound(t, err)
	})
	t.Run("what is saved is loaded", func(t *testing.T) {
		store := newStore()
		for name, token := range sampleRecords() {
			t.Run(name, func(t *testing.T) {
				key := uniqueKey()
				save(t, store, key, token)
				wantToken(t, store, key, token)
				wantToken(t, store, key, token)
			})
		}
	})
	t.Run("saving again replaces the whole record", func(t *testing.T) {
		store := newStore()
		for name, token := range sampleRecords() {
			t.Run(name, func(t *testing.T) {
				key := uniqueKey()
				save(t, store, key, sampleToken())
				save(t, store, key, token)
				wantToken(t, store, key, token)
				save(t, store, key, sampleToken())
				wantToken(t, store, key, sampleToken())
			})
		}
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
		save(t, store, key, sampleMark())
		wantToken(t, store, key, sampleMark())
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
	t.Run("concurrent use", func(t *testing.T) { testConcurrentUse(t, newStore()) })
}

// testConcurrentUse has eight goroutines write and read keys of their own.
func testConcurrentUse(t *testing.T, store ganbauth.TokenStore) {
	base := uniqueKey()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			key, token := fmt.Sprint(base, i), sampleToken()
			for n := range 20 {
				token.AccessToken = fmt.Sprint(i, "-", n)
				if err := store.Save(context.Background(), key, token); err != nil {
					t.Errorf("Save: %v", err)
					return
				}
				if got, err := store.Load(context.Background(), key); err != nil || got.AccessToken != token.AccessToken {
					t.Errorf("Load of a key that nobody else writes: error %v, or another token", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// testKeys has keys that a careless store confuses: by case, by length, by quoting or by
// normalization.
func testKeys(t *testing.T, newStore func() ganbauth.TokenStore) {
	t.Run("keys of any content are told apart", func(t *testing.T) {
		store, base := newStore(), uniqueKey()
		keys := oddKeys(base)
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
}

// oddKeys are keys that a careless store confuses.
func oddKeys(base string) []string {
	return []string{
		base, base + " ", base + "/", base + "/../x", base + "%00", base + "\x00", base + "'", base + "\n", base + "*",
		base + "é", base + "e\u0301", base + "日本", base + "\xff", base + "A", base + "a", base + "{a}", base + "{b}",
		base + strings.Repeat("k", 900) + "1", base + strings.Repeat("k", 900) + "2",
		(base + strings.Repeat("k", 1024))[:1023] + "1", (base + strings.Repeat("k", 1024))[:1023] + "2",
	}
}

// testContexts tests a caller that has left. What it asked for may fail, but neither the
// answer nor the record may be wrong.
func testContexts(t *testing.T, newStore func() ganbauth.TokenStore) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	next := sampleToken()
	next.AccessToken = "next"
	t.Run("a context that has ended", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		save(t, store, key, sampleToken())
		if _, err := store.Load(ended, key); errors.Is(err, ganbauth.ErrTokenNotFound) {
			t.Error("Load with a context that has ended says that there is no token: the user would be logged out")
		}
		wantToken(t, store, key, sampleToken())
		if err := store.Save(ended, key, next); err == nil {
			wantToken(t, store, key, next)
		}
		if err := store.Delete(ended, key); err == nil {
			_, err := store.Load(context.Background(), key)
			wantNotFound(t, err)
		}
	})
	t.Run("a context that ends after the answer", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		ctx, cancel := context.WithCancel(context.Background())
		if err := store.Save(ctx, key, sampleToken()); err != nil {
			t.Fatalf("Save: %v", err)
		}
		cancel()
		wantToken(t, store, key, sampleToken())
	})
}

var keys atomic.Int64

func uniqueKey() string { return fmt.Sprintf("ganbtest-%d-%d", time.Now().UnixNano(), keys.Add(1)) }

func sampleToken() *ganbauth.Token {
	issued := time.Date(2026, 4, 1, 9, 30, 0, 0, time.UTC)
	return &ganbauth.Token{
		AccessToken: "access", RefreshToken: "refresh", TokenType: "Bearer", Scope: "openid private:account",
		IDToken: "h.p.s", Subject: "user", Epoch: "epoch", IssuedAt: issued, ExpiresAt: issued.Add(time.Hour),
	}
}

// sampleMark is a record in place of a token, as a login leaves it.
func sampleMark() *ganbauth.Token { return &ganbauth.Token{Epoch: "epoch"} }

// sampleRecords are records of every kind.
func sampleRecords() map[string]*ganbauth.Token {
	token, plain, past, large, sealed, dead := sampleToken(), sampleToken(), sampleToken(), sampleToken(), sampleToken(), sampleMark()
	*plain = ganbauth.Token{AccessToken: "a", TokenType: "Bearer", ExpiresAt: token.ExpiresAt, IssuedAt: token.IssuedAt}
	past.ExpiresAt, past.IssuedAt = token.ExpiresAt.Add(-48*time.Hour), token.IssuedAt.Add(-48*time.Hour)
	large.AccessToken = strings.Repeat("a", 4096)
	large.RefreshToken = strings.Repeat("r", 4096)
	large.Scope = strings.Repeat("s", 4096)
	large.IDToken = strings.Repeat("i", 16<<10)
	large.Subject = strings.Repeat("u", 255)
	large.Epoch = strings.Repeat("e", 64)
	sealed.AccessToken, sealed.RefreshToken = strings.Repeat("a", 40<<10), "sealed"
	sealed.Scope, sealed.Epoch, sealed.IDToken, sealed.Subject = large.Scope, large.Epoch, "", ""
	dead.Judged, dead.IssuedAt, dead.ExpiresAt = strings.Repeat("j", 64), token.IssuedAt, token.ExpiresAt
	return map[string]*ganbauth.Token{
		"a token":                     token,
		"a token with empty fields":   plain,
		"a token past its expiry":     past,
		"a token of the largest size": large,
		"a sealed one":                sealed,
		"a mark":                      sampleMark(),
		"a mark of a dead token":      dead,
	}
}

func save(t *testing.T, store ganbauth.TokenStore, key string, token *ganbauth.Token) {
	t.Helper()
	if err := store.Save(soon(t), key, token); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

// wantToken compares all that a store has to keep. Times are equal if they are the same
// moment.
func wantToken(t *testing.T, store ganbauth.TokenStore, key string, want *ganbauth.Token) {
	t.Helper()
	got, err := store.Load(soon(t), key)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if got == nil {
		t.Fatal("Load returns neither a token nor an error")
	}
	g, w := *got, *want
	if !g.ExpiresAt.Equal(w.ExpiresAt) || !g.IssuedAt.Equal(w.IssuedAt) {
		t.Errorf("times: got %v and %v, want %v and %v", g.ExpiresAt, g.IssuedAt, w.ExpiresAt, w.IssuedAt)
	}
	g.ExpiresAt, g.IssuedAt = w.ExpiresAt, w.IssuedAt
	if fields := differing(g, w); len(fields) > 0 {
		t.Errorf("the token that was loaded differs from the one that was saved in %s", strings.Join(fields, ", "))
	}
}

// differing returns the names of the fields in which two tokens differ.
func differing(a, b ganbauth.Token) (names []string) {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		if !va.Field(i).Equal(vb.Field(i)) {
			names = append(names, va.Type().Field(i).Name)
		}
	}
	return names
}

func wantNotFound(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ganbauth.ErrTokenNotFound) {
		t.Errorf("got error %v, want ErrTokenNotFound", err)
	}
}

// soon is a context for calls that have nothing to wait for: a store that hangs fails the
// test.
func soon(t *testing.T) context.Context { return within(t, patience) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
