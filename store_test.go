package ganbauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// jsonCodec is a codec that does not ignore what follows its own encoding.
type jsonCodec struct{}

func (jsonCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	return json.Marshal(map[string]any{"d": deadline, "v": values})
}

func (jsonCodec) Decode(b []byte) (time.Time, map[string]any, error) {
	var s struct {
		D time.Time
		V map[string]any
	}
	err := json.Unmarshal(b, &s)
	return s.D, s.V, err
}

// ctxStore is an engine as several of scs's are: it panics without a context, and takes
// 43 characters.
type ctxStore struct{ *memstore.MemStore }

func (ctxStore) Find(string) ([]byte, bool, error)             { panic("use FindCtx") }
func (ctxStore) Commit(string, []byte, time.Time) error        { panic("use CommitCtx") }
func (ctxStore) Delete(string) error                           { panic("use DeleteCtx") }
func (s ctxStore) DeleteCtx(_ context.Context, k string) error { return s.MemStore.Delete(k) }

func (s ctxStore) FindCtx(_ context.Context, k string) ([]byte, bool, error) {
	return s.MemStore.Find(k)
}

func (s ctxStore) CommitCtx(_ context.Context, k string, b []byte, expiry time.Time) error {
	if len(k) > 43 {
		return errors.New("value too long for type character(43)")
	}
	return s.MemStore.Commit(k, b, expiry)
}

func managers() map[string]func() *scs.SessionManager {
	return map[string]func() *scs.SessionManager{
		"gob": scs.New,
		"JSON codec": func() *scs.SessionManager {
			s := scs.New()
			s.Codec = jsonCodec{}
			return s
		},
		"engine with a context": func() *scs.SessionManager {
			s := scs.New()
			s.Store = ctxStore{memstore.NewWithCleanupInterval(0)}
			return s
		},
		"hashed session tokens": func() *scs.SessionManager {
			s := scs.New()
			s.HashTokenInStore = true
			return s
		},
	}
}

func TestStores(t *testing.T) {
	t.Run("memory", func(t *testing.T) { ganbtest.TestStore(t, ganbauth.NewMemoryStore) })
	t.Run("sealed", func(t *testing.T) {
		ganbtest.TestStore(t, func() ganbauth.TokenStore { return ganbauth.Seal(ganbauth.NewMemoryStore(), key(1)) })
	})
	for name, manager := range managers() {
		t.Run("scs, "+name, func(t *testing.T) {
			ganbtest.TestStore(t, func() ganbauth.TokenStore { return ganbauth.NewSCSStore(manager()) })
		})
	}
}

func key(n byte) []byte { return []byte(strings.Repeat(string(rune('a'+n)), 32)) }

// answeringStore answers each Load with nil and an error.
type answeringStore struct {
	ganbauth.TokenStore
	err error
}

func (s answeringStore) Load(context.Context, string) (*ganbauth.Token, error) { return nil, s.err }

// spyEngine remembers the names of the records.
type spyEngine struct {
	*memstore.MemStore
	mu     sync.Mutex
	names  []string
	expiry map[string]time.Time
}

func (s *spyEngine) Commit(name string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	if s.expiry == nil {
		s.expiry = map[string]time.Time{}
	}
	s.names = append(s.names, name)
	s.expiry[name] = expiry
	s.mu.Unlock()
	return s.MemStore.Commit(name, b, expiry)
}

func TestSCSRecords(t *testing.T) {
	for name, manager := range managers() {
		t.Run(name, func(t *testing.T) {
			sessions := manager()
			engine := &spyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
			sessions.Store = engine
			store := ganbauth.NewSCSStore(sessions)
			require.NoError(t, store.Save(t.Context(), "key", &fullToken))
			require.Len(t, engine.names, 1)
			record := engine.names[0]
			require.LessOrEqual(t, len(record), 43, "several engines take no more")
			long := ";" + strings.Repeat("k", 1023)
			require.NoError(t, store.Save(t.Context(), long, &fullToken))
			require.LessOrEqual(t, len(engine.names[1]), 43)
			require.NoError(t, store.Delete(t.Context(), long))

			t.Run("Iterate keeps working", func(t *testing.T) {
				ctx, err := sessions.Load(t.Context(), "")
				require.NoError(t, err)
				sessions.Put(ctx, "user", "alice")
				_, _, err = sessions.Commit(ctx)
				require.NoError(t, err)
				users, records := 0, 0
				require.NoError(t, sessions.Iterate(t.Context(), func(ctx context.Context) error {
					if sessions.GetString(ctx, "user") == "alice" {
						users++
					}
					if sessions.Exists(ctx, "ganbauth") {
						records++
						sessions.Put(ctx, "x", 1) // an application may: nothing panics
					}
					return nil
				}))
				require.Equal(t, 1, users)
				require.Equal(t, 1, records)
			})
			t.Run("a cookie that names the record neither opens nor overwrites it", func(t *testing.T) {
				h := sessions.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					require.False(t, sessions.Exists(r.Context(), "ganbauth"))
					sessions.Put(r.Context(), "x", 1)
				}))
				for _, cookie := range []string{record, `"` + record + `"`, strings.ReplaceAll(record, ";", "%3B")} {
					req, _ := http.NewRequest("GET", appURL, nil)
					req.Header.Set("Cookie", "session="+cookie)
					resp, err := serveDirectly(func() http.Handler { return h }).RoundTrip(req)
					require.NoError(t, err)
					require.Equal(t, 200, resp.StatusCode)
				}
				got, err := store.Load(t.Context(), "key")
				require.NoError(t, err)
				require.Equal(t, fullToken, *got)
			})
			t.Run("a record that cannot be read counts as none, and the next login overwrites it", func(t *testing.T) {
				good, _, _ := engine.MemStore.Find(record)
				for _, bad := range [][]byte{{}, []byte("x"), good[:len(good)-1], []byte(strings.Repeat("\xff", 100)), append([]byte{0, 0, 0, 1}, 0, 0, 0, 9)} {
					require.NoError(t, engine.MemStore.Commit(record, bad, time.Now().Add(time.Hour)))
					_, err := store.Load(t.Context(), "key")
					require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
					require.NoError(t, store.Save(t.Context(), "key", &fullToken))
					_, err = store.Load(t.Context(), "key")
					require.NoError(t, err)
				}
			})
			t.Run("another save keeps the deadline", func(t *testing.T) {
				before := engine.expiry[record].Unix()
				sessions.Lifetime = 48 * time.Hour
				require.NoError(t, store.Save(t.Context(), "key", &fullToken))
				require.Equal(t, before, engine.expiry[record].Unix())
			})
		})
	}
}

func TestSealing(t *testing.T) {
	inner := ganbauth.NewMemoryStore()
	sealed := ganbauth.Seal(inner, key(1), key(0))
	require.NoError(t, sealed.Save(t.Context(), "alice", &fullToken))

	t.Run("the store sees no secret, and what a column needs", func(t *testing.T) {
		got, err := inner.Load(t.Context(), "alice")
		require.NoError(t, err)
		for _, field := range []string{got.AccessToken, got.RefreshToken, got.IDToken, got.Subject} {
			require.NotContains(t, field, "S3CRET")
			require.NotContains(t, field, "u-1")
		}
		require.NotEmpty(t, got.RefreshToken, "it can be refreshed")
		require.Equal(t, "a b", got.Scope)
		require.Equal(t, fullToken.ExpiresAt, got.ExpiresAt)
	})
	t.Run("the largest token that there can be has at most 40 KiB", func(t *testing.T) {
		long := func(n int) string { return strings.Repeat("x", n) }
		largest := ganbauth.Token{AccessToken: long(4096), RefreshToken: long(4096), TokenType: "Bearer", Scope: long(4096),
			IDToken: long(16384), Subject: long(255)}
		require.NoError(t, sealed.Save(t.Context(), "bob", &largest))
		got, err := inner.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.LessOrEqual(t, len(got.AccessToken), 40<<10)
	})
	t.Run("all keys open, the first seals", func(t *testing.T) {
		old := ganbauth.Seal(inner, key(0))
		require.NoError(t, old.Save(t.Context(), "bob", &fullToken))
		got, err := sealed.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.Equal(t, fullToken, *got)
		require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
		_, err = old.Load(t.Context(), "bob")
		require.ErrorContains(t, err, "no encryption key opens the record")
		require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
	})
	t.Run("a copy in another store is the same record", func(t *testing.T) {
		require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
		got, err := inner.Load(t.Context(), "bob")
		require.NoError(t, err)
		record, err := got.MarshalBinary() // what a store keeps
		require.NoError(t, err)
		copied := new(ganbauth.Token)
		require.NoError(t, copied.UnmarshalBinary(record))
		require.Equal(t, fullToken.Fingerprint(), copied.Fingerprint())
		other := ganbauth.NewMemoryStore()
		require.NoError(t, other.Save(t.Context(), "bob", copied))
		require.NoError(t, ganbauth.Seal(other, key(1), key(0)).(ganbauth.Swapper).Swap(t.Context(), "bob", &fullToken, nil))
	})
	for name, change := range map[string]func(b *ganbauth.Token){
		"a clear token": func(b *ganbauth.Token) { b.AccessToken = "planted" },
		"an empty one":  func(b *ganbauth.Token) { b.AccessToken = "" },
	} {
		t.Run(name+" is a mark, which the next login replaces", func(t *testing.T) {
			require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
			bob, err := inner.Load(t.Context(), "bob")
			require.NoError(t, err)
			change(bob)
			require.NoError(t, inner.Save(t.Context(), "bob", bob))
			got, err := sealed.Load(t.Context(), "bob")
			require.NoError(t, err)
			require.Empty(t, got.AccessToken)
			require.NoError(t, sealed.(ganbauth.Swapper).Swap(t.Context(), "bob", got, &fullToken))
			got, err = sealed.Load(t.Context(), "bob")
			require.NoError(t, err)
			require.Equal(t, fullToken, *got)
		})
	}
	for name, change := range map[string]func(a, b *ganbauth.Token){
		"another user's record": func(a, b *ganbauth.Token) { *b = *a },
		"an altered one":        func(_, b *ganbauth.Token) { b.AccessToken = "sealed.A" + b.AccessToken[8:] + "A" },
		"one cut short":         func(_, b *ganbauth.Token) { b.AccessToken = b.AccessToken[:20] },
		"one that is no base64": func(_, b *ganbauth.Token) { b.AccessToken = "sealed.x.%%%" },
	} {
		t.Run(name+" does not open", func(t *testing.T) {
			require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
			alice, err := inner.Load(t.Context(), "alice")
			require.NoError(t, err)
			bob, err := inner.Load(t.Context(), "bob")
			require.NoError(t, err)
			change(alice, bob)
			require.NoError(t, inner.Save(t.Context(), "bob", bob))
			_, err = sealed.Load(t.Context(), "bob")
			require.ErrorContains(t, err, "no encryption key opens the record")
			require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound)
		})
	}
	t.Run("such a mark can be written as it is", func(t *testing.T) {
		require.NoError(t, inner.Save(t.Context(), "bob", &ganbauth.Token{AccessToken: "planted"}))
		mark, err := sealed.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.NoError(t, sealed.(ganbauth.Swapper).Swap(t.Context(), "bob", mark, mark))
		got, err := sealed.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.Equal(t, &ganbauth.Token{ExpiresAt: got.ExpiresAt, IssuedAt: got.IssuedAt}, got)
	})
	t.Run("without a refresh token the store sees none", func(t *testing.T) {
		require.NoError(t, sealed.Save(t.Context(), "bob", &ganbauth.Token{AccessToken: "access"}))
		got, err := inner.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.Empty(t, got.RefreshToken)
	})
	t.Run("the store below fails, or has nil", func(t *testing.T) {
		down := errors.New("connection refused")
		_, err := ganbauth.Seal(answeringStore{TokenStore: inner, err: down}, key(1)).Load(t.Context(), "bob")
		require.ErrorIs(t, err, down)
		got, err := ganbauth.Seal(answeringStore{TokenStore: inner}, key(1)).Load(t.Context(), "bob")
		require.NoError(t, err)
		require.Nil(t, got)
	})
	t.Run("what a column says is not believed", func(t *testing.T) {
		require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
		bob, err := inner.Load(t.Context(), "bob")
		require.NoError(t, err)
		bob.Scope, bob.ExpiresAt = "everything", bob.ExpiresAt.Add(time.Hour)
		require.NoError(t, inner.Save(t.Context(), "bob", bob))
		got, err := sealed.Load(t.Context(), "bob")
		require.NoError(t, err)
		require.Equal(t, fullToken, *got)
	})
	t.Run("on the sessions' engine", func(t *testing.T) {
		for name, manager := range managers() {
			sessions := manager()
			engine := memstore.NewWithCleanupInterval(0)
			sessions.Store = engine
			sealed := ganbauth.Seal(ganbauth.NewSCSStore(sessions), key(1), key(0))
			require.NoError(t, sealed.Save(t.Context(), "alice", &fullToken), name)
			got, err := sealed.Load(t.Context(), "alice")
			require.NoError(t, err, name)
			require.Equal(t, fullToken, *got, name)
			records, err := engine.All()
			require.NoError(t, err)
			require.Len(t, records, 1)
			for _, record := range records {
				require.NotContains(t, string(record), "S3CRET", name)
			}
			inClear := ganbauth.NewSCSStore(sessions)
			for _, other := range []ganbauth.TokenStore{ganbauth.Seal(inClear, key(2)), inClear} {
				_, err = other.Load(t.Context(), "alice")
				require.ErrorContains(t, err, "no encryption key opens the record", name)
				require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound, name)
			}

			require.NoError(t, sealed.Save(t.Context(), "bob", &fullToken))
			records, err = engine.All()
			require.NoError(t, err)
			names := slices.Collect(maps.Keys(records))
			alice, _, err := engine.Find(names[0])
			require.NoError(t, err)
			require.NoError(t, engine.Commit(names[1], alice, time.Now().Add(time.Hour)))
			_, err1 := sealed.Load(t.Context(), "alice")
			_, err2 := sealed.Load(t.Context(), "bob")
			require.ErrorContains(t, errors.Join(err1, err2), "no encryption key opens", name+": another user's record")
			require.False(t, err1 != nil && err2 != nil, name)

			require.NoError(t, inClear.Save(t.Context(), "carol", &fullToken))
			_, err = sealed.Load(t.Context(), "carol")
			require.ErrorIs(t, err, ganbauth.ErrTokenNotFound, name+": a token in clear, which anybody can write")
		}
	})
	t.Run("what is saved is not changed", func(t *testing.T) {
		token := fullToken
		require.NoError(t, sealed.Save(t.Context(), "alice", &token))
		require.Equal(t, fullToken, token)
	})
}

// brokenStore fails on demand.
type brokenStore struct {
	ganbauth.TokenStore
	mu                 sync.Mutex
	load, save, delete error
	panics             bool
	saves              int
}

func (s *brokenStore) set(load, save, remove error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load, s.save, s.delete = load, save, remove
}

func (s *brokenStore) failure(err *error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *err
}

func (s *brokenStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if err := s.failure(&s.load); err != nil {
		return nil, err
	}
	return s.TokenStore.Load(ctx, key)
}

func (s *brokenStore) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	s.mu.Lock()
	s.saves++
	panics := s.panics
	s.mu.Unlock()
	if panics {
		panic("the store panics")
	}
	if err := s.failure(&s.save); err != nil {
		return err
	}
	return s.TokenStore.Save(ctx, key, token)
}

func (s *brokenStore) Delete(ctx context.Context, key string) error {
	if err := s.failure(&s.delete); err != nil {
		return err
	}
	return s.TokenStore.Delete(ctx, key)
}

// sharingStore hands out its own tokens, which no store should.
type sharingStore struct {
	mu     sync.Mutex
	tokens map[string]*ganbauth.Token
}

func (s *sharingStore) Load(_ context.Context, key string) (*ganbauth.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[key]; t != nil {
		return t, nil
	}
	return nil, ganbauth.ErrTokenNotFound
}

func (s *sharingStore) Save(_ context.Context, key string, token *ganbauth.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[key] = token
	return nil
}

func (s *sharingStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, key)
	return nil
}

// The kit changes no token that a store may still have: a store that hands out its own
// would lose the refresh token of each.
func TestStoreThatSharesItsTokens(t *testing.T) {
	s := setup{bank: rotating, options: ganbauth.Options{Store: &sharingStore{tokens: map[string]*ganbauth.Token{}}}}
	inBubble(t, s, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		for i := range 3 {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { b.do("GET", "/p", program) })
			}
			wg.Wait()
			require.True(t, b.connected())
			require.Equal(t, i, a.bank.Refreshes())
			time.Sleep(61 * time.Minute)
		}
		require.Empty(t, a.next.last().RefreshToken)
	})
}

// The store in memory needs no goroutine of its own, because it keeps nobody waiting.
func TestMemoryStoreIsPrompt(t *testing.T) {
	require.True(t, ganbauth.NewMemoryStore().(interface{ EndsWithContext() bool }).EndsWithContext())
}
