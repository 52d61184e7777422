package ganbauth

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// maxKey is the length of the longest store key, in bytes.
const maxKey = 1024

// TokenStore keeps records, each under a key that says whose it is. A record is a token,
// or a mark in place of one (see [Token]): a store treats both alike.
//
// An error means that the store failed: requests are answered 503 and nobody is logged
// out. Methods are called concurrently. The caller owns the Token that Load returns, and
// Save must copy the one it is given. Keys are at most 1,024 bytes of any content.
// [ganbtest.TestStore] tests an implementation.
//
// A store that can should be a [Swapper], too. Without it the kit compares for itself,
// under a lock.
//
// The kit makes each call in a goroutine, which it leaves after a few seconds. A
// goroutine can cost more than to read a token from memory. A store may have the method
// EndsWithContext() bool if all of its methods, those of the optional interfaces
// included, end as soon as their context does, and Load after a few seconds at most,
// whatever the engine does. The kit asks it before each call, and makes the call without
// a goroutine if it returns true.
//
// [ganbtest.TestStore]: https://pkg.go.dev/github.com/ganbauth/ganbauth/ganbtest#TestStore
type TokenStore interface {
	// Load returns the record under key, as the last write left it, or [ErrTokenNotFound]
	// if there is none. A record that is there and cannot be read is another error.
	Load(ctx context.Context, key string) (*Token, error)
	// Save puts the record under key, replacing what was there. When it returns nil, the
	// record is safe.
	Save(ctx context.Context, key string, token *Token) error
	// Delete removes the record under key. It is no error if there is none.
	Delete(ctx context.Context, key string) error
}

// Swapper is an optional interface of a [TokenStore]: compare and swap. With it a write
// says what it replaces, so that neither a late refresh nor a late logout undoes what has
// happened since.
type Swapper interface {
	// Swap replaces old by new in one atomic step if old is what is stored under key. A
	// nil old means that nothing is stored; a nil new deletes. Records are the same if
	// their [Token.Fingerprint] is; old may be new itself, and is then written all the
	// same. If something else is stored, nothing changes and the error is
	// [ErrSuperseded]. After any other error the caller does not know whether the swap
	// happened.
	Swap(ctx context.Context, key string, old, new *Token) error
}

// Locker makes a refresh exclusive across processes.
//
// A lock must outlive a refresh, whose new token may have to wait for the store for as
// long as the store is away: extend it while its process lives. It must end by itself
// soon after its process has died.
type Locker interface {
	// Lock waits for the lock on key, or for ctx. The caller calls unlock once; it must
	// not fail.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// RecordLocker is an optional interface of a store that is a [Locker] and a [Swapper] in
// one engine. Its lock is a write to the record's own place, which proves that the store
// takes writes, and it tells which record is there. That spares a refresh one round trip.
type RecordLocker interface {
	// LockRecord is Lock, and returns the [Token.Fingerprint] of the record under key, or
	// "" if there is none.
	LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error)
}

// prompt is a TokenStore with the method EndsWithContext.
type prompt interface{ EndsWithContext() bool }

// ExpiryLister is an optional interface of a [TokenStore]. [Kit.KeepAlive] and
// [Kit.RefreshExpiring] need it, or an [ExpiryPager].
type ExpiryLister interface {
	// Expiring returns the keys of the tokens that have a refresh token and end before
	// that time, soonest first. A key that is listed needlessly does no harm.
	Expiring(ctx context.Context, before time.Time) (keys []string, err error)
}

// ExpiryPager is an optional interface in place of [ExpiryLister], for stores with many
// tokens: it returns a page at a time. A store that has both is read page by page.
type ExpiryPager interface {
	// ExpiringAfter returns the tokens that have a refresh token and end before that
	// time, at most limit of them, soonest first and then by key. It begins behind the
	// entry after, which need not be there: one without a Key is before all others of its
	// time, and the zero Expiry before all others. A page may have fewer than limit
	// entries, but an empty one is the end. A key that is listed needlessly does no harm.
	ExpiringAfter(ctx context.Context, after Expiry, before time.Time, limit int) ([]Expiry, error)
}

// Expiry says when the token under a store's key ends.
type Expiry struct {
	At  time.Time
	Key string
}

// NewMemoryStore returns a TokenStore in the process's memory, for tests and for a single
// process: tokens end with it, and those that nobody deletes stay. It is a [Swapper], an
// [ExpiryLister] and an [ExpiryPager].
func NewMemoryStore() TokenStore { return &memoryStore{tokens: map[string]Token{}} }

type memoryStore struct {
	mu     sync.RWMutex
	tokens map[string]Token
}

func (*memoryStore) EndsWithContext() bool { return true }

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

func (s *memoryStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, key)
	return nil
}

// Swap compares and writes under one lock.
func (s *memoryStore) Swap(_ context.Context, key string, old, new *Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stored *Token
	if t, ok := s.tokens[key]; ok {
		stored = &t
	}
	if stored.Fingerprint() != old.Fingerprint() {
		return ErrSuperseded
	}
	if new == nil {
		delete(s.tokens, key)
	} else {
		s.tokens[key] = *new
	}
	return nil
}

func (s *memoryStore) Expiring(ctx context.Context, before time.Time) ([]string, error) {
	var keys []string
	page, _ := s.ExpiringAfter(ctx, Expiry{}, before, math.MaxInt)
	for _, e := range page {
		keys = append(keys, e.Key)
	}
	return keys, nil
}

// ExpiringAfter sorts all the tokens for each page: the map has no order.
func (s *memoryStore) ExpiringAfter(_ context.Context, after Expiry, before time.Time, limit int) ([]Expiry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var page []Expiry
	for key, t := range s.tokens {
		e := Expiry{t.ExpiresAt, key}
		if t.RefreshToken != "" && e.At.Before(before) && e.compare(after) > 0 {
			page = append(page, e)
		}
	}
	slices.SortFunc(page, Expiry.compare)
	return page[:min(len(page), limit)], nil
}

func (e Expiry) compare(other Expiry) int {
	return cmp.Or(e.At.Compare(other.At), cmp.Compare(e.Key, other.Key))
}

// Format implements [fmt.Formatter] and shows no token, whatever the verb.
func (s *memoryStore) Format(f fmt.State, _ rune) { fmt.Fprint(f, "ganbauth.MemoryStore") }
