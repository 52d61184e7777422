package ganbauth

import (
	"context"
	"slices"
	"sync"
	"time"
)

// TokenStore keeps tokens, each under a key that says whose it is.
//
// Errors are for a store that does not work: the requests at hand get 503, and nobody is logged out. Methods are
// called concurrently. A Token that was loaded belongs to the caller, one that is saved to the store: neither may
// change the other later. Keys are at most 1,024 bytes of any content. [ganbtest.TestStore] tests an implementation.
//
// [ganbtest.TestStore]: https://pkg.go.dev/github.com/ganbauth/ganbauth/ganbtest#TestStore
type TokenStore interface {
	// Load returns the token under key, or [ErrTokenNotFound] when there is none or none that can be read.
	Load(ctx context.Context, key string) (*Token, error)
	// Save puts the token under key, replacing what was there. When it returns nil the token is safe.
	Save(ctx context.Context, key string, token *Token) error
	// Delete removes the token under key. There being none is no error.
	Delete(ctx context.Context, key string) error
}

// Locker makes a refresh exclusive across processes.
//
// A lock must outlive the longest refresh, which is two minutes, or be extended; and end by itself soon after its
// process has died.
type Locker interface {
	// Lock waits for the lock on key, or for ctx. The caller calls unlock once; it must not fail.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// ExpiryLister is what [Kit.RefreshExpiring] needs of a TokenStore besides.
type ExpiryLister interface {
	// Expiring returns the keys of the tokens that can be refreshed and end before that time, soonest first. A key that
	// is listed needlessly does no harm.
	Expiring(ctx context.Context, before time.Time) (keys []string, err error)
}

// load is store.Load, with no allocation for the Token where the store is the default one.
func load(ctx context.Context, store TokenStore, key string) (Token, error) {
	if s, ok := store.(*scsStore); ok {
		return s.load(ctx, key)
	}
	t, err := store.Load(ctx, key)
	if err != nil || t == nil {
		return Token{}, err
	}
	return *t, nil
}

// NewMemoryStore returns a TokenStore in the process's memory, for tests and for a single process: tokens end with
// it, and those that nobody deletes stay.
func NewMemoryStore() TokenStore { return &memoryStore{tokens: map[string]Token{}} }

type memoryStore struct {
	mu     sync.RWMutex
	tokens map[string]Token
}

func (s *memoryStore) Load(_ context.Context, key string) (*Token, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tokens[key]
	if !ok {
		return nil, ErrTokenNotFound
	}
	return &t, nil
}

func (s *memoryStore) Save(_ context.Context, key string, token *Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[key] = *token
	return nil
}

func (s *memoryStore) Expiring(_ context.Context, before time.Time) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var keys []string
	for key, t := range s.tokens {
		if t.RefreshToken != "" && t.ExpiresAt.Before(before) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return s.tokens[a].ExpiresAt.Compare(s.tokens[b].ExpiresAt) })
	return keys, nil
}

func (s *memoryStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, key)
	return nil
}
