package ganbauth_test

import (
	"context"
	"net/http"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// promptStore says whether it ends with its context, and remembers who called it.
type promptStore struct {
	ganbauth.TokenStore
	prompt bool
	stacks map[string]string
}

func (s *promptStore) EndsWithContext() bool { return s.prompt }

func (s *promptStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	s.stacks["Load"] = string(debug.Stack())
	return s.TokenStore.Load(ctx, key)
}

func (s *promptStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	s.stacks["Save"] = string(debug.Stack())
	return s.TokenStore.Save(ctx, key, t)
}

// promptLocker is a promptStore that is the Locker, too.
type promptLocker struct{ *promptStore }

func (s promptLocker) Lock(context.Context, string) (func(), error) {
	s.stacks["Lock"] = string(debug.Stack())
	return func() {}, nil
}

// promptApart is a Locker of its own, about which a prompt store says nothing.
type promptApart struct{ *promptStore }

func (l promptApart) Lock(ctx context.Context, key string) (func(), error) {
	return promptLocker(l).Lock(ctx, key)
}

// The calls of a store that ends with its context are made by whoever asks, and no others
// are.
func TestPromptStoreNeedsNoGoroutine(t *testing.T) {
	direct := func(t *testing.T, opts ganbauth.Options, store *promptStore) (methods []string) {
		opts.Key = keyIs("alice")
		a := newApp(t, setup{options: opts})
		require.NoError(t, a.kit.SetToken(t.Context(), "alice", &ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}))
		_, err := a.kit.Token(t.Context(), "alice")
		require.NoError(t, err)
		for _, method := range []string{"Load", "Save", "Lock"} {
			require.NotEmpty(t, store.stacks[method])
			if strings.Contains(store.stacks[method], "TestPromptStoreNeedsNoGoroutine.func") {
				methods = append(methods, method)
			}
		}
		return methods
	}
	for _, keys := range [][][]byte{nil, {key(1)}} {
		for _, prompt := range []bool{false, true} {
			store := &promptStore{ganbauth.NewMemoryStore(), prompt, map[string]string{}}
			own, apart := []string(nil), []string(nil)
			if prompt {
				own, apart = []string{"Load", "Save", "Lock"}, []string{"Load", "Save"}
			}
			require.Equal(t, own, direct(t, ganbauth.Options{Store: promptLocker{store}, EncryptionKeys: keys}, store))
			require.Equal(t, apart, direct(t, ganbauth.Options{Store: store, Locker: promptApart{store}, EncryptionKeys: keys}, store))
		}
	}
}

// slowEngine takes an hour for a look.
type slowEngine struct{ *memstore.MemStore }

func (e slowEngine) Find(token string) ([]byte, bool, error) {
	time.Sleep(time.Hour)
	return e.MemStore.Find(token)
}

// An engine that the sessions get after the kit is left after a few seconds, too, and keeps
// the tokens.
func TestEngineSetAfterNew(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{Key: keyIs("u")}}, func(t *testing.T, a *app) {
		late := memstore.NewWithCleanupInterval(0)
		a.sessions.Store = late
		require.NoError(t, a.kit.SetToken(t.Context(), "u", a.bank.Token()))
		all, err := late.All()
		require.NoError(t, err)
		require.Len(t, all, 1)
		a.sessions.Store = slowEngine{late}
		begun := time.Now()
		require.Equal(t, http.StatusServiceUnavailable, a.browser().do(http.MethodGet, "/p", program).StatusCode)
		require.LessOrEqual(t, time.Since(begun), 10*time.Second)
		time.Sleep(2 * time.Hour)
	})
}

// listLocker is a Locker that Go cannot compare with another.
type listLocker []*promptStore

func (l listLocker) Lock(ctx context.Context, key string) (func(), error) {
	return promptLocker{l[0]}.Lock(ctx, key)
}

// listStore is a Store that is such a Locker.
type listStore struct {
	*promptStore
	listLocker
}

// Options.Locker goes before the Store's own lock. Where it is the Store, that is said by
// comparing the two, which must not panic.
func TestLockerIsTheOneThatIsGiven(t *testing.T) {
	newStore := func() *promptStore { return &promptStore{ganbauth.NewMemoryStore(), true, map[string]string{}} }
	store, other := newStore(), newStore()
	own := promptLocker{store}
	for name, c := range map[string]struct {
		store  ganbauth.TokenStore
		locker ganbauth.Locker
		locks  *promptStore
		waits  bool // for the lock by a goroutine of its own
	}{
		"the Store's own":             {own, nil, store, false},
		"the Store":                   {own, own, store, false},
		"another one":                 {own, promptLocker{other}, other, true},
		"one that is not comparable":  {own, listLocker{other}, other, true},
		"neither is":                  {listStore{store, listLocker{store}}, listLocker{other}, other, true},
		"two of one such type":        {listStore{store, listLocker{store}}, listStore{other, listLocker{other}}, other, true},
		"a Store that is not":         {listStore{store, listLocker{store}}, promptLocker{other}, other, true},
		"beside a Store without one":  {store, promptLocker{other}, other, true},
		"beside one of three methods": {&brokenStore{TokenStore: store}, promptLocker{other}, other, true},
	} {
		t.Run(name, func(t *testing.T) {
			clear(store.stacks)
			clear(other.stacks)
			a := newApp(t, setup{options: ganbauth.Options{Store: c.store, Locker: c.locker,
				Key: keyIs("alice")}})
			require.NoError(t, a.kit.SetToken(t.Context(), "alice", &ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}))
			for _, s := range []*promptStore{store, other} {
				require.Equal(t, s == c.locks, s.stacks["Lock"] != "")
			}
			require.Equal(t, c.waits, !strings.Contains(c.locks.stacks["Lock"], "TestLockerIsTheOneThatIsGiven.func"))
		})
	}
}
