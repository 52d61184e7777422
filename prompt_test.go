package ganbauth_test

import (
	"context"
	"net/http"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// promptStore says whether it ends with its context, and remembers who called Load.
type promptStore struct {
	ganbauth.TokenStore
	prompt bool
	stack  string
}

func (s *promptStore) EndsWithContext() bool { return s.prompt }

func (s *promptStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	s.stack = string(debug.Stack())
	return s.TokenStore.Load(ctx, key)
}

// A store that ends with its context is read in the request's own goroutine, and no other
// is.
func TestPromptStoreNeedsNoGoroutine(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, prompt := range []bool{false, true} {
			store := &promptStore{TokenStore: ganbauth.NewMemoryStore(), prompt: prompt}
			opts := ganbauth.Options{Store: store, Key: func(*http.Request) (string, error) { return "alice", nil }}
			if sealed {
				opts.EncryptionKeys = [][]byte{key(1)}
			}
			a := newApp(t, setup{options: opts})
			require.NoError(t, a.kit.SetToken(t.Context(), "alice", &ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}))
			_, err := a.kit.Token(t.Context(), "alice")
			require.NoError(t, err)
			if prompt {
				require.Contains(t, store.stack, t.Name())
			} else {
				require.NotContains(t, store.stack, t.Name()+"(")
			}
		}
	}
}
