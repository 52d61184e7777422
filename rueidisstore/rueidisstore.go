// Package rueidisstore keeps ganbauth's tokens in Redis, and makes refreshes exclusive
// across processes there, with the client rueidis. A live token costs no round trip: it
// is kept in the process's memory, and Redis tells when it changes (server-assisted
// client-side caching).
//
//	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
//	store := rueidisstore.New(client, rueidisstore.Options{})
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and everything that a store can be besides: a
// [ganbauth.Swapper], a [ganbauth.Locker], a [ganbauth.RecordLocker] and a
// [ganbauth.ExpiryPager]. A single server, Sentinel and Cluster all work, from Redis 6
// on. It shares its records and locks with goredisstore. Package [redisstore] says how a
// record changes, how a lock is safe, and what Redis must be.
//
// # What is answered from memory
//
// Only [Store.Load] answers from memory, only with a token, and for Options.CacheTTL at
// most after Redis was asked for it. Redis is always asked:
//
//   - while this process holds the key's lock, and by every write, which compares in Redis itself;
//   - after this process has written or locked the key, until nothing older can be in memory: a
//     process sees its own writes, whatever becomes of Redis's messages;
//   - when memory says that there is no token, so that a logout never overlooks one.
//
// So memory decides only which access token a request is served with. A stale one does no
// more harm than a request that was a moment earlier.
//
// # How old an answer can be
//
// When another process changes a token, Redis sends a message at once, and memory forgets
// the token. When a connection ends, memory forgets all that was learned over it. If
// messages are lost while the connection looks alive, as in a partition, an answer is
// used for Options.CacheTTL at most. A user who has logged out on one machine can be
// served for that long by another machine, which is cut off from Redis.
package rueidisstore

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/redisstore"
)

// Options configure a [Store]. The zero value of each field is the right default.
type Options struct {
	// Prefix begins the name of everything that the Store keeps in Redis. Default:
	// "ganbauth:".
	Prefix string
	// TTL is how long a token is kept after it was last saved. Default: until it is
	// deleted. Set it to the sessions' Lifetime where tokens belong to sessions (without
	// ganbauth's Options.Key). KeepAlive does not see tokens with a TTL.
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it.
	// One to 20 seconds. Default: 10 seconds.
	Lease time.Duration
	// Logger gets a warning if tokens are not safe in Redis: see [redisstore.Store.Check].
	// Default: [slog.Default].
	Logger *slog.Logger
	// CacheTTL is how long a token may be used from memory before Redis is asked again.
	// It bounds how long a logout on another machine can stay unseen when Redis's
	// messages do not arrive. A minute at most. Default: 10 seconds. If it is negative,
	// Redis is asked each time.
	CacheTTL time.Duration
}

const (
	defaultCacheTTL = 10 * time.Second
	maxCacheTTL     = time.Minute
)

// Store keeps tokens in Redis and locks them there. It is safe for concurrent use. It has
// the methods of [redisstore.Store].
//
// Every call ends with its context, and after three seconds at most; Load after three and a
// half. Reads that come within ten milliseconds of an answered one may last for the client's
// Dialer.Timeout besides, if Redis falls silent just then. A lock that somebody holds is
// waited for until the context ends. A list of tokens takes as many calls as it has pages.
type Store struct {
	*redisstore.Store
	near  *redisstore.Store // whose reads may be answered from memory; nil: none are
	fresh fresh
}

var (
	_ ganbauth.TokenStore   = (*Store)(nil)
	_ ganbauth.Swapper      = (*Store)(nil)
	_ ganbauth.Locker       = (*Store)(nil)
	_ ganbauth.RecordLocker = (*Store)(nil)
	_ ganbauth.ExpiryLister = (*Store)(nil)
	_ ganbauth.ExpiryPager  = (*Store)(nil)
)

// New returns a Store that uses client, which its owner closes. The client must not read
// from replicas (SendToReplicas, ReplicaOnly), and must leave ClientTrackingOptions
// alone. Its CacheSizeEachConn bounds the memory that tokens take, for each of its
// connections.
func New(client rueidis.Client, opts Options) *Store {
	ttl := min(opts.CacheTTL, maxCacheTTL)
	if ttl == 0 {
		ttl = defaultCacheTTL
	}
	shared := redisstore.Options{
		Prefix: opts.Prefix, TTL: opts.TTL, Lease: opts.Lease, Logger: opts.Logger,
		Cluster: client.Mode() == rueidis.ClientModeCluster,
	}
	s := &Store{Store: redisstore.New(commands{client}, shared), fresh: fresh{keep: ttl}}
	if ttl > 0 {
		s.near = redisstore.New(caching{commands{client}, ttl, new(atomic.Int64)}, shared)
	}
	return s
}

// Load implements [ganbauth.TokenStore]. The package's comment says when it answers from
// memory.
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if s.near != nil && !s.fresh.has(key) {
		if t, err := s.loadNear(ctx, key); err == nil && t.AccessToken != "" {
			return t, nil
		}
	}
	return s.Store.Load(ctx, key)
}

// nearTimeout is how long a read that may be answered from memory waits for Redis. Then
// Redis is asked directly. While Redis is away, rueidis tries again for that long.
const nearTimeout = 500 * time.Millisecond

func (s *Store) loadNear(ctx context.Context, key string) (*ganbauth.Token, error) {
	ctx, cancel := redisstore.WithTimeout(ctx, nearTimeout)
	defer cancel()
	return s.near.Load(ctx, key)
}

// Save implements [ganbauth.TokenStore].
func (s *Store) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	end := s.fresh.begin(key)
	defer end()
	return s.Store.Save(ctx, key, token)
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	end := s.fresh.begin(key)
	defer end()
	return s.Store.Delete(ctx, key)
}

// Swap implements [ganbauth.Swapper].
func (s *Store) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	end := s.fresh.begin(key)
	defer end()
	return s.Store.Swap(ctx, key, old, new)
}

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so
// that it outlives any refresh. After the death of its process it lasts for
// Options.Lease.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	_, unlock, err = s.LockRecord(ctx, key)
	return unlock, err
}

// LockRecord implements [ganbauth.RecordLocker]. It is [Store.Lock], and costs no more.
func (s *Store) LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error) {
	end := s.fresh.begin(key)
	fingerprint, release, err := s.Store.LockRecord(ctx, key)
	if err != nil {
		end()
		return "", nil, err
	}
	return fingerprint, func() { release(); end() }, nil
}
