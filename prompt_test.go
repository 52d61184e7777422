package ganbauth_test

import (
	"context"
	"net/http"
	"runtime/debug"
	"strings"
	"testing"
	"time"

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
		opts.Key = func(*http.Request) (string, error) { return "alice", nil }
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
