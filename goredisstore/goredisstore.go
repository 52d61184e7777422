// Package goredisstore keeps ganbauth's tokens in Redis, and makes refreshes exclusive across processes there.
//
//	store := goredisstore.New(redis.NewClient(&redis.Options{Addr: addr}), goredisstore.Options{})
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// A [Store] is a [ganbauth.TokenStore] and a [ganbauth.Locker]. A single server, Sentinel and Cluster all work: all
// that belongs to one key has the same hash tag.
//
// # How a lock is safe
//
// A lock is a random name in the token's hash, which scripts set and compare. Its holder counts it up while he lives;
// who waits takes it over when it has stood still for a lease, as seen by his own clock while Redis answers. No lock by
// SET NX PX would do, nor the libraries made of it: it ends during an outage of Redis, and the holder may have a new token
// that he could not save. Each lock also gets the next number of its key (a fencing token), and a Save with a number lower
// than the one that was saved last is refused: a process that was suspended for longer cannot overwrite a newer token. The
// store runs on one Redis primary; a failover that loses the last write loses what was in it.
package goredisstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/lease"
)

// Options configure a [Store]. The zero value of each field is the right default.
type Options struct {
	// Prefix begins the name of everything that the Store keeps in Redis. Default: "ganbauth:".
	Prefix string
	// TTL is how long a token is kept after it was last saved. Default: until it is deleted. Set it to the
	// sessions' Lifetime where tokens belong to sessions (without ganbauth's Options.Key).
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it. One to 20 seconds.
	// Default: 10 seconds.
	Lease time.Duration
}

// Store is a [ganbauth.TokenStore] and a [ganbauth.Locker] in Redis. It is safe for concurrent use.
type Store struct {
	client redis.UniversalClient
	prefix string
	ttl    time.Duration
	locks  *lease.Locks
}

var (
	_ ganbauth.TokenStore = (*Store)(nil)
	_ ganbauth.Locker     = (*Store)(nil)

	_ ganbauth.ExpiryLister = (*Store)(nil)
)

// New returns a Store. The client's timeouts are its owner's to set; every call ends with its context.
func New(client redis.UniversalClient, opts Options) *Store {
	if opts.Prefix == "" {
		opts.Prefix = "ganbauth:"
	}
	s := &Store{client: client, prefix: opts.Prefix, ttl: opts.TTL}
	s.locks = lease.New(engine{s}, opts.Lease)
	return s
}

// name returns the name of the hash of key. The braces are Cluster's hash tag, which must not hang on what is in the key.
func (s *Store) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.prefix + "{" + base64.RawURLEncoding.EncodeToString(sum[:]) + "}:token"
}

// The fields of a token's hash: "token" is the record, "fence" the number of the last lock, "saved" the number that
// the last change came with, or the next one if it came without a lock; "holder" and "beats" are the lock. A hash without
// a token goes after a while: no lock lives that long.
const (
	graveSeconds = 600

	saveScript = `
local saved = tonumber(redis.call('HGET', KEYS[1], 'saved') or 0)
local fence = tonumber(ARGV[2])
if fence > 0 and fence < saved then return 0 end
if fence == 0 then fence = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0) + 1 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'saved', fence)
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) else redis.call('PERSIST', KEYS[1]) end
return 1`

	deleteScript = `
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local fence = tonumber(ARGV[1])
if fence == 0 then fence = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0) + 1 end
redis.call('HDEL', KEYS[1], 'token')
redis.call('HSET', KEYS[1], 'saved', fence)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1`

	lockScript = `
local held = redis.call('HMGET', KEYS[1], 'holder', 'beats')
if held[1] and not (held[1] == ARGV[2] and held[2] == ARGV[3]) then return {0, held[1], tonumber(held[2])} end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'beats', 0)
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
if redis.call('HEXISTS', KEYS[1], 'token') == 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return {fence, '', 0}`

	extendScript = `
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('HINCRBY', KEYS[1], 'beats', 1)`

	unlockScript = `
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'holder', 'beats')`
)

var (
	saveToken   = redis.NewScript(saveScript)
	deleteToken = redis.NewScript(deleteScript)
	takeLock    = redis.NewScript(lockScript)
	extendLock  = redis.NewScript(extendScript)
	releaseLock = redis.NewScript(unlockScript)
)

// Load implements [ganbauth.TokenStore].
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	data, err := s.client.HGet(ctx, s.name(key), "token").Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return nil, ganbauth.ErrTokenNotFound
	case err != nil:
		return nil, fmt.Errorf("goredisstore: load: %w", err)
	}
	t := new(ganbauth.Token)
	if err := t.UnmarshalBinary(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ganbauth.ErrTokenNotFound, err)
	}
	return t, nil
}

// Save implements [ganbauth.TokenStore]. It fails with [ganbauth.ErrSuperseded] if this process has lost its lock on key and
// another has changed the token since.
func (s *Store) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	data, err := token.MarshalBinary()
	if err != nil {
		return err
	}
	// The index first: a key that is listed needlessly does no harm, one that is missing would lapse.
	if err := s.index(ctx, key, token); err != nil {
		return fmt.Errorf("goredisstore: save: %w", err)
	}
	saved, err := saveToken.Run(ctx, s.client, []string{s.name(key)}, data, s.locks.Fence(key), s.ttl.Milliseconds()).Int()
	if err != nil {
		return fmt.Errorf("goredisstore: save: %w", err)
	}
	if saved == 0 {
		return ganbauth.ErrSuperseded
	}
	return nil
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := deleteToken.Run(ctx, s.client, []string{s.name(key)}, s.locks.Fence(key), graveSeconds).Err(); err != nil {
		return fmt.Errorf("goredisstore: delete: %w", err)
	}
	if err := s.client.ZRem(ctx, s.expiries(), key).Err(); err != nil {
		return fmt.Errorf("goredisstore: delete: %w", err)
	}
	return nil
}

// expiries is a sorted set of the keys whose tokens can be refreshed, by the end of the token. With a TTL there is
// none: such tokens are not kept alive.
func (s *Store) expiries() string { return s.prefix + "expiries" }

func (s *Store) index(ctx context.Context, key string, token *ganbauth.Token) error {
	switch {
	case s.ttl > 0:
		return nil
	case token.RefreshToken == "":
		return s.client.ZRem(ctx, s.expiries(), key).Err()
	}
	return s.client.ZAdd(ctx, s.expiries(), redis.Z{Score: float64(token.ExpiresAt.Unix()), Member: key}).Err()
}

// Expiring implements [ganbauth.ExpiryLister]. With Options.TTL it lists nothing.
func (s *Store) Expiring(ctx context.Context, before time.Time) ([]string, error) {
	keys, err := s.client.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: s.expiries(), ByScore: true, Start: "-inf", Stop: "(" + strconv.FormatInt(before.Unix(), 10),
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("goredisstore: list: %w", err)
	}
	return keys, nil
}

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so that it outlives any refresh;
// after the death of its process it lasts for Options.Lease at most.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	unlock, err = s.locks.Lock(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("goredisstore: %w", err)
	}
	return unlock, nil
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (fence int64, held lease.Hold, err error) {
	answer, err := takeLock.Run(ctx, e.client, []string{e.name(key)}, holder, dead.Holder, dead.Beats, graveSeconds).Slice()
	if err != nil {
		return 0, lease.Hold{}, err
	}
	fence, _ = answer[0].(int64)
	held.Holder, _ = answer[1].(string)
	held.Beats, _ = answer[2].(int64)
	return fence, held, nil
}

func (e engine) Extend(ctx context.Context, key, holder string) error {
	return extendLock.Run(ctx, e.client, []string{e.name(key)}, holder).Err()
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	return releaseLock.Run(ctx, e.client, []string{e.name(key)}, holder).Err()
}

// String shows where the Store keeps its tokens.
func (s *Store) String() string { return "goredisstore.Store(" + strconv.Quote(s.prefix) + ")" }
