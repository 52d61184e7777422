// Package goredisstore keeps ganbauth's tokens in Redis, and makes refreshes exclusive
// across processes there, with the client go-redis.
//
//	store := goredisstore.New(redis.NewClient(&redis.Options{Addr: addr}), goredisstore.Options{})
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and everything that a store can be besides: a
// [ganbauth.Swapper], a [ganbauth.Locker], a [ganbauth.RecordLocker] and a
// [ganbauth.ExpiryPager]. A single server, Sentinel and Cluster all work.
//
// Package [redisstore] says how a record changes, how a lock is safe, and what Redis must
// be: it must neither evict a token nor forget it. Check tells whether it evicts.
package goredisstore

import (
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

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
}

// Store keeps tokens in Redis and locks them there. It is safe for concurrent use.
//
// Every call ends with its context, and after three seconds at most, whatever the client's
// timeouts are. A lock that somebody holds is waited for until the context ends. A list of
// tokens takes as many calls as it has pages.
type Store = redisstore.Store

// New returns a Store that uses client, which its owner closes.
func New(client redis.UniversalClient, opts Options) *Store {
	_, single := client.(*redis.Client)
	return redisstore.New(&spareClient{client: commands{client}}, redisstore.Options{
		Prefix: opts.Prefix, TTL: opts.TTL, Lease: opts.Lease, Logger: opts.Logger, Cluster: !single,
	})
}
